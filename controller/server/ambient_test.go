package server

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/securityapi"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/xds"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// ambient is a client as Istio's ztunnel is one, written from the description of the wire alone: it shares no code with
// package client, and reads what it is sent by field numbers.
type ambient struct {
	t        *testing.T
	stream   discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	versions map[string]map[string]string // type -> resource -> version
	content  map[string]map[protowire.Number][]string
	refuse   string // a resource to refuse
}

// The two types of the wire.
const (
	wireAddress = "type.googleapis.com/istio.workload.Address"
	wirePolicy  = "type.googleapis.com/istio.security.Authorization"
)

func ambientNode() *core.Node {
	text := structpb.NewStringValue
	return &core.Node{Id: "ztunnel~10.0.0.9~ztunnel-x.istio-system~istio-system.svc.cluster.local", Metadata: &structpb.Struct{
		Fields: map[string]*structpb.Value{"NAME": text("ztunnel-x"), "NAMESPACE": text("istio-system"), "INSTANCE_IPS": text("10.0.0.9"),
			"NODE_NAME": text("n1"), "CLUSTER_ID": text("Kubernetes")}}}
}

func newAmbient(t *testing.T, conn *grpc.ClientConn) *ambient {
	t.Helper()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer sa-token", "clusterid", "Kubernetes"), 20*time.Second)
	t.Cleanup(cancel)
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return &ambient{t: t, stream: stream, versions: map[string]map[string]string{wireAddress: {}, wirePolicy: {}},
		content: map[string]map[protowire.Number][]string{}}
}

func (a *ambient) send(typ string, edit func(*discovery.DeltaDiscoveryRequest)) {
	a.t.Helper()
	req := &discovery.DeltaDiscoveryRequest{Node: ambientNode(), TypeUrl: typ}
	if edit != nil {
		edit(req)
	}
	if err := a.stream.Send(req); err != nil {
		a.t.Fatal(err)
	}
}

// take receives one response, applies and answers it; it returns "type +names -names".
func (a *ambient) take() string {
	a.t.Helper()
	r, err := a.stream.Recv()
	if err != nil {
		a.t.Fatal(err)
	}
	var in []string
	var bad error
	for _, x := range r.GetResources() {
		if x.GetResource().GetTypeUrl() != r.GetTypeUrl() {
			a.t.Errorf("%s: content of type %q in a response of %s", x.GetName(), x.GetResource().GetTypeUrl(), r.GetTypeUrl())
		}
		if x.GetName() == a.refuse {
			bad = fmt.Errorf("cannot use %s", x.GetName())
			continue
		}
		fields := fieldsOf(a.t, x.GetResource().GetValue())
		if r.GetTypeUrl() == wireAddress {
			fields = a.address(x.GetName(), fields)
		}
		a.content[x.GetName()] = fields
		a.versions[r.GetTypeUrl()][x.GetName()] = x.GetVersion()
		in = append(in, x.GetName())
	}
	for _, n := range r.GetRemovedResources() {
		delete(a.content, n)
		delete(a.versions[r.GetTypeUrl()], n)
	}
	a.send(r.GetTypeUrl(), func(req *discovery.DeltaDiscoveryRequest) {
		req.Node, req.ResponseNonce = nil, r.GetNonce()
		if bad != nil {
			req.ErrorDetail = &rpcstatus.Status{Code: 3, Message: bad.Error()}
		}
	})
	slices.Sort(in)
	out := slices.Sorted(slices.Values(r.GetRemovedResources()))
	return fmt.Sprintf("%s +%v -%v", r.GetTypeUrl()[strings.LastIndexByte(r.GetTypeUrl(), '.')+1:], in, out)
}

// address unwraps the oneof: 1 is a workload, which says its own key in field 20, 2 a service, whose namespace is 2 and whose
// hostname 3.
func (a *ambient) address(name string, outer map[protowire.Number][]string) map[protowire.Number][]string {
	a.t.Helper()
	if len(outer[1]) == 1 {
		w := fieldsOf(a.t, []byte(outer[1][0]))
		if len(w[20]) != 1 || w[20][0] != name || len(w[1]) != 1 || len(w[2]) != 1 {
			a.t.Errorf("workload %s: uid %q, name %q, namespace %q", name, w[20], w[1], w[2])
		}
		return w
	}
	if len(outer[2]) != 1 {
		a.t.Fatalf("address %s: neither workload nor service", name)
	}
	s := fieldsOf(a.t, []byte(outer[2][0]))
	if len(s[2]) != 1 || len(s[3]) != 1 || s[2][0]+"/"+s[3][0] != name {
		a.t.Errorf("service %s: namespace %q, hostname %q", name, s[2], s[3])
	}
	return s
}

