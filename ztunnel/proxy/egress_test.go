package proxy

import (
	"bufio"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
)

// site is a server of HTTP that is in no registry: it says where it listens and what it was asked.
func (w *world) site(addr string) (stop func()) {
	l := w.net.listen(netip.MustParseAddrPort(addr))
	srv := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { //nolint:gosec // in memory
		fmt.Fprintf(rw, "%s host=%s op=%s xfcc=%s", addr, r.Host, r.Header.Get("X-Envoy-Decorator-Operation"), r.Header.Get("X-Forwarded-Client-Cert"))
	})}
	go func() { _ = srv.Serve(l) }()
	return func() { _ = srv.Close() }
}

// TestEgressOfHTTP: what no registry has passes with ALLOW_ANY and is answered by the mesh with REGISTRY_ONLY (EG-01…04); a host that
// is declared is reached at its own address, whatever the client dialled.
func TestEgressOfHTTP(t *testing.T) {
	external(t, nil, func(t *testing.T, w *world, a *testPod, names *fakeNames) {
		defer w.site("192.0.2.1:80")()
		defer w.site("192.0.2.2:80")()
		w.apply(client.Resource{Message: &settings.MeshSettings{}})
		want(t, "EG-01 unknown, ALLOW_ANY", a.ask(t, "192.0.2.1:80", "any.example"), "200 192.0.2.1:80 host=any.example op= xfcc=")
		w.apply(registryOnly())
		want(t, "EG-03 unknown, REGISTRY_ONLY", a.ask(t, "192.0.2.1:80", "any.example"), "502 ")
		names.set("httpbin.org", "192.0.2.2")
		set := dns()
		set.AppProtocols = map[uint32]string{80: "http"}
		w.apply(declared(t, "foo", "httpbin.org", set, []string{"240.240.0.1/32"}, 80, 80, "httpbin.org")...)
		const at = "200 192.0.2.2:80 host=httpbin.org op=httpbin.org:80/* xfcc="
		want(t, "EG-04 declared", a.ask(t, "240.240.0.1:80", "httpbin.org"), at)
		want(t, "declared, another address dialled", a.ask(t, "192.0.2.1:80", "httpbin.org"), at)
		want(t, "its address, another host", a.ask(t, "192.0.2.1:80", "evil.example"), "502 ")
	})
}

// TestHostsLeadNowhereElse: a Host header opens nothing that its sender does not see, no listener of the mesh, and gets no identity
// by another name; CONNECT is no way through.
func TestHostsLeadNowhereElse(t *testing.T) {
	inTown(t, "http", func(t *testing.T, w *world, c, v1, v2 *testPod) {
		secret := w.pod("b", "secret", "10.0.1.9")
		defer w.stop(secret)
		secret.web()
		hidden := workload("bar", "secret", secret.ip)
		hidden.Services = map[string]*workloadapi.PortList{"bar/secret.bar.svc.cluster.local": {Ports: []*workloadapi.Port{{ServicePort: 80, TargetPort: 80}}}}
		w.apply(client.Resource{Message: hidden}, client.Resource{Message: &workloadapi.Service{Name: "secret", Namespace: "bar",
			Hostname: "secret.bar.svc.cluster.local", Ports: []*workloadapi.Port{{ServicePort: 80, TargetPort: 80}},
			Addresses: []*workloadapi.NetworkAddress{{Address: netip.MustParseAddr("10.96.0.9").AsSlice()}}}})
		w.apply(settingsOf("s"), scope("s", &registry, egress(0, "./*")), client.Resource{Message: limited(t, workload("foo", "sleep", c.ip), "s")})
		if got := c.ask(t, reviewsVIP, "reviews"); !strings.HasPrefix(got, "200 v") {
			t.Errorf("control: %s", got)
		}
		for dst, hosts := range map[string][]string{
			reviewsVIP:     {"secret.bar"}, // the service that was dialled takes what means nothing to its caller
			"10.96.0.9:80": {"secret.bar", "secret.bar.svc.cluster.local", "10.96.0.9", "x"},
			"10.0.1.9:80":  {"secret.bar", "10.0.1.9"},
			"10.9.9.9:80":  {"secret.bar", "localhost", "127.0.0.1"},
		} {
			for _, host := range hosts {
				got := c.ask(t, dst, host)
				if strings.Contains(got, "secret host=") || dst != reviewsVIP && !strings.HasPrefix(got, "502") {
					t.Errorf("%s at %s: %s", host, dst, got)
				}
			}
		}
		for _, target := range []string{"10.0.0.1:15008", "127.0.0.1:15006", "10.0.1.9:80", "secret.bar:80"} {
			conn := c.connect(reviewsVIP)
			if _, err := fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target); err != nil {
				t.Fatal(err)
			}
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err == nil && res.StatusCode/100 == 2 {
				t.Errorf("CONNECT %s: %s", target, res.Status)
			}
			_ = conn.Close()
		}
		for _, port := range []string{"15001", "15006", "15008"} {
			if got := c.ask(t, "10.0.0.1:"+port, "reviews"); strings.HasPrefix(got, "2") {
				t.Errorf("the mesh's port %s: %s", port, got)
			}
		}
		if n := w.net.dialled(15006); n != 0 {
			t.Errorf("%d connections to a listener of the mesh", n)
		}
	})
}
