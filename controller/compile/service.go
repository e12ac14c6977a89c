package compile

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	corev1 "k8s.io/api/core/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/validate"
)

// defaultAffinity is Kubernetes' own default for sessionAffinity: ClientIP.
const defaultAffinity = 10800 * time.Second

func (c *Compiler) hostname(s *model.Service) string {
	return s.Name + "." + s.Namespace + ".svc." + c.cfg.ClusterDomain
}

func (c *Compiler) serviceKey(s *model.Service) string { return s.Namespace + "/" + c.hostname(s) }

func (c *Compiler) service(n model.Name) ([]Resource, []validate.Finding) {
	s := c.reg.Service(n)
	if s == nil {
		return nil, nil
	}
	var found []validate.Finding
	add := func(sev validate.Severity, field, message string) {
		found = append(found, validate.Finding{Severity: sev, Kind: "Service", Namespace: n.Namespace, Name: n.Name,
			Field: field, Message: message})
	}
	target := ""
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		var err error
		if target, err = externalName(s); err != nil {
			add(validate.Error, "spec.externalName", err.Error())
			return nil, found
		}
	}
	out := &workloadapi.Service{Name: s.Name, Namespace: s.Namespace, Hostname: c.hostname(s), LoadBalancing: kubeBalancing(s),
		IpFamilies: families(s.Spec.IPFamilies), Canonical: true}
	var aliases []string
	for _, ip := range clusterIPs(s.Service) {
		out.Addresses = append(out.Addresses, &workloadapi.NetworkAddress{Network: c.cfg.Network, Address: ip.AsSlice()})
		aliases = append(aliases, c.cfg.Network+"/"+ip.String())
	}
	set := &settings.ServiceSettings{ExportTo: c.reg.ExportTo(s)}
	for i, p := range s.Spec.Ports {
		if p.Protocol != "" && p.Protocol != corev1.ProtocolTCP {
			continue
		}
		out.Ports = append(out.Ports, &workloadapi.Port{ServicePort: uint32(p.Port), TargetPort: uint32(numericTarget(p))})
		protocol, known := appProtocol(p)
		if protocol != "" {
			if set.AppProtocols == nil {
				set.AppProtocols = map[uint32]string{}
			}
			set.AppProtocols[uint32(p.Port)] = protocol
		}
		if !known {
			add(validate.Warning, fmt.Sprintf("spec.ports[%d].name", i),
				fmt.Sprintf("%q names no protocol: the port counts as undeclared", p.Name))
		}
	}
	if s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		timeout := defaultAffinity
		if cfg := s.Spec.SessionAffinityConfig; cfg != nil && cfg.ClientIP != nil && cfg.ClientIP.TimeoutSeconds != nil {
			timeout = time.Duration(*cfg.ClientIP.TimeoutSeconds) * time.Second
		}
		set.ClientIpAffinity = durationpb.New(timeout)
	}
	var outside []Resource
	if target != "" {
		set.Created = born(s.CreationTimestamp)
		set.Resolution, set.External = settings.ServiceSettings_RESOLUTION_DNS, c.reg.ServiceAt(target) == nil
		outside = append(outside, c.named(s, out, target))
	}
	if !proto.Equal(set, &settings.ServiceSettings{}) {
		out.Extensions = append(out.Extensions, extension(api.ServiceSettingsExtension, set))
	}
	return append(outside, Resource{Type: api.AddressType, Name: c.serviceKey(s), Aliases: aliases,
		Message: &workloadapi.Address{Type: &workloadapi.Address_Service{Service: out}}}), found
}

// numericTarget is 0 for a named target port: each workload says what it is there.
func numericTarget(p corev1.ServicePort) int32 {
	switch {
	case p.TargetPort.StrVal != "":
		return 0
	case p.TargetPort.IntVal == 0:
		return p.Port
	}
	return p.TargetPort.IntVal
}

func clusterIPs(s *corev1.Service) []netip.Addr { return model.ClusterIPs(s) }

func families(f []corev1.IPFamily) workloadapi.IPFamilies {
	switch v4, v6 := slices.Contains(f, corev1.IPv4Protocol), slices.Contains(f, corev1.IPv6Protocol); {
	case v4 && v6:
		return workloadapi.IPFamilies_DUAL
	case v4:
		return workloadapi.IPFamilies_IPV4_ONLY
	case v6:
		return workloadapi.IPFamilies_IPV6_ONLY
	}
	return workloadapi.IPFamilies_AUTOMATIC
}

// kubeBalancing translates what kube-proxy would do; nil when nothing is asked for.
func kubeBalancing(s *model.Service) *workloadapi.LoadBalancing {
	lb := &workloadapi.LoadBalancing{}
	if d := s.Spec.TrafficDistribution; d != nil {
		if near := distribution(*d); near != nil {
			lb = near
		}
	}
	if p := s.Spec.InternalTrafficPolicy; p != nil && *p == corev1.ServiceInternalTrafficPolicyLocal {
		lb.Mode = workloadapi.LoadBalancing_STRICT
		lb.RoutingPreference = []workloadapi.LoadBalancing_Scope{workloadapi.LoadBalancing_NODE}
	}
	if s.Spec.PublishNotReadyAddresses {
		lb.HealthPolicy = workloadapi.LoadBalancing_ALLOW_ALL
	}
	if proto.Equal(lb, &workloadapi.LoadBalancing{}) {
		return nil
	}
	return lb
}

// distribution is nil for a value that means nothing to us.
func distribution(value string) *workloadapi.LoadBalancing {
	near := []workloadapi.LoadBalancing_Scope{workloadapi.LoadBalancing_NETWORK, workloadapi.LoadBalancing_REGION,
		workloadapi.LoadBalancing_ZONE}
	switch value {
	case "PreferClose", "PreferSameZone":
	case "PreferSameNode":
		near = append(near, workloadapi.LoadBalancing_NODE)
	default:
		return nil
	}
	return &workloadapi.LoadBalancing{Mode: workloadapi.LoadBalancing_FAILOVER, RoutingPreference: near}
}

// protocols are the names that a port may begin with (SR-12) and what they mean.
var protocols = map[string]string{
	"http": "http", "http2": "http2", "h2c": "http2", "grpc": "grpc", "grpc-web": "grpc-web", "https": "https", "tls": "tls",
	"tcp": "tcp", "mongo": "mongo", "mysql": "mysql", "redis": "redis", "thrift": "thrift", "udp": "udp",
}

// appProtocols are the values of appProtocol that Kubernetes defines.
var appProtocols = map[string]string{"kubernetes.io/h2c": "http2", "kubernetes.io/ws": "http", "kubernetes.io/wss": "https"}

// appProtocol is what the port declares, "" for nothing; known is false for a name that means nothing to us.
func appProtocol(p corev1.ServicePort) (protocol string, known bool) {
	if p.AppProtocol != nil {
		text := strings.ToLower(*p.AppProtocol)
		if v, ok := appProtocols[text]; ok {
			return v, true
		}
		if v, ok := protocols[text]; ok {
			return v, true
		}
	}
	return namedProtocol(p.Name)
}

// namedProtocol is what the name of a port declares: it is a protocol, or begins with one and a dash.
func namedProtocol(name string) (protocol string, known bool) {
	name = strings.ToLower(name)
	if name == "grpc-web" || strings.HasPrefix(name, "grpc-web-") {
		return "grpc-web", true
	}
	first, _, _ := strings.Cut(name, "-")
	v, ok := protocols[first]
	return v, ok || name == ""
}

func extension(name string, m proto.Message) *workloadapi.Extension {
	return &workloadapi.Extension{Name: name, Config: pack(m)}
}