// fieldsOf reads a message; numbers are kept in decimal, everything else as it is.
func fieldsOf(t *testing.T, raw []byte) map[protowire.Number][]string {
	t.Helper()
	out := map[protowire.Number][]string{}
	for len(raw) > 0 {
		num, typ, n := protowire.ConsumeTag(raw)
		if n < 0 {
			t.Fatal(protowire.ParseError(n))
		}
		raw = raw[n:]
		switch typ {
		case protowire.BytesType:
			v, n := protowire.ConsumeBytes(raw)
			if n < 0 {
				t.Fatal(protowire.ParseError(n))
			}
			out[num], raw = append(out[num], string(v)), raw[n:]
		case protowire.VarintType:
			v, n := protowire.ConsumeVarint(raw)
			if n < 0 {
				t.Fatal(protowire.ParseError(n))
			}
			out[num], raw = append(out[num], fmt.Sprint(v)), raw[n:]
		default:
			t.Fatalf("field %d has type %d", num, typ)
		}
	}
	return out
}

// ambientWorld is a mesh with a service of two pods and a policy, served as the controller serves it.
func ambientWorld(t *testing.T) (publish func(up []compile.Resource, gone ...compile.Key), dial func() *grpc.ClientConn, clients func() []xds.ClientStatus) {
	t.Helper()
	store := xds.NewStore(xds.StoreConfig{Clock: clock.System()})
	disco := xds.NewServer(xds.Config{Store: store, Clock: clock.System()})
	srv := grpc.NewServer(append(serverOptions(), grpc.StreamInterceptor(xds.StreamAuth(xds.Auth{Log: slog.New(slog.DiscardHandler),
		Accounts: []string{"istio-system/ztunnel"}, BadToken: context.Canceled,
		Authenticate: func(_ context.Context, token string) (xds.Caller, error) {
			if token != "sa-token" {
				return xds.Caller{}, context.Canceled
			}
			return xds.Caller{Account: "istio-system/ztunnel"}, nil
		}})))...)
	disco.Register(srv)
	lis := bufconn.Listen(1 << 20)
	served := make(chan struct{})
	go func() { defer close(served); _ = srv.Serve(lis) }()
	t.Cleanup(func() { srv.Stop(); <-served })
	generation := uint64(0)
	p := publisher{store, slog.New(slog.DiscardHandler)}
	publish = func(up []compile.Resource, gone ...compile.Key) {
		generation++
		p.apply(compile.Delta{Generation: generation, Upserts: up, Removed: gone})
	}
	dial = func() *grpc.ClientConn {
		conn, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	return publish, dial, disco.Clients
}

func ambientPod(name string, ip byte, node string) compile.Resource {
	w := &workloadapi.Workload{Uid: "Kubernetes//Pod/foo/" + name, Name: name, Namespace: "foo", ClusterId: "Kubernetes", Node: node,
		Addresses: [][]byte{{10, 0, 0, ip}}, Services: map[string]*workloadapi.PortList{"foo/web.foo.svc.cluster.local": {}}}
	return compile.Resource{Type: api.AddressType, Name: w.GetUid(), Aliases: []string{fmt.Sprintf("/10.0.0.%d", ip)},
		Message: &workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: w}}}
}

func ambientService() compile.Resource {
	s := &workloadapi.Service{Name: "web", Namespace: "foo", Hostname: "web.foo.svc.cluster.local",
		Addresses: []*workloadapi.NetworkAddress{{Address: []byte{10, 96, 0, 1}}}}
	return compile.Resource{Type: api.AddressType, Name: "foo/web.foo.svc.cluster.local", Aliases: []string{"/10.96.0.1"},
		Message: &workloadapi.Address{Type: &workloadapi.Address_Service{Service: s}}}
}

func ambientPolicy() compile.Resource {
	return compile.Resource{Type: api.AuthorizationType, Name: "foo/deny", Message: &securityapi.Authorization{Name: "deny", Namespace: "foo",
		Action: securityapi.Action_DENY}}
}

const (
	podA = "Kubernetes//Pod/foo/a"
	podB = "Kubernetes//Pod/foo/b"
	web  = "foo/web.foo.svc.cluster.local"
)

func want(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Fatalf("got  %s\nwant %s", got, want)
	}
}

