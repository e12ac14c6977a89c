package compile_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/structpb"
	extensionsapi "istio.io/api/extensions/v1alpha1"
	meshapi "istio.io/api/mesh/v1alpha1"
	networkingapi "istio.io/api/networking/v1alpha3"
	networkingbeta "istio.io/api/networking/v1beta1"
	securityapi "istio.io/api/security/v1beta1"
	telemetryapi "istio.io/api/telemetry/v1alpha1"
	extensionsv1alpha1 "istio.io/client-go/pkg/apis/extensions/v1alpha1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	networkingv1beta1 "istio.io/client-go/pkg/apis/networking/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"
	corev1 "k8s.io/api/core/v1"
	ingressv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/model/support"
	"github.com/undermesh/undermesh/controller/validate"
)

// sample is an object of a kind in a world where it matters: base is its spec, into puts a spec into an object. Paths in
// values get that value instead of one that is made up; with sets further leaves before, for fields below a path that mean
// something only beside others; bases are for fields that exclude what is in base.
type sample struct {
	base   proto.Message
	bases  map[string]proto.Message
	into   func(proto.Message) any
	values map[string]string
	with   map[string]map[string]string
}

// elsewhere are fields whose effect is not on what nodes get, with the test that proves it.
var elsewhere = map[string]string{
	"MeshConfig certificates[].dnsNames[]": "MT-21, controller/ca", "MeshConfig certificates[].secretName": "MT-21, controller/ca",
	"MeshConfig enableTracing": "TestMeshTracing: it is true where it does not stand",
}

func meta(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "foo", Name: name} }

const exampleBlock = "10.7.0.0/16"

func samples() map[model.Kind]sample {
	return map[model.Kind]sample{
		model.KindVirtualService:  virtualServiceSample(),
		model.KindDestinationRule: destinationRuleSample(),
		model.KindGateway: {base: &networkingapi.Gateway{}, into: func(m proto.Message) any {
			o := &networkingv1.Gateway{ObjectMeta: meta("x")}
			proto.Merge(&o.Spec, m)
			return o
		}},
		model.KindServiceEntry: serviceEntrySample(),
		model.KindWorkloadEntry: {base: &networkingapi.WorkloadEntry{Address: "192.0.2.7", Labels: map[string]string{"app": "vm"}},
			values: map[string]string{"address": "192.0.2.8", "labels{}": "v1", "locality": "region/zone/sub", "serviceAccount": "vm", "weight": "3", "ports{}": "8443"},
			with:   map[string]map[string]string{},
			into: func(m proto.Message) any {
				o := &networkingv1.WorkloadEntry{ObjectMeta: meta("x")}
				proto.Merge(&o.Spec, m)
				return o
			}},
		model.KindWorkloadGroup: {base: &networkingapi.WorkloadGroup{}, into: func(m proto.Message) any {
			o := &networkingv1.WorkloadGroup{ObjectMeta: meta("x")}
			proto.Merge(&o.Spec, m)
			return o
		}},
		model.KindSidecar: {base: &networkingapi.Sidecar{Egress: []*networkingapi.IstioEgressListener{{Hosts: []string{"./*"}}}},
			values: map[string]string{"egress[].hosts[]": "istio-system/*", "workloadSelector.labels{}": "other"},
			into: func(m proto.Message) any {
				o := &networkingv1.Sidecar{ObjectMeta: meta("x")}
				proto.Merge(&o.Spec, m)
				return o
			}},
		model.KindEnvoyFilter: {base: &networkingapi.EnvoyFilter{}, into: func(m proto.Message) any {
			o := &networkingv1alpha3.EnvoyFilter{ObjectMeta: meta("x")}
			proto.Merge(&o.Spec, m)
			return o
		}},
		model.KindProxyConfig: {base: &networkingbeta.ProxyConfig{}, into: func(m proto.Message) any {
			o := &networkingv1beta1.ProxyConfig{ObjectMeta: meta("x")}
			proto.Merge(&o.Spec, m)
			return o
		}},
		model.KindPeerAuthentication: {base: &securityapi.PeerAuthentication{Mtls: &securityapi.PeerAuthentication_MutualTLS{Mode: securityapi.PeerAuthentication_MutualTLS_STRICT}},
			values: map[string]string{"selector.matchLabels{}": "other", "mtls.mode": "DISABLE", "portLevelMtls{}.mode": "DISABLE"},
			with:   map[string]map[string]string{"portLevelMtls{}.mode": {"selector.matchLabels{}": "web"}},
			into: func(m proto.Message) any {
				o := &securityv1.PeerAuthentication{ObjectMeta: meta("x")}
				proto.Merge(&o.Spec, m)
				return o
			}},
		model.KindRequestAuthentication: {base: &securityapi.RequestAuthentication{JwtRules: []*securityapi.JWTRule{{Issuer: "a", Jwks: `{"keys":[{"kty":"oct"}]}`}}},
			bases: jwtBases(),
			values: map[string]string{"selector.matchLabels{}": "web", "targetRef.kind": "Gateway", "targetRef.name": "far", "targetRefs[].kind": "Gateway", "targetRefs[].name": "far",
				"targetRef.group": "core", "targetRefs[].group": "core", "targetRef.namespace": "foo", "targetRefs[].namespace": "foo"},
			with: refs(),
			into: func(m proto.Message) any {
				o := &securityv1.RequestAuthentication{ObjectMeta: meta("x")}
				proto.Merge(&o.Spec, m)
				return o
			}},
		model.KindAuthorizationPolicy: authorizationSample(),
		model.KindTelemetry: {base: &telemetryapi.Telemetry{}, into: func(m proto.Message) any {
			o := &telemetryv1.Telemetry{ObjectMeta: meta("x")}
			proto.Merge(&o.Spec, m)
			return o
		}},
		model.KindWasmPlugin: {base: &extensionsapi.WasmPlugin{}, into: func(m proto.Message) any {
			o := &extensionsv1alpha1.WasmPlugin{ObjectMeta: meta("x")}
			proto.Merge(&o.Spec, m)
			return o
		}},
		model.KindTrafficExtension: {base: &extensionsapi.TrafficExtension{}, into: func(m proto.Message) any {
			o := &extensionsv1alpha1.TrafficExtension{ObjectMeta: meta("x")}
			proto.Merge(&o.Spec, m)
			return o
		}},
		model.KindConfigMap: meshSample(),
	}
}

