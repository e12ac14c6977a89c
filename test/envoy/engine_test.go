package envoy

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

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
	sockets  map[string]string
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

func (u *upstreams) Dial(ctx context.Context, c *cluster.Cluster, _ *cluster.Host) (*engine.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", u.sockets[c.Name()])
	if err != nil {
		return nil, err
	}
	return &engine.Conn{Net: conn}, nil
}

func startOurs(t *testing.T, configs []*routev3.RouteConfiguration, sockets map[string]string) *engineSide {
	t.Helper()
	e, err := engine.New(engine.Config{})
	if err != nil {
		t.Fatal(err)
	}
	o := &engineSide{addrs: map[string]netip.AddrPort{}, clusters: map[string]*cluster.Cluster{}, sockets: sockets, said: map[string]Outcome{}}
	for name := range sockets {
		spec, err := cluster.Compile(echoCluster(name))
		if err != nil {
			t.Fatal(err)
		}
		host := cluster.Endpoint{Key: name, Addr: netip.MustParseAddrPort("192.0.2.1:80"), Healthy: true}
		o.clusters[name] = cluster.New(cluster.Config{Clock: clock.System(), Rand: rand.Uint64}, spec, cluster.NewHosts([]cluster.Endpoint{host}))
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
	if e.Request == nil {
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
	from := seed(t)
	t.Logf("MESH_TEST_SEED=%d", from)
	g := newGenerator(from)
	g.certain = true
	var configs []*routev3.RouteConfiguration
	for i := range configCount {
		c, err := g.config(fmt.Sprintf("c%d", i))
		if err != nil {
			t.Fatal(err)
		}
		configs = append(configs, c)
	}
	agree(t, configs, clusterNames, func(*routev3.RouteConfiguration) []call {
		var out []call
		for range callCount {
			out = append(out, g.call())
		}
		return out
	})
}

// agree sends the calls that are made for each configuration through Envoy and our engine, before one upstream for each cluster.
func agree(t *testing.T, configs []*routev3.RouteConfiguration, clusters []string, calls func(*routev3.RouteConfiguration) []call) {
	t.Helper()
	dir, err := os.MkdirTemp("", "echo")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	sockets := Echo(t, dir, clusters)
	p, o := StartProxy(t, 1, configs, sockets), startOurs(t, configs, sockets)
	envoys := map[string]*Outcome{}
	type pair struct {
		config string
		call   call
		number string
		we     Outcome
	}
	var pairs []pair
	for _, c := range configs {
		theirs, we := &Client{addr: p.addrs[c.GetName()]}, &Client{addr: o.addrs[c.GetName()]}
		for i, q := range calls(c) {
			number := fmt.Sprintf("%s-%d", c.GetName(), i)
			a, err := theirs.Do(q, number)
			if err != nil {
				t.Fatalf("Envoy: %s: %v", q, err)
			}
			b, err := we.Do(q, number)
			if err != nil {
				t.Fatalf("we: %s: %v", q, err)
			}
			envoys[number] = &a
			pairs = append(pairs, pair{c.GetName(), q, number, b})
		}
		_, _ = theirs.Close(), we.Close()
	}
	p.WaitLogged(t, envoys)
	differ := 0
	for _, x := range pairs {
		said, ok := o.logged(x.number)
		if !ok {
			t.Fatalf("%s: no record", x.number)
		}
		x.we.Flags, x.we.Details, x.we.Route = said.Flags, said.Details, said.Route
		a, b := alike(*envoys[x.number]), alike(x.we)
		if a.String() != b.String() {
			if differ++; differ <= 12 {
				t.Errorf("%s %s\n%s", x.number, x.call, difference(a, b))
			}
		}
	}
	if differ > 0 {
		t.Errorf("%d of %d differ", differ, len(pairs))
	}
	t.Logf("%d requests under %d configurations", len(pairs), len(configs))
}

// alike takes out of an outcome what differs between connections and in time.
func alike(o Outcome) Outcome {
	o = settle(o)
	o.Fields = ports(without(o.Fields, "set-cookie"))
	if o.Upstream != nil {
		up := *o.Upstream
		up.Fields = ports(without(up.Fields, "x-envoy-internal"))
		o.Upstream = &up
	}
	return o
}

var loopbackPort = regexp.MustCompile(`127\.0\.0\.1:[0-9]+`)

// ports leaves out the ports of loopback addresses, which are of each connection.
func ports(list []string) []string {
	out := slices.Clone(list)
	for i, f := range out {
		n, v, _ := strings.Cut(f, ": ")
		if n != "x-case" {
			out[i] = n + ": " + loopbackPort.ReplaceAllString(v, "127.0.0.1:PORT")
		}
	}
	return out
}
