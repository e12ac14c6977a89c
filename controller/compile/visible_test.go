package compile_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/policy"
)

// visibleWorld is a random mesh as users wrote it.
type visibleWorld struct {
	defaults []string // defaultServiceExportTo
	registry bool     // outboundTrafficPolicy of the mesh
	pods     []*corev1.Pod
	services []*corev1.Service
	entries  []*networkingv1.ServiceEntry
	sidecars []*networkingv1.Sidecar
}

const visibleRoot = "istio-system"

func (g generator) visibleWorld() *visibleWorld {
	namespaces := []string{"a", "b", "c", visibleRoot}
	w := &visibleWorld{registry: g.IntN(2) == 0, defaults: [][]string{nil, nil, {"*"}, {"."}, {"b", "."}, {"~"}}[g.IntN(6)]}
	meta := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: g.pick(namespaces...), Name: name, CreationTimestamp: metav1.Unix(int64(g.IntN(3)), 0)}
	}
	for i := range 5 {
		p := &corev1.Pod{ObjectMeta: meta(fmt.Sprint("pod", i))}
		p.Labels, p.Status.PodIP = g.labels(), fmt.Sprint("10.0.0.", i+1)
		w.pods = append(w.pods, p)
	}
	exports := []string{"", "", ".", "*", "~", "a", "b, c", ".,c", " ", "a,*", "~,a"}
	for i := range 5 {
		s := &corev1.Service{ObjectMeta: meta(fmt.Sprint("svc", i))}
		s.Annotations = map[string]string{model.AnnotationExportTo: g.pick(exports...)}
		s.Spec = corev1.ServiceSpec{ClusterIP: fmt.Sprint("10.96.0.", i+1), Ports: []corev1.ServicePort{{Name: "http", Port: 80}, {Name: "tcp", Port: 81}}}
		w.services = append(w.services, s)
	}
	for i := range 4 {
		e := &networkingv1.ServiceEntry{ObjectMeta: meta(fmt.Sprint("entry", i))}
		e.Spec.Hosts = []string{g.pick(fmt.Sprintf("e%d.example.com", i), fmt.Sprintf("*.e%d.example.com", i), fmt.Sprintf("E%d.Example.ORG.", i))}
		e.Spec.Ports = []*networking.ServicePort{{Number: 80, Name: "http", Protocol: "HTTP"}, {Number: 81, Name: "tcp", Protocol: "TCP"}}
		if said := strings.TrimSpace(g.pick(exports...)); said != "" {
			e.Spec.ExportTo = strings.Split(strings.ReplaceAll(said, " ", ""), ",")
		}
		w.entries = append(w.entries, e)
	}
	for i := range g.IntN(6) {
		w.sidecars = append(w.sidecars, g.visibleSidecar(meta(fmt.Sprint("sidecar", i))))
	}
	return w
}

func (g generator) visibleSidecar(meta metav1.ObjectMeta) *networkingv1.Sidecar {
	s := &networkingv1.Sidecar{ObjectMeta: meta}
	if labels := g.selector(); len(labels) > 0 && g.IntN(2) == 0 {
		s.Spec.WorkloadSelector = &networking.WorkloadSelector{Labels: labels}
	}
	if mode := g.IntN(3); mode < 2 {
		s.Spec.OutboundTrafficPolicy = &networking.OutboundTrafficPolicy{Mode: networking.OutboundTrafficPolicy_Mode(mode)}
	}
	items := func() []string {
		var out []string
		for range 1 + g.IntN(3) {
			out = append(out, g.pick("*", ".", "a", "b", "~", "~a", "~.", "~*", visibleRoot)+"/"+g.pick("*", "*", "*.svc.cluster.local", "*.example.com",
				"svc0.a.svc.cluster.local", "svc1.B.svc.cluster.local", "e1.example.com", "*.e2.example.com", "e0.example.org"))
		}
		return out
	}
	for _, port := range []uint32{80, 81} {
		if g.IntN(4) == 0 {
			s.Spec.Egress = append(s.Spec.Egress, &networking.IstioEgressListener{Port: &networking.SidecarPort{Number: port, Protocol: "TCP"}, Hosts: items()})
		}
	}
	switch g.IntN(6) {
	case 0:
	case 1:
		s.Spec.Egress = append(s.Spec.Egress, &networking.IstioEgressListener{Port: &networking.SidecarPort{Protocol: "TCP"}, Bind: "unix:///x", Hosts: items()})
	default:
		s.Spec.Egress = append(s.Spec.Egress, &networking.IstioEgressListener{Hosts: items()})
	}
	return s
}

