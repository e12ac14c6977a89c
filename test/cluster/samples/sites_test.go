package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestSites(t *testing.T) {
	ca, err := newSitesTLS(time.Now)
	if err != nil {
		t.Fatal(err)
	}
	h := sitesHandler(ca.pem())
	for _, c := range []struct {
		host, path, sni string
		code            int
		want            string
	}{
		{"edition.cnn.com", "/politics", "", 301, ""},
		{"edition.cnn.com", "/politics", "edition.cnn.com", 200, "<title>edition.cnn.com</title>"},
		{"www.google.com", "/", "www.google.com", 200, "<title>"},
		{"en.wikipedia.org", "/wiki/Main_Page", "en.wikipedia.org", 200, "<title>Wikipedia, the free encyclopedia</title>"},
		{"de.wikipedia.org", "/", "de.wikipedia.org", 200, "<title>Wikipedia – Die freie Enzyklopädie</title>"},
		{"en.wikipedia.org", "/", "de.wikipedia.org", 200, "Die freie"},
		{"httpbin.org:80", "/headers", "", 200, `"Host": "httpbin.org:80"`},
		{"httpbin.org", "/status/418", "", 418, "teapot"},
		{"other.example.org", "/ca.pem", "", 200, "BEGIN CERTIFICATE"},
	} {
		r := httptest.NewRequest("GET", c.path, nil)
		r.Host = c.host
		if c.sni != "" {
			r.TLS = &tls.ConnectionState{ServerName: c.sni}
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != c.code || !strings.Contains(w.Body.String(), c.want) {
			t.Errorf("%+v: %d %s", c, w.Code, w.Body)
		}
		if c.code == 301 && w.Header().Get("Location") != "https://edition.cnn.com/politics" {
			t.Errorf("location is %q", w.Header().Get("Location"))
		}
	}
}

// trusting is a client that trusts what is in file or bytes.
func trusting(t *testing.T, ca []byte, certs ...tls.Certificate) *http.Client {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		t.Fatal("no certificate")
	}
	transport := &http.Transport{ForceAttemptHTTP2: true, DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "edition.cnn.com", Certificates: certs}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// fetch tries until the server is up.
func fetch(t *testing.T, c *http.Client, url string) *http.Response {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := c.Do(req)
		if err == nil {
			res.Body.Close()
			return res
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal(err)
		}
	}
}

