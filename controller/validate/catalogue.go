package validate

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	kschema "k8s.io/apimachinery/pkg/runtime/schema"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayv1alpha2 "sigs.k8s.io/gateway-api/apis/v1alpha2"
	gatewayv1alpha3 "sigs.k8s.io/gateway-api/apis/v1alpha3"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"
)

// Catalogue knows the kinds of objects, their fields and their rules. It is safe for concurrent use.
type Catalogue struct {
	kinds map[kschema.GroupVersionKind]*kind

	mu     sync.Mutex // protects below
	protos protoSchemas
	types  goSchemas
}

// kind is one kind of object in one version.
type kind struct {
	once   sync.Once
	schema *schema // nil until made
	make   func() *schema
	rules  func(w *walker, n *yaml.Node, object map[string]any)
}

// NewCatalogue returns the catalogue of everything that this program knows: the kinds of Istio, of the Gateway API and of
// Kubernetes. An error means that a library of kinds cannot be read.
func NewCatalogue() (*Catalogue, error) {
	c := &Catalogue{kinds: map[kschema.GroupVersionKind]*kind{}, protos: protoSchemas{}, types: goSchemas{}}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		clientscheme.AddToScheme, apiextensionsv1.AddToScheme, gatewayv1.Install, gatewayv1beta1.Install, gatewayv1alpha2.Install, gatewayv1alpha3.Install,
	} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("read kinds: %w", err)
		}
	}
	meta := reflect.TypeFor[metav1.ObjectMeta]()
	for gvk, t := range scheme.AllKnownTypes() {
		if f, ok := t.FieldByName("ObjectMeta"); !ok || f.Type != meta || gvk.Version == runtime.APIVersionInternal {
			continue // options and lists
		}
		c.kinds[gvk] = &kind{make: func() *schema { return c.goObject(t) }}
	}
	c.mesh()
	return c, nil
}

func (c *Catalogue) goObject(t reflect.Type) *schema {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.types.of(t)
}

// protoObject is the schema of an object whose spec is a protobuf message.
func (c *Catalogue) protoObject(spec proto.Message) *schema {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := object("apiVersion", of(shapeString), "kind", of(shapeString), "metadata", c.types.of(reflect.TypeFor[metav1.ObjectMeta]()),
		"spec", c.protos.message(spec.ProtoReflect().Descriptor()), "status", of(shapeAny))
	return s
}

// addProto registers a kind whose spec is T in all versions of a group.
func addProto[T proto.Message](c *Catalogue, group string, versions []string, name string, rules func(*collector, T)) {
	var none T
	k := &kind{make: func() *schema { return c.protoObject(none) }}
	k.rules = func(w *walker, _ *yaml.Node, obj map[string]any) {
		spec, ok := none.ProtoReflect().New().Interface().(T)
		if !ok || !w.decode(obj["spec"], spec) {
			return
		}
		w.body = spec
		rules(&w.collector, spec)
	}
	for _, v := range versions {
		c.kinds[kschema.GroupVersionKind{Group: group, Version: v, Kind: name}] = k
	}
}

// decode turns a checked value into a message. A value that the walker let pass and the message does not take is an error.
func (w *walker) decode(v any, into proto.Message) bool {
	if v == nil {
		return true
	}
	text, err := json.Marshal(v)
	if err == nil {
		err = protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(text, into)
	}
	if err != nil {
		w.add(Error, "spec", "cannot be read: %s", strings.ReplaceAll(err.Error(), "\u00a0", " "))
		return false
	}
	return true
}

// addGo registers the rules of a kind of Kubernetes.
func addGo[T any](c *Catalogue, gvk kschema.GroupVersionKind, rules func(*collector, *T)) {
	k := c.kinds[gvk]
	if k == nil {
		return
	}
	k.rules = func(w *walker, _ *yaml.Node, obj map[string]any) {
		typed := new(T)
		text, err := json.Marshal(obj)
		if err == nil {
			err = json.Unmarshal(text, typed)
		}
		if err != nil {
			w.add(Error, "", "cannot be read: %s", err)
			return
		}
		w.body = typed
		rules(&w.collector, typed)
	}
}