func meshSample() sample {
	const providers, probe = "extensionProviders[]", "defaultConfig.readinessProbe."
	with := map[string]map[string]string{
		providers:         {providers + ".name": "p"},
		"certificates[]":  {"certificates[].dnsNames[]": "a.example", "certificates[].secretName": "s"},
		probe + "httpGet": {probe + "httpGet.port": "80"}, probe + "tcpSocket": {probe + "tcpSocket.port": "80"},
		"defaultConfig.tracing.customTags{}.header":                            {"defaultConfig.tracing.customTags{}.header.name": "x"},
		"outboundTrafficPolicy":                                                {"outboundTrafficPolicy.mode": "ALLOW_ANY"},
		"defaultTrafficPolicy.outlierDetection.outlierDetectionHttpErrorCodes": {"defaultTrafficPolicy.outlierDetection.interval": "2"},
		providers + ".name":                                                    {providers + ".zipkin.service": "z.foo.svc.cluster.local", providers + ".zipkin.port": "1"},
		providers + ".opentelemetry.dynatraceSampler":                          {providers + ".opentelemetry.dynatraceSampler.tenant": "t"},
		providers + ".opentelemetry.dynatraceSampler.httpService":              {},
	}
	for _, p := range []string{"datadog", "envoyExtAuthzGrpc", "envoyExtAuthzHttp", "envoyHttpAls", "envoyOtelAls", "envoyTcpAls", "lightstep",
		"opencensus", "opentelemetry", "skywalking", "zipkin", "sds"} {
		with[providers+"."+p] = map[string]string{providers + "." + p + ".service": "a.foo.svc.cluster.local", providers + "." + p + ".port": "80"}
	}
	return sample{base: &meshapi.MeshConfig{}, with: with,
		values: map[string]string{"trustDomain": "td.example", "trustDomainAliases[]": "old.example", "rootNamespace": "root", "outboundTrafficPolicy.mode": "REGISTRY_ONLY"},
		into: func(m proto.Message) any {
			text, err := protojson.Marshal(m)
			if err != nil {
				panic(err)
			}
			config, ok := m.(*meshapi.MeshConfig)
			if out := config.GetOutboundTrafficPolicy(); ok && out != nil && out.GetMode() == 0 { // which protobuf leaves out
				text = append([]byte(`{"outboundTrafficPolicy":{"mode":"REGISTRY_ONLY"}`), text[1:]...)
				text = []byte(strings.Replace(string(text), `"outboundTrafficPolicy":{}`, "", 1))
			}
			return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "istio"}, Data: map[string]string{"mesh": string(text)}}
		}}
}

