package compile_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/policy"
)

func (g generator) endpoint() *networking.WorkloadEntry {
	return &networking.WorkloadEntry{Address: g.pick("10.0.0."+strconv.Itoa(g.IntN(8)), "198.51.100.1", "h.example.com", ""),
		Labels: g.labels(), Ports: map[string]uint32{"http": 7000}, ServiceAccount: g.pick("", "vm"), Weight: uint32(g.IntN(3))}
}

func (g generator) entry(n model.Name) any {
	e := &networkingv1.ServiceEntry{ObjectMeta: g.meta(n)}
	for range 1 + g.IntN(2) {
		e.Spec.Hosts = append(e.Spec.Hosts, g.pick("a.example.com", "b.example.com", "*.example.com",
			g.pick("x", "y")+"."+g.pick("foo", "bar")+".svc.cluster.local"))
	}
	for range g.IntN(3) {
		e.Spec.Addresses = append(e.Spec.Addresses, g.pick("10.0.0."+strconv.Itoa(g.IntN(8)), "10.96.0."+strconv.Itoa(g.IntN(9)),
			"192.0.2.0/24", "192.0.2.1"))
	}
	e.Spec.ExportTo = [][]string{nil, {"."}, {"*"}, {"bar"}, {"~"}}[g.IntN(5)]
	e.Spec.Resolution = networking.ServiceEntry_Resolution(g.IntN(4))
	e.Spec.Location = networking.ServiceEntry_Location(g.IntN(2))
	if g.IntN(2) == 0 { // so that entries are often one service
		e.Spec.ExportTo, e.Spec.Resolution, e.Spec.Location = nil, networking.ServiceEntry_STATIC, networking.ServiceEntry_MESH_EXTERNAL
	}
	e.Spec.Ports = []*networking.ServicePort{{Number: uint32(80 + g.IntN(2)), Name: "http", Protocol: g.pick("HTTP", "tcp", "foo", ""), TargetPort: uint32(g.IntN(3))}}
	if g.IntN(3) == 0 {
		e.Spec.WorkloadSelector = &networking.WorkloadSelector{Labels: g.labels()}
	} else {
		for range g.IntN(3) {
			e.Spec.Endpoints = append(e.Spec.Endpoints, g.endpoint())
		}
	}
	for _, h := range e.Spec.Hosts {
		if g.IntN(2) == 0 {
			e.Status.Addresses = append(e.Status.Addresses, &networking.ServiceEntryAddress{Host: h, Value: "240.240.0." + strconv.Itoa(g.IntN(4))})
		}
	}
	return e
}

func (g generator) workload(n model.Name) any {
	w := &networkingv1.WorkloadEntry{ObjectMeta: g.meta(n)}
	e := g.endpoint()
	w.Spec.Address, w.Spec.Labels, w.Spec.Ports, w.Spec.ServiceAccount = e.Address, e.Labels, e.Ports, e.ServiceAccount
	return w
}

// entry makes an event of a ServiceEntry that began at the given second.
func entry(namespace, name string, since int64, change func(*networking.ServiceEntry)) model.Event {
	e := &networkingv1.ServiceEntry{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, CreationTimestamp: metav1.Unix(since, 0)}}
	e.Spec.Hosts = []string{name + ".example.com"}
	e.Spec.Ports = []*networking.ServicePort{{Number: 80, Name: "http", Protocol: "HTTP"}}
	e.Spec.Resolution = networking.ServiceEntry_STATIC
	e.Spec.Endpoints = []*networking.WorkloadEntry{{Address: "203.0.113.66"}}
	change(&e.Spec)
	return model.Event{Kind: model.KindServiceEntry, Name: model.Name{Namespace: namespace, Name: name}, Object: e}
}

// holders returns the services that have the address, by name.
func holders(c *compile.Compiler, ip string) string {
	var out []string
	for _, r := range c.Resources() {
		a, ok := r.Message.(*workloadapi.Address)
		if !ok || a.GetService() == nil {
			continue
		}
		for _, alias := range r.Aliases {
			if alias == "/"+ip {
				out = append(out, r.Name)
			}
		}
	}
	return strings.Join(out, " ")
}

