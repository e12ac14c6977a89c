package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/undermesh/undermesh/controller/api"
)

// TestAdmission: what cannot be done as written is refused with its fields, what is doubtful is told and stored, and what is
// right is stored without a word.
func TestAdmission(t *testing.T) {
	ctx, w := meshed(t)
	check(t, w.AwaitAdmission(ctx, true))
	const spec = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: admitted, namespace: foo}\nspec: "
	mesh := func(text string) string {
		return "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: " + api.DefaultRootNamespace + "}\ndata: {mesh: '" + text + "'}\n"
	}
	pod := func(probe string) string {
		return "apiVersion: v1\nkind: Pod\nmetadata: {name: probed, namespace: foo}\nspec: {containers: [{name: c, image: curlimages/curl, livenessProbe: {httpGet: {" + probe + "}}}]}\n"
	}
	for _, tc := range []struct {
		title, yaml string
		refused     bool
		says        []string
		not         string
	}{
		{"wrong route", wrongRoute, true, []string{`spec.hosts[0]: "httpbin foo" contains white space`, "spec.http[0]: route, redirect, directResponse or delegate is required"}, ""},
		{"wrong expression", spec + "{hosts: [httpbin], http: [{match: [{uri: {regex: '(['}}], route: [{destination: {host: httpbin}}]}]}", true,
			[]string{"spec.http[0].match[0].uri.regex: is not a regular expression"}, ""},
		{"misspelt field of a policy", echoPolicy("admitted", "  rules:\n  - form: [{source: {namespaces: [a]}}]\n"), true, []string{`spec.rules[0].form: unknown field (did you mean "from"?)`}, ""},
		{"IN-33 mesh configuration of a wrong type", mesh("trustDomain: [a]"), true, []string{"data.mesh.trustDomain: must be a string"}, ""},
		{"IN-33 mesh configuration with an unknown field", mesh("trustDomian: a"), false, []string{"Warning: data.mesh.trustDomian: unknown field", `did you mean "trustDomain"?`}, ""},
		{"IN-33 control: a right mesh configuration", mesh("trustDomain: cluster.local"), false, nil, "data.mesh"},
		{"doubtful route", spec + "{hosts: [httpbin], http: [{route: [{destination: {host: httpbin}}]}, {route: [{destination: {host: httpbin}}]}]}", false,
			[]string{"Warning: spec.http[1]: is never reached"}, ""},
		{"probe of another host", pod("port: 80, host: example.com"), false, []string{`Warning: spec.containers[0].livenessProbe.httpGet.host: kubelet asks "example.com"`}, ""},
		{"control: probe of the pod", pod("port: 80"), false, nil, "Warning"},
		{"control: right route", spec + "{hosts: [httpbin], http: [{route: [{destination: {host: httpbin}}]}]}", false, nil, "Warning"},
		{"control: right policy", echoPolicy("admitted", "  rules:\n  - from: [{source: {namespaces: [a]}}]\n"), false, nil, "Warning"},
	} {
		t.Run(tc.title, func(t *testing.T) {
			says, refused, err := w.DryRun(ctx, tc.yaml)
			check(t, err)
			if refused != tc.refused || tc.not != "" && strings.Contains(says, tc.not) {
				t.Errorf("refused: %t: %s", refused, says)
			}
			for _, want := range tc.says {
				if !strings.Contains(says, want) {
					t.Errorf("got %s\nwant %s", says, want)
				}
			}
		})
	}
	t.Run("TR-23 v1 is served, v1beta1 is stored", func(t *testing.T) {
		route := spec + "{hosts: [httpbin], http: [{route: [{destination: {host: httpbin}}]}]}\n"
		t.Cleanup(func() { check(t, w.Delete(context.Background(), route)) })
		check(t, w.Apply(ctx, route))
		out, err := w.Kubectl(ctx, "get", "virtualservice", "-n", "foo", "admitted", "-o", "jsonpath={.apiVersion}")
		check(t, err)
		stored, err := w.Kubectl(ctx, "get", "crd", "virtualservices.networking.istio.io", "-o", `jsonpath={.spec.versions[?(@.storage==true)].name}`)
		check(t, err)
		if out != "networking.istio.io/v1" || stored != "v1beta1" {
			t.Errorf("kubectl shows %s, %s is stored", out, stored)
		}
	})
}

// awaitNoController waits for the last process to end, not only for its pod to be told to.
func (w *World) awaitNoController(ctx context.Context) error {
	return Until(ctx, time.Minute, "the controller to be gone", func(ctx context.Context) error {
		pods, err := w.Pods(ctx, api.DefaultRootNamespace, "app="+api.ControllerName)
		if err == nil && len(pods) > 0 {
			err = errors.New("it is there")
		}
		return err
	})
}