// jwtBases has no rule: the first one denies.
func jwtBases() map[string]proto.Message {
	out := map[string]proto.Message{}
	for _, f := range support.Fields("RequestAuthentication") {
		if strings.HasPrefix(f.Path, "jwtRules") {
			out[f.Path] = &securityapi.RequestAuthentication{}
		}
	}
	return out
}

// refs gives both halves of a target.
func refs() map[string]map[string]string {
	out := map[string]map[string]string{}
	for _, list := range []string{"targetRef.", "targetRefs[]."} {
		out[list] = map[string]string{list + "kind": "Service", list + "name": "web"}
	}
	return out
}

func serviceEntrySample() sample {
	return sample{base: &networkingapi.ServiceEntry{Hosts: []string{"api.example.com"}, Resolution: networkingapi.ServiceEntry_STATIC,
		Ports:     []*networkingapi.ServicePort{{Number: 443, Name: "app", Protocol: "HTTPS"}},
		Endpoints: []*networkingapi.WorkloadEntry{{Address: "192.0.2.1"}}},
		bases: map[string]proto.Message{"ports[].name": &networkingapi.ServiceEntry{Hosts: []string{"api.example.com"},
			Resolution: networkingapi.ServiceEntry_STATIC, Ports: []*networkingapi.ServicePort{{Number: 443, Name: "unnamed", Protocol: "HTTPS"}},
			Endpoints: []*networkingapi.WorkloadEntry{{Address: "192.0.2.1", Ports: map[string]uint32{"web": 8443}}}},
			"workloadSelector.labels{}": &networkingapi.ServiceEntry{Hosts: []string{"api.example.com"},
				Resolution: networkingapi.ServiceEntry_STATIC, Ports: []*networkingapi.ServicePort{{Number: 443, Name: "app", Protocol: "HTTPS"}}}},
		values: map[string]string{"hosts[]": "two.example.com", "addresses[]": "240.1.2.3", "endpoints[].address": "192.0.2.2", "endpoints[].locality": "r/z/s",
			"endpoints[].labels{}": "v1", "endpoints[].serviceAccount": "sa", "endpoints[].weight": "5", "endpoints[].ports{}": "8443", "exportTo[]": ".",
			"location": "MESH_INTERNAL", "ports[].name": "web", "ports[].number": "8443", "ports[].protocol": "TCP", "ports[].targetPort": "9443",
			"resolution": "DNS", "subjectAltNames[]": "spiffe://cluster.local/ns/foo/sa/web", "workloadSelector.labels{}": "web"},
		into: func(m proto.Message) any {
			o := &networkingv1.ServiceEntry{ObjectMeta: meta("x")}
			proto.Merge(&o.Spec, m)
			return o
		}}
}

func authorizationSample() sample {
	const from, to = "rules[].from[].source.", "rules[].to[].operation."
	values := map[string]string{"selector.matchLabels{}": "web", "action": "DENY", "rules[].when[].key": "source.principal",
		"rules[].when[].values[]": "bar", "rules[].when[].notValues[]": "bar", to + "ports[]": "80", to + "notPorts[]": "80",
		"targetRef.kind": "Gateway", "targetRef.name": "far", "targetRefs[].kind": "Gateway", "targetRefs[].name": "far",
		"targetRef.group": "core", "targetRefs[].group": "core", "targetRef.namespace": "foo", "targetRefs[].namespace": "foo"}
	for _, f := range []string{"ipBlocks[]", "notIpBlocks[]", "remoteIpBlocks[]", "notRemoteIpBlocks[]"} {
		values[from+f] = exampleBlock
	}
	with := refs()
	with["rules[].when[]"] = map[string]string{"rules[].when[].key": "source.namespace", "rules[].when[].values[]": "foo"}
	return sample{base: &securityapi.AuthorizationPolicy{Rules: []*securityapi.Rule{{}}}, values: values, with: with,
		into: func(m proto.Message) any {
			o := &securityv1.AuthorizationPolicy{ObjectMeta: meta("x")}
			proto.Merge(&o.Spec, m)
			return o
		}}
}

