package envoy

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/configdir"
	"github.com/undermesh/undermesh/controller/policy"
	"github.com/undermesh/undermesh/controller/watch"
	"github.com/undermesh/undermesh/controller/xds"
	"github.com/undermesh/undermesh/test/corpus"
)

const inputs = "../../controller/compile/testdata"

// compiled is the mesh that one input makes, as nodes hold it.
func compiled(t *testing.T, input string) *client.Snapshot {
	t.Helper()
	dir := t.TempDir()
	data, err := os.ReadFile(input)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "f.yaml"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	view, err := configdir.New(configdir.Config{Dir: dir}).Load()
	if err != nil {
		t.Fatal(err)
	}
	c := compile.New(compile.Config{})
	c.Apply(watch.Events(nil, view))
	var all []client.Resource
	for _, r := range c.Resources() {
		if client.Understands(r.Type) {
			all = append(all, client.Resource{Name: r.Name, Message: r.Message})
		}
	}
	s, err := client.NewSnapshot(all...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// callers are those of the namespaces, and the workloads that are there, by name.
func callers(t *testing.T, s *client.Snapshot, namespaces ...string) map[string]policy.Caller {
	t.Helper()
	out := map[string]policy.Caller{}
	for _, n := range namespaces {
		out[n] = policy.Caller{Snapshot: s, View: policy.View{Namespace: n}}
	}
	for _, w := range s.Workloads() {
		if c, ok := policy.NewCaller(s, w); ok {
			out[w.GetNamespace()+"/"+w.GetName()] = c
		}
	}
	return out
}

// loaded adds what a caller calls by, under names that tell callers apart. The TLS of files and secrets, which are not there, is
// left out.
func loaded(c policy.Caller, who string, clusters *[]*cluster.Cluster, routes map[string]*route.RouteConfiguration) {
	for _, spec := range c.Clusters() {
		m := proto.CloneOf(spec.Cluster)
		m.TransportSocket = nil
		if k := m.GetType(); k == cluster.Cluster_STRICT_DNS || k == cluster.Cluster_LOGICAL_DNS {
			m.LoadAssignment = c.Assignment(spec)
			if k == cluster.Cluster_LOGICAL_DNS && len(m.GetLoadAssignment().GetEndpoints()) > 1 {
				m.LoadAssignment.Endpoints = m.GetLoadAssignment().GetEndpoints()[:1]
			}
		}
		*clusters = append(*clusters, m)
	}
	for _, rc := range c.RouteConfigs() {
		rc.Name = who + " " + rc.GetName()
		routes[rc.GetName()] = rc
	}
}

// load is everything that Envoy needs to take the clusters and the routes, a listener for each RouteConfiguration.
func load(t *testing.T, dir string, clusters []*cluster.Cluster, routes map[string]*route.RouteConfiguration, backend func(string) string) []xds.Resource {
	t.Helper()
	var out []xds.Resource
	for _, c := range clusters {
		out = append(out, xds.Resource{Type: api.ClusterType, Name: c.GetName(), Message: c})
		if c.GetType() == cluster.Cluster_EDS {
			out = append(out, Endpoints(c.GetName(), backend(c.GetName())))
		}
	}
	for name, rc := range routes {
		out = append(out, xds.Resource{Type: api.RouteType, Name: name, Message: rc})
		l, err := Listener("l"+fmt.Sprint(len(out)), filepath.Join(dir, "l"+fmt.Sprint(len(out))), name)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, l)
	}
	return out
}

func nowhere(string) string { return "" }

// distinct splits clusters into sets without two of one name: two namespaces may declare one external host.
func distinct(all []*cluster.Cluster) [][]*cluster.Cluster {
	var sets [][]*cluster.Cluster
	count := map[string]int{}
	for _, c := range all {
		i := count[c.GetName()]
		count[c.GetName()]++
		if i == len(sets) {
			sets = append(sets, nil)
		}
		sets[i] = append(sets[i], c)
	}
	return sets
}

// TestEnvoyLoadsWhatIsComposed: each cluster and RouteConfiguration that some caller of an input calls by is active in Envoy.
func TestEnvoyLoadsWhatIsComposed(t *testing.T) {
	Require(t)
	files, err := filepath.Glob(filepath.Join(inputs, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatal("no inputs", err)
	}
	files = append(files, filepath.Join(inputs, "calls", "world.yaml"))
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			var clusters []*cluster.Cluster
			routes := map[string]*route.RouteConfiguration{}
			for who, c := range callers(t, compiled(t, file), "default", "shop", "foo") {
				loaded(c, who, &clusters, routes)
			}
			loadsAll(t, clusters, routes)
		})
	}
}

