package envoy

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"regexp"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/cluster"
	engine "github.com/undermesh/undermesh/ztunnel/http"
	"github.com/undermesh/undermesh/ztunnel/http/head"
	"github.com/undermesh/undermesh/ztunnel/http/route"
)

// engineSide is our engine with a listener for each RouteConfiguration, in front of the echoing upstreams.
type engineSide struct {
	addrs    map[string]netip.AddrPort
	clusters map[string]*cluster.Cluster
	mu       sync.Mutex // protects said
	said     map[string]Outcome
}

// upstreams are those of one configuration.
type upstreams struct {
	*engineSide
	config *route.Config
}

func (u *upstreams) Routes(req *head.Request) *route.VirtualHost {
	return u.config.Find(req.Authority, &route.Input{})
}

func (u *upstreams) Cluster(name string) *cluster.Cluster { return u.clusters[name] }

func (u *upstreams) Dial(ctx context.Context, _ *cluster.Cluster, h *cluster.Host) (*engine.Conn, error) {
	e := h.Endpoint()
	network, addr := "tcp", e.Addr.String()
	if path, ok := e.Value.(string); ok {
		network, addr = "unix", path
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &engine.Conn{Net: conn}, nil
}

// hosts are the endpoints of a cluster as its message has them.
func hosts(c *clusterv3.Cluster) *cluster.Hosts {
	var out []cluster.Endpoint
	for _, group := range c.GetLoadAssignment().GetEndpoints() {
		for i, e := range group.GetLbEndpoints() {
			is := cluster.Endpoint{Key: strconv.Itoa(i), Healthy: e.GetHealthStatus() != corev3.HealthStatus_UNHEALTHY, Addr: netip.MustParseAddrPort("192.0.2.1:80")}
			if path := e.GetEndpoint().GetAddress().GetPipe().GetPath(); path != "" {
				is.Value = path
			} else {
				a := e.GetEndpoint().GetAddress().GetSocketAddress()
				is.Addr = netip.AddrPortFrom(netip.MustParseAddr(a.GetAddress()), uint16(a.GetPortValue()))
			}
			out = append(out, is)
		}
	}
	return cluster.NewHosts(out)
}

func startOurs(t *testing.T, configs []*routev3.RouteConfiguration, clusters []*clusterv3.Cluster) *engineSide {
	t.Helper()
	e, err := engine.New(engine.Config{})
	if err != nil {
		t.Fatal(err)
	}
	o := &engineSide{addrs: map[string]netip.AddrPort{}, clusters: map[string]*cluster.Cluster{}, said: map[string]Outcome{}}
	for _, c := range clusters {
		spec, err := cluster.Compile(c)
		if err != nil {
			t.Fatal(err)
		}
		o.clusters[c.GetName()] = cluster.New(cluster.Config{Clock: clock.System(), Rand: rand.Uint64}, spec, hosts(c))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wait sync.WaitGroup
	t.Cleanup(func() { cancel(); wait.Wait() })
	for _, c := range configs {
		config, err := route.CompileConfig(c)
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		to := l.Addr().(*net.TCPAddr).AddrPort()
		o.addrs[c.GetName()] = to
		context.AfterFunc(ctx, func() { _ = l.Close() })
		wait.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				flow := &engine.Flow{Source: conn.RemoteAddr().(*net.TCPAddr).AddrPort(), Destination: to, Paths: engine.PathsNone,
					Upstreams: &upstreams{o, config}, Workload: engine.NewTenant(engine.TenantLimits{}), Record: o.record}
				wait.Go(func() { _ = e.Serve(ctx, conn, nil, flow) })
			}
		})
	}
	return o
}

func (o *engineSide) record(e *engine.Entry) {
	if e.Request == nil || e.Mirror {
		return
	}
	number, _ := e.Request.Find("x-case")
	got := Outcome{Flags: string(e.Flags.Append(nil)), Details: e.Details}
	if e.Route != nil {
		got.Route = e.Route.Name
	}
	if got.Flags == "-" {
		got.Flags = ""
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.said[string(number)] = got
}

// logged waits for what was recorded of a request.
func (o *engineSide) logged(number string) (Outcome, bool) {
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
		o.mu.Lock()
		got, ok := o.said[number]
		o.mu.Unlock()
		if ok {
			return got, true
		}
		<-time.After(100 * time.Microsecond)
	}
	return Outcome{}, false
}

