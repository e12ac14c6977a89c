package proxy

import (
	"bufio"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
)

// idle is a DestinationRule of the host by which connections that carry nothing end.
func idle(host string, after time.Duration) client.Resource {
	return client.Resource{Message: &settings.CallRule{Namespace: "foo", Name: "idle", Host: host, Policies: &settings.CallPolicies{Host: &settings.CallPolicy{
		ConnectionPool: &settings.ConnectionPool{Cluster: packed(&clusterv3.Cluster{}), TcpIdleTimeout: durationpb.New(after)}}}}}
}

// talk is a connection to a server that answers what it is told.
type talk struct {
	t *testing.T
	net.Conn
	answers *bufio.Reader
}

func newTalk(t *testing.T, c net.Conn, first string) *talk {
	t.Helper()
	t.Cleanup(func() { _ = c.Close() })
	k := &talk{t, c, bufio.NewReader(c)}
	k.say("\x00")
	if got, err := k.answers.ReadString('\n'); err != nil || got != first {
		t.Fatalf("the server begins with %q, %v", got, err)
	}
	return k
}

func (k *talk) say(text string) {
	k.t.Helper()
	if _, err := io.WriteString(k, text); err != nil {
		k.t.Fatal(err)
	}
}

// ended reports whether the connection came to its end within a second.
func (k *talk) ended() bool {
	_ = k.SetReadDeadline(time.Now().Add(time.Second))
	_, err := io.Copy(io.Discard, k.answers)
	return err == nil || !strings.Contains(err.Error(), "timeout")
}

// TestStreamIdle: a connection that is not HTTP ends after tcp.idleTimeout without a byte either way, and is not ended before.
func TestStreamIdle(t *testing.T) {
	external(t, []string{"192.0.2.1:80"}, func(t *testing.T, w *world, a *testPod, _ *fakeNames) {
		w.apply(declared(t, "foo", "one.example", &settings.ServiceSettings{External: true}, []string{"198.51.100.1/32"}, 80, 80, "192.0.2.1")...)
		open := func() *talk { return newTalk(t, a.connect("198.51.100.1:80"), "192.0.2.1:80\n") }
		k := open()
		wait(59 * time.Minute)
		if k.ended() {
			t.Error("control: without the DestinationRule a connection ends within an hour")
		}
		wait(10 * time.Minute)
		if !k.ended() {
			t.Error("without the DestinationRule a connection does not end after an hour")
		}
		w.apply(idle("one.example", 8*time.Second))
		k = open()
		before := counted(a, "upstream_cx_idle_timeout")
		for range 5 {
			wait(6 * time.Second)
			if k.ended() {
				t.Fatal("a connection ends that is not idle for as long")
			}
			k.say("x") // the server does not answer
		}
		wait(6 * time.Second)
		if k.ended() {
			t.Error("a connection ends before its time")
		}
		wait(2 * time.Second)
		if !k.ended() {
			t.Error("a connection lasts longer than the DestinationRule says")
		}
		w.wantLog("reason=connection_idle", "one.example")
		if n := counted(a, "upstream_cx_idle_timeout") - before; n != 1 {
			t.Errorf("%d connections counted, want 1", n)
		}
		w.apply(idle("one.example", 0))
		k = open()
		wait(48 * time.Hour)
		if k.ended() {
			t.Error("a connection ends where 0 says that none does")
		}
	})
}

// counted is a statistic of the pod's clusters.
func counted(p *testPod, name string) (n uint64) {
	for e := range p.calls.Clusters {
		for s, v := range e.Stats {
			if s == name {
				n += v
			}
		}
	}
	return n
}

// TestTunnelledIdle: so does one that goes through the tunnel, or to a pod of the same node, at both ends, also while nobody has spoken.
func TestTunnelledIdle(t *testing.T) {
	for _, node := range []string{"a", "b"} {
		t.Run("to a pod of node "+node, func(t *testing.T) {
			inWorld(t, nil, func(t *testing.T, w *world) {
				a, b := w.pod("a", "sleep", "10.0.0.1"), w.pod(node, "server", "10.0.1.1")
				defer w.stop(a, b)
				member := workload("foo", "server", b.ip)
				member.Services = map[string]*workloadapi.PortList{"foo/reviews.foo.svc.cluster.local": {Ports: []*workloadapi.Port{{ServicePort: 80, TargetPort: 80}}}}
				w.apply(client.Resource{Message: workload("foo", "sleep", a.ip)}, client.Resource{Message: reviews("")}, client.Resource{Message: member},
					idle("reviews.foo.svc.cluster.local", 8*time.Second))
				got := make(chan net.Conn, 2)
				go func() {
					for {
						c, err := b.app.Accept()
						if err != nil {
							return
						}
						got <- c
					}
				}()
				for _, first := range []string{"\x00\x01", ""} {
					c := a.connect(reviewsVIP)
					if _, err := io.WriteString(c, first); err != nil {
						t.Fatal(err)
					}
					server := <-got
					k, far := &talk{t, c, bufio.NewReader(c)}, &talk{t, server, bufio.NewReader(server)}
					for range 3 {
						wait(6 * time.Second)
						if first != "" {
							far.say("x")
						}
					}
					if first != "" && (k.ended() || far.ended()) {
						t.Errorf("after %q a connection ends that is not idle", first)
					}
					wait(9 * time.Second)
					if !k.ended() || !far.ended() {
						t.Errorf("after %q a connection lasts longer than the DestinationRule says", first)
					}
					_, _ = c.Close(), server.Close()
				}
				w.wantLog("direction=outbound", "reason=connection_idle")
			})
		})
	}
}