// loadsAll loads clusters that several callers have, each form of them, and the routes.
func loadsAll(t *testing.T, clusters []*cluster.Cluster, routes map[string]*route.RouteConfiguration) {
	t.Helper()
	text := func(c *cluster.Cluster) string {
		raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		return c.GetName() + " " + string(raw)
	}
	slices.SortFunc(clusters, func(a, b *cluster.Cluster) int { return strings.Compare(text(a), text(b)) })
	clusters = slices.CompactFunc(clusters, func(a, b *cluster.Cluster) bool { return proto.Equal(a, b) })
	sets := distinct(clusters)
	loads(t, sets[0], routes)
	for _, more := range sets[1:] {
		loads(t, more, nil)
	}
	t.Logf("%d clusters in %d sets, %d RouteConfigurations", len(clusters), len(sets), len(routes))
}

// TestEnvoyLoadsTheCorpus: so are those that the documents of users lead to, each document in a mesh of its own. What all of them
// make is loaded by one Envoy.
func TestEnvoyLoadsTheCorpus(t *testing.T) {
	Require(t)
	var clusters []*cluster.Cluster
	routes := map[string]*route.RouteConfiguration{}
	for _, f := range corpus.Files(t) {
		for who, c := range callers(t, compiled(t, f.Path), "default", "foo", "istio-system") {
			loaded(c, f.Name+" of "+who, &clusters, routes)
		}
	}
	if len(clusters) < 20 || len(routes) < 40 {
		t.Fatalf("only %d clusters and %d routes", len(clusters), len(routes))
	}
	loadsAll(t, clusters, routes)
}

func loads(t *testing.T, clusters []*cluster.Cluster, routes map[string]*route.RouteConfiguration) {
	t.Helper()
	dir := t.TempDir()
	e := Start(t, load(t, dir, clusters, routes, nowhere))
	if refused := e.Refused(); len(refused) > 0 {
		t.Fatalf("Envoy refused %q, log %s", refused, e.Log())
	}
	active := activeIn(t, e)
	for _, c := range clusters {
		if !active[c.GetName()] {
			t.Errorf("cluster %q is not active", c.GetName())
		}
	}
	for name := range routes {
		if !active[name] {
			t.Errorf("route %q is not active", name)
		}
	}
}

// activeIn lists the names of the clusters and RouteConfigurations that Envoy goes by.
func activeIn(t *testing.T, e *Envoy) map[string]bool {
	t.Helper()
	text, err := e.Admin("/config_dump")
	if err != nil {
		t.Fatal(err)
	}
	type named struct {
		Cluster     struct{ Name string }
		RouteConfig struct{ Name string } `json:"route_config"`
	}
	var dump struct {
		Configs []struct {
			Clusters []named `json:"dynamic_active_clusters"`
			Routes   []named `json:"dynamic_route_configs"`
		}
	}
	if err := json.Unmarshal(text, &dump); err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for _, c := range dump.Configs {
		for _, n := range c.Clusters {
			out[n.Cluster.Name] = true
		}
		for _, n := range c.Routes {
			out[n.RouteConfig.Name] = true
		}
	}
	return out
}

// TestEnvoyRefuses shows that the tests above can fail: Envoy says so when a RouteConfiguration is none.
func TestEnvoyRefuses(t *testing.T) {
	Require(t)
	var clusters []*cluster.Cluster
	routes := map[string]*route.RouteConfiguration{}
	loaded(policy.Caller{Snapshot: compiled(t, filepath.Join(inputs, "visibility.yaml")), View: policy.View{Namespace: "shop"}}, "it", &clusters, routes)
	e := Start(t, load(t, t.TempDir(), clusters, routes, nowhere))
	bad := proto.CloneOf(routes["it 80"])
	bad.VirtualHosts = append(bad.VirtualHosts, &route.VirtualHost{Name: "twice", Domains: []string{"reviews.shop"}})
	e.Apply(t, []xds.Resource{{Type: api.RouteType, Name: bad.GetName(), Message: bad}}, nil)
	ctx, stop := context.WithTimeout(t.Context(), startLimit)
	defer stop()
	if err := e.Settled(ctx); err != nil {
		t.Fatal(err, e.Refused())
	}
	if refused := e.Refused(); len(refused) != 1 || !strings.Contains(refused[0], "reviews.shop") {
		t.Errorf("refused %q", refused)
	}
}