// TestAmbientWildcard: all of both types once, then changes and removals alone, a refusal that is known, and after a
// reconnection nothing that the client has.
func TestAmbientWildcard(t *testing.T) {
	publish, dial, clients := ambientWorld(t)
	publish([]compile.Resource{ambientPod("a", 1, "n1"), ambientPod("b", 2, "n1"), ambientService(), ambientPolicy()})
	conn := dial()
	c := newAmbient(t, conn)
	c.send(wireAddress, nil)
	c.send(wirePolicy, nil)
	got := []string{c.take(), c.take()}
	slices.Sort(got)
	want(t, strings.Join(got, "; "), "Address +["+podA+" "+podB+" "+web+"] -[]; Authorization +[foo/deny] -[]")
	if w := c.content[podA]; w[3][0] != "\x0a\x00\x00\x01" || w[9][0] != "n1" || w[18][0] != "Kubernetes" || len(w[22]) != 1 {
		t.Errorf("workload: %q", w)
	}
	publish([]compile.Resource{ambientPod("a", 1, "n2"), ambientPod("b", 2, "n1")})
	want(t, c.take(), "Address +["+podA+"] -[]")
	publish(nil, compile.Key{Type: api.AddressType, Name: podB}, compile.Key{Type: api.AuthorizationType, Name: "foo/deny"})
	got = []string{c.take(), c.take()}
	slices.Sort(got)
	want(t, strings.Join(got, "; "), "Address +[] -["+podB+"]; Authorization +[] -[foo/deny]")
	c.refuse = podA
	publish([]compile.Resource{ambientPod("a", 1, "n3")})
	want(t, c.take(), "Address +[] -[]")
	publish([]compile.Resource{ambientPod("b", 2, "n1")})
	want(t, c.take(), "Address +["+podB+"] -[]")
	if s := clients(); len(s) != 1 || s[0].Types[wireAddress].Rejected != 1 || !strings.Contains(s[0].Types[wireAddress].LastError, podA) || s[0].NodeName != "n1" {
		t.Errorf("clients: %+v", s)
	}
	// The stream ends; meanwhile the refused pod changes and a service goes.
	if err := c.stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	publish([]compile.Resource{ambientPod("a", 1, "n4")}, compile.Key{Type: api.AddressType, Name: web})
	again := newAmbient(t, conn)
	again.versions = c.versions
	again.send(wireAddress, func(r *discovery.DeltaDiscoveryRequest) {
		r.InitialResourceVersions = maps.Clone(c.versions[wireAddress])
	})
	want(t, again.take(), "Address +["+podA+"] -["+web+"]")
}

// TestAmbientOnDemand: nothing before it is asked for; then by address, by the service's name with its workloads, with what
// changes of them and nothing else; a name that nobody has is answered as removed; what is unsubscribed is silent.
func TestAmbientOnDemand(t *testing.T) {
	publish, dial, _ := ambientWorld(t)
	other := ambientPod("c", 3, "n1")
	other.Message.(*workloadapi.Address).GetWorkload().Services = nil
	publish([]compile.Resource{ambientPod("a", 1, "n1"), ambientPod("b", 2, "n1"), other, ambientService(), ambientPolicy()})
	c := newAmbient(t, dial())
	ask := func(names ...string) func(*discovery.DeltaDiscoveryRequest) {
		return func(r *discovery.DeltaDiscoveryRequest) { r.Node, r.ResourceNamesSubscribe = nil, names }
	}
	c.send(wireAddress, func(r *discovery.DeltaDiscoveryRequest) {
		r.ResourceNamesSubscribe, r.ResourceNamesUnsubscribe = []string{"*"}, []string{"*"}
	})
	want(t, c.take(), "Address +[] -[]")
	c.send(wireAddress, ask("/10.0.0.3"))
	want(t, c.take(), "Address +[Kubernetes//Pod/foo/c] -[]")
	c.send(wireAddress, ask(web))
	want(t, c.take(), "Address +["+podA+" "+podB+" "+web+"] -[]")
	c.send(wireAddress, ask("/10.9.9.9"))
	want(t, c.take(), "Address +[] -[/10.9.9.9]")
	publish([]compile.Resource{ambientPod("d", 4, "n1"), func() compile.Resource { // a new member, and a stranger
		p := ambientPod("e", 5, "n1")
		p.Message.(*workloadapi.Address).GetWorkload().Services = nil
		return p
	}()})
	want(t, c.take(), "Address +[Kubernetes//Pod/foo/d] -[]")
	c.send(wireAddress, func(r *discovery.DeltaDiscoveryRequest) {
		r.Node, r.ResourceNamesUnsubscribe = nil, []string{"/10.0.0.3", "Kubernetes//Pod/foo/c"}
	})
	publish([]compile.Resource{ambientPod("a", 1, "n7"), func() compile.Resource {
		p := ambientPod("c", 3, "n7")
		p.Message.(*workloadapi.Address).GetWorkload().Services = nil
		return p
	}()})
	want(t, c.take(), "Address +["+podA+"] -[]")
	publish(nil, compile.Key{Type: api.AddressType, Name: podB})
	want(t, c.take(), "Address +[] -["+podB+"]")
	if slices.Contains(slices.Collect(maps.Keys(c.content)), "Kubernetes//Pod/foo/e") {
		t.Error("it was sent what it did not ask for")
	}
}
