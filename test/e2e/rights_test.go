package e2e

import (
	"context"
	"strings"
	"testing"

	"github.com/undermesh/undermesh/controller/api"
)

// lookAtStatus is what kubectl needs beyond the agent's rights: it reads what it patches.
const lookAtStatus = `apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: e2e-look-at-status}
rules: [{apiGroups: [""], resources: [pods/status], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: e2e-look-at-status}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: e2e-look-at-status}
subjects: [{kind: ServiceAccount, name: istio-cni, namespace: ` + api.DefaultRootNamespace + `}]
`

// TestAgentRights: the agent's token of one node changes one annotation of its own pods, and nothing else of any pod.
func TestAgentRights(t *testing.T) {
	ctx, w := meshed(t)
	own, err := w.OnePod(ctx, "legacy", "sleep")
	check(t, err)
	other, err := w.OnePod(ctx, "bar", "sleep")
	check(t, err)
	node := func(name string) string {
		out, err := w.Kubectl(ctx, "get", "pod", "-A", "--field-selector", "metadata.name="+name, "-o", "jsonpath={.items[0].spec.nodeName}")
		check(t, err)
		return strings.TrimSpace(out)
	}
	if node(own.Metadata.Name) == node(other.Metadata.Name) {
		t.Fatal("both pods are on one node")
	}
	check(t, w.Apply(ctx, lookAtStatus))
	t.Cleanup(func() { check(t, w.Delete(context.Background(), lookAtStatus)) })
	patch := func(namespace, pod, body string) error {
		_, err := w.Kubectl(context.WithoutCancel(ctx), "patch", "pod", "-n", namespace, pod, "--subresource=status", "--type=merge", "-p", body,
			"--as=system:serviceaccount:"+api.DefaultRootNamespace+":istio-cni", "--as-user-extra=authentication.kubernetes.io/node-name="+node(own.Metadata.Name))
		return err
	}
	for _, tc := range []struct{ title, namespace, pod, body, says string }{
		{"a pod of another node", "bar", other.Metadata.Name, `{"metadata":{"annotations":{"` + api.AnnotationRedirection + `":null}}}`, "pods of that node only"},
		{"an address", "legacy", own.Metadata.Name, `{"status":{"podIP":"10.0.0.1","podIPs":[{"ip":"10.0.0.1"}]}}`, "annotation ambient.istio.io/redirection only"},
		{"another annotation", "legacy", own.Metadata.Name, `{"metadata":{"annotations":{"a":"b"}}}`, "annotation ambient.istio.io/redirection only"},
		{"a label", "legacy", own.Metadata.Name, `{"metadata":{"labels":{"app":null}}}`, "annotation ambient.istio.io/redirection only"},
	} {
		if err := patch(tc.namespace, tc.pod, tc.body); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, want %q", tc.title, err, tc.says)
		}
	}
	t.Run("control: its own pod's annotation", func(t *testing.T) {
		check(t, patch("legacy", own.Metadata.Name, `{"metadata":{"annotations":{"`+api.AnnotationRedirection+`":"asked"}}}`))
		check(t, patch("legacy", own.Metadata.Name, `{"metadata":{"annotations":{"`+api.AnnotationRedirection+`":null}}}`))
	})
}