// TestEntriesTakeNobodysAddress: whatever the order of events, a ServiceEntry does not get the traffic of a service, a pod
// or a node.
func TestEntriesTakeNobodysAddress(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "victim", Name: "p"}, Status: corev1.PodStatus{PodIP: "10.0.0.1"}}
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "victim", Name: "s"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1"}}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Address: "192.168.0.1"}}}}
	take := func(ip string) model.Event {
		return entry("evil", "thief", 9, func(s *networking.ServiceEntry) { s.Addresses = []string{ip} })
	}
	for name, c := range map[string]struct {
		victim model.Event
		ip     string
		want   string
	}{
		"pod":     {model.Event{Kind: model.KindPod, Name: model.Name{Namespace: "victim", Name: "p"}, Object: pod}, "10.0.0.1", ""},
		"service": {model.Event{Kind: model.KindService, Name: model.Name{Namespace: "victim", Name: "s"}, Object: svc}, "10.96.0.1", "victim/s.victim.svc.cluster.local"},
		"node":    {model.Event{Kind: model.KindNode, Name: model.Name{Name: "n"}, Object: node}, "192.168.0.1", ""},
	} {
		t.Run(name, func(t *testing.T) {
			alone := compile.New(compile.Config{})
			alone.Apply([]model.Event{take(c.ip)})
			if got := holders(alone, c.ip); got != "evil/thief.example.com" {
				t.Fatalf("control: alone the address is of %q", got)
			}
			alone.Apply([]model.Event{c.victim})
			if got := holders(alone, c.ip); got != c.want {
				t.Errorf("the victim came later: the address is of %q, want %q", got, c.want)
			}
			after := compile.New(compile.Config{})
			after.Apply([]model.Event{c.victim})
			after.Apply([]model.Event{take(c.ip)})
			if got := holders(after, c.ip); got != c.want {
				t.Errorf("the victim came first: the address is of %q, want %q", got, c.want)
			}
			after.Apply([]model.Event{{Kind: c.victim.Kind, Name: c.victim.Name}})
			if got := holders(after, c.ip); got != "evil/thief.example.com" {
				t.Errorf("the victim is gone: the address is of %q", got)
			}
		})
	}
}

// TestPrivateEntriesShareAnAddress: entries that no namespace sees both of do not exclude each other.
func TestPrivateEntriesShareAnAddress(t *testing.T) {
	c := compile.New(compile.Config{})
	private := func(s *networking.ServiceEntry) { s.Addresses, s.ExportTo = []string{"192.0.2.1"}, []string{"."} }
	c.Apply([]model.Event{entry("a", "x", 1, private), entry("b", "y", 2, private)})
	if got := holders(c, "192.0.2.1"); got != "a/x.example.com b/y.example.com" {
		t.Errorf("the address is of %q", got)
	}
}

// TestAssignedAddressOfTwo: a restored backup may bring one address twice; the older entry keeps it.
func TestAssignedAddressOfTwo(t *testing.T) {
	c := compile.New(compile.Config{})
	assigned := func(name string, since int64) model.Event {
		e := entry("a", name, since, func(*networking.ServiceEntry) {})
		e.Object.(*networkingv1.ServiceEntry).Status.Addresses = []*networking.ServiceEntryAddress{
			{Host: name + ".example.com", Value: "240.240.0.7"}, {Host: name + ".example.com", Value: "10.0.0.1"}}
		return e
	}
	c.Apply([]model.Event{assigned("young", 5), assigned("old", 4)})
	if got := holders(c, "240.240.0.7"); got != "a/old.example.com" {
		t.Errorf("the address is of %q", got)
	}
	if got := holders(c, "10.0.0.1"); got != "" {
		t.Errorf("an address that is not of the pools was taken over from a status: %q", got)
	}
}

