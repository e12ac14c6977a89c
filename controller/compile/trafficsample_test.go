package compile_test

import (
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	networkingapi "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/undermesh/undermesh/controller/model/support"
)

// virtualServiceSample has a base of its own for each part of a rule that excludes others, or that needs some.
func virtualServiceSample() sample {
	const route = `"route":[{"destination":{"host":"web"}}]`
	parts := []struct{ prefix, http, rest string }{ // the first that fits counts
		{"http[].redirect.derivePort", `"redirect":{"authority":"a.example"}`, ""},
		{"http[].redirect.redirectCode", `"redirect":{"authority":"a.example"}`, ""},
		{"http[].redirect.", `"redirect":{"redirectCode":302,"authority":"a.example"}`, ""},
		{"http[].directResponse.status", `"directResponse":{"status":200}`, ""},
		{"http[].directResponse.", `"directResponse":{"status":200}`, ""},
		{"http[].delegate.", `"delegate":{"name":"nobody"}`, ""},
		{"http[].fault.abort.percentage", `"fault":{"abort":{"httpStatus":500}},` + route, ""},
		{"http[].fault.abort.", `"fault":{"abort":{"httpStatus":500,"percentage":{"value":50}}},` + route, ""},
		{"http[].fault.delay.", `"fault":{"delay":{"fixedDelay":"5s"}},` + route, ""},
		{"http[].mirrors", `"mirrors":[{"destination":{"host":"web"}}],` + route, ""},
		{"http[].mirror", `"mirror":{"host":"web"},` + route, ""},
		{"http[].retries.", `"retries":{"attempts":2},` + route, ""},
		{"http[].corsPolicy.allowOrigin[]", `"corsPolicy":{"allowMethods":["GET"]},` + route, ""},
		{"http[].route[].weight", `"route":[{"destination":{"host":"web"},"weight":1},{"destination":{"host":"other"},"weight":2}]`, ""},
		{"tcp[].route[].weight", route, `,"tcp":[{"route":[{"destination":{"host":"web"},"weight":1},{"destination":{"host":"other"},"weight":2}]}]`},
		{"tls[].route[].weight", route, `,"tls":[{"match":[{"sniHosts":["web"]}],"route":[{"destination":{"host":"web"},"weight":1},{"destination":{"host":"other"},"weight":2}]}]`},
		{"tcp[].", route, `,"tcp":[{` + route + `}]`},
		{"tls[].match[].sniHosts", route, `,"tls":[{"match":[{"port":1}],` + route + `}]`},
		{"tls[].", route, `,"tls":[{"match":[{"sniHosts":["web"]}],` + route + `}]`},
		{"", route, ""},
	}
	out := sample{base: &networkingapi.VirtualService{}, bases: map[string]proto.Message{},
		with: map[string]map[string]string{"http[].match[].withoutHeaders{}": {"http[].match[].uri.exact": "/"}},
		values: map[string]string{"hosts[]": "other", "gateways[]": "gw", "exportTo[]": ".", "http[].redirect.scheme": "https", "http[].redirect.redirectCode": "307",
			"http[].redirect.uri": "/x", "http[].redirect.prefixRewrite": "/x", "http[].redirect.derivePort": "FROM_REQUEST_PORT", "http[].directResponse.status": "418",
			"http[].fault.abort.grpcStatus": "UNAVAILABLE", "http[].fault.abort.httpStatus": "418", "http[].retries.retryOn": "5xx", "http[].rewrite.uri": "/x",
			"http[].match[].gateways[]": "gw", "tcp[].match[].gateways[]": "gw", "tls[].match[].gateways[]": "gw", "http[].route[].weight": "3",
			"tcp[].route[].weight": "3", "tls[].route[].weight": "3", "tls[].match[].sniHosts[]": "web", "http[].route[].destination.host": "other",
			"tcp[].route[].destination.host": "other", "tls[].route[].destination.host": "other", "http[].match[].method.exact": "GET", "http[].match[].scheme.exact": "http",
			"tcp[].match[].sourceSubnet": exampleBlock, "tcp[].match[].destinationSubnets[]": exampleBlock, "tls[].match[].destinationSubnets[]": exampleBlock,
			"http[].mirrorPercent": "7", "http[].corsPolicy.unmatchedPreflights": "IGNORE", "http[].mirror.host": "other", "http[].mirrors[].destination.host": "other"},
		into: func(m proto.Message) any {
			o := &networkingv1.VirtualService{ObjectMeta: meta("x")}
			proto.Merge(&o.Spec, m)
			return o
		}}
	for _, f := range support.Fields("VirtualService") {
		for _, p := range parts {
			if strings.HasPrefix(f.Path, p.prefix) {
				spec := &networkingapi.VirtualService{}
				if err := protojson.Unmarshal([]byte(`{"hosts":["web"],"http":[{`+p.http+`}]`+p.rest+`}`), spec); err != nil {
					panic(err)
				}
				out.bases[f.Path] = spec
				break
			}
		}
	}
	return out
}