func (w *visibleWorld) events(g generator) []model.Event {
	text := "rootNamespace: " + visibleRoot + "\noutboundTrafficPolicy: {mode: " + map[bool]string{true: "REGISTRY_ONLY", false: "ALLOW_ANY"}[w.registry] + "}\n"
	if w.defaults != nil {
		text += `defaultServiceExportTo: ["` + strings.Join(w.defaults, `", "`) + "\"]\n"
	}
	out := []model.Event{{Kind: model.KindConfigMap, Name: model.Name{Namespace: visibleRoot, Name: "istio"}, Object: &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: visibleRoot, Name: "istio"}, Data: map[string]string{"mesh": text}}}}
	add := func(kind model.Kind, o metav1.Object) {
		out = append(out, model.Event{Kind: kind, Name: model.Name{Namespace: o.GetNamespace(), Name: o.GetName()}, Object: o})
	}
	for _, o := range w.pods {
		add(model.KindPod, o)
	}
	for _, o := range w.services {
		add(model.KindService, o)
	}
	for _, o := range w.entries {
		add(model.KindServiceEntry, o)
	}
	for _, o := range w.sidecars {
		add(model.KindSidecar, o)
	}
	g.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// The naive interpreter: what the documents say, word by word, of the objects as they are written. It shares nothing with what
// it is compared with.

// naiveHost is a service as the documents speak of one.
type naiveHost struct {
	namespace, host string
	exportTo        []string
}

func (w *visibleWorld) hosts() []naiveHost {
	var out []naiveHost
	for _, s := range w.services {
		out = append(out, naiveHost{s.Namespace, s.Name + "." + s.Namespace + ".svc.cluster.local",
			strings.Split(strings.ReplaceAll(s.Annotations["networking.istio.io/exportTo"], " ", ""), ",")})
	}
	for _, e := range w.entries {
		out = append(out, naiveHost{e.Namespace, strings.TrimSuffix(strings.ToLower(e.Spec.Hosts[0]), "."), e.Spec.ExportTo})
	}
	return out
}

func (w *visibleWorld) naiveExported(h naiveHost, to string) bool {
	said := slices.DeleteFunc(slices.Clone(h.exportTo), func(v string) bool { return v == "" })
	if len(said) == 0 {
		said = w.defaults
	}
	if len(said) == 0 {
		said = []string{"*"}
	}
	seen := false
	for _, v := range said {
		if v == "~" {
			return false
		}
		seen = seen || v == "*" || v == to || v == "." && to == h.namespace
	}
	return seen
}

// naiveLevels are the Sidecars for the pod: of those that select it, of its namespace, of the root namespace the oldest each.
func (w *visibleWorld) naiveLevels(p *corev1.Pod) []*networkingv1.Sidecar {
	sorted := slices.Clone(w.sidecars)
	slices.SortFunc(sorted, func(a, b *networkingv1.Sidecar) int {
		if d := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); d != 0 {
			return d
		}
		return strings.Compare(a.Name, b.Name)
	})
	var levels [3]*networkingv1.Sidecar
	for _, s := range slices.Backward(sorted) {
		selector := s.Spec.GetWorkloadSelector().GetLabels()
		selects := len(selector) > 0
		for k, v := range selector {
			selects = selects && p.Labels[k] == v
		}
		switch {
		case s.Namespace == p.Namespace && selects:
			levels[0] = s
		case s.Namespace == p.Namespace && len(selector) == 0:
			levels[1] = s
		case s.Namespace == visibleRoot && len(selector) == 0:
			levels[2] = s
		}
	}
	return slices.DeleteFunc(levels[:], func(s *networkingv1.Sidecar) bool { return s == nil })
}

func (w *visibleWorld) naiveSees(p *corev1.Pod, h naiveHost, port uint32) bool {
	if !w.naiveExported(h, p.Namespace) {
		return false
	}
	var egress []*networking.IstioEgressListener
	for _, s := range w.naiveLevels(p) {
		if len(egress) == 0 {
			egress = s.Spec.Egress
		}
	}
	if len(egress) == 0 {
		return true
	}
	var hosts []string
	for _, e := range slices.Backward(egress) { // the one for the port stands before the one for all
		if n := e.GetPort().GetNumber(); n == port || n == 0 && !strings.HasPrefix(e.Bind, "unix:") {
			hosts = e.Hosts
		}
	}
	in := false
	for _, item := range hosts {
		ns, dns, _ := strings.Cut(item, "/")
		exclude := strings.HasPrefix(ns, "~")
		if ns = strings.TrimPrefix(ns, "~"); ns == "" {
			ns = "*"
		}
		pattern := "^" + strings.ReplaceAll(regexp.QuoteMeta(strings.ToLower(dns)), `\*`, ".*") + "$"
		matches := (ns == "*" || ns == h.namespace || ns == "." && p.Namespace == h.namespace) && regexp.MustCompile(pattern).MatchString(h.host)
		if matches && exclude {
			return false
		}
		in = in || matches
	}
	return in
}

