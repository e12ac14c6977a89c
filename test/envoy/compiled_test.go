package envoy

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
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
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/configdir"
	"github.com/undermesh/undermesh/controller/policy"
	"github.com/undermesh/undermesh/controller/watch"
	"github.com/undermesh/undermesh/controller/xds"
	"github.com/undermesh/undermesh/test/corpus"
)

const inputs = "../../controller/compile/testdata"

// world is what one input compiles to.
type world struct {
	clusters []*cluster.Cluster
	routes   map[string]*route.RouteConfiguration // by resource
	callees  map[string][]policy.Callee           // by hostname
	ports    map[policyKey]port
	scopes   map[string]*settings.Scope
	scopeOf  map[string]string // pod, namespace/name -> scope
	mesh     *settings.MeshSettings
}

type policyKey struct {
	namespace, host string
	number          uint32
}

type port struct {
	protocol string
	declared bool
}

func compiled(t *testing.T, input string) *world {
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
	w := &world{routes: map[string]*route.RouteConfiguration{}, callees: map[string][]policy.Callee{}, ports: map[policyKey]port{},
		scopes: map[string]*settings.Scope{}, scopeOf: map[string]string{}}
	sets := map[string]string{} // settings -> scope
	var pods []*workloadapi.Workload
	for _, r := range c.Resources() {
		if pkg := string(r.Message.ProtoReflect().Descriptor().FullName()); strings.HasPrefix(pkg, "envoy.") && r.Type != api.ClusterType && r.Type != api.RouteType {
			t.Errorf("%s: nothing asks Envoy to load a %s", r.Name, pkg)
		}
		switch m := r.Message.(type) {
		case *cluster.Cluster:
			w.clusters = append(w.clusters, m)
		case *route.RouteConfiguration:
			w.routes[r.Name] = m
		case *settings.Scope:
			w.scopes[r.Name] = m
		case *settings.MeshSettings:
			w.mesh = m
		case *settings.WorkloadSettings:
			sets[r.Name] = m.GetScope()
		case *workloadapi.Address:
			if s := m.GetService(); s != nil {
				w.addService(t, s)
			} else {
				pods = append(pods, m.GetWorkload())
			}
		}
	}
	for _, p := range pods {
		var ref settings.SettingsRef
		for _, e := range p.GetExtensions() {
			if e.GetName() == api.WorkloadSettingsExtension {
				unmarshal(t, e, &ref)
				w.scopeOf[p.GetNamespace()+"/"+p.GetName()] = sets[ref.GetName()]
			}
		}
	}
	return w
}

func unmarshal(t *testing.T, e *workloadapi.Extension, into proto.Message) {
	t.Helper()
	if err := e.GetConfig().UnmarshalTo(into); err != nil {
		t.Fatal(err)
	}
}

func (w *world) addService(t *testing.T, s *workloadapi.Service) {
	var set settings.ServiceSettings
	for _, e := range s.GetExtensions() {
		if e.GetName() == api.ServiceSettingsExtension {
			unmarshal(t, e, &set)
		}
	}
	callee := policy.Callee{Namespace: s.GetNamespace(), Hostname: s.GetHostname(), ExportTo: set.GetExportTo()}
	w.callees[callee.Hostname] = append(w.callees[callee.Hostname], callee)
	for _, p := range s.GetPorts() {
		protocol := set.GetAppProtocols()[p.GetServicePort()]
		w.ports[policyKey{callee.Namespace, callee.Hostname, p.GetServicePort()}] = port{protocol, protocol != ""}
	}
}

