package sim

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/model"
)

// This file reads VirtualServices and DestinationRules as their documents do. It shares no code with what the mesh compiles.

const clusterDomain = ".svc.cluster.local"

// versions are the values of the pods' label of that name, and the names of the subsets.
var podVersions = []string{"v1", "v2"}

// called is a service, by namespace and application.
type called struct{ ns, app string }

// callee finds the service of a host in full.
func callee(host string) (called, bool) {
	short, ok := strings.CutSuffix(host, clusterDomain)
	app, ns, dotted := strings.Cut(short, ".")
	c := called{ns, app}
	return c, ok && dotted && slices.Contains(namespaces, ns) && slices.Contains(apps, app)
}

func (c called) host() string { return c.app + "." + c.ns + clusterDomain }

// destination is where a rule leads.
type destination struct {
	called
	subset string
	weight int
}

// again says when a request is tried again; the zero value is the default of the documents.
type again struct {
	said     bool
	attempts int
	on       string // of the values that the script writes
}

// repeats is how often the mesh may send a request that is the same when it is done twice, for each try: a connection may end just
// when it is used.
const repeats = 4

// allows reports whether a request that came to an application may be sent once more, by how that one ended.
func (a again) allows(method string, n int, last *serving) bool {
	attempts, on := 2, ""
	if a.said {
		attempts, on = a.attempts, a.on
	}
	switch {
	case method == "GET": // what is the same when it is done twice is repeated on a connection of its own in each try
		return n < (attempts+1)*repeats
	case n > attempts:
		return false
	case on == "503": // which the mesh answers for an application that answers nothing
		return !last.answered || last.status == 503 || !last.pod.died.IsZero()
	}
	return on == "5xx" || on == "reset" // the answer may have been lost on its way
}

// routing is a VirtualService.
type routing struct {
	created time.Time
	hosts   []string // in full
	rules   []routeRule
}

// routeRule is one of its rules.
type routeRule struct {
	prefix, user, app string // of the path, of the header x-user, of the caller's pod; "" for any
	port              uint16 // 0 for any
	to                []destination
	mirror            *destination
	abort             int // percent of the requests that get 418
	delay, timeout    time.Duration
	again             again
}

// balancing is a DestinationRule of a service.
type balancing struct {
	subsets []string
	policy  *networking.TrafficPolicy
}

// question is what the model is asked.
type question struct {
	from      *pod
	authority string
	path      string
	user      string
	port      uint16
	dialled   called // zero: no service
}

// verdict is what becomes of a request: where it goes, else the status of the mesh's answer, else through to what was dialled.
type verdict struct {
	rule    routeRule
	through bool
	status  int
}

// decide reads the VirtualServices.
func (f *facts) decide(q question) verdict {
	own := func(c called) verdict { return verdict{rule: routeRule{to: []destination{{called: c, weight: 1}}}} }
	name, _, _ := strings.Cut(q.authority, ":")
	target := called{}
	if !strings.Contains(name, ".") {
		name += "." + q.from.ns + clusterDomain
	}
	c, known := callee(name)
	switch {
	case q.dialled != (called{}) && q.port == sniffedPort: // of a port that declares nothing the address counts
		target = q.dialled
	case known:
		target = c
	}
	if target == (called{}) {
		for _, v := range f.virtual(name) {
			if out, said := v.decide(q); said {
				return out
			}
		}
		if q.dialled == (called{}) {
			return verdict{through: true}
		}
		target = q.dialled
	}
	for i, v := range f.virtual(target.host()) {
		if i > 0 && !slices.Contains(v.hosts, target.host()) {
			break // covers it less well than another
		}
		if out, said := v.decide(q); said {
			return out
		}
	}
	return own(target)
}

// virtual are the VirtualServices that have a host for the name, those that name it first, then the older.
func (f *facts) virtual(name string) []routing {
	exactly := func(v routing) bool { return slices.Contains(v.hosts, name) }
	var out []routing
	for _, n := range slices.SortedFunc(maps.Keys(f.routes), func(a, b model.Name) int { return strings.Compare(a.String(), b.String()) }) {
		v := f.routes[n]
		if exactly(v) || slices.ContainsFunc(v.hosts, func(h string) bool { return strings.HasPrefix(h, "*") && strings.HasSuffix(name, h[1:]) }) {
			out = append(out, v)
		}
	}
	slices.SortStableFunc(out, func(a, b routing) int {
		switch x, y := exactly(a), exactly(b); {
		case x && !y:
			return -1
		case y && !x:
			return 1
		}
		return cmp.Compare(a.created.Unix(), b.created.Unix())
	})
	return out
}

// decide returns what the first rule says that matches; said is false when none is for the caller.
func (v routing) decide(q question) (out verdict, said bool) {
	for _, r := range v.rules {
		if r.app != "" && r.app != q.from.app || r.port != 0 && r.port != q.port {
			continue
		}
		said = true
		if strings.HasPrefix(q.path, r.prefix) && (r.user == "" || r.user == q.user) {
			return verdict{rule: r}, true
		}
	}
	return verdict{status: 404}, said
}

// holds reports whether a pod is of the destination. versions tells which subsets there are.
func (d destination) holds(p *pod, subsets map[called]balancing) bool {
	if p.ns != d.ns || p.app != d.app {
		return false
	}
	return d.subset == "" || d.subset == p.version && slices.Contains(subsets[d.called].subsets, d.subset)
}

