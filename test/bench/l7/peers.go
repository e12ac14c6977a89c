package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

const envoyType = "type.googleapis.com/envoy."

// istioLog is the default access log of Istio.
const istioLog = `[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% ` +
	`%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% ` +
	`%BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" ` +
	`"%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER% %UPSTREAM_LOCAL_ADDRESS% ` +
	"%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n"

type object = map[string]any

// meshRoutes are 50 routes of which the last matches; half of the others look at a header, half at the path.
func meshRoutes() []object {
	retry := object{"retry_on": "connect-failure,refused-stream,unavailable,cancelled", "num_retries": 2}
	var out []object
	for i := range 49 {
		match := object{"prefix": fmt.Sprintf("/svc%d/", i)}
		if i%2 == 0 {
			match = object{"prefix": "/", "headers": []object{{"name": "x-route", "string_match": object{"exact": fmt.Sprintf("v%d", i)}}}}
		}
		out = append(out, object{"name": fmt.Sprintf("r%d", i), "match": match, "route": object{"cluster": "up", "timeout": "15s", "retry_policy": retry}})
	}
	return append(out, object{"name": "default", "match": object{"prefix": "/"}, "route": object{"cluster": "up", "timeout": "15s", "retry_policy": retry}})
}

func meshCluster(http2 bool) object {
	const most = 4294967295
	options := object{"explicit_http_config": object{"http_protocol_options": object{}}}
	if http2 {
		options = object{"explicit_http_config": object{"http2_protocol_options": object{"max_concurrent_streams": 1000}}}
	}
	options["@type"] = envoyType + "extensions.upstreams.http.v3.HttpProtocolOptions"
	return object{
		"name": "up", "connect_timeout": "5s", "lb_policy": "LEAST_REQUEST",
		"circuit_breakers":                 object{"thresholds": []object{{"max_connections": most, "max_pending_requests": most, "max_requests": most, "max_retries": most}}},
		"typed_extension_protocol_options": object{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
	}
}

func socket(port int) object {
	return object{"socket_address": object{"address": "127.0.0.1", "port_value": port}}
}

// envoyConfig is a sidecar's pipeline without what vanilla Envoy lacks (istio.stats, peer metadata, ALPN override) and, as on
// our side, without policies.
func envoyConfig(dir string, listen, up int, http2 bool) (string, error) {
	filter := func(name, kind string, more object) object {
		c := object{"@type": envoyType + "extensions.filters.http." + kind}
		for k, v := range more {
			c[k] = v
		}
		return object{"name": "envoy.filters.http." + name, "typed_config": c}
	}
	hcm := object{
		"@type":       envoyType + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
		"stat_prefix": "p", "codec_type": "AUTO", "server_name": "istio-envoy", "normalize_path": true,
		"http2_protocol_options": object{"max_concurrent_streams": 1000},
		"route_config":           object{"name": "r", "virtual_hosts": []object{{"name": "v", "domains": []string{"*"}, "routes": meshRoutes()}}},
		"http_filters": []object{
			filter("grpc_stats", "grpc_stats.v3.FilterConfig", object{"emit_filter_state": true, "stats_for_all_methods": false}),
			filter("fault", "fault.v3.HTTPFault", nil), filter("cors", "cors.v3.Cors", nil), filter("router", "router.v3.Router", nil),
		},
		"access_log": []object{{"name": "envoy.access_loggers.file", "typed_config": object{
			"@type": envoyType + "extensions.access_loggers.file.v3.FileAccessLog", "path": filepath.Join(dir, "envoy.log"),
			"log_format": object{"text_format_source": object{"inline_string": istioLog}}}}},
	}
	cluster := meshCluster(http2)
	cluster["type"] = "STATIC"
	cluster["load_assignment"] = object{"cluster_name": "up", "endpoints": []object{{"lb_endpoints": []object{{"endpoint": object{"address": socket(up)}}}}}}
	chain := object{"filters": []object{{"name": "envoy.filters.network.http_connection_manager", "typed_config": hcm}}}
	text, err := json.Marshal(object{"static_resources": object{
		"listeners": []object{{"name": "l", "address": socket(listen), "filter_chains": []object{chain}, "tcp_backlog_size": 4096}},
		"clusters":  []object{cluster}}})
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, fmt.Sprintf("envoy-%d.json", listen))
	return path, os.WriteFile(path, text, 0o600)
}

