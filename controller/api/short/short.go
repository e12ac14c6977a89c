// Package short leaves out of the content of a resource what its name says already, and puts it back: the name travels
// beside the content, and of a hundred bytes of a workload's content forty are its name once more.
//
// It is pure. Invariant: Restore(name, Shorten(name, m)) equals m for every m that says what it is (a workload without uid
// is none). Only clients that say that they know it (api.DiscoveryShort) are given short contents; to others, Istio's
// ztunnel among them, Restore's result is sent.
package short

import (
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/undermesh/undermesh/controller/api/workloadapi"
)

// Shorten returns the message without what Restore finds in the resource's name. It returns m itself when nothing can be
// left out, else a shallow copy that shares m's parts; m is not modified.
func Shorten(name string, m proto.Message) proto.Message {
	a, ok := m.(*workloadapi.Address)
	if !ok {
		return m
	}
	switch t := a.GetType().(type) {
	case *workloadapi.Address_Workload:
		if cluster, own, ok := podName(name); ok && t.Workload.GetUid() == name && t.Workload.GetClusterId() == cluster &&
			t.Workload.GetNamespace() == own.namespace && t.Workload.GetName() == own.name {
			w := shallow(t.Workload)
			w.Uid, w.ClusterId, w.Namespace, w.Name = "", "", "", ""
			return &workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: w}}
		}
	case *workloadapi.Address_Service:
		if own, label, ok := hostName(name); ok && t.Service.GetNamespace() == own.namespace && t.Service.GetHostname() == own.name &&
			t.Service.GetName() == label {
			s := shallow(t.Service)
			s.Namespace, s.Hostname, s.Name = "", "", ""
			return &workloadapi.Address{Type: &workloadapi.Address_Service{Service: s}}
		}
	}
	return m
}

// Restore fills in, in place, what Shorten left out. Contents and names may be of any origin: one that Shorten did not
// make, or a name that says nothing, leaves the message as it is.
func Restore(name string, m proto.Message) {
	a, ok := m.(*workloadapi.Address)
	if !ok {
		return
	}
	switch t := a.GetType().(type) {
	case *workloadapi.Address_Workload:
		w := t.Workload
		if cluster, own, ok := podName(name); ok && w != nil && w.Uid+w.ClusterId+w.Namespace+w.Name == "" {
			w.Uid, w.ClusterId, w.Namespace, w.Name = name, cluster, own.namespace, own.name
		}
	case *workloadapi.Address_Service:
		s := t.Service
		if own, label, ok := hostName(name); ok && s != nil && s.Namespace+s.Hostname+s.Name == "" {
			s.Namespace, s.Hostname, s.Name = own.namespace, own.name, label
		}
	}
}

type pair struct{ namespace, name string }

// podName reads "CLUSTER//Pod/NAMESPACE/NAME"; ok is false for every other uid.
func podName(uid string) (cluster string, own pair, ok bool) {
	cluster, rest, _ := strings.Cut(uid, "//Pod/")
	own, ok = split(rest)
	return cluster, own, ok && cluster != ""
}

// hostName reads "NAMESPACE/LABEL.REST": the hostname begins with the service's name.
func hostName(resource string) (own pair, label string, ok bool) {
	own, ok = split(resource)
	label, _, _ = strings.Cut(own.name, ".")
	return own, label, ok && label != ""
}

func split(s string) (pair, bool) {
	namespace, name, _ := strings.Cut(s, "/")
	return pair{namespace, name}, namespace != "" && name != "" && !strings.Contains(name, "/")
}

// shallow copies all fields, also those that this build does not know, and none of what they refer to.
func shallow[M proto.Message](m M) M {
	from := m.ProtoReflect()
	to := from.New()
	from.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		to.Set(f, v)
		return true
	})
	to.SetUnknown(from.GetUnknown())
	return to.Interface().(M)
}
