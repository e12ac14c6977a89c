package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	metadatafake "k8s.io/client-go/metadata/fake"
	ktesting "k8s.io/client-go/testing"
	"sigs.k8s.io/yaml"
)

const fitting = `apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: shop}
spec: {hosts: [reviews], http: [{route: [{destination: {host: reviews}}]}]}
`

func runAnalyze(t *testing.T, in string, args ...string) (out string, err error) {
	t.Helper()
	var o, e bytes.Buffer
	root := newRoot("undermesh", strings.NewReader(in), &o, &e)
	root.SetArgs(append([]string{"analyze"}, args...))
	err = root.Execute()
	return o.String(), err
}

func TestAnalyzeFiles(t *testing.T) {
	dir := t.TempDir()
	good, bad, below := filepath.Join(dir, "good.yaml"), filepath.Join(dir, "bad.yaml"), filepath.Join(dir, "sub", "more.yaml")
	if err := os.Mkdir(filepath.Dir(below), 0o755); err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{good: fitting, bad: strings.ReplaceAll(strings.ReplaceAll(fitting, "{host: reviews}", "{host: gone}"), "name: reviews,", "name: bad,"), below: misspelt} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	reference := "Error [IST0101] (VirtualService shop/bad " + bad + `:9) Referenced host not found: "gone" (spec.http[0].route[0].destination.host)` + "\n"
	for _, c := range []struct {
		args []string
		out  string
		code int
	}{
		{[]string{"--use-kube=false", good}, "✓ No validation issues found when analyzing " + good + ".\n", 0},
		{[]string{"--use-kube=false", bad}, reference, issuesFound},
		{[]string{"--use-kube=false", dir}, reference, issuesFound},
		{[]string{"--use-kube=false", "-R", dir}, "Error [IST0106] (VirtualService shop/reviews " + below + ":12) Schema validation error: spec.http[0].route[0].destination.weight: unknown field", issuesFound},
		{[]string{"--use-kube=false", "-S", "IST0101=VirtualService *.shop", bad}, "✓ No validation issues found", 0},
		{[]string{"--use-kube=false", "-S", "IST0101=VirtualService *.other", bad}, reference, issuesFound},
		{[]string{"--use-kube=false", "--failure-threshold=wrong", bad}, "", 1},
		{[]string{"--use-kube=false", "--output-threshold=wrong", bad}, "", 1},
		{[]string{"--use-kube=false", "-S", "IST0101", bad}, "", 1},
		{[]string{"--use-kube=false"}, "", 1},
		{[]string{"--use-kube=false", "/nonexistent"}, "", 1},
		{[]string{"--kubeconfig=/nonexistent"}, "", 1},
	} {
		out, err := runAnalyze(t, "", c.args...)
		code := 0
		if err != nil {
			code = exitCode(err)
		}
		if code != c.code || !strings.Contains(out, c.out) {
			t.Errorf("%v: %d (%v), %q; want %d, %q", c.args, code, err, out, c.code, c.out)
		}
	}
	out, err := runAnalyze(t, misspelt, "--use-kube=false", "-o", "json", "-")
	var messages []message
	if jsonErr := json.Unmarshal([]byte(out), &messages); jsonErr != nil || exitCode(err) != issuesFound || messages[0].Code != "IST0106" ||
		messages[0].Origin != "VirtualService shop/reviews" || messages[0].Reference != "-:12" {
		t.Errorf("%v, %v, %+v", err, jsonErr, messages)
	}
	const doubtful = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {a: <VALUE>}\n"
	if out, err := runAnalyze(t, doubtful, "--use-kube=false", "-"); err != nil || !strings.HasPrefix(out, "Warning [IST0133] (ConfigMap a -:4) data.a: <VALUE> looks like a placeholder") {
		t.Errorf("%v, %q", err, out)
	}
	if _, err := runAnalyze(t, doubtful, "--use-kube=false", "--failure-threshold=Warning", "-"); exitCode(err) != issuesFound {
		t.Error(err)
	}
	if out, err := runAnalyze(t, doubtful, "--use-kube=false", "--output-threshold=Error", "-"); err != nil || !strings.HasPrefix(out, "✓") {
		t.Errorf("%v, %q", err, out)
	}
}

