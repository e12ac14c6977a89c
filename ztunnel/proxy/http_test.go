package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"golang.org/x/net/http2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
)

func packed(m proto.Message) *anypb.Any {
	out, err := anypb.New(m)
	if err != nil {
		panic(err) // a message of our own
	}
	return out
}

// web answers every request of the application with the pod's name and what the request said, until the server is closed.
func (p *testPod) web() *http.Server {
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { //nolint:gosec // in memory
		from, _, _ := net.SplitHostPort(r.RemoteAddr)
		if d, err := time.ParseDuration(r.Header.Get("delay")); err == nil {
			timer := time.NewTimer(d)
			defer timer.Stop()
			select {
			case <-timer.C:
			case <-r.Context().Done():
			}
		}
		fmt.Fprintf(w, "%s host=%s from=%s xfcc=%s", p.cfg.Name, r.Host, from, strings.Join(r.Header.Values("X-Forwarded-Client-Cert"), "+"))
	})}
	p.server = srv
	go func() { _ = srv.Serve(p.app) }()
	return srv
}

// labelled is a workload of foo behind port 80 of reviews.foo, with a version.
func labelled(name string, ip netip.Addr, version string, policies ...string) *workloadapi.Workload {
	w := workload("foo", name, ip, policies...)
	w.Services = map[string]*workloadapi.PortList{"foo/reviews.foo.svc.cluster.local": {Ports: []*workloadapi.Port{{ServicePort: 80, TargetPort: 80}}}}
	w.Extensions = append(w.Extensions, &workloadapi.Extension{Name: api.WorkloadStateExtension,
		Config: packed(&settings.WorkloadState{Labels: map[string]string{"version": version}})})
	return w
}

const reviewsVIP = "10.96.0.1:80"

func reviews(protocol string) *workloadapi.Service {
	set := &settings.ServiceSettings{}
	if protocol != "" {
		set.AppProtocols = map[uint32]string{80: protocol}
	}
	return &workloadapi.Service{Name: "reviews", Namespace: "foo", Hostname: "reviews.foo.svc.cluster.local",
		Ports:      []*workloadapi.Port{{ServicePort: 80, TargetPort: 80}},
		Addresses:  []*workloadapi.NetworkAddress{{Address: netip.MustParseAddr("10.96.0.1").AsSlice()}},
		Extensions: []*workloadapi.Extension{{Name: api.ServiceSettingsExtension, Config: packed(set)}}}
}

// byVersion are the subsets v1 and v2 of reviews, and the rule that leads those who say "end-user: jason" to v2 and others to v1.
func byVersion() []client.Resource {
	to := func(subset string, m *routev3.RouteMatch) *settings.HttpRule {
		return &settings.HttpRule{Route: packed(&routev3.Route{Match: m, Action: &routev3.Route_Route{Route: &routev3.RouteAction{
			ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: "outbound||" + subset + "|reviews.foo.svc.cluster.local"}}}})}
	}
	all := func() *routev3.RouteMatch {
		return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}
	}
	jason := all()
	jason.Headers = []*routev3.HeaderMatcher{{Name: "end-user", HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{
		StringMatch: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: "jason"}}}}}
	return []client.Resource{
		{Message: &settings.RouteRule{Namespace: "foo", Name: "reviews", Hosts: []string{"reviews.foo.svc.cluster.local"}, Http: []*settings.HttpRule{to("v2", jason), to("v1", all())}}},
		{Message: &settings.CallRule{Namespace: "foo", Name: "reviews", Host: "reviews.foo.svc.cluster.local", Subsets: []*settings.Subset{
			{Name: "v1", Labels: map[string]string{"version": "v1"}}, {Name: "v2", Labels: map[string]string{"version": "v2"}}}}},
	}
}

// ask sends one request and returns "STATUS BODY".
func (p *testPod) ask(t *testing.T, dst, host string, headers ...string) string {
	t.Helper()
	c := p.connect(dst)
	defer c.Close()
	return askOn(t, c, bufio.NewReader(c), host, headers...)
}

