package compile_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/policy"
	"github.com/undermesh/undermesh/ztunnel/http/head"
	"github.com/undermesh/undermesh/ztunnel/http/route"
)

// rulesWorld is a random mesh with VirtualServices and DestinationRules as users write them.
type rulesWorld struct {
	pods      []*corev1.Pod
	services  []*corev1.Service
	virtuals  []*networkingv1.VirtualService
	delegates []*networkingv1.VirtualService // without hosts
	rules     []*networkingv1.DestinationRule
}

var ruleNamespaces = []string{"a", "b", "c"}

func (g generator) rulesWorld() *rulesWorld {
	w := &rulesWorld{}
	for i := range 4 {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: g.pick(ruleNamespaces...), Name: fmt.Sprint("pod", i), Labels: g.labels()}}
		p.Status.PodIP = fmt.Sprint("10.0.0.", i+1)
		w.pods = append(w.pods, p)
	}
	for i, n := range []string{"a/x", "a/y", "b/x", "b/z", "a/w"} {
		namespace, name, _ := strings.Cut(n, "/")
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
		s.Spec = corev1.ServiceSpec{ClusterIP: fmt.Sprint("10.96.0.", i+1), Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}
		switch name {
		case "z":
		case "w":
			s.Spec.Ports[0].Port = 81
		default:
			s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "http-more", Port: 81})
		}
		w.services = append(w.services, s)
	}
	for i := range 1 + g.IntN(2) {
		d := &networkingv1.VirtualService{ObjectMeta: g.ruleMeta(fmt.Sprint("delegate", i), i)}
		for range 1 + g.IntN(2) {
			h := &networking.HTTPRoute{Route: g.destinations()}
			if g.IntN(2) == 0 {
				m := &networking.HTTPMatchRequest{Uri: g.uri("/a/b")}
				if g.IntN(2) == 0 {
					m.Headers = map[string]*networking.StringMatch{"end-user": exact("jason")}
				}
				h.Match = append(h.Match, m)
			}
			d.Spec.Http = append(d.Spec.Http, h)
		}
		w.delegates = append(w.delegates, d)
	}
	for i := range g.IntN(5) {
		w.virtuals = append(w.virtuals, g.ruleVirtual(w, i))
	}
	taken := map[string]bool{}
	for i := range g.IntN(6) {
		r := g.destinationRule(i)
		if key := r.Namespace + "/" + naiveFull(r.Spec.Host, r.Namespace); !taken[key] { // which of two for one host counts is another test's
			taken[key], w.rules = true, append(w.rules, r)
		}
	}
	return w
}

// ruleMeta makes the i-th of a kind; no two are of the same age.
func (g generator) ruleMeta(name string, i int) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: g.pick(ruleNamespaces...), Name: name, CreationTimestamp: metav1.Unix(int64(g.IntN(100)*10+i), 0)}
}

func exact(s string) *networking.StringMatch {
	return &networking.StringMatch{MatchType: &networking.StringMatch_Exact{Exact: s}}
}

// uri matches a path, or what begins with it.
func (g generator) uri(path string) *networking.StringMatch {
	if g.IntN(2) == 0 {
		return exact(path)
	}
	return &networking.StringMatch{MatchType: &networking.StringMatch_Prefix{Prefix: path}}
}

func (g generator) ruleMatch(mesh bool) *networking.HTTPMatchRequest {
	m := &networking.HTTPMatchRequest{}
	switch g.IntN(6) {
	case 0, 1:
		m.Uri = g.uri(g.pick("/a", "/a/b", "/c"))
		m.IgnoreUriCase = g.IntN(3) == 0
	case 2:
		m.Uri = &networking.StringMatch{MatchType: &networking.StringMatch_Regex{Regex: g.pick("/a.*", "/[a-c]", "/")}}
	}
	if g.IntN(4) == 0 {
		m.Method = exact(g.pick("GET", "POST"))
	}
	if g.IntN(4) == 0 {
		m.Port = uint32(80 + g.IntN(2))
	}
	if g.IntN(4) == 0 {
		m.SourceLabels = map[string]string{g.pick("app", "version"): g.pick("a", "b", "c")}
	}
	if g.IntN(5) == 0 {
		m.SourceNamespace = g.pick(ruleNamespaces...)
	}
	if mesh && g.IntN(5) == 0 {
		m.Gateways = [][]string{{"mesh"}, {"gw"}, {"gw", "mesh"}}[g.IntN(3)]
	}
	if g.IntN(4) == 0 {
		m.Headers = map[string]*networking.StringMatch{"end-user": g.header()}
	} else if g.IntN(4) == 0 {
		m.WithoutHeaders = map[string]*networking.StringMatch{"end-user": g.header()}
	}
	return m
}

func (g generator) header() *networking.StringMatch {
	switch g.IntN(3) {
	case 0:
		return exact("jason")
	case 1:
		return &networking.StringMatch{MatchType: &networking.StringMatch_Prefix{Prefix: "ja"}}
	}
	return &networking.StringMatch{MatchType: &networking.StringMatch_Regex{Regex: "j.*|tom"}}
}

