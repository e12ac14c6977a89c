package proxy

import (
	"errors"
	"io"
	"net/netip"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/undermesh/undermesh/controller/client"
)

// A leg whose first SYN was lost does not reach the pod that has the address by the time of the next.
func TestLegEndsWithItsDestination(t *testing.T) {
	for name, lose := range map[string]func(w *world, b *testPod){
		"removed":            func(_ *world, b *testPod) { b.Remove() },
		"its address passed": func(w *world, b *testPod) { w.pod("a", "other", b.ip.String()) },
		"its name passed":    func(w *world, _ *testPod) { w.pod("a", "httpbin", "10.0.0.9") },
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, nil, func(t *testing.T, w *world) {
				a, b := w.pod("a", "sleep", "10.0.0.1"), w.pod("a", "httpbin", "10.0.0.2")
				defer w.stop(a, b)
				w.apply(client.Resource{Message: workload("foo", "sleep", a.ip)}, client.Resource{Message: workload("foo", "httpbin", b.ip)})
				a.sockets.slow = make(chan struct{})
				c := a.connect("10.0.0.2:80")
				if _, err := io.WriteString(c, "\x00"); err != nil { // no HTTP
					t.Fatal(err)
				}
				synctest.Wait()
				if n := len(w.net.legs); n != 1 {
					t.Fatalf("%d legs, want one", n)
				}
				start := time.Now()
				lose(w, b)
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("%v, want a reset", err)
				}
				if d := time.Since(start); d > time.Second {
					t.Errorf("it took %v", d)
				}
				close(a.sockets.slow)
				synctest.Wait()
				if n := w.net.dialled(80); n != 0 {
					t.Errorf("%d connections reached the address", n)
				}
				w.wantLog("reason=pod_removed", "direction=outbound")
				if len(b.legs) != 0 {
					t.Errorf("%d legs are still noted", len(b.legs))
				}
			})
		})
	}
}

// The control plane says that an address is the destination's, the agent that it is another pod's.
func TestLegGoesToNoAddressOfAnotherPod(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		a, b, c := w.pod("a", "sleep", "10.0.0.1"), w.pod("a", "httpbin", "10.0.0.2"), w.pod("a", "other", "10.0.0.3")
		defer w.stop(a, b, c)
		two := workload("foo", "httpbin", b.ip)
		two.Addresses = append(two.Addresses, netip.MustParseAddr("10.0.0.3").AsSlice())
		w.apply(client.Resource{Message: workload("foo", "sleep", a.ip)}, client.Resource{Message: two},
			client.Resource{Message: workload("foo", "other", c.ip, "foo/nobody")},
			client.Resource{Message: allowFrom("foo", "nobody", "cluster.local/ns/foo/sa/nobody")})
		if _, err := say(t, a.connect("10.0.0.3:80"), "x"); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%v, want a reset", err)
		}
		if n := w.net.dialled(80); n != 0 {
			t.Errorf("%d connections reached the other pod", n)
		}
		w.wantLog("reason=not_ready", "direction=outbound")
	})
}
