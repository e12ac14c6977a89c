package xds

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

var errBad = errors.New("bad token")

// TestClientAndServer runs the real client against the real server over gRPC, through an outage.
func TestClientAndServer(t *testing.T) {
	st, s := newServer(t)
	var mu sync.Mutex
	var lis *bufconn.Listener
	var srv *grpc.Server
	up := func() {
		mu.Lock()
		defer mu.Unlock()
		lis = bufconn.Listen(1 << 20)
		srv = grpc.NewServer(grpc.StreamInterceptor(StreamAuth(Auth{Log: s.cfg.Log, BadToken: errBad, Accounts: []string{"foo/ztunnel"},
			Authenticate: func(_ context.Context, token string) (Caller, error) {
				switch token {
				case "good":
					return Caller{Account: "foo/ztunnel"}, nil
				case "pod":
					return Caller{Account: "foo/sleep"}, nil
				case "unknown":
					return Caller{}, errors.New("API server away")
				}
				return Caller{}, fmt.Errorf("review: %w", errBad)
			}})))
		s.Register(srv)
		l, g := lis, srv
		go func() { _ = g.Serve(l) }()
	}
	up()
	dial := func(context.Context) (*grpc.ClientConn, error) {
		mu.Lock()
		l := lis
		mu.Unlock()
		return grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	}
	cfg := client.Config{
		Dial: dial, NodeID: "ztunnel~10.0.0.1~zt.foo~foo.svc.cluster.local", NodeName: "node1", Clock: clock.System(),
		Token: func(context.Context) (string, error) { return "good", nil }, Rand: rand.New(rand.NewPCG(1, 1)), MinBackoff: time.Millisecond,
	}
	c := client.New(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	changed, stop := c.Watch()
	defer stop()
	go func() { ended <- c.Run(ctx) }()
	until := func(what string, ok func(*client.Snapshot) bool) *client.Snapshot {
		t.Helper()
		deadline := time.After(20 * time.Second)
		for {
			if snap := c.Snapshot(); snap != nil && ok(snap) {
				return snap
			}
			select {
			case <-changed:
			case <-deadline:
				t.Fatalf("timeout: %s", what)
			}
		}
	}
	apply(t, st, 5, []Resource{wl("a", "10.0.0.1"), wl("b", "10.0.0.2"), authz("p", false),
		{Type: api.MeshSettingsType, Name: api.MeshSettingsName, Message: &settings.MeshSettings{TrustDomain: "td"}}})
	snap := until("the first snapshot", func(s *client.Snapshot) bool { return s.Generation() == 5 })
	if w := snap.WorkloadByUID(uid + "a"); w == nil || w.Identity.TrustDomain != "td" || snap.Policy("foo", "p") == nil {
		t.Fatalf("incomplete: %v", w)
	}
	if cl := s.Clients(); len(cl) != 1 || cl[0].Caller != "foo/ztunnel" || cl[0].NodeName != "node1" {
		t.Errorf("clients %+v", cl)
	}
	mu.Lock()
	srv.Stop()
	mu.Unlock()
	apply(t, st, 6, []Resource{wl("b", "10.0.0.9")}, Key{api.AddressType, uid + "a"})
	if c.Snapshot() != snap {
		t.Error("the outage took the snapshot away")
	}
	up()
	snap = until("the snapshot after the outage", func(s *client.Snapshot) bool { return s.WorkloadByUID(uid+"a") == nil })
	if w := snap.WorkloadByIP("", netip.MustParseAddr("10.0.0.9")); w == nil || w.GetName() != "b" {
		t.Errorf("the change during the outage did not arrive: %v", w)
	}
	// A resource that does not parse is refused by name, the one beside it counts.
	bad := wl("b", "10.0.0.9")
	bad.Message = proto.CloneOf(bad.Message.(*workloadapi.Address))
	bad.Message.(*workloadapi.Address).GetWorkload().Addresses[0] = []byte{1}
	apply(t, st, 7, []Resource{bad, wl("c", "10.0.0.3")})
	snap = until("the good half", func(s *client.Snapshot) bool { return s.WorkloadByUID(uid+"c") != nil })
	if w := snap.WorkloadByUID(uid + "b"); w == nil || len(w.Addrs) != 1 {
		t.Errorf("the previous state is gone: %v", w)
	}
	apply(t, st, 8, []Resource{wl("d", "10.0.0.4")})
	until("life after the NACK", func(s *client.Snapshot) bool { return s.WorkloadByUID(uid+"d") != nil })
	if ty := s.Clients()[0].Types[api.AddressType]; ty.Rejected != 1 || !strings.Contains(ty.LastError, uid+"b") || !strings.Contains(ty.LastError, "addresses[0]") {
		t.Errorf("NACK %+v", ty)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
	conn, err := dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for token, want := range map[string]codes.Code{
		"": codes.Unauthenticated, "guess": codes.Unauthenticated, "unknown": codes.Unavailable, "pod": codes.PermissionDenied,
	} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token)
		str, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := str.Recv(); status.Code(err) != want || want == codes.PermissionDenied && !strings.Contains(err.Error(), "foo/sleep") {
			t.Errorf("token %q: %v", token, err)
		}
	}
	mu.Lock()
	srv.Stop()
	mu.Unlock()
}