func askOn(t *testing.T, c net.Conn, r *bufio.Reader, host string, headers ...string) string {
	t.Helper()
	return askWith(t, c, r, "GET", host, headers...)
}

func askWith(t *testing.T, c net.Conn, r *bufio.Reader, method, host string, headers ...string) string {
	t.Helper()
	text := method + " /x HTTP/1.1\r\nHost: " + host + "\r\n"
	for _, h := range headers {
		text += h + "\r\n"
	}
	if _, err := io.WriteString(c, text+"\r\n"); err != nil {
		return "write: " + err.Error()
	}
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		return "read: " + err.Error()
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return "body: " + err.Error()
	}
	_ = res.Body.Close()
	return fmt.Sprintf("%d %s", res.StatusCode, body)
}

// inTown runs f in a world with a client on node a and two versions of reviews, of which v1 is on node a and v2 on b.
func inTown(t *testing.T, protocol string, f func(t *testing.T, w *world, c, v1, v2 *testPod)) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		c, v1, v2 := w.pod("a", "sleep", "10.0.0.1"), w.pod("a", "v1", "10.0.0.2"), w.pod("b", "v2", "10.0.1.1")
		defer w.stop(c, v1, v2)
		v1.web()
		v2.web()
		w.apply(client.Resource{Message: workload("foo", "sleep", c.ip)}, client.Resource{Message: labelled("v1", v1.ip, "v1")},
			client.Resource{Message: labelled("v2", v2.ip, "v2")}, client.Resource{Message: reviews(protocol)})
		f(t, w, c, v1, v2)
	})
}

// TestRequestsByHeader: a VirtualService leads by a header to one version on the client's node, and another one on another node.
func TestRequestsByHeader(t *testing.T) {
	for _, protocol := range []string{"http", ""} {
		t.Run("port declares "+protocol, func(t *testing.T) {
			inTown(t, protocol, func(t *testing.T, w *world, c, v1, v2 *testPod) {
				seen := map[string]int{}
				for range 10 {
					got := c.ask(t, reviewsVIP, "reviews", "end-user: jason")
					seen[got[:6]]++
				}
				if seen["200 v1"] != 5 || seen["200 v2"] != 5 {
					t.Errorf("without the VirtualService: %v", seen)
				}
				w.apply(byVersion()...)
				for range 5 {
					if got := c.ask(t, reviewsVIP, "reviews", "end-user: jason"); !strings.HasPrefix(got, "200 v2 host=reviews from=10.0.0.1") {
						t.Errorf("jason: %s", got)
					}
					if got := c.ask(t, reviewsVIP, "reviews.foo", "end-user: bob"); !strings.HasPrefix(got, "200 v1 host=reviews.foo from=10.0.0.1") {
						t.Errorf("bob: %s", got)
					}
				}
			})
		})
	}
}

// TestXFCC: who calls is told by the mesh alone, on one node and between two.
func TestXFCC(t *testing.T) {
	inTown(t, "http", func(t *testing.T, w *world, c, v1, v2 *testPod) {
		w.apply(byVersion()...)
		hash, err := w.ids.Fingerprint(t.Context(), account("sleep"))
		if err != nil {
			t.Fatal(err)
		}
		for user, name := range map[string]string{"jason": "v2", "bob": "v1"} {
			want := fmt.Sprintf("xfcc=By=spiffe://cluster.local/ns/foo/sa/%s;Hash=%s;Subject=\"\";URI=spiffe://cluster.local/ns/foo/sa/sleep", name, hash)
			got := c.ask(t, reviewsVIP, "reviews", "end-user: "+user, "X-Forwarded-Client-Cert: By=me;URI=spiffe://cluster.local/ns/foo/sa/admin")
			if !strings.HasSuffix(got, want) {
				t.Errorf("%s: %s, want %s", name, got, want)
			}
		}
		for name, p := range map[string]*testPod{"v1": v1, "v2": v2} {
			conn := p.arrive(p.in, "10.9.9.9:4444", 80)
			got := askOn(t, conn, bufio.NewReader(conn), "reviews", "X-Forwarded-Client-Cert: URI=spiffe://cluster.local/ns/foo/sa/admin")
			if want := "200 " + name + " host=reviews from=10.9.9.9 xfcc="; got != want {
				t.Errorf("MT-02 plain text from outside: %s, want %s", got, want)
			}
			_ = conn.Close()
		}
	})
}

