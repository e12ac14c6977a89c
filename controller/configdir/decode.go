package configdir

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	istioscheme "istio.io/client-go/pkg/clientset/versioned/scheme"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	kubescheme "k8s.io/client-go/kubernetes/scheme"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

const securityGroup = "security.istio.io"

// document is one parsed YAML document; for an overlay entry.Object is nil.
type document struct {
	file  string
	index int
	raw   map[string]any
	entry *Entry
}

// clusterScoped are the kinds without a namespace that a mesh reads.
var clusterScoped = map[string]bool{
	"Namespace": true, "Node": true, "PersistentVolume": true, "ClusterRole": true, "ClusterRoleBinding": true,
	"CustomResourceDefinition": true, "StorageClass": true, "IngressClass": true, "PriorityClass": true, "GatewayClass": true,
}

// fieldError is an error with the path of the field to blame.
type fieldError struct{ field, msg string }

func (e *fieldError) Error() string {
	if e.field == "" {
		return e.msg
	}
	return e.field + ": " + e.msg
}

func parseFile(r rawFile) ([]*document, []Problem) {
	var docs []*document
	var problems []Problem
	seen := map[Key]int{} // object -> document
	reader := utilyaml.NewYAMLReader(bufio.NewReader(strings.NewReader(r.data)))
	for index := 1; ; index++ {
		chunk, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return docs, problems
		}
		if err != nil {
			return docs, append(problems, Problem{File: r.path, Document: index, Message: "read document: " + err.Error()})
		}
		maps, err := parseDocument(chunk)
		if err != nil {
			problems = append(problems, Problem{File: r.path, Document: index, Message: err.Error()})
			continue
		}
		for _, raw := range maps {
			d := &document{file: r.path, index: index, raw: raw}
			d.entry, err = decodeMap(raw, r.overlay)
			if err != nil {
				problems = append(problems, problemOf(d, err))
				continue
			}
			if first := seen[d.entry.Key]; first > 0 && !r.overlay {
				problems = append(problems, Problem{File: r.path, Document: index, Object: d.entry.Key.String(),
					Message: fmt.Sprintf("object is defined already in file %s, document %d", r.path, first)})
				continue
			}
			seen[d.entry.Key] = index
			for _, i := range d.entry.Issues {
				problems = append(problems, Problem{File: r.path, Document: index, Object: d.entry.Key.String(),
					Field: i.Field, Message: i.Message, Carried: true})
			}
			docs = append(docs, d)
		}
	}
}

func problemOf(d *document, err error) Problem {
	p := Problem{File: d.file, Document: d.index, Object: describe(d.raw), Message: err.Error()}
	var fe *fieldError
	if errors.As(err, &fe) {
		p.Field, p.Message = fe.field, fe.msg
	}
	return p
}

// describe names an object that could not be decoded, as well as it can.
func describe(raw map[string]any) string {
	meta, _ := raw["metadata"].(map[string]any)
	text := func(v any) string { s, _ := v.(string); return s }
	return strings.TrimSpace(Key{Kind: text(raw["kind"]), Namespace: text(meta["namespace"]), Name: text(meta["name"])}.String())
}

