package validate

import (
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
	"istio.io/api/annotation"
	meshconfig "istio.io/api/mesh/v1alpha1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kschema "k8s.io/apimachinery/pkg/runtime/schema"
)

// operator registers the objects that carry mesh configuration: IstioOperator, which install reads, and the ConfigMap.
func (c *Catalogue) operator() {
	c.kinds[kschema.GroupVersionKind{Group: "install.istio.io", Version: "v1alpha1", Kind: "IstioOperator"}] = &kind{
		make: c.operatorSchema,
		rules: func(w *walker, _ *yaml.Node, obj map[string]any) {
			spec, _ := obj["spec"].(map[string]any)
			if name, ok := spec["revision"].(string); ok {
				w.revision(name, Error, "spec.revision")
			}
			mesh := &meshconfig.MeshConfig{}
			if spec["meshConfig"] != nil && w.decode(spec["meshConfig"], mesh) {
				w.meshConfig(mesh, "spec.meshConfig")
			}
		},
	}
	if k := c.kinds[corev1.SchemeGroupVersion.WithKind("ConfigMap")]; k != nil {
		k.rules = func(w *walker, n *yaml.Node, _ map[string]any) {
			if text := childNode(childNode(n, "data"), "mesh"); text != nil && strings.HasPrefix(w.name, "istio") {
				mesh := &meshconfig.MeshConfig{}
				if v := w.embedded(text, c.meshSchema(), "data.mesh"); v != nil && w.decode(v, mesh) {
					w.body = mesh
					w.meshConfig(mesh, "data.mesh")
				}
			}
		}
	}
}

func (c *Catalogue) meshSchema() *schema {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := *c.protos.message((&meshconfig.MeshConfig{}).ProtoReflect().Descriptor())
	s.lenient = true
	return &s
}

func goType[T any](c *Catalogue) *schema { return c.goObject(reflect.TypeFor[T]()) }

// operatorSchema is written down here: its types are not part of Istio's API module.
func (c *Catalogue) operatorSchema() *schema {
	str, boolean, free := of(shapeString), of(shapeBool), of(shapeAny)
	patch := object("path", str, "value", free)
	k8s := object("affinity", goType[corev1.Affinity](c), "env", listOf(goType[corev1.EnvVar](c)), "hpaSpec", goType[autoscalingv2.HorizontalPodAutoscalerSpec](c),
		"imagePullPolicy", str, "nodeSelector", mapOf(str), "podDisruptionBudget", goType[policyv1.PodDisruptionBudgetSpec](c),
		"podAnnotations", mapOf(str), "priorityClassName", str, "readinessProbe", goType[corev1.Probe](c), "replicaCount", number(protoreflect.Int32Kind),
		"resources", goType[corev1.ResourceRequirements](c), "service", goType[corev1.ServiceSpec](c), "serviceAnnotations", mapOf(str),
		"strategy", goType[appsv1.DeploymentStrategy](c), "tolerations", listOf(goType[corev1.Toleration](c)),
		"securityContext", goType[corev1.PodSecurityContext](c), "volumes", listOf(goType[corev1.Volume](c)), "volumeMounts", listOf(goType[corev1.VolumeMount](c)),
		"overlays", listOf(object("apiVersion", str, "kind", str, "name", str, "patches", listOf(patch))))
	component := object("enabled", boolean, "namespace", str, "hub", str, "tag", of(shapeIntOrString), "spec", free, "k8s", k8s)
	gateway := object("enabled", boolean, "namespace", str, "name", str, "label", mapOf(str), "hub", str, "tag", of(shapeIntOrString), "k8s", k8s)
	components := object("base", component, "pilot", component, "cni", component, "ztunnel", component, "istiodRemote", component,
		"ingressGateways", listOf(gateway), "egressGateways", listOf(gateway))
	spec := object("profile", str, "installPackagePath", str, "hub", str, "tag", of(shapeIntOrString), "resourceSuffix", str, "namespace", str,
		"revision", str, "defaultRevision", boolean, "compatibilityVersion", str, "meshConfig", c.meshSchema(), "components", components,
		"values", valuesSchema(), "unvalidatedValues", mapOf(free), "addonComponents", mapOf(component))
	return object("apiVersion", str, "kind", str, "metadata", goType[metav1.ObjectMeta](c), "spec", spec, "status", free)
}

