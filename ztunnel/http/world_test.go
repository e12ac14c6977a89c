package http

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/cluster"
	"github.com/undermesh/undermesh/ztunnel/http/head"
	"github.com/undermesh/undermesh/ztunnel/http/route"
)

// world is one engine with a workload, its routes and its hosts. Connections are pairs of memory, or of loopback sockets.
type world struct {
	t        testing.TB
	e        *Engine
	flow     Flow
	loopback bool

	mu       sync.Mutex
	vhosts   map[string]*route.VirtualHost
	clusters map[string]*cluster.Cluster
	hosts    map[string]func(net.Conn) // by address
	dials    int
	lines    []string // of the log: status flags details
	conns    []net.Conn
	control  func(_, _ string, c syscall.RawConn) error // of sockets
	leg      *Peer
	engine   bool // another engine is at the hosts
	dialErr  error
	wg       sync.WaitGroup
	cancel   context.CancelFunc
	ctx      context.Context
}

func newWorld(t testing.TB, change ...func(*Config)) *world {
	t.Helper()
	w := &world{t: t, vhosts: map[string]*route.VirtualHost{}, clusters: map[string]*cluster.Cluster{}, hosts: map[string]func(net.Conn){}}
	cfg := Config{Clock: clock.System()}
	for _, c := range change {
		c(&cfg)
	}
	e, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.e = e
	w.flow = Flow{Source: netip.MustParseAddrPort("10.0.0.1:40000"), Destination: netip.MustParseAddrPort("10.1.0.1:80"),
		Upstreams: w, Workload: NewTenant(TenantLimits{}), Record: w.record}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	t.Cleanup(w.close)
	return w
}

func (w *world) close() {
	w.cancel()
	w.mu.Lock()
	for _, c := range w.clusters {
		_ = c
	}
	list := w.conns
	w.mu.Unlock()
	for _, c := range list {
		_ = c.Close()
	}
	w.wg.Wait()
}

func (w *world) record(e *Entry) {
	line := string(e.Flags.Append([]byte(itoa(e.Status()) + " ")))
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines = append(w.lines, line+" "+e.Details)
}

func itoa(n int) string { return string(appendInt(nil, n)) }

func appendInt(b []byte, n int) []byte {
	if n >= 10 {
		b = appendInt(b, n/10)
	}
	return append(b, byte('0'+n%10))
}

// log returns the lines of the log so far, waiting until there are n.
func (w *world) log(n int) []string {
	w.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		w.mu.Lock()
		lines := append([]string(nil), w.lines...)
		w.mu.Unlock()
		if len(lines) >= n {
			return lines
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("the log has %d lines, not %d: %q", len(lines), n, lines)
		}
		<-time.After(time.Millisecond)
	}
}

func (w *world) Routes(req *head.Request) *route.VirtualHost {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.vhosts[strings.ToLower(string(req.Authority))]
}

func (w *world) Cluster(name string) *cluster.Cluster {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.clusters[name]
}

func (w *world) Dial(_ context.Context, _ *cluster.Cluster, h *cluster.Host) (*Conn, error) {
	w.mu.Lock()
	serve, err, conn := w.hosts[h.Endpoint().Addr.String()], w.dialErr, &Conn{Leg: w.leg, Engine: w.engine}
	w.dials++
	w.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if serve == nil {
		return nil, errors.New("nobody is there")
	}
	near, far := w.pair()
	w.wg.Go(func() {
		defer far.Close()
		serve(far)
	})
	conn.Net = near
	return conn, nil
}

// pair returns two ends of a connection.
func (w *world) pair() (near, far net.Conn) {
	if !w.loopback {
		near, far = net.Pipe()
	} else {
		w.mu.Lock()
		control := w.control
		w.mu.Unlock()
		l, err := (&net.ListenConfig{Control: control}).Listen(w.ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			w.t.Fatal(err)
		}
		defer l.Close()
		if near, err = (&net.Dialer{Control: control}).Dial("tcp", l.Addr().String()); err != nil {
			w.t.Fatal(err)
		}
		if far, err = l.Accept(); err != nil {
			w.t.Fatal(err)
		}
	}
	w.mu.Lock()
	w.conns = append(w.conns, near, far)
	w.mu.Unlock()
	return near, far
}

// routes sets the virtual host of an authority, in JSON.
func (w *world) routes(authority, text string) {
	w.t.Helper()
	var m routev3.VirtualHost
	if err := protojson.Unmarshal([]byte(`{"name":"v","domains":["*"],"routes":[`+text+`]}`), &m); err != nil {
		w.t.Fatal(err)
	}
	vh, err := route.Compile(&m)
	if err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	w.vhosts[authority] = vh
	w.mu.Unlock()
}

