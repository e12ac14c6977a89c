package explain

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
)

// compacted is JSON without the blanks that protojson puts in by chance.
func compacted(text []byte) json.RawMessage {
	var out bytes.Buffer
	if json.Compact(&out, text) != nil {
		return nil
	}
	return out.Bytes()
}

// matchText is a match for people.
func matchText(m *routev3.RouteMatch) string {
	var out []string
	switch p := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		out = append(out, p.Prefix+"*")
	case *routev3.RouteMatch_Path:
		out = append(out, p.Path)
	case *routev3.RouteMatch_PathSeparatedPrefix:
		out = append(out, p.PathSeparatedPrefix+"/*")
	case *routev3.RouteMatch_SafeRegex:
		out = append(out, "regex "+p.SafeRegex.GetRegex())
	case *routev3.RouteMatch_ConnectMatcher_:
		out = append(out, "CONNECT")
	}
	for _, h := range m.GetHeaders() {
		not := ""
		if h.GetInvertMatch() {
			not = "not "
		}
		out = append(out, not+h.GetName()+headerText(h))
	}
	for _, q := range m.GetQueryParameters() {
		out = append(out, "?"+q.GetName()+stringText(q.GetStringMatch()))
	}
	return strings.Join(out, ", ")
}

func headerText(h *routev3.HeaderMatcher) string {
	if s := h.GetStringMatch(); s != nil {
		return stringText(s)
	}
	if r := h.GetRangeMatch(); r != nil {
		return fmt.Sprintf(" from %d to %d", r.GetStart(), r.GetEnd()-1)
	}
	return ""
}

// stringText is "" where the value does not count.
func stringText(m *matcherv3.StringMatcher) string {
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		return "=" + p.Exact
	case *matcherv3.StringMatcher_Prefix:
		return "=" + p.Prefix + "*"
	case *matcherv3.StringMatcher_Suffix:
		return "=*" + p.Suffix
	case *matcherv3.StringMatcher_Contains:
		return "=*" + p.Contains + "*"
	case *matcherv3.StringMatcher_SafeRegex:
		return "=regex " + p.SafeRegex.GetRegex()
	}
	return ""
}

// effects are what a route does beside leading somewhere, a line each.
func effects(r *routev3.Route) []string {
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	fault := faultOf(r)
	if d := fault.GetDelay(); d != nil {
		say("fault: %g %% are delayed by %s", shareOf(d.GetPercentage()), d.GetFixedDelay().AsDuration())
	}
	if a := fault.GetAbort(); a != nil {
		say("fault: %g %% are answered with %s", shareOf(a.GetPercentage()), abortText(a))
	}
	for name := range r.GetTypedPerFilterConfig() {
		if strings.HasSuffix(name, ".cors") {
			say("CORS")
		}
	}
	headers := func(what string, add []*corev3.HeaderValueOption, remove []string) {
		for _, h := range add {
			say("%s header %s: %s", what, h.GetHeader().GetKey(), h.GetHeader().GetValue())
		}
		for _, h := range remove {
			say("%s header %s removed", what, h)
		}
	}
	headers("request", r.GetRequestHeadersToAdd(), r.GetRequestHeadersToRemove())
	headers("response", r.GetResponseHeadersToAdd(), r.GetResponseHeadersToRemove())
	a := r.GetRoute()
	if a == nil {
		return out
	}
	switch {
	case a.GetPrefixRewrite() != "":
		say("path becomes %s…", a.GetPrefixRewrite())
	case a.GetRegexRewrite() != nil:
		say("path: %s becomes %s", a.GetRegexRewrite().GetPattern().GetRegex(), a.GetRegexRewrite().GetSubstitution())
	}
	if h := a.GetHostRewriteLiteral(); h != "" {
		say("authority becomes %s", h)
	}
	if t := a.GetTimeout(); t.AsDuration() > 0 {
		say("timeout %s", t.AsDuration())
	}
	if p := a.GetRetryPolicy(); p != nil && p.GetNumRetries().GetValue() > 0 {
		say("up to %d retries on %s%s", p.GetNumRetries().GetValue(), p.GetRetryOn(), perTry(p.GetPerTryTimeout()))
	}
	for _, m := range a.GetRequestMirrorPolicies() {
		say("mirror: %g %% to %s", shareOf(m.GetRuntimeFraction().GetDefaultValue()), m.GetCluster())
	}
	return out
}

func perTry(d *durationpb.Duration) string {
	if d.AsDuration() <= time.Duration(0) {
		return ""
	}
	return ", " + d.AsDuration().String() + " each"
}

func abortText(a *faultv3.FaultAbort) string {
	if _, ok := a.GetErrorType().(*faultv3.FaultAbort_GrpcStatus); ok {
		return fmt.Sprintf("status %d of gRPC", a.GetGrpcStatus())
	}
	return fmt.Sprint(a.GetHttpStatus())
}

// faultOf is the fault of a route, nil without any.
func faultOf(r *routev3.Route) *faultv3.HTTPFault {
	for _, config := range r.GetTypedPerFilterConfig() {
		fault := &faultv3.HTTPFault{}
		if config.MessageIs(fault) && config.UnmarshalTo(fault) == nil {
			return fault
		}
	}
	return nil
}

// shareOf is a share of requests in percent; none said: all of them.
func shareOf(p *typev3.FractionalPercent) float64 {
	if p == nil {
		return 100
	}
	of := map[typev3.FractionalPercent_DenominatorType]float64{typev3.FractionalPercent_HUNDRED: 1,
		typev3.FractionalPercent_TEN_THOUSAND: 100, typev3.FractionalPercent_MILLION: 10_000}[p.GetDenominator()]
	return float64(p.GetNumerator()) / of
}
