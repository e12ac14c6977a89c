package configdir

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
)

const pod = `apiVersion: v1
kind: Pod
metadata: {name: a, namespace: foo, labels: {app: a}}
status: {podIP: 10.0.0.1}
`

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func load(t *testing.T, d *Dir) *View {
	t.Helper()
	v, err := d.Load()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestBadFileKeepsItsLastGoodState(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", pod+"---\n"+strings.ReplaceAll(pod, "name: a", "name: b"))
	write(t, dir, "sub/c.yaml", strings.ReplaceAll(pod, "name: a", "name: c"))
	d := New(Config{Dir: dir})
	before := load(t, d)
	if n := len(List[*corev1.Pod](before)); n != 3 || len(before.Problems) != 0 {
		t.Fatalf("%d pods, problems %v", n, before.Problems)
	}
	write(t, dir, "a.yaml", pod+"spec: {containers: [{name: x, imagee: y}]}\n")
	write(t, dir, "sub/c.yaml", strings.ReplaceAll(pod, "name: a", "name: d"))
	after := load(t, d)
	defer func() {
		write(t, dir, "sub/c.yaml", " \n")
		if v := load(t, d); v.Get(Key{Kind: "Pod", Namespace: "foo", Name: "d"}) == nil || len(v.Problems) != 2 {
			t.Error("a file that was emptied lost its objects:", v.Problems)
		}
		if err := os.Remove(filepath.Join(dir, "sub/c.yaml")); err != nil {
			t.Fatal(err)
		}
		if v := load(t, d); v.Get(Key{Kind: "Pod", Namespace: "foo", Name: "d"}) != nil {
			t.Error("a file that was removed is served")
		}
	}()
	if len(after.Problems) != 1 {
		t.Fatalf("problems %v", after.Problems)
	}
	if got := after.Problems[0].Error(); got != "file a.yaml, document 1, Pod foo/a, field spec.containers[0].imagee: unknown field" {
		t.Error(got)
	}
	key := Key{Kind: "Pod", Namespace: "foo", Name: "a"}
	if after.Get(key) != before.Get(key) {
		t.Error("the bad file's pod is not served from its last good state")
	}
	if diff := Diff(before, after); len(diff) != 2 || diff[0].Name != "c" || diff[1].Name != "d" {
		t.Errorf("diff %v", diff)
	}
}

// policy is an AuthorizationPolicy foo/NAME with the action.
func policy(name, action string) string {
	return "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: " + name + ", namespace: foo}\nspec: {action: " + action + "}\n"
}

func action(v *View, name string) string {
	e := v.Get(Key{Group: securityGroup, Kind: "AuthorizationPolicy", Namespace: "foo", Name: name})
	if e == nil {
		return ""
	}
	return e.Object.(*securityv1.AuthorizationPolicy).Spec.Action.String()
}

func rename(t *testing.T, dir, from, to string) {
	t.Helper()
	if err := os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)); err != nil {
		t.Fatal(err)
	}
}

// TestPoliciesOutliveARename: a broken file that gets another name keeps its policies in force, whatever it is called,
// until it is understood or gone.
func TestPoliciesOutliveARename(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", policy("p", "DENY")+"---\n"+pod)
	write(t, dir, "other.yaml", policy("o", "DENY"))
	write(t, dir, "good.yaml", policy("g", "DENY"))
	d := New(Config{Dir: dir})
	load(t, d)
	write(t, dir, "a.yaml", policy("p", "DENY")+"}\n")
	check := func(what, want string) *View {
		t.Helper()
		v := load(t, d)
		if got := action(v, "p"); got != want {
			t.Errorf("%s: policy p is %q, want %q; problems %v", what, got, want, v.Problems)
		}
		return v
	}
	check("broken", "DENY")
	rename(t, dir, "a.yaml", "b.yaml")
	v := check("renamed", "DENY")
	if len(v.Problems) != 2 || !strings.Contains(v.Problems[1].Error(), "file a.yaml: is gone; its policies are served") ||
		!strings.Contains(v.Problems[1].Error(), "file b.yaml") {
		t.Errorf("problems %v", v.Problems)
	}
	if v.Get(Key{Kind: "Pod", Namespace: "foo", Name: "a"}) != nil {
		t.Error("a pod is kept")
	}
	check("looked at again", "DENY")
	rename(t, dir, "b.yaml", "c.yaml")
	check("renamed twice", "DENY")
	rename(t, dir, "c.yaml", "a.yaml")
	check("renamed back", "DENY")
	rename(t, dir, "a.yaml", "good.yaml")
	if v := check("renamed over a good file", "DENY"); action(v, "g") != "DENY" {
		t.Error("the file that was overwritten is lost")
	}
	write(t, dir, "good.yaml", policy("p", "ALLOW"))
	if v := check("mended", "ALLOW"); action(v, "g") != "" || len(v.Problems) != 0 {
		t.Error("what is gone is kept:", v.Problems)
	}
	write(t, dir, "other.yaml", "}")
	load(t, d)
	if err := os.Remove(filepath.Join(dir, "good.yaml")); err != nil {
		t.Fatal(err)
	}
	check("removed while an old file is broken", "")
}