// check checks one object. It returns false when its kind is not known.
func (c *Catalogue) check(w *walker, n *yaml.Node, apiVersion, name string) bool {
	if apiVersion == "" || name == "" {
		c.fragment(w, n, apiVersion, name)
		return true
	}
	gv, err := kschema.ParseGroupVersion(apiVersion)
	if err != nil {
		w.add(Error, "apiVersion", "%q is not GROUP/VERSION", apiVersion)
		return true
	}
	gvk := gv.WithKind(name)
	if gone, ok := removedKind(gvk); ok {
		w.add(Error, "apiVersion", "%s %s %s", apiVersion, name, gone.message)
		w.hint("%s", gone.instead)
		return true
	}
	k := c.kinds[gvk]
	if k == nil {
		return c.unknownKind(w, n, gvk)
	}
	k.once.Do(func() { k.schema = k.make() })
	w.sibling = func(field string) string { return c.sibling(gvk, field) }
	obj, _ := w.value(n, k.schema, "").(map[string]any)
	if obj == nil {
		return true
	}
	if spec := k.schema.fields["spec"].schema; spec != nil && spec.shape == shapeObject && childNode(n, "spec") == nil {
		w.required(spec, nil, nil, "spec", false)
	}
	w.group, w.whole = gvk.Group, obj
	c.metadata(w, obj, gvk)
	c.proxyAnnotation(w, childNode(n, "metadata"), "metadata")
	c.proxyAnnotation(w, childNode(childNode(childNode(n, "spec"), "template"), "metadata"), "spec.template.metadata")
	switch {
	case k.rules == nil:
		w.skipped("", "not checked: the meaning of %s, only its form", gvk.Kind)
	case !w.broken:
		told := map[string]bool{}
		for _, f := range w.found {
			told[f.Field] = told[f.Field] || f.Severity == Error
		}
		before := len(w.found)
		k.rules(w, n, obj)
		w.found = append(w.found[:before], slices.DeleteFunc(w.found[before:], func(f Finding) bool { return told[f.Field] })...)
	}
	return true
}

// sibling names another kind of the same name whose spec has the field, as Gateway is one of Istio and one of the Gateway
// API; "" when there is none.
func (c *Catalogue) sibling(gvk kschema.GroupVersionKind, field string) string {
	var out []string
	for other, k := range c.kinds {
		if other.Kind != gvk.Kind || other.Group == gvk.Group {
			continue
		}
		k.once.Do(func() { k.schema = k.make() })
		if spec := k.schema.fields["spec"].schema; spec != nil && spec.shape == shapeObject {
			if f, ok := spec.fields[field]; ok && !f.other {
				out = append(out, other.GroupVersion().String()+" "+other.Kind)
			}
		}
	}
	slices.Sort(out)
	return strings.Join(out[:min(len(out), 1)], "")
}

// fragment reports something that is not an object of its own, and of which kind it may be a part.
func (c *Catalogue) fragment(w *walker, n *yaml.Node, apiVersion, name string) {
	w.kind = "YAML"
	switch {
	case apiVersion == "" && name == "":
		w.add(Error, "", "has no apiVersion and no kind")
	case apiVersion == "":
		w.kind = name
		w.add(Error, "apiVersion", "is required")
		if known := c.versionsOf(name); len(known) > 0 {
			w.hint("for this kind it is %s", strings.Join(known, " or "))
		}
		return
	default:
		w.add(Error, "kind", "is required")
		return
	}
	w.hint("it looks like a fragment of an object: write apiVersion, kind and metadata.name above it")
	var keys []string
	for i := 0; i+1 < len(n.Content); i += 2 {
		keys = append(keys, n.Content[i].Value)
	}
	if spec := childNode(n, "spec"); spec != nil && spec.Kind == yaml.MappingNode && len(keys) == 1 {
		keys = keys[:0]
		for i := 0; i+1 < len(spec.Content); i += 2 {
			keys = append(keys, spec.Content[i].Value)
		}
	}
	if owners := c.owners(keys); len(owners) > 0 {
		w.hint("it looks like a fragment of %s: write apiVersion, kind and metadata.name above it", strings.Join(owners, " or "))
	}
}

