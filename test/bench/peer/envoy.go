// Package peer configures the proxies that the benches put beside ours. Each has, as far as it can, what a sidecar has: the
// routes and the cluster that our engine is given too, timeouts and retries, and an access log of Istio's fields.
package peer

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"

	"github.com/undermesh/undermesh/test/bench/load"
)

const envoyType = "type.googleapis.com/envoy."

// istioLog is the default access log of Istio.
const istioLog = `[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% ` +
	`%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% ` +
	`%BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" ` +
	`"%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER% %UPSTREAM_LOCAL_ADDRESS% ` +
	"%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n"

// Object is a message in its JSON form.
type Object = map[string]any

// Routes are n routes of which the last matches; of the others every second looks at a header, and the rest at the path.
func Routes(n int) []Object {
	retry := Object{"retry_on": "connect-failure,refused-stream,unavailable,cancelled", "num_retries": 2}
	var out []Object
	for i := range n - 1 {
		match := Object{"prefix": fmt.Sprintf("/svc%d/", i)}
		if i%2 == 0 {
			match = Object{"prefix": "/", "headers": []Object{{"name": "x-route", "string_match": Object{"exact": fmt.Sprintf("v%d", i)}}}}
		}
		out = append(out, Object{"name": fmt.Sprintf("r%d", i), "match": match, "route": Object{"cluster": "up", "timeout": "15s", "retry_policy": retry}})
	}
	return append(out, Object{"name": "default", "match": Object{"prefix": "/"}, "route": Object{"cluster": "up", "timeout": "15s", "retry_policy": retry}})
}

