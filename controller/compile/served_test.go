package compile_test

import (
	"testing"

	"github.com/undermesh/undermesh/ztunnel/cluster"
	"github.com/undermesh/undermesh/ztunnel/http/route"
)

// TestWhatIsAcceptedIsServed: nodes understand what the compiler makes of every rule: one that they refuse would end all requests to
// its host although nobody was told.
func TestWhatIsAcceptedIsServed(t *testing.T) {
	hashed := func(by string) string {
		return destination("a", "02", "trafficPolicy: {loadBalancer: {consistentHash: {"+by+"}}}")
	}
	balanced := func(by string) string { return destination("a", "02", "trafficPolicy: {loadBalancer: {"+by+"}}") }
	matching := func(m string) string {
		return virtual("shop", "v", "reviews", "02", "http: [{match: [{"+m+"}], route: [{destination: {host: reviews}}]}]")
	}
	doing := func(what string) string {
		return virtual("shop", "v", "reviews", "02", "http: [{"+what+", route: [{destination: {host: reviews}}]}]")
	}
	alone := func(what string) string { return virtual("shop", "v", "reviews", "02", "http: [{"+what+"}]") }
	for name, rules := range map[string]string{
		"attributes of a cookie":     hashed("httpCookie: {name: c, ttl: 0s, attributes: [{name: SameSite, value: Strict}, {name: Secure}]}"),
		"attribute that ends":        hashed(`httpCookie: {name: c, ttl: 0s, attributes: [{name: "a;b", value: "c\r\nd"}]}`),
		"path of a cookie":           hashed(`httpCookie: {name: c, ttl: 0s, path: "/a; b"}`),
		"name of a cookie":           hashed(`httpCookie: {name: "a=b", ttl: 0s}`),
		"no name of a cookie":        hashed(`httpCookie: {name: "", ttl: 0s}`),
		"hash of a pseudo-header":    hashed(`httpHeaderName: ":path"`),
		"hash of another":            hashed(`httpHeaderName: ":foo"`),
		"hash of host":               hashed(`httpHeaderName: host`),
		"no source":                  hashed(`useSourceIp: false`),
		"ring":                       hashed(`useSourceIp: true, ringHash: {minimumRingSize: 9000000}`),
		"old ring":                   hashed(`useSourceIp: true, minimumRingSize: 9000000`),
		"maglev":                     hashed(`useSourceIp: true, maglev: {tableSize: 2}`),
		"warmup":                     balanced(`simple: ROUND_ROBIN, warmup: {duration: 30s, aggression: 0, minimumPercent: 120}`),
		"warmup below 1":             balanced(`simple: ROUND_ROBIN, warmup: {duration: 30s, aggression: 0.5}`),
		"warmup with nothing":        balanced(`simple: LEAST_REQUEST, warmup: {}`),
		"query without a name":       matching(`queryParams: {"": {exact: a}}`),
		"query":                      matching(`queryParams: {a: {exact: ""}}`),
		"query of a prefix":          matching(`queryParams: {a: {prefix: x}}`),
		"header without a value":     matching(`headers: {a: {exact: ""}}`),
		"no method":                  matching(`method: {exact: ""}`),
		"no path":                    matching(`uri: {exact: ""}`),
		"path with a question":       matching(`uri: {prefix: "/a?b"}`),
		"pseudo-header":              matching(`headers: {":authority": {exact: a}}`),
		"pseudo-header of nothing":   matching(`headers: {":foo": {exact: a}}`),
		"without a pseudo-header":    matching(`withoutHeaders: {":status": {exact: a}}`),
		"stat prefix":                matching(`statPrefix: x, uri: {prefix: /}`),
		"without":                    matching(`withoutHeaders: {a: {}}`),
		"blank in a rewrite":         doing(`rewrite: {uri: "/a b"}`),
		"blank in an authority":      doing(`rewrite: {authority: "a b"}`),
		"number in a regex":          doing(`rewrite: {uriRegexRewrite: {match: "/(a)", rewrite: "/\\2"}}`),
		"backslash":                  doing(`rewrite: {uriRegexRewrite: {match: "/(a)", rewrite: "/\\x"}}`),
		"no rewrite":                 doing(`rewrite: {uriRegexRewrite: {match: "/(a)", rewrite: ""}}`),
		"retry on nothing known":     doing(`retries: {attempts: 3, retryOn: "foo"}`),
		"retry on statuses":          doing(`retries: {attempts: 3, retryOn: "503,reset,retriable-headers,http3-post-connect-failure,envoy-ratelimited,reset-before-request"}`),
		"retry on 999":               doing(`retries: {attempts: 3, retryOn: "999"}`),
		"retry on 700":               doing(`retries: {attempts: 3, retryOn: "700,"}`),
		"backoff":                    doing(`retries: {attempts: 3, backoff: 0s}`),
		"per try":                    doing(`retries: {attempts: 3, perTryTimeout: 0s}`),
		"many":                       doing(`retries: {attempts: 2147483647, perTryTimeout: 315576000000s}`),
		"host header":                doing(`headers: {request: {set: {Host: "a b"}}}`),
		"host header 2":              doing(`headers: {request: {add: {":authority": "a\tb"}}}`),
		"te":                         doing(`headers: {request: {set: {te: trailers}}}`),
		"remove of nothing":          doing(`headers: {request: {remove: [""]}}`),
		"percent":                    doing(`headers: {request: {set: {x: "100%"}}}`),
		"unknown operator":           doing(`headers: {request: {set: {x: "%FOO%"}}}`),
		"operator without end":       doing(`headers: {response: {set: {x: "%REQ(x"}}}`),
		"name":                       doing(`headers: {response: {add: {"a b": "c"}}}`),
		"fault":                      doing(`fault: {abort: {httpStatus: 199, percentage: {value: 100}}}`),
		"delay":                      doing(`fault: {delay: {fixedDelay: 0s, percentage: {value: 100}}}`),
		"grpc":                       doing(`fault: {abort: {grpcStatus: FOO, percentage: {value: 100}}}`),
		"fault with neither":         doing(`fault: {abort: {percentage: {value: 100}}}`),
		"mirror":                     doing(`mirror: {host: ratings, subset: x}, mirrorPercentage: {value: 0.00001}`),
		"cors":                       doing(`corsPolicy: {allowOrigins: [{exact: "*"}, {regex: "*"}, {regex: "a.*"}], maxAge: 24h, allowMethods: ["GET POST"]}`),
		"cors without a value":       doing(`corsPolicy: {allowOrigins: [{exact: ""}, {prefix: ""}]}`),
		"sum of weights":             alone(`route: [{destination: {host: reviews}, weight: 2147483647}, {destination: {host: ratings}, weight: 2147483647}, {destination: {host: ratings, subset: b}, weight: 2147483647}]`),
		"redirect with a blank":      alone(`redirect: {uri: "/a b"}`),
		"redirect authority":         alone(`redirect: {authority: "a b"}`),
		"redirect prefix of a regex": alone(`match: [{uri: {regex: "/a.*"}}], redirect: {prefixRewrite: "/b"}`),
		"redirect 304":               alone(`redirect: {uri: /, redirectCode: 304}`),
		"answer":                     alone(`directResponse: {status: 200, body: {string: "%FOO%"}}`),
		"answer in bytes":            alone(`directResponse: {status: 599, body: {bytes: "AAEC"}}`),
		"outlier":                    destination("a", "02", "trafficPolicy: {outlierDetection: {consecutive5xxErrors: 0, consecutiveGatewayErrors: 0, interval: 1ms, baseEjectionTime: 87600h, maxEjectionPercent: 100}}"),
		"outlier without":            destination("a", "02", "trafficPolicy: {outlierDetection: {}}"),
		"pool":                       destination("a", "02", "trafficPolicy: {connectionPool: {tcp: {maxConnections: 2147483647, connectTimeout: 1ms, idleTimeout: 0s, maxConnectionDuration: 1ms}, http: {idleTimeout: 0s, maxConcurrentStreams: 2147483647, maxRequestsPerConnection: 2147483647}}}"),
		"long":                       destination("a", "02", "trafficPolicy: {connectionPool: {tcp: {connectTimeout: 315576000000s, tcpKeepalive: {probes: 4294967295, time: 315576000000s, interval: 315576000000s}}, http: {idleTimeout: 315576000000s, http2KeepAlive: {interval: 315576000000s, timeout: 315576000000s}}}}"),
		"budget":                     destination("a", "02", "trafficPolicy: {retryBudget: {percent: 0, minRetryConcurrency: 4294967295}}"),
		"outlier for ever":           destination("a", "02", "trafficPolicy: {outlierDetection: {baseEjectionTime: 315576000000s, interval: 315576000000s}}"),
		"timeout":                    doing(`timeout: 315576000000s`),
		"warmup for ever":            balanced(`simple: ROUND_ROBIN, warmup: {duration: 315576000000s}`),
		"warmup aggressive":          balanced(`simple: ROUND_ROBIN, warmup: {duration: 10s, aggression: 1e308}`),
		"cookie for ever":            hashed(`httpCookie: {name: c, ttl: 315576000000s}`),
		"delay for ever":             doing(`fault: {delay: {fixedDelay: 315576000000s, percentage: {value: 100}}}`),
		"back-off for ever":          doing(`retries: {attempts: 3, backoff: 315576000000s}`),
	} {
		t.Run(name, func(t *testing.T) {
			c := callerIn(t, callWorld(t, rules), "shop/web")
			vh, _ := c.VirtualHost(c.Target(9080, "reviews", nil))
			if _, err := route.Compile(vh); err != nil {
				t.Error(err)
			}
			spec, ok := c.Cluster(plainReviews)
			if !ok {
				t.Fatal("there is no cluster")
			}
			if _, err := cluster.Compile(spec.Cluster); err != nil {
				t.Error(err)
			}
		})
	}
}
