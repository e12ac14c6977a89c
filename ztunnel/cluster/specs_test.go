package cluster_test

// specs are clusters that are compiled, with what Istio writes and more.
var specs = map[string]string{
	"plain": `{}`,
	"istio": `{"type": "EDS", "connectTimeout": "10s", "lbPolicy": "ROUND_ROBIN",
		"edsClusterConfig": {"edsConfig": {"ads": {}}, "serviceName": "outbound|80||a"},
		"commonLbConfig": {"healthyPanicThreshold": {"value": 0}},
		"circuitBreakers": {"thresholds": [{"maxConnections": 1, "maxPendingRequests": 1, "maxRequests": 4294967295,
			"maxRetries": 4294967295, "trackRemaining": true}], "perHostThresholds": [{"maxConnections": 3}]},
		"outlierDetection": {"consecutive5xx": 1, "interval": "1s", "baseEjectionTime": "180s", "maxEjectionPercent": 100,
			"enforcingConsecutive5xx": 100, "enforcingSuccessRate": 0},
		"typedExtensionProtocolOptions": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
			"@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
			"commonHttpProtocolOptions": {"maxRequestsPerConnection": 1, "idleTimeout": "5s"},
			"useDownstreamProtocolConfig": {"httpProtocolOptions": {}, "http2ProtocolOptions": {"maxConcurrentStreams": 7}}}}}`,
	"ring":     `{"lbPolicy": "RING_HASH", "ringHashLbConfig": {"minimumRingSize": "2048"}}`,
	"maglev":   `{"lbPolicy": "MAGLEV", "maglevLbConfig": {"tableSize": "251"}}`,
	"least":    `{"lbPolicy": "LEAST_REQUEST", "leastRequestLbConfig": {"choiceCount": 3, "slowStartConfig": {"slowStartWindow": "10s"}}}`,
	"zones":    `{"commonLbConfig": {"zoneAwareLbConfig": {"routingEnabled": {"value": 100}, "minClusterSize": 2}}}`,
	"random":   `{"lbPolicy": "RANDOM", "commonLbConfig": {"localityWeightedLbConfig": {}}}`,
	"original": `{"type": "ORIGINAL_DST", "lbPolicy": "CLUSTER_PROVIDED"}`,
	"dns": `{"type": "STRICT_DNS", "loadAssignment": {"clusterName": "a", "endpoints": [{"lbEndpoints": [{"endpoint":
		{"address": {"socketAddress": {"address": "a.example", "portValue": 443}}}}]}]},
		"transportSocket": {"name": "envoy.transport_sockets.tls", "typedConfig": {
			"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", "sni": "a.example",
			"commonTlsContext": {"tlsCertificates": [{"certificateChain": {"filename": "/c"}, "privateKey": {"filename": "/k"}}],
				"validationContext": {"trustedCa": {"filename": "/r"}, "matchTypedSubjectAltNames":
					[{"sanType": "DNS", "matcher": {"exact": "a.example"}}]}}}}}`,
}