// set puts a value into the leaf at the path; text "" makes one up.
func set(t *testing.T, m protoreflect.Message, path, text string) {
	t.Helper()
	head, rest, deeper := strings.Cut(path, ".")
	name := strings.TrimSuffix(strings.TrimSuffix(head, "[]"), "{}")
	fd := m.Descriptor().Fields().ByJSONName(name)
	if fd == nil {
		t.Fatalf("%s has no field %q", m.Descriptor().FullName(), name)
	}
	switch {
	case fd.IsMap():
		values := m.Mutable(fd).Map()
		key := protoreflect.ValueOfString("app").MapKey()
		if fd.MapKey().Kind() != protoreflect.StringKind {
			key = protoreflect.ValueOfUint32(80).MapKey()
		}
		if fd.MapValue().Message() == nil {
			values.Set(key, scalar(t, fd.MapValue(), text))
		} else {
			leaf(t, values.Mutable(key).Message(), rest, deeper, text)
		}
	case fd.IsList() && fd.Message() == nil:
		m.Mutable(fd).List().Append(scalar(t, fd, text))
	case fd.IsList():
		list := m.Mutable(fd).List()
		if list.Len() == 0 {
			list.AppendMutable()
		}
		leaf(t, list.Get(0).Message(), rest, deeper, text)
	case fd.Message() == nil:
		m.Set(fd, scalar(t, fd, text))
	default:
		leaf(t, m.Mutable(fd).Message(), rest, deeper, text)
	}
}

// leaf goes on below a message, or fills a message that is a leaf.
func leaf(t *testing.T, m protoreflect.Message, rest string, deeper bool, text string) {
	t.Helper()
	if deeper {
		set(t, m, rest, text)
		return
	}
	if s, ok := m.Interface().(*structpb.Struct); ok {
		s.Fields = map[string]*structpb.Value{"k": structpb.NewStringValue("v")}
		return
	}
	if m.Descriptor().FullName() == "google.protobuf.Duration" {
		seconds := m.Descriptor().Fields().ByName("seconds")
		m.Set(seconds, scalar(t, seconds, text))
		return
	}
	for i := range m.Descriptor().Fields().Len() {
		if fd := m.Descriptor().Fields().Get(i); fd.Message() == nil && !fd.IsList() && fd.ContainingOneof() == nil {
			m.Set(fd, scalar(t, fd, text))
		}
	}
}

func scalar(t *testing.T, fd protoreflect.FieldDescriptor, text string) protoreflect.Value {
	t.Helper()
	n, err := strconv.Atoi(text)
	if text == "" {
		n = 7
	} else if err != nil {
		n = 0
	}
	switch fd.Kind() {
	case protoreflect.StringKind:
		if text == "" {
			text = "made-up"
		}
		return protoreflect.ValueOfString(text)
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte("made up"))
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.EnumKind:
		if text != "" {
			return protoreflect.ValueOfEnum(fd.Enum().Values().ByName(protoreflect.Name(text)).Number())
		}
		return protoreflect.ValueOfEnum(fd.Enum().Values().Get(fd.Enum().Values().Len() - 1).Number())
	case protoreflect.FloatKind:
		return protoreflect.ValueOfFloat32(float32(n))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(float64(n))
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(n))
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(uint64(n))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(int64(n))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(n))
	}
	t.Fatalf("no value for %s", fd.FullName())
	return protoreflect.Value{}
}

