package calls

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/configdir"
	"github.com/undermesh/undermesh/controller/policy"
	"github.com/undermesh/undermesh/controller/watch"
	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/cluster"
	"github.com/undermesh/undermesh/ztunnel/http/head"
	"github.com/undermesh/undermesh/ztunnel/http/route"
)

// testClock stands still until it is moved; nothing is ever due.
type testClock struct{ now atomic.Int64 }

func (c *testClock) Now() time.Time       { return time.Unix(c.now.Load(), 0) }
func (c *testClock) pass(d time.Duration) { c.now.Add(int64(d / time.Second)) }
func (c *testClock) AfterFunc(time.Duration, func()) clock.Timer {
	return never{}
}

type never struct{}

func (never) Stop() bool               { return true }
func (never) Reset(time.Duration) bool { return true }

// mesh is a control plane and what a node has of it, snapshot after snapshot.
type mesh struct {
	t    testing.TB
	dir  string
	c    *compile.Compiler
	view *configdir.View
	snap *client.Snapshot
}

func newMesh(t testing.TB, text string) *mesh {
	t.Helper()
	empty, err := client.NewSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	m := &mesh{t: t, dir: t.TempDir(), c: compile.New(compile.Config{}), snap: empty}
	m.write(text)
	return m
}

// write replaces all objects by those of the text; what is the same stays the same.
func (m *mesh) write(text string) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(m.dir, "f.yaml"), []byte(text), 0o600); err != nil {
		m.t.Fatal(err)
	}
	view, err := configdir.New(configdir.Config{Dir: m.dir}).Load()
	if err != nil {
		m.t.Fatal(err)
	}
	for _, p := range view.Problems {
		m.t.Fatal(p)
	}
	d := m.c.Apply(watch.Events(m.view, view))
	m.view = view
	var all []client.Resource
	for _, r := range d.Upserts {
		if client.Understands(r.Type) {
			all = append(all, client.Resource{Name: r.Name, Message: r.Message})
		}
	}
	var gone []client.Key
	for _, k := range d.Removed {
		gone = append(gone, client.Key(k))
	}
	if m.snap, err = m.snap.With(d.Generation, all, gone); err != nil {
		m.t.Fatal(err)
	}
}

func (m *mesh) caller(pod string) policy.Caller {
	m.t.Helper()
	c, ok := policy.NewCaller(m.snap, m.snap.WorkloadByName("shop", pod))
	if !ok {
		m.t.Fatalf("pod %s is not known", pod)
	}
	return c
}

const (
	service = `
apiVersion: v1
kind: Service
metadata: {name: %[1]s, namespace: shop}
spec: {clusterIP: 10.96.%[2]d.%[3]d, selector: {app: %[1]s}, ports: [{name: http, port: 80}]}
---`
	pod = `
apiVersion: v1
kind: Pod
metadata: {name: %[1]s-%[2]d, namespace: shop, labels: {app: %[1]s, version: v%[2]d}, annotations: {ambient.istio.io/redirection: enabled}}
spec: {nodeName: n1, containers: [{name: c, image: x}]}
status: {phase: Running, podIP: 10.0.%[3]d.%[2]d, conditions: [{type: Ready, status: "True"}]}
---`
	virtual = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec: {hosts: [web], http: [{name: %s, route: [{destination: {host: web, subset: v1}}]}]}
---`
	rule = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec: {host: web, trafficPolicy: {loadBalancer: {simple: %s}}, subsets: [{name: v1, labels: {version: v1}}]}
---`
)

// objects are two services and two callers, and what is added.
func objects(more ...string) string {
	text := fmt.Sprintf(service, "web", 0, 1) + fmt.Sprintf(service, "other", 0, 2) + fmt.Sprintf(pod, "client", 1, 9) + fmt.Sprintf(pod, "client", 2, 9) +
		fmt.Sprintf(pod, "web", 1, 0) + fmt.Sprintf(pod, "web", 2, 0)
	return text + strings.Join(more, "")
}