// TestPoliciesOverHTTP: what a policy refuses is 403, wherever it was refused, and a live connection learns of a change.
func TestPoliciesOverHTTP(t *testing.T) {
	inTown(t, "http", func(t *testing.T, w *world, c, v1, v2 *testPod) {
		w.apply(byVersion()...)
		conns := map[string]net.Conn{"v1": c.connect(reviewsVIP), "v2": c.connect(reviewsVIP)}
		readers := map[string]*bufio.Reader{}
		users := map[string]string{"v1": "bob", "v2": "jason"}
		for name, conn := range conns {
			readers[name] = bufio.NewReader(conn)
			if got := askOn(t, conn, readers[name], "reviews", "end-user: "+users[name]); !strings.HasPrefix(got, "200 "+name) {
				t.Errorf("%s", got)
			}
		}
		w.apply(client.Resource{Message: allowFrom("foo", "nobody", "cluster.local/ns/foo/sa/nobody")},
			client.Resource{Message: labelled("v1", v1.ip, "v1", "foo/nobody")}, client.Resource{Message: labelled("v2", v2.ip, "v2", "foo/nobody")})
		synctest.Wait()
		for name, conn := range conns {
			if got := askOn(t, conn, readers[name], "reviews", "end-user: "+users[name]); got != "403 RBAC: access denied" {
				t.Errorf("%s over the old connection: %s", name, got)
			}
			_ = conn.Close()
		}
		w.wantLog("reason=policy_changed", "direction=outbound", "path=proxied")
		w.wantLog("reason=policy_not_allowed", "direction=outbound", "path=proxied", "policy=foo/nobody")
		w.wantLog("reason=policy_not_allowed", "direction=inbound", "path=tunnel", "policy=foo/nobody")
		conn := v1.arrive(v1.in, "10.9.9.9:4444", 80)
		if got := askOn(t, conn, bufio.NewReader(conn), "reviews"); got != "403 RBAC: access denied" {
			t.Errorf("plain text from outside: %s", got)
		}
		_ = conn.Close()
		w.apply(client.Resource{Message: strict()}, client.Resource{Message: labelled("v1", v1.ip, "v1", "istio-system/"+strict().GetName())})
		conn = v1.arrive(v1.in, "10.9.9.9:4444", 80)
		if got := askOn(t, conn, bufio.NewReader(conn), "reviews"); strings.HasPrefix(got, "403") || strings.HasPrefix(got, "200") {
			t.Errorf("plain text from outside to STRICT: %s, want a reset", got)
		}
	})
}

// TestHTTP2Client: a client with prior knowledge of HTTP/2 is served as well, many requests over one connection.
func TestHTTP2Client(t *testing.T) {
	inTown(t, "http", func(t *testing.T, w *world, c, v1, v2 *testPod) {
		w.apply(byVersion()...)
		conn := c.connect(reviewsVIP)
		defer conn.Close()
		cc, err := (&http2.Transport{AllowHTTP: true}).NewClientConn(conn)
		if err != nil {
			t.Fatal(err)
		}
		for _, user := range []string{"jason", "bob", "jason", "bob"} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://reviews/x", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("end-user", user)
			res, err := cc.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(res.Body)
			_ = res.Body.Close()
			want := map[string]string{"jason": "v2", "bob": "v1"}[user]
			if err != nil || res.StatusCode != 200 || !strings.HasPrefix(string(body), want+" host=reviews from=10.0.0.1 xfcc=By=spiffe://cluster.local/ns/foo/sa/"+want) {
				t.Errorf("%s: %d %s, %v", user, res.StatusCode, body, err)
			}
		}
		_ = cc.Close()
	})
}

