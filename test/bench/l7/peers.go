package main

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/undermesh/undermesh/test/bench/peer"
)

// envoyConfig writes the configuration of one hop, which as on our side has no policies.
func envoyConfig(dir string, listen, up int, v variant) (string, error) {
	at := func(port int) netip.AddrPort {
		return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port))
	}
	text, err := peer.Envoy(dir, peer.Hop{Listen: at(listen), Up: at(up), HTTP2: v.http2, Routes: v.routes})
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

// contender is one proxy of the comparison.
type contender struct {
	name    string
	variant variant
	port    int
	cmd     *exec.Cmd
}

// contenders are those that are there: ours and Envoy of each variant, nginx and haproxy with HTTP/1.1 and the usual one.
func contenders(self, envoy, dir string, h1, h2 int) ([]*contender, error) {
	var out []*contender
	add := func(name string, v variant, make func(listen, up int) (*exec.Cmd, error)) error {
		port, err := freePort()
		if err != nil {
			return err
		}
		up := h1
		if v.http2 {
			up = h2
		}
		cmd, err := make(port, up)
		if err != nil {
			return err
		}
		out = append(out, &contender{name: name, variant: v, port: port, cmd: cmd})
		return nil
	}
	seen := map[variant]bool{}
	for _, w := range works {
		v := w.on
		if seen[v] {
			continue
		}
		seen[v] = true
		version := "1"
		if v.http2 {
			version = "2"
		}
		if err := add("ours", v, func(listen, up int) (*exec.Cmd, error) {
			return exec.Command(self, "proxy", "-listen", local(listen), "-up", local(up), "-http", version, "-routes", strconv.Itoa(v.routes),
				"-log", filepath.Join(dir, fmt.Sprintf("ours-%d.log", listen))), nil
		}); err != nil {
			return nil, err
		}
		if err := add("envoy", v, func(listen, up int) (*exec.Cmd, error) {
			path, err := envoyConfig(dir, listen, up, v)
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
		if err := add(name, variant{false, usual}, func(listen, up int) (*exec.Cmd, error) {
			path, err := config(dir, listen, up)
			return exec.Command(bin, flag, path), err
		}); err != nil {
			return nil, err
		}
	}
	return out, nil
}
