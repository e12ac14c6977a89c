package compile_test

import (
	"strconv"
	"time"

	networking "istio.io/api/networking/v1alpha3"
	securitybeta "istio.io/api/security/v1beta1"
	typebeta "istio.io/api/type/v1beta1"
	extensionsv1alpha1 "istio.io/client-go/pkg/apis/extensions/v1alpha1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	networkingv1beta1 "istio.io/client-go/pkg/apis/networking/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"
	corev1 "k8s.io/api/core/v1"
	ingressv1 "k8s.io/api/networking/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/undermesh/undermesh/controller/jwks"
	"github.com/undermesh/undermesh/controller/model"
)

// others are the kinds of which the model reads little, and the compiler mostly a status; each comes as often as the others
// together with the kinds of event.
var others = []model.Kind{
	model.KindRequestAuthentication, model.KindRequestAuthentication, kindKeys, model.KindGatewayClass, model.KindKubeGateway,
	model.KindHTTPRoute, model.KindGRPCRoute, model.KindTCPRoute, model.KindTLSRoute, model.KindUDPRoute, model.KindListenerSet,
	model.KindReferenceGrant, model.KindBackendTLSPolicy, model.KindIngress, model.KindIngressClass, model.KindGateway,
	model.KindWorkloadGroup, model.KindEnvoyFilter, model.KindProxyConfig, model.KindTelemetry, model.KindWasmPlugin, model.KindTrafficExtension,
}

// kindKeys stands for the ConfigMap of stored keys; its events are of KindConfigMap.
const kindKeys model.Kind = "keys"

// sources are where keys come from.
var sources = []string{"https://a.example/keys", "https://b.example/keys", "https://c.example"}

// other makes an object of one of the others, all of a small world again.
func (g generator) other(kind model.Kind, n model.Name) any {
	switch kind {
	case kindKeys:
		return g.keys(n)
	case model.KindRequestAuthentication:
		return g.request(n)
	case model.KindIngress:
		return &ingressv1.Ingress{ObjectMeta: g.meta(n)}
	case model.KindIngressClass:
		return &ingressv1.IngressClass{ObjectMeta: g.meta(n)}
	case model.KindGateway:
		return &networkingv1.Gateway{ObjectMeta: g.meta(n), Spec: networking.Gateway{Selector: g.labels()}}
	case model.KindWorkloadGroup:
		return &networkingv1.WorkloadGroup{ObjectMeta: g.meta(n), Spec: networking.WorkloadGroup{Template: &networking.WorkloadEntry{ServiceAccount: g.pick("", "sa")}}}
	case model.KindEnvoyFilter:
		return &networkingv1alpha3.EnvoyFilter{ObjectMeta: g.meta(n), Spec: networking.EnvoyFilter{Priority: int32(g.IntN(2))}}
	case model.KindProxyConfig:
		o := &networkingv1beta1.ProxyConfig{ObjectMeta: g.meta(n)}
		o.Spec.EnvironmentVariables = g.labels()
		return o
	case model.KindTelemetry:
		o := &telemetryv1.Telemetry{ObjectMeta: g.meta(n)}
		o.Spec.Selector = g.workloads()
		return o
	case model.KindWasmPlugin:
		o := &extensionsv1alpha1.WasmPlugin{ObjectMeta: g.meta(n)}
		o.Spec.Url = g.pick("", "oci://x")
		return o
	case model.KindTrafficExtension:
		return &extensionsv1alpha1.TrafficExtension{ObjectMeta: g.meta(n)}
	}
	return g.gatewayAPI(kind, n)
}

func (g generator) request(n model.Name) any {
	o := &securityv1.RequestAuthentication{ObjectMeta: g.meta(n)}
	for range g.IntN(3) {
		rule := &securitybeta.JWTRule{Issuer: g.pick("x", sources[2])}
		switch g.IntN(3) {
		case 0:
			rule.JwksUri = g.pick(sources[0], sources[1], "no URL")
		case 1:
			rule.Jwks = publicKey
		}
		o.Spec.JwtRules = append(o.Spec.JwtRules, rule)
	}
	if g.IntN(4) == 0 {
		o.Spec.TargetRefs = []*typebeta.PolicyTargetReference{{Kind: g.pick("Service", "Gateway"), Name: g.pick("x", "y")}}
	} else {
		o.Spec.Selector = g.workloads()
	}
	return o
}

