package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/ca"
)

// discoveryStream is a client's end.
type discoveryStream = discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient

func (c *controller) stream(root, token string) discoveryStream {
	c.t.Helper()
	st, err := discovery.NewAggregatedDiscoveryServiceClient(c.conn(root)).DeltaAggregatedResources(withToken(c.t, token), grpc.MaxCallRecvMsgSize(64<<20))
	if err != nil {
		c.t.Fatal(err)
	}
	return st
}

// handshake makes a connection of TLS and no more.
func (c *controller) handshake(root string) (net.Conn, error) {
	raw, err := os.ReadFile(root)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(raw)
	d := tls.Dialer{Config: &tls.Config{RootCAs: pool, ServerName: "istiod.istio-system.svc", NextProtos: []string{"h2"}}}
	return d.DialContext(c.t.Context(), "tcp", c.addr("xds"))
}

// expiring takes any token for a node's until it ends.
type expiring struct{ at time.Time }

func (e expiring) Authenticate(context.Context, string) (ca.Caller, error) {
	return ca.Caller{Namespace: "istio-system", ServiceAccount: "ztunnel", Node: "n1", Expires: e.at}, nil
}

// metric is the value of a series of the controller's page.
func (c *controller) metric(series string) string {
	c.t.Helper()
	_, page := c.get("monitor", "/metrics")
	for line := range strings.Lines(page) {
		if rest, ok := strings.CutPrefix(line, series+" "); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

// end sends requests until the stream ends, and returns why.
func end(st discoveryStream, requests ...*discovery.DeltaDiscoveryRequest) error {
	for _, r := range requests {
		if st.Send(r) != nil {
			break
		}
	}
	for {
		if _, err := st.Recv(); err != nil {
			return err
		}
	}
}

// TestStreamsOfANodeAreBounded: a node's token opens as many streams as it may and no more, however many connections it
// has; another node is not concerned, and a stream that ends makes room.
func TestStreamsOfANodeAreBounded(t *testing.T) {
	c, root := startEmpty(t)
	const most = 8
	open := func(token string) (discoveryStream, error) {
		st := c.stream(root, token)
		if err := st.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: api.AddressType}); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		_, err := st.Recv()
		return st, err
	}
	var held []discoveryStream
	for range most {
		st, err := open("ztunnel-1")
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, st)
	}
	for range 3 {
		if _, err := open("ztunnel-1"); grpcstatus.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "istio-system/ztunnel at n1 has 8 discovery streams") {
			t.Fatal(err)
		}
	}
	if got := c.metric(`undermesh_xds_refused_total{reason="streams"}`); got != "3" {
		t.Errorf("refused streams: %q", got)
	}
	if _, err := open("ztunnel-2"); err != nil {
		t.Errorf("another node: %v", err)
	}
	if err := held[0].CloseSend(); err != nil {
		t.Fatal(err)
	}
	c.eventually("there is room again", func() bool { _, err := open("ztunnel-1"); return err == nil })
}

// TestHostileClient: what a node's proxy may not say ends its stream with a status that names the field.
func TestHostileClient(t *testing.T) {
	c, root := startEmpty(t)
	long := strings.Repeat("x", 1<<20)
	names := make([]string, 1<<15)
	for i := range names {
		names[i] = fmt.Sprintf("%s%d", long[:1000], i)
	}
	subscribe := func(r *discovery.DeltaDiscoveryRequest) *discovery.DeltaDiscoveryRequest {
		r.TypeUrl = api.AddressType
		return r
	}
	node := &core.Node{Id: "z", Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{"NODE_NAME": structpb.NewStringValue("n2")}}}
	for name, x := range map[string]struct {
		requests []*discovery.DeltaDiscoveryRequest
		code     codes.Code
		says     string
	}{
		"a name of 1 MB": {[]*discovery.DeltaDiscoveryRequest{subscribe(&discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{long}})},
			codes.InvalidArgument, "resource_names_subscribe"},
		"a version of 1 MB": {[]*discovery.DeltaDiscoveryRequest{subscribe(&discovery.DeltaDiscoveryRequest{InitialResourceVersions: map[string]string{"a": long}})},
			codes.InvalidArgument, "initial_resource_versions"},
		"a nonce of 1 MB": {[]*discovery.DeltaDiscoveryRequest{subscribe(&discovery.DeltaDiscoveryRequest{ResponseNonce: long})}, codes.InvalidArgument, "response_nonce"},
		"a request of 64 MB": {[]*discovery.DeltaDiscoveryRequest{subscribe(&discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{strings.Repeat(long, 64)}})},
			codes.ResourceExhausted, "larger than max"},
		"64 MB of names": {[]*discovery.DeltaDiscoveryRequest{subscribe(&discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: names[:1<<14]}),
			subscribe(&discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: names[1<<14:]}),
			{TypeUrl: api.AuthorizationType, ResourceNamesSubscribe: names}}, codes.InvalidArgument, "bytes of names, over all types and streams"},
		"types that are none": {slices.Repeat([]*discovery.DeltaDiscoveryRequest{{TypeUrl: "x" + long}}, 65), codes.InvalidArgument, "the type is not served"},
		"the name of another node": {[]*discovery.DeltaDiscoveryRequest{subscribe(&discovery.DeltaDiscoveryRequest{Node: node})}, codes.PermissionDenied,
			`metadata.NODE_NAME is "n2", and the token is of node "n1"`},
	} {
		t.Run(name, func(t *testing.T) {
			err := end(c.stream(root, "ztunnel-1"), x.requests...)
			if grpcstatus.Code(err) != x.code || !strings.Contains(err.Error(), x.says) || len(err.Error()) > 3000 {
				t.Errorf("%.3000v", err)
			}
		})
	}
	if got := c.metric(`undermesh_xds_refused_total{reason="request"}`); got != "6" {
		t.Errorf("refused requests: %q", got)
	}
}

