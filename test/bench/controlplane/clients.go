package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// maxMessage bounds one response, as the node's client does.
const maxMessage = 200 << 20

type dialFunc = func(context.Context) (*grpc.ClientConn, error)

// dialer makes connections to the controller as nodes do: TLS 1.3 against its root.
func dialer(dir, addr string) (dialFunc, error) {
	pem, err := os.ReadFile(filepath.Join(dir, rootFile))
	if err != nil {
		return nil, fmt.Errorf("read root: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, errors.New("read root: no certificate in it")
	}
	creds := credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: servingName, MinVersion: tls.VersionTLS13})
	return func(context.Context) (*grpc.ClientConn, error) {
		return grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(creds))
	}, nil
}

func nodeID(i int) string {
	return fmt.Sprintf("ztunnel~%s~ztunnel-%d.istio-system~istio-system.svc.cluster.local", addr(200, i+1), i)
}

// newClient is a node's own client: it decodes and keeps everything.
func newClient(i int, dial dialFunc) *client.Client {
	return client.New(client.Config{Dial: dial, NodeID: nodeID(i), NodeName: nodeName(i), Clock: clock.System(),
		Token: func(context.Context) (string, error) { return token, nil }, Rand: rand.New(rand.NewPCG(1, uint64(i)))})
}

// thin speaks the same protocol and keeps nothing but counts, so that a thousand of them fit beside the controller.
type thin struct {
	dial     dialFunc
	id       int
	features []string // that it says it has; default a node's

	synced    chan struct{} // closed when every type was answered
	bytes     atomic.Int64  // of responses, as gRPC messages
	resources atomic.Int64
	responses atomic.Int64
	states    atomic.Int64 // responses that complete a state: pushes
	last      atomic.Int64 // when a workload or service arrived last, Unix nanoseconds
}

func newThin(i int, dial dialFunc) *thin {
	return &thin{dial: dial, id: i, features: []string{api.DiscoveryParts, api.DiscoveryShort}, synced: make(chan struct{})}
}

// raw passes messages on as bytes.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

func (raw) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}

var followed = []string{api.MeshSettingsType, api.WorkloadSettingsType, api.AuthorizationType, api.AddressType}

// run follows the controller until ctx ends; a stream that ends before is an error.
func (t *thin) run(ctx context.Context) error {
	conn, err := t.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token, "clusterid", api.DefaultClusterID)
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true},
		discovery.AggregatedDiscoveryService_DeltaAggregatedResources_FullMethodName, grpc.ForceCodec(raw{}), grpc.MaxCallRecvMsgSize(maxMessage),
		grpc.WaitForReady(true)) // a node tries again too
	if err != nil {
		return fmt.Errorf("open stream: %w", err)
	}
	node := &core.Node{Id: nodeID(t.id), ClientFeatures: t.features}
	for _, typ := range followed {
		if err := send(stream, &discovery.DeltaDiscoveryRequest{Node: node, TypeUrl: typ}); err != nil {
			return err
		}
	}
	waiting := map[string]bool{}
	for _, typ := range followed {
		waiting[typ] = true
	}
	for {
		var msg []byte
		if err := stream.RecvMsg(&msg); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("receive: %w", err)
		}
		r, err := parseResponse(msg)
		if err != nil {
			return err
		}
		t.count(r, len(msg))
		if delete(waiting, r.typ); len(waiting) == 0 && r.whole {
			waiting = map[string]bool{"": true} // once
			close(t.synced)
		}
		if err := send(stream, &discovery.DeltaDiscoveryRequest{TypeUrl: r.typ, ResponseNonce: r.nonce}); err != nil && ctx.Err() == nil {
			return err
		}
	}
}

func (t *thin) count(r response, size int) {
	t.bytes.Add(int64(size))
	t.resources.Add(int64(r.resources))
	t.responses.Add(1)
	if r.whole {
		t.states.Add(1)
	}
	if r.typ == api.AddressType && r.resources > 0 {
		t.last.Store(time.Now().UnixNano())
	}
}

func send(stream grpc.ClientStream, req *discovery.DeltaDiscoveryRequest) error {
	msg, err := proto.Marshal(req)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	if err := stream.SendMsg(&msg); err != nil {
		var rest []byte
		for err = nil; err == nil; { // what was on its way, then why the stream ended
			err = stream.RecvMsg(&rest)
		}
		return fmt.Errorf("send request: %w", err)
	}
	return nil
}

// response is what a thin client reads of one.
type response struct {
	typ, nonce string
	resources  int
	whole      bool
}

// Fields of DeltaDiscoveryResponse.
const (
	fieldResources    = 2
	fieldType         = 4
	fieldNonce        = 5
	fieldControlPlane = 7
)

// parseResponse walks over the fields without decoding the resources.
func parseResponse(msg []byte) (response, error) {
	var r response
	for len(msg) > 0 {
		num, typ, n := protowire.ConsumeTag(msg)
		if n < 0 {
			return r, fmt.Errorf("parse response: %w", protowire.ParseError(n))
		}
		msg = msg[n:]
		if typ != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(num, typ, msg); n < 0 {
				return r, fmt.Errorf("parse response: %w", protowire.ParseError(n))
			}
			msg = msg[n:]
			continue
		}
		value, n := protowire.ConsumeBytes(msg)
		if n < 0 {
			return r, fmt.Errorf("parse response: %w", protowire.ParseError(n))
		}
		msg = msg[n:]
		switch num {
		case fieldResources:
			r.resources++
		case fieldType:
			r.typ = string(value)
		case fieldNonce:
			r.nonce = string(value)
		case fieldControlPlane:
			var cp core.ControlPlane
			if err := proto.Unmarshal(value, &cp); err != nil {
				return r, fmt.Errorf("parse response: control_plane: %w", err)
			}
			r.whole = cp.GetIdentifier() == api.DiscoveryWhole
		}
	}
	return r, nil
}