// TestEnvoyAgreesOnRequests: Envoy and our engine answer generated requests under generated configurations alike, byte for byte
// but for what docs/envoy.md lists: status, fields, body, what the upstream sees, flags, details and route.
func TestEnvoyAgreesOnRequests(t *testing.T) {
	Require(t)
	s := sizes(t)
	t.Logf("MESH_TEST_SEED=%d", s.seed)
	g := newGenerator(s.seed)
	g.certain = true
	agree(t, versions{}, g.configs(t, s.configs), clusterNames, func(*routev3.RouteConfiguration) []call { return g.calls(callCount) })
}

// versions tells who speaks HTTP/2.
type versions struct{ down, up bool }

// agree sends the calls that are made for each configuration through Envoy and our engine, before one upstream for each cluster.
func agree(t *testing.T, v versions, configs []*routev3.RouteConfiguration, clusters []string, calls func(*routev3.RouteConfiguration) []call) {
	t.Helper()
	form := echoCluster
	if v.up {
		form = echoCluster2
	}
	theirEchoes, theirClusters := Echo(t, clusters, form)
	ourEchoes, ourClusters := Echo(t, clusters, form)
	d := &differential{envoy: StartProxy(t, 1, configs, theirClusters), we: startOurs(t, configs, ourClusters), envoys: theirEchoes, ours: ourEchoes}
	for _, c := range configs {
		d.through(t, v.down, c.GetName(), c.GetName(), calls(c))
	}
	d.compare(t)
	t.Logf("%d requests under %d configurations", len(d.pairs), len(configs))
}

// differential is one run of both proxies, each before upstreams of its own.
type differential struct {
	envoy        *Proxy
	we           *engineSide
	envoys, ours *Echoes
	chance       func(call) bool // how many tries it takes is chance; nil: never
	races        func(call) bool // whether the upstream sees it is chance; nil: never
	listed       func(call) int  // the difference of docs/envoy.md that is to be expected, 0 for none; nil: none is
	mu           sync.Mutex      // protects pairs
	pairs        []*pair
}

// pair is what became of one call.
type pair struct {
	call      call
	number    string
	envoy, we Outcome
}

// through sends calls to the listeners of a configuration, one after the other.
func (d *differential) through(t *testing.T, two bool, config, prefix string, calls []call) {
	t.Helper()
	theirs, ours := &Client{addr: d.envoy.addrs[config], two: two}, &Client{addr: d.we.addrs[config], two: two}
	for i, q := range calls {
		x := &pair{call: q, number: fmt.Sprintf("%s-%d", prefix, i)}
		var wait sync.WaitGroup
		var envoyErr, ourErr error
		wait.Go(func() { x.envoy, envoyErr = theirs.Do(q, x.number) })
		x.we, ourErr = ours.Do(q, x.number)
		wait.Wait()
		if envoyErr != nil || ourErr != nil {
			t.Errorf("%s: %s: Envoy: %v, we: %v", x.number, q, envoyErr, ourErr)
			if errors.Is(ourErr, os.ErrDeadlineExceeded) { // where it hangs
				_ = pprof.Lookup("goroutine").WriteTo(t.Output(), 1)
			}
			return
		}
		d.mu.Lock()
		d.pairs = append(d.pairs, x)
		d.mu.Unlock()
	}
	_, _ = theirs.Close(), ours.Close()
}

// compare says where the two differ, once everything was logged and has arrived.
func (d *differential) compare(t *testing.T) {
	t.Helper()
	theirs := map[string]*Outcome{}
	for _, x := range d.pairs {
		theirs[x.number] = &x.envoy
	}
	for _, number := range d.envoy.WaitLogged(t, theirs) {
		for _, x := range d.pairs {
			if x.number == number {
				t.Errorf("Envoy has not logged %s %s", number, x.call)
			}
		}
	}
	d.arrivals()
	differ, listed := 0, map[int]bool{}
	for _, x := range d.pairs {
		said, ok := d.we.logged(x.number)
		if !ok {
			t.Fatalf("%s: no record", x.number)
		}
		x.we.Flags, x.we.Details, x.we.Route = said.Flags, said.Details, said.Route
		a, b := alike(x.envoy), alike(x.we)
		if d.chance != nil && d.chance(x.call) {
			a, b = uncounted(a), uncounted(b)
		}
		if d.races != nil && d.races(x.call) {
			a.Arrived, b.Arrived = nil, nil
		}
		class := 0
		if d.listed != nil {
			class = d.listed(x.call)
		}
		if class > 0 {
			listed[class] = listed[class] || a.String() != b.String()
		} else if a.String() != b.String() {
			if differ++; differ <= 12 {
				t.Errorf("%s %s\n%s", x.number, x.call, difference(a, b))
			}
		}
	}
	for class, differs := range listed {
		if !differs {
			t.Errorf("nothing differs as docs/envoy.md says under %d", class)
		}
	}
	if differ > 0 {
		t.Errorf("%d of %d differ", differ, len(d.pairs))
	}
}

