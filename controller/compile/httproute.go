package compile

import (
	"fmt"
	"slices"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/validate"
)

// http translates one rule, or the rules that it delegates to.
func (t *routeTranslator) http(in *networking.HTTPRoute, at string) {
	if in.GetDelegate() != nil {
		t.delegate(in, at)
		return
	}
	t.rules(in, t.rule.Namespace, at)
}

// rules makes one rule of each condition of an Istio rule; destinations are named as seen from the namespace.
func (t *routeTranslator) rules(in *networking.HTTPRoute, namespace, at string) {
	if !t.within(at) {
		return
	}
	if code := in.GetRedirect().GetRedirectCode(); code != 0 && code != 301 && redirectCodes[code] == 0 {
		t.add(validate.Error, at+".redirect.redirectCode", "%d is none of 301, 302, 303, 307 and 308", code)
		return
	}
	matches := in.GetMatch()
	if len(matches) == 0 {
		matches = []*networking.HTTPMatchRequest{nil}
	}
	for i, m := range matches {
		if !inMesh(m.GetGateways()) {
			continue
		}
		at := at
		if m != nil {
			at = fmt.Sprintf("%s.match[%d]", at, i)
		}
		match, ever := t.match(m, at)
		if !ever {
			continue
		}
		out := &route.Route{Name: in.GetName(), Match: match, StatPrefix: m.GetStatPrefix(), Metadata: t.metadata()}
		if m.GetName() != "" {
			out.Name += "." + m.GetName()
		}
		rule := &settings.HttpRule{Caller: callerMatch(m.GetSourceLabels(), m.GetSourceNamespace(), m.GetPort())}
		if key := t.unknownLabel(m.GetSourceLabels()); key != "" {
			rule.Caller = callerMatch(nil, m.GetSourceNamespace(), m.GetPort())
			t.act(out, rule, t.refused(at+".sourceLabels."+key), namespace)
		} else {
			t.act(out, rule, in, namespace)
		}
		rule.Route = pack(out)
		t.out.Http = append(t.out.Http, rule)
		if t.bytes += proto.Size(rule); !t.within(at) {
			return
		}
	}
}

// unknownLabel is the first label that nodes are not told of callers, "" for none.
func (t *routeTranslator) unknownLabel(labels map[string]string) string {
	for _, k := range sortedKeys(labels) {
		if !t.c.reg.CallerLabel(k) {
			return k
		}
	}
	return ""
}

// refused stands for a rule with a condition that nodes cannot judge: what the others take must not go to the rules below.
func (t *routeTranslator) refused(field string) *networking.HTTPRoute {
	t.add(validate.Warning, field, "%s: what the rest of the condition takes is answered by %d", labelsUsedUp, invalidStatus)
	return &networking.HTTPRoute{DirectResponse: &networking.HTTPDirectResponse{Status: invalidStatus, Body: &networking.HTTPBody{
		Specifier: &networking.HTTPBody_String_{String_: fmt.Sprintf("VirtualService %s/%s: %s %s", t.rule.Namespace, t.rule.VirtualService.Name, field, labelsUsedUp)}}}}
}

// metadata says whose route it is, in the same place as Istio.
func (t *routeTranslator) metadata() *core.Metadata {
	return &core.Metadata{FilterMetadata: map[string]*structpb.Struct{api.RuleMetadata: {Fields: map[string]*structpb.Value{
		api.RuleField: structpb.NewStringValue(api.RulePath(t.rule.Namespace, "virtual-service", t.rule.VirtualService.Name))}}}}
}

// act fills in what becomes of a request.
func (t *routeTranslator) act(out *route.Route, rule *settings.HttpRule, in *networking.HTTPRoute, namespace string) {
	edits := headerEdits(in.GetHeaders())
	out.RequestHeadersToAdd, out.RequestHeadersToRemove = edits.requestAdd, edits.requestRemove
	out.ResponseHeadersToAdd, out.ResponseHeadersToRemove = edits.responseAdd, edits.responseRemove
	switch {
	case in.GetRedirect() != nil:
		out.Action = &route.Route_Redirect{Redirect: redirect(in.GetRedirect())}
		_, derive := in.GetRedirect().GetRedirectPort().(*networking.HTTPRedirect_DerivePort)
		rule.RedirectCalledPort = derive && in.GetRedirect().GetDerivePort() == networking.HTTPRedirect_FROM_REQUEST_PORT
	case in.GetDirectResponse() != nil:
		out.Action = &route.Route_DirectResponse{DirectResponse: directResponse(in.GetDirectResponse())}
	default:
		rule.OwnRetryHosts = in.GetRetries().GetRetryIgnorePreviousHosts() != nil
		t.forward(out, in, edits.authority, namespace)
	}
	filters := map[string]*anypb.Any{}
	if f := fault(in.GetFault()); f != nil {
		filters["envoy.filters.http.fault"] = pack(f)
	}
	if in.GetCorsPolicy() != nil {
		filters["envoy.filters.http.cors"] = pack(corsPolicy(in.GetCorsPolicy()))
	}
	if len(filters) > 0 {
		out.TypedPerFilterConfig = filters
	}
}