// cluster makes a cluster of hosts, and serves each of them.
func (w *world) cluster(name string, change func(*clusterv3.Cluster), hosts ...func(net.Conn)) *cluster.Cluster {
	w.t.Helper()
	m := &clusterv3.Cluster{Name: name, ConnectTimeout: durationpb.New(time.Second), ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}}
	if change != nil {
		change(m)
	}
	spec, err := cluster.Compile(m)
	if err != nil {
		w.t.Fatal(err)
	}
	var list []cluster.Endpoint
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, serve := range hosts {
		addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 2, byte(len(w.clusters)), byte(i + 1)}), 8080)
		w.hosts[addr.String()] = serve
		list = append(list, cluster.Endpoint{Key: addr.String(), Addr: addr, Healthy: true})
	}
	c := cluster.New(cluster.Config{Clock: w.e.cfg.Clock, Rand: w.e.cfg.Random}, spec, cluster.NewHosts(list))
	w.clusters[name] = c
	return c
}

// client is a connection of a client.
type testClient struct {
	net.Conn
	r   *bufio.Reader
	w   *world
	end chan error // what Serve returned
}

// connect begins a connection and serves it.
func (w *world) connect() *testClient {
	w.t.Helper()
	near, far := w.pair()
	c := &testClient{Conn: near, r: bufio.NewReader(near), w: w, end: make(chan error, 1)}
	flow := w.flow
	w.wg.Go(func() { c.end <- w.e.Serve(w.ctx, far, nil, &flow) })
	return c
}

// send writes the text in the background: pipes do not buffer.
func (c *testClient) send(text string) {
	c.w.wg.Go(func() { _, _ = io.WriteString(c.Conn, text) })
}

type answer struct {
	*http.Response
	body string
}

// read reads one answer to a method.
func (c *testClient) read(method string) answer {
	c.w.t.Helper()
	resp, err := http.ReadResponse(c.r, &http.Request{Method: method})
	if err != nil {
		c.w.t.Fatalf("read the answer: %v", err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		b = append(b, " <"+err.Error()+">"...)
	}
	return answer{resp, string(b)}
}

// get sends a request of lines and reads the answer.
func (c *testClient) get(lines ...string) answer {
	c.w.t.Helper()
	c.send(strings.Join(lines, "\r\n") + "\r\n\r\n")
	method, _, _ := strings.Cut(lines[0], " ")
	return c.read(method)
}

// over reports that the connection ends, within the time that a linger takes.
func (c *testClient) over() bool {
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, err := c.r.ReadByte()
	return errors.Is(err, io.EOF) || err != nil && !errors.Is(err, context.DeadlineExceeded) && !strings.Contains(err.Error(), "timeout")
}

// echo is a host that answers with the request that it saw.
func echo(c net.Conn) {
	r := bufio.NewReader(c)
	for {
		text, err := readMessage(r)
		if err != nil {
			return
		}
		if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nServer: mine\r\nContent-Length: "+itoa(len(text))+"\r\n\r\n"+text); err != nil {
			return
		}
	}
}

// readMessage reads a request as text.
func readMessage(r *bufio.Reader) (string, error) {
	var text bytes.Buffer
	req, err := http.ReadRequest(bufio.NewReader(io.TeeReader(oneByOne{r}, &text)))
	if err != nil {
		return "", err
	}
	if _, err := io.Copy(io.Discard, req.Body); err != nil {
		return "", err
	}
	return text.String(), nil
}

// oneByOne lets bufio read no more than it needs.
type oneByOne struct{ r *bufio.Reader }

func (o oneByOne) Read(p []byte) (int, error) {
	b, err := o.r.ReadByte()
	if err != nil {
		return 0, err
	}
	p[0] = b
	return 1, nil
}

// answers is a host that reads a request and answers with texts, one after the other; after the last it closes.
func answers(texts ...string) func(net.Conn) {
	return func(c net.Conn) {
		r := bufio.NewReader(c)
		for _, text := range texts {
			if _, err := readMessage(r); err != nil {
				return
			}
			if _, err := io.WriteString(c, text); err != nil {
				return
			}
		}
	}
}

// fixed is a host that answers each read with the same text, without allocating.
func fixed(text string) func(net.Conn) {
	return func(c net.Conn) {
		in, out := make([]byte, 4096), []byte(text)
		for {
			if _, err := c.Read(in); err != nil {
				return
			}
			if _, err := c.Write(out); err != nil {
				return
			}
		}
	}
}

const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
