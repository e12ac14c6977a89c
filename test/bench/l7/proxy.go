package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/undermesh/undermesh/test/bench/peer"
	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/cluster"
	"github.com/undermesh/undermesh/ztunnel/http"
	"github.com/undermesh/undermesh/ztunnel/http/head"
	"github.com/undermesh/undermesh/ztunnel/http/route"
)

// proxy is the engine with one virtual host and one cluster of one host, and an access log like Istio's.
type proxy struct {
	routes  *route.VirtualHost
	cluster *cluster.Cluster

	mu  sync.Mutex // protects below
	log *bufio.Writer
	row []byte
}

func runProxy(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("proxy", flag.ContinueOnError)
	listen, up, log := fs.String("listen", "", "address"), fs.String("up", "", "address of the server"), fs.String("log", "", "access log")
	version, routes := fs.Int("http", 1, "version of HTTP to the server"), fs.Int("routes", usual, "of which the last matches")
	if err := fs.Parse(args); err != nil {
		return err
	}
	p, err := newProxy(*up, variant{*version == 2, *routes}, *log)
	if err != nil {
		return err
	}
	e, err := http.New(http.Config{})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { _ = l.Close() })
	tenant := http.NewTenant(http.TenantLimits{})
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			return nil
		}
		f := &http.Flow{
			Source: addrPort(c.RemoteAddr()), Destination: addrPort(c.LocalAddr()), Upstreams: p, Workload: tenant, Record: p.record,
		}
		wg.Go(func() { _ = e.Serve(ctx, c, nil, f) })
	}
}

func newProxy(up string, v variant, log string) (*proxy, error) {
	addr, err := netip.ParseAddrPort(up)
	if err != nil {
		return nil, err
	}
	f, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(map[string]any{"name": "v", "domains": []string{"*"}, "routes": peer.Routes(v.routes)})
	if err != nil {
		return nil, err
	}
	var vh routev3.VirtualHost
	if err := protojson.Unmarshal(text, &vh); err != nil {
		return nil, err
	}
	if text, err = json.Marshal(peer.Cluster(v.http2)); err != nil {
		return nil, err
	}
	var cl clusterv3.Cluster
	if err := protojson.Unmarshal(text, &cl); err != nil {
		return nil, err
	}
	cl.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}
	spec, err := cluster.Compile(&cl)
	if err != nil {
		return nil, err
	}
	p := &proxy{log: bufio.NewWriterSize(f, 60<<10)}
	if p.routes, err = route.Compile(&vh); err != nil {
		return nil, err
	}
	p.cluster = cluster.New(cluster.Config{Clock: clock.System(), Rand: rand.Uint64}, spec,
		cluster.NewHosts([]cluster.Endpoint{{Key: up, Addr: addr, Healthy: true}}))
	return p, nil
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.AddrPort()
	}
	return netip.AddrPort{}
}

func (p *proxy) Routes(*head.Request) *route.VirtualHost { return p.routes }

func (p *proxy) Cluster(string) *cluster.Cluster { return p.cluster }

func (p *proxy) Dial(ctx context.Context, _ *cluster.Cluster, h *cluster.Host) (*http.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", h.Endpoint().Addr.String())
	if err != nil {
		return nil, fmt.Errorf("connect to server: %w", err)
	}
	return &http.Conn{Net: c}, nil
}

// record writes a line of the fields that Envoy's log of this bench has.
func (p *proxy) record(e *http.Entry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := append(p.row[:0], '[')
	b = e.Start.UTC().AppendFormat(b, "2006-01-02T15:04:05.000Z")
	b = append(append(b, `] "`...), e.Request.Method...)
	b = append(append(append(b, ' '), e.Request.Path...), ' ')
	b = append(append(b, e.Protocol.String()...), `" `...)
	b = strconv.AppendInt(b, int64(e.Status()), 10)
	b = e.Flags.Append(append(b, ' '))
	b = append(append(append(b, ' '), e.Details...), " - \""...)
	b = append(append(b, e.TransportFailure...), `" `...)
	for _, n := range []int64{e.BytesReceived, e.BytesSent, int64(e.Duration / time.Millisecond), int64(e.ServiceTime / time.Millisecond)} {
		b = append(strconv.AppendInt(b, n, 10), ' ')
	}
	for _, id := range []head.ID{head.XForwardedFor, head.UserAgent, head.XRequestID} {
		b = append(append(append(b, '"'), e.Request.Get(id)...), `" `...)
	}
	b = append(append(append(b, '"'), e.Request.Authority...), `" "`...)
	if e.Host != nil {
		b = e.Host.Endpoint().Addr.AppendTo(b)
	}
	b = append(b, `" `...)
	if e.Cluster != nil {
		b = append(b, e.Cluster.Name()...)
	}
	b = e.UpstreamLocal.AppendTo(append(b, ' '))
	b = e.Flow.Destination.AppendTo(append(b, ' '))
	b = e.Flow.Source.AppendTo(append(b, ' '))
	b = append(append(b, " - "...), e.Flow.SNI...)
	if e.Route != nil {
		b = append(b, e.Route.Name...)
	}
	p.row = append(b, '\n')
	_, _ = p.log.Write(p.row) // a file that is full is no matter of the bench
}
