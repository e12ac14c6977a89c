// Package support says, for every field of every kind that users may write, what the mesh does with it: the one table that
// statuses, documentation and tests go by. Pure data, no I/O; a leaf.
//
// Invariants, which tests hold: every field of the pinned API versions is decided; a field that is said to have an effect
// changes what the compiler makes, and a field that is said to have none does not.
package support

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"
	extensions "istio.io/api/extensions/v1alpha1"
	mesh "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	networkingbeta "istio.io/api/networking/v1beta1"
	security "istio.io/api/security/v1beta1"
	telemetry "istio.io/api/telemetry/v1alpha1"
	ingressv1 "k8s.io/api/networking/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// State is what happens to a field.
type State string

// States.
const (
	Enforced State = "enforced" // the mesh does what it says
	Carried  State = "carried"  // nodes receive it and do not act on it yet
	Refused  State = "refused"  // it cannot be judged yet: what it is about is denied
	Accepted State = "accepted" // it has no effect yet
	Unused   State = "unused"   // it has no effect by design; the note says why
)

// Milestones that will enforce what is not enforced yet.
const (
	L7       = "3/5" // traffic at layer 7
	Policy   = "4/5" // policy and telemetry at layer 7
	Gateways = "5/5" // gateways and operations
)

// Field is the decision about one field.
type Field struct {
	Path      string // below spec; [] stands for the elements of a list, {} for the values of a map
	State     State
	Milestone string   // that will enforce it; "" when it is enforced, or never will be
	Rows      []string // of the catalogue of capabilities
	Note      string
}

// InForce reports whether the mesh does all that the field says.
func (f Field) InForce() bool { return f.State == Enforced }

// entry decides the field at the path, and all below it: only Enforced is never inherited, so that a field which a
// newer API adds is not claimed. A path "P: a b" is that of P.a and P.b, and of nothing else.
type entry struct {
	path      string
	state     State
	milestone string
	rows      string
	note      string
}

// kind is one kind with its fields.
type kind struct {
	name    string // as in package model
	group   string // API group; "" for what is not an object of its own
	leaves  func() []string
	entries []entry
}

func ofProto(m proto.Message) func() []string {
	return sync.OnceValue(func() []string { return protoLeaves(m.ProtoReflect().Descriptor()) })
}

func ofGo[T any]() func() []string {
	return sync.OnceValue(func() []string { return goLeaves(reflect.TypeFor[T]()) })
}

// kinds is the table. The group of the Gateway API's Gateway is part of its name, as in package model.
var kinds = []kind{
	{"VirtualService", "networking.istio.io", ofProto(&networking.VirtualService{}), virtualService},
	{"DestinationRule", "networking.istio.io", ofProto(&networking.DestinationRule{}), destinationRule},
	{"Gateway", "networking.istio.io", ofProto(&networking.Gateway{}), gateway},
	{"ServiceEntry", "networking.istio.io", ofProto(&networking.ServiceEntry{}), serviceEntry},
	{"WorkloadEntry", "networking.istio.io", ofProto(&networking.WorkloadEntry{}), workloadEntry},
	{"WorkloadGroup", "networking.istio.io", ofProto(&networking.WorkloadGroup{}), workloadGroup},
	{"Sidecar", "networking.istio.io", ofProto(&networking.Sidecar{}), sidecar},
	{"EnvoyFilter", "networking.istio.io", ofProto(&networking.EnvoyFilter{}), envoyFilter},
	{"ProxyConfig", "networking.istio.io", ofProto(&networkingbeta.ProxyConfig{}), proxyConfig},
	{"PeerAuthentication", "security.istio.io", ofProto(&security.PeerAuthentication{}), peerAuthentication},
	{"RequestAuthentication", "security.istio.io", ofProto(&security.RequestAuthentication{}), requestAuthentication},
	{"AuthorizationPolicy", "security.istio.io", ofProto(&security.AuthorizationPolicy{}), authorizationPolicy},
	{"Telemetry", "telemetry.istio.io", ofProto(&telemetry.Telemetry{}), telemetryKind},
	{"WasmPlugin", "extensions.istio.io", ofProto(&extensions.WasmPlugin{}), wasmPlugin},
	{"TrafficExtension", "extensions.istio.io", ofProto(&extensions.TrafficExtension{}), trafficExtension},
	{"MeshConfig", "", ofProto(&mesh.MeshConfig{}), meshConfig},
	{"GatewayClass", "gateway.networking.k8s.io", ofGo[gatewayv1.GatewayClassSpec](), gatewayClass},
	{"Gateway.gateway.networking.k8s.io", "gateway.networking.k8s.io", ofGo[gatewayv1.GatewaySpec](), gatewayAPI},
	{"ListenerSet", "gateway.networking.k8s.io", ofGo[gatewayv1.ListenerSetSpec](), gatewayAPI},
	{"HTTPRoute", "gateway.networking.k8s.io", ofGo[gatewayv1.HTTPRouteSpec](), gatewayAPI},
	{"GRPCRoute", "gateway.networking.k8s.io", ofGo[gatewayv1.GRPCRouteSpec](), gatewayAPI},
	{"TCPRoute", "gateway.networking.k8s.io", ofGo[gatewayv1.TCPRouteSpec](), gatewayAPI},
	{"TLSRoute", "gateway.networking.k8s.io", ofGo[gatewayv1.TLSRouteSpec](), gatewayAPI},
	{"UDPRoute", "gateway.networking.k8s.io", ofGo[gatewayv1.UDPRouteSpec](), udpRoute},
	{"ReferenceGrant", "gateway.networking.k8s.io", ofGo[gatewayv1.ReferenceGrantSpec](), gatewayAPI},
	{"BackendTLSPolicy", "gateway.networking.k8s.io", ofGo[gatewayv1.BackendTLSPolicySpec](), gatewayAPI},
	{"Ingress", "networking.k8s.io", ofGo[ingressv1.IngressSpec](), ingress},
	{"IngressClass", "networking.k8s.io", ofGo[ingressv1.IngressClassSpec](), ingressClass},
}