// Cluster is the cluster of Routes, without hosts.
func Cluster(http2 bool) Object {
	const most = 4294967295
	options := Object{"explicit_http_config": Object{"http_protocol_options": Object{}}}
	if http2 {
		options = Object{"explicit_http_config": Object{"http2_protocol_options": Object{"max_concurrent_streams": 1000}}}
	}
	options["@type"] = envoyType + "extensions.upstreams.http.v3.HttpProtocolOptions"
	return Object{
		"name": "up", "connect_timeout": "5s", "lb_policy": "LEAST_REQUEST",
		"circuit_breakers":                 Object{"thresholds": []Object{{"max_connections": most, "max_pending_requests": most, "max_requests": most, "max_retries": most}}},
		"typed_extension_protocol_options": Object{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
	}
}

// Hop is one listener of an Envoy and what is behind it.
type Hop struct {
	Listen, Up netip.AddrPort
	HTTP2      bool   // both sides speak h2c
	Routes     int    // 1: only the one that matches, as the destination's proxy has
	Policies   int    // rules of RBAC, of which the last matches; 0: none
	TLSFrom    string // directory of load.WriteCertificate: the client's side is mutual TLS 1.3; "": plain text
	TLSTo      string // as TLSFrom, for the other side
}

// Envoy is a sidecar's pipeline without what vanilla Envoy lacks (istio.stats, peer metadata, ALPN override). It logs to a file
// in dir.
func Envoy(dir string, hops ...Hop) ([]byte, error) {
	var listeners, clusters []Object
	for i, h := range hops {
		name := fmt.Sprintf("hop%d", i)
		cluster := Cluster(h.HTTP2)
		cluster["name"], cluster["type"] = name, "STATIC"
		cluster["load_assignment"] = Object{"cluster_name": name, "endpoints": []Object{{"lb_endpoints": []Object{{"endpoint": Object{"address": socket(h.Up)}}}}}}
		if h.TLSTo != "" {
			cluster["transport_socket"] = tlsSocket("UpstreamTlsContext", h.TLSTo, h.HTTP2, Object{"sni": load.ProxyName})
		}
		clusters = append(clusters, cluster)
		chain := Object{"filters": []Object{{"name": "envoy.filters.network.http_connection_manager", "typed_config": h.manager(name, dir)}}}
		if h.TLSFrom != "" {
			chain["transport_socket"] = tlsSocket("DownstreamTlsContext", h.TLSFrom, h.HTTP2, Object{"require_client_certificate": true})
		}
		listeners = append(listeners, Object{"name": name, "address": socket(h.Listen), "filter_chains": []Object{chain}, "tcp_backlog_size": 4096})
	}
	return json.Marshal(Object{"static_resources": Object{"listeners": listeners, "clusters": clusters}})
}

func socket(a netip.AddrPort) Object {
	return Object{"socket_address": Object{"address": a.Addr().String(), "port_value": a.Port()}}
}

// manager is the HTTP connection manager of a hop.
func (h Hop) manager(cluster, dir string) Object {
	routes := Routes(h.Routes)
	for _, r := range routes {
		r["route"].(Object)["cluster"] = cluster
	}
	filters := []Object{
		filter("grpc_stats", "grpc_stats.v3.FilterConfig", Object{"emit_filter_state": true, "stats_for_all_methods": false}),
		filter("fault", "fault.v3.HTTPFault", nil), filter("cors", "cors.v3.Cors", nil), filter("router", "router.v3.Router", nil),
	}
	if h.Policies > 0 {
		filters = append([]Object{filter("rbac", "rbac.v3.RBAC", Object{"rules": Object{"action": "ALLOW", "policies": h.policies()}})}, filters...)
	}
	m := Object{
		"@type":       envoyType + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
		"stat_prefix": cluster, "codec_type": "AUTO", "server_name": "istio-envoy", "normalize_path": true,
		"http2_protocol_options": Object{"max_concurrent_streams": 1000},
		"route_config":           Object{"name": "r", "virtual_hosts": []Object{{"name": "v", "domains": []string{"*"}, "routes": routes}}},
		"http_filters":           filters,
		"access_log": []Object{{"name": "envoy.access_loggers.file", "typed_config": Object{
			"@type": envoyType + "extensions.access_loggers.file.v3.FileAccessLog", "path": filepath.Join(dir, "envoy.log"),
			"log_format": Object{"text_format_source": Object{"inline_string": istioLog}}}}},
	}
	if h.TLSFrom != "" {
		m["forward_client_cert_details"], m["set_current_client_cert_details"] = "SANITIZE_SET", Object{"subject": true, "uri": true}
	}
	return m
}

func filter(name, kind string, more Object) Object {
	c := Object{"@type": envoyType + "extensions.filters.http." + kind}
	for k, v := range more {
		c[k] = v
	}
	return Object{"name": "envoy.filters.http." + name, "typed_config": c}
}

// policies are the rules of a hop: who calls by the certificate, or where there is none, by address.
func (h Hop) policies() Object {
	all := Object{}
	for i := range h.Policies {
		name, prefix, length := fmt.Sprintf("spiffe://cluster.local/ns/bench/sa/other%d", i), fmt.Sprintf("192.0.2.%d", i), 32
		if i == h.Policies-1 {
			name, prefix, length = load.ProxyName, "0.0.0.0", 0
		}
		who := Object{"direct_remote_ip": Object{"address_prefix": prefix, "prefix_len": length}}
		if h.TLSFrom != "" {
			who = Object{"authenticated": Object{"principal_name": Object{"exact": name}}}
		}
		all[fmt.Sprintf("p%02d", i)] = Object{"permissions": []Object{{"any": true}}, "principals": []Object{who}}
	}
	return all
}

// tlsSocket is one side of mutual TLS 1.3.
func tlsSocket(kind, dir string, http2 bool, more Object) Object {
	file := func(name string) Object { return Object{"filename": filepath.Join(dir, name)} }
	alpn := "http/1.1"
	if http2 {
		alpn = "h2"
	}
	c := Object{"@type": envoyType + "extensions.transport_sockets.tls.v3." + kind, "common_tls_context": Object{
		"tls_params":       Object{"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
		"alpn_protocols":   []string{alpn},
		"tls_certificates": []Object{{"certificate_chain": file("cert.pem"), "private_key": file("key.pem")}},
		"validation_context": Object{"trusted_ca": file("cert.pem"),
			"match_typed_subject_alt_names": []Object{{"san_type": "DNS", "matcher": Object{"exact": load.ProxyName}}}},
	}}
	for k, v := range more {
		c[k] = v
	}
	return Object{"name": "envoy.transport_sockets.tls", "typed_config": c}
}