func (t *routeTranslator) forward(out *route.Route, in *networking.HTTPRoute, authority, namespace string) {
	action := &route.RouteAction{Timeout: durationpb.New(0)} // RS-02
	if d := in.GetTimeout(); d != nil {
		action.Timeout = d
	}
	action.MaxGrpcTimeout = action.GetTimeout() //nolint:staticcheck // what stands in its place is not bounded by the timeout
	if x := in.GetRewrite().GetUriRegexRewrite(); x != nil {
		action.RegexRewrite = &matcher.RegexMatchAndSubstitute{Pattern: &matcher.RegexMatcher{Regex: x.GetMatch()}, Substitution: x.GetRewrite()}
	} else {
		action.PrefixRewrite = in.GetRewrite().GetUri()
	}
	if a := in.GetRewrite().GetAuthority(); a != "" {
		authority = a
	}
	t.mirrors(action, in, namespace)
	if len(in.GetRoute()) == 1 {
		d := in.GetRoute()[0]
		action.ClusterSpecifier = &route.RouteAction_Cluster{Cluster: t.c.destination(d.GetDestination(), namespace)}
		edits := headerEdits(d.GetHeaders())
		out.RequestHeadersToAdd = append(out.RequestHeadersToAdd, edits.requestAdd...)
		out.RequestHeadersToRemove = append(out.RequestHeadersToRemove, edits.requestRemove...)
		out.ResponseHeadersToAdd = append(out.ResponseHeadersToAdd, edits.responseAdd...)
		out.ResponseHeadersToRemove = append(out.ResponseHeadersToRemove, edits.responseRemove...)
		if authority == "" {
			authority = edits.authority
		}
	} else {
		action.ClusterSpecifier = &route.RouteAction_WeightedClusters{WeightedClusters: t.weighted(in.GetRoute(), namespace)}
	}
	if authority != "" {
		action.HostRewriteSpecifier = &route.RouteAction_HostRewriteLiteral{HostRewriteLiteral: authority}
	}
	retries := in.GetRetries()
	if retries == nil {
		retries = t.c.reg.Mesh().Config.GetDefaultHttpRetryPolicy()
	}
	action.RetryPolicy = retryPolicy(retries)
	out.Action = &route.Route_Route{Route: action}
}

func (t *routeTranslator) weighted(in []*networking.HTTPRouteDestination, namespace string) *route.WeightedCluster {
	out := &route.WeightedCluster{}
	for _, d := range in {
		if d.GetWeight() <= 0 {
			continue
		}
		edits := headerEdits(d.GetHeaders())
		w := &route.WeightedCluster_ClusterWeight{Name: t.c.destination(d.GetDestination(), namespace), Weight: wrapperspb.UInt32(uint32(d.GetWeight())),
			RequestHeadersToAdd: edits.requestAdd, RequestHeadersToRemove: edits.requestRemove,
			ResponseHeadersToAdd: edits.responseAdd, ResponseHeadersToRemove: edits.responseRemove}
		if edits.authority != "" {
			w.HostRewriteSpecifier = &route.WeightedCluster_ClusterWeight_HostRewriteLiteral{HostRewriteLiteral: edits.authority}
		}
		out.Clusters = append(out.Clusters, w)
	}
	return out
}

