package compile_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	networking "istio.io/api/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/policy"
	"github.com/undermesh/undermesh/controller/validate"
)

// meshOf compiles the texts, one after the other, and returns what a node then has.
func meshOf(t *testing.T, texts ...string) (*compile.Compiler, *client.Snapshot) {
	t.Helper()
	c := compile.New(compile.Config{})
	dir := t.TempDir()
	for i, text := range texts {
		if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(i)+".yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c.Apply(read(t, dir))
	}
	return c, nodeView(t, c)
}

// nodeView is what a node has of everything.
func nodeView(t *testing.T, c *compile.Compiler) *client.Snapshot {
	t.Helper()
	var all []client.Resource
	for _, r := range c.Resources() {
		switch r.Type {
		case api.AddressType, api.CallRuleType, api.RouteRuleType, api.AuthorizationType, api.WorkloadSettingsType, api.ScopeType, api.MeshSettingsType:
			all = append(all, client.Resource{Name: r.Name, Message: r.Message})
		}
	}
	s, err := client.NewSnapshot(all...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// victims are a database behind a headless service, STRICT but for a port that nothing leads to, and a client in another
// namespace.
const victims = `apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: None, selector: {app: db}, ports: [{name: tcp, port: 5432}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db-0, namespace: shop, labels: {app: db}, annotations: {ambient.istio.io/redirection: enabled}}
spec: {nodeName: n1, serviceAccountName: db, containers: [{name: c, image: x}]}
status: {phase: Running, podIP: 10.1.0.1, podIPs: [{ip: 10.1.0.1}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: third, labels: {app: client}, annotations: {ambient.istio.io/redirection: enabled}}
spec: {nodeName: n2, serviceAccountName: client, containers: [{name: c, image: x}]}
status: {phase: Running, podIP: 10.1.1.1, podIPs: [{ip: 10.1.1.1}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: db, namespace: shop}
spec: {selector: {matchLabels: {app: db}}, mtls: {mode: STRICT}, portLevelMtls: {9002: {mode: DISABLE}}}
`

// listings are the ways in which a namespace may list the address of a pod.
func listings(namespace string) map[string]string {
	return map[string]string{
		"ServiceEntry": `apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: a, namespace: ` + namespace + `, labels: {networking.istio.io/enable-autoallocate-ip: "false"}}
spec:
  hosts: [a.listing.example]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 5432, name: tcp, protocol: TCP}, {number: 9002, name: tcp-9002, protocol: TCP}]
  endpoints: [{address: 10.1.0.1}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: a, namespace: ` + namespace + `}
spec: {host: a.listing.example, trafficPolicy: {tls: {mode: DISABLE}}}
`,
		"EndpointSlice": `apiVersion: v1
kind: Service
metadata: {name: a, namespace: ` + namespace + `}
spec: {clusterIP: None, ports: [{name: tcp, port: 5432}, {name: more, port: 9002}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: a, namespace: ` + namespace + `, labels: {kubernetes.io/service-name: a}}
addressType: IPv4
endpoints: [{addresses: [10.1.0.1]}]
ports: [{name: tcp, port: 5432}, {name: more, port: 9002}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: a, namespace: ` + namespace + `}
spec: {host: a.` + namespace + `.svc.cluster.local, trafficPolicy: {tls: {mode: DISABLE}}}
`}
}

// TestListedPodsStayProtected: who lists the address of another namespace's pod changes nothing of how the pod is protected, how
// third parties reach it, or who sees it. Control: the pod's own namespace does, by the same objects.
func TestListedPodsStayProtected(t *testing.T) {
	view := policy.View{Namespace: "third", Scope: &settings.Scope{Egress: []*settings.Egress{{Hosts: []string{"shop/*"}}}}}
	observe := func(texts ...string) (kind policy.Kind, policies []string, sees bool) {
		_, s := meshOf(t, texts...)
		db := s.WorkloadByName("shop", "db-0")
		p := policy.PathFor(policy.PathQuery{Snapshot: s, Source: s.WorkloadByName("third", "client"), Destination: db, Captured: true,
			Address: netip.MustParseAddrPort("10.1.0.1:5432")})
		return p.Kind, db.GetAuthorizationPolicies(), view.SeesWorkload(s, db, 9002)
	}
	kind, policies, sees := observe(victims)
	if kind != policy.Tunnel || !slices.Equal(policies, []string{"istio-system/istio_converted_static_strict"}) || !sees {
		t.Fatal("alone:", kind, policies, sees)
	}
	for how, text := range listings("evil") {
		if k, p, v := observe(victims, text); k != kind || !slices.Equal(p, policies) || v != sees {
			t.Errorf("%s of a stranger: path %v, policies %v, seen %t", how, k, p, v)
		}
	}
	for how, text := range listings("shop") {
		if _, p, _ := observe(victims, text); slices.Equal(p, policies) {
			t.Errorf("control: %s of the pod's namespace: policies %v", how, p)
		}
	}
}

// claim is a ServiceEntry with one host, made in a second, that leads what it declares to 203.0.113.66.
func claim(namespace, name string, since int64, addresses ...string) model.Event {
	return entry(namespace, name, since, func(s *networking.ServiceEntry) { s.Addresses = addresses })
}

// passing is a ServiceEntry that names an address and changes no path.
func passing(namespace, name string, since int64, addresses ...string) model.Event {
	return entry(namespace, name, since, func(s *networking.ServiceEntry) {
		s.Addresses, s.Resolution, s.Endpoints = addresses, networking.ServiceEntry_NONE, nil
	})
}

func nodeAt(address string) model.Event {
	return model.Event{Kind: model.KindNode, Name: model.Name{Name: "n"},
		Object: &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Address: address}}}}}
}