func destinationRuleSample() sample {
	const policy, port, subset = "trafficPolicy.", "portLevelSettings[].", "subsets[]."
	out := sample{base: &networkingapi.DestinationRule{Host: "web", TrafficPolicy: &networkingapi.TrafficPolicy{},
		Subsets: []*networkingapi.Subset{{Name: "v1", TrafficPolicy: &networkingapi.TrafficPolicy{Tls: &networkingapi.ClientTLSSettings{}}}}},
		values: map[string]string{"host": "other", "exportTo[]": ".", "subsets[].name": "v2"}, with: map[string]map[string]string{},
		into: func(m proto.Message) any {
			o := &networkingv1.DestinationRule{ObjectMeta: meta("x")}
			proto.Merge(&o.Spec, m)
			return o
		}}
	for _, in := range []string{policy, subset + policy} {
		levels := []string{in}
		for _, field := range []string{"loadBalancer", "connectionPool", "outlierDetection", "tls"} { // a port that is there already
			out.with[in+port+field] = map[string]string{in + port + "port.number": "80"}
		}
		out.with[in+"tunnel"] = map[string]string{in + "tunnel.targetHost": "web", in + "tunnel.targetPort": "80", in + "tunnel.protocol": "CONNECT"}
		out.values[in+"tunnel.protocol"], out.values[in+"proxyProtocol.version"] = "POST", "V2"
		out.with[in+"retryBudget.budgetInterval"] = map[string]string{in + "retryBudget.percent.value": "9", in + "retryBudget.minRetryConcurrency": "2"}
		levels = append(levels, in+port)
		for _, at := range levels {
			lb, pool, outlier := at+"loadBalancer.", at+"connectionPool.", at+"outlierDetection."
			for _, f := range []string{"maglev.tableSize", "ringHash.minimumRingSize", "minimumRingSize"} {
				out.with[lb+"consistentHash."+f] = map[string]string{lb + "consistentHash.httpHeaderName": "x"}
			}
			out.values[lb+"consistentHash.maglev.tableSize"], out.values[lb+"simple"] = "11", "RANDOM"
			for _, f := range []string{"localityLbSetting", "zoneAwareLbSetting"} {
				out.with[lb+f+".failover"] = map[string]string{lb + f + ".failover[].from": "a", lb + f + ".failover[].to": "b"}
			}
			out.with[lb+"localityLbSetting.distribute[].from"] = map[string]string{lb + "localityLbSetting.distribute[].to{}": "100"}
			out.with[lb+"localityLbSetting.distribute[].to{}"] = map[string]string{lb + "localityLbSetting.distribute[].from": "a"}
			out.values[lb+"localityLbSetting.distribute[].from"], out.values[lb+"localityLbSetting.distribute[].to{}"] = "b", "100"
			out.with[pool+"http.http2KeepAlive"] = map[string]string{pool + "http.http2KeepAlive.interval": "2", pool + "http.http2KeepAlive.timeout": "3"}
			out.values[pool+"http.h2UpgradePolicy"] = "UPGRADE"
			out.with[outlier+"consecutiveLocalOriginFailures"] = map[string]string{outlier + "splitExternalLocalOriginErrors": ""}
			out.with[lb+"warmup."] = map[string]string{lb + "warmup.duration": "2"}
			out.with[outlier+"outlierDetectionHttpErrorCodes"] = map[string]string{outlier + "interval": "2"}
			out.with[lb+"consistentHash.httpCookie"] = map[string]string{lb + "consistentHash.httpCookie.name": "c"}
			out.with[lb+"consistentHash.httpCookie.attributes[].value"] = map[string]string{lb + "consistentHash.httpCookie.attributes[].name": "a"}
		}
	}
	return out
}