func (t *routeTranslator) mirrors(action *route.RouteAction, in *networking.HTTPRoute, namespace string) {
	put := func(d *networking.Destination, share *core.RuntimeFractionalPercent) {
		if share.GetDefaultValue().GetNumerator() > 0 {
			action.RequestMirrorPolicies = append(action.RequestMirrorPolicies, &route.RouteAction_RequestMirrorPolicy{
				Cluster: t.c.destination(d, namespace), RuntimeFraction: share, TraceSampled: wrapperspb.Bool(false)})
		}
	}
	if d := in.GetMirror(); d != nil {
		switch old := in.GetMirrorPercent(); { //nolint:staticcheck // still read
		case in.GetMirrorPercentage() == nil && old != nil:
			put(d, share(fraction(float64(old.GetValue()))))
		default:
			put(d, share(percentage(in.GetMirrorPercentage())))
		}
	}
	for _, m := range in.GetMirrors() {
		if m.GetDestination() != nil {
			put(m.GetDestination(), share(percentage(m.GetPercentage())))
		}
	}
}

func redirect(in *networking.HTTPRedirect) *route.RedirectAction {
	out := &route.RedirectAction{HostRedirect: in.GetAuthority()}
	switch {
	case in.GetPrefixRewrite() != "":
		out.PathRewriteSpecifier = &route.RedirectAction_PrefixRewrite{PrefixRewrite: in.GetPrefixRewrite()}
	case in.GetUri() != "":
		out.PathRewriteSpecifier = &route.RedirectAction_PathRedirect{PathRedirect: in.GetUri()}
	}
	if in.GetScheme() != "" {
		out.SchemeRewriteSpecifier = &route.RedirectAction_SchemeRedirect{SchemeRedirect: in.GetScheme()}
	}
	if p, ok := in.GetRedirectPort().(*networking.HTTPRedirect_Port); ok {
		out.PortRedirect = p.Port
		if https := in.GetScheme() == "https"; p.Port == 80 && !https || p.Port == 443 && https { // the scheme says it
			out.PortRedirect = 0
		}
	}
	out.ResponseCode = redirectCodes[in.GetRedirectCode()]
	return out
}

// redirectCodes are those that Envoy knows; 0 is the default, 301.
var redirectCodes = map[uint32]route.RedirectAction_RedirectResponseCode{
	301: route.RedirectAction_MOVED_PERMANENTLY, 302: route.RedirectAction_FOUND, 303: route.RedirectAction_SEE_OTHER,
	307: route.RedirectAction_TEMPORARY_REDIRECT, 308: route.RedirectAction_PERMANENT_REDIRECT,
}

func directResponse(in *networking.HTTPDirectResponse) *route.DirectResponseAction {
	out := &route.DirectResponseAction{Status: in.GetStatus()}
	switch b := in.GetBody().GetSpecifier().(type) {
	case *networking.HTTPBody_String_:
		out.Body = &core.DataSource{Specifier: &core.DataSource_InlineString{InlineString: b.String_}}
	case *networking.HTTPBody_Bytes:
		out.Body = &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: b.Bytes}}
	}
	return out
}

// edits are changes of headers.
type edits struct {
	requestAdd, responseAdd       []*core.HeaderValueOption
	requestRemove, responseRemove []string
	authority                     string // that requests get; "" for none
}

func headerEdits(in *networking.Headers) edits {
	var out edits
	out.requestAdd, out.authority = headerValues(in.GetRequest().GetSet(), core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)
	more, added := headerValues(in.GetRequest().GetAdd(), core.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD)
	out.requestAdd = append(out.requestAdd, more...)
	if out.authority == "" {
		out.authority = added
	}
	out.responseAdd, _ = headerValues(in.GetResponse().GetSet(), core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)
	more, _ = headerValues(in.GetResponse().GetAdd(), core.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD)
	out.responseAdd = append(out.responseAdd, more...)
	out.requestRemove = slices.DeleteFunc(slices.Clone(in.GetRequest().GetRemove()), ownHeader)
	out.responseRemove = slices.DeleteFunc(slices.Clone(in.GetResponse().GetRemove()), ownHeader)
	return out
}

// ownHeader reports whether the header is one that rules cannot change.
func ownHeader(name string) bool {
	return strings.HasPrefix(name, ":") || strings.EqualFold(name, "host")
}

func headerValues(in map[string]string, action core.HeaderValueOption_HeaderAppendAction) (out []*core.HeaderValueOption, authority string) {
	for _, name := range sortedKeys(in) {
		if strings.EqualFold(name, ":authority") || strings.EqualFold(name, "host") {
			authority = in[name]
		}
		if !ownHeader(name) {
			out = append(out, &core.HeaderValueOption{Header: &core.HeaderValue{Key: name, Value: in[name]}, AppendAction: action})
		}
	}
	return out, authority
}