func (g generator) destinations() []*networking.HTTPRouteDestination {
	var out []*networking.HTTPRouteDestination
	n := 1 + g.IntN(3)
	for i := range n {
		d := &networking.HTTPRouteDestination{Destination: &networking.Destination{
			Host: g.pick("x", "y", "z", "w", "x.a"+naiveDomain, "x.b"+naiveDomain, "z.b"+naiveDomain, "nobody"), Subset: g.pick("", "v1", "v2")}}
		if g.IntN(3) == 0 {
			d.Destination.Port = &networking.PortSelector{Number: uint32(80 + g.IntN(2))}
		}
		if n > 1 {
			d.Weight = []int32{0, 1, 25, 75}[g.IntN(4)]
			if i == 0 {
				d.Weight = 10
			}
		}
		out = append(out, d)
	}
	return out
}

func (g generator) ruleVirtual(w *rulesWorld, i int) *networkingv1.VirtualService {
	v := &networkingv1.VirtualService{ObjectMeta: g.ruleMeta(fmt.Sprint("v", i), i)}
	v.Spec.Hosts = []string{g.pick("x", "y", "w.a"+naiveDomain, "x.a"+naiveDomain, "x.b"+naiveDomain, "*.b"+naiveDomain, "*"+naiveDomain, "ext.test", "*.test", "*.ext.test")}
	v.Spec.ExportTo = [][]string{nil, nil, {"*"}, {"."}, {"b"}, {".", "c"}}[g.IntN(6)]
	v.Spec.Gateways = [][]string{nil, nil, nil, {"mesh"}, {"gw"}, {"gw", "mesh"}}[g.IntN(6)]
	mesh := len(v.Spec.Gateways) == 0 || v.Spec.Gateways[len(v.Spec.Gateways)-1] == "mesh"
	for range 1 + g.IntN(4) {
		h := &networking.HTTPRoute{}
		if g.IntN(5) == 0 {
			d := w.delegates[g.IntN(len(w.delegates))]
			h.Delegate = &networking.Delegate{Name: d.Name, Namespace: d.Namespace}
			h.Match = []*networking.HTTPMatchRequest{{Uri: &networking.StringMatch{MatchType: &networking.StringMatch_Prefix{Prefix: "/a"}}}}
			if g.IntN(2) == 0 {
				h.Match[0].SourceLabels = map[string]string{"app": g.pick("a", "b", "c")}
			}
		} else {
			h.Route = g.destinations()
			for range g.IntN(3) {
				h.Match = append(h.Match, g.ruleMatch(mesh))
			}
		}
		v.Spec.Http = append(v.Spec.Http, h)
	}
	return v
}

func (g generator) destinationRule(i int) *networkingv1.DestinationRule {
	r := &networkingv1.DestinationRule{ObjectMeta: g.ruleMeta(fmt.Sprint("d", i), i)}
	if g.IntN(5) == 0 {
		r.Namespace = visibleRoot
	}
	r.Spec.Host = g.pick("x"+"."+g.pick("a", "b")+naiveDomain, "y.a"+naiveDomain, "z.b"+naiveDomain, "*.b"+naiveDomain, "*"+naiveDomain, "x")
	r.Spec.ExportTo = [][]string{nil, nil, {"*"}, {"."}, {"b"}}[g.IntN(5)]
	r.Spec.TrafficPolicy = g.balancing()
	for _, name := range []string{"v1", "v2"} {
		if g.IntN(3) > 0 {
			r.Spec.Subsets = append(r.Spec.Subsets, &networking.Subset{Name: name, Labels: g.labels(), TrafficPolicy: g.balancing()})
		}
	}
	return r
}

func (g generator) balancing() *networking.TrafficPolicy {
	simple := func() *networking.LoadBalancerSettings {
		return &networking.LoadBalancerSettings{LbPolicy: &networking.LoadBalancerSettings_Simple{Simple: []networking.LoadBalancerSettings_SimpleLB{
			networking.LoadBalancerSettings_RANDOM, networking.LoadBalancerSettings_ROUND_ROBIN, networking.LoadBalancerSettings_LEAST_REQUEST}[g.IntN(3)]}}
	}
	if g.IntN(3) == 0 {
		return nil
	}
	out := &networking.TrafficPolicy{}
	if g.IntN(2) == 0 {
		out.LoadBalancer = simple()
	}
	if g.IntN(2) == 0 {
		out.PortLevelSettings = []*networking.TrafficPolicy_PortTrafficPolicy{{Port: &networking.PortSelector{Number: 81}, LoadBalancer: simple()}}
	}
	return out
}

