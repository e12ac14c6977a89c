package validate

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
)

// SetConfig says what a Set may rely on.
type SetConfig struct {
	// All says that the Set will hold every object there is: what it does not hold does not exist. Without it that is an
	// Info, as the object may be somewhere else.
	All bool
	// Unread are kinds of which objects may exist that the Set does not hold, although All is set: GROUP/KIND, or KIND for
	// the core group. What refers to them is not judged.
	Unread []string
	// RootNamespace has the policies of the whole mesh; default istio-system.
	RootNamespace string
	// ClusterDomain ends the names of services; default cluster.local.
	ClusterDomain string
	// Namespace is that of objects that name none; default "default".
	Namespace string
}

func (c SetConfig) withDefaults() SetConfig {
	c.RootNamespace = cmp.Or(c.RootNamespace, "istio-system")
	c.ClusterDomain = cmp.Or(c.ClusterDomain, "cluster.local")
	c.Namespace = cmp.Or(c.Namespace, "default")
	return c
}

// Set is objects that are judged together. It has one user at a time.
type Set struct {
	cfg       SetConfig
	catalogue *Catalogue
	objects   map[objectID]*member
	order     []*member // as they were added; a member that was replaced stays, and is not in objects
	found     []Finding

	effort *effort // of Together
	places places
	cut    int // how much was found when the effort was over; -1 before
}

// objectID is what an object is known by, whatever version of its API it is written in.
type objectID struct{ group, kind, namespace, name string }

// member is one object of a Set.
type member struct {
	objectID
	labels      map[string]string
	annotations map[string]string
	created     string // RFC 3339, "" when it comes from a file that does not say
	body        any    // see walker.body
	file        string
	at          string // the path inside a list
	node        *yaml.Node
}

// String is namespace/name.
func (m *member) String() string { return m.namespace + "/" + m.name }

// NewSet returns a Set without objects.
func (c *Catalogue) NewSet(cfg SetConfig) *Set {
	return &Set{cfg: cfg.withDefaults(), catalogue: c, objects: map[objectID]*member{}, places: places{}, effort: newEffort(nil, 0), cut: -1}
}

// File adds the objects of a file and checks each of them, as Catalogue.File does. An object that the Set has already is
// replaced. When the context ends, the report says that the file was not checked to its end.
func (s *Set) File(ctx context.Context, name string, data []byte) *Report {
	return s.catalogue.file(fileEffort(ctx.Done(), len(data)), name, data, func(w *walker, n *yaml.Node, at string) { s.put(name, w, n, at) })
}

func (s *Set) put(file string, w *walker, n *yaml.Node, at string) {
	meta, _ := w.whole["metadata"].(map[string]any)
	m := &member{objectID: objectID{w.group, w.kind, w.namespace, w.name}, body: w.body, file: file, at: at, node: n,
		labels: texts(meta["labels"]), annotations: texts(meta["annotations"])}
	m.created, _ = meta["creationTimestamp"].(string)
	if m.namespace == "" && !clusterWide[m.kind] {
		m.namespace = s.cfg.Namespace
	}
	s.objects[m.objectID] = m
	s.order = append(s.order, m)
}

// clusterWide are the kinds without a namespace that references lead to.
var clusterWide = map[string]bool{"Namespace": true, "Node": true, "GatewayClass": true, "IngressClass": true}

func texts(v any) map[string]string {
	in, _ := v.(map[string]any)
	out := make(map[string]string, len(in))
	for k, v := range in {
		out[k], _ = v.(string)
	}
	return out
}

// Together judges what only several objects tell: references that lead nowhere, hosts and policies that exclude each other,
// ports and what is said about them. What was found about an object has the place of the object. It ends with an error when
// the context does, and when the objects refer to each other in so many ways that it would take minutes; what was found until
// then is right.
func (s *Set) Together(ctx context.Context) ([]Finding, error) {
	s.found, s.cut, s.effort = nil, -1, newEffort(ctx.Done(), stepsTogether+stepsObject*len(s.order))
	if !s.effort.stop() {
		s.judge()
	}
	if s.cut >= 0 {
		s.found = s.found[:s.cut]
	}
	slices.SortStableFunc(s.found, func(a, b Finding) int {
		return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), strings.Compare(a.Kind, b.Kind),
			strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name), strings.Compare(a.Field, b.Field))
	})
	switch err := ctx.Err(); {
	case err != nil:
		return s.found, fmt.Errorf("judge objects together: %w", err)
	case s.cut >= 0:
		return s.found, fmt.Errorf("judge objects together: %d objects refer to each other in more ways than are looked at, and not all was found", len(s.objects))
	}
	return s.found, nil
}

// stepsTogether and stepsObject are the effort for objects that are judged together: for all, and for each of them.
const (
	stepsTogether = 20_000_000
	stepsObject   = 2_000
)

// spend takes steps of what may be done together; false says that it is over, and that what is found from now on is not right.
func (s *Set) spend(n int) bool {
	if s.effort.spend(n) {
		return true
	}
	if s.cut < 0 {
		s.cut = len(s.found)
	}
	return false
}

func (s *Set) judge() {
	s.twice()
	v := newView(s)
	v.virtualServices()
	v.destinationRules()
	v.gateways()
	v.gatewayAPI()
	v.ingresses()
	v.peerAuthentications()
	v.authorizationPolicies()
	v.requestAuthentications()
	v.telemetries()
	v.sidecars()
	v.services()
	v.serviceEntries()
	v.protocolConflicts()
	v.sharedCertificates()
	v.claimRouting()
	v.providers()
	v.ineffective()
}

