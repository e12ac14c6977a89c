package xds

import (
	"context"
	"errors"
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// sink is a stream that takes every response.
type sink struct {
	ctx  context.Context
	sent []*discovery.DeltaDiscoveryResponse
}

func (s *sink) Context() context.Context { return s.ctx }

func (s *sink) Send(r *discovery.DeltaDiscoveryResponse) error {
	s.sent = append(s.sent, r)
	return nil
}

func (s *sink) Recv() (*discovery.DeltaDiscoveryRequest, error) { return nil, errors.New("not used") }

// FuzzRequests gives the server two requests of any content, with an acknowledgement of what it sent between them. Whatever
// they say: it does not panic, refuses with InvalidArgument or serves, answers only types that it has, promises no state
// that it does not complete, and keeps no more of the client's words than its bounds say.
func FuzzRequests(f *testing.F) {
	for _, r := range []*discovery.DeltaDiscoveryRequest{
		{TypeUrl: api.AddressType, Node: &core.Node{Id: "n", ClientFeatures: []string{api.DiscoveryParts, api.DiscoveryShort}}},
		{TypeUrl: api.AddressType, ResourceNamesSubscribe: []string{"*"}, ResourceNamesUnsubscribe: []string{"*"}},
		{TypeUrl: api.AddressType, ResourceNamesSubscribe: []string{"/10.0.0.1", uid + "b", "gone"}, InitialResourceVersions: map[string]string{uid + "a": "x", "y": "z"}},
		{TypeUrl: api.AuthorizationType, ResponseNonce: "1-1", ErrorDetail: &rpcstatus.Status{Message: "no"},
			Node: &core.Node{Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{"NODE_NAME": structpb.NewNumberValue(1)}}}},
		{TypeUrl: "x"}, {},
	} {
		raw, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, raw)
	}
	f.Fuzz(func(t *testing.T, one, two []byte) {
		st := NewStore(StoreConfig{Clock: clock.System()})
		s := NewServer(Config{Store: st, Clock: clock.System()})
		apply(t, st, 1, []Resource{wl("a", "10.0.0.1"), wl("b", "10.0.0.2"), authz("p", false)})
		out := &sink{ctx: t.Context()}
		c, err := s.connect(out)
		if err != nil {
			t.Fatal(err)
		}
		defer s.disconnect(c)
		defer c.unguard()
		for i, raw := range [][]byte{one, two} {
			req := &discovery.DeltaDiscoveryRequest{}
			if proto.Unmarshal(raw, req) != nil {
				return
			}
			if err := c.request(req); err != nil {
				if status.Code(err) != codes.InvalidArgument {
					t.Fatalf("refused with %v", err)
				}
				return
			}
			for _, r := range out.sent {
				if err := c.request(&discovery.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()}); err != nil {
					t.Fatalf("an acknowledgement is refused: %v", err)
				}
			}
			if i == 0 {
				apply(t, st, 2, []Resource{wl("b", "10.0.0.3")}, Key{api.AddressType, uid + "a"})
			}
		}
		check := map[string]bool{}
		for _, r := range out.sent {
			if c.subs[r.GetTypeUrl()] == nil || check[r.GetNonce()] {
				t.Fatalf("response %v: not asked for, or its nonce is not its own", r)
			}
			check[r.GetNonce()] = true
		}
		if n := len(out.sent); n > 0 && c.open && !c.waits() {
			t.Fatalf("the last of %d responses promises more, and nothing follows", n)
		}
		if now := c.snapshot(); len(now.ID) > maxName || len(now.NodeName) > maxName || len(now.Types) > len(s.cfg.Types) {
			t.Fatalf("kept of the client: %+v", now)
		}
	})
}
