package client

import (
	"net/netip"
	"slices"
	"testing"

	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
)

// TestHostnames: workloads are found by their hostname while they have it, and other changes leave the hostnames the same.
func TestHostnames(t *testing.T) {
	named := func(uid, host string) Resource {
		return Resource{Message: &workloadapi.Workload{Uid: uid, Name: uid, Namespace: "foo", Hostname: host}}
	}
	apply := func(s *Snapshot, up []Resource, gone ...Key) *Snapshot {
		t.Helper()
		next, err := s.With(s.Generation()+1, up, gone)
		if err != nil {
			t.Fatal(err)
		}
		return next
	}
	s, err := NewSnapshot(named("a", "x.example"), named("b", "x.example"), pod("foo", "p", "10.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	if got := s.WorkloadsByHostname("x.example"); len(got) != 2 || got[0].GetUid() != "a" {
		t.Errorf("got %v", got)
	}
	if !apply(s, []Resource{pod("foo", "q", "10.0.0.2")}).SameHostnames(s) {
		t.Error("another pod changed the hostnames")
	}
	moved := apply(s, []Resource{named("a", "y.example")}, Key{api.AddressType, "b"})
	if moved.SameHostnames(s) || len(moved.WorkloadsByHostname("x.example")) != 0 {
		t.Error("a hostname that is gone is found")
	}
	var got []string
	for namespace, host := range moved.Hostnames() {
		got = append(got, namespace+"/"+host)
	}
	if !slices.Equal(got, []string{"foo/y.example"}) {
		t.Errorf("hostnames %v", got)
	}
}

// TestServicesByIP lists single addresses before networks, and longer networks before shorter ones.
func TestServicesByIP(t *testing.T) {
	service := func(host string, bits uint32) Resource {
		ip := netip.PrefixFrom(netip.MustParseAddr("192.0.2.1"), int(bits)).Masked().Addr()
		return Resource{Message: &workloadapi.Service{Name: host, Namespace: "foo", Hostname: host, Addresses: []*workloadapi.NetworkAddress{
			{Address: ip.AsSlice(), Length: wrapperspb.UInt32(bits)}}}}
	}
	s, err := NewSnapshot(service("wide", 8), service("one", 32), service("net", 24), service("other", 32))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, svc := range s.ServicesByIP("", netip.MustParseAddr("192.0.2.1")) {
		got = append(got, svc.GetHostname())
	}
	if !slices.Equal(got, []string{"one", "other", "net", "wide"}) {
		t.Errorf("got %v", got)
	}
}