// TestAddedFileReplacesNothing: of two files that define one object the one that was there first counts.
func TestAddedFileReplacesNothing(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "b.yaml", policy("p", "DENY"))
	d := New(Config{Dir: dir})
	load(t, d)
	write(t, dir, "a.yaml", policy("p", "ALLOW"))
	v := load(t, d)
	if action(v, "p") != "DENY" || len(v.Problems) != 1 ||
		!strings.Contains(v.Problems[0].Error(), "file a.yaml, document 1, AuthorizationPolicy.security.istio.io foo/p: object is defined already in file b.yaml, document 1") {
		t.Errorf("policy is %s, problems %v", action(v, "p"), v.Problems)
	}
	write(t, dir, "b.yaml", policy("p", "DENY")+"# edited\n")
	if v := load(t, d); action(v, "p") != "DENY" {
		t.Error("an edit of the first file lets the second one in")
	}
	write(t, dir, "b.yaml", policy("p", "ALLOW")+"---\n"+policy("p", "DENY"))
	if v := load(t, d); action(v, "p") != "DENY" || len(v.Problems) != 2 {
		t.Errorf("one file that defines it twice counts: %s, %v", action(v, "p"), v.Problems)
	}
	if err := os.Remove(filepath.Join(dir, "b.yaml")); err != nil {
		t.Fatal(err)
	}
	if v := load(t, d); action(v, "p") != "ALLOW" || len(v.Problems) != 0 {
		t.Errorf("the second file does not take over: %v", v.Problems)
	}
}

func TestProblemsNameObjectAndField(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"duplicate key": {pod + "kind: Pod\n", "file f.yaml, document 1: parse YAML"},
		"kind":          {"apiVersion: v1\nkind: Podd\nmetadata: {name: x}\n", "document 1, Podd x, field kind: unknown kind \"Podd\""},
		"type":          {pod + "spec: {hostNetwork: 7}\n", "Pod foo/a, field spec.hostNetwork: is a number, want bool"},
		"name":          {"apiVersion: v1\nkind: Pod\nmetadata: {name: A_b}\n", "field metadata.name"},
		"scalar":        {"hello\n", "document is not an object"},
		"second":        {pod + "---\n" + pod, "object is defined already in file f.yaml, document 1"},
		"istio":         {"apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v}\nspec: {hostss: [a]}\n", "field spec.hostss: unknown field"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "f.yaml", c.text)
			v := load(t, New(Config{Dir: dir}))
			if len(v.Problems) != 1 || !strings.Contains(v.Problems[0].Error(), c.want) {
				t.Fatalf("got %v, want %q", v.Problems, c.want)
			}
		})
	}
}

func TestPolicyCarriesItsIssues(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "p.yaml", `apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata: {name: p, namespace: foo}
spec:
  action: PERMIT
  rules:
  - from: [{source: {principals: ["*"], user: x}}]
    to: [{operation: {ports: [9000, "9001"]}}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: q, namespace: foo}
spec: {portLevelMtls: {80: {mode: DISABLE}, x: {mode: STRICT}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: outside, namespace: foo}
action: DENY
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: meta, namespace: foo, labels: [x]}
`)
	v := load(t, New(Config{Dir: dir}))
	e := v.Get(Key{Group: securityGroup, Kind: "AuthorizationPolicy", Namespace: "foo", Name: "p"})
	if e == nil {
		t.Fatal("the policy is lost:", v.Problems)
	}
	var fields []string
	for _, i := range e.Issues {
		fields = append(fields, i.Field)
	}
	if got := strings.Join(fields, " "); got != "spec.action spec.rules[0].from[0].source.user spec.rules[0].to[0].operation.ports[0]" {
		t.Error(got)
	}
	ap := e.Object.(*securityv1.AuthorizationPolicy)
	if got := ap.Spec.Rules[0].To[0].Operation.Ports; len(got) != 1 || got[0] != "9001" {
		t.Errorf("ports %v", got)
	}
	pa := List[*securityv1.PeerAuthentication](v)
	if len(pa) != 1 || pa[0].Spec.PortLevelMtls[80].GetMode().String() != "DISABLE" || len(pa[0].Spec.PortLevelMtls) != 1 {
		t.Errorf("got %v", pa)
	}
	for name, field := range map[string]string{"outside": "action", "meta": "metadata.labels"} {
		e := v.Get(Key{Group: securityGroup, Kind: "AuthorizationPolicy", Namespace: "foo", Name: name})
		if e == nil || len(e.Issues) != 1 || e.Issues[0].Field != field || e.Object.GetName() != name {
			t.Errorf("%s: %+v", name, e)
		}
	}
	if len(v.Problems) != 6 {
		t.Errorf("problems %v", v.Problems)
	}
}

