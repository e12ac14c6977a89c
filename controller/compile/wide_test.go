package compile_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/validate"
)

// labelled is a pod with the labels k0 to k299.
func labelled() model.Event {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: "pod", Labels: map[string]string{"app": "pod"}}}
	for i := range 300 {
		p.Labels[fmt.Sprintf("k%d", i)] = "x"
	}
	p.Status.PodIP = "10.0.0.1"
	return at(model.KindPod, p)
}

// asks is a VirtualService that tells callers apart by labels, each in a rule of its own, and then takes all.
func asks(namespace, name string, age int, keys ...string) model.Event {
	o := &networkingv1.VirtualService{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, CreationTimestamp: metav1.Unix(int64(1000-age), 0)}}
	o.Spec.Hosts = []string{name + ".example"}
	to := []*networking.HTTPRouteDestination{{Destination: &networking.Destination{Host: name + ".example"}}}
	for _, k := range keys {
		o.Spec.Http = append(o.Spec.Http, &networking.HTTPRoute{Match: []*networking.HTTPMatchRequest{{SourceLabels: map[string]string{k: "x"}}}, Route: to})
	}
	o.Spec.Http = append(o.Spec.Http, &networking.HTTPRoute{Route: to})
	return at(model.KindVirtualService, o)
}

func numbered(from, to int) []string {
	var out []string
	for i := from; i < to; i++ {
		out = append(out, fmt.Sprintf("k%d", i))
	}
	return out
}

// travelling are the labels that the pod carries.
func travelling(t *testing.T, c *compile.Compiler) []string {
	t.Helper()
	lines := carried(t, c.Resources())
	if len(lines) != 1 {
		t.Fatalf("workloads %q", lines)
	}
	return strings.Fields(lines[0])[1:]
}

func statusOf(d compile.Delta, kind model.Kind, name string) validate.Status {
	for _, s := range d.Status {
		if s.Key() == string(kind)+" "+name {
			return s
		}
	}
	return validate.Status{}
}

func rulesOf(t *testing.T, c *compile.Compiler, name string) *settings.RouteRule {
	t.Helper()
	for _, r := range c.Resources() {
		if rule, ok := r.Message.(*settings.RouteRule); ok && r.Name == name {
			return rule
		}
	}
	t.Fatalf("no rule %s", name)
	return nil
}

// TestLabelsAreBounded: the rules of a namespace can ask about so many labels of callers; the older count, and what the newer cannot
// be judged by is refused, with the field in the status.
func TestLabelsAreBounded(t *testing.T) {
	c := compile.New(compile.Config{})
	old := asks("foo", "old", 2, numbered(0, model.MostLabelsOf)...)
	d := c.Apply([]model.Event{labelled(), old, asks("foo", "new", 1, "k0", "k100"), asks("bar", "other", 0, "k200")})
	if got := travelling(t, c); len(got) != model.MostLabelsOf+1 || slices.Contains(got, "k100=x") || !slices.Contains(got, "k200=x") {
		t.Errorf("labels %q", got)
	}
	if s := statusOf(d, model.KindVirtualService, "foo/old"); !s.Enforced || s.EnforcedBy != validate.ReasonEnforced {
		t.Errorf("the older one: %+v", s)
	}
	s := statusOf(d, model.KindVirtualService, "foo/new")
	if s.EnforcedBy != validate.ReasonPartially || !strings.Contains(s.Message, "spec.http[1].match[0].sourceLabels.k100: ") || strings.Contains(s.Message, "sourceLabels.k0") ||
		!strings.Contains(s.Message, "answered by 503") {
		t.Errorf("the newer one: %+v", s)
	}
	http := routesOf(t, rulesOf(t, c, "foo/new"))
	if len(http) != 3 || http[0].Caller == nil || http[1].Caller != nil || http[1].Route.GetDirectResponse().GetStatus() != 503 || http[2].Route.GetRoute() == nil {
		t.Errorf("rules %+v", http)
	}
	d = c.Apply([]model.Event{asks("foo", "old", 2)})
	if got := travelling(t, c); strings.Join(got, " ") != "k0=x k100=x k200=x" {
		t.Errorf("when there is place again: labels %q", got)
	}
	if s := statusOf(d, model.KindVirtualService, "foo/new"); s.EnforcedBy != validate.ReasonEnforced {
		t.Errorf("when there is place again: %+v", s)
	}
	if http := routesOf(t, rulesOf(t, c, "foo/new")); http[1].Caller == nil || http[1].Route.GetRoute() == nil {
		t.Errorf("when there is place again: %+v", http)
	}
}

func routesOf(t *testing.T, r *settings.RouteRule) []client.HTTPRule {
	t.Helper()
	snap, err := client.NewSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	if snap, err = snap.With(1, []client.Resource{{Name: r.GetNamespace() + "/" + r.GetName(), Message: r}}, nil); err != nil {
		t.Fatal(err)
	}
	for _, x := range snap.AllRouteRules() {
		return x.HTTP
	}
	return nil
}

