package cluster_test

import (
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/undermesh/undermesh/ztunnel/cluster"
)

const (
	optionsOf = `"typedExtensionProtocolOptions": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
		"@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions", `
	tlsOf = `"transportSocket": {"name": "envoy.transport_sockets.tls", "typedConfig": {
		"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", `
)

// What is wrong, or not done here, is said with cluster and field.
func TestCompileRefuses(t *testing.T) {
	for text, field := range map[string]string{
		`{"connectTimeout": "-1s"}`:                                                     "connect_timeout",
		`{"connectTimeout": "0s"}`:                                                      "connect_timeout",
		`{"lbPolicy": "CLUSTER_PROVIDED"}`:                                              "lb_policy",
		`{"type": "ORIGINAL_DST"}`:                                                      "lb_policy",
		`{"lbPolicy": "LOAD_BALANCING_POLICY_CONFIG"}`:                                  "lb_policy",
		`{"clusterType": {"name": "envoy.clusters.redis"}}`:                             "cluster_type",
		`{"healthChecks": [{}]}`:                                                        "health_checks",
		`{"lbSubsetConfig": {}}`:                                                        "lb_subset_config",
		`{"loadBalancingPolicy": {}}`:                                                   "load_balancing_policy",
		`{"transportSocketMatches": [{"name": "a"}]}`:                                   "transport_socket_matches",
		`{"upstreamBindConfig": {}}`:                                                    "upstream_bind_config",
		`{"cleanupInterval": "0s"}`:                                                     "cleanup_interval",
		`{"commonLbConfig": {"healthyPanicThreshold": {"value": 101}}}`:                 "healthy_panic_threshold",
		`{"commonLbConfig": {"overrideHostStatus": {"statuses": ["HEALTHY"]}}}`:         "override_host_status",
		`{"commonLbConfig": {"zoneAwareLbConfig": {"routingEnabled": {"value": 50}}}}`:  "routing_enabled",
		`{"commonLbConfig": {"zoneAwareLbConfig": {"failTrafficOnPanic": true}}}`:       "fail_traffic_on_panic",
		`{"commonLbConfig": {"consistentHashingLbConfig": {"hashBalanceFactor": 150}}}`: "hash_balance_factor",
		`{"lbPolicy": "RING_HASH", "ringHashLbConfig": {"minimumRingSize": "2000", "maximumRingSize": "1000"}}`:     "ring_hash_lb_config",
		`{"lbPolicy": "RING_HASH", "ringHashLbConfig": {"minimumRingSize": "8388609"}}`:                             "minimum_ring_size",
		`{"lbPolicy": "RING_HASH", "ringHashLbConfig": {"minimumRingSize": "0", "maximumRingSize": "0"}}`:           "maximum_ring_size",
		`{"lbPolicy": "MAGLEV", "maglevLbConfig": {"tableSize": "1000"}}`:                                           "table_size",
		`{"lbPolicy": "MAGLEV", "maglevLbConfig": {"tableSize": "5000077"}}`:                                        "table_size",
		`{"lbPolicy": "LEAST_REQUEST", "leastRequestLbConfig": {"choiceCount": 1}}`:                                 "choice_count",
		`{"lbPolicy": "LEAST_REQUEST", "leastRequestLbConfig": {"activeRequestBias": {"defaultValue": -1}}}`:        "active_request_bias",
		`{"roundRobinLbConfig": {"slowStartConfig": {"slowStartWindow": "1s", "aggression": {"defaultValue": 0}}}}`: "aggression",
		`{"roundRobinLbConfig": {"slowStartConfig": {"slowStartWindow": "1s", "minWeightPercent": {"value": -1}}}}`: "min_weight_percent",
		`{"loadAssignment": {"policy": {"overprovisioningFactor": 0}}}`:                                             "overprovisioning_factor",
		`{"loadAssignment": {"policy": {"dropOverloads": [{"category": "a"}]}}}`:                                    "drop_overloads",
		`{"outlierDetection": {"interval": "0s"}}`:                                                                  "interval",
		`{"outlierDetection": {"baseEjectionTime": "0s"}}`:                                                          "base_ejection_time",
		`{"outlierDetection": {"baseEjectionTime": "10s", "maxEjectionTime": "1s"}}`:                                "max_ejection_time",
		`{"outlierDetection": {"maxEjectionPercent": 101}}`:                                                         "max_ejection_percent",
		`{"outlierDetection": {"monitors": [{"name": "a"}]}}`:                                                       "monitors",
		`{"circuitBreakers": {"thresholds": [{"maxConnectionPools": 1}]}}`:                                          "max_connection_pools",
		`{"circuitBreakers": {"thresholds": [{"retryBudget": {"budgetPercent": {"value": 200}}}]}}`:                 "budget_percent",
		`{"circuitBreakers": {"perHostThresholds": [{"maxRequests": 1}]}}`:                                          "max_requests",
		`{"type": "LOGICAL_DNS", "load_assignment": {"endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": "a", "port_value": 1}}}}, {"endpoint": {"address": {"socket_address": {"address": "b", "port_value": 1}}}}]}]}}`: "load_assignment",
		`{"type": "STRICT_DNS", "loadAssignment": {"endpoints": [{"lbEndpoints": [{}]}]}}`:                                                                                                                "lb_endpoints[0].endpoint.address",
		`{"commonHttpProtocolOptions": {"maxHeadersCount": 0}}`:                                                                                                                                           "max_headers_count",
		`{"commonHttpProtocolOptions": {"headersWithUnderscoresAction": "REJECT_REQUEST"}}`:                                                                                                               "headers_with_underscores_action",
		`{"http2ProtocolOptions": {"initialStreamWindowSize": 1}}`:                                                                                                                                        "initial_stream_window_size",
		`{"httpProtocolOptions": {"sendFullyQualifiedUrl": true}}`:                                                                                                                                        "send_fully_qualified_url",
		`{` + optionsOf + `"useDownstreamProtocolConfig": {}, "httpFilters": [{"name": "a"}]}}}`:                                                                                                          "http_filters",
		`{` + optionsOf + `"explicitHttpConfig": {"http3ProtocolOptions": {}}}}}`:                                                                                                                         "http3_protocol_options",
		`{` + optionsOf + `"commonHttpProtocolOptions": {}}}}`:                                                                                                                                            "upstream_protocol_options",
		`{"typedExtensionProtocolOptions": {"a": {"@type": "type.googleapis.com/google.protobuf.Empty", "value": {}}}}`:                                                                                   "typed_extension_protocol_options[a]",
		`{"transportSocket": {"name": "envoy.transport_sockets.tls"}}`:                                                                                                                                    "transport_socket",
		`{"transportSocket": {"name": "a", "typedConfig": {"@type": "type.googleapis.com/google.protobuf.Empty", "value": {}}}}`:                                                                          "transport_socket",
		`{` + tlsOf + `"commonTlsContext": {"tlsParams": {"tlsMinimumProtocolVersion": "TLSv1_3", "tlsMaximumProtocolVersion": "TLSv1_2"}}}}}`:                                                            "tls_params",
		`{` + tlsOf + `"commonTlsContext": {"tlsCertificates": [{"certificateChain": {"filename": "a"}}]}}}}`:                                                                                             "tls_certificates[0]",
		`{` + tlsOf + `"commonTlsContext": {"validationContext": {"matchSubjectAltNames": [{"exact": "a"}]}}}}}`:                                                                                          "validation_context",
		`{` + tlsOf + `"commonTlsContext": {"validationContext": {"verifyCertificateHash": ["zz"]}}}}}`:                                                                                                   "verify_certificate_hash",
		`{` + tlsOf + `"commonTlsContext": {"validationContext": {"trustedCa": {"filename": "a"}, "matchTypedSubjectAltNames": [{"sanType": "OTHER_NAME", "oid": "1.2", "matcher": {"exact": "a"}}]}}}}}`: "match_typed_subject_alt_names[0]",
		`{` + tlsOf + `"commonTlsContext": {"validationContext": {"trustedCa": {"environmentVariable": "A"}}}}}}`:                                                                                         "trusted_ca",
		`{` + tlsOf + `"commonTlsContext": {"validationContext": {"maxVerifyDepth": 1}}}}}`:                                                                                                               "max_verify_depth",
	} {
		c := &clusterv3.Cluster{Name: "outbound|80||a"}
		if err := protojson.Unmarshal([]byte(text), c); err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		c.Name = "outbound|80||a"
		_, err := cluster.Compile(c)
		if err == nil || !strings.Contains(err.Error(), `cluster "outbound|80||a": `) || !strings.Contains(err.Error(), field+":") {
			t.Errorf("%s: %v, want an error about %s", text, err, field)
		}
	}
	if _, err := cluster.Compile(&clusterv3.Cluster{}); err == nil {
		t.Error("a cluster without a name is compiled")
	}
	c := &clusterv3.Cluster{Name: "a"}
	c.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 9999, protowire.VarintType), 1))
	if _, err := cluster.Compile(c); err == nil || !strings.Contains(err.Error(), "does not know") {
		t.Errorf("a field that is not known: %v", err)
	}
}

