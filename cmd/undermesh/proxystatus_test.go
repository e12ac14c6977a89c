package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
	"unicode"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/server"
	"github.com/undermesh/undermesh/controller/xds"
)

func proxyClient(id, node string, at time.Time, edit func(map[string]xds.TypeStatus)) xds.ClientStatus {
	types := map[string]xds.TypeStatus{}
	for _, t := range proxyTypes {
		types[t.typ] = xds.TypeStatus{SentGeneration: 7, AckedGeneration: 7, SentAt: at, AckedAt: at}
	}
	if edit != nil {
		edit(types)
	}
	return xds.ClientStatus{ID: id, NodeName: node, ClusterID: "Kubernetes", Connected: at, Types: types}
}

// TestProxyStatusOfLiars: a node that says it is another one hides no line, a pod is called what its token proves, and nothing
// that a node says gets to the terminal as more than text.
func TestProxyStatusOfLiars(t *testing.T) {
	at := time.Unix(1000, 0)
	refused := func(why string) func(map[string]xds.TypeStatus) {
		return func(m map[string]xds.TypeStatus) {
			s := m[api.AuthorizationType]
			s.Refused, s.LastError = true, why
			m[api.AuthorizationType] = s
		}
	}
	const id = "ztunnel~10.0.0.2~ztunnel-2.istio-system~istio-system.svc.cluster.local"
	proved := proxyClient(id, "node4", at.Add(time.Minute), nil)
	proved.Pod = "ztunnel-4.istio-system"
	lines := proxyLines([]server.SyncStatus{{Replica: "istiod-a", Clients: []xds.ClientStatus{
		proxyClient(id, "node2", at, refused("bad policy")),
		proxyClient(id, "node1", at.Add(time.Second), nil),
		proxyClient("ztunnel~1~\x1b[31mz\u202e.istio-system~d", "node3", at, refused("\x1b[2J\x1b]0;x\x07\nztunnel-9 refused nothing\u009b")),
		proved,
	}}}, nil)
	if len(lines) != 4 {
		t.Fatalf("%d lines, want 4: %+v", len(lines), lines)
	}
	byNode := map[string]proxyLine{}
	for _, l := range lines {
		byNode[l.Node] = l
	}
	if s := byNode["node2"].States[api.AuthorizationType]; s != xds.Rejected {
		t.Errorf("node2 is %s", s)
	}
	if byNode["node4"].Name != proved.Pod {
		t.Errorf("node4's proxy is called %q", byNode["node4"].Name)
	}
	text := strings.Join(byNode["node3"].refusals(), "")
	for _, row := range proxyRows(lines)[1:] {
		text += strings.Join(row, " ")
	}
	if i := strings.IndexFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
		t.Errorf("printed is %q", text)
	}
	if !strings.Contains(text, "refused nothing") {
		t.Errorf("the reason is lost: %q", text)
	}
}

// TestIN14ProxyStatus: the lines of all replicas are one table; a workload has what its node's proxy has; the seventh word
// of a line is the control plane's pod whatever the others say.
func TestIN14ProxyStatus(t *testing.T) {
	at := time.Unix(1000, 0)
	stale := func(m map[string]xds.TypeStatus) {
		s := m[api.AddressType]
		s.Pending = true
		m[api.AddressType] = s
		delete(m, api.MeshSettingsType)
	}
	refused := func(m map[string]xds.TypeStatus) {
		s := m[api.AuthorizationType]
		s.Refused, s.LastError = true, "bad policy"
		m[api.AuthorizationType] = s
	}
	replicas := []server.SyncStatus{
		{Replica: "istiod-a", Version: "1.0", Clients: []xds.ClientStatus{
			proxyClient("ztunnel~10.0.0.1~ztunnel-1.istio-system~istio-system.svc.cluster.local", "node1", at, nil),
			proxyClient("ztunnel~10.0.0.2~ztunnel-2.istio-system~istio-system.svc.cluster.local", "node2", at, stale),
			{Connected: at}, // it has said nothing yet
		}},
		{Replica: "istiod-b", Version: "1.1", Clients: []xds.ClientStatus{
			proxyClient("ztunnel~10.0.0.1~ztunnel-1.istio-system~istio-system.svc.cluster.local", "node1", at.Add(time.Second), nil), // it moved
			proxyClient("agent~10.0.0.9~istio-cni-node-1.istio-system~istio-system.svc.cluster.local", "node1", at, refused),
		}},
	}
	pod := func(ns, name, node string, in bool) corev1.Pod {
		p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: corev1.PodSpec{NodeName: node}}
		if in {
			p.Annotations = map[string]string{api.AnnotationRedirection: api.RedirectionEnabled}
		}
		return p
	}
	lines := proxyLines(replicas, []corev1.Pod{pod("foo", "sleep", "node1", true), pod("foo", "httpbin", "node2", true),
		pod("legacy", "sleep", "node1", false), pod("foo", "lost", "node3", true)})
	var out bytes.Buffer
	f := &frame{out: &out}
	if err := f.print(lines, proxyRows(lines)); err != nil {
		t.Fatal(err)
	}
	want := [][]string{
		{"NAME", "CLUSTER", "MESH", "SETTINGS", "POLICIES", "ADDRESSES", "ISTIOD", "VERSION"},
		{"httpbin.foo", "Kubernetes", "NOT-SENT", "SYNCED", "SYNCED", "STALE", "istiod-a", "1.0"},
		{"istio-cni-node-1.istio-system", "Kubernetes", "SYNCED", "SYNCED", "REJECTED", "SYNCED", "istiod-b", "1.1"},
		{"lost.foo", "<none>", "NOT-SENT", "NOT-SENT", "NOT-SENT", "NOT-SENT", "<none>", "<none>"},
		{"sleep.foo", "Kubernetes", "SYNCED", "SYNCED", "SYNCED", "SYNCED", "istiod-b", "1.1"},
		{"ztunnel-1.istio-system", "Kubernetes", "SYNCED", "SYNCED", "SYNCED", "SYNCED", "istiod-b", "1.1"},
		{"ztunnel-2.istio-system", "Kubernetes", "NOT-SENT", "SYNCED", "SYNCED", "STALE", "istiod-a", "1.0"},
	}
	got := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(got) != len(want) {
		t.Fatalf("%d lines, want %d:\n%s", len(got), len(want), out.String())
	}
	for i, line := range got {
		if words := strings.Fields(line); strings.Join(words, " ") != strings.Join(want[i], " ") {
			t.Errorf("line %d: %q\nwant %q", i, words, want[i])
		}
	}
	if why := lines[1].refusals(); len(why) != 1 || !strings.Contains(why[0], "bad policy") || !strings.Contains(why[0], lines[1].Name) {
		t.Errorf("refusals %q", why)
	}
	for wanted, n := range map[string]int{"": 6, "sleep": 1, "sleep.foo": 1, "sleep.bar": 0, "slee": 0} {
		found := 0
		for _, l := range lines {
			if l.matches(wanted, "") {
				found++
			}
		}
		if found != n {
			t.Errorf("%q matches %d lines, want %d", wanted, found, n)
		}
	}
	if lines[1].matches("", "foo") || !lines[1].matches("", "istio-system") {
		t.Error("the namespace is not looked at")
	}
}