func (v routing) object(n model.Name) *networkingv1.VirtualService {
	out := &networkingv1.VirtualService{ObjectMeta: metav1.ObjectMeta{Namespace: n.Namespace, Name: n.Name, CreationTimestamp: metav1.NewTime(v.created)}}
	out.Spec.Hosts = v.hosts
	to := func(d destination) *networking.Destination {
		return &networking.Destination{Host: d.host(), Subset: d.subset}
	}
	for _, r := range v.rules {
		h := &networking.HTTPRoute{}
		m := &networking.HTTPMatchRequest{Port: uint32(r.port)}
		if r.prefix != "" {
			m.Uri = &networking.StringMatch{MatchType: &networking.StringMatch_Prefix{Prefix: r.prefix}}
		}
		if r.user != "" {
			m.Headers = map[string]*networking.StringMatch{userHeader: {MatchType: &networking.StringMatch_Exact{Exact: r.user}}}
		}
		if r.app != "" {
			m.SourceLabels = map[string]string{"app": r.app}
		}
		if r.prefix+r.user+r.app != "" || r.port != 0 {
			h.Match = []*networking.HTTPMatchRequest{m}
		}
		for _, d := range r.to {
			w := int32(d.weight)
			if len(r.to) == 1 {
				w = 0
			}
			h.Route = append(h.Route, &networking.HTTPRouteDestination{Destination: to(d), Weight: w})
		}
		if r.mirror != nil {
			h.Mirror = to(*r.mirror)
		}
		h.Fault = r.fault()
		if r.timeout > 0 {
			h.Timeout = durationpb.New(r.timeout)
		}
		if r.again.said {
			h.Retries = &networking.HTTPRetry{Attempts: int32(r.again.attempts), RetryOn: r.again.on}
		}
		out.Spec.Http = append(out.Spec.Http, h)
	}
	return out
}

func (r routeRule) fault() *networking.HTTPFaultInjection {
	out := &networking.HTTPFaultInjection{}
	if r.abort > 0 {
		out.Abort = &networking.HTTPFaultInjection_Abort{Percentage: &networking.Percent{Value: float64(r.abort)},
			ErrorType: &networking.HTTPFaultInjection_Abort_HttpStatus{HttpStatus: abortStatus}}
	}
	if r.delay > 0 {
		out.Delay = &networking.HTTPFaultInjection_Delay{Percentage: &networking.Percent{Value: 50},
			HttpDelayType: &networking.HTTPFaultInjection_Delay_FixedDelay{FixedDelay: durationpb.New(r.delay)}}
	}
	if out.Abort == nil && out.Delay == nil {
		return nil
	}
	return out
}

func (b balancing) object(n model.Name, c called) *networkingv1.DestinationRule {
	out := &networkingv1.DestinationRule{ObjectMeta: metav1.ObjectMeta{Namespace: n.Namespace, Name: n.Name}}
	out.Spec.Host, out.Spec.TrafficPolicy = c.host(), b.policy
	for _, s := range b.subsets {
		out.Spec.Subsets = append(out.Spec.Subsets, &networking.Subset{Name: s, Labels: map[string]string{"version": s}})
	}
	return out
}

// randomPolicy draws how a service is balanced, ejected from and limited.
func (w *world) randomPolicy() *networking.TrafficPolicy {
	out := &networking.TrafficPolicy{}
	simple := []networking.LoadBalancerSettings_SimpleLB{networking.LoadBalancerSettings_ROUND_ROBIN, networking.LoadBalancerSettings_RANDOM,
		networking.LoadBalancerSettings_LEAST_REQUEST}
	switch w.rng.IntN(5) {
	case 0:
		out.LoadBalancer = &networking.LoadBalancerSettings{LbPolicy: &networking.LoadBalancerSettings_ConsistentHash{
			ConsistentHash: &networking.LoadBalancerSettings_ConsistentHashLB{HashKey: &networking.LoadBalancerSettings_ConsistentHashLB_HttpHeaderName{HttpHeaderName: userHeader}}}}
	case 1, 2, 3:
		out.LoadBalancer = &networking.LoadBalancerSettings{LbPolicy: &networking.LoadBalancerSettings_Simple{Simple: pick(w, simple)}}
	}
	if w.rng.IntN(2) == 0 {
		out.OutlierDetection = &networking.OutlierDetection{Consecutive_5XxErrors: wrapperspb.UInt32(uint32(1 + w.rng.IntN(4))),
			Interval: durationpb.New(time.Second), BaseEjectionTime: durationpb.New(time.Second), MaxEjectionPercent: int32(50 + 50*w.rng.IntN(2))}
	}
	if w.rng.IntN(3) == 0 {
		out.ConnectionPool = &networking.ConnectionPoolSettings{
			Tcp:  &networking.ConnectionPoolSettings_TCPSettings{MaxConnections: int32(1 + w.rng.IntN(4))},
			Http: &networking.ConnectionPoolSettings_HTTPSettings{Http1MaxPendingRequests: int32(1 + w.rng.IntN(8)), MaxRequestsPerConnection: int32(w.rng.IntN(3))},
		}
	}
	return out
}

func newFacts() *facts {
	return &facts{authz: map[model.Name]authz{}, peers: map[model.Name]peers{}, routes: map[model.Name]routing{}, rules: map[called]balancing{}}
}