// shared lists the routes with the services that they are of.
func (w *world) shared() []policy.SharedRoute {
	var out []policy.SharedRoute
	for k, p := range w.ports {
		rc := w.routes[api.RouteKey(k.namespace, k.number, k.host)]
		if rc == nil {
			continue
		}
		for _, c := range w.callees[k.host] {
			if c.Namespace == k.namespace {
				out = append(out, policy.SharedRoute{Callee: c, Port: k.number, Declared: p.declared, Config: rc})
			}
		}
	}
	return out
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

// TestEnvoyLoadsWhatIsCompiled: each cluster and RouteConfiguration of each input is active in Envoy: the shared ones, and
// those that every namespace composes of them.
func TestEnvoyLoadsWhatIsCompiled(t *testing.T) {
	Require(t)
	files, err := filepath.Glob(filepath.Join(inputs, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatal("no inputs", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			w := compiled(t, file)
			routes := maps.Clone(w.routes)
			for _, namespace := range []string{"default", "shop", "foo"} {
				for _, rc := range (policy.View{Namespace: namespace}).Routes(w.mesh, w.shared()) {
					rc.Name = namespace + " " + rc.GetName() // one Envoy takes those of all
					routes[rc.GetName()] = rc
				}
			}
			sets := distinct(w.clusters)
			loads(t, sets[0], routes)
			for _, more := range sets[1:] {
				loads(t, more, nil)
			}
		})
	}
}

// TestEnvoyLoadsTheCorpus: so are those that the documents of users compile to, each document in a mesh of its own. What
// all of them make is loaded by one Envoy.
func TestEnvoyLoadsTheCorpus(t *testing.T) {
	Require(t)
	var clusters []*cluster.Cluster
	routes := map[string]*route.RouteConfiguration{}
	for _, f := range corpus.Files(t) {
		w := compiled(t, f.Path)
		clusters = append(clusters, w.clusters...)
		for name, rc := range w.routes {
			rc.Name = f.Name + " " + name
			routes[rc.GetName()] = rc
		}
		for _, namespace := range []string{"default", "foo", "istio-system"} {
			for _, rc := range (policy.View{Namespace: namespace}).Routes(w.mesh, w.shared()) {
				rc.Name = f.Name + " of " + namespace + " " + rc.GetName()
				routes[rc.GetName()] = rc
			}
		}
	}
	slices.SortFunc(clusters, func(a, b *cluster.Cluster) int { return strings.Compare(a.GetName(), b.GetName()) })
	same := func(a, b *cluster.Cluster) bool { return proto.Equal(a, b) }
	clusters = slices.CompactFunc(clusters, same)
	if len(clusters) < 20 || len(routes) < 40 {
		t.Fatalf("only %d clusters and %d routes", len(clusters), len(routes))
	}
	sets := distinct(clusters)
	loads(t, sets[0], routes)
	for _, more := range sets[1:] {
		loads(t, more, nil)
	}
	t.Logf("%d clusters in %d sets, %d RouteConfigurations", len(clusters), len(sets), len(routes))
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
	w := compiled(t, filepath.Join(inputs, "visibility.yaml"))
	e := Start(t, load(t, t.TempDir(), w.clusters, w.routes, nowhere))
	bad := proto.CloneOf(w.routes["80/reviews.shop.svc.cluster.local"])
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
	w := compiled(t, filepath.Join(inputs, "visibility.yaml"))
	back := serveBackends(t, w.clusters)
	authorities := []string{"reviews", "reviews:80", "REVIEWS", "reviews.shop", "reviews.shop.svc", "reviews.shop.svc.cluster.local",
		"reviews.shop.svc.cluster.local:80", "10.96.0.10", "[fd00:96::10]:80", "private", "private.shop", "private.shop.svc:80",
		"nobodys.shop", "reviews.other", "unknown", "example.com:80"}
	reached := map[string]bool{}
	for _, pod := range []string{"shop/reviews", "shop/web", "open/unlimited", "elsewhere/same-scope", "ops/none"} {
		t.Run(pod, func(t *testing.T) {
			namespace, _, _ := strings.Cut(pod, "/")
			view := policy.View{Namespace: namespace, Scope: w.scopes[w.scopeOf[pod]]}
			routes := map[string]*route.RouteConfiguration{}
			for _, rc := range view.Routes(w.mesh, w.shared()) {
				routes[rc.GetName()] = rc
			}
			if routes["80"] == nil {
				// Nothing is seen on the port: then there is no route at all, and the outbound policy is not Envoy's to apply.
				for _, a := range authorities {
					if got := w.lookup(view, a); got != "" {
						t.Errorf("%s: the lookup finds %s", a, got)
					}
				}
				return
			}
			dir := t.TempDir()
			e := Start(t, load(t, dir, w.clusters, map[string]*route.RouteConfiguration{"80": routes["80"]}, func(c string) string { return back.path[c] }))
			sockets, err := filepath.Glob(filepath.Join(dir, "l*"))
			if err != nil || len(sockets) != 1 || len(e.Refused()) > 0 {
				t.Fatal(sockets, err, e.Refused())
			}
			for _, a := range authorities {
				want := w.lookup(view, a)
				switch {
				case want != "":
					reached[want] = true
				case view.OutboundPolicy(w.mesh) == settings.OutboundPolicy_REGISTRY_ONLY:
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
func (w *world) lookup(v policy.View, authority string) string {
	for _, host := range v.Hosts(authority) {
		all := w.callees[host]
		if len(all) == 0 {
			all = w.byAddress(host)
		}
		if c, ok := v.Choose(all, 80); ok {
			if rc := w.routes[api.RouteKey(c.Namespace, 80, c.Hostname)]; rc != nil {
				return rc.GetVirtualHosts()[0].GetRoutes()[0].GetRoute().GetCluster()
			}
		}
	}
	return ""
}

// byAddress finds a service by its address, as an authority gives it.
func (w *world) byAddress(host string) []policy.Callee {
	for _, s := range w.shared() {
		for _, d := range s.Config.GetVirtualHosts()[0].GetDomains() {
			if strings.Trim(d, "[]") == host {
				return []policy.Callee{s.Callee}
			}
		}
	}
	return nil
}