func (w *rulesWorld) events(g generator) []model.Event {
	out := (&visibleWorld{pods: w.pods, services: w.services}).events(g)
	for _, v := range append(w.virtuals, w.delegates...) {
		out = append(out, at(model.KindVirtualService, v))
	}
	for _, r := range w.rules {
		out = append(out, at(model.KindDestinationRule, r))
	}
	g.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

func (g generator) naiveRequest() naiveRequest {
	q := naiveRequest{port: uint32(80 + g.IntN(2)), path: g.pick("/", "/a", "/a/b", "/A/b", "/c", "/abc"), method: g.pick("GET", "POST"), header: map[string]string{},
		authority: g.pick("x", "y", "x.a"+naiveDomain, "x.b"+naiveDomain, "z.b"+naiveDomain, "w.a"+naiveDomain, "ext.test", "a.ext.test")}
	if g.IntN(2) == 0 {
		q.header["end-user"] = g.pick("jason", "tom", "jane")
	}
	return q
}

// TestRulesAgainstNaive: in random worlds with random VirtualServices and DestinationRules a request goes where the naive
// interpreter reads in the objects: the clusters and their weights, how they are balanced and which endpoints they have. The worlds
// are the same in each run; SEED=N is 400 others.
func TestRulesAgainstNaive(t *testing.T) {
	const worlds = 400
	first := uint64(1)
	if s := os.Getenv("SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		first = n
	}
	kinds := map[string]int{}
	for i := range worlds {
		seed := first + uint64(i)
		g := generator{rand.New(rand.NewPCG(seed, 3))}
		c := compile.New(compile.Config{})
		before := g.rulesWorld()
		c.Apply(before.events(g))
		w := g.rulesWorld()
		c.Apply(append(removals(before.events(g)), w.events(g)...))
		snapshot := servedTo(t, c)
		for range 60 {
			p, q := w.pods[g.IntN(len(w.pods))], g.naiveRequest()
			caller, ok := policy.NewCaller(snapshot, snapshot.WorkloadByName(p.Namespace, p.Name))
			if !ok {
				t.Fatalf("SEED=%d: pod %s/%s has no scope", seed, p.Namespace, p.Name)
			}
			want := w.naiveAnswer(p, q)
			got := answered(t, caller, q, want)
			if !maps.Equal(got, want) {
				t.Fatalf("SEED=%d: pod %s/%s %v, %+v: goes to %v, want %v\n%s", seed, p.Namespace, p.Name, p.Labels, q, got, want, w)
			}
			for name := range want {
				if !strings.Contains(name, "|") {
					kinds[name]++
					continue
				}
				w.sameCluster(t, seed, caller, p, name, kinds)
			}
			if len(want) > 1 {
				kinds["several"]++
			}
		}
	}
	for _, kind := range []string{"404", "passthrough", "several", "a subset", "no such cluster", "RANDOM", "LEAST_REQUEST", "ROUND_ROBIN"} {
		if kinds[kind] < 100 {
			t.Errorf("only %d requests with %s: the worlds say too little", kinds[kind], kind)
		}
	}
	t.Log(kinds)
}

// sameCluster compares how a cluster is balanced and which endpoints it has.
func (w *rulesWorld) sameCluster(t *testing.T, seed uint64, caller policy.Caller, p *corev1.Pod, name string, kinds map[string]int) {
	t.Helper()
	simple, labels, there := w.naiveCluster(p, name)
	spec, ok := caller.Cluster(name)
	if ok != there || ok && (spec.Cluster.GetLbPolicy().String() != simple || !maps.Equal(spec.Labels, labels)) {
		t.Fatalf("SEED=%d: pod %s/%s: cluster %s: there %t, %v, %v; want %t, %s, %v\n%s", seed, p.Namespace, p.Name, name, ok, spec.Cluster.GetLbPolicy(), spec.Labels,
			there, simple, labels, w)
	}
	switch {
	case !there:
		kinds["no such cluster"]++
	case labels != nil:
		kinds["a subset"]++
	}
	kinds[simple]++
}

// answered is what a node makes of the request: clusters, with as many of the requests that all weights that are wanted make
// together.
func answered(t *testing.T, c policy.Caller, q naiveRequest, want map[string]uint32) map[string]uint32 {
	t.Helper()
	target := c.Target(uint16(q.port), q.authority, nil)
	vh, _ := c.VirtualHost(target)
	compiled, err := route.Compile(vh)
	if err != nil {
		t.Fatal(err)
	}
	var req head.Request
	req.Reset(nil)
	req.Method, req.Scheme, req.Authority, req.Path = []byte(q.method), []byte("http"), []byte(q.authority), []byte(q.path)
	for n, v := range q.header {
		req.Add(head.IDOf([]byte(n)), n, []byte(v))
	}
	r := compiled.Match(&req, &route.Input{})
	if r == nil {
		return map[string]uint32{"404": 1}
	}
	out := map[string]uint32{}
	var sum uint64
	for _, n := range want {
		sum += uint64(n)
	}
	for i := range sum {
		to := r.Pick(&req, &route.Input{Random: i}).Cluster
		if to == "PassthroughCluster" {
			return map[string]uint32{"passthrough": 1}
		}
		out[to]++
	}
	return out
}

func (w *rulesWorld) String() string {
	var b strings.Builder
	for _, v := range append(w.virtuals, w.delegates...) {
		fmt.Fprintf(&b, "VirtualService %s/%s %d %s\n", v.Namespace, v.Name, v.CreationTimestamp.Unix(), v.Spec.String())
	}
	for _, r := range w.rules {
		fmt.Fprintf(&b, "DestinationRule %s/%s %s\n", r.Namespace, r.Name, r.Spec.String())
	}
	return b.String()
}