// TestLabelsOfTheMeshAreBounded: many namespaces together reach a limit too, and streams are refused as requests are.
func TestLabelsOfTheMeshAreBounded(t *testing.T) {
	c := compile.New(compile.Config{})
	events := []model.Event{labelled()}
	spaces := model.MostLabels / model.MostLabelsOf
	for i := range spaces {
		events = append(events, asks(fmt.Sprintf("ns%02d", i), "v", 1, numbered(i*model.MostLabelsOf, (i+1)*model.MostLabelsOf)...))
	}
	o := &networkingv1.VirtualService{ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: "streams", CreationTimestamp: metav1.Unix(2000, 0)}}
	o.Spec.Hosts = []string{"db.example"}
	to := []*networking.RouteDestination{{Destination: &networking.Destination{Host: "db.example"}}}
	o.Spec.Tcp = []*networking.TCPRoute{{Match: []*networking.L4MatchAttributes{{Port: 1}, {Port: 2, SourceLabels: map[string]string{"k299": "x"}}}, Route: to}}
	o.Spec.Tls = []*networking.TLSRoute{{Match: []*networking.TLSMatchAttributes{{SniHosts: []string{"db.example"}, SourceLabels: map[string]string{"k299": "x"}}}, Route: to}}
	d := c.Apply(append(events, at(model.KindVirtualService, o)))
	if got := travelling(t, c); len(got) != model.MostLabels {
		t.Errorf("%d labels", len(got))
	}
	r := rulesOf(t, c, "foo/streams")
	if len(r.GetTcp()) != 2 || len(r.GetTcp()[0].GetDestinations()) != 0 || r.GetTcp()[0].GetMatches()[0].GetCaller().GetPort() != 2 ||
		len(r.GetTcp()[1].GetDestinations()) != 1 || len(r.GetTls()) != 1 || len(r.GetTls()[0].GetDestinations()) != 0 {
		t.Errorf("rule %v", r)
	}
	s := statusOf(d, model.KindVirtualService, "foo/streams")
	for _, field := range []string{"spec.tcp[0].match[1].sourceLabels.k299: ", "spec.tls[0].match[0].sourceLabels.k299: "} {
		if !strings.Contains(s.Message, field) {
			t.Errorf("%s: no word of %s", s.Message, field)
		}
	}
}

// TestLabelsOfRulesAreBounded: DestinationRules ask about labels of all workloads by patterns and by priorities.
func TestLabelsOfRulesAreBounded(t *testing.T) {
	o := &networkingv1.DestinationRule{ObjectMeta: meta("r")}
	o.Spec.Host = "*.example"
	for i := range model.MostLabelsOf + 1 {
		o.Spec.Subsets = append(o.Spec.Subsets, &networking.Subset{Name: fmt.Sprintf("s%d", i), Labels: map[string]string{fmt.Sprintf("k%02d", i): "x"}})
	}
	o.Spec.TrafficPolicy = &networking.TrafficPolicy{LoadBalancer: &networking.LoadBalancerSettings{LocalityLbSetting: &networking.LocalityLoadBalancerSetting{
		FailoverPriority: []string{"k99"}}}, OutlierDetection: &networking.OutlierDetection{}}
	s := statusOf(compile.New(compile.Config{}).Apply([]model.Event{at(model.KindDestinationRule, o)}), model.KindDestinationRule, "foo/r")
	for _, field := range []string{"spec.subsets[15].labels.k15: ", "spec.subsets[16].labels.k16: "} {
		if !strings.Contains(s.Message, field) {
			t.Errorf("%s: no word of %s", s.Message, field)
		}
	}
	if strings.Contains(s.Message, "k14") {
		t.Error(s.Message)
	}
}

// TestLabelsAreAFunctionOfTheObjects: after any sequence of changes the labels that travel, the rules and their statuses are those of
// compiling everything at once.
func TestLabelsAreAFunctionOfTheObjects(t *testing.T) {
	for seed := range uint64(20) {
		g := rand.New(rand.NewPCG(seed, 7))
		world := map[string]model.Event{"pod": labelled()}
		said := map[string]string{}
		c := compile.New(compile.Config{})
		c.Apply([]model.Event{world["pod"]})
		for range 40 {
			from := g.IntN(280)
			e := asks(fmt.Sprintf("ns%d", g.IntN(3)), fmt.Sprintf("v%d", g.IntN(4)), g.IntN(5), numbered(from, from+g.IntN(20))...)
			if g.IntN(4) == 0 {
				e.Object = nil
			}
			world[e.Name.String()] = e
			remember(said, c.Apply([]model.Event{e}).Status)
		}
		fresh, wanted := compile.New(compile.Config{}), map[string]string{}
		remember(wanted, fresh.Apply(slices.Collect(maps.Values(world))).Status)
		if got, want := travelling(t, c), travelling(t, fresh); !slices.Equal(got, want) {
			t.Fatalf("seed %d: labels %q, at once %q", seed, got, want)
		}
		for k, v := range wanted {
			if said[k] != v {
				t.Fatalf("seed %d: %s: %s, at once %s", seed, k, said[k], v)
			}
		}
	}
}
