package proxy

import (
	"errors"
	"strings"
	"syscall"
	"testing"

	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
)

// TestClientModes: plain text by DestinationRule hides who calls, also from a server of the same node, which is judged
// as if it came over the wire; mutual TLS goes through the tunnel there too; what cannot be done is refused, and the server
// sees nothing of it.
func TestClientModes(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		a, near, far := w.pod("a", "sleep", "10.0.0.1"), w.pod("a", "near", "10.0.0.2"), w.pod("b", "far", "10.0.1.1")
		defer w.stop(a, near, far)
		near.echo()
		far.echo()
		const key = "foo/web.foo.svc.cluster.local"
		ports := []*workloadapi.Port{{ServicePort: 80, TargetPort: 80}}
		w.apply(client.Resource{Message: workload("foo", "sleep", a.ip)},
			client.Resource{Message: &workloadapi.Service{Name: "web", Namespace: "foo", Hostname: "web.foo.svc.cluster.local", Ports: ports}})
		serve := func(policies ...string) {
			for _, p := range []*testPod{near, far} {
				m := workload("foo", p.cfg.Name, p.ip, policies...)
				m.Services = map[string]*workloadapi.PortList{key: {Ports: ports}}
				w.apply(client.Resource{Message: m})
			}
		}
		rule := func(mode settings.ClientTls_Mode) {
			w.apply(client.Resource{Message: &settings.CallRule{Namespace: "foo", Name: "web", Host: "web.foo.svc.cluster.local",
				Tls: &settings.ClientTlsPolicy{Host: &settings.ClientTls{Mode: mode}}}})
		}
		check := func(what string, near, far bool) {
			t.Helper()
			for dst, ok := range map[string]bool{"10.0.0.2:80": near, "10.0.1.1:80": far} {
				got, err := say(t, a.connect(dst), "hi")
				if ok && (err != nil || !strings.HasSuffix(got, "hi")) || !ok && !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("%s: %s answers %q, %v", what, dst, got, err)
				}
			}
		}
		w.apply(client.Resource{Message: strict()}, client.Resource{Message: allowFrom("foo", "sleep-only", "cluster.local/ns/foo/sa/sleep")})
		serve("foo/sleep-only")
		check("control: no rule, the caller's identity is asked for", true, true)
		rule(settings.ClientTls_MODE_DISABLE)
		// The network of these tests captures nothing: what another node's pod is sent in plain text is judged in TestStrictRefuses….
		check("DISABLE, the caller's identity is asked for", false, true)
		serve("istio-system/" + strict().GetName())
		check("DISABLE, STRICT", false, true)
		w.wantLog("reason=strict_mtls", "path=proxied")
		serve()
		tunnels := w.net.dialled(15008)
		check("DISABLE, nothing is asked for", true, true)
		if n := w.net.dialled(15008); n != tunnels {
			t.Errorf("%d tunnels were opened", n-tunnels)
		}
		rule(settings.ClientTls_MODE_ISTIO_MUTUAL)
		check("ISTIO_MUTUAL", true, true)
		if w.net.dialled(15008) == tunnels {
			t.Error("the tunnel was not used")
		}
		before := w.net.dialled(80)
		rule(settings.ClientTls_MODE_MUTUAL)
		check("MUTUAL", false, false)
		w.wantLog("reason=client_tls", "direction=outbound")
		if n := w.net.dialled(80); n != before {
			t.Error("a server was dialled without the TLS that was asked for")
		}
		rule(settings.ClientTls_MODE_SIMPLE)
		check("SIMPLE, servers that speak no TLS", false, false)
		w.wantLog("reason=tls_handshake", "direction=outbound")
	})
}

// TestSubsetsOfHeadlessServices: who dials a pod of a service without an address calls the service: its VirtualService leads
// connections to a subset, whose TLS counts before the host's.
func TestSubsetsOfHeadlessServices(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		a, far := w.pod("a", "sleep", "10.0.0.1"), w.pod("b", "far", "10.0.1.1")
		defer w.stop(a, far)
		far.echo()
		const host = "web.foo.svc.cluster.local"
		ports := []*workloadapi.Port{{ServicePort: 5432, TargetPort: 80}}
		m := workload("foo", "far", far.ip)
		m.Services = map[string]*workloadapi.PortList{"foo/" + host: {Ports: ports}, "foo/a.foo.svc.cluster.local": {Ports: ports}}
		w.apply(client.Resource{Message: workload("foo", "sleep", a.ip)}, client.Resource{Message: m},
			client.Resource{Message: &workloadapi.Service{Name: "web", Namespace: "foo", Hostname: host, Ports: ports}})
		rule := func(subset settings.ClientTls_Mode) {
			w.apply(client.Resource{Message: &settings.CallRule{Namespace: "foo", Name: "web", Host: host, Subsets: []*settings.Subset{{Name: "v1"}},
				Tls: &settings.ClientTlsPolicy{Host: &settings.ClientTls{Mode: settings.ClientTls_MODE_ISTIO_MUTUAL},
					Subsets: map[string]*settings.ClientTlsPolicy{"v1": {Host: &settings.ClientTls{Mode: subset}}}}}})
		}
		check := func(what string, ok bool) {
			t.Helper()
			got, err := say(t, a.connect("10.0.1.1:80"), "hi")
			if ok && (err != nil || !strings.HasSuffix(got, "hi")) || !ok && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%s: answers %q, %v", what, got, err)
			}
		}
		rule(settings.ClientTls_MODE_DISABLE)
		w.apply(streams(host, false, leads("outbound||v1|"+host)))
		check("a subset with DISABLE", true)
		if n := w.net.dialled(15008); n != 0 {
			t.Errorf("%d tunnels were opened", n)
		}
		rule(settings.ClientTls_MODE_SIMPLE)
		check("a subset with SIMPLE, a server that speaks no TLS", false)
		w.wantLog("reason=tls_handshake", "direction=outbound")
		w.apply(streams(host, false, leads("outbound||v2|"+host)))
		check("a subset that is not there", false)
		w.wantLog("reason=no_endpoint", "outbound|5432|v2|"+host)
		w.apply(streams(host, false))
		check("control: without the VirtualService", true)
		if n := w.net.dialled(15008); n != 1 {
			t.Errorf("control: %d tunnels were opened, want 1", n)
		}
	})
}