// arrivals adds what came to upstreams of each call, copies too, which may be on their way still.
func (d *differential) arrivals() {
	for deadline := time.Now().Add(2 * time.Second); ; <-time.After(10 * time.Millisecond) {
		same := true
		for _, x := range d.pairs {
			x.envoy.Arrived, x.we.Arrived = d.envoys.Arrived(x.number), d.ours.Arrived(x.number)
			same = same && len(x.envoy.Arrived) == len(x.we.Arrived)
		}
		if same || time.Now().After(deadline) {
			return
		}
	}
}

// alike takes out of an outcome what differs between connections and in time.
func alike(o Outcome) Outcome {
	o = settle(o)
	o.Fields = ports(without(o.Fields, "set-cookie"))
	for i, f := range o.Fields { // that a proxy has made
		if id, ok := strings.CutPrefix(f, "x-request-id: "); ok && uuid.MatchString(id) {
			o.Fields[i] = "x-request-id: MADE"
		}
	}
	if o.Upstream != nil {
		up := seenAlike(*o.Upstream)
		o.Upstream = &up
	}
	o.Arrived = slices.Clone(o.Arrived)
	for i, s := range o.Arrived {
		o.Arrived[i] = seenAlike(s)
		o.Arrived[i].Fields = forwardedFor(o.Arrived[i].Fields) // of copies: each proxy adds an address that it takes for its own
	}
	slices.SortFunc(o.Arrived, func(a, b Seen) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	return o
}

// forwardedFor replaces the last address of x-forwarded-for.
func forwardedFor(list []string) []string {
	out := slices.Clone(list)
	for i, f := range out {
		if v, ok := strings.CutPrefix(f, "x-forwarded-for: "); ok {
			out[i] = "x-forwarded-for: " + v[:strings.LastIndex(v, ",")+1] + "OWN"
		}
	}
	return out
}

// uncounted takes out of what alike has made how many tries there were.
func uncounted(o Outcome) Outcome {
	const count, left = "x-envoy-attempt-count", "x-envoy-expected-rq-timeout-ms"
	o.Fields, o.Arrived = without(o.Fields, count), slices.Clone(o.Arrived)
	if o.Upstream != nil {
		o.Upstream.Fields = without(o.Upstream.Fields, count, left)
	}
	for i := range o.Arrived {
		o.Arrived[i].Fields = without(o.Arrived[i].Fields, count, left)
	}
	return o
}

func seenAlike(s Seen) Seen {
	s = settleSeen(s)
	s.Authority = loopbackPort.ReplaceAllString(s.Authority, "127.0.0.1$1:PORT") // which rules have made
	s.Fields = ports(without(s.Fields, "x-envoy-internal", "x-case", "content-length", "x-request-id"))
	if slices.ContainsFunc(s.Fields, func(f string) bool {
		return strings.HasPrefix(f, "x-envoy-attempt-count: ") && !strings.HasSuffix(f, ": 1")
	}) {
		s.Fields = without(s.Fields, "x-envoy-expected-rq-timeout-ms") // what is left of it depends on how long other tries took
	}
	return s
}

var uuid = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

var loopbackPort = regexp.MustCompile(`127\.0\.0\.1(-shadow)?:[0-9]+`)

// ports leaves out the ports of loopback addresses, which are of each connection.
func ports(list []string) []string {
	out := slices.Clone(list)
	for i, f := range out {
		n, v, _ := strings.Cut(f, ": ")
		if n != "x-case" {
			out[i] = n + ": " + loopbackPort.ReplaceAllString(v, "127.0.0.1$1:PORT")
		}
	}
	return out
}
