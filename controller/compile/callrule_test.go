package compile_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/model"
)

func ruleNames(all []*client.CallRule) string {
	var out []string
	for _, r := range all {
		out = append(out, r.GetNamespace()+"/"+r.GetName())
	}
	return strings.Join(out, " ")
}

// modelRules are those of the model that the node must find: the ones that select the caller, or else all of them.
func modelRules(r *model.Registry, p *model.Pod, namespace, host string) string {
	var selecting, rest []string
	for _, rule := range r.DestinationRules(p.Namespace, p.Labels, namespace, host) {
		n := model.Name{Namespace: rule.Namespace, Name: rule.DestinationRule.Name}.String()
		if len(rule.Selector()) > 0 {
			selecting = append(selecting, n)
		} else {
			rest = append(rest, n)
		}
	}
	if len(selecting) > 0 {
		return strings.Join(selecting, " ")
	}
	return strings.Join(rest, " ")
}

// TestNodesFindTheModelsRules: a node finds by what it is sent the rules that the model finds by the objects.
func TestNodesFindTheModelsRules(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	g := generator{rand.New(rand.NewPCG(seed, 1))}
	c, r := compile.New(compile.Config{}), model.New(model.Config{InstallNamespace: "istio-system", Mesh: model.Mesh{RootNamespace: "istio-system", TrustDomain: "cluster.local"}})
	found, none := 0, 0
	for step := range 150 {
		var batch []model.Event
		for range 1 + g.IntN(4) {
			e := g.event()
			for e.Kind != model.KindPod && e.Kind != model.KindDestinationRule && (e.Kind != model.KindConfigMap || e.Object == nil) {
				e = g.event()
			}
			batch = append(batch, e)
		}
		c.Apply(batch)
		r.Apply(batch)
		s := servedTo(t, c)
		for _, w := range s.Workloads() {
			p := r.Pod(model.Name{Namespace: w.GetNamespace(), Name: w.GetName()})
			for _, service := range []string{"foo", "bar", "istio-system"} {
				for _, short := range []string{"x", "y", "z"} {
					host := short + "." + service + ".svc.cluster.local"
					got, want := ruleNames(s.CallRules(w, service, host)), modelRules(r, p, service, host)
					if got != want {
						t.Fatalf("seed %d, step %d: %s/%s calls %s by the rules %q, want %q", seed, step, p.Namespace, p.Name.Name, host, got, want)
					}
					if want == "" {
						none++
					} else {
						found++
					}
				}
			}
		}
	}
	if found < 500 || none < 100 {
		t.Errorf("seed %d: %d found, %d none", seed, found, none)
	}
}

// TestCallRuleCostsOneResource: a rule is one resource, however many call by it; one with a selector is one more for each
// workload that it selects.
func TestCallRuleCostsOneResource(t *testing.T) {
	c := compile.New(compile.Config{})
	var events []model.Event
	for i := range 300 {
		e := podEvent("foo", fmt.Sprint("p", i), fmt.Sprintf("10.0.%d.%d", i/256, i%256), map[string]string{"app": fmt.Sprint("a", i%100)})
		e.Object.(*corev1.Pod).Status.Phase = corev1.PodRunning
		events = append(events, e)
	}
	c.Apply(events)
	for selector, want := range map[string]int{"": 2, "{matchLabels: {app: a7}}": 6} { // the rule, the mesh; and 3 pods and their settings
		text := "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: r, namespace: foo}\nspec: {host: '*', trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}"
		if selector != "" {
			text += ", workloadSelector: " + selector
		}
		d := c.Apply(read(t, dirOf(t, text+"}\n")))
		if len(d.Upserts) != want {
			t.Errorf("selector %q: %d resources, want %d: %v", selector, len(d.Upserts), want, d.Upserts)
		}
		c.Apply([]model.Event{{Kind: model.KindDestinationRule, Name: model.Name{Namespace: "foo", Name: "r"}}})
	}
}

func dirOf(t *testing.T, text string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}
