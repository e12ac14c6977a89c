// Package watch brings the objects of the mesh to the compiler: from a Kubernetes API server (informers) or from a
// directory of YAML. Both coalesce what happens in a short while into one batch, and the first batch is the whole state.
//
// Invariants: an outage of the API server ends nothing, what was seen last stays; a policy that cannot be decoded is
// passed on with the reason, never dropped.
package watch

import (
	"context"
	"fmt"
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

// Index answers which service accounts have pods on which node. It is safe for concurrent use.
type Index struct {
	mu    sync.RWMutex // protects below
	pods  map[model.Name]seat
	count map[place]int
}

// seat is where one pod is.
type seat struct {
	place
	uid types.UID
}

// place is a service account on a node.
type place struct{ node, namespace, account string }

// NewIndex returns an empty Index.
func NewIndex() *Index { return &Index{pods: map[model.Name]seat{}, count: map[place]int{}} }

// Apply takes in the events about pods and ignores the others.
func (x *Index) Apply(events []model.Event) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, e := range events {
		if e.Kind != model.KindPod {
			continue
		}
		if old, ok := x.pods[e.Name]; ok {
			delete(x.pods, e.Name)
			if x.count[old.place]--; x.count[old.place] == 0 {
				delete(x.count, old.place)
			}
		}
		p := model.PodOf(e.Object)
		if p == nil || p.Node == "" || p.Mirrored { // who makes the object itself proves nothing by it
			continue
		}
		at := place{p.Node, p.Namespace, p.ServiceAccount}
		x.pods[e.Name] = seat{at, p.UID}
		x.count[at]++
	}
}

// Runs reports whether a pod of the account runs on the node.
func (x *Index) Runs(node, namespace, account string) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.count[place{node, namespace, account}] > 0
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