func (g generator) keys(n model.Name) any {
	o := &corev1.ConfigMap{ObjectMeta: g.meta(n), Data: map[string]string{}}
	for _, s := range sources {
		record := jwks.Record{Source: s, Error: g.pick("", "answers with status 503")}
		if g.IntN(2) == 0 {
			record.Keys, record.Fetched = publicKey, time.Unix(1_800_000_000+int64(g.IntN(2)), 0).UTC()
		}
		if g.IntN(3) > 0 {
			k, v := jwks.Encode(record)
			o.Data[k] = v
		}
	}
	if g.IntN(5) == 0 {
		o.Data["unreadable"] = "{"
	}
	return o
}

func (g generator) gatewayAPI(kind model.Kind, n model.Name) any {
	refs := gatewayv1.CommonRouteSpec{ParentRefs: g.parents()}
	switch kind {
	case model.KindGatewayClass:
		return &gatewayv1.GatewayClass{ObjectMeta: g.meta(n), Spec: gatewayv1.GatewayClassSpec{
			ControllerName: gatewayv1.GatewayController(g.pick(model.GatewayController, "example.com/other"))}}
	case model.KindKubeGateway:
		return &gatewayv1.Gateway{ObjectMeta: g.meta(n), Spec: gatewayv1.GatewaySpec{GatewayClassName: gatewayv1.ObjectName(g.pick("x", "y"))}}
	case model.KindListenerSet:
		o := &gatewayv1.ListenerSet{ObjectMeta: g.meta(n)}
		o.Spec.ParentRef.Name = gatewayv1.ObjectName(g.pick("x", "y"))
		return o
	case model.KindHTTPRoute:
		return &gatewayv1.HTTPRoute{ObjectMeta: g.meta(n), Spec: gatewayv1.HTTPRouteSpec{CommonRouteSpec: refs}}
	case model.KindGRPCRoute:
		return &gatewayv1.GRPCRoute{ObjectMeta: g.meta(n), Spec: gatewayv1.GRPCRouteSpec{CommonRouteSpec: refs}}
	case model.KindTCPRoute:
		return &gatewayv1.TCPRoute{ObjectMeta: g.meta(n), Spec: gatewayv1.TCPRouteSpec{CommonRouteSpec: refs}}
	case model.KindTLSRoute:
		return &gatewayv1.TLSRoute{ObjectMeta: g.meta(n), Spec: gatewayv1.TLSRouteSpec{CommonRouteSpec: refs}}
	case model.KindUDPRoute:
		return &gatewayv1.UDPRoute{ObjectMeta: g.meta(n), Spec: gatewayv1.UDPRouteSpec{CommonRouteSpec: refs}}
	case model.KindReferenceGrant:
		return &gatewayv1.ReferenceGrant{ObjectMeta: g.meta(n)}
	}
	return &gatewayv1.BackendTLSPolicy{ObjectMeta: g.meta(n)}
}

func (g generator) parents() []gatewayv1.ParentReference {
	var out []gatewayv1.ParentReference
	for range g.IntN(3) {
		ref := gatewayv1.ParentReference{Name: gatewayv1.ObjectName(g.pick("x", "y"))}
		switch g.IntN(4) {
		case 0:
			ref.Namespace = ptr(gatewayv1.Namespace(g.pick("foo", "bar")))
		case 1:
			ref.Kind, ref.Group = ptr(gatewayv1.Kind("Service")), ptr(gatewayv1.Group(""))
		}
		out = append(out, ref)
	}
	return out
}

