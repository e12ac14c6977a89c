package compile

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/validate"
)

// invalidStatus answers what cannot be carried out.
const invalidStatus = 503

// delegate puts the rules of another VirtualService in the place of the rule, under its conditions. Where there are none, what the
// conditions take is refused: it must not go to the rules below.
func (t *routeTranslator) delegate(root *networking.HTTPRoute, at string) {
	d := root.GetDelegate()
	n := model.Name{Namespace: d.GetNamespace(), Name: d.GetName()}
	if n.Namespace == "" {
		n.Namespace = t.rule.Namespace
	}
	v := t.c.reg.VirtualService(n)
	refuse := func(why string) {
		t.add(validate.Warning, at+".delegate", "VirtualService %s %s: what the rule takes is answered by %d", n, why, invalidStatus)
		refused := &networking.HTTPRoute{Name: root.GetName(), Match: root.GetMatch(), DirectResponse: &networking.HTTPDirectResponse{
			Status: invalidStatus, Body: &networking.HTTPBody{Specifier: &networking.HTTPBody_String_{String_: fmt.Sprintf("VirtualService %s/%s: %s.delegate: %s %s",
				t.rule.Namespace, t.rule.VirtualService.Name, at, n, why)}}}}
		t.rules(refused, t.rule.Namespace, at)
	}
	switch {
	case v == nil:
		refuse("is not there")
		return
	case len(v.Spec.GetHosts()) > 0:
		refuse("has hosts of its own, so that it is no delegate")
		return
	case !t.c.reg.VirtualExportTo(v).Visible(t.rule.Namespace):
		refuse("is not exported to the namespace")
		return
	case firstError(v.Findings) != "":
		refuse("cannot be carried out: " + firstError(v.Findings))
		return
	}
	fits := false
	for i, r := range v.Spec.GetHttp() {
		if r.GetDelegate() != nil {
			t.add(validate.Warning, at+".delegate", "spec.http[%d] of %s delegates further, which is not supported: the rule is left out", i, n)
			continue
		}
		for _, m := range root.GetMatch() {
			t.pairs += max(len(r.GetMatch()), 1) * proto.Size(m)
		}
		for _, m := range r.GetMatch() {
			t.pairs += max(len(root.GetMatch()), 1) * proto.Size(m)
		}
		if t.pairs += proto.Size(r); !t.within(fmt.Sprintf("%s.delegate: spec.http[%d] of %s", at, i, n)) {
			return
		}
		merged, why := mergeRoutes(root, r)
		if why != "" {
			t.add(validate.Warning, at+".delegate", "spec.http[%d] of %s is left out: its %s is at odds with the conditions here", i, n, why)
			continue
		}
		fits = true
		t.rules(merged, n.Namespace, at)
	}
	if !fits {
		refuse("has no rule that fits")
	}
}

// mergeRoutes returns the delegate's rule under the conditions of the root's, with what only the root says, or what is at odds.
func mergeRoutes(root, leaf *networking.HTTPRoute) (out *networking.HTTPRoute, odds string) {
	out = proto.CloneOf(leaf)
	if out.Match, odds = mergeMatches(root.GetMatch(), leaf.GetMatch()); odds != "" {
		return nil, odds
	}
	out.Name = joinNames(root.GetName(), leaf.GetName())
	from, to := root.ProtoReflect(), out.ProtoReflect()
	for _, name := range []string{"rewrite", "timeout", "retries", "fault", "mirror", "mirror_percent", "mirror_percentage", "mirrors", "cors_policy", "headers"} {
		if f := from.Descriptor().Fields().ByTextName(name); from.Has(f) && !to.Has(f) {
			to.Set(f, from.Get(f))
		}
	}
	return out, ""
}

func joinNames(root, leaf string) string {
	return strings.Trim(root+"-"+leaf, "-")
}

// mergeMatches pairs the conditions: each of the delegate must fit into one of the root.
func mergeMatches(root, leaf []*networking.HTTPMatchRequest) (out []*networking.HTTPMatchRequest, odds string) {
	switch {
	case len(root) == 0:
		return leaf, ""
	case len(leaf) == 0:
		return root, ""
	}
	for _, l := range leaf {
		fits := false
		for _, r := range root {
			why := matchOdds(r, l)
			if why != "" {
				odds = why
				continue
			}
			out, fits = append(out, mergeMatch(r, l)), true
		}
		if !fits {
			return nil, odds
		}
	}
	return out, ""
}