// TestEntriesOfOneHost: entries of one namespace and host are one service, with the ports, addresses and endpoints of all, in any
// order of events; one that differs in more than that has no part in it, and its status says in what.
func TestEntriesOfOneHost(t *testing.T) {
	const host = "db.example.com"
	static := func(name string, since int64, ip, vip string, ports ...*networking.ServicePort) model.Event {
		return entry("foo", name, since, func(s *networking.ServiceEntry) {
			s.Hosts, s.Ports, s.Resolution = []string{host}, ports, networking.ServiceEntry_STATIC
			s.Addresses = []string{vip}
			s.Endpoints = []*networking.WorkloadEntry{{Address: ip}}
		})
	}
	a := static("z-oldest", 1, "192.0.2.1", "198.51.100.1", &networking.ServicePort{Number: 80, Name: "http", Protocol: "HTTP"})
	b := static("b", 2, "192.0.2.2", "198.51.100.1", &networking.ServicePort{Number: 3306, Name: "tcp", Protocol: "TCP", TargetPort: 33060},
		&networking.ServicePort{Number: 80, Name: "tcp-80", Protocol: "TCP", TargetPort: 8080})
	other := entry("foo", "c", 3, func(s *networking.ServiceEntry) { s.Hosts, s.Resolution = []string{host}, networking.ServiceEntry_DNS })
	elsewhere := entry("bar", "d", 0, func(s *networking.ServiceEntry) { s.Hosts = []string{host} })
	for _, order := range [][]model.Event{{a, b, other, elsewhere}, {elsewhere, other, b, a}, {b, a, other, elsewhere}} {
		c := compile.New(compile.Config{})
		said := map[string]string{}
		for _, e := range order {
			for _, s := range c.Apply([]model.Event{e}).Status {
				said[s.Key()] = s.Message
			}
		}
		var got []string
		for _, r := range c.Resources() {
			address, ok := r.Message.(*workloadapi.Address)
			if !ok {
				continue
			}
			if s := address.GetService(); s != nil && r.Name == "foo/"+host {
				got = append(got, fmt.Sprint(s.GetName(), " ", len(s.GetAddresses()), " ", s.GetPorts()))
			}
			if w := address.GetWorkload(); w.GetServices()["foo/"+host] != nil {
				got = append(got, fmt.Sprint(w.GetName(), " ", w.GetServices()["foo/"+host].GetPorts()))
			}
		}
		text := strings.ReplaceAll(strings.Join(got, "\n"), "  ", " ")
		want := `b [service_port:3306 target_port:33060 service_port:80 target_port:8080]
z-oldest [service_port:80 target_port:80]
z-oldest 1 [service_port:80 target_port:80 service_port:3306 target_port:33060]`
		if text != want {
			t.Errorf("got\n%s\nwant\n%s", text, want)
		}
		if got, want := said["ServiceEntry foo/c"], `spec.hosts: "db.example.com" is a host of the older ServiceEntry z-oldest, which has another spec.resolution, which counts`; got != want {
			t.Errorf("status %q, want %q", got, want)
		}
		if said["ServiceEntry foo/b"] != "" || said["ServiceEntry bar/d"] != "" {
			t.Errorf("statuses %v", said)
		}
	}
}

// TestWeightsOfListedPods: a ServiceEntry that lists the addresses of pods weighs them for its own hosts, and for no other service.
func TestWeightsOfListedPods(t *testing.T) {
	const listed = `
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: listed, namespace: shop}
spec:
  hosts: [listed.example]
  resolution: STATIC
  location: MESH_INTERNAL
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 9080}]
  endpoints: [{address: 10.0.1.1, weight: 7}, {address: 10.0.1.2}, {address: 192.0.2.1, weight: 5}]
`
	weights := func(c policy.Caller, cluster string) string {
		spec, ok := c.Cluster(cluster)
		if !ok {
			return "none"
		}
		var out []string
		for _, e := range c.Endpoints(spec) {
			out = append(out, fmt.Sprintf("%s %d", e.Workload.Addrs[0], e.Weight))
		}
		slices.Sort(out)
		return strings.Join(out, ", ")
	}
	const own, service = "outbound|80||listed.example", "outbound|9080||reviews.shop.svc.cluster.local"
	plain := weights(callerIn(t, callWorld(t, ""), "shop/web"), service)
	if !strings.Contains(plain, "10.0.1.1 1") {
		t.Fatalf("endpoints of the service: %s", plain)
	}
	c := callerIn(t, callWorld(t, listed), "shop/web")
	if got, want := weights(c, own), "10.0.1.1 7, 10.0.1.2 1, 192.0.2.1 5"; got != want {
		t.Errorf("of the entry: %s, want %s", got, want)
	}
	if got := weights(c, service); got != plain {
		t.Errorf("of the service: %s, want %s", got, plain)
	}
	svc := c.Snapshot.ServiceByHost("shop", "listed.example")
	drawn := map[string]int{}
	for i := range 13 {
		choice, why := policy.Pick(policy.PickQuery{Snapshot: c.Snapshot, Source: c.Workload, Service: svc, Port: 80}, turns(i))
		if why != reason.None {
			t.Fatal(why)
		}
		drawn[choice.Workload.Addrs[0].String()]++
	}
	if got, want := fmt.Sprint(drawn), "map[10.0.1.1:7 10.0.1.2:1 192.0.2.1:5]"; got != want {
		t.Errorf("connections go to %s, want %s", got, want)
	}
	t.Run("other weights", func(t *testing.T) {
		c := callerIn(t, callWorld(t, strings.Replace(listed, "weight: 7", "weight: 2", 1)), "shop/web")
		if got := weights(c, own); !strings.Contains(got, "10.0.1.1 2") {
			t.Error(got)
		}
	})
}

// turns is a source of chance that says one number.
type turns int

func (n turns) IntN(int) int { return int(n) }