func nginxConfig(dir string, listen, up int) (string, error) {
	text := fmt.Sprintf(`daemon off; worker_processes 1; worker_rlimit_nofile 65536; pid %[1]s/nginx.pid; error_log %[1]s/nginx.err error;
events { worker_connections 16384; multi_accept on; }
http {
  log_format istio '[$time_iso8601] "$request" $status - - - "-" $request_length $body_bytes_sent $request_time $upstream_response_time "$http_x_forwarded_for" "$http_user_agent" "$request_id" "$http_host" "$upstream_addr" up - $server_addr:$server_port $remote_addr:$remote_port - default';
  access_log %[1]s/nginx.log istio buffer=60k flush=1s; keepalive_timeout 3600s; keepalive_requests 1000000000; tcp_nodelay on;
  proxy_buffer_size 16k; proxy_buffers 16 16k; proxy_max_temp_file_size 0;
  client_body_temp_path %[1]s/nb; proxy_temp_path %[1]s/np; fastcgi_temp_path %[1]s/nf; uwsgi_temp_path %[1]s/nu; scgi_temp_path %[1]s/ns;
  upstream up { server 127.0.0.1:%[3]d; keepalive 1024; keepalive_requests 1000000000; keepalive_timeout 3600s; }
  server { listen 127.0.0.1:%[2]d backlog=4096; location / { proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection ""; } }
}
`, dir, listen, up)
	path := filepath.Join(dir, "nginx.conf")
	return path, os.WriteFile(path, []byte(text), 0o600)
}

func haproxyConfig(dir string, listen, up int) (string, error) {
	text := fmt.Sprintf(`global
  nbthread 1
  maxconn 9000
  log stdout format raw local0
defaults
  mode http
  timeout connect 5s
  timeout client 3600s
  timeout server 3600s
  option httplog
  log global
  http-reuse always
listen l
  bind 127.0.0.1:%d
  server up 127.0.0.1:%d
`, listen, up)
	path := filepath.Join(dir, "haproxy.cfg")
	return path, os.WriteFile(path, []byte(text), 0o600)
}

// peer is one proxy of the comparison. http2: both of its sides speak h2c.
type peer struct {
	name  string
	http2 bool
	port  int
	cmd   *exec.Cmd
}

// peers are those that are there: ours and Envoy with both versions, nginx and haproxy with HTTP/1.1.
func peers(self, envoy, dir string, h1, h2 int) ([]*peer, error) {
	var out []*peer
	add := func(name string, http2 bool, make func(listen, up int) (*exec.Cmd, error)) error {
		port, err := freePort()
		if err != nil {
			return err
		}
		up := h1
		if http2 {
			up = h2
		}
		cmd, err := make(port, up)
		if err != nil {
			return err
		}
		out = append(out, &peer{name: name, http2: http2, port: port, cmd: cmd})
		return nil
	}
	for _, http2 := range []bool{false, true} {
		version := "1"
		if http2 {
			version = "2"
		}
		if err := add("ours", http2, func(listen, up int) (*exec.Cmd, error) {
			return exec.Command(self, "proxy", "-listen", local(listen), "-up", local(up), "-http", version, "-log", filepath.Join(dir, "ours"+version+".log")), nil
		}); err != nil {
			return nil, err
		}
		if err := add("envoy", http2, func(listen, up int) (*exec.Cmd, error) {
			path, err := envoyConfig(dir, listen, up, http2)
			return exec.Command(envoy, "-c", path, "--concurrency", "1", "--use-dynamic-base-id", "-l", "error"), err
		}); err != nil {
			return nil, err
		}
	}
	for name, config := range map[string]func(string, int, int) (string, error){"nginx": nginxConfig, "haproxy": haproxyConfig} {
		bin, err := exec.LookPath(name)
		if err != nil {
			continue // the report has no row of it
		}
		flag := map[string]string{"nginx": "-c", "haproxy": "-f"}[name]
		if err := add(name, false, func(listen, up int) (*exec.Cmd, error) {
			path, err := config(dir, listen, up)
			return exec.Command(bin, flag, path), err
		}); err != nil {
			return nil, err
		}
	}
	return out, nil
}
