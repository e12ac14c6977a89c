// Package model keeps the registry that resources are compiled from: pods, services, endpoints, nodes, policies and the
// mesh's configuration, with the indexes that make a change cost what depends on it and no more. Pure data, no I/O.
//
// A Registry has one user at a time; the records in it are immutable and replaced as a whole.
package model

import (
	"net/netip"
	"time"

	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/undermesh/undermesh/controller/api/credential"
	"github.com/undermesh/undermesh/controller/validate"
)

// Kind of an object that the registry knows.
type Kind string

// Kinds.
const (
	KindPod                 Kind = "Pod"
	KindService             Kind = "Service"
	KindEndpointSlice       Kind = "EndpointSlice"
	KindNode                Kind = "Node"
	KindConfigMap           Kind = "ConfigMap"
	KindPeerAuthentication  Kind = "PeerAuthentication"
	KindAuthorizationPolicy Kind = "AuthorizationPolicy"
	// KindCredential is no object's: the controller says by such an event what it made of a Secret. Name is of NameOfCredential, Object
	// a Credential.
	KindCredential Kind = "Credential"
)

// Credential is what was made of a Secret that a DestinationRule names; nothing of what is in it.
type Credential struct {
	Ref     credential.Ref
	Problem string // why it cannot be used; "": it can
}

// Name is the namespace and the name of an object; Namespace is "" for a node.
type Name struct{ Namespace, Name string }

// String is namespace/name.
func (n Name) String() string { return n.Namespace + "/" + n.Name }

// Event says what an object is now.
type Event struct {
	Kind   Kind
	Name   Name
	Object any              // *corev1.Pod or *Pod, *corev1.Service, …; nil: the object is gone. Never modified afterwards
	Issues []validate.Field // fields of the object that the decoder did not understand
	Status map[string]any   // of the object, as the API server has it; nil when there is none. Never modified
}

// NameOfCredential is the name in events about a credential.
func NameOfCredential(ref credential.Ref) Name { return Name{ref.Namespace, ref.String()} }

// Pod is what the mesh needs of a pod.
type Pod struct {
	Name
	UID            types.UID
	Labels         map[string]string
	Node           string
	ServiceAccount string
	IPs            []netip.Addr
	Ports          map[string]uint32 // named TCP ports of the containers; nil for none
	OwnerKind      string
	OwnerName      string
	HostNetwork    bool
	Captured       bool // the node agent finished its redirection
	Ready          bool // ready and not terminating
	Terminating    bool // ready and terminating: it serves those whom nobody else serves
	Mirrored       bool // a node runs it from a file of its own and made the object itself
}

// Service is a Kubernetes service; Skipped says why it is none of the mesh's ("" when it is).
type Service struct {
	*corev1.Service
	Skipped string
}

// Slice is a manual EndpointSlice.
type Slice struct {
	*discoveryv1.EndpointSlice
	Service Name
}

// Locality is where a node is.
type Locality struct{ Region, Zone, Subzone string }

// Node is what the mesh needs of a node.
type Node struct {
	Locality Locality
	IPs      []netip.Addr
}

// PeerAuthentication with what is wrong with it and the workloads it is for.
type PeerAuthentication struct {
	*securityv1.PeerAuthentication
	Findings []validate.Finding
	Labels   map[string]string // none: the whole namespace, or the mesh for the root namespace
	// Unclear is set when its findings leave open which workloads it is for: it is for all of them then, before any other
	// policy of that level.
	Unclear bool
}

// AuthorizationPolicy with what is wrong with it and the workloads it is for.
type AuthorizationPolicy struct {
	*securityv1.AuthorizationPolicy
	// Stands says what the policy stands for: "" for itself, KindRequestAuthentication for one that nodes cannot enforce.
	Stands   Kind
	Findings []validate.Finding
	// Targets are alternatives; none means the whole namespace, or the mesh for the root namespace.
	Targets []Target
	// Local is set when it names objects of its namespace and it is not certain which: without targets it is for its namespace
	// then, also where that is the root namespace.
	Local bool
}

// Target selects workloads by labels or by a service of the policy's namespace.
type Target struct {
	Labels  map[string]string
	Service string
	Gateway string // a Gateway or a GatewayClass, whose pods have the labels; the mesh serves none
	Local   bool   // pods of the policy's namespace only, also where that is the root namespace
}

// Mesh is what the ConfigMap of the mesh says, or the defaults.
type Mesh struct {
	TrustDomain        string
	TrustDomainAliases []string
	RootNamespace      string
	RegistryOnly       bool
	// Config is everything that the ConfigMap says; nil when there is none. Never modified.
	Config *meshv1alpha1.MeshConfig
	// LogEncodingGiven: accessLogEncoding stands in the ConfigMap, whose zero is TEXT.
	LogEncodingGiven bool
	// Untraced: enableTracing is false; where it does not stand it is true.
	Untraced bool
	// SamplingGiven: defaultConfig.tracing.sampling stands in the ConfigMap, whose zero is not its default.
	SamplingGiven bool
}

func olderThan(aTime, bTime time.Time, a, b Name) bool {
	if !aTime.Equal(bTime) {
		return aTime.Before(bTime)
	}
	return a.String() < b.String()
}