// valuesSchema knows those chart values whose names were ever misspelt or removed; all others may be anything.
func valuesSchema() *schema {
	str, free := of(shapeString), of(shapeAny)
	stats := object()
	for name, s := range map[string]*schema{
		"debug": of(shapeBool), "max_peer_cache_size": number(protoreflect.Int32Kind), "stat_prefix": str, "field_separator": str, "value_separator": str,
		"disable_host_header_fallback": of(shapeBool), "tcp_reporting_duration": of(shapeDuration),
		"metrics":     listOf(object("name", str, "dimensions", mapOf(str), "tags_to_remove", listOf(str), "match", str, "drop", of(shapeBool))),
		"definitions": listOf(object("name", str, "type", str, "value", str)),
	} {
		stats.fields[name] = field{schema: s, name: name}
	}
	override := object("gateway", stats, "inboundSidecar", stats, "outboundSidecar", stats)
	prometheus := open("configOverride", override)
	tracer := open()
	tracer.fields["lightstep"] = field{schema: free, name: "lightstep", note: "the Lightstep tracer was removed: send spans by OpenTelemetry (extensionProviders[].opentelemetry)"}
	return open("telemetry", open("v2", open("prometheus", prometheus)), "global", open("tracer", tracer))
}

// open is an object that may have other fields too.
func open(pairs ...any) *schema {
	s := object(pairs...)
	s.open = true
	return s
}

// embedded checks YAML that stands inside a string of an object. It returns nil when it is wrong.
func (w *walker) embedded(text *yaml.Node, s *schema, path string) any {
	if text.Kind != yaml.ScalarNode {
		return nil
	}
	base := 0 // lines before the first of the text
	if text.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
		base = text.Line
	}
	var doc yaml.Node
	if !w.effort.spend(len(text.Value) / 4) {
		w.add(Error, path, "is too large once its aliases are followed")
		w.broken = true
		return nil
	}
	if err := yaml.Unmarshal([]byte(text.Value), &doc); err != nil {
		w.add(Error, path, "is not YAML: %s", err)
		w.broken = true
		return nil
	}
	if len(doc.Content) != 1 || isNull(doc.Content[0]) {
		return nil
	}
	inner := &walker{collector: collector{kind: w.kind, namespace: w.namespace, name: w.name}, effort: w.effort}
	v := inner.value(doc.Content[0], s, "")
	lines := places{}
	for _, f := range inner.found {
		if base > 0 {
			f.Line = base + lines.lineOf(doc.Content[0], f.Field)
		}
		f.Field = join(path, f.Field)
		w.found = append(w.found, f)
	}
	if inner.broken {
		return nil
	}
	return v
}

// proxyAnnotation checks the proxy configuration that an annotation of the metadata carries, which is YAML in a string.
func (c *Catalogue) proxyAnnotation(w *walker, meta *yaml.Node, at string) {
	text := childNode(childNode(meta, "annotations"), annotation.ProxyConfig.Name)
	if text == nil {
		return
	}
	c.mu.Lock()
	s := *c.protos.message((&meshconfig.ProxyConfig{}).ProtoReflect().Descriptor())
	c.mu.Unlock()
	s.lenient = true
	at += ".annotations." + annotation.ProxyConfig.Name
	proxy := &meshconfig.ProxyConfig{}
	if v := w.embedded(text, &s, at); v != nil && w.decode(v, proxy) {
		w.proxyConfig(proxy, at)
	}
}

// meshConfig checks the values of mesh configuration.
func (w *walker) meshConfig(m *meshconfig.MeshConfig, at string) {
	w.proxyConfig(m.GetDefaultConfig(), at+".defaultConfig")
	var names []string
	for i, p := range m.GetExtensionProviders() {
		at := indexed(at+".extensionProviders", i)
		if p.GetName() == "" {
			w.add(Error, at+".name", "is required")
		}
		if p.GetProvider() == nil {
			w.add(Error, at, "says nothing beside its name: one provider is required")
		}
		names = append(names, p.GetName())
	}
	w.unique(names, at+".extensionProviders", "name")
	for i, cert := range m.GetCertificates() { //nolint:staticcheck // still read
		for j, n := range cert.GetDnsNames() {
			w.must(indexed(at+".certificates", i)+indexed(".dnsNames", j), Host(n, true))
		}
	}
	if n := m.GetRootNamespace(); n != "" {
		w.must(at+".rootNamespace", label1123(n))
	}
	w.atLeast(m.GetConnectTimeout(), 0, at+".connectTimeout")
	w.meshNames(m, at)
}

// proxyConfig checks the values of what each proxy is told.
func (w *walker) proxyConfig(p *meshconfig.ProxyConfig, at string) {
	t := p.GetTracing()
	if t == nil {
		return
	}
	between(&w.collector, t.GetSampling(), 0, 100, at+".tracing.sampling")
	for _, name := range sortedKeys(t.GetCustomTags()) {
		if h := t.GetCustomTags()[name].GetHeader(); h != nil {
			// the file may spell it custom_tags; both lead to the same line
			w.header(h.GetName(), at+".tracing.customTags."+name+".header.name")
		}
	}
}
