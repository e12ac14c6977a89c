package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admission/v1"
	admissionregistration "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"
	"sigs.k8s.io/yaml"

	"github.com/undermesh/undermesh/controller/validate"
)

func handler(t *testing.T) *Handler {
	t.Helper()
	c, err := validate.NewCatalogue()
	if err != nil {
		t.Fatal(err)
	}
	h, err := New(Config{Catalogue: c, Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// request is a request to store the manifest, or to change the manifest before into it.
func request(t *testing.T, manifest, before string) *admissionv1.AdmissionRequest {
	t.Helper()
	raw := func(text string) runtime.RawExtension {
		if text == "" {
			return runtime.RawExtension{}
		}
		b, err := yaml.YAMLToJSON([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return runtime.RawExtension{Raw: b}
	}
	var o metav1.PartialObjectMetadata
	if err := yaml.Unmarshal([]byte(manifest), &o); err != nil {
		t.Fatal(err)
	}
	gvk := o.GroupVersionKind()
	r := &admissionv1.AdmissionRequest{UID: "u", Kind: metav1.GroupVersionKind{Group: gvk.Group, Version: gvk.Version, Kind: gvk.Kind},
		Namespace: o.Namespace, Name: o.Name, Operation: admissionv1.Create, Object: raw(manifest), OldObject: raw(before)}
	if before != "" {
		r.Operation = admissionv1.Update
	}
	return r
}

func route(name, spec string) string {
	return "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: " + name + ", namespace: shop}\nspec: " + spec + "\n"
}

const (
	goodSpec = "{hosts: [a], http: [{route: [{destination: {host: a}}]}]}"
	badSpec  = "{hosts: ['a b'], http: [{timeout: 1s}]}"
	doubtful = "{hosts: [a], http: [{route: [{destination: {host: a}}]}, {route: [{destination: {host: b}}]}]}"
)

func TestReview(t *testing.T) {
	h := handler(t)
	pod := "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop}\nspec: {containers: [{name: c, image: i, livenessProbe: {httpGet: {port: 80, host: other}}}]}\n"
	foreign := "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: shop}\nspec: {rules: [{matches: [{path: {type: Exakt, value: /}}]}], parentRefs: [{name: g}]}\n"
	mesh := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: 'trustDomain: [a]'}\n"
	for _, tc := range []struct {
		name, now, before string
		allowed           bool
		says              string
	}{
		{"good", route("a", goodSpec), "", true, ""},
		{"bad", route("a", badSpec), "", false, `VirtualService shop/a: spec.hosts[0]: "a b" contains white space`},
		{"bad, another", route("other", "{hosts: [a], http: [{route: [{destination: {host: 'x y'}}]}]}"), "", false, `VirtualService shop/other: spec.http[0].route[0].destination.host: "x y"`},
		{"every field", route("a", badSpec), "", false, "spec.http[0]: route, redirect, directResponse or delegate is required"},
		{"doubtful", route("a", doubtful), "", true, "spec.http[1]: is never reached"},
		{"good to bad", route("a", badSpec), route("a", goodSpec), false, "contains white space"},
		{"bad stays", strings.Replace(route("a", badSpec), "{name: a", "{labels: {x: z}, name: a", 1), route("a", badSpec), true, "contains white space"},
		{"bad to good", route("a", goodSpec), route("a", badSpec), true, ""},
		{"unknown field", "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: shop}\nspec: {rules: [{form: []}]}\n", "", false, `spec.rules[0].form: unknown field (did you mean "from"?)`},
		{"probe of another host", pod, "", true, `spec.containers[0].livenessProbe.httpGet.host: kubelet asks "other"`},
		{"other people's kind", foreign, "", true, "did you mean Exact?"},
		{"mesh configuration", mesh, "", false, "data.mesh.trustDomain: must be a string"},
		{"mesh configuration, good", strings.Replace(mesh, "[a]", "a", 1), "", true, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := h.Review(request(t, tc.now, tc.before))
			text := strings.Join(got.Warnings, "\n")
			if got.Result != nil {
				text += got.Result.Message
			}
			if got.Allowed != tc.allowed || got.UID != "u" || !strings.Contains(text, tc.says) || (tc.says == "") != (text == "") {
				t.Errorf("allowed %t: %s", got.Allowed, text)
			}
			if tc.name == "unknown field" && got.Result.Details.Causes[0].Message != `unknown field (did you mean "from"?)` {
				t.Errorf("%+v", got.Result.Details.Causes)
			}
			if !got.Allowed && (got.Result.Code != http.StatusUnprocessableEntity || len(got.Result.Details.Causes) == 0 || got.Result.Details.Causes[0].Field == "") {
				t.Errorf("%+v", got.Result)
			}
		})
	}
	gone := request(t, route("a", badSpec), "")
	gone.Operation, gone.OldObject, gone.Object = admissionv1.Delete, gone.Object, runtime.RawExtension{}
	if got := h.Review(gone); !got.Allowed {
		t.Errorf("a removal is refused: %+v", got)
	}
}

// TestReviewIsBounded: however much is wrong, the answer is short.
func TestReviewIsBounded(t *testing.T) {
	h := handler(t)
	many := strings.Repeat("'"+strings.Repeat("a", 400)+" b',", 500)
	got := h.Review(request(t, route("a", "{hosts: ["+many+"], http: [{route: [{destination: {host: a}}]}]}"), ""))
	if got.Allowed || len(got.Result.Message) > 4096 || len(got.Result.Details.Causes) > maxErrors || !strings.Contains(got.Result.Message, "and 9") {
		t.Errorf("%t, %d bytes", got.Allowed, len(got.Result.Message))
	}
	old := request(t, route("a", "{hosts: ["+many+"], http: [{route: [{destination: {host: a}}]}]}"), route("a", "{hosts: ["+many+"], http: [{route: [{destination: {host: a}}]}]}"))
	got = h.Review(old)
	size := 0
	for _, w := range got.Warnings {
		size += len(w)
	}
	if !got.Allowed || len(got.Warnings) > maxWarnings+1 || size > (maxWarnings+1)*(maxWarning+3) {
		t.Errorf("%t, %d warnings, %d bytes", got.Allowed, len(got.Warnings), size)
	}
}

func TestServe(t *testing.T) {
	h := handler(t)
	review := func(manifest string) string {
		b, err := json.Marshal(admissionv1.AdmissionReview{TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"}, Request: request(t, manifest, "")})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, tc := range []struct {
		name, method, path, body string
		code                     int
	}{
		{"good", "POST", Path, review(route("a", goodSpec)), http.StatusOK},
		{"bad", "POST", Path, review(route("a", badSpec)), http.StatusOK},
		{"no JSON", "POST", Path, "{", http.StatusBadRequest},
		{"no request", "POST", Path, "{}", http.StatusBadRequest},
		{"too large", "POST", Path, `{"kind":"` + strings.Repeat("x", maxBody) + `"}`, http.StatusRequestEntityTooLarge},
		{"another method", "GET", Path, "", http.StatusMethodNotAllowed},
		{"another path", "POST", "/", "", http.StatusNotFound},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(tc.method, tc.path+"?timeout=2s", strings.NewReader(tc.body)))
			if w.Code != tc.code {
				t.Fatalf("%d: %s", w.Code, w.Body)
			}
			if tc.code != http.StatusOK {
				return
			}
			var got admissionv1.AdmissionReview
			if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || got.Kind != "AdmissionReview" || got.APIVersion != "admission.k8s.io/v1" ||
				got.Request != nil || got.Response.Allowed != (tc.name == "good") {
				t.Errorf("%v: %s", err, w.Body)
			}
		})
	}
	if _, err := New(Config{}); err == nil {
		t.Error("a handler without catalogue")
	}
}

func TestTrust(t *testing.T) {
	const name = "istio-validator-istio-system"
	client := fake.NewClientset(&admissionregistration.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name},
		Webhooks: []admissionregistration.ValidatingWebhook{{Name: "a.istio.io"}, {Name: "b.istio.io", ClientConfig: admissionregistration.WebhookClientConfig{CABundle: []byte("old")}}}})
	var log bytes.Buffer
	trust := &Trust{Client: client.AdmissionregistrationV1().ValidatingWebhookConfigurations(), Name: name, Log: slog.New(slog.NewTextHandler(&log, nil))}
	ctx := t.Context()
	bundles := func() string {
		c, err := trust.Client.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return string(c.Webhooks[0].ClientConfig.CABundle) + " " + string(c.Webhooks[1].ClientConfig.CABundle)
	}
	updates := func() (n int) {
		for _, a := range client.Actions() {
			if a.GetVerb() == "update" {
				n++
			}
		}
		return n
	}
	trust.Keep(ctx, []byte("one"))
	trust.Keep(ctx, []byte("one"))
	if bundles() != "one one" || updates() != 1 {
		t.Errorf("%s after %d updates", bundles(), updates())
	}
	trust.Keep(ctx, []byte("one two")) // a rotation
	if bundles() != "one two one two" || updates() != 2 {
		t.Errorf("%s after %d updates", bundles(), updates())
	}
	(&Trust{Client: trust.Client, Name: "none", Log: trust.Log}).Keep(ctx, []byte("x"))
	if strings.Contains(log.String(), "WARN") {
		t.Error(log.String())
	}
	client.PrependReactor("update", "*", func(ktesting.Action) (bool, runtime.Object, error) { return true, nil, errors.New("no right") })
	trust.Keep(ctx, []byte("three"))
	trust.Keep(ctx, []byte("three"))
	if got := strings.Count(log.String(), "no right"); got != 1 {
		t.Errorf("said %d times: %s", got, log.String())
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	trust.Keep(cancelled, []byte("four"))
}

// FuzzServe feeds the door with anything: nothing may panic, and what is no review is refused.
func FuzzServe(f *testing.F) {
	c, err := validate.NewCatalogue()
	if err != nil {
		f.Fatal(err)
	}
	h, err := New(Config{Catalogue: c})
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{"{}", `{"request":{"uid":"u","operation":"CREATE","kind":{"group":"networking.istio.io","kind":"Gateway"},"object":{"apiVersion":"networking.istio.io/v1","kind":"Gateway","spec":{}}}}`,
		`{"request":{"uid":"u","operation":"UPDATE","object":[],"oldObject":{}}}`, `{"request":{"uid":"u","operation":"CREATE","object":"x"}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, Path, bytes.NewReader(body)))
		if w.Code != http.StatusOK && w.Code != http.StatusBadRequest {
			t.Fatal(w.Code)
		}
	})
}
