package short_test

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/undermesh/undermesh/controller/api/short"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
)

func workload(edit func(*workloadapi.Workload)) *workloadapi.Address {
	w := &workloadapi.Workload{Uid: "K//Pod/ns/pod", ClusterId: "K", Namespace: "ns", Name: "pod", Node: "n",
		Addresses: [][]byte{{10, 0, 0, 1}}, Services: map[string]*workloadapi.PortList{"ns/h": {}}}
	if edit != nil {
		edit(w)
	}
	return &workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: w}}
}

func service(name, namespace, host string) *workloadapi.Address {
	return &workloadapi.Address{Type: &workloadapi.Address_Service{Service: &workloadapi.Service{
		Name: name, Namespace: namespace, Hostname: host, Canonical: true}}}
}

// TestRoundTrip: what comes back is what went in, whatever it was; what can be left out is.
func TestRoundTrip(t *testing.T) {
	for _, c := range []struct {
		what, name string
		m          *workloadapi.Address
		less       bool
	}{
		{"pod", "K//Pod/ns/pod", workload(nil), true},
		{"pod with a field that this build does not know", "K//Pod/ns/pod", workload(func(w *workloadapi.Workload) {
			w.ProtoReflect().SetUnknown([]byte{0xb8, 0x3e, 1})
		}), true},
		{"another cluster than the uid's", "K//Pod/ns/pod", workload(func(w *workloadapi.Workload) { w.ClusterId = "" }), false},
		{"another name than the uid's", "K//Pod/ns/pod", workload(func(w *workloadapi.Workload) { w.Name = "other" }), false},
		{"another uid than the resource's name", "K//Pod/ns/other", workload(nil), false},
		{"slash in the name", "K//Pod/ns/a/b", workload(func(w *workloadapi.Workload) { w.Uid, w.Name = "K//Pod/ns/a/b", "a/b" }), false},
		{"no pod", "K/discovery.k8s.io/EndpointSlice/ns/s/10.0.0.1", workload(func(w *workloadapi.Workload) {
			w.Uid = "K/discovery.k8s.io/EndpointSlice/ns/s/10.0.0.1"
		}), false},
		{"service", "ns/app.ns.svc.cluster.local", service("app", "ns", "app.ns.svc.cluster.local"), true},
		{"service of a free name", "ns/www.example.com", service("entry", "ns", "www.example.com"), false},
		{"wildcard", "ns/*.example.com", service("*", "ns", "*.example.com"), true},
		{"neither", "ns/x", &workloadapi.Address{}, false},
	} {
		before := proto.CloneOf(c.m)
		small := short.Shorten(c.name, c.m)
		if !proto.Equal(c.m, before) {
			t.Errorf("%s: Shorten modified it: %v", c.what, c.m)
		}
		if got := proto.Size(small) < proto.Size(c.m); got != c.less {
			t.Errorf("%s: %d bytes of %d, shorter wanted: %v", c.what, proto.Size(small), proto.Size(c.m), c.less)
		}
		raw, err := proto.Marshal(small)
		if err != nil {
			t.Fatal(err)
		}
		back := &workloadapi.Address{}
		if err := proto.Unmarshal(raw, back); err != nil {
			t.Fatal(err)
		}
		if short.Restore(c.name, back); !proto.Equal(back, before) {
			t.Errorf("%s: came back as %v, want %v", c.what, back, before)
		}
	}
}

// FuzzRestore: any name and content is taken without panic; restoring twice is restoring once; and what was restored can
// be shortened to the same meaning.
func FuzzRestore(f *testing.F) {
	for _, m := range []*workloadapi.Address{workload(nil), service("a", "ns", "a.b"), {}} {
		raw, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add("K//Pod/ns/pod", raw)
		f.Add("ns/a.b", raw)
	}
	f.Fuzz(func(t *testing.T, name string, raw []byte) {
		m := &workloadapi.Address{}
		if proto.Unmarshal(raw, m) != nil {
			return
		}
		short.Restore(name, m)
		once := proto.CloneOf(m)
		if short.Restore(name, m); !proto.Equal(once, m) {
			t.Fatalf("%q: restored twice: %v, once: %v", name, m, once)
		}
		small := proto.CloneOf(short.Shorten(name, m).(*workloadapi.Address))
		if short.Restore(name, small); !proto.Equal(small, m) {
			t.Fatalf("%q: %v came back as %v", name, m, small)
		}
	})
}
