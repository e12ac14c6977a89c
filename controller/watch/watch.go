// Package watch brings the objects of the mesh to the compiler: from a Kubernetes API server (informers) or from a
// directory of YAML. Both coalesce what happens in a short while into one batch, and the first batch is the whole state.
//
// Invariants: an outage of the API server ends nothing, what was seen last stays; a policy that cannot be decoded is
// passed on with the reason, never dropped.
package watch

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/undermesh/undermesh/controller/configdir"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/validate"
)

// Source delivers batches of events until ctx ends. emit is called by one goroutine at a time, first with the complete
// state (possibly no events at all), then with what changed.
type Source interface {
	Run(ctx context.Context, emit func([]model.Event)) error
}

// kindOf maps a typed object to its kind; ok is false for kinds that the mesh does not read.
func kindOf(o any) (kind model.Kind, ok bool) {
	switch o.(type) {
	case *corev1.Pod:
		return model.KindPod, true
	case *corev1.Service:
		return model.KindService, true
	case *corev1.Node:
		return model.KindNode, true
	case *corev1.ConfigMap:
		return model.KindConfigMap, true
	case *discoveryv1.EndpointSlice:
		return model.KindEndpointSlice, true
	}
	return kindOfMesh(o)
}

func fieldsOf(issues []configdir.Issue) []validate.Field {
	var out []validate.Field
	for _, i := range issues {
		out = append(out, validate.Field{Path: i.Field, Message: i.Message})
	}
	return out
}

// Index answers which service accounts have pods on which node, and whose an address is. It is safe for concurrent use.
type Index struct {
	mu    sync.RWMutex // protects below
	pods  map[model.Name]seat
	count map[place]int
	near  map[nearby][]model.Name
	nodes map[string][]netip.Addr
	at    map[netip.Addr]int // nodes and pods of the node accounts that have the address

	accounts []string // immutable: "namespace/account" of the nodes' proxies
}

// seat is where one pod is.
type seat struct {
	place
	uid    types.UID
	ips    []netip.Addr // of a node's proxy only
	labels map[string]string
}

// nearby is what pods of one namespace on one node have in common.
type nearby struct{ node, namespace string }

// place is a service account on a node.
type place struct{ node, namespace, account string }

// NewIndex returns an empty Index. Pods of the accounts, "namespace/account", are nodes' proxies.
func NewIndex(accounts ...string) *Index {
	return &Index{pods: map[model.Name]seat{}, count: map[place]int{}, near: map[nearby][]model.Name{}, nodes: map[string][]netip.Addr{}, at: map[netip.Addr]int{},
		accounts: accounts}
}

// Apply takes in the events about pods and nodes and ignores the others.
func (x *Index) Apply(events []model.Event) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, e := range events {
		if e.Kind == model.KindNode {
			x.nodeLocked(e)
			continue
		}
		if e.Kind != model.KindPod {
			continue
		}
		if old, ok := x.pods[e.Name]; ok {
			delete(x.pods, e.Name)
			x.holdLocked(old.ips, -1)
			if x.count[old.place]--; x.count[old.place] == 0 {
				delete(x.count, old.place)
			}
			at := nearby{old.node, old.namespace}
			x.near[at] = slices.DeleteFunc(x.near[at], func(n model.Name) bool { return n == e.Name })
			if len(x.near[at]) == 0 {
				delete(x.near, at)
			}
		}
		p := model.PodOf(e.Object)
		if p == nil || p.Node == "" || p.Mirrored { // who makes the object itself proves nothing by it
			continue
		}
		at := place{p.Node, p.Namespace, p.ServiceAccount}
		s := seat{at, p.UID, nil, p.Labels}
		if slices.Contains(x.accounts, p.Namespace+"/"+p.ServiceAccount) {
			s.ips = p.IPs
			x.holdLocked(s.ips, 1)
		}
		x.pods[e.Name] = s
		x.count[at]++
		x.near[nearby{p.Node, p.Namespace}] = append(x.near[nearby{p.Node, p.Namespace}], e.Name)
	}
}

func (x *Index) nodeLocked(e model.Event) {
	x.holdLocked(x.nodes[e.Name.Name], -1)
	delete(x.nodes, e.Name.Name)
	n, ok := e.Object.(*corev1.Node)
	if !ok || n == nil {
		return
	}
	var ips []netip.Addr
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil {
			ips = append(ips, ip.Unmap())
		}
	}
	if len(ips) > 0 {
		x.nodes[e.Name.Name] = ips
		x.holdLocked(ips, 1)
	}
}

// holdLocked counts one more, or one less, that has the addresses.
func (x *Index) holdLocked(ips []netip.Addr, change int) {
	for _, ip := range ips {
		if x.at[ip] += change; x.at[ip] == 0 {
			delete(x.at, ip)
		}
	}
}

// OfNode reports whether an address is a node's, or that of a node's proxy.
func (x *Index) OfNode(ip netip.Addr) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.at[ip.Unmap()] > 0
}

// Runs reports whether a pod of the account runs on the node.
func (x *Index) Runs(node, namespace, account string) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.count[place{node, namespace, account}] > 0
}

// Selects reports whether a pod of the namespace that has all the labels runs on the node.
func (x *Index) Selects(node, namespace string, labels map[string]string) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.ContainsFunc(x.near[nearby{node, namespace}], func(n model.Name) bool { return model.Matches(labels, x.pods[n].labels) })
}

// NodeOf returns the node of a pod, "" when the pod is not known, or is another one of the same name: its uid differs from a
// given one.
func (x *Index) NodeOf(n model.Name, uid string) string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	s := x.pods[n]
	if uid != "" && uid != string(s.uid) {
		return ""
	}
	return s.node
}

func nameOf(namespace, name string) model.Name { return model.Name{Namespace: namespace, Name: name} }

func wrongType(o any) string { return fmt.Sprintf("%T", o) }