const webCluster = "outbound|80||web.shop.svc.cluster.local"

// bed is a node's table of one pod in a mesh.
type bed struct {
	*mesh
	clock  *testClock
	shared *Shared
	*Table
}

func newBed(t testing.TB, text string) *bed {
	b := &bed{mesh: newMesh(t, text), clock: &testClock{}}
	b.clock.pass(time.Hour * 24 * 365 * 50)
	b.shared = NewShared(Config{Clock: b.clock, Rand: func() uint64 { return 1 }})
	b.Table = b.table()
	return b
}

func (b *bed) table() *Table {
	return b.shared.NewTable(func(policy.Caller, *client.Service, uint16) (Endpoint, bool) { return Endpoint{}, false })
}

func (b *bed) host(pod, authority string) *route.VirtualHost {
	return b.VirtualHost(b.caller(pod), 80, []byte(authority), nil)
}

// routeName is that of a GET of "/".
func routeName(h *route.VirtualHost) string {
	r := h.Match(&head.Request{Method: []byte("GET"), Scheme: []byte("http"), Path: []byte("/")}, &route.Input{})
	if r == nil {
		return ""
	}
	return r.Name
}

func (b *bed) keys(name string) []string {
	b.t.Helper()
	e := b.Cluster(b.caller("client-1"), name)
	if e == nil {
		b.t.Fatalf("no cluster %s", name)
	}
	var out []string
	for i := range e.Hosts().Len() {
		out = append(out, e.Hosts().Endpoint(i).Addr.String())
	}
	slices.Sort(out)
	return out
}

// TestVirtualHostStays: what was compiled stays while what it was made of stays, whatever else changes.
func TestVirtualHostStays(t *testing.T) {
	b := newBed(t, objects(fmt.Sprintf(virtual, "one"), fmt.Sprintf(rule, "RANDOM")))
	first := b.host("client-1", "web")
	if got := routeName(first); got != "one" {
		t.Fatalf("route %q", got)
	}
	if b.host("client-1", "web") != first || b.host("client-1", "web.shop:80") != first {
		t.Error("another name of the host has another virtual host")
	}
	for _, step := range []struct {
		what string
		text string
		same bool
		want string
	}{
		{"a pod more", objects(fmt.Sprintf(virtual, "one"), fmt.Sprintf(rule, "RANDOM"), fmt.Sprintf(pod, "web", 3, 0)), true, "one"},
		{"a service more", objects(fmt.Sprintf(virtual, "one"), fmt.Sprintf(rule, "RANDOM"), fmt.Sprintf(service, "third", 0, 3)), true, "one"},
		{"another rule", objects(fmt.Sprintf(virtual, "two"), fmt.Sprintf(rule, "RANDOM")), false, "two"},
		{"the first rule again", objects(fmt.Sprintf(virtual, "one"), fmt.Sprintf(rule, "RANDOM")), true, "one"},
		{"control: without the VirtualService", objects(fmt.Sprintf(rule, "RANDOM")), false, "default"},
	} {
		b.write(step.text)
		got := b.host("client-1", "web")
		if (got == first) != step.same || routeName(got) != step.want {
			t.Errorf("%s: route %q, the same: %v", step.what, routeName(got), got == first)
		}
	}
}

