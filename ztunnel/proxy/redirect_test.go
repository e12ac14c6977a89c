package proxy

import (
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/undermesh/undermesh/controller/client"
)

// answers makes the pod's application answer each request by what the function says.
func (p *testPod) answers(f func(target string) string) {
	go func() {
		for {
			c, err := p.app.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b := make([]byte, 4096)
				n, _ := c.Read(b)
				target, _, _ := strings.Cut(strings.TrimPrefix(string(b[:n]), "GET "), " ")
				_, _ = io.WriteString(c, f(target))
			}()
		}
	}()
}

// TestProbeIsRedirected: kubelet follows a redirect of the application to itself, so the next request is let in too; and
// only that one, only soon, and only if the request that was answered was kubelet's own.
func TestProbeIsRedirected(t *testing.T) {
	const head = "Host: 10.0.1.1:80\r\nUser-Agent: kube-probe/1.36\r\nAccept: */*\r\nConnection: close\r\n"
	to := map[string]string{"/healthz": "/ready", "/ready": "http://10.0.1.1:80/ready/?a=1", "/far": "http://10.0.1.2:80/x",
		"/port": "http://10.0.1.1:81/x", "/tls": "https://10.0.1.1:80/x", "/user": "http://u@10.0.1.1:80/x"}
	inWorld(t, nil, func(t *testing.T, w *world) {
		probes := []Probe{{Port: 80, Path: "/healthz"}}
		for path := range to {
			if path != "/ready" && path != "/healthz" {
				probes = append(probes, Probe{Port: 80, Path: path})
			}
		}
		b := w.pod("b", "httpbin", "10.0.1.1", probes...)
		defer w.stop(b)
		b.answers(func(target string) string {
			if next, ok := to[target]; ok {
				return "HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + next + "\r\n\r\n"
			}
			return "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
		})
		w.apply(client.Resource{Message: workload("foo", "httpbin", b.ip)})
		passes := func(target, headers string) bool {
			t.Helper()
			got, err := say(t, b.arrive(b.probe, "10.0.1.254:5000", 80), "GET "+target+" HTTP/1.1\r\n"+headers+"\r\n")
			switch {
			case err == nil && strings.HasPrefix(got, "HTTP/1.1 "):
				return true
			case !errors.Is(err, syscall.ECONNRESET):
				t.Fatalf("%s: %q, %v", target, got, err)
			}
			return false
		}
		if passes("/ready", head) {
			t.Error("nothing redirected there yet")
		}
		for name, more := range map[string]string{"another header": head + "X-Forwarded-Prefix: /ready\r\n", "another client": strings.Replace(head, "kube-probe", "curl", 1),
			"no host": strings.Replace(head, "Host: 10.0.1.1:80\r\n", "", 1), "a name": strings.Replace(head, "10.0.1.1:80", "pod", 1)} {
			if !passes("/healthz", more) || passes("/ready", head) {
				t.Errorf("%s: its redirect counts", name)
			}
		}
		if !passes("/healthz", head) || !passes("/ready", head+"Referer: http://10.0.1.1:80/healthz\r\n") || !passes("/ready/?a=1", head) || passes("/ready/", head) {
			t.Error("two redirects in a row are not followed")
		}
		for path := range to {
			if passes(path, head); passes("/x", head) {
				t.Errorf("the redirect of %s leads elsewhere", path)
			}
		}
		time.Sleep(redirectLife + time.Second)
		synctest.Wait()
		if passes("/ready", head) {
			t.Error("the redirect is remembered for ever")
		}
	})
}

func TestRedirectsAreBounded(t *testing.T) {
	var r redirects
	now := time.Unix(1e9, 0)
	for i := range 100 {
		r.follow(Probe{Port: uint16(i)}, now)
	}
	if len(r.until) != maxRedirects {
		t.Errorf("%d are kept, want %d", len(r.until), maxRedirects)
	}
	r.follow(Probe{Port: 200}, now.Add(time.Minute))
	if len(r.until) != 1 || !r.expects(Probe{Port: 200}, now.Add(time.Minute)) {
		t.Errorf("old ones stay: %v", r.until)
	}
}

func FuzzNextTarget(f *testing.F) {
	f.Add("10.0.0.1:80", "/a", []byte("HTTP/1.1 302 Found\r\nLocation: ../b?c#d\r\n\r\n"))
	f.Add("[::1]", "/a", []byte("HTTP/1.1 308 x\r\nLocation: //[::1]/b\r\n\r\n"))
	f.Fuzz(func(t *testing.T, host, asked string, head []byte) {
		if next := nextTarget(host, asked, head); next != "" && !strings.HasPrefix(next, "/") {
			t.Errorf("%q", next)
		}
	})
}
