package validate

import (
	"strings"

	"google.golang.org/protobuf/types/known/structpb"
	networking "istio.io/api/networking/v1alpha3"
)

// patched says, for words in the names of Envoy's filters, what the patch is about.
var patched = []struct{ word, about string }{
	{"local_ratelimit", "it is about local rate limits"},
	{"ratelimit", "it is about global rate limits"},
	{"rate_limits", "it is about global rate limits"},
	{"proxy_protocol", "it is about the PROXY protocol"},
	{"sni_verifier", "it compares the inner and the outer SNI of an egress gateway"},
	{"forward_downstream_sni", "it forwards the SNI of the client through an egress gateway"},
	{"attributegen", "it classifies requests, for which Telemetry has expressions (tagOverrides)"},
	{"wasm", "it loads a WebAssembly module"},
	{"lua", "it runs Lua"},
}

// envoyFilterRules warns: the node proxy has no filter chains that could be patched.
func envoyFilterRules(c *collector, spec *networking.EnvoyFilter) {
	c.selector(spec.GetWorkloadSelector().GetLabels(), "spec.workloadSelector.labels")
	if len(spec.GetConfigPatches()) == 0 {
		c.add(Warning, "spec.configPatches", "is empty")
	}
	for i, p := range spec.GetConfigPatches() {
		at := indexed("spec.configPatches", i)
		if p.GetApplyTo() == networking.EnvoyFilter_INVALID {
			c.add(Error, at+".applyTo", "is required")
		}
		if p.GetPatch().GetOperation() == networking.EnvoyFilter_Patch_INVALID {
			c.add(Error, at+".patch.operation", "is required")
		}
		if v := p.GetMatch().GetProxy().GetProxyVersion(); v != "" {
			c.regex(v, at+".match.proxy.proxyVersion")
		}
		if p.GetPatch().GetOperation() == networking.EnvoyFilter_Patch_ADD && p.GetPatch().GetValue() == nil {
			c.add(Error, at+".patch.value", "is required with operation ADD")
		}
		c.add(Warning, at, "is accepted and has no effect: there is no Envoy here whose %s could be patched", p.GetApplyTo())
		text := p.GetMatch().GetListener().GetFilterChain().GetFilter().GetName() + " " + strings.Join(keysAndNames(p.GetPatch().GetValue().GetFields(), 0), " ")
		for _, a := range patched {
			if strings.Contains(text, a.word) {
				c.hint("%s", a.about)
				break
			}
		}
	}
}

// keysAndNames lists the keys and the names of filters in a patch.
func keysAndNames(fields map[string]*structpb.Value, depth int) []string {
	var out []string
	for _, k := range sortedKeys(fields) {
		out = append(out, k, fields[k].GetStringValue())
		if depth > 20 {
			continue
		}
		out = append(out, keysAndNames(fields[k].GetStructValue().GetFields(), depth+1)...)
		for _, v := range fields[k].GetListValue().GetValues() {
			out = append(out, keysAndNames(v.GetStructValue().GetFields(), depth+1)...)
		}
	}
	return out
}