func TestCompile(t *testing.T) {
	s := compile(t, specs["istio"])
	if s.ConnectTimeout != 10*time.Second || s.Kind != cluster.EDS || s.Policy != cluster.RoundRobin || s.TLS != nil {
		t.Errorf("%+v", s)
	}
	if h := s.HTTP; h.Version != cluster.SameAsReceived || h.MaxRequestsPerConnection != 1 || h.IdleTimeout != 5*time.Second ||
		h.MaxConcurrentStreams != 7 || h.MaxHeaders != 100 || h.MaxResponseHeadBytes != 60<<10 {
		t.Errorf("%+v", h)
	}
	s = compile(t, specs["dns"])
	if s.Kind != cluster.StrictDNS || len(s.Names) != 1 || s.Names[0].Host != "a.example" || s.Names[0].Port != 443 {
		t.Errorf("%+v", s.Names)
	}
	if x := s.TLS; x.SNI != "a.example" || x.Certificate.File != "/c" || x.Key.File != "/k" || x.Roots.File != "/r" || len(x.Names) != 1 ||
		x.Names[0].Kind != cluster.DNSName || x.Names[0].String.GetExact() != "a.example" {
		t.Errorf("%+v", x)
	}
	for text, want := range map[string]cluster.Version{
		`{}`: cluster.HTTP1, `{"http2ProtocolOptions": {}}`: cluster.HTTP2, `{"protocolSelection": "USE_DOWNSTREAM_PROTOCOL"}`: cluster.SameAsReceived,
		`{` + optionsOf + `"explicitHttpConfig": {"http2ProtocolOptions": {}}}}}`: cluster.HTTP2,
		`{` + optionsOf + `"explicitHttpConfig": {"httpProtocolOptions": {}}}}}`:  cluster.HTTP1,
		`{` + optionsOf + `"autoConfig": {}}}}`:                                   cluster.Negotiated,
	} {
		if got := compile(t, text).HTTP.Version; got != want {
			t.Errorf("%s: version %d, want %d", text, got, want)
		}
	}
	s = compile(t, `{"upstreamConnectionOptions": {"tcpKeepalive": {"keepaliveProbes": 3, "keepaliveTime": 7, "keepaliveInterval": 5}}}`)
	if k := s.TCPKeepalive; k == nil || k.Probes != 3 || k.Idle != 7*time.Second || k.Interval != 5*time.Second {
		t.Errorf("keepalive %+v", k)
	}
	s = compile(t, `{`+tlsOf+`"autoHostSni": true, "commonTlsContext": {"alpnProtocols": ["h2"],
		"tlsParams": {"tlsMinimumProtocolVersion": "TLSv1_2", "tlsMaximumProtocolVersion": "TLSv1_3", "cipherSuites": ["A"]},
		"tlsCertificateSdsSecretConfigs": [{"name": "kubernetes://a"}],
		"combinedValidationContext": {"defaultValidationContext": {"matchSubjectAltNames": [{"suffix": "b"}]},
			"validationContextSdsSecretConfig": {"name": "kubernetes://a-cacert"}}}}}}`)
	if x := s.TLS; !x.AutoSNI || x.Min != 0x0303 || x.Max != 0x0304 || x.Secret != "kubernetes://a" || x.RootsSecret != "kubernetes://a-cacert" ||
		len(x.Names) != 1 || x.Names[0].Kind != cluster.AnyName || x.ALPN[0] != "h2" || !x.Roots.IsZero() {
		t.Errorf("%+v", x)
	}
}
