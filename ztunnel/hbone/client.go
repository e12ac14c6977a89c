package hbone

import (
	"context"
	"fmt"
	"net"
	"strconv"

	"github.com/undermesh/undermesh/ztunnel/http/frame"
)

// Client is one tunnel connection of the side that opens streams. Safe for concurrent use.
type Client struct{ c *conn }

// NewClient takes over conn, a connection whose TLS handshake is done (usually *tls.Conn over a Transport), and starts
// its goroutines: they end with Close, with Drain once the last stream is gone, or when the peer ends the connection;
// Done tells. It panics when cfg is not valid.
func NewClient(conn net.Conn, cfg Config) *Client {
	c := newConn(conn, cfg.mustDefaults(), true)
	c.onHeaders = c.gotResponse
	c.start()
	return &Client{c}
}

// Connect opens a stream. It returns after the peer's 2xx, a *StatusError for any other final status, ctx's cause when
// ctx ends first, and an error that Retryable accepts when the peer has not seen the request.
func (cl *Client) Connect(ctx context.Context, req Request) (*Stream, error) {
	if err := req.validate(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("open tunnel stream to %s: %w", req.Authority, context.Cause(ctx))
	}
	s, early, err := cl.c.open(req)
	if err != nil {
		return nil, fmt.Errorf("open tunnel stream to %s: %w", req.Authority, err)
	}
	select {
	case <-s.ready:
	case <-ctx.Done():
		s.Reset(frame.CodeCancel)
		return nil, fmt.Errorf("open tunnel stream to %s: %w", req.Authority, context.Cause(ctx))
	}
	err = s.verdict()
	if err == nil && early < len(req.First) {
		_, err = s.Write(req.First[early:])
	}
	if err != nil {
		s.Reset(frame.CodeCancel)
		return nil, fmt.Errorf("open tunnel stream to %s: %w", req.Authority, err)
	}
	return s, nil
}

// verdict is nil for a 2xx. The stream is ready.
func (s *Stream) verdict() error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.resp == nil {
		return s.err
	}
	code, _ := strconv.Atoi(s.resp.status) // checked by gotResponse
	if code/100 == 2 {
		return nil
	}
	return &StatusError{Code: code, Header: s.resp.header}
}

// open sends HEADERS and as much of First as the peer takes, and returns how much that was.
func (c *conn) open(req Request) (*Stream, int, error) {
	w := &c.w
	w.mu.Lock() // until the block is queued: stream ids and the compression state go out in order
	defer w.mu.Unlock()
	if err := w.awaitRoomLocked(nil); err != nil {
		return nil, 0, fmt.Errorf("%w: %w", ErrUnusable, err)
	}
	c.mu.Lock()
	if err := c.mayOpenLocked(req); err != nil {
		c.mu.Unlock()
		return nil, 0, err
	}
	s := c.newStream(c.nextID, req.Authority)
	s.ready = make(chan struct{})
	c.nextID += 2
	c.streams[s.id] = s
	size := c.peer.maxFrame
	early := int(max(0, min(int64(len(req.First)), s.sendWin, c.sendWin, int64(size))))
	s.sendWin -= int64(early)
	c.sendWin -= int64(early)
	c.mu.Unlock()

	block := c.hdr.encode([]HeaderField{{":method", "CONNECT"}, {":authority", req.Authority}}, req.Header)
	w.q = frame.AppendBlock(w.q, block, size, 0, s.id)
	if early > 0 {
		w.q = append(frame.Append(w.q, early, frame.Data, 0, s.id), req.First[:early]...)
		s.sent.Add(uint64(early))
	}
	// an error of the write ends the connection and with it the stream: the caller hears of it by ready
	_ = w.flushOwnLocked()
	return s, early, nil
}

func (c *conn) mayOpenLocked(req Request) error {
	switch {
	case c.dead != nil:
		return fmt.Errorf("%w: %w", ErrUnusable, c.dead)
	case c.goneAway:
		return ErrGoAway
	case c.draining:
		return fmt.Errorf("%w: draining", ErrUnusable)
	case c.nextID > frame.MaxStreamID:
		c.draining = true
		return fmt.Errorf("%w: out of stream ids", ErrUnusable)
	case len(c.streams) >= c.peer.maxStreams:
		return ErrTooManyStreams
	}
	if limit := c.peer.maxHeaderList; limit >= 0 {
		size := int64(len(":method"+"CONNECT"+":authority") + len(req.Authority) + 64)
		for _, f := range req.Header {
			size += int64(len(f.Name) + len(f.Value) + 32)
		}
		if size > limit {
			return fmt.Errorf("check CONNECT header: %d bytes exceed the peer's limit of %d", size, limit)
		}
	}
	return nil
}

// gotResponse handles HEADERS on the client side.
func (c *conn) gotResponse(h frame.Header, m *message) error {
	s, err := c.lookup(h)
	if err != nil || s == nil {
		return err
	}
	code, bad := strconv.Atoi(m.status)
	c.mu.Lock()
	again, half := s.resp != nil, s.remoteDone
	c.mu.Unlock()
	switch {
	case half:
		s.Reset(frame.CodeStreamClosed)
		return nil
	case again, m.malformed != "", m.tooLarge, bad != nil, len(m.status) != 3, code < 100,
		m.method != "" || m.authority != "" || m.scheme || m.path || m.protocol, code < 200 && h.Has(frame.EndStream):
		// no trailers and no second response exist in a CONNECT
		s.Reset(frame.CodeProtocol)
		return nil
	case code < 200:
		return nil
	}
	c.mu.Lock()
	if s.err == nil {
		s.resp = m
		close(s.ready)
	}
	c.mu.Unlock()
	if h.Has(frame.EndStream) {
		s.deliverEOF()
	}
	return nil
}

// Streams returns the number of open streams.
func (cl *Client) Streams() int {
	cl.c.mu.Lock()
	defer cl.c.mu.Unlock()
	return len(cl.c.streams)
}

// free returns how many streams may still be opened; 0 when the connection takes none any more.
func (cl *Client) free() int {
	c := cl.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead != nil || c.draining || c.goneAway {
		return 0
	}
	return max(0, c.peer.maxStreams-len(c.streams))
}

// usable reports whether new streams may be opened, now or when others have ended.
func (cl *Client) usable() bool {
	c := cl.c
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dead == nil && !c.draining && !c.goneAway
}

// Drain refuses new streams and closes the connection when the last open one has ended. It does not wait; see Done.
func (cl *Client) Drain() { cl.c.drain() }

// Close ends the connection and its streams at once and waits for its goroutines.
func (cl *Client) Close() error {
	cl.c.close()
	return nil
}

// Done is closed when the connection has ended and its goroutines are gone.
func (cl *Client) Done() <-chan struct{} { return cl.c.done }

// Err returns why the connection ended, nil while it lives, ErrClosed after Close or Drain.
func (cl *Client) Err() error { return cl.c.err() }
