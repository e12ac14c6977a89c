package compile

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/undermesh/undermesh/controller/model"
)

// gateways tells which objects of the Gateway API are the mesh's: several implementations share one cluster, and none may
// write the status of another's objects.
type gateways struct {
	classes  map[string]bool                // GatewayClass → it is ours
	classOf  map[model.Name]string          // Gateway → GatewayClass
	ofClass  map[string]map[model.Name]bool // GatewayClass → Gateways
	children map[model.Name]map[owner]bool  // Gateway → what is attached to it
	parents  map[owner]map[model.Name]bool  // the reverse
}

func newGateways() gateways {
	return gateways{classes: map[string]bool{}, classOf: map[model.Name]string{}, ofClass: map[string]map[model.Name]bool{},
		children: map[model.Name]map[owner]bool{}, parents: map[owner]map[model.Name]bool{}}
}

// changed takes in an object; nil stands for none. mark is called with what else may be ours now, or not any more.
func (g *gateways) changed(o owner, old, now metav1.Object, mark func(owner)) {
	switch o.kind {
	case model.KindGatewayClass:
		class, ok := now.(*gatewayv1.GatewayClass)
		ours := ok && class.Spec.ControllerName == model.GatewayController
		if g.classes[o.name.Name] == ours {
			return
		}
		delete(g.classes, o.name.Name)
		if ours {
			g.classes[o.name.Name] = true
		}
		for n := range g.ofClass[o.name.Name] {
			g.markGateway(n, mark)
		}
	case model.KindKubeGateway:
		was := g.classOf[o.name]
		gw, ok := now.(*gatewayv1.Gateway)
		class := ""
		if ok {
			class = string(gw.Spec.GatewayClassName)
		}
		if ok && was == class {
			return
		}
		delete(g.classOf, o.name)
		drop(g.ofClass, was, o.name)
		if ok {
			g.classOf[o.name] = class
			put(g.ofClass, class, o.name)
		}
		g.markGateway(o.name, mark)
	default:
		for parent := range g.parents[o] {
			drop(g.children, parent, o)
		}
		delete(g.parents, o)
		for _, ref := range parentRefs(now) {
			if parent, ok := gatewayOf(ref, o.name.Namespace); ok {
				put(g.children, parent, o)
				put(g.parents, o, parent)
			}
		}
	}
}

func (g *gateways) markGateway(n model.Name, mark func(owner)) {
	mark(owner{model.KindKubeGateway, n})
	for child := range g.children[n] {
		mark(child)
	}
}

func put[K, V comparable](index map[K]map[V]bool, k K, v V) {
	if index[k] == nil {
		index[k] = map[V]bool{}
	}
	index[k][v] = true
}

func drop[K, V comparable](index map[K]map[V]bool, k K, v V) {
	delete(index[k], v)
	if len(index[k]) == 0 {
		delete(index, k)
	}
}

// parentRefs returns what an object of the Gateway API is attached to, nil for an object of another kind.
func parentRefs(o metav1.Object) []gatewayv1.ParentReference {
	switch r := o.(type) {
	case *gatewayv1.HTTPRoute:
		return r.Spec.ParentRefs
	case *gatewayv1.GRPCRoute:
		return r.Spec.ParentRefs
	case *gatewayv1.TCPRoute:
		return r.Spec.ParentRefs
	case *gatewayv1.TLSRoute:
		return r.Spec.ParentRefs
	case *gatewayv1.UDPRoute:
		return r.Spec.ParentRefs
	case *gatewayv1.ListenerSet:
		ref := r.Spec.ParentRef
		return []gatewayv1.ParentReference{{Group: ref.Group, Kind: ref.Kind, Namespace: ref.Namespace, Name: ref.Name}}
	}
	return nil
}

// gatewayOf names the Gateway that a reference leads to; ok is false when it leads to something else.
func gatewayOf(ref gatewayv1.ParentReference, namespace string) (n model.Name, ok bool) {
	if (ref.Group != nil && *ref.Group != model.GroupGatewayAPI) || (ref.Kind != nil && *ref.Kind != "Gateway") {
		return model.Name{}, false
	}
	if ref.Namespace != nil {
		namespace = string(*ref.Namespace)
	}
	return model.Name{Namespace: namespace, Name: string(ref.Name)}, true
}

// ofMesh reports whether a reference attaches a route to a service, which is to the mesh.
func ofMesh(ref gatewayv1.ParentReference) bool {
	if ref.Kind == nil {
		return false
	}
	group := ""
	if ref.Group != nil {
		group = string(*ref.Group)
	}
	return (*ref.Kind == "Service" && (group == "" || group == "core")) || (*ref.Kind == "ServiceEntry" && group == model.GroupNetworking)
}

// ours reports whether the status of an object is for us to write, and for a route under which of its parents.
func (g *gateways) ours(o owner, object metav1.Object) (parents []gatewayv1.ParentReference, ok bool) {
	switch o.kind {
	case model.KindGatewayClass:
		return nil, g.classes[o.name.Name]
	case model.KindKubeGateway:
		return nil, g.classes[g.classOf[o.name]]
	case model.KindReferenceGrant, model.KindBackendTLSPolicy, model.KindIngress, model.KindIngressClass:
		return nil, false // without conditions, or with some under ancestors that we do not serve
	}
	refs := parentRefs(object)
	for _, ref := range refs {
		if n, isGateway := gatewayOf(ref, o.name.Namespace); (isGateway && g.classes[g.classOf[n]]) || ofMesh(ref) {
			parents = append(parents, ref)
		}
	}
	if o.kind == model.KindListenerSet {
		return nil, len(parents) > 0
	}
	return parents, true // for a route none is an answer too: what was said before goes
}