// TestRefusalsCountOnce: a client may refuse each response once. Refusals of what was not sent, or was answered, are not
// heard: they would fill the log.
func TestRefusalsCountOnce(t *testing.T) {
	c, root := startEmpty(t)
	st := c.stream(root, "ztunnel-1")
	send := func(r *discovery.DeltaDiscoveryRequest) {
		t.Helper()
		r.TypeUrl = api.MeshSettingsType
		if err := st.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	send(&discovery.DeltaDiscoveryRequest{})
	r, err := st.Recv()
	if err != nil {
		t.Fatal(err)
	}
	no := &rpcstatus.Status{Message: "no"}
	for range 1000 {
		for _, nonce := range []string{r.GetNonce(), "1-999", "made up", ""} {
			send(&discovery.DeltaDiscoveryRequest{ResponseNonce: nonce, ErrorDetail: no})
		}
	}
	send(&discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"nowhere"}}) // is answered after all of these
	if _, err := st.Recv(); err != nil {
		t.Fatal(err)
	}
	if got := c.metric(`pilot_total_xds_rejects{type="` + api.MeshSettingsType + `"}`); got != "1" {
		t.Errorf("refusals: %q", got)
	}
}

// TestConnectionsAreBounded: one address has so many connections and no more; those that end make room.
func TestConnectionsAreBounded(t *testing.T) {
	c, root := startEmpty(t)
	dialed := map[int]io.Closer{}
	dial := func(i int) bool {
		conn, err := c.handshake(root)
		if err == nil {
			dialed[i] = conn
		}
		return err == nil
	}
	for i := range discoveryDoor.each {
		if !dial(i) {
			t.Fatalf("connection %d is refused", i)
		}
	}
	if dial(-1) {
		t.Error("one too many is accepted")
	}
	if got := c.metric(`undermesh_controller_connections_refused_total{door="discovery",reason="address"}`); got == "" || got == "0" {
		t.Errorf("refused connections: %q", got)
	}
	for conn := range maps.Values(dialed) {
		conn.Close()
	}
	c.eventually("there is room again", func() bool { return dial(0) })
	dialed[0].Close()
}

// TestStreamEndsWithItsToken: who was a node may not follow the mesh for ever.
func TestStreamEndsWithItsToken(t *testing.T) {
	base := time.Now()
	c, root := startWith(t, expiring{base.Add(2 * time.Second)})
	st := c.stream(root, "any")
	err := end(st, &discovery.DeltaDiscoveryRequest{TypeUrl: api.AddressType})
	if grpcstatus.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "has ended") || time.Since(base) < 2*time.Second {
		t.Errorf("after %s: %v", time.Since(base), err)
	}
	if got := c.metric(`undermesh_xds_refused_total{reason="expired"}`); got != "1" {
		t.Errorf("ended streams: %q", got)
	}
	t.Run("control: a token that lasts", func(t *testing.T) {
		c, root := startWith(t, expiring{base.Add(time.Hour)})
		st := c.stream(root, "any")
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		ended := make(chan error, 1)
		go func() { ended <- end(st, &discovery.DeltaDiscoveryRequest{TypeUrl: api.AddressType}) }()
		select {
		case err := <-ended:
			t.Error(err)
		case <-ctx.Done():
		}
	})
}
