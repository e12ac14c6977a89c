package client

import (
	"errors"
	"fmt"
	"math"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/undermesh/undermesh/controller/api/settings"
)

// CallRule is one DestinationRule of a snapshot. It never changes.
type CallRule struct {
	*settings.CallRule
	Policies *CallPolicies // nil: it has no trafficPolicy
	Subsets  []Subset
}

// Subset is a part of a host's workloads.
type Subset struct {
	Name     string
	Labels   map[string]string // none: every workload
	Policies *CallPolicies     // nil: it has no trafficPolicy
}

// CallPolicies is one trafficPolicy.
type CallPolicies struct {
	Host  *CallPolicy // never nil
	Ports map[uint32]*CallPolicy
}

// CallPolicy is a trafficPolicy without ports. Groups that it says nothing of are nil.
type CallPolicy struct {
	Balancing     *Balancing
	Pool          *ConnectionPool
	Outlier       *clusterv3.Cluster // with outlier_detection and the panic threshold
	Tunnel        *settings.Tunnel
	ProxyProtocol uint32 // version; 0: none
	RetryBudget   *clusterv3.CircuitBreakers_Thresholds_RetryBudget
}

// Said reports whether it says anything of how endpoints are chosen and called.
func (p *CallPolicy) Said() bool { return p.Balancing != nil || p.Pool != nil || p.Outlier != nil }

// Balancing is settings.Balancing, decoded.
type Balancing struct {
	Cluster  *clusterv3.Cluster              // with lb_policy and what belongs to it; nil: the default one
	Hash     *routev3.RouteAction_HashPolicy // nil: none
	Locality *settings.LocalityPolicy        // nil: said nothing of
}

// GetLocality returns nil for a nil Balancing.
func (b *Balancing) GetLocality() *settings.LocalityPolicy {
	if b == nil {
		return nil
	}
	return b.Locality
}

// ConnectionPool is settings.ConnectionPool, decoded.
type ConnectionPool struct {
	Cluster           *clusterv3.Cluster // never nil; with connect_timeout, circuit_breakers, upstream_connection_options
	HTTP              *corev3.HttpProtocolOptions
	HTTP2             *corev3.Http2ProtocolOptions
	H2Upgrade         settings.ConnectionPool_H2Upgrade
	UseClientProtocol bool
	Idle              time.Duration // after which a connection that is not HTTP and carries nothing ends; default DefaultIdle, 0: never
}

// DefaultIdle is after which a connection that is not HTTP and carries nothing ends where no rule says otherwise, as in Envoy.
const DefaultIdle = time.Hour

// CallDefaults is what the mesh says of calls.
type CallDefaults struct {
	*settings.CallDefaults
	Retry  *routev3.RetryPolicy // nil: nothing is tried again
	Policy *CallPolicy          // never nil
}

// CallDefaults returns what counts where no rule says otherwise; never nil. It is the same value while nothing of it changes.
func (s *Snapshot) CallDefaults() *CallDefaults { return s.defaults }

// setDefaults keeps the value when it is equal: what was composed of it stays good.
func (b *builder) setDefaults(d *CallDefaults) {
	if !proto.Equal(b.s.defaults.CallDefaults, d.CallDefaults) {
		b.s.defaults = d
	}
}

func noDefaults() *CallDefaults {
	return &CallDefaults{CallDefaults: &settings.CallDefaults{}, Policy: &CallPolicy{}}
}

func parseDefaults(m *settings.MeshSettings) (*CallDefaults, error) {
	out := noDefaults()
	in := m.GetCallDefaults()
	if in == nil {
		return out, nil
	}
	out.CallDefaults = in
	if in.GetRetryPolicy() != nil {
		out.Retry = &routev3.RetryPolicy{}
		if err := in.GetRetryPolicy().UnmarshalTo(out.Retry); err != nil {
			return nil, fmt.Errorf("retry_policy: %w", err)
		}
	}
	policy, err := parseCallPolicy(in.GetPolicy())
	if err != nil {
		return nil, fmt.Errorf("policy.%w", err)
	}
	out.Policy = policy
	return out, nil
}