// TestWhoHasAnAddress: a caller's own namespace comes first, whatever others declared before it; among others the first that
// declared the address or a network around it, and of one namespace the most specific. The order of events is nothing to it.
func TestWhoHasAnAddress(t *testing.T) {
	for name, c := range map[string]struct {
		events []model.Event
		callee string            // the dialled address
		want   map[string]string // namespace of the caller → service
	}{
		"control: one": {[]model.Event{claim("foo", "net", 1, "203.0.113.0/24")}, "203.0.113.7",
			map[string]string{"foo": "net", "evil": "net", "third": "net"}},
		"a newer and more specific one": {[]model.Event{claim("foo", "net", 1, "203.0.113.0/24"), claim("evil", "x", 2, "203.0.113.7")},
			"203.0.113.7", map[string]string{"foo": "net", "evil": "x", "third": "net"}},
		"an older one of a stranger": {[]model.Event{claim("evil", "x", 1, "203.0.113.7"), claim("foo", "own", 2, "203.0.113.7")},
			"203.0.113.7", map[string]string{"foo": "own", "evil": "x", "third": "x"}},
		"the first of the alphabet": {[]model.Event{claim("foo", "own", 1, "203.0.113.7"), claim("aaa", "x", 2, "203.0.113.7")},
			"203.0.113.7", map[string]string{"foo": "own", "aaa": "x", "third": "own"}},
		"a part of an older network of the same": {[]model.Event{claim("foo", "net", 1, "203.0.113.0/24"),
			claim("evil", "x", 2, "203.0.113.7"), claim("foo", "part", 3, "203.0.113.7")},
			"203.0.113.7", map[string]string{"foo": "part", "evil": "x", "third": "part"}},
		"half of everything": {[]model.Event{claim("evil", "x", 1, "128.0.0.0/2"), nodeAt("172.30.1.11")},
			"172.30.1.11", map[string]string{"evil": "", "third": ""}},
		"a node": {[]model.Event{claim("evil", "x", 1, "172.30.1.11"), nodeAt("172.30.1.11")},
			"172.30.1.11", map[string]string{"evil": "", "third": ""}},
		"a node, by its name only": {[]model.Event{passing("evil", "x", 1, "172.30.1.11"), nodeAt("172.30.1.11")},
			"172.30.1.11", map[string]string{"evil": "x", "third": ""}},
		"another address of such an entry": {[]model.Event{passing("evil", "x", 1, "172.30.1.11", "203.0.113.7"), nodeAt("172.30.1.11")},
			"203.0.113.7", map[string]string{"evil": "x", "third": ""}},
		"control: no node": {[]model.Event{passing("evil", "x", 1, "172.30.1.11"), nodeAt("172.30.1.12")},
			"172.30.1.11", map[string]string{"evil": "x", "third": "x"}},
		"a node, by the operator": {[]model.Event{passing("istio-system", "x", 1, "172.30.1.11"), nodeAt("172.30.1.11")},
			"172.30.1.11", map[string]string{"evil": "x", "third": "x"}},
	} {
		backward := slices.Clone(c.events)
		slices.Reverse(backward)
		for _, events := range [][]model.Event{c.events, backward} {
			comp := compile.New(compile.Config{})
			for _, e := range events {
				comp.Apply([]model.Event{e})
			}
			s := nodeView(t, comp)
			for ns, want := range c.want {
				got := ""
				if svc := (policy.View{Namespace: ns}).ServiceAt(s, "", netip.AddrPortFrom(netip.MustParseAddr(c.callee), 80)); svc != nil {
					got = svc.GetName()
				}
				if got != want {
					t.Errorf("%s: a caller in %s gets to %q, want %q", name, ns, got, want)
				}
			}
		}
	}
}

