package envoy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	filelog "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	cors "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	fault "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	router "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	upstream "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"golang.org/x/net/http2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/xds"
)

// Outcome is what became of a request, in a form that two proxies can be compared by.
type Outcome struct {
	Status   int
	Hints    []int    `json:",omitempty"` // informational statuses before it
	Fields   []string // of the response, but for those that say when and by whom
	Body     string
	Trailers []string `json:",omitempty"`
	Broken   string   `json:",omitempty"` // how an answer that did not end came to be no more: "", "no answer", "broken off", a code of HTTP/2
	Upstream *Seen    // that answered; nil: none
	Arrived  []Seen   `json:",omitempty"` // all that upstreams saw, copies and other tries too
	Flags    string
	Details  string
	Route    string
}

func (o Outcome) String() string {
	text, err := json.MarshalIndent(o, "", " ")
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// volatile are fields of responses that say when and by whom they were made.
var volatile = []string{"date", "server", "content-length", "x-envoy-upstream-service-time", "connection", "transfer-encoding"}

// Proxy is an Envoy with a listener for each of several RouteConfigurations, in front of echoing upstreams.
type Proxy struct {
	*Envoy
	addrs  map[string]netip.AddrPort // by RouteConfiguration
	access string                    // path of the access log
}

// packed encodes an extension.
func packed(m proto.Message) *anypb.Any {
	a, err := anypb.New(m)
	if err != nil {
		panic(err) // only of a message that cannot be encoded
	}
	return a
}

const logFormat = "%REQ(X-CASE)%\t%RESPONSE_FLAGS%\t%RESPONSE_CODE_DETAILS%\t%ROUTE_NAME%\n"

// tcpListener is one on loopback that goes by the RouteConfiguration and has the filters that Istio puts before the router.
func tcpListener(routes, log string) xds.Resource {
	filter := func(name string, m proto.Message) *hcm.HttpFilter {
		return &hcm.HttpFilter{Name: name, ConfigType: &hcm.HttpFilter_TypedConfig{TypedConfig: packed(m)}}
	}
	manager := packed(&hcm.HttpConnectionManager{
		StatPrefix: "d", Tracing: &hcm.HttpConnectionManager_Tracing{}, UseRemoteAddress: wrapperspb.Bool(true), SkipXffAppend: true,
		UpgradeConfigs: []*hcm.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
		InternalAddressConfig: &hcm.HttpConnectionManager_InternalAddressConfig{CidrRanges: []*core.CidrRange{
			{AddressPrefix: "127.0.0.0", PrefixLen: wrapperspb.UInt32(8)}}},
		RouteSpecifier: &hcm.HttpConnectionManager_Rds{Rds: &hcm.Rds{RouteConfigName: routes, ConfigSource: &core.ConfigSource{
			ResourceApiVersion: core.ApiVersion_V3, ConfigSourceSpecifier: &core.ConfigSource_Ads{Ads: &core.AggregatedConfigSource{}}}}},
		HttpFilters: []*hcm.HttpFilter{filter("envoy.filters.http.fault", &fault.HTTPFault{}), filter("envoy.filters.http.cors", &cors.Cors{}),
			filter("envoy.filters.http.router", &router.Router{})},
		AccessLog: []*accesslog.AccessLog{{Name: "log", ConfigType: &accesslog.AccessLog_TypedConfig{TypedConfig: packed(&filelog.FileAccessLog{
			Path: log, AccessLogFormat: &filelog.FileAccessLog_LogFormat{LogFormat: &core.SubstitutionFormatString{
				Format: &core.SubstitutionFormatString_TextFormat{TextFormat: logFormat}}}})}}},
	})
	return xds.Resource{Type: ListenerType, Name: "l" + routes, Message: &listener.Listener{Name: "l" + routes, TrafficDirection: core.TrafficDirection_OUTBOUND,
		Address: &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{Address: "127.0.0.1",
			PortSpecifier: &core.SocketAddress_PortValue{}}}},
		FilterChains: []*listener.FilterChain{{Filters: []*listener.Filter{{Name: "envoy.filters.network.http_connection_manager",
			ConfigType: &listener.Filter_TypedConfig{TypedConfig: manager}}}}}}}
}

// limited is the cluster of the documents' circuit breaker: one connection, one request that waits, one request a connection (RS-07).
const limited = "limited"