// rule makes a DestinationRule with what is compiled of one.
func (g generator) rule(n model.Name) any {
	o := &networkingv1.DestinationRule{ObjectMeta: g.meta(n)}
	o.Spec.Host = g.pick("x", "y", "*", "*.local", "*.foo.svc.cluster.local", "x.foo.svc.cluster.local", "y.bar.svc.cluster.local", "ext.example.com")
	if v := g.pick("", "", ".", "*", "foo", "~"); v != "" {
		o.Spec.ExportTo = []string{v}
	}
	o.Spec.WorkloadSelector = g.workloads()
	policy := func() *networking.TrafficPolicy {
		if g.IntN(3) == 0 {
			return nil
		}
		p := &networking.TrafficPolicy{Tls: g.tls()}
		if g.IntN(2) == 0 {
			p.PortLevelSettings = []*networking.TrafficPolicy_PortTrafficPolicy{{Port: &networking.PortSelector{Number: uint32(79 + g.IntN(3))}, Tls: g.tls()}}
		}
		return p
	}
	o.Spec.TrafficPolicy = policy()
	for i := range g.IntN(3) {
		o.Spec.Subsets = append(o.Spec.Subsets, &networking.Subset{Name: "s" + strconv.Itoa(i), Labels: g.labels(), TrafficPolicy: policy()})
	}
	return o
}

// virtual makes a VirtualService, with hosts or as a delegate, right or wrong.
func (g generator) virtual(n model.Name) any {
	o := &networkingv1.VirtualService{ObjectMeta: g.meta(n)}
	for range g.IntN(3) {
		o.Spec.Hosts = append(o.Spec.Hosts, g.pick("x", "y", "*", "*.foo.svc.cluster.local", "x.bar.svc.cluster.local", "ext.example.com"))
	}
	if v := g.pick("", "", ".", "*", "foo", "~"); v != "" {
		o.Spec.ExportTo = []string{v}
	}
	if v := g.pick("", "", "mesh", "gw"); v != "" {
		o.Spec.Gateways = []string{v}
	}
	for range g.IntN(4) {
		r := &networking.HTTPRoute{Name: g.pick("", "r")}
		if g.IntN(2) == 0 {
			r.Match = []*networking.HTTPMatchRequest{{Uri: g.match(), SourceLabels: g.labels(), Port: uint32(g.IntN(3)), Gateways: o.Spec.Gateways}}
		}
		switch g.IntN(5) {
		case 0:
			r.Delegate = &networking.Delegate{Name: g.pick("x", "y", "z", "w"), Namespace: g.pick("", "foo", "bar")}
		case 1:
			r.Redirect = &networking.HTTPRedirect{Uri: "/x", RedirectCode: uint32(300 + g.IntN(9))}
		default:
			r.Route = []*networking.HTTPRouteDestination{{Destination: &networking.Destination{Host: g.pick("x", "y.bar.svc.cluster.local"), Subset: g.pick("", "s0")}}}
			r.Retries = g.retries()
		}
		o.Spec.Http = append(o.Spec.Http, r)
	}
	if g.IntN(4) == 0 {
		o.Spec.Tcp = []*networking.TCPRoute{{Match: []*networking.L4MatchAttributes{{SourceLabels: g.labels(), DestinationSubnets: []string{g.pick("10.0.0.0/8", "x")}}},
			Route: []*networking.RouteDestination{{Destination: &networking.Destination{Host: "x"}}}}}
	}
	return o
}

func (g generator) match() *networking.StringMatch {
	switch g.IntN(4) {
	case 0:
		return nil
	case 1:
		return &networking.StringMatch{MatchType: &networking.StringMatch_Exact{Exact: g.pick("/a", "/b")}}
	case 2:
		return &networking.StringMatch{MatchType: &networking.StringMatch_Regex{Regex: g.pick("/a.*", "(")}}
	}
	return &networking.StringMatch{MatchType: &networking.StringMatch_Prefix{Prefix: g.pick("/", "/a")}}
}

func (g generator) retries() *networking.HTTPRetry {
	if g.IntN(2) == 0 {
		return nil
	}
	return &networking.HTTPRetry{Attempts: int32(g.IntN(3)), RetryOn: g.pick("", "5xx,503")}
}

func (g generator) tls() *networking.ClientTLSSettings {
	if g.IntN(3) == 0 {
		return nil
	}
	return &networking.ClientTLSSettings{Mode: networking.ClientTLSSettings_TLSmode(g.IntN(4)), Sni: g.pick("", "x")}
}
