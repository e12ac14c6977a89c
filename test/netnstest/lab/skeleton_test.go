package lab

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// town is the lab's small world: httpbin and sleep of foo on node1, httpbin of bar on node2, a client of legacy on node1.
type town struct {
	*Lab
	fooClient, fooServer, barServer, legacy *Pod
}

func newTown(t *testing.T) *town {
	l := New(t, Config{})
	w := &town{Lab: l}
	for ns, enrolled := range map[string]bool{"foo": true, "bar": true, "legacy": false} {
		l.Namespace(ns, enrolled)
	}
	one, two := l.Nodes[0], l.Nodes[1]
	w.fooServer, w.fooClient = one.Pod("foo", "httpbin"), one.Pod("foo", "sleep")
	w.barServer, w.legacy = two.Pod("bar", "httpbin"), one.Pod("legacy", "sleep")
	for _, p := range []*Pod{w.fooServer, w.barServer} {
		p.Start("samples", "httpbin", "-b", "0.0.0.0:80")
	}
	for _, p := range []*Pod{w.fooServer, w.fooClient, w.barServer} {
		p.Enrolled(true)
	}
	return w
}

// expect polls until a client's curl gives the wanted "status exit-code".
func (w *town) expect(from, to *Pod, want string) {
	w.T.Helper()
	url := fmt.Sprintf("http://%s/ip", to.Addr)
	w.Until(15*time.Second, from.Name+"."+from.Namespace+" → "+to.Name+"."+to.Namespace+" to be "+want, func() error {
		if got := from.Curl(url); got != want {
			return fmt.Errorf("is %q", got)
		}
		return nil
	})
}

// travels asks again and again until a node's connection log has a line with all the texts: enrolment takes a moment to make
// the round of the nodes.
func (w *town) travels(from, to *Pod, n *Node, texts ...string) {
	w.T.Helper()
	w.lines(n, func() { w.expect(from, to, "200 0") }, texts...)
}

// logged waits for a line of a node's connection log that has all the texts.
func (w *town) logged(n *Node, texts ...string) {
	w.T.Helper()
	w.lines(n, func() {}, texts...)
}

func (w *town) lines(n *Node, do func(), texts ...string) {
	w.T.Helper()
	w.Until(10*time.Second, fmt.Sprintf("a line in the log of %s with %q", n.Name, texts), func() error {
		do()
		for line := range strings.Lines(n.Ztunnel.Output()) {
			all := true
			for _, s := range texts {
				all = all && strings.Contains(line, s)
			}
			if all {
				return nil
			}
		}
		return fmt.Errorf("there is none")
	})
}

// TestSkeleton is the mesh in small: capture, the tunnel between nodes, one pass on a node, plain text from outside.
func TestSkeleton(t *testing.T) {
	w := newTown(t)
	for _, from := range []*Pod{w.fooClient, w.legacy} {
		for _, to := range []*Pod{w.fooServer, w.barServer} {
			w.expect(from, to, "200 0")
		}
	}
	w.travels(w.fooClient, w.barServer, w.Nodes[1], `"direction":"inbound"`, "spiffe://cluster.local/ns/foo/sa/sleep", w.barServer.Addr.String())
	w.logged(w.Nodes[0], `"direction":"outbound"`, `"path":"tunnel"`)
	w.travels(w.fooClient, w.fooServer, w.Nodes[0], `"path":"proxied"`)

	t.Run("the server sees the client's address", func(t *testing.T) {
		for _, to := range []*Pod{w.fooServer, w.barServer} {
			out, _ := w.fooClient.Run(10*time.Second, "curl", "-s", "-m", "5", fmt.Sprintf("http://%s/ip", to.Addr))
			if !strings.Contains(out, w.fooClient.Addr.String()) {
				t.Errorf("%s sees %q, want %s", to.Namespace, out, w.fooClient.Addr)
			}
		}
	})
	t.Run("STRICT", func(t *testing.T) {
		w.Apply("strict", "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: istio-system}\nspec: {mtls: {mode: STRICT}}\n")
		w.expect(w.legacy, w.fooServer, "000 56")
		w.expect(w.legacy, w.barServer, "000 56")
		w.expect(w.fooClient, w.fooServer, "200 0")
		w.expect(w.fooClient, w.barServer, "200 0")
		w.lines(w.Nodes[0], func() { w.expect(w.legacy, w.fooServer, "000 56") }, `"reason":"strict_mtls"`, w.legacy.Addr.String())
		w.Delete("strict")
		w.expect(w.legacy, w.fooServer, "200 0")
	})
	t.Run("AZ-12 principals", func(t *testing.T) {
		policy := func(ns, account string) string {
			return fmt.Sprintf("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: only, namespace: %s}\nspec:\n  action: ALLOW\n  rules:\n  - from: [{source: {principals: [\"cluster.local/ns/foo/sa/%s\"]}}]\n", ns, account)
		}
		for _, to := range []*Pod{w.fooServer, w.barServer} {
			w.Apply("only", policy(to.Namespace, "somebody-else"))
			w.expect(w.fooClient, to, "403 0")
			w.expect(w.legacy, to, "403 0")
			w.Apply("only", policy(to.Namespace, "sleep"))
			w.expect(w.fooClient, to, "200 0")
			w.expect(w.legacy, to, "403 0")
			w.Delete("only")
			w.expect(w.legacy, to, "200 0")
		}
	})
	t.Run("un-enrolment", func(t *testing.T) {
		w.Namespace("foo", false)
		w.fooServer.Enrolled(false)
		w.fooClient.Enrolled(false)
		w.expect(w.fooClient, w.fooServer, "200 0")
		w.expect(w.fooClient, w.barServer, "200 0")
		w.Namespace("foo", true)
		w.fooServer.Enrolled(true)
		w.expect(w.fooClient, w.fooServer, "200 0")
	})
	t.Run("release", func(t *testing.T) {
		for _, n := range w.Nodes {
			n.Release()
		}
		w.expect(w.fooClient, w.barServer, "200 0")
	})
}
