package proxy

import (
	"strings"
	"testing"

	"github.com/undermesh/undermesh/controller/client"
)

// TestDrain: a pod that is drained takes no new connections, of HTTP and others, from its node and from elsewhere; what is there
// goes on; undone, all is as before.
func TestDrain(t *testing.T) {
	inTown(t, "http", func(t *testing.T, w *world, c, v1, v2 *testPod) {
		w.apply(byVersion()...)
		ask := func(who string) string { return c.ask(t, reviewsVIP, "reviews", "end-user: "+who) }
		for _, pod := range []struct {
			*testPod
			who string
		}{{v1, "bob"}, {v2, "jason"}} {
			pod.Drain(true)
			if got := ask(pod.who); !strings.HasPrefix(got, "503 ") {
				t.Errorf("%s is drained and answers %s", pod.cfg.Name, got)
			}
			pod.Drain(false)
			if got := ask(pod.who); !strings.HasPrefix(got, "200 "+pod.cfg.Name) {
				t.Errorf("%s is drained no longer: %s", pod.cfg.Name, got)
			}
			pod.Drain(true)
			if got := ask(pod.who); !strings.HasPrefix(got, "200 "+pod.cfg.Name) {
				t.Errorf("control: over the connection that %s has: %s", pod.cfg.Name, got)
			}
		}
		w.wantLog("reason=draining")
	})
	inWorld(t, nil, func(t *testing.T, w *world) {
		a, b := w.pod("a", "sleep", "10.0.0.1"), w.pod("b", "httpbin", "10.0.1.1")
		defer w.stop(a, b)
		b.echo()
		w.apply(client.Resource{Message: workload("foo", "sleep", a.ip)}, client.Resource{Message: workload("foo", "httpbin", b.ip)})
		open := a.connect("10.0.1.1:80")
		if got, err := say(t, open, "hi"); err != nil || got != "10.0.0.1\nhi" {
			t.Fatalf("before: %q, %v", got, err)
		}
		b.Drain(true)
		if got, err := say(t, a.connect("10.0.1.1:80"), "hi"); err == nil {
			t.Errorf("a drained pod answers %q over TCP", got)
		}
		if n := b.Status().Connections; n > 1 {
			t.Errorf("%d connections, of which one was refused", n)
		}
	})
}
