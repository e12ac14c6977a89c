package model

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"

	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/validate"
)

const meshKey = "mesh"

// meshState is what is known of the mesh's ConfigMap. A configuration that was good stays until the next good one: root
// namespace and trust domain decide which policies there are, so that falling back to the defaults would open the mesh.
type meshState struct {
	now     Mesh
	known   bool // now is what the installation says, not only what the flags say
	present bool // a ConfigMap was taken over
	started bool // the first batch was applied
	bad     []validate.Finding
}

// Mesh returns the configuration in force; it means nothing while MeshKnown is false.
func (r *Registry) Mesh() Mesh { return r.mesh.now }

// MeshKnown reports whether there is a configuration to go by: false from a start with a ConfigMap that is bad (or that is
// missing, with Config.RequireMesh) until it is good. Once true it stays.
func (r *Registry) MeshKnown() bool { return r.mesh.known }

// MeshFindings says what is wrong with the mesh's ConfigMap.
func (r *Registry) MeshFindings() []validate.Finding { return r.mesh.bad }

func (r *Registry) meshFinding(s validate.Severity, field, message string) validate.Finding {
	return validate.Finding{Severity: s, Kind: string(KindConfigMap), Namespace: r.cfg.InstallNamespace, Name: api.MeshConfigMap,
		Field: field, Message: message}
}

func (r *Registry) applyMesh(e Event, d *Dirty) {
	if e.Name != (Name{r.cfg.InstallNamespace, api.MeshConfigMap}) {
		return
	}
	d.Mesh = true
	if e.Object == nil {
		r.mesh.bad = nil
		switch {
		case r.mesh.present:
			r.mesh.bad = []validate.Finding{r.meshFinding(validate.Error, "", "is gone: what it said last stays in force")}
		case !r.mesh.known && r.mesh.started:
			r.mesh.bad = []validate.Finding{r.meshFinding(validate.Error, "", "was removed and was never good: nothing is published without it")}
		}
		return
	}
	now, unknown, err := ParseMesh(e.Object.(*corev1.ConfigMap), r.cfg.Mesh)
	if err != nil {
		field, message := "data."+meshKey, err.Error()
		if at := (*meshError)(nil); errors.As(err, &at) {
			field, message = at.field, at.message
		}
		r.mesh.bad = []validate.Finding{r.meshFinding(validate.Error, field, message)}
		return
	}
	r.mesh.bad = nil
	for _, name := range unknown {
		r.mesh.bad = append(r.mesh.bad, r.meshFinding(validate.Warning, "data."+meshKey+"."+name, "unknown field: it is ignored"))
	}
	was := r.mesh.now
	if !r.mesh.known && r.mesh.started || now.TrustDomain != was.TrustDomain || now.RootNamespace != was.RootNamespace ||
		!slices.Equal(now.TrustDomainAliases, was.TrustDomainAliases) {
		d.All = true
	}
	r.mesh.now, r.mesh.known, r.mesh.present = now, true, true
}

// settleMesh decides after the first batch, which is everything there is, whether the defaults count.
func (r *Registry) settleMesh(d *Dirty) {
	if r.mesh.started {
		return
	}
	r.mesh.started = true
	if r.mesh.known || validate.Worst(r.mesh.bad) == validate.Error {
		return
	}
	if r.cfg.RequireMesh {
		d.Mesh = true
		r.mesh.bad = []validate.Finding{r.meshFinding(validate.Error, "", "is missing: nothing is published without it")}
		return
	}
	r.mesh.known = true
}

// meshError blames one field of the ConfigMap.
type meshError struct{ field, message string }

func (e *meshError) Error() string { return e.field + ": " + e.message }

// ParseMesh reads the mesh's ConfigMap over the defaults. It returns an error that names the field when it is bad, and the
// names of fields that Istio's MeshConfig does not have.
func ParseMesh(cm *corev1.ConfigMap, base Mesh) (out Mesh, unknown []string, err error) {
	text, ok := cm.Data[meshKey]
	if !ok {
		return base, nil, &meshError{"data." + meshKey, "is missing"}
	}
	data, err := yaml.YAMLToJSONStrict([]byte(text)) // a key that is given twice is an error
	if err != nil {
		return base, nil, &meshError{"data." + meshKey, err.Error()}
	}
	var in struct {
		TrustDomain        string   `json:"trustDomain"`
		TrustDomainAliases []string `json:"trustDomainAliases"`
		RootNamespace      string   `json:"rootNamespace"`
		Outbound           struct {
			Mode string `json:"mode"`
		} `json:"outboundTrafficPolicy"`
	}
	var fields map[string]any
	if err := errors.Join(json.Unmarshal(data, &fields), json.Unmarshal(data, &in)); err != nil {
		field := "data." + meshKey
		if typed := (*json.UnmarshalTypeError)(nil); errors.As(err, &typed) && typed.Field != "" {
			field += "." + typed.Field
		}
		return base, nil, &meshError{field, err.Error()}
	}
	bad := func(field, message string) (Mesh, []string, error) {
		return base, nil, &meshError{"data." + meshKey + "." + field, message}
	}
	out = base
	if in.TrustDomain != "" {
		out.TrustDomain = in.TrustDomain
	}
	out.TrustDomainAliases = slices.Clone(in.TrustDomainAliases)
	if in.RootNamespace != "" {
		out.RootNamespace = in.RootNamespace
	}
	if !isTrustDomain(out.TrustDomain) {
		return bad("trustDomain", "\""+out.TrustDomain+"\" is not a trust domain")
	}
	for _, td := range out.TrustDomainAliases {
		if !isTrustDomain(td) {
			return bad("trustDomainAliases", "\""+td+"\" is not a trust domain")
		}
	}
	if problems := validation.IsDNS1123Label(out.RootNamespace); len(problems) > 0 {
		return bad("rootNamespace", "\""+out.RootNamespace+"\" is not the name of a namespace: "+problems[0])
	}
	switch in.Outbound.Mode {
	case "", "ALLOW_ANY":
		out.RegistryOnly = false
	case "REGISTRY_ONLY":
		out.RegistryOnly = true
	default:
		return bad("outboundTrafficPolicy.mode", "unknown value \""+in.Outbound.Mode+"\"")
	}
	known := (*meshv1alpha1.MeshConfig)(nil).ProtoReflect().Descriptor().Fields()
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if known.ByJSONName(name) == nil && known.ByTextName(name) == nil {
			unknown = append(unknown, name)
		}
	}
	return out, unknown, nil
}

func isTrustDomain(td string) bool {
	_, err := api.ParseIdentity("spiffe://" + td + "/ns/a/sa/a")
	return err == nil
}
