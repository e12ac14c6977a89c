package envoy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/undermesh/undermesh/ztunnel/http/head"
	"github.com/undermesh/undermesh/ztunnel/http/route"
)

// Sizes of the generated tests; make test-envoy runs these.
const (
	configCount = 60
	callCount   = 300
)

// size is how much is generated, and from which seed.
type size struct {
	seed    uint64
	configs int
}

// sizes are MESH_TEST_SEED and MESH_TEST_CONFIGS; without them the same in every run. The seed "random" is another each time.
func sizes(t *testing.T) size {
	t.Helper()
	number := func(name string, otherwise uint64) uint64 {
		s := os.Getenv(name)
		if s == "" {
			return otherwise
		}
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return n
	}
	s := size{configs: int(number("MESH_TEST_CONFIGS", configCount))}
	if os.Getenv("MESH_TEST_SEED") == "random" {
		s.seed = rand.Uint64N(1 << 32)
	} else {
		s.seed = number("MESH_TEST_SEED", 1)
	}
	return s
}

// TestEnvoyAgreesOnRoutes: Envoy and ztunnel/http/route make the same of generated requests under generated configurations:
// which route and cluster, what the upstream sees, what is answered.
func TestEnvoyAgreesOnRoutes(t *testing.T) {
	Require(t)
	s := sizes(t)
	t.Logf("MESH_TEST_SEED=%d", s.seed)
	g := newGenerator(s.seed)
	configs := g.configs(t, s.configs)
	_, clusters := Echo(t, clusterNames, echoCluster)
	p := StartProxy(t, 1, configs, clusters)
	differ, kinds := 0, map[string]int{}
	for _, c := range configs {
		ours, err := route.CompileConfig(c)
		if err != nil {
			t.Fatal(err)
		}
		client := &Client{addr: p.addrs[c.GetName()]}
		for i := range callCount {
			q := g.call()
			got, err := client.Do(q, fmt.Sprintf("%s-%d", c.GetName(), i))
			if err != nil {
				t.Fatalf("%s: %v", q, err)
			}
			kinds[kind(got)]++
			if want := candidates(ours, q, client.local, client.addr, got); !slices.ContainsFunc(want, func(o Outcome) bool { return settle(o).String() == settle(got).String() }) {
				if differ++; differ <= 12 {
					t.Errorf("%s %s\n%s\n%s", c.GetName(), q, nearest(got, want), configOf(ours, c, q))
				}
			}
		}
		_ = client.Close()
	}
	if differ > 0 {
		t.Errorf("%d differ", differ)
	}
	t.Log(kinds)
}

// configs makes n configurations.
func (g *generator) configs(t *testing.T, n int) []*routev3.RouteConfiguration {
	t.Helper()
	var out []*routev3.RouteConfiguration
	for i := range n {
		c, err := g.config(fmt.Sprintf("c%d", i))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, c)
	}
	return out
}

// calls makes n requests.
func (g *generator) calls(n int) []call {
	var out []call
	for range n {
		out = append(out, g.call())
	}
	return out
}

// difference lists the lines that only one of two has.
func difference(envoy, we Outcome) string {
	a, b := strings.Split(envoy.String(), "\n"), strings.Split(we.String(), "\n")
	var out []string
	for _, l := range a {
		if !slices.Contains(b, l) {
			out = append(out, "Envoy: "+l)
		}
	}
	for _, l := range b {
		if !slices.Contains(a, l) {
			out = append(out, "we:    "+l)
		}
	}
	return strings.Join(out, "\n")
}

// nearest is the smallest difference to what we may do.
func nearest(got Outcome, want []Outcome) string {
	best := ""
	for _, w := range want {
		if d := difference(got, w); best == "" || len(d) < len(best) {
			best = d
		}
	}
	return best
}

