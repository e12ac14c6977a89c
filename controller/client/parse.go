package client

import (
	"fmt"
	"math"
	"net/netip"
	"strings"

	"google.golang.org/protobuf/proto"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/securityapi"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
)

// Resource is one resource of the mesh. Message is an *Address, *Workload or *Service of workloadapi, an
// *securityapi.Authorization, or of package settings *MeshSettings, *WorkloadSettings, *Scope, *CallRule or *RouteRule. Name may be
// empty, then it is the message's own, except for WorkloadSettings and Scope, which carry none.
type Resource struct {
	Name    string
	Message proto.Message
}

// Key names one resource for removal; Type is one of the types of controller/api.
type Key struct{ Type, Name string }

// parsed is a Resource that was checked: exactly one field is set.
type parsed struct {
	workload *Workload // Settings and Identity's trust domain are filled in by the builder
	service  *Service
	policy   *securityapi.Authorization
	mesh     *settings.MeshSettings
	settings *settings.WorkloadSettings
	scope    *settings.Scope
	defaults *CallDefaults             // set with mesh
	config   *meshv1alpha1.ProxyConfig // set with mesh
	rule     *CallRule
	routes   *RouteRule
	name     string // of settings, scope, rule or routes
}

// parse checks one resource. Its errors name the resource and the field.
func parse(r Resource) (parsed, error) {
	switch m := r.Message.(type) {
	case *workloadapi.Address:
		switch t := m.GetType().(type) {
		case *workloadapi.Address_Workload:
			return parseWorkload(r.Name, t.Workload)
		case *workloadapi.Address_Service:
			return parseService(r.Name, t.Service)
		}
		return parsed{}, fmt.Errorf("parse address %q: neither workload nor service", r.Name)
	case *workloadapi.Workload:
		return parseWorkload(r.Name, m)
	case *workloadapi.Service:
		return parseService(r.Name, m)
	case *securityapi.Authorization:
		return parsePolicy(r.Name, m)
	case *settings.MeshSettings:
		if r.Name != "" && r.Name != api.MeshSettingsName {
			return parsed{}, fmt.Errorf("parse mesh settings %q: the name must be %q", r.Name, api.MeshSettingsName)
		}
		if m == nil {
			return parsed{}, fmt.Errorf("parse mesh settings %q: empty", r.Name)
		}
		defaults, err := parseDefaults(m)
		if err != nil {
			return parsed{}, fmt.Errorf("parse mesh settings %q: call_defaults.%w", r.Name, err)
		}
		config, err := parseDefaultConfig(m)
		if err != nil {
			return parsed{}, fmt.Errorf("parse mesh settings %q: %w", r.Name, err)
		}
		return parsed{mesh: m, defaults: defaults, config: config}, nil
	case *settings.WorkloadSettings:
		if r.Name == "" || m == nil {
			return parsed{}, fmt.Errorf("parse workload settings %q: no name or no content", r.Name)
		}
		return parseSettings(r.Name, m)
	case *settings.Scope:
		if r.Name == "" || m == nil {
			return parsed{}, fmt.Errorf("parse scope %q: no name or no content", r.Name)
		}
		return parseScope(r.Name, m)
	case *settings.CallRule:
		return parseRule(r.Name, m)
	case *settings.RouteRule:
		return parseRoutes(r.Name, m)
	}
	return parsed{}, fmt.Errorf("parse resource %q: unknown message %T", r.Name, r.Message)
}

func parseSettings(resource string, m *settings.WorkloadSettings) (parsed, error) {
	if m.GetTunnelPort() > math.MaxUint16 {
		return parsed{}, fmt.Errorf("parse workload settings %q: tunnel_port %d is not a port", resource, m.GetTunnelPort())
	}
	for p := range m.GetPortMtls() {
		if !isPort(p) {
			return parsed{}, fmt.Errorf("parse workload settings %q: port_mtls: %d is not a port", resource, p)
		}
	}
	return parsed{settings: m, name: resource}, nil
}

func parseScope(resource string, m *settings.Scope) (parsed, error) {
	for i, e := range m.GetEgress() {
		if e.GetPort() > math.MaxUint16 {
			return parsed{}, fmt.Errorf("parse scope %q: egress[%d].port: %d is not a port", resource, i, e.GetPort())
		}
	}
	return parsed{scope: m, name: resource}, nil
}