func TestDurationsAsDocumentsWriteThem(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "d.yaml", `apiVersion: networking.istio.io/v1alpha3
kind: DestinationRule
metadata: {name: d, namespace: foo}
spec: {host: d, trafficPolicy: {outlierDetection: {baseEjectionTime: 3m, interval: 500ms}}}
`)
	v := load(t, New(Config{Dir: dir}))
	all := List[*networkingv1.DestinationRule](v)
	if len(all) != 1 || len(v.Problems) != 0 {
		t.Fatal(v.Problems)
	}
	o := all[0].Spec.TrafficPolicy.OutlierDetection
	if o.BaseEjectionTime.AsDuration() != 3*time.Minute || o.Interval.AsDuration() != 500*time.Millisecond {
		t.Errorf("got %v", o)
	}
}

func TestOverlay(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", pod)
	d := New(Config{Dir: dir})
	load(t, d)
	key, on := Key{Kind: "Pod", Namespace: "foo", Name: "a"}, "enabled"
	o := Overlay{APIVersion: "v1", Key: key, Annotations: map[string]*string{"x": &on}, Status: map[string]any{"podIP": "10.0.0.2"}}
	if err := WriteOverlay(dir, "agent-n1", o); err != nil {
		t.Fatal(err)
	}
	merged := load(t, d).Get(key)
	if p := merged.Object.(*corev1.Pod); p.Annotations["x"] != on || p.Status.PodIP != "10.0.0.2" || p.Labels["app"] != "a" {
		t.Fatalf("got %+v", p)
	}
	if again := load(t, d).Get(key); again != merged {
		t.Error("an unchanged directory made a new object")
	}
	write(t, dir, ".status/bad.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: foo}\nspec: {hostNetwork: true}\n")
	if v := load(t, d); v.Get(key) != merged || len(v.Problems) != 1 || v.Problems[0].Field != "spec" {
		t.Errorf("problems %v", v.Problems)
	}
	if err := RemoveOverlay(dir, "agent-n1", key); err != nil {
		t.Fatal(err)
	}
	if p := load(t, d).Get(key).Object.(*corev1.Pod); p.Annotations["x"] != "" || p.Status.PodIP != "10.0.0.1" {
		t.Errorf("got %+v", p)
	}
}

func TestRunNotifies(t *testing.T) {
	dir := t.TempDir()
	d := New(Config{Dir: dir, Reread: time.Hour})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	changed, stop := d.Watch()
	defer stop()
	go func() { done <- d.Run(ctx) }()
	wait := func(pods int) {
		t.Helper()
		deadline := time.After(10 * time.Second)
		for {
			select {
			case <-changed:
				if len(List[*corev1.Pod](d.View())) == pods {
					return
				}
			case err := <-done:
				t.Fatal(err)
			case <-deadline:
				t.Fatalf("never saw %d pods", pods)
			}
		}
	}
	wait(0)
	write(t, dir, "a.yaml", pod)
	wait(1)
	write(t, dir, "new/b.yaml", strings.ReplaceAll(pod, "name: a", "name: b"))
	wait(2)
	if err := os.Remove(filepath.Join(dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	wait(1)
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(pod)
	f.Add("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec: {rules: [{from: [{source: {ipBlocks: [1]}}]}]}\n")
	f.Add("a: &a [*a]\n---\n---\n[]\n")
	f.Fuzz(func(t *testing.T, text string) {
		docs, problems := parseFile(rawFile{path: "f.yaml", data: text})
		for _, d := range docs {
			if d.entry.Object == nil || d.entry.Object.GetName() != d.entry.Key.Name {
				t.Fatalf("entry %+v", d.entry)
			}
		}
		for _, p := range problems {
			if p.Message == "" {
				t.Fatalf("problem without a message: %+v", p)
			}
		}
	})
}
