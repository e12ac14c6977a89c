package proxy

import (
	"crypto/tls"
	"io"
	"net/netip"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/client"
)

// streams is a VirtualService of the host with one rule for TCP or TLS.
func streams(host string, secured bool, rules ...*settings.StreamRule) client.Resource {
	r := &settings.RouteRule{Namespace: "foo", Name: "streams", Hosts: []string{host}}
	if secured {
		r.Tls = rules
	} else {
		r.Tcp = rules
	}
	return client.Resource{Message: r}
}

func leads(to string, matches ...*settings.StreamMatch) *settings.StreamRule {
	return &settings.StreamRule{Matches: matches, Destinations: []*settings.StreamDestination{{Cluster: to, Weight: 1}}}
}

// TestStreamsAreRouted: TCP by port and source, to other hosts and ports; TLS by its server name, whatever address was dialled.
func TestStreamsAreRouted(t *testing.T) {
	external(t, []string{"192.0.2.1:80", "192.0.2.2:81", "192.0.2.3:443", "192.0.2.4:443"}, func(t *testing.T, w *world, a *testPod, _ *fakeNames) {
		static := func() *settings.ServiceSettings { return &settings.ServiceSettings{External: true} }
		w.apply(declared(t, "foo", "one.example", static(), []string{"198.51.100.1/32"}, 80, 80, "192.0.2.1")...)
		w.apply(declared(t, "foo", "two.example", static(), []string{"198.51.100.2/32"}, 81, 81, "192.0.2.2")...)
		want(t, "TC-01 control: without the VirtualService", reaches(t, a, "198.51.100.1:80"), "192.0.2.1:80")
		w.apply(streams("one.example", false, leads("outbound|81||two.example")))
		want(t, "TC-07 to another host and port", reaches(t, a, "198.51.100.1:80"), "192.0.2.2:81")
		w.apply(streams("one.example", false, leads("outbound|81||two.example", &settings.StreamMatch{SourceSubnet: "10.9.0.0/16"})))
		want(t, "TC-03 another source", reaches(t, a, "198.51.100.1:80"), "192.0.2.1:80")
		w.apply(streams("one.example", false, leads("outbound|81||two.example", &settings.StreamMatch{SourceSubnet: "10.0.0.0/16"})))
		want(t, "TC-03 the source", reaches(t, a, "198.51.100.1:80"), "192.0.2.2:81")
		w.apply(streams("one.example", false, leads("outbound|81||nobody.example")))
		want(t, "a host that is not there", reaches(t, a, "198.51.100.1:80"), "reset")
		w.wantLog("reason=no_endpoint", "nobody.example")

		secured := func() *settings.ServiceSettings {
			return &settings.ServiceSettings{External: true, AppProtocols: map[uint32]string{443: "tls"}}
		}
		w.apply(declared(t, "foo", "three.example", secured(), []string{"198.51.100.3/32"}, 443, 443, "192.0.2.3")...)
		w.apply(declared(t, "foo", "four.example", secured(), []string{"198.51.100.4/32"}, 443, 443, "192.0.2.4")...)
		w.apply(client.Resource{Message: &settings.RouteRule{Namespace: "foo", Name: "tls", Hosts: []string{"three.example"}, Tls: []*settings.StreamRule{
			leads("outbound|443||four.example", &settings.StreamMatch{SniHosts: []string{"*.four.example"}}),
			leads("outbound|443||three.example", &settings.StreamMatch{SniHosts: []string{"three.example"}})}}})
		for sni, at := range map[string]string{"three.example": "192.0.2.3:443", "x.four.example": "192.0.2.4:443", "": "192.0.2.3:443", "other": "192.0.2.3:443"} {
			want(t, "TC-05, TC-06 by the name "+sni, says(t, a, "198.51.100.3:443", hello(t, sni)), at)
		}
	})
}

// TestStreamsByServerName: with REGISTRY_ONLY a wildcard host without addresses is reached by the name that the client says, and no
// other (SR-09, EG-17).
func TestStreamsByServerName(t *testing.T) {
	external(t, []string{"192.0.2.1:443"}, func(t *testing.T, w *world, a *testPod, _ *fakeNames) {
		want(t, "control: not declared", says(t, a, "192.0.2.1:443", hello(t, "en.wikipedia.org")), "reset")
		set := passing()
		set.AppProtocols = map[uint32]string{443: "https"}
		w.apply(declared(t, "foo", "*.wikipedia.org", set, nil, 443, 443, "")...)
		want(t, "declared", says(t, a, "192.0.2.1:443", hello(t, "en.wikipedia.org")), "192.0.2.1:443")
		want(t, "another name", says(t, a, "192.0.2.1:443", hello(t, "evil.example")), "reset")
		want(t, "no name", says(t, a, "192.0.2.1:443", hello(t, "")), "reset")
	})
}

// TestStreamLimit: a cluster has no more connections than its DestinationRule allows.
func TestStreamLimit(t *testing.T) {
	external(t, []string{"192.0.2.1:80"}, func(t *testing.T, w *world, a *testPod, _ *fakeNames) {
		w.apply(declared(t, "foo", "one.example", &settings.ServiceSettings{External: true}, []string{"198.51.100.1/32"}, 80, 80, "192.0.2.1")...)
		open := func() (ok bool) {
			c := a.connect("198.51.100.1:80")
			t.Cleanup(func() { _ = c.Close() })
			if _, err := io.WriteString(c, "\x00"); err != nil {
				return false
			}
			_, err := c.Read(make([]byte, 1))
			return err == nil
		}
		if first, second := open(), open(); !first || !second {
			t.Error("control: without the DestinationRule")
		}
		w.apply(client.Resource{Message: &settings.CallRule{Namespace: "foo", Name: "limit", Host: "one.example", Policies: &settings.CallPolicies{Host: &settings.CallPolicy{
			ConnectionPool: &settings.ConnectionPool{Cluster: packed(&clusterv3.Cluster{CircuitBreakers: &clusterv3.CircuitBreakers{
				Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{MaxConnections: wrapperspb.UInt32(1)}}}})}}}}})
		if !open() {
			t.Error("the first connection was refused")
		}
		if open() {
			t.Error("the second connection was not refused")
		}
		w.wantLog("reason=overload", "one.example")
	})
}

// says sends bytes and returns what comes back first, or "reset".
func says(t *testing.T, a *testPod, dst string, text []byte) string {
	t.Helper()
	c := a.connect(dst)
	defer c.Close()
	if _, err := c.Write(text); err != nil {
		return err.Error()
	}
	_ = c.SetReadDeadline(time.Now().Add(time.Minute))
	b := make([]byte, 64)
	n, err := c.Read(b)
	if err != nil {
		return "reset"
	}
	return string(b[:max(0, n-1)])
}

// hello is a ClientHello for a server name.
func hello(t *testing.T, sni string) []byte {
	t.Helper()
	x, y := memPair(netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2"))
	go func() { _ = tls.Client(x, &tls.Config{ServerName: sni, InsecureSkipVerify: true}).Handshake() }() //nolint:gosec // nobody answers
	b := make([]byte, 16<<10)
	_ = y.SetReadDeadline(time.Now().Add(time.Minute))
	n, err := y.Read(b)
	_ = y.SetLinger(0)
	_ = y.Close()
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}
