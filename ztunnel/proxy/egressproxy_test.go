package proxy

import (
	"strings"
	"testing"

	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/client"
)

// through is the scope of a Sidecar with an egress proxy.
func through(name string, policy *settings.OutboundPolicy, cluster string) client.Resource {
	return client.Resource{Name: name, Message: &settings.Scope{OutboundPolicy: policy, EgressProxy: cluster}}
}

// TestEgressProxy: what is in no registry goes through the egress proxy of the pod's Sidecar, TCP and HTTP; what is known goes where it
// is, and nothing goes round a proxy that is not there.
func TestEgressProxy(t *testing.T) {
	external(t, []string{"192.0.2.1:9000", "192.0.2.3:9000", "192.0.2.9:3128"}, func(t *testing.T, w *world, a *testPod, _ *fakeNames) {
		for _, addr := range []string{"192.0.2.1:80", "192.0.2.8:3128", "192.0.2.3:80"} {
			defer w.site(addr)()
		}
		pod := w.pod("b", "peer", "10.0.1.7")
		defer w.stop(pod)
		pod.web()
		set := func(protocol string) *settings.ServiceSettings {
			return &settings.ServiceSettings{External: true, AppProtocols: map[uint32]string{3128: protocol, 80: "http", 9000: "tcp"}}
		}
		w.apply(client.Resource{Message: &settings.MeshSettings{}}, client.Resource{Message: workload("foo", "peer", pod.ip)}, settingsOf("s"),
			scope("s", &anything), client.Resource{Message: limited(t, workload("foo", "sleep", a.ip), "s")})
		w.apply(declared(t, "foo", "tcp.example", set("tcp"), []string{"198.51.100.8/32"}, 3128, 3128, "192.0.2.9")...)
		w.apply(declared(t, "foo", "web.example", set("http"), []string{"198.51.100.9/32"}, 3128, 3128, "192.0.2.8")...)
		w.apply(declared(t, "foo", "known.example", set(""), []string{"198.51.100.3/32"}, 9000, 9000, "192.0.2.3")...)
		w.apply(declared(t, "foo", "site.example", set(""), []string{"198.51.100.4/32"}, 80, 80, "192.0.2.3")...)
		w.apply(declared(t, "foo", "nowhere.example", passing(), nil, 3128, 3128, "")...)
		const own = "200 192.0.2.1:80 host=any.example op= xfcc="
		want(t, "control: without a proxy, TCP", reaches(t, a, "192.0.2.1:9000"), "192.0.2.1:9000")
		want(t, "control: without a proxy, HTTP", a.ask(t, "192.0.2.1:80", "any.example"), own)

		w.apply(through("s", &anything, "outbound|3128||tcp.example"))
		want(t, "TCP through it", reaches(t, a, "192.0.2.1:9000"), "192.0.2.9:3128")
		want(t, "TLS through it", says(t, a, "192.0.2.1:443", hello(t, "any.example")), "192.0.2.9:3128")
		want(t, "TCP to a host that is declared", reaches(t, a, "198.51.100.3:9000"), "192.0.2.3:9000")
		w.apply(through("s", &anything, "outbound|3128||web.example"))
		want(t, "HTTP through it", a.ask(t, "192.0.2.1:80", "any.example"), "200 192.0.2.8:3128 host=any.example op= xfcc=")
		want(t, "HTTP to a host that is declared", a.ask(t, "192.0.2.1:80", "site.example"), "200 192.0.2.3:80 host=site.example op=site.example:80/* xfcc=")
		for _, host := range []string{"10.0.1.7", "any.example"} {
			if got := a.ask(t, "10.0.1.7:80", host); !strings.HasPrefix(got, "200 peer host="+host) {
				t.Errorf("HTTP to a workload's address as %s: %s", host, got)
			}
		}
		for _, missing := range []string{"outbound|3128||gone.example", "outbound|3129||web.example", "outbound|3128|v1|web.example", "outbound|||web.example",
			"outbound|3128||nowhere.example", "x"} {
			w.apply(through("s", &anything, missing))
			want(t, "TCP without "+missing, reaches(t, a, "192.0.2.1:9000"), "reset")
			w.wantLog("reason=no_endpoint", "egressProxy", missing)
			if got := a.ask(t, "192.0.2.1:80", "any.example"); !strings.HasPrefix(got, "503 ") || !strings.Contains(got, missing) {
				t.Errorf("HTTP without %s: %s", missing, got)
			}
		}
		w.apply(through("s", &registry, "outbound|3128||web.example"))
		want(t, "TCP with REGISTRY_ONLY", reaches(t, a, "192.0.2.1:9000"), "reset")
		want(t, "HTTP with REGISTRY_ONLY", a.ask(t, "192.0.2.1:80", "any.example"), "502 ")
		w.apply(scope("s", &anything))
		want(t, "the proxy is taken away", a.ask(t, "192.0.2.1:80", "any.example"), own)
	})
}