// parseDocument turns one YAML document into maps: none when it is empty, several for a List.
func parseDocument(chunk []byte) ([]map[string]any, error) {
	data, err := yaml.YAMLToJSONStrict(chunk)
	if err != nil {
		return nil, fmt.Errorf("parse YAML: %s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	var value any
	if err := kjson.UnmarshalCaseSensitivePreserveInts(data, &value); err != nil {
		return nil, fmt.Errorf("parse YAML: %w", err)
	}
	if value == nil {
		return nil, nil
	}
	raw, ok := value.(map[string]any)
	if !ok {
		return nil, errors.New("document is not an object")
	}
	if raw["kind"] != "List" || raw["apiVersion"] != "v1" {
		return []map[string]any{raw}, nil
	}
	items, ok := raw["items"].([]any)
	if !ok {
		return nil, errors.New("List has no items")
	}
	var all []map[string]any
	for i, item := range items {
		m, ok := item.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("items[%d] is not an object", i)
		}
		all = append(all, m)
	}
	return all, nil
}

// Decode turns the JSON form of one object (of an API server, for example) into its typed form with the same strictness
// as a file: fields of a policy that are not understood come back as Issues, for other kinds they are an error.
func Decode(raw map[string]any) (*Entry, error) { return decodeMap(raw, false) }

func decodeMap(raw map[string]any, overlay bool) (*Entry, error) {
	key, gvk, err := keyOf(raw)
	if err != nil {
		return nil, err
	}
	if overlay {
		return &Entry{Key: key}, checkOverlay(raw)
	}
	if strings.HasSuffix(gvk.Group, ".istio.io") {
		return decodeIstio(raw, key, gvk)
	}
	obj := gatewayObject(gvk)
	if obj == nil {
		if obj, err = kubescheme.Scheme.New(gvk); err != nil {
			return nil, &fieldError{"kind", fmt.Sprintf("unknown kind %q of apiVersion %q", gvk.Kind, gvk.GroupVersion())}
		}
	}
	if err := strictInto(raw, obj); err != nil {
		return nil, err
	}
	o, ok := obj.(Object)
	if !ok {
		return nil, &fieldError{"kind", fmt.Sprintf("kind %q is not an object with metadata", gvk.Kind)}
	}
	o.SetNamespace(key.Namespace)
	return &Entry{Key: key, Object: o}, nil
}

// gatewayObject makes the typed object of a kind of the Gateway API, v1 for all versions, whose fields it has; nil for others.
func gatewayObject(gvk schema.GroupVersionKind) runtime.Object {
	if gvk.Group != gatewayv1.GroupName || !slices.Contains([]string{"v1", "v1beta1", "v1alpha3", "v1alpha2"}, gvk.Version) {
		return nil
	}
	switch gvk.Kind {
	case "GatewayClass":
		return &gatewayv1.GatewayClass{}
	case "Gateway":
		return &gatewayv1.Gateway{}
	case "ListenerSet":
		return &gatewayv1.ListenerSet{}
	case "HTTPRoute":
		return &gatewayv1.HTTPRoute{}
	case "GRPCRoute":
		return &gatewayv1.GRPCRoute{}
	case "TCPRoute":
		return &gatewayv1.TCPRoute{}
	case "TLSRoute":
		return &gatewayv1.TLSRoute{}
	case "UDPRoute":
		return &gatewayv1.UDPRoute{}
	case "ReferenceGrant":
		return &gatewayv1.ReferenceGrant{}
	case "BackendTLSPolicy":
		return &gatewayv1.BackendTLSPolicy{}
	}
	return nil
}

func keyOf(raw map[string]any) (Key, schema.GroupVersionKind, error) {
	apiVersion, _ := raw["apiVersion"].(string)
	kind, _ := raw["kind"].(string)
	gv, err := schema.ParseGroupVersion(apiVersion)
	if err != nil || apiVersion == "" {
		return Key{}, schema.GroupVersionKind{}, &fieldError{"apiVersion", fmt.Sprintf("%q is not an API version", apiVersion)}
	}
	if kind == "" {
		return Key{}, schema.GroupVersionKind{}, &fieldError{"kind", "is missing"}
	}
	meta, _ := raw["metadata"].(map[string]any)
	name, _ := meta["name"].(string)
	namespace, _ := meta["namespace"].(string)
	if bad := validation.IsDNS1123Subdomain(name); len(bad) > 0 && !strings.HasSuffix(gv.Group, "rbac.authorization.k8s.io") {
		return Key{}, schema.GroupVersionKind{}, &fieldError{"metadata.name", fmt.Sprintf("%q is not a name: %s", name, bad[0])}
	}
	if clusterScoped[kind] {
		namespace = ""
	} else if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	if namespace != "" {
		if bad := validation.IsDNS1123Label(namespace); len(bad) > 0 {
			return Key{}, schema.GroupVersionKind{}, &fieldError{"metadata.namespace", fmt.Sprintf("%q is not a name: %s", namespace, bad[0])}
		}
	}
	return Key{Group: gv.Group, Kind: kind, Namespace: namespace, Name: name}, gv.WithKind(kind), nil
}

// strictInto decodes the map and returns the first unknown, duplicate or mistyped field.
func strictInto(raw map[string]any, into any) error {
	data, err := json.Marshal(raw)
	if err != nil {
		return fmt.Errorf("encode object: %w", err)
	}
	strict, err := kjson.UnmarshalStrict(data, into)
	if err == nil && len(strict) > 0 {
		err = strict[0]
	}
	if err == nil {
		return nil
	}
	var at kjson.FieldError
	if errors.As(err, &at) {
		return &fieldError{at.FieldPath(), strings.TrimSpace(strings.Split(err.Error(), `"`)[0])}
	}
	var typed *json.UnmarshalTypeError
	if errors.As(err, &typed) {
		return &fieldError{typed.Field, fmt.Sprintf("is a %s, want %s", typed.Value, typed.Type)}
	}
	return &fieldError{"", strings.TrimPrefix(err.Error(), "json: ")}
}

func decodeIstio(raw map[string]any, key Key, gvk schema.GroupVersionKind) (*Entry, error) {
	// The versions of one kind have one Go representation apart from the type's package: the newest, where there is one.
	if newest := gvk.GroupKind().WithVersion("v1"); istioscheme.Scheme.Recognizes(gvk) && istioscheme.Scheme.Recognizes(newest) {
		gvk = newest
	}
	obj, err := istioscheme.Scheme.New(gvk)
	if err != nil {
		return nil, &fieldError{"kind", fmt.Sprintf("unknown kind %q of apiVersion %q", gvk.Kind, gvk.GroupVersion())}
	}
	o, ok := obj.(Object)
	value := reflect.ValueOf(obj).Elem()
	field := value.FieldByName("Spec")
	if !ok || !field.IsValid() {
		return nil, &fieldError{"kind", fmt.Sprintf("kind %q is not an object with a spec", gvk.Kind)}
	}
	spec, ok := field.Addr().Interface().(proto.Message)
	if !ok {
		return nil, &fieldError{"kind", fmt.Sprintf("kind %q has no protobuf spec", gvk.Kind)}
	}
	rest := make(map[string]any, len(raw))
	for k, v := range raw {
		if k != "spec" && k != "status" { // status is ours to write, never to read
			rest[k] = v
		}
	}
	var outside []Issue
	if err := strictInto(rest, obj); err != nil {
		var at *fieldError
		if gvk.Group != securityGroup || !errors.As(err, &at) {
			return nil, err
		}
		outside = []Issue{{at.field, at.msg}}
		o.SetName(key.Name) // when not even the metadata could be read
	}
	clean, issues := cleanMessage(raw["spec"], spec.ProtoReflect().Descriptor(), "spec")
	issues = append(outside, issues...)
	if len(issues) > 0 && gvk.Group != securityGroup {
		return nil, &fieldError{issues[0].Field, issues[0].Message}
	}
	if err := unmarshalProto(clean, spec); err != nil {
		return nil, &fieldError{"spec", err.Error()}
	}
	if entry, ok := o.(*networkingv1.ServiceEntry); ok {
		issues = append(issues, assigned(raw, entry)...)
	}
	o.SetNamespace(key.Namespace)
	return &Entry{Key: key, Object: o, Issues: issues}, nil
}

// assigned reads the one part of a status that is read again: the addresses that the leader gave the entry. What is not
// understood is none.
func assigned(raw map[string]any, into *networkingv1.ServiceEntry) []Issue {
	status, _ := raw["status"].(map[string]any)
	if status["addresses"] == nil {
		return nil
	}
	if err := unmarshalProto(map[string]any{"addresses": status["addresses"]}, &into.Status); err != nil {
		into.Status.Addresses = nil
		return []Issue{{"status.addresses", err.Error()}}
	}
	return nil
}

func unmarshalProto(value any, into proto.Message) error {
	if value == nil {
		return nil
	}
	data, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("encode value: %w", err)
	}
	if err := (protojson.UnmarshalOptions{}).Unmarshal(data, into); err != nil {
		return errors.New(protoMessage(err))
	}
	return nil
}

// protoMessage removes the prefix that protobuf varies on purpose.
func protoMessage(err error) string {
	text := strings.ReplaceAll(err.Error(), "\u00a0", " ")
	text = strings.TrimPrefix(text, "proto: ")
	if _, rest, ok := strings.Cut(text, "): "); ok && strings.HasPrefix(text, "(line") {
		return rest
	}
	return text
}