func (w *visibleWorld) naiveRegistryOnly(p *corev1.Pod) bool {
	if levels := w.naiveLevels(p); len(levels) > 0 && levels[0].Spec.OutboundTrafficPolicy != nil {
		return levels[0].Spec.OutboundTrafficPolicy.Mode == networking.OutboundTrafficPolicy_REGISTRY_ONLY
	}
	return w.registry
}

// TestVisibilityAgainstNaive: in 1,000 random worlds what a node concludes from what it is served, after random changes, is what
// the naive interpreter reads in the objects. SEED repeats one.
func TestVisibilityAgainstNaive(t *testing.T) {
	worlds, first := 1000, uint64(time.Now().UnixNano())
	if s := os.Getenv("SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		worlds, first = 1, n
	}
	seen, hidden, only := 0, 0, 0
	for i := range worlds {
		seed := first + uint64(i)
		g := generator{rand.New(rand.NewPCG(seed, 2))}
		c := compile.New(compile.Config{})
		before := g.visibleWorld()
		c.Apply(before.events(g))
		w := g.visibleWorld() // the next state: what is in both stays as the new one says, the rest is taken away
		c.Apply(append(removals(before.events(g)), w.events(g)...))
		snapshot := servedTo(t, c)
		for _, p := range w.pods {
			workload := snapshot.WorkloadByName(p.Namespace, p.Name)
			scope, known := snapshot.ScopeOf(workload)
			if workload == nil || !known {
				t.Fatalf("SEED=%d: pod %s/%s: %v, its scope is known: %t", seed, p.Namespace, p.Name, workload, known)
			}
			view := policy.View{Namespace: p.Namespace, Scope: scope}
			if got := view.OutboundPolicy(snapshot.Mesh()) == settings.OutboundPolicy_REGISTRY_ONLY; got != w.naiveRegistryOnly(p) {
				t.Fatalf("SEED=%d: pod %s/%s: REGISTRY_ONLY is %t", seed, p.Namespace, p.Name, got)
			} else if got {
				only++
			}
			for _, h := range w.hosts() {
				svc := snapshot.ServiceByHost(h.namespace, h.host)
				if svc == nil {
					t.Fatalf("SEED=%d: there is no service %s/%s", seed, h.namespace, h.host)
				}
				for _, port := range []uint32{80, 81} {
					got, want := view.Sees(policy.CalleeOf(svc), port), w.naiveSees(p, h, port)
					if got != want {
						t.Fatalf("SEED=%d: pod %s/%s %v sees %s/%s:%d: %t, want %t\nscope %v\nsidecars %v", seed, p.Namespace, p.Name, p.Labels,
							h.namespace, h.host, port, got, want, scope, describe(w.naiveLevels(p)))
					}
					if got {
						seen++
					} else {
						hidden++
					}
				}
			}
		}
	}
	if worlds > 1 && (seen < 10000 || hidden < 10000 || only < 1000) {
		t.Errorf("seen %d, hidden %d, REGISTRY_ONLY %d: the worlds say too little", seen, hidden, only)
	}
}

func describe(levels []*networkingv1.Sidecar) string {
	var b strings.Builder
	for _, s := range levels {
		fmt.Fprintf(&b, "%s/%s %s\n", s.Namespace, s.Name, s.Spec.String())
	}
	return b.String()
}

// removals are the removals of what the events brought, without the mesh's configuration, which stays until the next one.
func removals(events []model.Event) []model.Event {
	var out []model.Event
	for _, e := range events {
		if e.Kind != model.KindConfigMap {
			e.Object = nil
			out = append(out, e)
		}
	}
	return out
}

// servedTo is the snapshot of a node that follows the compiler.
func servedTo(t *testing.T, c *compile.Compiler) *client.Snapshot {
	t.Helper()
	var all []client.Resource
	for _, r := range c.Resources() {
		if client.Understands(r.Type) {
			all = append(all, client.Resource{Name: r.Name, Message: r.Message})
		}
	}
	s, err := client.NewSnapshot(all...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