// TestNetworksThatHoldTheCluster: a network that holds an address of a pod, a node or a service leads nobody anywhere, while it
// does, and its status says why.
func TestNetworksThatHoldTheCluster(t *testing.T) {
	at := func(kind model.Kind, o any) model.Event {
		return model.Event{Kind: kind, Name: model.Name{Namespace: "victim", Name: "v"}, Object: o}
	}
	meta := metav1.ObjectMeta{Namespace: "victim", Name: "v"}
	for network, victim := range map[string]model.Event{
		"10.0.0.0/8":     at(model.KindPod, &corev1.Pod{ObjectMeta: meta, Status: corev1.PodStatus{PodIP: "10.11.12.13"}}),
		"10.11.12.12/31": at(model.KindPod, &corev1.Pod{ObjectMeta: meta, Status: corev1.PodStatus{PodIP: "10.11.12.13"}}),
		"10.64.0.0/10":   at(model.KindService, &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1"}}),
		"2002::/17":      at(model.KindService, &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{ClusterIP: "2002:7::5"}}),
		"172.30.0.0/16": at(model.KindNode, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "v"},
			Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Address: "172.30.1.11"}}}}),
	} {
		c := compile.New(compile.Config{})
		count := func() int { return c.CountFindings(validate.Error) }
		c.Apply([]model.Event{claim("evil", "x", 1, network)})
		if count() != 0 {
			t.Errorf("control: %s alone: %v", network, c.Findings())
		}
		c.Apply([]model.Event{victim})
		if want := network + " holds addresses of the cluster's pods, services or nodes: this entry does not get its connections"; count() != 1 ||
			c.Findings()[0].Message != want {
			t.Errorf("%s: %v", network, c.Findings())
		}
		if svc := nodeView(t, c).ServiceByHost("evil", "x.example.com"); len(svc.GetAddresses()) != 0 {
			t.Errorf("%s: the service has %v", network, svc.GetAddresses())
		}
		late := compile.New(compile.Config{})
		late.Apply([]model.Event{victim})
		late.Apply([]model.Event{claim("evil", "x", 1, network)})
		if late.CountFindings(validate.Error) != 1 {
			t.Errorf("%s declared later: %v", network, late.Findings())
		}
		c.Apply([]model.Event{{Kind: victim.Kind, Name: victim.Name}})
		if count() != 0 {
			t.Errorf("%s, the victim is gone: %v", network, c.Findings())
		}
	}
}

// TestManyClaimsOfOneAddress: one change among 200 entries with the same 256 addresses costs what the change is.
func TestManyClaimsOfOneAddress(t *testing.T) {
	var all []string
	for i := range 256 {
		all = append(all, "100.64.0."+strconv.Itoa(i))
	}
	c := compile.New(compile.Config{})
	var events []model.Event
	for i := range 200 {
		events = append(events, claim("ns"+strconv.Itoa(i%7), "e"+strconv.Itoa(i), int64(1000-i), all...))
	}
	c.Apply(events)
	best := time.Hour
	for i := range 5 {
		start := time.Now()
		c.Apply([]model.Event{claim("late", "x", 5000+int64(i), all...)})
		best = min(best, time.Since(start))
	}
	t.Log("one change:", best)
	if best > 50*time.Millisecond {
		t.Errorf("one change took %v", best)
	}
}

// TestHostsThatNobodyDeclares: names of Kubernetes services, in all forms, names within other namespaces and short ones are no hosts
// of an entry; and addresses of the pools and of the pod itself are none of its addresses. Control: names that are.
func TestHostsThatNobodyDeclares(t *testing.T) {
	c := compile.New(compile.Config{})
	refused := []string{"reviews", "reviews.shop", "reviews.shop.svc", "reviews.shop.svc.cluster.local", "new.shop.svc.cluster.local",
		"new.shop.svc", "*.shop.svc.cluster.local", "*.svc.cluster.local", "*.cluster.local", "*.local", "*.svc"}
	taken := []string{"a.example", "new.evil.svc.cluster.local", "*.evil.svc.cluster.local", "x.local", "*.example.com"}
	c.Apply([]model.Event{entry("evil", "x", 1, func(s *networking.ServiceEntry) {
		s.Hosts, s.Addresses = slices.Concat(refused, taken), []string{"127.0.0.1", "0.0.0.0/1", "169.254.169.254", "240.240.184.78", "::/0", "203.0.113.7"}
	})})
	c.Apply([]model.Event{plainService(nil)})
	s := nodeView(t, c)
	for _, h := range refused {
		if s.ServiceByHost("evil", h) != nil {
			t.Errorf("%s is a host of evil", h)
		}
	}
	for _, h := range taken {
		svc := s.ServiceByHost("evil", h)
		if svc == nil {
			t.Errorf("control: %s is no host", h)
		} else if len(svc.VIPs) != 1 || len(svc.GetAddresses()) != 1 {
			t.Errorf("%s has the addresses %v", h, svc.GetAddresses())
		}
	}
}
