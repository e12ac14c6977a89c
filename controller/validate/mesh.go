package validate

import (
	"strings"

	"google.golang.org/protobuf/proto"
	extensions "istio.io/api/extensions/v1alpha1"
	securitybeta "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
)

// mesh registers the kinds of Istio.
func (c *Catalogue) mesh() {
	const net, sec = "networking.istio.io", "security.istio.io"
	three, two := []string{"v1", "v1beta1", "v1alpha3"}, []string{"v1", "v1beta1"}
	addProto(c, net, three, "VirtualService", virtualServiceRules)
	addProto(c, net, three, "DestinationRule", destinationRules)
	addProto(c, net, three, "Gateway", gatewayRules)
	addProto(c, net, three, "ServiceEntry", serviceEntryRules)
	addProto(c, net, three, "Sidecar", sidecarRules)
	addProto(c, net, three, "WorkloadEntry", workloadEntryRules)
	addProto(c, net, three, "WorkloadGroup", workloadGroupRules)
	addProto(c, net, two, "ProxyConfig", proxyConfigRules)
	addProto(c, net, []string{"v1alpha3"}, "EnvoyFilter", envoyFilterRules)
	addProto(c, sec, two, "AuthorizationPolicy", authorizationRules)
	c.policyWarnings()
	addProto(c, sec, two, "PeerAuthentication", peerRules)
	addProto(c, sec, two, "RequestAuthentication", requestAuthenticationRules)
	addProto(c, "telemetry.istio.io", []string{"v1", "v1alpha1"}, "Telemetry", telemetryRules)
	addProto(c, "extensions.istio.io", []string{"v1alpha1"}, "WasmPlugin", wasmRules)
	addProto(c, "extensions.istio.io", []string{"v1alpha1"}, "TrafficExtension", trafficExtensionRules)
	c.operator()
	c.kubernetes()
	c.gatewayAPI()
}

func trafficExtensionRules(c *collector, spec *extensions.TrafficExtension) {
	c.attached(spec.GetSelector(), nil, spec.GetTargetRefs())
	if (spec.GetWasm() == nil) == (spec.GetLua() == nil) {
		c.add(Error, "spec", "wasm or lua is required, and not both")
	}
	c.add(Warning, "spec", "is accepted and has no effect: there is no Envoy here that could load it")
}

func peerRules(c *collector, spec *securitybeta.PeerAuthentication) {
	p := &securityv1.PeerAuthentication{}
	p.Namespace, p.Name = c.namespace, c.name
	proto.Merge(&p.Spec, spec)
	c.take(PeerAuthentication(p, nil))
	c.emptySelector(spec.GetSelector() != nil, spec.GetSelector().GetMatchLabels(), "spec.selector")
}

// take adds findings of the functions that the controller uses too. What this mesh cannot do yet is not the file's fault.
func (c *collector) take(found []Finding) {
	for _, f := range found {
		if f.Unsupported && f.Severity == Error {
			f.Severity = Warning
			f.Message += ": the policy is valid, and refuses everything until then"
		}
		if strings.Contains(f.Message, tcpMeaning) {
			f.Severity = Info
		}
		c.found = append(c.found, f)
	}
}
