package compile

import (
	"maps"
	"slices"
	"strings"

	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/undermesh/undermesh/controller/validate"
)

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// match translates a condition; nil is that there is none. ever is false for one that no request of a workload meets.
func (t *routeTranslator) match(in *networking.HTTPMatchRequest, at string) (out *route.RouteMatch, ever bool) {
	out = &route.RouteMatch{PathSpecifier: &route.RouteMatch_Prefix{Prefix: "/"}}
	if in == nil {
		return out, true
	}
	ever = true
	for _, name := range sortedKeys(in.GetHeaders()) {
		if claim(name) {
			t.add(validate.Info, at+".headers."+name, "is never met in the mesh: tokens are known at gateways only")
			ever = false
			continue
		}
		out.Headers = append(out.Headers, headerMatch(name, in.GetHeaders()[name]))
	}
	for _, name := range sortedKeys(in.GetWithoutHeaders()) {
		if claim(name) {
			continue // there is never one
		}
		m := headerMatch(name, in.GetWithoutHeaders()[name])
		m.InvertMatch, m.TreatMissingHeaderAsEmpty = true, !present(in.GetWithoutHeaders()[name])
		out.Headers = append(out.Headers, m)
	}
	slices.SortStableFunc(out.Headers, func(a, b *route.HeaderMatcher) int { return strings.Compare(a.GetName(), b.GetName()) })
	switch m := in.GetUri().GetMatchType().(type) {
	case *networking.StringMatch_Exact:
		out.PathSpecifier = &route.RouteMatch_Path{Path: m.Exact}
	case *networking.StringMatch_Prefix:
		out.PathSpecifier = &route.RouteMatch_Prefix{Prefix: m.Prefix}
	case *networking.StringMatch_Regex:
		out.PathSpecifier = &route.RouteMatch_SafeRegex{SafeRegex: &matcher.RegexMatcher{Regex: m.Regex}}
	}
	out.CaseSensitive = wrapperspb.Bool(!in.GetIgnoreUriCase())
	for _, h := range []struct {
		name string
		is   *networking.StringMatch
	}{{":method", in.GetMethod()}, {":authority", in.GetAuthority()}, {":scheme", in.GetScheme()}} {
		if h.is != nil {
			out.Headers = append(out.Headers, headerMatch(h.name, h.is))
		}
	}
	for _, name := range sortedKeys(in.GetQueryParams()) {
		m := &route.QueryParameterMatcher{Name: name, QueryParameterMatchSpecifier: &route.QueryParameterMatcher_PresentMatch{PresentMatch: true}}
		if text := stringMatch(in.GetQueryParams()[name]); text != nil {
			m.QueryParameterMatchSpecifier = &route.QueryParameterMatcher_StringMatch{StringMatch: text}
		}
		out.QueryParameters = append(out.QueryParameters, m)
	}
	return out, ever
}

// claim reports whether the name of a header stands for a claim of a token.
func claim(name string) bool { return strings.HasPrefix(strings.ToLower(name), "@request.auth.claims") }

// present reports whether the condition is that there is a value, whatever it is.
func present(in *networking.StringMatch) bool { return stringMatch(in) == nil }

func headerMatch(name string, in *networking.StringMatch) *route.HeaderMatcher {
	out := &route.HeaderMatcher{Name: name, HeaderMatchSpecifier: &route.HeaderMatcher_PresentMatch{PresentMatch: true}}
	if m := stringMatch(in); m != nil {
		out.HeaderMatchSpecifier = &route.HeaderMatcher_StringMatch{StringMatch: m}
	}
	return out
}

// stringMatch is nil for a condition that every value meets: none, and the regex "*", which Istio takes for that.
func stringMatch(in *networking.StringMatch) *matcher.StringMatcher {
	switch m := in.GetMatchType().(type) {
	case *networking.StringMatch_Exact:
		return &matcher.StringMatcher{MatchPattern: &matcher.StringMatcher_Exact{Exact: m.Exact}}
	case *networking.StringMatch_Prefix:
		return &matcher.StringMatcher{MatchPattern: &matcher.StringMatcher_Prefix{Prefix: m.Prefix}}
	case *networking.StringMatch_Regex:
		if m.Regex == "*" {
			return nil
		}
		return &matcher.StringMatcher{MatchPattern: &matcher.StringMatcher_SafeRegex{SafeRegex: &matcher.RegexMatcher{Regex: m.Regex}}}
	}
	return nil
}
