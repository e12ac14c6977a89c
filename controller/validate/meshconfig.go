package validate

import (
	"encoding/json"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/undermesh/undermesh/controller/api"
)

// AccessLogStdout is the file of the access log that nodes can write to, beside "", which means none.
const AccessLogStdout = "/dev/stdout"

// builtinProviders are known without being configured.
var builtinProviders = []string{"prometheus", "stackdriver", "envoy"}

// Mesh is a MeshConfig that was read.
type Mesh struct {
	Config *meshconfig.MeshConfig
	// Given reports whether a field, such as a.b, stands in the text; enumerations are 0 when they do not.
	Given func(path string) bool
}

// MeshConfig reads and checks the text of the mesh's ConfigMap, whose fields begin with "data.mesh" in the findings. It is
// good when no finding is an Error; fields that this program does not know are Warnings and are left out.
func MeshConfig(namespace, name, text string) (Mesh, []Finding) {
	const at = "data.mesh"
	w := &walker{effort: fileEffort(nil, len(text)), collector: collector{kind: "ConfigMap", namespace: namespace, name: name}}
	s := *protoSchemas{}.message((&meshconfig.MeshConfig{}).ProtoReflect().Descriptor())
	s.lenient = true
	out := Mesh{Config: &meshconfig.MeshConfig{}, Given: func(string) bool { return false }}
	defer func() {
		for i := range w.found {
			if w.found[i].Field = strings.TrimSuffix(w.found[i].Field, "."); w.found[i].Field == "spec" {
				w.found[i].Field = at
			}
		}
	}()
	v := w.embedded(&yaml.Node{Kind: yaml.ScalarNode, Value: text}, &s, at)
	if v == nil || Worst(w.found) == Error || !w.decode(v, out.Config) {
		return out, w.found
	}
	out.Given = func(path string) bool { return given(v, path) }
	w.meshConfig(out.Config, at)
	if f := out.Config.GetAccessLogFile(); f != "" && f != AccessLogStdout {
		w.add(Warning, at+".accessLogFile", "nodes write to %s only: %q counts as that", AccessLogStdout, f)
	}
	return out, w.found
}

func given(v any, path string) bool {
	for name := range strings.SplitSeq(path, ".") {
		fields, _ := v.(map[string]any)
		if v = fields[name]; v == nil {
			return false
		}
	}
	return true
}

// meshNames checks what meshConfig takes for granted: names that must resolve.
func (w *walker) meshNames(m *meshconfig.MeshConfig, at string) {
	domains := append([]string{m.GetTrustDomain()}, m.GetTrustDomainAliases()...)
	for i, td := range domains {
		field := at + ".trustDomain"
		if i > 0 {
			field = indexed(at+".trustDomainAliases", i-1)
		} else if td == "" {
			continue
		}
		if _, err := api.ParseIdentity("spiffe://" + td + "/ns/a/sa/a"); err != nil {
			w.add(Error, field, "%q is not a trust domain", td)
		}
	}
	w.unique(m.GetTrustDomainAliases(), at+".trustDomainAliases", "trust domain")
	known := slices.Clone(builtinProviders)
	for _, p := range m.GetExtensionProviders() {
		known = append(known, p.GetName())
	}
	for _, d := range []struct {
		field string
		names []string
	}{
		{"tracing", m.GetDefaultProviders().GetTracing()}, {"metrics", m.GetDefaultProviders().GetMetrics()},
		{"accessLogging", m.GetDefaultProviders().GetAccessLogging()},
	} {
		for i, name := range d.names {
			if !slices.Contains(known, name) {
				w.add(Warning, indexed(at+".defaultProviders."+d.field, i), "no extension provider is named %q", name)
			}
		}
	}
	var secrets []string
	for i, cert := range m.GetCertificates() { //nolint:staticcheck // the documents use it
		field := indexed(at+".certificates", i)
		w.must(field+".secretName", filled(cert.GetSecretName()))
		if len(cert.GetDnsNames()) == 0 {
			w.add(Error, field+".dnsNames", "is required")
		}
		secrets = append(secrets, cert.GetSecretName())
	}
	w.unique(secrets, at+".certificates", "secret")
	if f := m.GetAccessLogFormat(); f != "" && m.GetAccessLogEncoding() == meshconfig.MeshConfig_JSON {
		var fields map[string]any
		if err := json.Unmarshal([]byte(f), &fields); err != nil {
			w.add(Warning, at+".accessLogFormat", "must be a JSON object when accessLogEncoding is JSON: the default format is used")
		}
	}
}