// backends answer with the name of their cluster, over HTTP/1.1 and HTTP/2, on a unix socket each.
type backends struct {
	dir  string
	path map[string]string
}

func serveBackends(t *testing.T, clusters []*cluster.Cluster) *backends {
	t.Helper()
	dir, err := os.MkdirTemp("", "back")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	b := &backends{dir: dir, path: map[string]string{}}
	for i, c := range clusters {
		if c.GetType() != cluster.Cluster_EDS {
			continue
		}
		path := filepath.Join(dir, fmt.Sprint(i))
		b.path[c.GetName()] = path
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{ReadHeaderTimeout: time.Minute, Protocols: new(http.Protocols),
			Handler: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, c.GetName()) })}
		srv.Protocols.SetHTTP1(true)
		srv.Protocols.SetUnencryptedHTTP2(true)
		done := make(chan struct{})
		go func() { _ = srv.Serve(l); close(done) }()
		t.Cleanup(func() { _ = srv.Close(); <-done })
	}
	return b
}

// ask sends one request to a listener and says which cluster answered, or the status.
func ask(t *testing.T, listener, authority string) string {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", listener)
	}}}
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://x/", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = authority
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 200 {
		return fmt.Sprint(resp.StatusCode)
	}
	return string(body)
}

// TestEnvoyAgreesOnWhoIsCalled asks Envoy, under the RouteConfiguration that a workload's view composes, and the lookup of
// nodes by (scope, port, authority) which cluster a request goes to. They must agree, and on what is not seen as well.
func TestEnvoyAgreesOnWhoIsCalled(t *testing.T) {
	Require(t)
	all := callers(t, compiled(t, filepath.Join(inputs, "visibility.yaml")), "ops")
	clusters := map[string][]*cluster.Cluster{}
	routes := map[string]map[string]*route.RouteConfiguration{}
	var every []*cluster.Cluster
	for who, c := range all {
		var own []*cluster.Cluster
		routes[who] = map[string]*route.RouteConfiguration{}
		loaded(c, who, &own, routes[who])
		clusters[who], every = own, append(every, own...)
	}
	back := serveBackends(t, every)
	authorities := []string{"reviews", "reviews:80", "REVIEWS", "reviews.shop", "reviews.shop.svc", "reviews.shop.svc.cluster.local",
		"reviews.shop.svc.cluster.local:80", "10.96.0.10", "[fd00:96::10]:80", "private", "private.shop", "private.shop.svc:80",
		"nobodys.shop", "reviews.other", "unknown", "example.com:80"}
	reached := map[string]bool{}
	for _, pod := range []string{"shop/reviews", "shop/web", "open/unlimited", "elsewhere/same-scope", "ops"} {
		t.Run(pod, func(t *testing.T) {
			caller, ok := all[pod]
			if !ok {
				t.Fatal("no such pod")
			}
			config := routes[pod][pod+" 80"]
			if config == nil {
				// Nothing is seen on the port: then there is no route at all, and the outbound policy is not Envoy's to apply.
				for _, a := range authorities {
					if got := lookup(caller, a); got != "" {
						t.Errorf("%s: the lookup finds %s", a, got)
					}
				}
				return
			}
			dir := t.TempDir()
			e := Start(t, load(t, dir, clusters[pod], map[string]*route.RouteConfiguration{config.GetName(): config}, func(c string) string { return back.path[c] }))
			sockets, err := filepath.Glob(filepath.Join(dir, "l*"))
			if err != nil || len(sockets) != 1 || len(e.Refused()) > 0 {
				t.Fatal(sockets, err, e.Refused())
			}
			for _, a := range authorities {
				want := lookup(caller, a)
				switch {
				case want != "":
					reached[want] = true
				case caller.View.OutboundPolicy(caller.Snapshot.Mesh()) == settings.OutboundPolicy_REGISTRY_ONLY:
					want = "502"
				default:
					want = "503" // PassthroughCluster knows no address on a unix socket
				}
				if got := ask(t, sockets[0], a); got != want {
					t.Errorf("%s: Envoy says %s, the lookup %s", a, got, want)
				}
			}
		})
	}
	if len(reached) < 2 {
		t.Errorf("only %v was reached", reached)
	}
}

// lookup is what a node does with a request on port 80 of a workload: "" when no service is meant that the workload sees.
func lookup(c policy.Caller, authority string) string {
	target := c.Target(80, authority, nil)
	if target.Kind != policy.TargetService {
		return ""
	}
	vh, _ := c.VirtualHost(target)
	return vh.GetRoutes()[0].GetRoute().GetCluster()
}
