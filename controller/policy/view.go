package policy

import (
	"cmp"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/client"
)

// View is how a workload sees the mesh. The zero Scope is everything that is exported to the namespace.
type View struct {
	Namespace     string
	ClusterDomain string          // default cluster.local
	Scope         *settings.Scope // nil: the default one
}

// Callee is a service as it may be seen.
type Callee struct {
	Namespace, Hostname string
	ExportTo            []string // settings.ServiceSettings.export_to
	Declared            bool     // by a ServiceEntry, and not a service of Kubernetes
	Created             time.Time
}

// Sees reports whether the service is exported to the view's namespace and in its scope on the port (SR-16, IN-36).
func (v View) Sees(s Callee, port uint32) bool {
	if !exported(s.ExportTo, v.Namespace) {
		return false
	}
	if len(v.Scope.GetEgress()) == 0 {
		return true
	}
	return v.imports(v.egress(port).GetHosts(), s)
}

// exported reports whether a list of export_to, which is empty for everybody, names the namespace.
func exported(to []string, namespace string) bool {
	return len(to) == 0 || slices.Contains(to, namespace)
}

// CalleeOf is a service of a snapshot as it may be seen.
func CalleeOf(svc *client.Service) Callee {
	return Callee{Namespace: svc.GetNamespace(), Hostname: svc.GetHostname(), ExportTo: svc.Settings.GetExportTo(),
		Declared: svc.Settings.GetDeclared(), Created: svc.Created()}
}

// SeesWorkload reports whether a workload whose own address is dialled is in the view's scope: a service that leads to the port
// is, or, without any, its namespace as a whole. Only services of the workload's namespace and of the view's own count: another
// one may list the workload's address.
func (v View) SeesWorkload(s *client.Snapshot, w *client.Workload, port uint16) bool {
	if len(v.Scope.GetEgress()) == 0 {
		return true
	}
	served := false
	for key, list := range w.GetServices() {
		namespace, host, _ := strings.Cut(key, "/")
		svc := s.ServiceByHost(namespace, host)
		if svc == nil || namespace != w.GetNamespace() && namespace != v.Namespace {
			continue
		}
		for _, p := range list.GetPorts() {
			if p.GetTargetPort() != uint32(port) {
				continue
			}
			served = served || namespace == w.GetNamespace()
			if v.Sees(CalleeOf(svc), p.GetServicePort()) {
				return true
			}
		}
	}
	return !served && v.imports(v.egress(uint32(port)).GetHosts(), Callee{Namespace: w.GetNamespace(), Hostname: "*"})
}

// imports reports whether an item brings the service in and none takes it out.
func (v View) imports(hosts []string, s Callee) bool {
	in := false
	for _, item := range hosts {
		namespace, host, ok := strings.Cut(item, "/")
		if !ok {
			continue
		}
		namespace, out := strings.CutPrefix(namespace, "~")
		if namespace == "" {
			namespace = "*"
		}
		switch {
		case !v.covers(namespace, host, s):
		case out:
			return false
		default:
			in = true
		}
	}
	return in
}

// egress is the item for the port, else the one for all other ports, nil when there is none.
func (v View) egress(port uint32) *settings.Egress {
	var rest *settings.Egress
	for _, e := range v.Scope.GetEgress() {
		switch e.GetPort() {
		case port:
			return e
		case 0:
			rest = e
		}
	}
	return rest
}

// covers decides one namespace and host of an Egress.
func (v View) covers(namespace, host string, s Callee) bool {
	switch namespace {
	case ".":
		namespace = v.Namespace
	case "*":
		namespace = s.Namespace
	}
	if namespace != s.Namespace {
		return false
	}
	host = strings.ToLower(host)
	if suffix, wild := strings.CutPrefix(host, "*"); wild {
		return strings.HasSuffix(s.Hostname, suffix)
	}
	return host == s.Hostname
}

// OutboundPolicy says what becomes of hosts that are in no registry, or not seen.
func (v View) OutboundPolicy(mesh *settings.MeshSettings) settings.OutboundPolicy {
	if v.Scope != nil && v.Scope.OutboundPolicy != nil {
		return v.Scope.GetOutboundPolicy()
	}
	return mesh.GetOutboundPolicy()
}

// EgressProxy is the cluster that calls of hosts in no registry are led to, "" where they go to what was dialled or nowhere. A Sidecar
// that names one says ALLOW_ANY itself.
func (v View) EgressProxy() string {
	if v.Scope == nil || v.Scope.OutboundPolicy == nil || v.Scope.GetOutboundPolicy() != settings.OutboundPolicy_ALLOW_ANY {
		return ""
	}
	return v.Scope.GetEgressProxy()
}

// maxName is the length of the longest host name, in bytes (RFC 1035 §2.3.4).
const maxName = 255

// Hosts returns what an authority ("reviews:9080", "reviews.default", "API.example.com.") may name in the view's namespace,
// best first: itself, the service that it is short for, and the patterns that cover it, the longest first. The port that it
// may carry is left out. What is too long for a name is no host's but of "*".
func (v View) Hosts(authority string) []string {
	host := hostOf(authority)
	host = strings.TrimSuffix(strings.ToLower(strings.Trim(host, "[]")), ".")
	if host == "" {
		return nil
	}
	if len(host) > maxName {
		return []string{"*"}
	}
	out := []string{host}
	if full := v.full(host); full != host {
		out = append(out, full)
	}
	if net.ParseIP(host) != nil {
		return out
	}
	for rest := host; ; {
		_, after, more := strings.Cut(rest, ".")
		if !more {
			break
		}
		out, rest = append(out, "*."+after), after
	}
	return append(out, "*")
}

// full is the service that a short name means; names that mean no service are returned as they are.
func (v View) full(host string) string {
	domain := v.domain()
	labels := strings.Split(host, ".")
	switch {
	case net.ParseIP(host) != nil:
		return host
	case len(labels) == 1:
		return host + "." + v.Namespace + ".svc." + domain
	case len(labels) == 2:
		return host + ".svc." + domain
	case len(labels) == 3 && labels[2] == "svc":
		return host + "." + domain
	}
	return host
}

// names are a host and what is short for it in the view's namespace: the counterpart of full.
func (v View) names(host string) []string {
	out := []string{host}
	short, ok := strings.CutSuffix(host, ".svc."+v.domain())
	name, namespace, dotted := strings.Cut(short, ".")
	if !ok || !dotted || strings.Contains(namespace, ".") || strings.HasPrefix(name, "*") {
		return out
	}
	if namespace == v.Namespace {
		out = append(out, name)
	}
	return append(out, short+".svc", short)
}

func (v View) domain() string { return cmp.Or(v.ClusterDomain, api.DefaultClusterDomain) }

// RouteConfigName is Istio's name of the RouteConfiguration that callers of the port go by: the port for declared HTTP, the
// service and the port where the first bytes decide.
func RouteConfigName(s Callee, port uint32, declared bool) string {
	if declared {
		return strconv.Itoa(int(port))
	}
	return s.Hostname + ":" + strconv.Itoa(int(port))
}