func TestSitesOverTLS(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	ca, err := newSitesTLS(time.Now)
	if err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	go func() {
		ended <- serveTLS(ctx, ":"+port, &tls.Config{GetCertificate: ca.certificate}, sitesHandler(ca.pem()))
	}()
	if res := fetch(t, trusting(t, ca.pem()), "https://127.0.0.1:"+port+"/"); res.StatusCode != 200 || res.ProtoMajor != 2 {
		t.Errorf("got %d %s", res.StatusCode, res.Proto)
	}
	for i := range knownMost + 1 {
		ca.known[fmt.Sprint(i)] = &tls.Certificate{}
	}
	if _, err := ca.certificate(&tls.ClientHelloInfo{ServerName: "one.more"}); err == nil {
		t.Error("there is no end of names")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

const nginxText = `events {}
http {
  server {
    listen 443 ssl;   # TLS
    root /usr/share/nginx/html;
    server_name my-nginx.mesh-external.svc.cluster.local;
    ssl_certificate /etc/nginx-server-certs/tls.crt; ssl_certificate_key /etc/nginx-server-certs/tls.key;
    ssl_client_certificate /etc/nginx-ca-certs/ca.crt;
    ssl_verify_client on;
  }
}
`

func TestNginxConfig(t *testing.T) {
	c, err := parseNginx(nginxText)
	if err != nil || len(c.listen) != 1 || c.listen[0].addr != ":443" || !c.listen[0].secure || !c.verify ||
		c.cert != "/etc/nginx-server-certs/tls.crt" || c.key != "/etc/nginx-server-certs/tls.key" || c.trust != "/etc/nginx-ca-certs/ca.crt" {
		t.Errorf("got %+v, %v", c, err)
	}
	for _, bad := range []string{"", "listen 443 ssl; ssl_verify_client on;"} {
		if _, err := parseNginx(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

// TestNginx: a client without a certificate is told so, one with a good one sees the page.
func TestNginx(t *testing.T) {
	dir := t.TempDir()
	ca, err := newSitesTLS(time.Now)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.certificate(&tls.ClientHelloInfo{ServerName: "edition.cnn.com"})
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]})
	key = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})
	port := freePort(t)
	config := strings.NewReplacer("/etc/nginx-server-certs/tls.crt", dir+"/tls.crt", "/etc/nginx-server-certs/tls.key", dir+"/tls.key",
		"/etc/nginx-ca-certs/ca.crt", dir+"/ca.crt", "443", "127.0.0.1:"+port).Replace(nginxText)
	for name, b := range map[string][]byte{"tls.crt": text, "tls.key": key, "ca.crt": ca.pem(), "nginx.conf": []byte(config)} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- nginx(ctx, []string{dir + "/nginx.conf"}) }()
	if res := fetch(t, trusting(t, ca.pem()), "https://127.0.0.1:"+port+"/"); res.StatusCode != 400 || !strings.HasPrefix(res.Header.Get("Server"), "nginx/") {
		t.Errorf("without a certificate: %d %v", res.StatusCode, res.Header)
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca.ca, leaf.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	client := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: pair.PrivateKey}
	if res := fetch(t, trusting(t, ca.pem(), client), "https://127.0.0.1:"+port+"/"); res.StatusCode != 200 {
		t.Errorf("with a certificate: %d", res.StatusCode)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	w := httptest.NewRecorder()
	nginxHandler(false).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	if !strings.Contains(w.Body.String(), "<title>Welcome to nginx!</title>") {
		t.Errorf("the page is %s", w.Body)
	}
}

func TestSquid(t *testing.T) {
	if c := parseSquid("http_port 4000\nacl SSL_ports port 443 8443\n"); c.port != "4000" || strings.Join(c.allowed, " ") != "443 8443" {
		t.Errorf("got %+v", c)
	}
	if c := parseSquid(""); c.port != "3128" || strings.Join(c.allowed, " ") != "443" {
		t.Errorf("got %+v", c)
	}
	up := lineServer(t, mongoConn)
	var log bytes.Buffer
	p := &connectProxy{allowed: []string{"443"}, log: &log, dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, up)
	}}
	served := make(chan struct{}, 2)
	proxy := lineServer(t, func(c net.Conn) { p.serve(t.Context(), c); served <- struct{}{} })
	for _, c := range []struct{ request, want string }{
		{"CONNECT en.wikipedia.org:443 HTTP/1.1\r\nHost: en.wikipedia.org:443\r\n\r\nfind ratings\n", "HTTP/1.1 200 Connection established\r\n\r\n{\"Reviewer1\": 5, \"Reviewer2\": 4}\n"},
		{"CONNECT en.wikipedia.org:80 HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 403 Forbidden\r\n"},
	} {
		conn := dial(t, proxy)
		fmt.Fprint(conn, c.request)
		closeWrite(conn)
		var b strings.Builder
		if _, err := copyAll(&b, conn); err != nil || !strings.HasPrefix(b.String(), c.want) {
			t.Errorf("%q: got %q, %v", c.request, b.String(), err)
		}
		conn.Close()
		<-served
	}
	for _, want := range []string{`(?m)^\d+\.\d{3} +\d+ 127\.0\.0\.1 TCP_TUNNEL/200 33 CONNECT en\.wikipedia\.org:443 - HIER_DIRECT/127\.0\.0\.1 -$`,
		`(?m)^\d+\.\d{3} +\d+ 127\.0\.0\.1 TCP_DENIED/403 \d+ CONNECT en\.wikipedia\.org:80 - HIER_NONE/- -$`} {
		if !regexp.MustCompile(want).Match(log.Bytes()) {
			t.Errorf("no line %s in\n%s", want, log.String())
		}
	}
}