// owners lists the kinds of the mesh whose spec has all of the fields.
func (c *Catalogue) owners(fields []string) []string {
	var out []string
	for gvk, k := range c.kinds {
		if len(fields) == 0 || !strings.HasSuffix(gvk.Group, "istio.io") || slices.Contains(out, gvk.Kind) {
			continue
		}
		k.once.Do(func() { k.schema = k.make() })
		spec := k.schema.fields["spec"].schema
		if spec == nil || slices.ContainsFunc(fields, func(f string) bool { _, ok := spec.fields[f]; return !ok }) {
			continue
		}
		out = append(out, gvk.Kind)
	}
	slices.Sort(out)
	if len(out) > 4 {
		return nil
	}
	return out
}

// versionsOf lists the API versions in which a kind exists, without those that were removed.
func (c *Catalogue) versionsOf(name string) []string {
	var out []string
	for gvk := range c.kinds {
		if _, gone := removedKind(gvk); gvk.Kind == name && !gone {
			out = append(out, gvk.GroupVersion().String())
		}
	}
	slices.Sort(out)
	return out
}

// unknownKind tells a kind that is misspelt, which is an error, from one that belongs to somebody else.
func (c *Catalogue) unknownKind(w *walker, n *yaml.Node, gvk kschema.GroupVersionKind) bool {
	var names, groups []string
	groupKnown := false
	for other := range c.kinds {
		if other.Group == gvk.Group {
			groupKnown = true
			names = append(names, other.Kind)
		}
		if other.Kind == gvk.Kind || strings.HasSuffix(other.Group, "istio.io") {
			groups = append(groups, other.Group)
		}
	}
	slices.Sort(names)
	slices.Sort(groups)
	switch versions := c.versionsOf(gvk.Kind); {
	case groupKnown && slices.Contains(names, gvk.Kind):
		w.add(Error, "apiVersion", "%s has no version %q", gvk.Kind, gvk.Version)
		versions = slices.DeleteFunc(versions, func(v string) bool { return !strings.HasPrefix(v, gvk.Group+"/") && gvk.Group != "" })
		w.hint("it is in %s", strings.Join(versions, " or "))
		return true
	case groupKnown:
		w.add(Error, "kind", "%s has no kind %q", gvk.GroupVersion(), gvk.Kind)
		if !w.suggest(gvk.Kind, names) && len(versions) > 0 {
			w.hint("it is in %s", strings.Join(versions, " or "))
		}
		return true
	case misspeltGroup(gvk.Group, groups):
		w.add(Error, "apiVersion", "there is no API group %q", gvk.Group)
		if len(versions) > 0 {
			w.hint("%s is in %s", gvk.Kind, strings.Join(versions, " or "))
		} else {
			w.suggest(gvk.Group, groups)
		}
		return true
	}
	obj, _ := w.value(n, of(shapeAny), "").(map[string]any)
	w.skipped("", "not checked: %s %s is not a kind that this program knows", gvk.GroupVersion(), gvk.Kind)
	c.metadata(w, obj, gvk)
	return false
}

// misspeltGroup says whether a group that nobody knows is meant to be one of those: it is of Istio's domain, or two letters
// away from one of them.
func misspeltGroup(group string, known []string) bool {
	return group == "istio.io" || strings.HasSuffix(group, ".istio.io") ||
		slices.ContainsFunc(known, func(k string) bool { return len(k) > 3 && distance(group, k) <= 2 })
}
