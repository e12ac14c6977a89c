package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/ztunnel/hbone"
	"github.com/undermesh/undermesh/ztunnel/telemetry"
)

// upstream is a connection that a pod's requests go over: to a host as the pod, judged, counted and ended as any connection of
// its processes. It outlives the connection that it was opened for.
type upstream struct {
	s       *session
	line    telemetry.Line // as of its opening: what requests over it are recorded with
	conn    net.Conn       // what the engine has; its Close ends the upstream
	opening opening
	stale   atomic.Bool                     // it would be opened otherwise now
	checked atomic.Pointer[client.Snapshot] // whether it would was found out by
	release func()
	unwatch func() bool
	once    sync.Once
}

// opened makes an upstream of a connection that s has opened.
func (s *session) opened(up net.Conn, r *way, release func()) *upstream {
	u := &upstream{s: s, line: s.line, release: release}
	if stream, ok := up.(*hbone.Stream); ok {
		s.stream = stream
	}
	m := metered(up)
	s.meter = func() (received, sent uint64) { // the pod is the client
		sent, received = m.bytes()
		return received, sent
	}
	u.conn = m.conn(u.end)
	u.unwatch = context.AfterFunc(s.ctx, func() { reset(up) })
	u.opening = opening{way: *r}
	u.checked.Store(r.snap)
	if w := r.path.Destination; w != nil {
		u.opening.uid = w.GetUid()
	}
	s.pod.keep(u, true)
	s.count()
	return u
}

// isStale reports that no other request may go over it: it would be opened otherwise now, or by another credential, or the
// destination's node has said that the tunnel is about to end.
func (u *upstream) isStale() bool {
	if c, ok := u.s.pod.caller(); ok && c.Snapshot != u.checked.Load() {
		u.repath(c)
	}
	return u.stale.Load() || u.opening.credential.Superseded() || u.s.stream != nil && u.s.stream.Leaving()
}

// end is called before the connection is closed; only the first call counts.
func (u *upstream) end() {
	u.once.Do(func() {
		u.unwatch()
		u.release()
		u.s.pod.keep(u, false)
		var err error
		if r := refusalOf(context.Cause(u.s.ctx)); r != nil {
			err = r
		}
		u.s.silent = true
		u.s.finish(err)
		u.s.kill(nil)
	})
}

// meter counts what a connection that others copy has carried.
type meter struct {
	c   net.Conn
	raw syscall.RawConn // of a TCP socket, whose counters are the kernel's; nil: bytes are counted on their way

	once           sync.Once
	received, sent atomic.Uint64
}

func metered(c net.Conn) *meter {
	m := &meter{c: c}
	at := c
	if tc, ok := at.(*tls.Conn); ok {
		at = tc.NetConn()
	}
	if t, ok := at.(*hbone.Transport); ok {
		at = t.Conn
	}
	if sc, ok := at.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			m.raw = raw
		}
	}
	return m
}

// bytes returns what was read from the connection, and what was written to it and, of TCP, acknowledged. Safe for concurrent use.
func (m *meter) bytes() (received, sent uint64) {
	if m.raw != nil {
		_ = m.raw.Control(func(fd uintptr) { // one that is closed has been read before
			if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
				m.received.Store(info.Bytes_received)
				m.sent.Store(info.Bytes_acked)
			}
		})
	}
	return m.received.Load(), m.sent.Load()
}

// conn is the connection to be copied; closing is called once, before it is closed.
func (m *meter) conn(closing func()) net.Conn {
	end := func() {
		m.once.Do(func() {
			m.bytes()
			closing()
		})
	}
	if tc, ok := m.c.(*net.TCPConn); ok {
		return &tcpConn{tc, end}
	}
	return &otherConn{m.c, m, end}
}

type tcpConn struct {
	*net.TCPConn
	closing func()
}

// Close implements net.Conn.
func (c *tcpConn) Close() error {
	c.closing()
	return c.TCPConn.Close()
}

// Plain is the socket, for those who let the kernel move bytes to or from it.
func (c *tcpConn) Plain() *net.TCPConn { return c.TCPConn }

type otherConn struct {
	net.Conn
	m       *meter
	closing func()
}

// Read implements net.Conn.
func (c *otherConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.m.raw == nil {
		c.m.received.Add(uint64(max(n, 0)))
	}
	return n, err
}

// Write implements net.Conn.
func (c *otherConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if c.m.raw == nil {
		c.m.sent.Add(uint64(max(n, 0)))
	}
	return n, err
}

// Close implements net.Conn.
func (c *otherConn) Close() error {
	c.closing()
	return c.Conn.Close()
}

// Quiet reports that nothing waits to be read, as far as the connection can tell. Nobody else may read meanwhile.
func (c *otherConn) Quiet() bool {
	if tc, ok := c.Conn.(*tls.Conn); ok {
		t, ok := tc.NetConn().(*hbone.Transport)
		return !ok || t.Quiet(tc)
	}
	q, ok := c.Conn.(interface{ Quiet() bool })
	return !ok || q.Quiet()
}

// Wait returns when Read does not wait, at once where the connection cannot tell; an error is that of Read.
func (c *otherConn) Wait() error {
	if w, ok := c.Conn.(interface{ Wait() error }); ok {
		return w.Wait()
	}
	return nil
}

// Ended tells, without reading, whether the peer has ended its direction, and whether it has left altogether, as far as the connection
// can tell.
func (c *otherConn) Ended() (half, all bool) {
	if e, ok := c.Conn.(interface{ Ended() (half, all bool) }); ok {
		return e.Ended()
	}
	return false, false
}

// CloseWrite passes a half-close on.
func (c *otherConn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}

// SetLinger makes the next Close a reset, where the connection can be reset.
func (c *otherConn) SetLinger(seconds int) error {
	if l, ok := c.Conn.(interface{ SetLinger(int) error }); ok {
		return l.SetLinger(seconds)
	}
	return errors.ErrUnsupported
}