// decisions are what the tables say: kind → path → decision.
var decisions = sync.OnceValue(func() map[string]map[string]Field {
	all := map[string]map[string]Field{}
	for _, k := range kinds {
		all[k.name] = map[string]Field{}
		for _, leaf := range k.leaves() {
			if e := k.decide(leaf); e != nil {
				all[k.name][leaf] = Field{Path: leaf, State: e.state, Milestone: e.milestone, Rows: strings.Fields(e.rows), Note: e.note}
			}
		}
	}
	return all
})

// Fields returns the decisions about all fields of a kind, by path.
func Fields(kind string) []Field {
	all := decisions()[kind]
	var out []Field
	for _, path := range slices.Sorted(maps.Keys(all)) {
		out = append(out, all[path])
	}
	return out
}

// decide finds the entry that reaches furthest down to the leaf, nil when none does.
func (k kind) decide(leaf string) *entry {
	var best *entry
	most := -1
	for i := range k.entries {
		if n := k.entries[i].reach(leaf); n > most {
			best, most = &k.entries[i], n
		}
	}
	return best
}

// reach is how much of the leaf's path the entry names, -1 when it is not about the leaf.
func (e *entry) reach(leaf string) int {
	head, fields := e.split()
	for _, f := range fields {
		if rest, ok := strings.CutPrefix(leaf, head); ok && rest == "."+f {
			return len(leaf)
		}
	}
	rest, below := strings.CutPrefix(leaf, head)
	switch {
	case fields != nil || !below:
	case rest == "":
		return len(leaf)
	case e.state == Enforced:
	case head == "" || strings.HasPrefix(rest, ".") || strings.HasPrefix(rest, "[]") || strings.HasPrefix(rest, "{}"):
		return len(head)
	}
	return -1
}

// split returns the path, and the fields below it that the entry is about; nil: all of them.
func (e *entry) split() (head string, fields []string) {
	head, list, named := strings.Cut(e.path, ": ")
	if named {
		fields = strings.Fields(list)
	}
	return head, fields
}

// Ineffective returns the fields that the spec sets and that are not in force, sorted by path. The spec is a protobuf message
// or a struct of Kubernetes, as the kind has it. It returns nil for a kind that the table does not have.
func Ineffective(kind string, spec any) []Field {
	table := decisions()[kind]
	if table == nil {
		return nil
	}
	var out []Field
	for _, path := range setPaths(spec) {
		if f, ok := table[path]; ok && !f.InForce() {
			out = append(out, f)
		}
	}
	return out
}

// Text names the fields below spec, most of them at most, and why each is as it is, once for those of one reason.
func Text(fields []Field, most int) string {
	var b strings.Builder
	for i, f := range fields {
		if i == most {
			fmt.Fprintf(&b, " and %d more", len(fields)-most)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString("spec." + strings.ReplaceAll(f.Path, "{}", ""))
		last := i == len(fields)-1 || i == most-1
		if f.Note != "" && (last || fields[i+1].Note != f.Note) {
			b.WriteString(" (" + f.Note + ")")
		}
	}
	return b.String()
}

// Inert reports whether the mesh does nothing with the kind at all.
func Inert(kind string) bool {
	for _, f := range decisions()[kind] {
		if f.State == Enforced || f.State == Carried || f.State == Refused {
			return false
		}
	}
	return true
}

// Count returns how many fields are in each state.
func Count() map[State]int {
	n := map[State]int{}
	for _, fields := range decisions() {
		for _, f := range fields {
			n[f.State]++
		}
	}
	return n
}