func parseWorkload(resource string, m *workloadapi.Workload) (parsed, error) {
	fail := func(format string, args ...any) (parsed, error) {
		return parsed{}, fmt.Errorf("parse workload %q: %w", cmpOr(m.GetUid(), resource), fmt.Errorf(format, args...))
	}
	switch {
	case m.GetUid() == "":
		return fail("uid: empty")
	case resource != "" && resource != m.GetUid():
		return fail("uid: differs from the resource name %q", resource)
	}
	w := &Workload{Workload: m, Identity: api.Identity{
		TrustDomain: m.GetTrustDomain(), Namespace: m.GetNamespace(),
		ServiceAccount: cmpOr(m.GetServiceAccount(), "default"),
	}}
	probe := w.Identity
	probe.TrustDomain = cmpOr(probe.TrustDomain, api.DefaultTrustDomain)
	if _, err := api.ParseIdentity(probe.String()); err != nil {
		return fail("namespace, service_account or trust_domain: %w", err)
	}
	for i, b := range m.GetAddresses() {
		ip, ok := netip.AddrFromSlice(b)
		if !ok {
			return fail("addresses[%d]: %d bytes, want 4 or 16", i, len(b))
		}
		w.Addrs = append(w.Addrs, ip.Unmap())
	}
	for key, ports := range m.GetServices() {
		if n := parseName(key); n.namespace == "" || n.name == "" {
			return fail("services: key %q is not namespace/hostname", key)
		}
		for _, p := range ports.GetPorts() {
			// A target port of 0 is a named one that this workload does not have.
			if !isPort(p.GetServicePort()) || p.GetTargetPort() > math.MaxUint16 {
				return fail("services[%s]: %d to %d are not ports", key, p.GetServicePort(), p.GetTargetPort())
			}
		}
	}
	for _, ref := range m.GetAuthorizationPolicies() {
		if n := parseName(ref); n.name == "" {
			return fail("authorization_policies: %q is not namespace/name", ref)
		}
	}
	var ref settings.SettingsRef
	if ok, err := extension(m.GetExtensions(), api.WorkloadSettingsExtension, &ref); err != nil {
		return fail("%w", err)
	} else if ok && ref.GetName() == "" {
		return fail("extensions[%s]: name: empty", api.WorkloadSettingsExtension)
	}
	w.settingsName = ref.GetName()
	var state settings.WorkloadState
	if _, err := extension(m.GetExtensions(), api.WorkloadStateExtension, &state); err != nil {
		return fail("%w", err)
	}
	w.Terminating, w.Labels, w.Weights = state.GetServingTerminating(), state.GetLabels(), state.GetWeights()
	return parsed{workload: w}, nil
}

func parseService(resource string, m *workloadapi.Service) (parsed, error) {
	own := m.GetNamespace() + "/" + m.GetHostname()
	fail := func(format string, args ...any) (parsed, error) {
		return parsed{}, fmt.Errorf("parse service %q: %w", own, fmt.Errorf(format, args...))
	}
	switch {
	case m.GetNamespace() == "" || strings.Contains(m.GetNamespace(), "/"):
		return fail("namespace: %q is not a name", m.GetNamespace())
	case m.GetHostname() == "":
		return fail("hostname: empty")
	case resource != "" && resource != own:
		return fail("hostname: differs from the resource name %q", resource)
	}
	svc := &Service{Service: m, Settings: &settings.ServiceSettings{}}
	for i, a := range m.GetAddresses() {
		ip, ok := netip.AddrFromSlice(a.GetAddress())
		if !ok {
			return fail("addresses[%d]: %d bytes, want 4 or 16", i, len(a.GetAddress()))
		}
		length := ip.BitLen()
		if a.GetLength() != nil {
			length = int(min(a.GetLength().GetValue(), math.MaxUint16))
		}
		switch {
		case length > ip.BitLen():
			return fail("addresses[%d]: length %d is more than %d bits", i, length, ip.BitLen())
		case length == ip.BitLen():
			svc.VIPs = append(svc.VIPs, ip.Unmap())
		default:
			svc.networks = append(svc.networks, netKey{a.GetNetwork(), netip.PrefixFrom(ip, length).Masked()})
		}
	}
	for i, p := range m.GetPorts() {
		if !isPort(p.GetServicePort()) || p.GetTargetPort() > math.MaxUint16 {
			return fail("ports[%d]: %d to %d are not ports", i, p.GetServicePort(), p.GetTargetPort())
		}
	}
	if _, err := extension(m.GetExtensions(), api.ServiceSettingsExtension, svc.Settings); err != nil {
		return fail("%w", err)
	}
	return parsed{service: svc}, nil
}

// parsePolicy checks no more than the name: whether a policy can be enforced is package policy's to say, which denies
// when it cannot. Dropping it here would open what it closes.
func parsePolicy(resource string, m *securityapi.Authorization) (parsed, error) {
	own := m.GetNamespace() + "/" + m.GetName()
	switch {
	case m.GetName() == "":
		return parsed{}, fmt.Errorf("parse policy %q: name: empty", cmpOr(resource, own))
	case resource != "" && resource != own:
		return parsed{}, fmt.Errorf("parse policy %q: name: differs from the resource name %q", own, resource)
	}
	return parsed{policy: m}, nil
}

// extension decodes the extension of that name into msg and reports whether there is one.
func extension(list []*workloadapi.Extension, key string, msg proto.Message) (bool, error) {
	for _, e := range list {
		if e.GetName() != key {
			continue
		}
		if e.GetConfig() == nil {
			return false, fmt.Errorf("extensions[%s]: config: empty", key)
		}
		if err := e.GetConfig().UnmarshalTo(msg); err != nil {
			return false, fmt.Errorf("extensions[%s]: %w", key, err)
		}
		return true, nil
	}
	return false, nil
}

func isPort(p uint32) bool { return p > 0 && p <= math.MaxUint16 }

func parseName(s string) name {
	ns, n, _ := strings.Cut(s, "/")
	return name{ns, n}
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
