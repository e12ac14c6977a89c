package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// squidLog is where squid writes its lines, on standard output as well.
const squidLog = "/var/log/squid/access.log"

// squidConfig is what counts of a configuration: "http_port PORT" and "acl SSL_ports port PORT…".
type squidConfig struct {
	port    string
	allowed []string // ports that CONNECT may go to
}

func parseSquid(text string) squidConfig {
	c := squidConfig{port: "3128", allowed: []string{"443"}}
	var allowed []string
	for line := range strings.SplitSeq(text, "\n") {
		f := strings.Fields(line)
		switch {
		case len(f) >= 2 && f[0] == "http_port":
			c.port = f[1]
		case len(f) >= 4 && f[0] == "acl" && f[1] == "SSL_ports" && f[2] == "port":
			allowed = append(allowed, f[3:]...)
		}
	}
	if allowed != nil {
		c.allowed = allowed
	}
	return c
}

// squid is a forward proxy that knows CONNECT only. Its configuration is /etc/squid/squid.conf, if there is one.
func squid(ctx context.Context, _ []string) error {
	text, err := os.ReadFile("/etc/squid/squid.conf")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read configuration: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(squidLog), 0o755); err != nil {
		return fmt.Errorf("make directory of log: %w", err)
	}
	file, err := os.OpenFile(squidLog, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer file.Close()
	c := parseSquid(string(text))
	p := &connectProxy{allowed: c.allowed, log: io.MultiWriter(os.Stdout, file), dial: new(net.Dialer).DialContext}
	return listenAll(ctx, []string{c.port}, func(conn net.Conn) { p.serve(ctx, conn) })
}

// connectProxy tunnels to the allowed ports and writes a line for each tunnel.
type connectProxy struct {
	allowed []string
	dial    func(ctx context.Context, network, addr string) (net.Conn, error)
	mu      sync.Mutex // protects log
	log     io.Writer
}

func (p *connectProxy) serve(ctx context.Context, c net.Conn) {
	in := bufio.NewReader(c)
	req, err := http.ReadRequest(in)
	if err != nil {
		return
	}
	start := time.Now()
	client, _, err := net.SplitHostPort(c.RemoteAddr().String())
	if err != nil {
		client = c.RemoteAddr().String()
	}
	line := func(result string, bytes int64, peer string) {
		p.mu.Lock()
		defer p.mu.Unlock()
		fmt.Fprintf(p.log, "%d.%03d %6d %s %s %d %s %s - %s -\n", time.Now().Unix(), time.Now().UnixMilli()%1000, time.Since(start).Milliseconds(),
			strings.TrimPrefix(client, "::ffff:"), result, bytes, req.Method, req.RequestURI, peer)
	}
	refuse := func(status int, result string) {
		text := fmt.Sprintf("HTTP/1.1 %d %s\r\nServer: squid/3.5.27\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", status, http.StatusText(status))
		n, _ := io.WriteString(c, text) // the client may be gone
		line(fmt.Sprintf("%s/%d", result, status), int64(n), "HIER_NONE/-")
	}
	_, port, err := net.SplitHostPort(req.RequestURI)
	if req.Method != http.MethodConnect || err != nil || !slices.Contains(p.allowed, port) {
		refuse(http.StatusForbidden, "TCP_DENIED")
		return
	}
	up, err := p.dial(ctx, "tcp", req.RequestURI)
	if err != nil {
		refuse(http.StatusServiceUnavailable, "TCP_TUNNEL")
		return
	}
	defer up.Close()
	if _, err := io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	peer, _, err := net.SplitHostPort(up.RemoteAddr().String())
	if err != nil {
		peer = up.RemoteAddr().String()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(up, in) // either end may be gone
		closeWrite(up)
	}()
	n, _ := io.Copy(c, up)
	closeWrite(c)
	<-done
	line("TCP_TUNNEL/200", n, "HIER_DIRECT/"+peer)
}

func closeWrite(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.CloseWrite() // the other end may be gone
	}
}