func mergeMatch(root, leaf *networking.HTTPMatchRequest) *networking.HTTPMatchRequest {
	out := proto.CloneOf(leaf)
	out.Name = joinNames(root.GetName(), leaf.GetName())
	from, to := root.ProtoReflect(), out.ProtoReflect()
	for _, name := range []string{"uri", "scheme", "method", "authority", "port", "source_namespace", "gateways", "stat_prefix"} {
		if f := from.Descriptor().Fields().ByTextName(name); from.Has(f) && !to.Has(f) {
			to.Set(f, from.Get(f))
		}
	}
	out.Headers, out.WithoutHeaders = both(root.GetHeaders(), leaf.GetHeaders()), both(root.GetWithoutHeaders(), leaf.GetWithoutHeaders())
	out.QueryParams, out.SourceLabels = both(root.GetQueryParams(), leaf.GetQueryParams()), both(root.GetSourceLabels(), leaf.GetSourceLabels())
	return out
}

// both is the conditions of two maps, of which the second counts where both have a key.
func both[V any](a, b map[string]V) map[string]V {
	if len(a)+len(b) == 0 {
		return nil
	}
	out := map[string]V{}
	maps.Copy(out, a)
	maps.Copy(out, b)
	return out
}

// matchOdds names what of a delegate's condition does not fit into the root's, "" when all does.
func matchOdds(root, leaf *networking.HTTPMatchRequest) string {
	for _, f := range []struct {
		name string
		a, b *networking.StringMatch
	}{{"uri", root.GetUri(), leaf.GetUri()}, {"scheme", root.GetScheme(), leaf.GetScheme()}, {"method", root.GetMethod(), leaf.GetMethod()},
		{"authority", root.GetAuthority(), leaf.GetAuthority()}} {
		if !narrows(f.a, f.b) {
			return f.name
		}
	}
	for _, f := range []struct {
		name string
		a, b map[string]*networking.StringMatch
	}{{"headers", root.GetHeaders(), leaf.GetHeaders()}, {"withoutHeaders", root.GetWithoutHeaders(), leaf.GetWithoutHeaders()},
		{"queryParams", root.GetQueryParams(), leaf.GetQueryParams()}} {
		for _, k := range sortedKeys(f.b) {
			if !narrows(f.a[k], f.b[k]) {
				return f.name + "." + k
			}
		}
	}
	for _, k := range sortedKeys(leaf.GetSourceLabels()) {
		if have, ok := root.GetSourceLabels()[k]; ok && have != leaf.GetSourceLabels()[k] {
			return "sourceLabels." + k
		}
	}
	outside := func(g string) bool { return !slices.Contains(root.GetGateways(), g) }
	switch {
	case root.GetIgnoreUriCase() != leaf.GetIgnoreUriCase():
		return "ignoreUriCase"
	case root.GetPort() > 0 && leaf.GetPort() > 0 && root.GetPort() != leaf.GetPort():
		return "port"
	case root.GetSourceNamespace() != "" && leaf.GetSourceNamespace() != "" && root.GetSourceNamespace() != leaf.GetSourceNamespace():
		return "sourceNamespace"
	case len(root.GetGateways()) > 0 && slices.ContainsFunc(leaf.GetGateways(), outside):
		return "gateways"
	}
	return ""
}

// narrows reports whether what the delegate wants is part of what the root wants. A regular expression stands alone.
func narrows(root, leaf *networking.StringMatch) bool {
	if root.GetMatchType() == nil || leaf.GetMatchType() == nil {
		return true
	}
	switch r := root.GetMatchType().(type) {
	case *networking.StringMatch_Exact:
		l, ok := leaf.GetMatchType().(*networking.StringMatch_Exact)
		return ok && l.Exact == r.Exact
	case *networking.StringMatch_Prefix:
		switch l := leaf.GetMatchType().(type) {
		case *networking.StringMatch_Exact:
			return strings.HasPrefix(l.Exact, r.Prefix)
		case *networking.StringMatch_Prefix:
			return strings.HasPrefix(l.Prefix, r.Prefix)
		}
	}
	return false
}
