package cluster

import (
	"fmt"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Kind is where the endpoints of a cluster come from.
type Kind uint8

// The kinds of clusters. DNS names of the last two but one are resolved by the caller.
const (
	Static Kind = iota
	EDS
	StrictDNS           // every address of a name is an endpoint
	LogicalDNS          // one endpoint, whose address is resolved at each connection
	OriginalDestination // the address that was dialled is the endpoint
)

// Policy is how an endpoint is chosen among the equally good ones.
type Policy uint8

// The load balancing policies.
const (
	RoundRobin   Policy = iota // in turn, in proportion to weights
	LeastRequest               // of some by chance the one with the fewest active requests
	Random                     // by chance, weights do not count (as in Envoy)
	RingHash
	Maglev
	clusterProvided // OriginalDestination
)

// Spec is the compiled configuration of a cluster: immutable, shared, safe for concurrent use.
type Spec struct {
	Name           string
	Kind           Kind
	Policy         Policy
	ConnectTimeout time.Duration // default 5 s
	HTTP           HTTP
	TLS            *TLS   // nil: no TLS is added
	ProxyProtocol  uint32 // version of the PROXY protocol that connections begin with; 0: none
	TCPKeepalive   *Keepalive
	Names          []Name // StrictDNS and LogicalDNS: what the caller resolves

	balance  balanceSpec
	outlier  *outlierSpec // nil: off
	breakers [numPriorities]breakerSpec
	cleanup  time.Duration // OriginalDestination: a host unused for so long is forgotten, after at most as much again
}

// Name is a DNS name that a cluster of kind StrictDNS or LogicalDNS is made of.
type Name struct {
	Host           string
	Port           uint16
	Weight         uint32
	Locality       Locality
	LocalityWeight uint32
	Priority       uint32
}

// Keepalive is for probes of idle TCP connections; zero leaves the system's default.
type Keepalive struct {
	Probes         uint32
	Idle, Interval time.Duration
}

// Defaults of Envoy.
const (
	defaultConnectTimeout  = 5 * time.Second
	defaultCleanupInterval = 5 * time.Second
)

// Compile reads a cluster. An error names the cluster and the field that is wrong, or that is not supported: nothing is skipped
// that would change where a request goes or what protects it. Fields that only concern how Envoy gets its endpoints or names its
// statistics (eds_cluster_config, dns_*, alt_stat_name, metadata …) are without meaning here.
func Compile(c *clusterv3.Cluster) (*Spec, error) {
	s := &Spec{Name: c.GetName()}
	if s.Name == "" {
		return nil, fmt.Errorf("compile cluster: name: is empty")
	}
	p := &parser{}
	p.refuseUnsupported(c)
	s.ConnectTimeout = p.duration("connect_timeout", c.GetConnectTimeout(), defaultConnectTimeout)
	if s.ConnectTimeout == 0 {
		p.fail("connect_timeout", "must be more than 0")
	}
	s.Kind = p.kind(c)
	s.Policy = p.policy(c, s.Kind)
	s.balance = p.balance(c, s.Policy)
	s.outlier = p.outlier(c.GetOutlierDetection())
	p.breakers(c.GetCircuitBreakers(), &s.breakers)
	s.HTTP = p.http(c)
	s.TLS, s.ProxyProtocol = p.socket(c.GetTransportSocket())
	s.TCPKeepalive = p.keepalive(c.GetUpstreamConnectionOptions())
	s.cleanup = p.duration("cleanup_interval", c.GetCleanupInterval(), defaultCleanupInterval)
	if s.cleanup == 0 {
		p.fail("cleanup_interval", "must be more than 0")
	}
	if s.Kind == StrictDNS || s.Kind == LogicalDNS {
		s.Names = p.names(c.GetLoadAssignment(), s.Kind)
	}
	if p.err != nil {
		return nil, fmt.Errorf("compile cluster %q: %w", s.Name, p.err)
	}
	return s, nil
}

// parser remembers the first error.
type parser struct{ err error }

func (p *parser) fail(field, format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf("%s: %s", field, fmt.Sprintf(format, args...))
	}
}