// TestAdmissionAway: without a controller everything is stored; when it is back it refuses to enforce what it cannot, and
// says so.
func TestAdmissionAway(t *testing.T) {
	ctx, w := meshed(t)
	policy := echoPolicy("unseen", "  action: ALLOW\n  rules:\n  - to: [{operation: {ports: [\"http\"]}}]\n")
	check(t, w.AwaitAdmission(ctx, true))
	if says, refused, err := w.DryRun(ctx, policy); err != nil || !refused {
		t.Fatalf("the policy is not wrong: %v, %s", err, says)
	}
	scale := func(ctx context.Context, replicas int) {
		_, err := w.Kubectl(ctx, "scale", "deployment", "-n", api.DefaultRootNamespace, api.ControllerName, fmt.Sprintf("--replicas=%d", replicas))
		check(t, err)
	}
	t.Cleanup(func() {
		ctx := context.Background()
		scale(ctx, 1)
		check(t, w.Delete(ctx, policy))
		check(t, w.AwaitReady(ctx, api.DefaultRootNamespace))
		check(t, w.AwaitAdmission(ctx, true))
		check(t, w.echoCases(ctx, []EchoCase{{"foo", 9000, "accepted"}, {"bar", 9000, "accepted"}}))
	})
	scale(ctx, 0)
	check(t, w.awaitNoController(ctx))
	check(t, w.Apply(ctx, policy))
	scale(ctx, 1)
	check(t, w.AwaitReady(ctx, api.DefaultRootNamespace))
	check(t, w.awaitRefused(ctx, "foo", "unseen", "ports"))
	check(t, w.echoCases(ctx, []EchoCase{{"foo", 9000, "rejected"}, {"bar", 9000, "rejected"}}))
}

// TestIN12Analyze: a namespace without faults is said to have none, in the documents' words; a fault is told with its code.
func TestIN12Analyze(t *testing.T) {
	ctx, w := meshed(t)
	analyze := func(args ...string) (string, int) {
		t.Helper()
		r, err := run(ctx, nil, []string{"KUBECONFIG=" + w.Kubeconfig()}, w.Root+"/bin/undermesh", append([]string{"analyze"}, args...)...)
		check(t, err)
		return r.Out + r.Err, r.Code
	}
	t.Run("IN-12 no issues", func(t *testing.T) {
		if out, code := analyze(); code != 0 || out != "✓ No validation issues found when analyzing namespace: default.\n" {
			t.Errorf("%d: %s", code, out)
		}
	})
	const named = "apiVersion: v1\nkind: Service\nmetadata: {name: details, namespace: default}\nspec: {selector: {app: details}, ports: [{name: foo, port: 9080}]}\n"
	const route = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: details, namespace: default}\nspec: {hosts: [details], http: [{route: [{destination: {host: details, subset: v1}}]}]}\n"
	t.Cleanup(func() { check(t, w.Delete(context.Background(), named+route)) })
	check(t, w.Apply(ctx, named+route))
	t.Run("IN-12 SR-12 a port without protocol, a subset without rule", func(t *testing.T) {
		out, code := analyze()
		for _, want := range []string{"Warning [IST0118] (Service default/details) Port name foo (port: 9080, targetPort: 9080)",
			`Error [IST0101] (VirtualService default/details) Referenced host+subset in destinationrule not found: "details+v1"`} {
			if code != 79 || !strings.Contains(out, want) {
				t.Errorf("%d: %s\nwant %s", code, out, want)
			}
		}
	})
	t.Run("IN-12 control: without them", func(t *testing.T) {
		check(t, w.Delete(ctx, named+route))
		if out, code := analyze(); code != 0 || !strings.HasPrefix(out, "✓") {
			t.Errorf("%d: %s", code, out)
		}
	})
	t.Run("IN-12 all namespaces", func(t *testing.T) {
		out, _ := analyze("-A")
		t.Log(out)
		if strings.Contains(out, "Error [") {
			t.Error("the mesh's own objects have errors")
		}
	})
}

// withoutAdmission takes the API server's question away until the test ends: objects that are wrong are stored then, and the
// controller's own judgement of them is seen.
func withoutAdmission(ctx context.Context, t *testing.T, w *World) {
	t.Helper()
	out, err := w.Kubectl(ctx, "get", "validatingwebhookconfigurations", validator, "-o", "json")
	check(t, err)
	var config map[string]any
	check(t, json.Unmarshal([]byte(out), &config))
	meta, _ := config["metadata"].(map[string]any)
	for _, k := range []string{"creationTimestamp", "generation", "managedFields", "resourceVersion", "uid"} {
		delete(meta, k)
	}
	text, err := json.Marshal(config)
	check(t, err)
	_, err = w.Kubectl(ctx, "delete", "validatingwebhookconfigurations", validator)
	check(t, err)
	t.Cleanup(func() {
		ctx := context.Background()
		_, err := w.KubectlIn(ctx, text, "create", "-f", "-")
		check(t, err)
		check(t, w.AwaitAdmission(ctx, true))
	})
	check(t, w.AwaitAdmission(ctx, false))
}