func parseRule(resource string, m *settings.CallRule) (parsed, error) {
	own := m.GetNamespace() + "/" + m.GetName()
	switch {
	case m.GetNamespace() == "" || m.GetName() == "":
		return parsed{}, fmt.Errorf("parse call rule %q: namespace or name: empty", cmpOr(resource, own))
	case resource != "" && resource != own:
		return parsed{}, fmt.Errorf("parse call rule %q: name: differs from the resource name %q", own, resource)
	case m.GetHost() == "":
		return parsed{}, fmt.Errorf("parse call rule %q: host: empty", own)
	}
	out := &CallRule{CallRule: m}
	var err error
	if out.Policies, err = parsePolicies(m.GetPolicies()); err != nil {
		return parsed{}, fmt.Errorf("parse call rule %q: policies.%w", own, err)
	}
	for i, s := range m.GetSubsets() {
		if s.GetName() == "" {
			return parsed{}, fmt.Errorf("parse call rule %q: subsets[%d].name: empty", own, i)
		}
		subset := Subset{Name: s.GetName(), Labels: s.GetLabels()}
		if subset.Policies, err = parsePolicies(s.GetPolicies()); err != nil {
			return parsed{}, fmt.Errorf("parse call rule %q: subsets[%d].policies.%w", own, i, err)
		}
		out.Subsets = append(out.Subsets, subset)
	}
	return parsed{rule: out, name: own}, nil
}

func parsePolicies(in *settings.CallPolicies) (*CallPolicies, error) {
	if in == nil {
		return nil, nil
	}
	host, err := parseCallPolicy(in.GetHost())
	if err != nil {
		return nil, fmt.Errorf("host.%w", err)
	}
	out := &CallPolicies{Host: host}
	for port, p := range in.GetPorts() {
		if port == 0 || port > math.MaxUint16 {
			return nil, fmt.Errorf("ports: %d is not a port", port)
		}
		policy, err := parseCallPolicy(p)
		if err != nil {
			return nil, fmt.Errorf("ports[%d].%w", port, err)
		}
		if out.Ports == nil {
			out.Ports = map[uint32]*CallPolicy{}
		}
		out.Ports[port] = policy
	}
	return out, nil
}

// parseCallPolicy never returns nil without an error.
func parseCallPolicy(in *settings.CallPolicy) (*CallPolicy, error) {
	out := &CallPolicy{Tunnel: in.GetTunnel(), ProxyProtocol: in.GetProxyProtocol()}
	if b := in.GetBalancing(); b != nil {
		out.Balancing = &Balancing{Locality: b.GetLocality()}
		if err := unpack(b.GetCluster(), "balancing.cluster", &out.Balancing.Cluster); err != nil {
			return nil, err
		}
		if err := unpack(b.GetHashPolicy(), "balancing.hash_policy", &out.Balancing.Hash); err != nil {
			return nil, err
		}
	}
	if c := in.GetConnectionPool(); c != nil {
		out.Pool = &ConnectionPool{H2Upgrade: c.GetH2Upgrade(), UseClientProtocol: c.GetUseClientProtocol(), Idle: DefaultIdle}
		if t := c.GetTcpIdleTimeout(); t != nil {
			if out.Pool.Idle = t.AsDuration(); !t.IsValid() || out.Pool.Idle < 0 {
				return nil, errors.New("connection_pool.tcp_idle_timeout: is not a duration of 0 or more")
			}
		}
		if err := unpack(c.GetCluster(), "connection_pool.cluster", &out.Pool.Cluster); err != nil {
			return nil, err
		}
		if out.Pool.Cluster == nil {
			out.Pool.Cluster = &clusterv3.Cluster{}
		}
		if err := unpack(c.GetHttp(), "connection_pool.http", &out.Pool.HTTP); err != nil {
			return nil, err
		}
		if err := unpack(c.GetHttp2(), "connection_pool.http2", &out.Pool.HTTP2); err != nil {
			return nil, err
		}
	}
	if err := unpack(in.GetOutlierDetection(), "outlier_detection", &out.Outlier); err != nil {
		return nil, err
	}
	if err := unpack(in.GetRetryBudget(), "retry_budget", &out.RetryBudget); err != nil {
		return nil, err
	}
	return out, nil
}

// unpack decodes a message that may be absent; *into stays nil then.
func unpack[T any, M interface {
	*T
	proto.Message
}](in *anypb.Any, field string, into *M) error {
	if in == nil {
		return nil
	}
	m := M(new(T))
	if err := in.UnmarshalTo(m); err != nil {
		return fmt.Errorf("%s: %w", field, err)
	}
	*into = m
	return nil
}
