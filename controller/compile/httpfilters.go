package compile

import (
	"math"
	"strconv"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	commonfault "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	cors "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	httpfault "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	previous "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	priorities "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"
)

// What is tried again without a rule (RS-06), unless MeshConfig says otherwise.
const (
	defaultRetries = 2
	defaultRetryOn = "connect-failure,refused-stream,unavailable,cancelled"
	// hostAttempts is how often another endpoint is looked for than the one that failed.
	hostAttempts = 5
	// previousPriorities is after how many attempts another priority is tried.
	previousPriorities = 2
)

// retryPolicy is nil when retries are turned off; nothing said is the default.
func retryPolicy(in *networking.HTTPRetry) *route.RetryPolicy {
	out := &route.RetryPolicy{RetryOn: defaultRetryOn, NumRetries: wrapperspb.UInt32(defaultRetries),
		HostSelectionRetryMaxAttempts: hostAttempts, RetryHostPredicate: otherHosts()}
	if in == nil {
		return out
	}
	if in.GetAttempts() <= 0 {
		return nil
	}
	out.NumRetries = wrapperspb.UInt32(uint32(in.GetAttempts()))
	out.PerTryTimeout = in.GetPerTryTimeout()
	if in.GetRetryOn() != "" {
		out.RetryOn, out.RetriableStatusCodes = retryOn(in.GetRetryOn())
	}
	if own := in.GetRetryIgnorePreviousHosts(); own != nil && !own.GetValue() {
		out.RetryHostPredicate = nil
	}
	if in.GetRetryRemoteLocalities().GetValue() {
		out.RetryPriority = &route.RetryPolicy_RetryPriority{Name: "envoy.retry_priorities.previous_priorities",
			ConfigType: &route.RetryPolicy_RetryPriority_TypedConfig{TypedConfig: pack(&priorities.PreviousPrioritiesConfig{UpdateFrequency: previousPriorities})}}
	}
	if in.GetBackoff() != nil {
		out.RetryBackOff = &route.RetryPolicy_RetryBackOff{BaseInterval: in.GetBackoff()}
	}
	return out
}

func otherHosts() []*route.RetryPolicy_RetryHostPredicate {
	return []*route.RetryPolicy_RetryHostPredicate{{Name: "envoy.retry_host_predicates.previous_hosts",
		ConfigType: &route.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: pack(&previous.PreviousHostsPredicate{})}}}
}

// retryOn takes the status codes out of the conditions: Istio lets them stand together.
func retryOn(text string) (conditions string, statuses []uint32) {
	var names []string
	byStatus := false
	for name := range strings.SplitSeq(text, ",") {
		name = strings.TrimSpace(name)
		code, err := strconv.Atoi(name)
		switch {
		case name == "":
		case err == nil && code >= 100 && code <= 599:
			statuses = append(statuses, uint32(code))
		default:
			names = append(names, name)
			byStatus = byStatus || name == "retriable-status-codes"
		}
	}
	if len(statuses) > 0 && !byStatus {
		names = append(names, "retriable-status-codes")
	}
	return strings.Join(names, ","), statuses
}

// percentage is everything when nothing is said.
func percentage(in *networking.Percent) *typev3.FractionalPercent {
	if in == nil {
		return fraction(100)
	}
	return fraction(in.GetValue())
}

// fraction keeps four decimal places of a percentage (RS-18).
func fraction(percent float64) *typev3.FractionalPercent {
	n := math.Round(min(max(percent, 0), 100) * 10_000)
	return &typev3.FractionalPercent{Numerator: uint32(n), Denominator: typev3.FractionalPercent_MILLION}
}

func share(f *typev3.FractionalPercent) *core.RuntimeFractionalPercent {
	return &core.RuntimeFractionalPercent{DefaultValue: f}
}

// fault is nil when the rule injects none.
func fault(in *networking.HTTPFaultInjection) *httpfault.HTTPFault {
	out := &httpfault.HTTPFault{}
	if d := in.GetDelay(); d.GetFixedDelay() != nil {
		part := fraction(float64(d.GetPercent())) //nolint:staticcheck // RS-15
		if d.GetPercentage() != nil {
			part = percentage(d.GetPercentage())
		}
		out.Delay = &commonfault.FaultDelay{Percentage: part, FaultDelaySecifier: &commonfault.FaultDelay_FixedDelay{FixedDelay: d.GetFixedDelay()}}
	}
	if a := in.GetAbort(); a != nil {
		out.Abort = &httpfault.FaultAbort{Percentage: fraction(0)}
		if a.GetPercentage() != nil {
			out.Abort.Percentage = percentage(a.GetPercentage())
		}
		switch e := a.GetErrorType().(type) {
		case *networking.HTTPFaultInjection_Abort_HttpStatus:
			out.Abort.ErrorType = &httpfault.FaultAbort_HttpStatus{HttpStatus: uint32(e.HttpStatus)}
		case *networking.HTTPFaultInjection_Abort_GrpcStatus:
			out.Abort.ErrorType = &httpfault.FaultAbort_GrpcStatus{GrpcStatus: grpcStatus(e.GrpcStatus)}
		default:
			out.Abort = nil
		}
	}
	if out.GetDelay() == nil && out.GetAbort() == nil {
		return nil
	}
	return out
}

// grpcStatus reads a name such as UNAVAILABLE; what is none was found to be wrong.
func grpcStatus(name string) uint32 {
	var code codes.Code
	if code.UnmarshalJSON([]byte(strconv.Quote(name))) != nil {
		return uint32(codes.Unknown)
	}
	return uint32(code)
}

func corsPolicy(in *networking.CorsPolicy) *cors.CorsPolicy {
	out := &cors.CorsPolicy{AllowCredentials: in.GetAllowCredentials(), AllowHeaders: strings.Join(in.GetAllowHeaders(), ","),
		AllowMethods: strings.Join(in.GetAllowMethods(), ","), ExposeHeaders: strings.Join(in.GetExposeHeaders(), ","),
		ForwardNotMatchingPreflights: wrapperspb.Bool(in.GetUnmatchedPreflights() != networking.CorsPolicy_IGNORE),
		FilterEnabled:                share(&typev3.FractionalPercent{Numerator: 100, Denominator: typev3.FractionalPercent_HUNDRED})}
	for _, o := range in.GetAllowOrigins() {
		if m := stringMatch(o); m != nil {
			out.AllowOriginStringMatch = append(out.AllowOriginStringMatch, m)
		}
	}
	if len(in.GetAllowOrigins()) == 0 {
		for _, o := range in.GetAllowOrigin() { //nolint:staticcheck // still read
			out.AllowOriginStringMatch = append(out.AllowOriginStringMatch, &matcher.StringMatcher{MatchPattern: &matcher.StringMatcher_Exact{Exact: o}})
		}
	}
	if d := in.GetMaxAge(); d != nil {
		out.MaxAge = strconv.FormatInt(d.GetSeconds(), 10)
	}
	return out
}
