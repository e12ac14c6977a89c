package cluster_test

import (
	"context"
	"encoding/json"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/undermesh/undermesh/test/cluster/cluster"
)

// namespace makes one for the test and removes it afterwards; what is returned runs kubectl in it and fails the test on errors.
func namespace(t *testing.T, s cluster.State, name string) func(stdin string, args ...string) string {
	t.Helper()
	in := func(stdin string, args ...string) string {
		t.Helper()
		return mustKubectl(t, s, stdin, append([]string{"-n", name}, args...)...)
	}
	in("", "create", "namespace", name)
	t.Cleanup(func() {
		if _, err := kubectl(context.Background(), s, "", "delete", "namespace", name, "--timeout=60s"); err != nil {
			t.Error(err)
		}
	})
	return in
}

// TestSamplesAnswer applies the samples as documents do and asks them from a pod on each node.
func TestSamplesAnswer(t *testing.T) {
	s := running(t)
	k := namespace(t, s, "samples-test")
	for _, sample := range []string{"httpbin", "sleep", "helloworld", "tcp-echo"} {
		k("", "apply", "-f", filepath.Join(s.Plan.Root, "deploy/samples", sample, sample+".yaml"))
	}
	for _, node := range []string{"node1", "node2"} {
		k("", "run", "client-"+node, "--image=curlimages/curl", "--image-pull-policy=IfNotPresent", "--overrides",
			`{"spec": {"nodeName": "`+node+`", "terminationGracePeriodSeconds": 0}}`, "--command", "--", "sleep", "infinity")
	}
	for _, d := range []string{"httpbin", "sleep", "helloworld-v1", "helloworld-v2", "tcp-echo"} {
		k("", "rollout", "status", "deployment", d, "--timeout=60s")
	}
	k("", "wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s")
	targets := strings.Fields(k("", "get", "pods", "-l", "app=httpbin", "-o", "jsonpath={.items[*].status.podIP}"))
	for _, client := range []string{"deployment/sleep", "client-node1", "client-node2"} {
		checks := []struct{ command, want string }{
			{"curl -s httpbin:8000/headers", `"Host": "httpbin:8000"`},
			{"curl -s -o /dev/null -w %{http_code} httpbin.samples-test:8000/status/503", `^503$`},
			{"curl -s helloworld:5000/hello", `^Hello version: v[12], instance: helloworld-v[12]-`},
			{"echo world | nc -N tcp-echo 9000", `^hello world$`},
			{"echo world | nc -N tcp-echo.samples-test.svc.cluster.local 9001", `^hello world$`},
			{"curl -s -m 2 nowhere.samples-test/ ; echo $?", `^6$`},
			{"curl -s -m 2 httpbin:8000/ip --connect-to ::tcp-echo:9002 ; echo $?", `^(7|28)$`},
		}
		for _, ip := range targets {
			checks = append(checks, struct{ command, want string }{"curl -s http://" + ip + "/get?x=1", `"x": "1"`})
		}
		for _, c := range checks {
			got := strings.TrimSpace(k("", "exec", client, "--", "sh", "-c", c.command))
			if !regexp.MustCompile(c.want).MatchString(got) {
				t.Errorf("%s: %s: got %q, want %s", client, c.command, got, c.want)
			}
		}
	}
	if log := k("", "logs", "deployment/tcp-echo"); !strings.Contains(log, "request: world") {
		t.Errorf("the log of tcp-echo is %q", log)
	}
}

const webhook = `
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata:
  name: cluster-services-test
webhooks:
- name: probe.services-test.example.com
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Fail
  timeoutSeconds: 3
  namespaceSelector:
    matchLabels:
      kubernetes.io/metadata.name: services-test
  clientConfig:
    service: {namespace: services-test, name: httpbin, port: 8000, path: /post}
  rules:
  - {apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [configmaps]}
`

// TestControlPlaneServesAMesh checks what a mesh asks of a control plane: tokens for its CA, signed CSRs and webhooks to Services.
func TestControlPlaneServesAMesh(t *testing.T) {
	s := running(t)
	k := namespace(t, s, "services-test")
	k("", "create", "serviceaccount", "client")
	token := strings.TrimSpace(k("", "create", "token", "client", "--audience", "istio-ca"))
	for audience, want := range map[string]bool{"istio-ca": true, "other": false} {
		review := `{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": "` + token + `", "audiences": ["` + audience + `"]}}`
		var got struct {
			Status struct {
				Authenticated bool
				User          struct{ Username string }
			}
		}
		if err := json.Unmarshal([]byte(k(review, "create", "-f", "-", "-o", "json")), &got); err != nil {
			t.Fatal(err)
		}
		if got.Status.Authenticated != want || want && got.Status.User.Username != "system:serviceaccount:services-test:client" {
			t.Errorf("review for audience %s: got %+v, want %v", audience, got.Status, want)
		}
	}
	k("", "apply", "-f", filepath.Join(s.Plan.Root, "deploy/samples/httpbin/httpbin.yaml"))
	k("", "rollout", "status", "deployment", "httpbin", "--timeout=60s")
	k(webhook, "apply", "-f", "-")
	t.Cleanup(func() {
		if _, err := kubectl(context.Background(), s, "", "delete", "validatingwebhookconfiguration", "cluster-services-test"); err != nil {
			t.Error(err)
		}
	})
	// httpbin speaks no TLS, and just that shows that the API server reached the pod behind the Service.
	const reached = "server gave HTTP response to HTTPS client"
	if out, err := kubectl(t.Context(), s, "", "-n", "services-test", "create", "configmap", "x"); err == nil || !strings.Contains(out, reached) {
		t.Errorf("webhook call: got %v, %s, want %q", err, out, reached)
	}
}