// TestVirtualHostOfTheCaller: what depends on who calls is not taken from another caller.
func TestVirtualHostOfTheCaller(t *testing.T) {
	const own = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec: {hosts: [web], http: [{name: first, match: [{sourceLabels: {version: v1}}], route: [{destination: {host: web}}]}, {name: rest, route: [{destination: {host: web}}]}]}
---`
	b := newBed(t, objects(own))
	one, two := b.host("client-1", "web"), b.table().VirtualHost(b.caller("client-2"), 80, []byte("web"), nil)
	if routeName(one) != "first" || routeName(two) != "rest" {
		t.Errorf("routes %q and %q", routeName(one), routeName(two))
	}
	b.write(strings.Replace(objects(own), "app: client, version: v1", "app: client, version: v9", 1))
	if got := routeName(b.host("client-1", "web")); got != "rest" {
		t.Errorf("after the caller's labels changed: route %q", got)
	}
}

// TestSharing: equal configuration of two pods is one in memory, and goes when nobody has it.
func TestSharing(t *testing.T) {
	b := newBed(t, objects(fmt.Sprintf(virtual, "one"), fmt.Sprintf(rule, "RANDOM")))
	other := b.table()
	if b.host("client-1", "web") != other.VirtualHost(b.caller("client-2"), 80, []byte("web"), nil) {
		t.Error("two pods have a virtual host each")
	}
	x, y := b.Cluster(b.caller("client-1"), webCluster), other.Cluster(b.caller("client-2"), webCluster)
	if x == y || x.Cluster == y.Cluster {
		t.Error("two pods have one cluster: limits and ejections are each pod's own")
	}
	if x.Cluster.Spec() != y.Cluster.Spec() || x.Hosts() != y.Hosts() {
		t.Error("two pods have a specification or a list of endpoints each")
	}
	b.Close()
	other.Close()
	b.Table, other, x, y = b.table(), nil, nil, nil
	for deadline := time.Now().Add(20 * time.Second); ; {
		runtime.GC()
		if n := size(&b.shared.hosts) + size(&b.shared.specs); n == 0 {
			return
		} else if time.Now().After(deadline) {
			t.Fatalf("%d things are kept that nobody has", n)
		}
		runtime.Gosched()
	}
}

func size[V any](in *interned[V]) int {
	in.mu.Lock()
	defer in.mu.Unlock()
	return len(in.all)
}

// TestClusterFollows: a cluster is one and the same while its name stands for something; endpoints and rules change below it.
func TestClusterFollows(t *testing.T) {
	b := newBed(t, objects(fmt.Sprintf(rule, "RANDOM")))
	c := b.Cluster(b.caller("client-1"), webCluster)
	if got := b.keys(webCluster); len(got) != 2 || c.Cluster.Spec().Policy != cluster.Random {
		t.Fatalf("endpoints %q, policy %v", got, c.Cluster.Spec().Policy)
	}
	hosts := c.Hosts()
	b.write(objects(fmt.Sprintf(rule, "RANDOM"), fmt.Sprintf(service, "third", 0, 3), fmt.Sprintf(pod, "third", 1, 3)))
	if b.Cluster(b.caller("client-1"), webCluster) != c || c.Hosts() != hosts {
		t.Error("what has nothing to do with the cluster changes its endpoints")
	}
	b.write(objects(fmt.Sprintf(rule, "LEAST_REQUEST"), fmt.Sprintf(pod, "web", 3, 0)))
	if got := b.keys(webCluster); len(got) != 3 || c.Cluster.Spec().Policy != cluster.LeastRequest {
		t.Errorf("endpoints %q, policy %v", got, c.Cluster.Spec().Policy)
	}
	subset := "outbound|80|v1|web.shop.svc.cluster.local"
	if got := b.keys(subset); len(got) != 1 || got[0] != "10.0.0.1:80" {
		t.Errorf("endpoints of the subset: %q", got)
	}
	s := b.Cluster(b.caller("client-1"), subset)
	b.write(objects())
	if b.Cluster(b.caller("client-1"), subset) != nil || s.Hosts().Len() != 0 || b.Of(s.Cluster) != nil {
		t.Error("a subset that no rule makes any more is still there")
	}
	if got := b.Cluster(b.caller("client-1"), webCluster); got != c || c.Cluster.Spec().Policy != cluster.RoundRobin || b.Of(c.Cluster) != c {
		t.Error("the cluster does not follow that its rule went")
	}
	b.write(strings.ReplaceAll(objects(), fmt.Sprintf(service, "web", 0, 1), ""))
	b.Sweep(b.caller("client-1"))
	if c.Hosts().Len() != 0 || b.Of(c.Cluster) != nil {
		t.Error("a cluster whose service went keeps its endpoints")
	}
}

// TestUnknownClusters: a name that nothing stands for is no cluster, and nothing is kept of it.
func TestUnknownClusters(t *testing.T) {
	b := newBed(t, objects(fmt.Sprintf(rule, "RANDOM")))
	for _, name := range []string{"", "web", "outbound|80||gone.shop.svc.cluster.local", "outbound|81||web.shop.svc.cluster.local",
		"outbound|80|v2|web.shop.svc.cluster.local", "inbound|80||", "outbound|x||web"} {
		if b.Cluster(b.caller("client-1"), name) != nil {
			t.Errorf("%q is a cluster", name)
		}
	}
	if len(b.clusters) != 0 {
		t.Errorf("%d clusters are kept", len(b.clusters))
	}
}

// TestWhatCannotBeCompiledAnswersSo: it does not go by other rules, and is logged once.
func TestWhatCannotBeCompiledAnswersSo(t *testing.T) {
	b := newBed(t, objects(strings.Replace(fmt.Sprintf(virtual, "one"), "{name: one,", "{name: one, match: [{uri: {regex: '('}}],", 1)))
	r := b.host("client-1", "web").Match(&head.Request{Method: []byte("GET"), Scheme: []byte("http"), Path: []byte("/")}, &route.Input{})
	if r == nil || r.Name != "invalid" {
		t.Errorf("route %+v", r)
	}
}

// TestIdleIsForgotten: what nobody used for an hour, and only that.
func TestIdleIsForgotten(t *testing.T) {
	b := newBed(t, objects())
	b.host("client-1", "web")
	b.host("client-1", "other")
	b.Cluster(b.caller("client-1"), webCluster)
	b.Cluster(b.caller("client-1"), "outbound|80||other.shop.svc.cluster.local")
	b.clock.pass(Idle)
	b.host("client-1", "web")
	b.Cluster(b.caller("client-1"), webCluster)
	b.Sweep(b.caller("client-1"))
	if len(b.hosts) != 2 || len(b.clusters) != 2 {
		t.Errorf("after an hour: %d virtual hosts, %d clusters", len(b.hosts), len(b.clusters))
	}
	b.clock.pass(time.Second)
	b.Sweep(b.caller("client-1"))
	if len(b.hosts) != 1 || len(b.clusters) != 1 || b.clusters[webCluster] == nil {
		t.Errorf("after more than an hour: %d virtual hosts, %d clusters", len(b.hosts), len(b.clusters))
	}
	c := b.clusters[webCluster]
	h, why := c.Pick(cluster.PickInput{})
	if why != cluster.Picked {
		t.Fatal(why)
	}
	h.Begin()
	b.clock.pass(2 * Idle)
	b.Sweep(b.caller("client-1"))
	if b.clusters[webCluster] != c {
		t.Error("a cluster is forgotten while a request is under way")
	}
	h.End()
	b.Sweep(b.caller("client-1"))
	if len(b.clusters) != 0 {
		t.Error("a cluster is not forgotten after its last request")
	}
}

// TestPortsAreBounded: so many ports of a pod have statistics of their own, the others some together, and what is unused goes.
func TestPortsAreBounded(t *testing.T) {
	b := newBed(t, objects())
	for port := range uint16(1000) {
		c := b.Arrivals(port + 1)
		h := c.Original(netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), port+1))
		if !c.Breakers(cluster.Default).TryConnection(h) {
			t.Fatal("a connection to the application is limited")
		}
		if port != 7 {
			c.Breakers(cluster.Default).DoneConnection(h, false)
		}
	}
	list := func() (names []string, total uint64) {
		for c := range b.Clusters {
			names = append(names, c.Name())
			total += c.Get(cluster.CxTotal)
		}
		slices.Sort(names)
		return names, total
	}
	if names, total := list(); len(names) != maxInbound+1 || names[0] != passthrough || total != 1000 || b.Arrivals(7) == b.Arrivals(8) || b.Arrivals(998) != b.Arrivals(999) {
		t.Errorf("%d clusters with %d connections, the first is %s", len(names), total, names[0])
	}
	b.clock.pass(Idle + time.Second)
	b.Arrivals(3)
	b.Sweep(b.caller("client-1"))
	if names, _ := list(); !slices.Equal(names, []string{"inbound|3||", "inbound|8||"}) {
		t.Errorf("after an hour there are %q", names)
	}
	in := b.Inbound(netip.MustParseAddrPort("10.0.0.1:80"), cluster.HTTP1)
	if x, y := in.Cluster(), in.Cluster(); x == y || x.Name() != "inbound|80||" {
		t.Error("two connections have one cluster")
	} else if x.Inc(cluster.CxHTTP1); y.Get(cluster.CxHTTP1) != 1 || b.Arrivals(80).Get(cluster.CxHTTP1) != 1 {
		t.Error("they are not counted together")
	}
}

// many are so many services.
func many(n int) string {
	var text strings.Builder
	text.WriteString(objects())
	for i := range n {
		fmt.Fprintf(&text, service, fmt.Sprintf("s%d", i), 1+i/250, i%250)
	}
	return text.String()
}

// TestBounds: what a pod's requests can name is kept within limits, and answered beyond them as well.
func TestBounds(t *testing.T) {
	const n = maxHosts + maxHosts/8 + 10
	b := newBed(t, many(n))
	c := b.caller("client-1")
	for i := range 2 * maxNames {
		b.VirtualHost(c, 80, fmt.Appendf(nil, "nobody-%d.example", i), nil)
	}
	if len(b.names) > maxNames || len(b.hosts) != 1 {
		t.Errorf("%d names, %d virtual hosts of names that nobody has", len(b.names), len(b.hosts))
	}
	for i := range n {
		if got := routeName(b.VirtualHost(c, 80, fmt.Appendf(nil, "s%d", i), nil)); got != "default" {
			t.Fatalf("s%d: route %q", i, got)
		}
		if len(b.hosts) > maxHosts {
			t.Fatalf("%d virtual hosts after %d", len(b.hosts), i+1)
		}
		if i == maxHosts/2 {
			b.clock.pass(time.Minute) // what was before is older
		}
	}
	if _, kept := b.names[nameKey{80, nil, false, fmt.Sprintf("s%d", n-1)}]; !kept {
		t.Error("the newest name is not kept")
	}
	newer := 0
	for _, h := range b.hosts {
		if h.used.Load() == b.shared.now() {
			newer++
		}
	}
	if want := n - maxHosts/2 - 1; newer != want {
		t.Errorf("of %d virtual hosts that were used last %d are kept: those go first that were not used for longest", want, newer)
	}
}

// TestInboundIsBounded: the ports of a pod at which it was called.
func TestInboundIsBounded(t *testing.T) {
	b := newBed(t, objects())
	at := b.caller("client-1").Workload.Addrs[0]
	var first *Inbound
	for port := range uint16(2 * maxInbound) {
		in := b.Inbound(netip.AddrPortFrom(at, port+1), cluster.HTTP1)
		if port == 0 {
			first = in
		}
		if len(b.inbound) > maxInbound {
			t.Fatalf("%d ports", len(b.inbound))
		}
	}
	if b.Inbound(netip.AddrPortFrom(at, 1), cluster.HTTP1).Host != first.Host {
		t.Error("the virtual host of a port is not the one that there was")
	}
	c := first.Cluster()
	if h, why := c.Pick(cluster.PickInput{}); why != cluster.Picked || h.Endpoint().Addr != netip.AddrPortFrom(at, 1) {
		t.Errorf("%v %s", h, why)
	}
	first.Close(c)
	if _, why := c.Pick(cluster.PickInput{}); why == cluster.Picked {
		t.Error("a cluster that was closed has an endpoint")
	}
}

// TestConcurrently: requests of a pod while its mesh changes and it is swept. Run with -race.
func TestConcurrently(t *testing.T) {
	b := newBed(t, objects(fmt.Sprintf(virtual, "one"), fmt.Sprintf(rule, "RANDOM")))
	var now atomic.Pointer[policy.Caller]
	publish := func() {
		c := b.caller("client-1")
		now.Store(&c)
	}
	publish()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	work := func(f func(c policy.Caller, i int)) {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					f(*now.Load(), i)
					runtime.Gosched()
				}
			}
		})
	}
	for range 3 {
		work(func(c policy.Caller, _ int) {
			switch got := routeName(b.VirtualHost(c, 80, []byte("web"), nil)); got {
			case "one", "two", "default":
			default:
				t.Errorf("route %q", got)
			}
			if e := b.Cluster(c, webCluster); e == nil {
				t.Error("no cluster")
			} else if _, why := e.Pick(cluster.PickInput{}); why != cluster.Picked {
				t.Error(why)
			}
		})
	}
	work(func(c policy.Caller, i int) {
		b.VirtualHost(c, 80, fmt.Appendf(nil, "nobody-%d", i%5000), nil)
		b.Cluster(c, "outbound|80|v1|web.shop.svc.cluster.local") // comes and goes
		b.Inbound(netip.AddrPortFrom(c.Workload.Addrs[0], uint16(i%1000+1)), cluster.HTTP2)
	})
	work(func(c policy.Caller, _ int) {
		b.Sweep(c)
		for e := range b.Clusters {
			e.Spec()
		}
	})
	for i := range 12 {
		b.write(objects([]string{fmt.Sprintf(virtual, "two"), "", fmt.Sprintf(virtual, "one")}[i%3], []string{fmt.Sprintf(rule, "RANDOM"), ""}[i%2],
			fmt.Sprintf(pod, "web", 3+i, 0)))
		publish()
	}
	close(stop)
	wg.Wait()
	b.Close()
	if e := b.Cluster(b.caller("client-1"), webCluster); e == nil || e.Hosts().Len() != 3 {
		t.Error("a table that was closed is not begun anew")
	}
}

// TestHostsAreBoundedByBytes: rules of a tenant that are long for each name that its pod calls are not all kept.
func TestHostsAreBoundedByBytes(t *testing.T) {
	long := strings.Replace(fmt.Sprintf(virtual, "one"), "http: [", "http: [{match: [{uri: {exact: /}}], directResponse: {status: 200, body: {string: "+strings.Repeat("x", 1<<20)+"}}},", 1)
	const n = 50
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("h%d.example", i))
	}
	b := newBed(t, objects(strings.Replace(long, "hosts: [web]", "hosts: ["+strings.Join(names, ", ")+"]", 1)))
	c := b.caller("client-1")
	for _, name := range names {
		b.clock.pass(time.Second)
		h := b.VirtualHost(c, 80, []byte(name), nil)
		if r := h.Match(&head.Request{Method: []byte("GET"), Scheme: []byte("http"), Path: []byte("/")}, &route.Input{}); r == nil || r.Direct == nil {
			t.Fatalf("%s: route %+v", name, r)
		}
	}
	kept := 0
	for _, h := range b.hosts {
		kept += h.size
	}
	if kept > maxBytes || kept != b.bytes || len(b.hosts) < 4 {
		t.Errorf("%d virtual hosts of %d bytes, counted as %d", len(b.hosts), kept, b.bytes)
	}
	if names := len(b.names); names > len(b.hosts) {
		t.Errorf("%d names of %d virtual hosts", names, len(b.hosts))
	}
	b.clock.pass(2 * Idle)
	b.Sweep(c)
	if b.bytes != 0 || len(b.hosts) != 0 {
		t.Errorf("%d bytes of %d virtual hosts are not forgotten", b.bytes, len(b.hosts))
	}
}