// clusterOf is a cluster that serves a few kinds and holds the objects.
func clusterOf(t *testing.T, manifests string, secrets ...string) *cluster {
	t.Helper()
	mapper := meta.NewDefaultRESTMapper([]schema.GroupVersion{{Version: "v1"}, {Group: "networking.istio.io", Version: "v1"}})
	lists := map[schema.GroupVersionResource]string{}
	for _, k := range []struct{ gv, kind, resource string }{
		{"v1", "Service", "services"}, {"v1", "Pod", "pods"}, {"v1", "Namespace", "namespaces"}, {"v1", "ConfigMap", "configmaps"},
		{"networking.istio.io/v1", "VirtualService", "virtualservices"}, {"networking.istio.io/v1", "Gateway", "gateways"},
		{"networking.istio.io/v1", "DestinationRule", "destinationrules"},
	} {
		gv, err := schema.ParseGroupVersion(k.gv)
		if err != nil {
			t.Fatal(err)
		}
		mapper.AddSpecific(gv.WithKind(k.kind), gv.WithResource(k.resource), gv.WithResource(strings.ToLower(k.kind)), meta.RESTScopeNamespace)
		lists[gv.WithResource(k.resource)] = k.kind + "List"
	}
	dyn := dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), lists)
	for text := range strings.SplitSeq(manifests, "---\n") {
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(text), &u.Object); err != nil {
			t.Fatal(err)
		}
		m, err := mapper.RESTMapping(u.GroupVersionKind().GroupKind())
		if err == nil {
			_, err = dyn.Resource(m.Resource).Namespace(u.GetNamespace()).Create(t.Context(), u, metav1.CreateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	scheme := metadatafake.NewTestScheme()
	if err := metav1.AddMetaToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	var names []runtime.Object
	for _, s := range secrets {
		ns, name, _ := strings.Cut(s, "/")
		names = append(names, &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}})
	}
	return &cluster{dynamic: dyn,
		names: metadatafake.NewSimpleMetadataClient(scheme, names...), mapper: fixedMapper{mapper}, home: "shop"}
}

func TestAnalyzeCluster(t *testing.T) {
	const gateway = "---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g, namespace: other}\nspec: {selector: {istio: gw}, servers: [{port: {number: 443, name: https, protocol: HTTPS}, tls: {mode: SIMPLE, credentialName: cert}, hosts: [a.example]}]}\n" +
		"---\napiVersion: v1\nkind: Pod\nmetadata: {name: gw, namespace: other, labels: {istio: gw}}\nspec: {containers: [{name: c, image: i}]}\n"
	run := func(c *cluster, a analysis, namespace string) (string, string, error) {
		var out, errs bytes.Buffer
		f := &frame{out: &out, err: &errs, istioNamespace: "istio-system", namespace: namespace}
		a.timeout = time.Minute
		found, target, err := f.findings(t.Context(), a, c, nil)
		if err != nil {
			return "", errs.String(), err
		}
		return out.String() + target, errs.String(), f.analyzed(found, target, 2)
	}
	t.Run("IN-12", func(t *testing.T) {
		var out, errs bytes.Buffer
		f := &frame{out: &out, err: &errs, istioNamespace: "istio-system"}
		c := clusterOf(t, fitting)
		c.home = "default"
		found, target, err := f.findings(t.Context(), analysis{timeout: time.Minute}, c, nil)
		if err == nil {
			err = f.analyzed(found, target, 2)
		}
		if err != nil || out.String() != "✓ No validation issues found when analyzing namespace: default.\n" {
			t.Errorf("%v, %q, %q", err, out.String(), errs.String())
		}
	})
	c := clusterOf(t, strings.ReplaceAll(fitting, "{host: reviews}", "{host: gone}")+gateway)
	if _, _, err := run(c, analysis{}, "third"); err != nil {
		t.Error("another namespace is not asked for:", err)
	}
	if target, _, err := run(c, analysis{}, ""); exitCode(err) != issuesFound || target != "namespace: shop" {
		t.Error(target, err)
	}
	if target, _, err := run(c, analysis{all: true}, ""); exitCode(err) != issuesFound || target != "all namespaces" {
		t.Error(target, err)
	}
	if _, _, err := run(c, analysis{}, "other"); exitCode(err) != issuesFound {
		t.Error("the secret is missing, and nothing was said:", err)
	}
	if _, _, err := run(clusterOf(t, fitting+gateway, "other/cert"), analysis{}, "other"); err != nil {
		t.Error("the secret is there:", err)
	}
	c = clusterOf(t, fitting+gateway)
	fake, ok := c.names.(*metadatafake.FakeMetadataClient)
	if !ok {
		t.Fatal("no fake")
	}
	fake.PrependReactor("list", "secrets", func(ktesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(corev1.Resource("secrets"), "", nil)
	})
	if _, errs, err := run(c, analysis{}, "other"); err != nil || !strings.Contains(errs, "not checked: what refers to a Secret") {
		t.Errorf("secrets may not be listed: %v, %q", err, errs)
	}
}

// TestSecretsStaySecret: of secrets no content is asked for, and none of it reaches the judgement.
func TestSecretsStaySecret(t *testing.T) {
	c := clusterOf(t, fitting, "shop/cert")
	objects, unread, err := c.configuration(t.Context(), "istio-system")
	if err != nil || len(unread) > 0 {
		t.Fatal(err, unread)
	}
	if !slices.ContainsFunc(objects, func(o []byte) bool { return strings.Contains(string(o), `"kind":"Secret"`) }) {
		t.Error("the secret is not there")
	}
	fake, ok := c.dynamic.(*dynamicfake.FakeDynamicClient)
	if !ok {
		t.Fatal("no fake")
	}
	for _, a := range fake.Actions() {
		if a.GetResource().Resource == "secrets" {
			t.Error("the content of secrets was asked for")
		}
	}
}
