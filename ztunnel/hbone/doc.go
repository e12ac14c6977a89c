// Package hbone is the mesh's tunnel: TCP streams carried as HTTP/2 CONNECT requests (RFC 9113 §8.5) over mutual
// TLS 1.3, on a multiplexer of its own. It is the only HTTP/2 tunnel in the tree. It speaks to itself, to Istio's
// ztunnel and to any HTTP/2 implementation that knows CONNECT.
//
// The package owns the wire: frames, header blocks, flow control, keepalive, GOAWAY, and the copying between a stream
// and the application's socket. It does not own TLS, identities, policy or dialing: a caller hands in a connection whose
// handshake is done, and decides in the Handler who may connect to what.
//
// # Client side
//
//	tr := hbone.NewTransport(rawTCP)              // optional but much faster: coalesces TLS records
//	tc := tls.Client(tr, cfg)                     // ALPN "h2"; DynamicRecordSizingDisabled: true
//	err := tc.HandshakeContext(ctx)
//	c := hbone.NewClient(tc, hbone.Config{Clock: clk})
//	s, err := c.Connect(ctx, hbone.Request{Authority: "10.0.0.7:80", Header: hdr})
//	stats, err := hbone.Relay(ctx, s, app)        // closes both
//	c.Drain(); <-c.Done()                         // or c.Close()
//
// A Pool keeps the connections: one a key, more under load, fewer when idle.
//
// # Server side
//
//	err := hbone.Serve(ctx, tc, cfg, func(ctx context.Context, r *hbone.ServerRequest) {
//		up, err := dial(r.Authority)
//		if err != nil {
//			r.Reject(503, nil)
//			return
//		}
//		s, err := r.Accept(nil)
//		if err != nil {
//			up.Close()
//			return
//		}
//		hbone.Relay(ctx, s, up)
//	})
//
// # Invariants
//
//   - Memory: what a connection holds for readers that are slow is at most Config.MaxBuffered, a stream's part at most
//     its window; an idle stream holds no buffer.
//   - A slow reader of one stream stops that stream only, as long as MaxBuffered is not spent.
//   - No goroutine outlives Client.Close, Serve or Relay.
//   - Nothing here reads the machine's clock or dials.
package hbone
