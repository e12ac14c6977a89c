package validate

import (
	"slices"
	"strings"

	"istio.io/api/annotation"
	"istio.io/api/label"
	"k8s.io/apimachinery/pkg/api/validation/path"
	kschema "k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
)

// metadata checks the name, the namespace, the labels and the annotations of an object.
func (c *Catalogue) metadata(w *walker, obj map[string]any, gvk kschema.GroupVersionKind) {
	meta, _ := obj["metadata"].(map[string]any)
	name, _ := meta["name"].(string)
	generate, _ := meta["generateName"].(string)
	switch {
	case name == "" && generate == "" && gvk.Kind != "IstioOperator": // the operator's file is read by install only
		w.add(Error, "metadata.name", "is required")
	case name == "":
	case strings.HasPrefix(gvk.Group, "rbac."): // names with colons
		for _, m := range path.IsValidPathSegmentName(name) {
			w.add(Error, "metadata.name", "%q %s", name, m)
		}
	default:
		for _, m := range validation.IsDNS1123Subdomain(name) {
			w.add(Error, "metadata.name", "%q is not a DNS name: %s", name, m)
		}
	}
	if ns, _ := meta["namespace"].(string); ns != "" {
		for _, m := range validation.IsDNS1123Label(ns) {
			w.add(Error, "metadata.namespace", "%q is not a DNS label: %s", ns, m)
		}
	}
	w.tags(meta, gvk.Kind, "metadata")
	spec, _ := obj["spec"].(map[string]any)
	template, _ := spec["template"].(map[string]any)
	if inner, _ := template["metadata"].(map[string]any); inner != nil {
		w.tags(inner, "Pod", "spec.template.metadata")
	}
}

// tags checks the labels and annotations of something of the kind.
func (w *walker) tags(meta map[string]any, kind, at string) {
	labels, _ := meta["labels"].(map[string]any)
	flat := map[string]string{}
	for k, v := range labels {
		flat[k], _ = v.(string)
	}
	w.selector(flat, at+".labels")
	var known []string
	for _, i := range label.AllResourceLabels() {
		known = append(known, i.Name)
	}
	w.revision(flat["istio.io/rev"], Warning, at+".labels.istio.io/rev")
	if v, set := flat["istio-injection"]; set && v != "enabled" && v != "disabled" {
		w.add(Warning, at+".labels.istio-injection", "%q is neither enabled nor disabled: the label says nothing", v)
		w.suggest(v, []string{"enabled", "disabled"})
	}
	for k := range labels {
		w.known(k, known, at+".labels."+k, "label")
	}
	known = []string{"istio.io/dry-run"}
	for _, i := range annotation.AllResourceAnnotations() {
		known = append(known, i.Name)
	}
	annotations, _ := meta["annotations"].(map[string]any)
	for k := range annotations {
		if m := validation.IsQualifiedName(strings.ToLower(k)); len(m) > 0 {
			w.add(Error, at+".annotations."+k, "%q is not the name of an annotation: %s", k, m[0])
			continue
		}
		w.known(k, known, at+".annotations."+k, "annotation")
		value, _ := annotations[k].(string)
		w.annotation(k, value, kind, at+".annotations."+k)
	}
}

// revision checks the name of a revision, which is a part of the names of its objects.
func (w *walker) revision(text string, severity Severity, at string) {
	if text == "" {
		return
	}
	if m := validation.IsDNS1123Label(text); len(m) > 0 {
		w.add(severity, at, "%q is not the name of a revision, which has lower case letters, digits and \"-\" only", text)
		w.hint("write %s", strings.Trim(strings.ToLower(strings.NewReplacer(".", "-", "_", "-").Replace(text)), "-"))
	}
}

// known warns of a label or an annotation of Istio's domain that is almost one that exists.
func (w *walker) known(key string, names []string, at, what string) {
	domain, _, ok := strings.Cut(key, "/")
	if !ok || !(domain == "istio.io" || strings.HasSuffix(domain, ".istio.io")) || slices.Contains(names, key) {
		return
	}
	w.add(Warning, at, "unknown %s", what)
	if !w.effort.guess(len(names)) {
		return
	}
	w.suggest(key, names)
}
