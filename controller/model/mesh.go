package model

import (
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/model/support"
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
	if e.Object == nil {
		d.Mesh = true
		r.mesh.bad = nil
		switch {
		case r.mesh.present:
			r.mesh.bad = []validate.Finding{r.meshFinding(validate.Error, "", "is gone: what it said last stays in force")}
		case !r.mesh.known && r.mesh.started:
			r.mesh.bad = []validate.Finding{r.meshFinding(validate.Error, "", "was removed and was never good: nothing is published without it")}
		}
		return
	}
	now, found := ParseMesh(e.Object.(*corev1.ConfigMap), r.cfg.Mesh)
	for i := range found {
		found[i].Namespace, found[i].Name = e.Name.Namespace, e.Name.Name
	}
	if !slices.Equal(found, r.mesh.bad) {
		d.Mesh = true
	}
	r.mesh.bad = found
	if validate.Worst(found) == validate.Error {
		return
	}
	was := r.mesh.now
	if !r.mesh.known && r.mesh.started || now.TrustDomain != was.TrustDomain || now.RootNamespace != was.RootNamespace ||
		!slices.Equal(now.TrustDomainAliases, was.TrustDomainAliases) || !now.sameCalls(was) {
		d.All = true
	}
	if !r.mesh.present || !now.equal(was) {
		d.Mesh = true
	}
	r.traffic.labels.ask(asker{kind: KindConfigMap}, time.Time{}, meshUses(now))
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

// ParseMesh reads the mesh's ConfigMap over the defaults. The configuration is bad when a finding is an Error; it is base then.
func ParseMesh(cm *corev1.ConfigMap, base Mesh) (Mesh, []validate.Finding) {
	text, ok := cm.Data[meshKey]
	if !ok {
		return base, []validate.Finding{{Severity: validate.Error, Kind: string(KindConfigMap), Namespace: cm.Namespace, Name: cm.Name,
			Field: "data." + meshKey, Message: "is missing"}}
	}
	in, found := validate.MeshConfig(cm.Namespace, cm.Name, text)
	if validate.Worst(found) == validate.Error {
		return base, found
	}
	out := base
	out.Config, out.TrustDomainAliases = in.Config, in.Config.GetTrustDomainAliases()
	if td := in.Config.GetTrustDomain(); td != "" {
		out.TrustDomain = td
	}
	if root := in.Config.GetRootNamespace(); root != "" {
		out.RootNamespace = root
	}
	// REGISTRY_ONLY is the zero of the enumeration, and ALLOW_ANY is what counts where nothing is said.
	out.RegistryOnly = in.Given("outboundTrafficPolicy.mode") &&
		in.Config.GetOutboundTrafficPolicy().GetMode() == meshv1alpha1.MeshConfig_OutboundTrafficPolicy_REGISTRY_ONLY
	out.LogEncodingGiven = in.Given("accessLogEncoding")
	out.Untraced = in.Given("enableTracing") && !in.Config.GetEnableTracing()
	out.SamplingGiven = in.Given("defaultConfig.tracing.sampling")
	return out, append(found, ineffective(cm, in.Config)...)
}

// ineffective names what is set and does nothing yet, each top-level field once.
func ineffective(cm *corev1.ConfigMap, mesh *meshv1alpha1.MeshConfig) []validate.Finding {
	var out []validate.Finding
	last := ""
	for _, f := range support.Ineffective("MeshConfig", mesh) {
		top := strings.TrimRight(strings.SplitN(f.Path, ".", 2)[0], "[]{}")
		if top == last {
			continue
		}
		last = top
		text := "is accepted and not enforced, or not all of it: " + f.Note
		if f.Milestone != "" {
			text = "is accepted and not enforced yet, or not all of it"
		}
		out = append(out, validate.Finding{Severity: validate.Info, Kind: string(KindConfigMap), Namespace: cm.Namespace, Name: cm.Name,
			Field: "data." + meshKey + "." + top, Message: text, Unsupported: true})
	}
	return out
}

func (m Mesh) equal(o Mesh) bool {
	return m.TrustDomain == o.TrustDomain && slices.Equal(m.TrustDomainAliases, o.TrustDomainAliases) && m.RootNamespace == o.RootNamespace &&
		m.RegistryOnly == o.RegistryOnly && m.LogEncodingGiven == o.LogEncodingGiven &&
		m.Untraced == o.Untraced && m.SamplingGiven == o.SamplingGiven && proto.Equal(m.Config, o.Config)
}
