package validate

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"istio.io/api/annotation"

	"github.com/undermesh/undermesh/controller/api"
)

// annotation checks an annotation of Istio's that exists: where it stands, and what it says. kind is that of the object that
// carries it, Pod for a template of pods.
func (w *walker) annotation(key, value, kind, at string) {
	all := annotation.AllResourceAnnotations()
	i := slices.IndexFunc(all, func(a *annotation.Instance) bool { return a.Name == key })
	if i < 0 {
		return
	}
	var kinds []string
	for _, r := range all[i].Resources {
		kinds = append(kinds, r.String())
	}
	if len(kinds) > 0 && !slices.Contains(kinds, "Any") && !slices.Contains(kinds, kind) {
		w.add(Warning, at, "Misplaced annotation: %s can only be applied to %s", key, strings.Join(kinds, ", "))
		w.code(CodeMisplaced)
		return
	}
	if key == annotation.NetworkingExportTo.Name {
		if err := eachOf(value, namespaceSeen); err != nil {
			w.add(Warning, at, "Invalid annotation %s: %s", key, err)
			w.code(CodeAnnotationValue)
		}
		return
	}
	if err := annotationValue(key, value); err != nil {
		w.add(Warning, at, "Invalid annotation %s: %s: it is ignored, and the traffic stays in the mesh", key, err)
		w.code(CodeAnnotationValue)
	}
}

// annotationValue reads what the node agent reads of a pod's annotations (CN-07).
func annotationValue(key, value string) error {
	switch key {
	case api.AnnotationIncludeOutboundIPRanges, api.AnnotationExcludeOutboundIPRanges:
		if strings.TrimSpace(value) == "*" && key == api.AnnotationIncludeOutboundIPRanges {
			return nil
		}
		return eachOf(value, func(s string) error {
			p, err := netip.ParsePrefix(s)
			if err != nil || p.Addr().Is4In6() || p != p.Masked() {
				return fmt.Errorf("%q is not a network in CIDR notation", s)
			}
			return nil
		})
	case api.AnnotationIncludeOutboundPorts, api.AnnotationExcludeOutboundPorts, api.AnnotationExcludeInboundPorts:
		return eachOf(value, portError)
	case api.AnnotationIncludeInboundPorts:
		if strings.TrimSpace(value) != "*" {
			return errors.New("only * is supported; use " + api.AnnotationExcludeInboundPorts)
		}
	}
	return nil
}

// namespaceSeen checks one of the namespaces to which a Service is exported.
func namespaceSeen(text string) error {
	if text == "." || text == "*" || text == "~" || label1123(text) == nil {
		return nil
	}
	return fmt.Errorf("%q is neither a namespace nor \".\" nor \"*\"", text)
}

// eachOf checks the elements of a list with commas; no text is a list without elements.
func eachOf(value string, check func(string) error) error {
	if strings.TrimSpace(value) == "" {
		return nil
	}
	for s := range strings.SplitSeq(value, ",") {
		if err := check(strings.TrimSpace(s)); err != nil {
			return err
		}
	}
	return nil
}