// configOf prints the route that we take.
func configOf(ours *route.Config, c *routev3.RouteConfiguration, q call) string {
	req, in := incoming(q), &route.Input{}
	v := ours.Find(req.Authority, in)
	if v == nil {
		return "no virtual host"
	}
	r := v.Match(req, in)
	if r == nil {
		return "no route of " + v.Name
	}
	top := proto.CloneOf(c)
	top.VirtualHosts = nil
	for _, vh := range c.GetVirtualHosts() {
		for _, one := range vh.GetRoutes() {
			if one.GetName() == r.Name {
				vh = proto.CloneOf(vh)
				vh.Routes = []*routev3.Route{one}
				top.VirtualHosts = append(top.VirtualHosts, vh)
			}
		}
	}
	text, err := protojson.Marshal(top)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

func kind(o Outcome) string {
	switch {
	case o.Upstream != nil:
		return "forwarded"
	case o.Body == "fault filter abort":
		return "aborted"
	}
	return strconv.Itoa(o.Status)
}

// candidates is what may become of a request: chance takes part in some configurations.
func candidates(c *route.Config, q call, from, to netip.AddrPort, got Outcome) []Outcome {
	var out []Outcome
	for random := range uint64(2000) {
		for _, other := range []uint64{0, 600_000} {
			o := predict(c, q, from, to, random, other)
			if settle(o).String() == settle(got).String() {
				return []Outcome{o}
			}
			if len(out) < 400 {
				out = append(out, o)
			}
		}
	}
	return out
}

// incoming is the head of a request as the connection manager hands it on.
func incoming(q call) *head.Request {
	var r head.Request
	r.Reset(nil)
	r.Method, r.Scheme, r.Major, r.Minor = []byte(q.Method), []byte("http"), 1, 1
	r.Authority, r.Path = []byte(q.Authority), []byte(q.Target)
	if q.Authority == "" {
		r.Authority = []byte{}
	}
	for _, f := range q.Fields {
		n, v, _ := strings.Cut(f, ": ")
		r.Add(head.IDOf([]byte(n)), n, []byte(v))
	}
	r.Set(head.XForwardedProto, "x-forwarded-proto", []byte("http"))
	r.AddString(head.XEnvoyInternal, "true")
	return &r
}

// settle leaves out what depends on time when a request was tried again: what is left of its timeout; and that Envoy then adds
// the cookie that it makes once for each try.
func settle(o Outcome) Outcome {
	if o.Upstream == nil {
		return o
	}
	up := settleSeen(*o.Upstream)
	o.Upstream, o.Fields = &up, slices.Clone(o.Fields)
	for i, f := range o.Fields {
		if strings.HasPrefix(f, "set-cookie: ") {
			o.Fields[i] = "set-cookie: " + strings.Join(slices.Compact(strings.Split(f[len("set-cookie: "):], ",")), ",")
		}
	}
	return o
}

// settleSeen rounds what time has changed, and joins lines as Envoy does.
func settleSeen(s Seen) Seen {
	s.Fields = slices.Clone(s.Fields)
	for i, f := range s.Fields {
		if n, v, _ := strings.Cut(f, ": "); n == "x-envoy-expected-rq-timeout-ms" || n == "grpc-timeout" {
			ms, _ := strconv.Atoi(strings.TrimSuffix(v, "m"))
			s.Fields[i] = fmt.Sprintf("%s: %d", n, (ms+499)/500*500)
		} else if n == "user-agent" { // a line without a value is none to Envoy, which joins them (docs/envoy.md, 7)
			lines := slices.DeleteFunc(strings.Split(v, ","), func(line string) bool { return line == "" })
			s.Fields[i] = n + ": " + strings.Join(lines, ",")
		}
	}
	return s
}

// predict is what the engine makes of a request with this package, in the engine's order.
func predict(c *route.Config, q call, from, to netip.AddrPort, random, other uint64) Outcome {
	req := incoming(q)
	in := &route.Input{Random: random, Source: from, Direct: from, Destination: to, Start: time.Unix(0, 0), Request: req}
	grpc := route.IsGRPC(req)
	var r *route.Route
	if v := c.Find(req.Authority, in); v != nil {
		r = v.Match(req, in)
	}
	if r == nil {
		return local(q, grpc, 404, -1, "", func(*head.Response) {})
	}
	var target route.Target
	if r.Forward != nil {
		target = r.Pick(req, in)
		if slices.Contains(clusterNames, target.Cluster) {
			in.Cluster = target.Cluster
		}
	}
	var origin []byte
	answer := func(resp *head.Response) {
		in.Local = true
		r.Response(resp, target, in)
		r.CORS.Response(resp, origin)
	}
	if r.Fault.Applies(req, target, in) {
		if r.Fault.Delay(other) > 0 {
			in.Flags = "DI"
		}
		if a := r.Fault.Abort(other); a != nil {
			in.Flags = strings.TrimPrefix(in.Flags+",FI", ",")
			return local(q, grpc, a.Status, a.GRPC, "fault filter abort", func(resp *head.Response) {
				if r.Forward != nil {
					answer(resp)
				}
			})
		}
	}
	var resp head.Response
	resp.Reset(nil)
	var answered bool
	if origin, answered = r.CORS.Request(req, 0, in, &resp); answered {
		return seenBy(&resp, "", nil)
	}
	switch {
	case r.Direct != nil:
		return local(q, grpc, r.Direct.Status, -1, string(r.Direct.Body), func(resp *head.Response) {
			if l := r.Direct.Location(nil, req, in); l != nil {
				resp.Add(head.Location, "location", l)
			}
			answer(resp)
		})
	case r.Redirect != nil:
		return local(q, grpc, r.Redirect.Status, -1, "", func(resp *head.Response) {
			resp.Add(head.Location, "location", r.Redirect.Location(nil, req, in))
			answer(resp)
		})
	case !slices.Contains(clusterNames, target.Cluster):
		in.Flags = "NC"
		return local(q, grpc, r.Forward.NotFound, -1, "", answer)
	}
	return forwarded(r, q, req, target, in, origin)
}

func forwarded(r *route.Route, q call, req *head.Request, target route.Target, in *route.Input, origin []byte) Outcome {
	var resp head.Response
	resp.Reset(nil)
	r.Timeouts(req, false)
	status := 200
	if v, ok := req.Find("x-echo-status"); ok {
		status, _ = strconv.Atoi(string(v))
	}
	asked, _ := req.Find("x-echo-field")
	say := strings.Split(string(asked), "; ")
	resp.Status = status
	for _, f := range say {
		if n, v, ok := strings.Cut(f, ": "); ok {
			resp.Add(head.IDOf([]byte(n)), n, []byte(v))
		}
	}
	resp.AddString(head.ContentType, "text/echo")
	if r.Operation != "" && r.Propagate {
		req.Set(head.XEnvoyDecoratorOperation, "x-envoy-decorator-operation", []byte(r.Operation))
	}
	r.Request(req, target, in)
	retry := r.Retry(req, in)
	var cookies []string
	if target.Cluster == "ring" {
		cookies = r.Hash(req, in).Cookie
	}
	r.HostPicked(req, in)
	in.Attempts = 1
	for ; retry.Head(&resp, in); in.Attempts++ {
		if retry.Left == 0 {
			in.Flags = "URX"
			break
		}
		retry.BackOff(0)
	}
	if r.Host.AttemptCount {
		req.Set(head.XEnvoyAttemptCount, "x-envoy-attempt-count", []byte(strconv.Itoa(in.Attempts)))
	}
	up := &Seen{Cluster: target.Cluster, Method: string(req.Method), Target: string(req.Path), Authority: string(req.Authority),
		Body: q.Body, Fields: fieldsOf(&req.Fields)}
	if r.Host.AttemptCountOnResponse {
		resp.AddString(head.XEnvoyAttemptCount, strconv.Itoa(in.Attempts))
	}
	r.Response(&resp, target, in)
	for _, c := range cookies {
		resp.AddString(head.SetCookie, c)
	}
	r.CORS.Response(&resp, origin)
	body := target.Cluster
	if q.Method == "HEAD" {
		body = ""
	}
	return seenBy(&resp, body, up)
}

// local makes an answer of the proxy itself; then changes its head before it is that of gRPC.
func local(q call, grpc bool, status, code int, body string, then func(*head.Response)) Outcome {
	var resp head.Response
	resp.Reset(nil)
	resp.Status = status
	then(&resp)
	if body != "" && !resp.Has(head.ContentType) {
		resp.AddString(head.ContentType, "text/plain")
	}
	if grpc {
		if code < 0 {
			code = codeOf(resp.Status)
		}
		resp.Status = 200
		resp.Set(head.ContentType, "content-type", []byte("application/grpc"))
		resp.AddString(head.GRPCStatus, strconv.Itoa(code))
		if body != "" && q.Method != "HEAD" {
			resp.AddString(head.GRPCMessage, strings.ReplaceAll(body, "\n", "%0A"))
		}
	}
	if grpc || q.Method == "HEAD" {
		body = ""
	}
	return seenBy(&resp, body, nil)
}

// codeOf is the status of gRPC that means one of HTTP.
func codeOf(status int) int {
	switch status {
	case 400:
		return 13
	case 401:
		return 16
	case 403:
		return 7
	case 404:
		return 12
	case 429, 502, 503, 504:
		return 14
	}
	return 2
}

func seenBy(resp *head.Response, body string, up *Seen) Outcome {
	o := Outcome{Status: resp.Status, Body: body, Upstream: up, Fields: fieldsOf(&resp.Fields, volatile...)}
	return o
}

// fieldsOf is Fields of a head, but for some.
func fieldsOf(f *head.Fields, but ...string) []string {
	values := map[string][]string{}
	for i := range f.Len() {
		if _, n, v, ok := f.At(i); ok {
			key := strings.ToLower(string(n))
			values[key] = append(values[key], string(v))
		}
	}
	out := []string{}
	for n, list := range values {
		by := ","
		if n == "cookie" {
			by = "; "
		}
		if !slices.Contains(but, n) {
			out = append(out, n+": "+strings.Join(list, by))
		}
	}
	slices.Sort(out)
	return out
}