// echoCluster is one of the upstreams, on a unix socket; "ring" balances by hash, and limited has limits.
func echoCluster(name, path string) *cluster.Cluster {
	c := &cluster.Cluster{Name: name, ConnectTimeout: durationpb.New(time.Second), LoadAssignment: Assignment(name, path)}
	switch name {
	case "ring":
		c.LbPolicy = cluster.Cluster_RING_HASH
	case limited:
		one, most := wrapperspb.UInt32(1), wrapperspb.UInt32(math.MaxUint32)
		c.CircuitBreakers = &cluster.CircuitBreakers{Thresholds: []*cluster.CircuitBreakers_Thresholds{
			{MaxConnections: one, MaxPendingRequests: one, MaxRequests: most, MaxRetries: most, TrackRemaining: true}}}
		c.OutlierDetection = &cluster.OutlierDetection{Consecutive_5Xx: one, Interval: durationpb.New(time.Second),
			BaseEjectionTime: durationpb.New(3 * time.Minute), MaxEjectionPercent: wrapperspb.UInt32(100)}
		c.TypedExtensionProtocolOptions = map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": packed(&upstream.HttpProtocolOptions{
			CommonHttpProtocolOptions: &core.HttpProtocolOptions{MaxRequestsPerConnection: one},
			UpstreamProtocolOptions: &upstream.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &upstream.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &upstream.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{}}}})}
	}
	return c
}

// echoCluster2 is one that is spoken to over HTTP/2.
func echoCluster2(name, path string) *cluster.Cluster { return overHTTP2(echoCluster(name, path)) }

func overHTTP2(c *cluster.Cluster) *cluster.Cluster {
	c.TypedExtensionProtocolOptions = map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": packed(
		&upstream.HttpProtocolOptions{UpstreamProtocolOptions: &upstream.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &upstream.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &upstream.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{}}}})}
	return c
}

// StartProxy runs Envoy, with so many threads, with the configurations; all of them must be ones that it takes.
func StartProxy(t testing.TB, threads int, configs []*route.RouteConfiguration, clusters []*cluster.Cluster) *Proxy {
	t.Helper()
	var first []xds.Resource
	for _, c := range clusters {
		first = append(first, xds.Resource{Type: api.ClusterType, Name: c.GetName(), Message: c})
	}
	log := filepath.Join(t.TempDir(), "access")
	for _, c := range configs {
		first = append(first, xds.Resource{Type: api.RouteType, Name: c.GetName(), Message: c}, tcpListener(c.GetName(), log))
	}
	p := &Proxy{Envoy: StartThreads(t, threads, first), addrs: map[string]netip.AddrPort{}}
	p.access = log
	if refused := p.Refused(); len(refused) > 0 {
		t.Fatalf("Envoy refused %q", refused)
	}
	text, err := p.Admin("/listeners?format=json")
	if err != nil {
		t.Fatal(err)
	}
	var said struct {
		Statuses []struct {
			Name  string
			Local struct {
				Socket struct {
					Port uint16 `json:"port_value"`
				} `json:"socket_address"`
			} `json:"local_address"`
		} `json:"listener_statuses"`
	}
	if err := json.Unmarshal(text, &said); err != nil {
		t.Fatal(err)
	}
	for _, s := range said.Statuses {
		p.addrs[strings.TrimPrefix(s.Name, "l")] = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), s.Local.Socket.Port)
	}
	return p
}

// Client speaks to one address, over one connection as long as that lasts.
type Client struct {
	addr  netip.AddrPort
	two   bool           // HTTP/2, with prior knowledge
	local netip.AddrPort // of the connection that the last request went over
	conn  net.Conn
	r     *bufio.Reader
	wire  *wire2
}

// answerLimit is how long an answer may take.
const answerLimit = 20 * time.Second

// Do sends a request as it is written and reads the answer. The number goes along as x-case. It is no error that the answer is
// broken off, or none at all.
func (c *Client) Do(q call, number string) (Outcome, error) {
	if err := c.connect(); err != nil {
		return Outcome{}, err
	}
	if err := c.conn.SetDeadline(time.Now().Add(answerLimit)); err != nil {
		return Outcome{}, err
	}
	do := c.do1
	if c.two {
		do = c.do2
	}
	o, err := do(q, number)
	if err != nil || o.Broken != "" || q.Held || q.Alone {
		err = errors.Join(err, c.Close())
	}
	return o, err
}

func (c *Client) connect() error {
	if c.conn != nil {
		return nil
	}
	conn, err := net.DialTimeout("tcp", c.addr.String(), answerLimit)
	if err != nil {
		return err
	}
	c.conn, c.r, c.local = conn, bufio.NewReader(conn), conn.LocalAddr().(*net.TCPAddr).AddrPort()
	if !c.two {
		return nil
	}
	if _, err = io.WriteString(conn, http2.ClientPreface); err == nil {
		c.wire = newWire2(c.r, conn)
		err = c.wire.greet()
	}
	return err
}

