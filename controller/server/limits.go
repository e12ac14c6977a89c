package server

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
	"google.golang.org/protobuf/proto"

	"github.com/undermesh/undermesh/controller/xds"
)

// What a client may send, in bytes. gRPC reads a unary request before any handler could ask who sends it, and has one bound
// for all methods. So a connection has an allowance until a node's account was proved on it.
const (
	maxRequest   = 32 << 20  // one discovery request: a stream that resumes names all that it holds, 2^18 resources at most
	maxUnary     = 64 << 10  // one certificate request
	allowance    = 512 << 10 // a connection without a discovery stream, beyond what finished requests had
	overhead     = 2 << 10   // of a request: frames and headers
	maxHeader    = 32 << 10  // a token has about 1 KiB
	streamWindow = 64 << 10  // what is buffered of a stream that nobody reads
	connWindow   = 1 << 20   // and of all streams of a connection, in flight
	maxStreams   = 100       // at once on one connection
	readBuffer   = 4 << 10   // of a connection, always: what a node sends is acknowledgements, and TLS buffers a record anyway
	writeBuffer  = 16 << 10  // while something is sent: a TLS record
	handshake    = 20 * time.Second
	idle         = 5 * time.Minute // a connection without a call; who has something to ask connects again
)

// responseBuffers are what responses are encoded into, as powers of two of bytes. gRPC's own pool has nothing between 32 KiB
// and 1 MiB, and a response of a full sync, of which each node has one or two in flight, is about 64 KiB.
var responseBuffers = []uint8{8, 12, 14, 15, 16, 17, 18, 20}

func serverOptions() []grpc.ServerOption {
	opts := []grpc.ServerOption{
		grpc.SharedWriteBuffer(true), // a node that gets nothing now needs none
		grpc.ReadBufferSize(readBuffer),
		grpc.WriteBufferSize(writeBuffer),
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(maxHeader),
		grpc.InitialWindowSize(streamWindow), // set: it does not grow by itself
		grpc.InitialConnWindowSize(connWindow),
		grpc.ConnectionTimeout(handshake),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second, MaxConnectionIdle: idle}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	}
	if pool, err := mem.NewBinaryTieredBufferPool(responseBuffers...); err == nil { // else gRPC's own: larger, not wrong
		opts = append(opts, grpc.ForceServerCodecV2(codec{encoding.GetCodecV2("proto"), pool}))
	}
	return opts
}

// guards refuse calls without a token before anything of them is read, and bound what the others send.
func guards() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.InTapHandle(func(ctx context.Context, info *tap.Info) (context.Context, error) {
			if xds.Bearer(info.Header) == "" {
				return nil, status.Error(codes.Unauthenticated, "no bearer token")
			}
			return ctx, nil
		}),
		grpc.ChainUnaryInterceptor(boundUnary),
	}
}

// boundUnary refuses requests that are too large, and gives back to the connection's allowance what a served one took.
func boundUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	size := 0
	if m, ok := req.(proto.Message); ok {
		size = proto.Size(m)
	}
	if size > maxUnary {
		return nil, status.Errorf(codes.ResourceExhausted, "%s: request of %d bytes, want at most %d", info.FullMethod, size, maxUnary)
	}
	out, err := next(ctx, req)
	if m := meterOf(ctx); err == nil && m != nil {
		m.left.Add(int64(size + overhead))
	}
	return out, err
}

// lift ends the allowance of the connection of a stream that was admitted, and gives it a node's place.
func lift(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if m := meterOf(ss.Context()); m != nil {
		m.lifted.Store(true)
		if m.place != nil {
			m.place.prove()
		}
	}
	return next(srv, ss)
}

// metered are credentials whose connections are meters.
type metered struct {
	credentials.TransportCredentials
}

// ServerHandshake implements credentials.TransportCredentials.
func (c metered) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	m := &meter{Conn: conn}
	m.place, _ = raw.(*boundedConn)
	m.left.Store(allowance)
	return m, meteredInfo{info, m}, nil
}

// Clone implements credentials.TransportCredentials.
func (c metered) Clone() credentials.TransportCredentials {
	return metered{c.TransportCredentials.Clone()}
}

// meteredInfo leads from a call to its connection.
type meteredInfo struct {
	credentials.AuthInfo
	meter *meter
}

func meterOf(ctx context.Context) *meter {
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(meteredInfo); ok {
			return info.meter
		}
	}
	return nil
}

// meter is a connection that ends when it received more than it may.
type meter struct {
	net.Conn
	place  *boundedConn // nil: its listener has no bounds
	left   atomic.Int64 // bytes; may fall below zero
	lifted atomic.Bool
}

// Read implements net.Conn.
func (m *meter) Read(p []byte) (int, error) {
	n, err := m.Conn.Read(p)
	if m.left.Add(-int64(n)) < 0 && !m.lifted.Load() {
		return 0, fmt.Errorf("read from %s: more than %d bytes without a discovery stream or a finished request",
			m.RemoteAddr(), allowance)
	}
	return n, err
}