// compiled is what nodes would have of the world with these objects, and the errors that were found.
func compiled(events []model.Event) (resources string, errors []string) {
	c := compile.New(compile.Config{})
	c.Apply(events)
	var b strings.Builder
	for _, r := range c.Resources() {
		data, err := proto.MarshalOptions{Deterministic: true}.Marshal(r.Message)
		if err != nil {
			panic(err)
		}
		fmt.Fprintf(&b, "%s %s %v %x\n", r.Type, r.Name, r.Aliases, data)
	}
	for _, f := range c.Findings() {
		if f.Severity == validate.Error && !f.Unsupported {
			errors = append(errors, f.Error())
		}
	}
	return b.String(), errors
}

func at(kind model.Kind, object any) model.Event {
	o := object.(metav1.Object)
	return model.Event{Kind: kind, Name: model.Name{Namespace: o.GetNamespace(), Name: o.GetName()}, Object: object}
}

// TestTableIsTrue holds the table of package support against the compiler: setting a field that has an effect must change
// what nodes get, and must not be an error; setting one that has none must change nothing.
func TestTableIsTrue(t *testing.T) {
	world := read(t, copyFile(t, "testdata/support/world.yaml"))
	for kind, s := range samples() {
		name := string(kind)
		if kind == model.KindConfigMap {
			name = "MeshConfig"
		}
		for _, f := range support.Fields(name) {
			base := s.base
			if b := s.bases[f.Path]; b != nil {
				base = b
			}
			before, after := proto.Clone(base), proto.Clone(base)
			for prefix, leaves := range s.with {
				for path, value := range leaves {
					if strings.HasPrefix(f.Path, prefix) {
						set(t, before.ProtoReflect(), path, value)
						set(t, after.ProtoReflect(), path, value)
					}
				}
			}
			set(t, after.ProtoReflect(), f.Path, s.values[f.Path])
			without, _ := compiled(append(world[:len(world):len(world)], at(kind, s.into(before))))
			with, bad := compiled(append(world[:len(world):len(world)], at(kind, s.into(after))))
			differs := without != with
			if len(bad) > 0 && f.State != support.Refused {
				t.Errorf("%s spec.%s: the value of the test is wrong: %v", name, f.Path, bad)
			}
			switch f.State {
			case support.Enforced, support.Carried, support.Refused:
				if !differs && elsewhere[name+" "+f.Path] == "" {
					t.Errorf("%s spec.%s is said to be %s, and changes nothing", name, f.Path, f.State)
				}
			default:
				whole := name == "MeshConfig" && f.State == support.Unused && strings.HasPrefix(f.Path, "defaultConfig.") // goes out in one piece
				if differs && !whole {
					t.Errorf("%s spec.%s is said to have no effect (%s), and changes what nodes get: say so in controller/model/support", name, f.Path, f.State)
				}
			}
		}
	}
}

// TestInertKinds: kinds of Kubernetes' own form that the mesh only reports on.
func TestInertKinds(t *testing.T) {
	world := read(t, copyFile(t, "testdata/support/world.yaml"))
	without, _ := compiled(world)
	for kind, object := range map[model.Kind]any{
		model.KindGatewayClass: &gatewayv1.GatewayClass{}, model.KindKubeGateway: &gatewayv1.Gateway{}, model.KindListenerSet: &gatewayv1.ListenerSet{},
		model.KindHTTPRoute: &gatewayv1.HTTPRoute{}, model.KindGRPCRoute: &gatewayv1.GRPCRoute{}, model.KindTCPRoute: &gatewayv1.TCPRoute{},
		model.KindTLSRoute: &gatewayv1.TLSRoute{}, model.KindUDPRoute: &gatewayv1.UDPRoute{}, model.KindReferenceGrant: &gatewayv1.ReferenceGrant{},
		model.KindBackendTLSPolicy: &gatewayv1.BackendTLSPolicy{}, model.KindIngress: &ingressv1.Ingress{}, model.KindIngressClass: &ingressv1.IngressClass{},
	} {
		with, _ := compiled(append(world[:len(world):len(world)], at(kind, object)))
		if inert := support.Inert(string(kind)); inert != (with == without) {
			t.Errorf("%s: said to be inert: %v, changes what nodes get: %v", kind, inert, with != without)
		}
	}
}
