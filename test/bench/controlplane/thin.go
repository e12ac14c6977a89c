package main

import (
	"context"
	"fmt"
	"hash/maphash"
	"strconv"
	"sync/atomic"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/client"
)

// thin asks for what a node's client asks for and acknowledges as it does, but keeps only counts and a digest, so that a
// thousand of them fit beside the controller.
type thin struct {
	dial     dialFunc
	id       int
	seed     maphash.Seed
	types    []string // that it subscribes to; default a node's
	features []string // that it says it has; default a node's

	synced     chan struct{} // closed when every type was answered
	bytes      atomic.Int64  // of responses, as gRPC messages
	resources  atomic.Int64
	responses  atomic.Int64
	states     atomic.Int64  // responses that complete a state: pushes
	last       atomic.Int64  // when the last of them came, Unix nanoseconds
	generation atomic.Uint64 // that it was of
	digest     atomic.Uint64 // sum of the resources' hashes: whatever their order and the responses they came in
}

func newThin(i int, seed maphash.Seed, dial dialFunc) *thin {
	return &thin{dial: dial, id: i, seed: seed, types: client.Types(), features: []string{api.DiscoveryParts, api.DiscoveryShort}, synced: make(chan struct{})}
}

// reader passes requests on as bytes, and reads of a response what a thin client wants of it, in place.
type reader struct{ seed maphash.Seed }

func (reader) Name() string { return "proto" }

func (reader) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (r reader) Unmarshal(data mem.BufferSlice, v any) (err error) {
	buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buf.Free()
	*v.(*response), err = parseResponse(buf.ReadOnlyData(), r.seed)
	return err
}

// run follows the controller until ctx ends; a stream that ends before is an error.
func (t *thin) run(ctx context.Context) error {
	conn, err := t.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+tokenOf(t.id), "clusterid", api.DefaultClusterID)
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true},
		discovery.AggregatedDiscoveryService_DeltaAggregatedResources_FullMethodName, grpc.ForceCodecV2(reader{t.seed}),
		grpc.MaxCallRecvMsgSize(maxMessage), grpc.WaitForReady(true)) // a node tries again too
	if err != nil {
		return fmt.Errorf("open stream: %w", err)
	}
	node := &core.Node{Id: nodeID(t.id), ClientFeatures: t.features, Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
		"NODE_NAME": structpb.NewStringValue(nodeName(t.id))}}}
	waiting := map[string]bool{}
	for _, typ := range t.types {
		if err := send(stream, &discovery.DeltaDiscoveryRequest{Node: node, TypeUrl: typ}); err != nil {
			return err
		}
		waiting[typ] = true
	}
	for {
		var r response
		if err := stream.RecvMsg(&r); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("receive: %w", err)
		}
		t.count(r)
		if delete(waiting, r.typ); len(waiting) == 0 && r.whole {
			waiting = map[string]bool{"": true} // once
			close(t.synced)
		}
		if err := send(stream, &discovery.DeltaDiscoveryRequest{TypeUrl: r.typ, ResponseNonce: r.nonce}); err != nil && ctx.Err() == nil {
			return err
		}
	}
}

func (t *thin) count(r response) {
	t.bytes.Add(int64(r.size))
	t.resources.Add(int64(r.resources))
	t.responses.Add(1)
	t.digest.Add(r.digest)
	if r.whole {
		t.states.Add(1)
		t.last.Store(time.Now().UnixNano())
		t.generation.Store(r.generation) // after the time: who reads the one may read the other
	}
}

func send(stream grpc.ClientStream, req *discovery.DeltaDiscoveryRequest) error {
	msg, err := proto.Marshal(req)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	if err := stream.SendMsg(&msg); err != nil {
		var rest response
		for err = nil; err == nil; { // what was on its way, then why the stream ended
			err = stream.RecvMsg(&rest)
		}
		return fmt.Errorf("send request: %w", err)
	}
	return nil
}

// response is what a thin client reads of one.
type response struct {
	typ, nonce      string
	size, resources int
	digest          uint64
	generation      uint64 // 0: it says none
	whole           bool
}

// Fields of DeltaDiscoveryResponse.
const (
	fieldVersion      = 1
	fieldResources    = 2
	fieldType         = 4
	fieldNonce        = 5
	fieldControlPlane = 7
)

// parseResponse walks over the fields without decoding the resources.
func parseResponse(msg []byte, seed maphash.Seed) (response, error) {
	r := response{size: len(msg)}
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
		case fieldVersion:
			r.generation, _ = strconv.ParseUint(string(value), 10, 64)
		case fieldResources:
			r.resources++
			r.digest += maphash.Bytes(seed, value)
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