// TestAffinityOfRequests: a pod's requests to a service with ClientIP affinity stay where they are when endpoints come, and move when
// theirs goes.
func TestAffinityOfRequests(t *testing.T) {
	inTown(t, "http", func(t *testing.T, w *world, c, v1, v2 *testPod) {
		svc := reviews("")
		svc.Extensions[0].Config = packed(&settings.ServiceSettings{AppProtocols: map[uint32]string{80: "http"}, ClientIpAffinity: durationpb.New(time.Hour)})
		w.apply(client.Resource{Message: svc})
		ask := func() string { return c.ask(t, reviewsVIP, "reviews")[:6] }
		first := ask()
		if !strings.HasPrefix(first, "200 v") {
			t.Fatal(first)
		}
		for i := range 20 {
			ip := netip.AddrFrom4([4]byte{10, 0, 1, byte(100 + i)})
			w.apply(client.Resource{Message: labelled(fmt.Sprintf("more%d", i), ip, "v3")})
			if got := ask(); got != first {
				t.Errorf("with %d more endpoints: %s, before %s", i+1, got, first)
			}
		}
		other := map[string]string{"200 v1": "v2", "200 v2": "v1"}[first]
		var gone []client.Resource
		for i := range 20 {
			m := labelled(fmt.Sprintf("more%d", i), netip.AddrFrom4([4]byte{10, 0, 1, byte(100 + i)}), "v3")
			m.Services = nil
			gone = append(gone, client.Resource{Message: m})
		}
		p := map[string]*testPod{"200 v1": v1, "200 v2": v2}[first]
		m := labelled(p.cfg.Name, p.ip, "v")
		m.Services = nil
		w.apply(append(gone, client.Resource{Message: m})...)
		if got := ask(); got != "200 "+other {
			t.Errorf("its endpoint went: %s, want %s", got, other)
		}
	})
}

// TestPooledConnectionsFollowRules: a connection that a pool keeps is not used against what a DestinationRule says since.
func TestPooledConnectionsFollowRules(t *testing.T) {
	inTown(t, "http", func(t *testing.T, w *world, c, v1, v2 *testPod) {
		w.apply(byVersion()...)
		rule := func(tls *settings.ClientTls) {
			r := byVersion()[1].Message.(*settings.CallRule)
			r.Tls = &settings.ClientTlsPolicy{Host: tls}
			w.apply(client.Resource{Message: r})
			timer := time.NewTimer(2 * time.Second)
			<-timer.C
			synctest.Wait()
		}
		ask := func(what, jason, bob string) {
			t.Helper()
			for user, want := range map[string]string{"jason": jason, "bob": bob} {
				if got := c.ask(t, reviewsVIP, "reviews", "end-user: "+user); !strings.HasPrefix(got, want) || strings.HasPrefix(want, "200") && !strings.Contains(got, "URI=") {
					t.Errorf("%s, %s: %s, want %s", what, user, got, want)
				}
			}
		}
		ask("control: no rule of TLS", "200 v2", "200 v1")
		rule(&settings.ClientTls{Mode: settings.ClientTls_MODE_ISTIO_MUTUAL, SubjectAltNames: []string{"spiffe://cluster.local/ns/foo/sa/other"}})
		ask("others are to serve", "503", "503")
		rule(&settings.ClientTls{Mode: settings.ClientTls_MODE_MUTUAL})
		ask("MUTUAL", "503", "503")
		rule(nil)
		ask("no rule again", "200 v2", "200 v1")
		rule(&settings.ClientTls{Mode: settings.ClientTls_MODE_DISABLE})
		for _, user := range []string{"jason", "bob"} {
			if got := c.ask(t, reviewsVIP, "reviews", "end-user: "+user); !strings.HasPrefix(got, "200") || strings.Contains(got, "URI=") {
				t.Errorf("DISABLE, %s: %s", user, got)
			}
		}
	})
}