// do1 speaks HTTP/1.1.
func (c *Client) do1(q call, number string) (Outcome, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\nx-case: %s\r\n", q.Method, q.Target, q.Authority, number)
	for _, f := range q.Fields {
		fmt.Fprintf(&b, "%s\r\n", f)
	}
	if q.Alone {
		b.WriteString("Connection: close\r\n")
	}
	if q.Body != "" {
		n := len(q.Body)
		if q.Held {
			n++
		}
		fmt.Fprintf(&b, "Content-Length: %d\r\n", n)
	}
	fmt.Fprintf(&b, "\r\n%s", q.Body)
	if _, err := c.conn.Write(b.Bytes()); err != nil {
		return Outcome{}, err
	}
	var hints []int
	for {
		resp, err := http.ReadResponse(c.r, &http.Request{Method: q.Method})
		if broken(err) {
			return Outcome{Broken: "no answer", Hints: hints}, nil
		}
		if err != nil && strings.HasPrefix(err.Error(), "malformed") {
			return Outcome{Broken: err.Error(), Hints: hints}, nil
		}
		if err != nil {
			return Outcome{}, err
		}
		if resp.StatusCode == http.StatusSwitchingProtocols {
			o := outcome(resp, nil)
			return o, c.Close()
		}
		if resp.StatusCode < 200 {
			hints = append(hints, resp.StatusCode)
			continue
		}
		body, err := io.ReadAll(resp.Body)
		o := outcome(resp, body)
		o.Hints = hints
		if broken(err) {
			o.Broken, err = "broken off", nil
		}
		if err == nil && q.Alone && resp.Body == http.NoBody { // the request's end may be another than that of the answer
			err = c.conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
			_, _ = io.Copy(io.Discard, c.r)
		}
		if err == nil && resp.Close {
			err = c.Close()
		}
		return o, err
	}
}

// broken reports that the peer has ended the connection before the end of an answer.
func broken(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, errGoAway)
}

// do2 speaks HTTP/2.
func (c *Client) do2(q call, number string) (Outcome, error) {
	w := c.wire
	w.last = (w.last + 1) | 1
	fields := []string{":method: " + q.Method, ":scheme: http", ":authority: " + q.Authority, ":path: " + q.Target, "x-case: " + number}
	fields = append(fields, q.Fields...)
	err := w.head(w.last, fields, q.Body == "" && q.Trailers == nil)
	if err == nil && (q.Body != "" || q.Trailers != nil) {
		err = w.data(w.last, q.Body, q.Trailers == nil && !q.Held)
	}
	if err == nil && q.Trailers != nil {
		err = w.head(w.last, q.Trailers, true)
	}
	if err != nil {
		return Outcome{}, err
	}
	m, err := w.next(map[uint32]*stream2{})
	if broken(err) {
		return Outcome{Broken: "no answer"}, nil
	}
	if err != nil {
		return Outcome{}, err
	}
	var o Outcome
	if m.head != nil {
		status, err := strconv.Atoi(m.head.PseudoValue("status"))
		if err != nil {
			return o, err
		}
		o = outcome(&http.Response{StatusCode: status, Header: m.header}, m.body)
		if m.trailer != nil {
			o.Trailers = Fields(m.trailer)
		}
	}
	o.Hints = w.hints
	w.hints = nil
	if m.resetFor != "" && m.resetFor != http2.ErrCodeNo.String() { // after a whole answer it says that the request is not wanted any more
		o.Broken = m.resetFor
	}
	return o, nil
}

// Close ends the connection; the next request makes another.
func (c *Client) Close() error {
	if c.conn == nil {
		return nil
	}
	err := c.conn.Close()
	c.conn = nil
	return err
}

func outcome(resp *http.Response, body []byte) Outcome {
	o := Outcome{Status: resp.StatusCode, Body: string(body)}
	var seen Seen
	if v := resp.Header.Get("X-Seen"); v != "" && json.Unmarshal([]byte(v), &seen) == nil {
		o.Upstream = &seen
		seen.Fields = without(seen.Fields, "x-case", "content-length", "x-request-id")
		resp.Header.Del("X-Seen")
	}
	for _, f := range volatile {
		resp.Header.Del(f)
	}
	o.Fields = Fields(resp.Header)
	return o
}

// WaitLogged adds what Envoy logged of requests, by their number, once it has logged them all. It returns those that it has not
// logged in time.
func (p *Proxy) WaitLogged(t testing.TB, into map[string]*Outcome) []string {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	ctx, stop := context.WithTimeout(t.Context(), answerLimit)
	defer stop()
	for {
		text, err := os.ReadFile(p.access)
		if err == nil && logged(string(text), into) >= len(into) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return unlogged(string(text), into)
		}
	}
}

// unlogged are numbers that the log does not have.
func unlogged(text string, into map[string]*Outcome) (out []string) {
	for number := range into {
		if !strings.Contains(text, number+"\t") {
			out = append(out, number)
		}
	}
	return out
}

func logged(text string, into map[string]*Outcome) (n int) {
	for line := range strings.Lines(text) {
		cols := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(cols) != 4 {
			continue
		}
		for i, c := range cols {
			if c == "-" {
				cols[i] = ""
			}
		}
		if o := into[cols[0]]; o != nil {
			o.Flags, o.Details, o.Route = cols[1], cols[2], cols[3]
			n++
		}
	}
	return n
}

// without drops fields of a list of "name: value".
func without(list []string, names ...string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(f string) bool {
		n, _, _ := strings.Cut(f, ":")
		return slices.Contains(names, n)
	})
}