// duration checks that d is valid and not negative; nil is def.
func (p *parser) duration(field string, d *durationpb.Duration, def time.Duration) time.Duration {
	switch {
	case d == nil:
		return def
	case !d.IsValid() || d.AsDuration() < 0:
		p.fail(field, "is not a duration of 0 or more")
	}
	return min(d.AsDuration(), longestDuration)
}

// longestDuration is as good as for ever, and small enough that sums and small multiples of it do not overflow.
const longestDuration = 10 * 365 * 24 * time.Hour

// unsupported are the fields of a cluster that have a meaning for requests and are not done here.
var unsupported = map[protoreflect.Name]bool{
	"transport_socket_matches": true, "transport_socket_matcher": true, "health_checks": true, "lb_subset_config": true,
	"upstream_bind_config": true, "close_connections_on_host_health_failure": true, "filters": true,
	"load_balancing_policy": true, "upstream_config": true, "preconnect_policy": true,
	"connection_pool_per_downstream_connection": true, "per_connection_buffer_high_watermark_timeout": true,
	"queuing_policies": true,
}

func (p *parser) refuseUnsupported(c *clusterv3.Cluster) {
	p.supported("", c, unsupported)
	if cc := c.GetCommonLbConfig(); cc != nil {
		p.supported("common_lb_config.", cc, map[protoreflect.Name]bool{"override_host_status": true})
	}
}

// supported fails on fields of m that are set and unsupported, and on those that this build does not know.
func (p *parser) supported(prefix string, m protoreflect.ProtoMessage, not map[protoreflect.Name]bool) {
	r := m.ProtoReflect()
	if len(r.GetUnknown()) > 0 {
		p.fail(prefix+"(unknown)", "has a field that this version does not know")
	}
	fields := r.Descriptor().Fields()
	for i := range fields.Len() { // in their order, so that the error is always the same
		if f := fields.Get(i); not[f.Name()] && r.Has(f) {
			p.fail(prefix+string(f.Name()), "is not supported")
		}
	}
}

func (p *parser) kind(c *clusterv3.Cluster) Kind {
	if c.GetClusterType() != nil {
		p.fail("cluster_type", "is not supported: %q", c.GetClusterType().GetName())
		return Static
	}
	switch c.GetType() {
	case clusterv3.Cluster_STATIC:
		return Static
	case clusterv3.Cluster_EDS:
		return EDS
	case clusterv3.Cluster_STRICT_DNS:
		return StrictDNS
	case clusterv3.Cluster_LOGICAL_DNS:
		return LogicalDNS
	case clusterv3.Cluster_ORIGINAL_DST:
		return OriginalDestination
	}
	p.fail("type", "is not known: %v", c.GetType())
	return Static
}

func (p *parser) policy(c *clusterv3.Cluster, k Kind) Policy {
	policy, ok := map[clusterv3.Cluster_LbPolicy]Policy{
		clusterv3.Cluster_ROUND_ROBIN: RoundRobin, clusterv3.Cluster_LEAST_REQUEST: LeastRequest, clusterv3.Cluster_RANDOM: Random,
		clusterv3.Cluster_RING_HASH: RingHash, clusterv3.Cluster_MAGLEV: Maglev, clusterv3.Cluster_CLUSTER_PROVIDED: clusterProvided,
	}[c.GetLbPolicy()]
	switch {
	case !ok:
		p.fail("lb_policy", "is not supported: %v", c.GetLbPolicy())
	case (policy == clusterProvided) != (k == OriginalDestination):
		p.fail("lb_policy", "CLUSTER_PROVIDED and type ORIGINAL_DST are only for each other")
	}
	return policy
}

func (p *parser) keepalive(o *clusterv3.UpstreamConnectionOptions) *Keepalive {
	k := o.GetTcpKeepalive()
	if k == nil {
		return nil
	}
	return &Keepalive{
		Probes: k.GetKeepaliveProbes().GetValue(), Idle: time.Duration(k.GetKeepaliveTime().GetValue()) * time.Second,
		Interval: time.Duration(k.GetKeepaliveInterval().GetValue()) * time.Second,
	}
}

// maxPort is the largest port number.
const maxPort = 65535

func port(a *corev3.SocketAddress) (uint16, bool) {
	n := a.GetPortValue()
	return uint16(n), n > 0 && n <= maxPort && a.GetNamedPort() == ""
}
