package model

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
)

// AnnotationExportTo says on a Service what exportTo says on other objects, separated by commas.
const AnnotationExportTo = "networking.istio.io/exportTo"

// What exportTo and the hosts of a Sidecar may have in place of a namespace.
const (
	exportAll  = "*"
	exportOwn  = "."
	exportNone = "~"
)

// ExportTo is the namespaces from which an object is seen, sorted: nil is all of them, and the one item "~" none.
type ExportTo []string

// NewExportTo reads the values of an object in a namespace. fallback is what counts when the object says nothing, and is in
// terms of the object's namespace too; when it is empty as well the object is seen from everywhere. Blanks around values
// and empty ones are ignored.
func NewExportTo(values []string, namespace string, fallback []string) ExportTo {
	said := trimmed(values)
	if len(said) == 0 {
		said = trimmed(fallback)
	}
	out := ExportTo{}
	for _, v := range said {
		switch v {
		case exportNone:
			return ExportTo{exportNone}
		case exportOwn:
			v = namespace
		}
		out = append(out, v)
	}
	if len(out) == 0 || slices.Contains(out, exportAll) {
		return nil
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func trimmed(values []string) []string {
	var out []string
	for _, v := range values {
		if v = strings.TrimSpace(v); v != "" {
			out = append(out, v)
		}
	}
	return out
}

// Visible reports whether the object is seen from the namespace.
func (e ExportTo) Visible(from string) bool { return e == nil || slices.Contains(e, from) }

// sameCalls reports whether both say the same of how services are seen and called.
func (m Mesh) sameCalls(o Mesh) bool {
	a, b := m.Config, o.Config
	return slices.Equal(a.GetDefaultServiceExportTo(), b.GetDefaultServiceExportTo()) &&
		slices.Equal(a.GetDefaultVirtualServiceExportTo(), b.GetDefaultVirtualServiceExportTo()) &&
		slices.Equal(a.GetDefaultDestinationRuleExportTo(), b.GetDefaultDestinationRuleExportTo()) &&
		proto.Equal(a.GetDefaultHttpRetryPolicy(), b.GetDefaultHttpRetryPolicy()) && proto.Equal(a.GetTcpKeepalive(), b.GetTcpKeepalive())
}

// ExportTo returns from where the service is seen (IN-36: from everywhere unless it or MeshConfig says otherwise).
func (r *Registry) ExportTo(s *Service) ExportTo {
	return NewExportTo(strings.Split(s.Annotations[AnnotationExportTo], ","), s.Namespace, r.mesh.now.Config.GetDefaultServiceExportTo())
}