// twice reports objects that stand in two files.
func (s *Set) twice() {
	first := map[objectID]*member{}
	for _, m := range s.order {
		if m.file == "" || m.name == "" {
			continue // of the cluster, which a file may well change
		}
		if other := first[m.objectID]; other != nil && other.file != m.file {
			s.add(m, Warning, CodeWarning, "metadata.name", "an object of this kind and name stands in %s already; the last one counts", other.file)
		} else if other == nil {
			first[m.objectID] = m
		}
	}
}

// add records a finding about an object. Without all objects it is an Info.
func (s *Set) add(m *member, severity Severity, code, field, format string, args ...any) {
	f := Finding{Severity: severity, Kind: m.kind, Namespace: m.namespace, Name: m.name, Code: code, File: m.file,
		Field: field, Message: fmt.Sprintf(format, args...), Line: s.places.lineOf(m.node, field)}
	if m.at != "" {
		f.Field = join(m.at, field)
	}
	if !s.cfg.All {
		f.Severity = Info
	}
	s.found = append(s.found, f)
}

// hint explains the finding that was added last.
func (s *Set) hint(format string, args ...any) {
	s.found[len(s.found)-1].Hint = fmt.Sprintf(format, args...)
}

// missing records that a reference leads nowhere. what is said as Istio's analyzers do.
func (s *Set) missing(m *member, severity Severity, field, what, name string) {
	s.add(m, severity, CodeReference, field, "Referenced %s not found: %q", what, name)
	if !s.cfg.All {
		s.hint("it is not in what was read")
	}
}

// has says whether the Set holds an object, or cannot know.
func (s *Set) has(group, kind, namespace, name string) bool {
	if s.unread(group, kind) {
		return true
	}
	return s.objects[objectID{group, kind, namespace, name}] != nil
}

// unread says whether there may be objects of the kind that the Set does not hold.
func (s *Set) unread(group, kind string) bool {
	return s.cfg.All && slices.Contains(s.cfg.Unread, strings.TrimPrefix(group+"/"+kind, "/"))
}

// Codes of findings, as Istio's analyzers number them.
const (
	CodeDeprecated        = "IST0002"
	CodeReference         = "IST0101" // leads nowhere
	CodeSchema            = "IST0106"
	CodeMisplaced         = "IST0107" // an annotation that another kind has
	CodeAnnotation        = "IST0108"
	CodeMeshHosts         = "IST0109" // two VirtualServices of one host
	CodeSidecarPods       = "IST0110"
	CodeSidecars          = "IST0111"
	CodePortRequired      = "IST0112"
	CodeTLSConflict       = "IST0113"
	CodeSharedPort        = "IST0116" // called by several protocols
	CodePortName          = "IST0118" // names no protocol
	CodeJWTPort           = "IST0119"
	CodeRegex             = "IST0122"
	CodeAnnotationValue   = "IST0125"
	CodeNoWorkloads       = "IST0127"
	CodeUnverified        = "IST0128"
	CodeUnverifiedPort    = "IST0129"
	CodeUnreachable       = "IST0130"
	CodeSameMatch         = "IST0131" // a condition that stands in front already
	CodeGatewayHost       = "IST0132"
	CodeWarning           = "IST0133"
	CodeEntryAddress      = "IST0134"
	CodeSharedCertificate = "IST0138"
	CodeGatewayConflict   = "IST0145"
	CodeClaimRouting      = "IST0149"
	CodeTelemetryPods     = "IST0159"
	CodeTelemetries       = "IST0160"
	CodeGatewayPort       = "IST0162"
	CodeSubsetPods        = "IST0173"
	CodeRuleHost          = "IST0174" // of a DestinationRule, that nobody has
	CodeEntryProtocol     = "IST0177"
	// Istio has no analyzer for these.
	CodePolicyConflict = "UM0201" // two policies of one level
	CodeTCPFields      = "UM0202" // HTTP fields for a port that is TCP
	CodeUnboundPort    = "UM0203" // a port that no service binds
	CodeLookupPath     = "UM0204" // a DestinationRule that nobody looks up
	CodeEgressLoop     = "UM0205"
	CodeRuleConflict   = "UM0206" // two DestinationRules of one host
	CodeNoGrant        = "UM0207" // a reference to another namespace that no ReferenceGrant allows
	CodeNoListener     = "UM0208" // a route that no listener of its gateway takes
	CodeNotEnforced    = "UM0209" // accepted and without effect yet
	CodeNotCarriedOut  = "UM0210" // a VirtualService with an error
)

// CodeOf is the number of a finding: its own, or that of all findings of its severity.
func (f Finding) CodeOf() string {
	switch {
	case f.Code != "":
		return f.Code
	case f.Message == "is deprecated":
		return CodeDeprecated
	case f.Message == "unknown annotation" || f.Message == "unknown label":
		return CodeAnnotation
	case f.Severity == Error:
		return CodeSchema
	}
	return CodeWarning
}

// workload is pods that are there or that a template makes.
type workload struct {
	*member
	labels map[string]string
	ports  map[string]int32         // named ports of the containers
	entry  bool                     // a WorkloadEntry
	bound  map[uint32][]servicePort // see boundPorts; nil until it was asked for
}

// containerPorts lists the named ports of a pod.
func containerPorts(p *corev1.PodSpec) map[string]int32 {
	out := map[string]int32{}
	for i := range p.Containers {
		for _, port := range p.Containers[i].Ports {
			if port.Name != "" {
				out[port.Name] = port.ContainerPort
			}
		}
	}
	return out
}
