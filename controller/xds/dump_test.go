package xds

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// TestDumpIsWhatIsServed: in full, by name, with the versions that clients hold, and without what is gone.
func TestDumpIsWhatIsServed(t *testing.T) {
	s := NewStore(StoreConfig{Clock: clock.System()})
	if _, all := s.Dump(api.AddressType); len(all) != 0 {
		t.Fatal("before the first Apply there is", all)
	}
	pod := func(name string) Resource {
		uid := "Kubernetes//Pod/foo/" + name
		return Resource{Type: api.AddressType, Name: uid, Message: &workloadapi.Address{Type: &workloadapi.Address_Workload{
			Workload: &workloadapi.Workload{Uid: uid, Name: name, Namespace: "foo", ClusterId: "Kubernetes"}}}}
	}
	if err := s.Apply(7, []Resource{pod("b"), pod("a"), pod("c")}, []Key{}); err != nil {
		t.Fatal(err)
	}
	if err := s.Apply(8, nil, []Key{{Type: api.AddressType, Name: pod("c").Name}}); err != nil {
		t.Fatal(err)
	}
	generation, all := s.Dump(api.AddressType)
	if generation != 8 || len(all) != 2 {
		t.Fatal(generation, all)
	}
	for i, name := range []string{"a", "b"} {
		got := &workloadapi.Address{}
		if err := all[i].GetResource().UnmarshalTo(got); err != nil {
			t.Fatal(err)
		}
		if want := pod(name); all[i].GetName() != want.Name || all[i].GetVersion() == "" || !proto.Equal(got, want.Message) {
			t.Errorf("%s is %v", want.Name, got)
		}
	}
}
