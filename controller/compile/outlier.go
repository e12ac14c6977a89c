package compile

import (
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"
)

// outlierDetection is nil when nothing is said. Hosts are ejected for errors in a row alone, as in Istio.
func outlierDetection(in *networking.OutlierDetection) *anypb.Any {
	if in == nil {
		return nil
	}
	o := &cluster.OutlierDetection{EnforcingSuccessRate: wrapperspb.UInt32(0), Interval: in.GetInterval(),
		BaseEjectionTime: in.GetBaseEjectionTime(), MaxEjectionPercent: positive(in.GetMaxEjectionPercent())}
	if o.MaxEjectionPercent == nil { // of few hosts 10 % is none: nobody could fail over (LB-08)
		o.AlwaysEjectOneHost = wrapperspb.Bool(true)
	}
	// enforce returns whether hosts are ejected for so many errors: 0 switches it off.
	enforce := func(n *wrapperspb.UInt32Value) *wrapperspb.UInt32Value {
		if n.GetValue() == 0 {
			return wrapperspb.UInt32(0)
		}
		return wrapperspb.UInt32(100)
	}
	switch n := in.GetConsecutive_5XxErrors(); {
	case n != nil:
		o.Consecutive_5Xx, o.EnforcingConsecutive_5Xx = n, enforce(n)
	case in.GetConsecutiveErrors() > 0 && in.GetConsecutiveGatewayErrors() == nil: //nolint:staticcheck // RS-12: it meant gateway errors
		o.ConsecutiveGatewayFailure, o.EnforcingConsecutiveGatewayFailure = positive(in.GetConsecutiveErrors()), wrapperspb.UInt32(100) //nolint:staticcheck // same
		o.EnforcingConsecutive_5Xx = wrapperspb.UInt32(0)
	}
	if n := in.GetConsecutiveGatewayErrors(); n != nil {
		o.ConsecutiveGatewayFailure, o.EnforcingConsecutiveGatewayFailure = n, enforce(n)
	}
	if in.GetSplitExternalLocalOriginErrors() {
		o.SplitExternalLocalOriginErrors, o.EnforcingLocalOriginSuccessRate = true, wrapperspb.UInt32(0)
		if n := in.GetConsecutiveLocalOriginFailures(); n.GetValue() > 0 {
			o.ConsecutiveLocalOriginFailure, o.EnforcingConsecutiveLocalOriginFailure = n, wrapperspb.UInt32(100)
		}
	}
	return pack(&cluster.Cluster{OutlierDetection: o, CommonLbConfig: &cluster.Cluster_CommonLbConfig{
		HealthyPanicThreshold: &typev3.Percent{Value: float64(min(max(in.GetMinHealthPercent(), 0), 100))}}})
}
