package proxy

import (
	"bufio"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
)

// forged is what a client says of itself; told, what an application of v1 and v2 hears instead.
const (
	forged = "X-Forwarded-Client-Cert: By=me;URI=spiffe://cluster.local/ns/foo/sa/admin"
	told   = "URI=spiffe://cluster.local/ns/foo/sa/sleep"
)

func wantTold(t *testing.T, what, got string) {
	t.Helper()
	if !strings.HasPrefix(got, "200 ") || strings.Contains(got, "admin") || !strings.HasSuffix(got, told) {
		t.Errorf("%s: %s", what, got)
	}
}

// door is a service whose port 9000 declares TCP.
func door(namespace string, target uint32) *workloadapi.Service {
	return &workloadapi.Service{Name: "door", Namespace: namespace, Hostname: "door." + namespace + ".svc.cluster.local",
		Ports:      []*workloadapi.Port{{ServicePort: 9000, TargetPort: target}},
		Addresses:  []*workloadapi.NetworkAddress{{Address: netip.MustParseAddr("10.96.0.66").AsSlice()}},
		Extensions: []*workloadapi.Extension{{Name: api.ServiceSettingsExtension, Config: packed(&settings.ServiceSettings{AppProtocols: map[uint32]string{9000: "tcp"}})}}}
}

// TestXFCCBehindForeignService: what a service of another namespace declares of its port does not change who its callers are, where the
// pod's own service declares HTTP.
func TestXFCCBehindForeignService(t *testing.T) {
	inTown(t, "http", func(t *testing.T, w *world, c, v1, v2 *testPod) {
		w.apply(client.Resource{Message: door("b", 80)})
		for _, p := range []*testPod{v1, v2} {
			for _, q := range []*testPod{v1, v2} {
				l := labelled(q.cfg.Name, q.ip, q.cfg.Name)
				if p == q {
					l.Services["b/door.b.svc.cluster.local"] = &workloadapi.PortList{Ports: []*workloadapi.Port{{ServicePort: 9000, TargetPort: 80}}}
				}
				w.apply(client.Resource{Message: l})
			}
			wantTold(t, p.cfg.Name, c.ask(t, "10.96.0.66:9000", "reviews", forged))
		}
	})
}

// TestXFCCBehindTCPRoute: nor does a VirtualService that leads a port of TCP there.
func TestXFCCBehindTCPRoute(t *testing.T) {
	inTown(t, "http", func(t *testing.T, w *world, c, _, _ *testPod) {
		w.apply(client.Resource{Message: door("foo", 9000)}, streams("door.foo.svc.cluster.local", false, leads("outbound|80||reviews.foo.svc.cluster.local")))
		for range 4 {
			wantTold(t, "by a route of TCP", c.ask(t, "10.96.0.66:9000", "reviews", forged))
		}
	})
}

// TestXFCCOfThePatient: on a port that declares nothing a client that waits longer than it is waited for is no less looked at.
func TestXFCCOfThePatient(t *testing.T) {
	inTown(t, "", func(t *testing.T, _ *world, c, v1, v2 *testPod) {
		for _, p := range []*testPod{v1, v2} {
			conn := c.connect(p.ip.String() + ":80")
			time.Sleep(time.Second) // of the bubble's clock
			wantTold(t, "in the mesh, to "+p.cfg.Name, askOn(t, conn, bufio.NewReader(conn), "reviews", forged))
			_ = conn.Close()
			conn = p.arrive(p.in, "10.9.9.9:4444", 80)
			time.Sleep(time.Second)
			if got := askOn(t, conn, bufio.NewReader(conn), "reviews", forged); !strings.HasPrefix(got, "200 ") || !strings.HasSuffix(got, " xfcc=") {
				t.Errorf("from outside, to %s: %s", p.cfg.Name, got)
			}
			_ = conn.Close()
		}
	})
}
