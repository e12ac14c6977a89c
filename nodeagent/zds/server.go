package zds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/undermesh/undermesh/nodeagent/zds/zdsapi"
)

// Peer is a connected ztunnel.
type Peer struct {
	PID     int // in the agent's pid namespace; 0 when ztunnel is in one that the agent cannot see
	Version zdsapi.Version
}

// ServerConfig configures the agent's side. The callbacks are called from the connections' goroutines: they must be
// safe for concurrent use.
type ServerConfig struct {
	Path string       // of the socket; replaced if it exists, mode 0600
	Log  *slog.Logger // required
	// Snapshot returns every pod that a ztunnel has to serve; the files stay the caller's. Called after the peer's held
	// listeners were offered. Required.
	Snapshot func() []Workload
	// OnHeld receives the listeners that a ztunnel kept for an agent that was restarted, and owns them. nil closes them.
	OnHeld func(uid string, l Listeners)
	// OnConnect runs after the hello and before the first pod is handed over; an error ends the connection. Optional.
	OnConnect func(ctx context.Context, p Peer) error
	// OnAck reports the answer to each pod of a snapshot; nil error means that this ztunnel serves it. Optional.
	OnAck func(uid string, err error)
	// OnDisconnect runs once for each peer for which OnConnect returned nil. Optional.
	OnDisconnect func(p Peer)
	// AckTimeout bounds the wait for one acknowledgement and for the hello; default 15 s. A peer that is late is dropped.
	AckTimeout time.Duration
}

// Server hands pods to ztunnel. Safe for concurrent use.
type Server struct {
	cfg ServerConfig

	mu    sync.Mutex // protects below
	conns []*serverConn
}

// NewServer returns a server; Run starts it.
func NewServer(cfg ServerConfig) *Server {
	if cfg.AckTimeout == 0 {
		cfg.AckTimeout = 15 * time.Second
	}
	return &Server{cfg: cfg}
}

// Run serves until ctx ends, then closes every connection and returns nil. An error means that it could not listen.
func (s *Server) Run(ctx context.Context) error {
	ln, err := listen(s.cfg.Path)
	if err != nil {
		return err
	}
	var g errgroup.Group
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	for {
		c, err := ln.AcceptUnix()
		if err != nil {
			_ = ln.Close()
			_ = g.Wait()
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept on %s: %w", s.cfg.Path, err)
		}
		g.Go(func() error {
			if err := s.serve(ctx, c); err != nil && ctx.Err() == nil && !errors.Is(err, io.EOF) {
				s.cfg.Log.Warn("ztunnel connection ended", "err", err)
			}
			return nil
		})
	}
}

// listen makes the socket under a temporary name, so that nobody connects before its mode is set.
func listen(path string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("create directory of the ztunnel socket: %w", err)
	}
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove stale socket: %w", err)
	}
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: tmp, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("listen for ztunnel: %w", err)
	}
	ln.SetUnlinkOnClose(false) // a successor may own the path by then; a dead socket refuses connections
	if err := errors.Join(os.Chmod(tmp, 0o600), os.Rename(tmp, path)); err != nil {
		_ = ln.Close()
		return nil, fmt.Errorf("publish ztunnel socket: %w", err)
	}
	return ln, nil
}

// Connected reports whether a ztunnel is there to take new pods.
func (s *Server) Connected() bool { return s.latest() != nil }

// latest returns the newest connection: it gets the new pods, so that an old ztunnel drains during an upgrade.
func (s *Server) latest() *serverConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) == 0 {
		return nil
	}
	return s.conns[len(s.conns)-1]
}

// Add hands w to the newest ztunnel and waits for its acknowledgement. The files may be closed when it returns.
// Returns ErrNoZtunnel if none is connected or it left meanwhile, *AckError if it refused.
func (s *Server) Add(ctx context.Context, w Workload) error {
	c := s.latest()
	if c == nil {
		return fmt.Errorf("add pod %s: %w", w.UID, ErrNoZtunnel)
	}
	data, files, err := encodeAdd(c.peer.Version, w)
	if err != nil {
		return err
	}
	fds, err := duplicateAll(files)
	if err != nil {
		return fmt.Errorf("add pod %s: %w", w.UID, err)
	}
	return c.submit(ctx, &request{uid: w.UID, data: data, fds: fds})
}

// Del tells every ztunnel to drop the pod and waits for all of them; deleted says that its processes have ended and its network is
// about to go. No connected ztunnel is no error: there is none that could serve it.
func (s *Server) Del(ctx context.Context, uid string, deleted bool) error {
	data, err := encode(zdsapi.Version_V1, &zdsapi.WorkloadRequest{
		Payload: &zdsapi.WorkloadRequest_Del{Del: &zdsapi.DelWorkload{Uid: uid, Deleted: deleted}}})
	if err != nil {
		return fmt.Errorf("delete pod %s: %w", uid, err)
	}
	s.mu.Lock()
	conns := slices.Clone(s.conns)
	s.mu.Unlock()
	var errs []error
	for _, c := range conns {
		if err := c.submit(ctx, &request{uid: uid, data: data}); err != nil && !errors.Is(err, ErrNoZtunnel) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// request is one message on its way. fds belong to the connection once it took the request.
type request struct {
	uid  string
	data []byte
	fds  []int
	done chan error // buffered
}

type serverConn struct {
	s         *Server
	p         *packetConn
	peer      Peer
	requests  chan *request
	responses chan string   // one acknowledgement each: its error text
	gone      chan struct{} // closed when the connection ended
}

// submit queues r and waits for its answer. It takes r.fds.
func (c *serverConn) submit(ctx context.Context, r *request) error {
	r.done = make(chan error, 1)
	select {
	case c.requests <- r:
	case <-c.gone:
		closeAll(r.fds)
		return fmt.Errorf("pod %s: %w", r.uid, ErrNoZtunnel)
	case <-ctx.Done():
		closeAll(r.fds)
		return fmt.Errorf("pod %s: wait for ztunnel: %w", r.uid, ctx.Err())
	}
	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("pod %s: wait for ztunnel's acknowledgement: %w", r.uid, ctx.Err())
	}
}

// serve runs one connection to its end.
func (s *Server) serve(ctx context.Context, uc *net.UnixConn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = uc.Close() })
	defer func() { stop(); _ = uc.Close() }()
	c := &serverConn{s: s, p: newPacketConn(uc, MaxMessageV1), requests: make(chan *request),
		responses: make(chan string), gone: make(chan struct{})}
	defer close(c.gone)
	if err := c.hello(uc); err != nil {
		return err
	}
	if s.cfg.OnConnect != nil {
		if err := s.cfg.OnConnect(ctx, c.peer); err != nil {
			return fmt.Errorf("admit ztunnel pid %d: %w", c.peer.PID, err)
		}
	}
	s.cfg.Log.Info("ztunnel connected", "pid", c.peer.PID, "version", c.peer.Version.String())
	var g errgroup.Group
	g.Go(func() error { defer cancel(); return c.readAcks(ctx) })
	s.mu.Lock()
	s.conns = append(s.conns, c)
	s.mu.Unlock()
	err := c.run(ctx)
	s.mu.Lock()
	s.conns = slices.DeleteFunc(s.conns, func(o *serverConn) bool { return o == c })
	s.mu.Unlock()
	cancel()
	_ = uc.Close()
	if rerr := g.Wait(); err == nil || errors.Is(err, context.Canceled) {
		err = rerr
	}
	s.cfg.Log.Info("ztunnel disconnected", "pid", c.peer.PID)
	if s.cfg.OnDisconnect != nil {
		s.cfg.OnDisconnect(c.peer)
	}
	return err
}

// hello checks who connects and takes the listeners that it kept.
func (c *serverConn) hello(uc *net.UnixConn) error {
	pid, err := peerPID(uc)
	if err != nil {
		return err
	}
	if err := uc.SetDeadline(time.Now().Add(c.s.cfg.AckTimeout)); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	data, fds, err := c.p.read()
	if err != nil {
		return fmt.Errorf("hello: %w", err)
	}
	m, err := decodeHello(data, len(fds))
	if err != nil {
		closeAll(fds)
		return err
	}
	c.peer = Peer{PID: pid, Version: m.GetVersion()}
	c.p.setLimit(bound(c.peer.Version))
	for range m.GetHeld() {
		data, fds, err := c.p.read()
		if err != nil {
			return fmt.Errorf("held: %w", err)
		}
		held, err := decodeHeld(data, len(fds))
		if err != nil {
			closeAll(fds)
			return err
		}
		l := takeListeners(held.GetUid(), held.GetListeners(), fds)
		if c.s.cfg.OnHeld == nil {
			l.Close()
			continue
		}
		c.s.cfg.OnHeld(held.GetUid(), l)
	}
	if err := uc.SetDeadline(time.Time{}); err != nil {
		return fmt.Errorf("clear deadline: %w", err)
	}
	return nil
}

// peerPID returns the peer's process; it refuses users other than root and the agent's own.
func peerPID(uc *net.UnixConn) (int, error) {
	rc, err := uc.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("read peer credentials: %w", err)
	}
	var cred *unix.Ucred
	var cerr error
	if err := rc.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil || cerr != nil {
		return 0, fmt.Errorf("read peer credentials: %w", errors.Join(err, cerr))
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return 0, fmt.Errorf("peer pid %d has uid %d, want root: %w", cred.Pid, cred.Uid, errProtocol)
	}
	return int(cred.Pid), nil
}

// readAcks feeds responses until the peer leaves.
func (c *serverConn) readAcks(ctx context.Context) error {
	for {
		data, fds, err := c.p.read()
		if err != nil {
			return err
		}
		text, err := decodeResponse(data, len(fds))
		if err != nil {
			closeAll(fds)
			return errors.Join(err, errProtocol)
		}
		select {
		case c.responses <- text:
		case <-ctx.Done():
			return nil
		}
	}
}

// run sends the snapshot, then what is submitted.
func (c *serverConn) run(ctx context.Context) error {
	if err := c.snapshot(ctx); err != nil {
		return err
	}
	for {
		select {
		case r := <-c.requests:
			err := c.roundTrip(ctx, r)
			closeAll(r.fds)
			var refused *AckError
			if err != nil && !errors.As(err, &refused) {
				r.done <- fmt.Errorf("pod %s: %w: %w", r.uid, ErrNoZtunnel, err)
				return err
			}
			r.done <- err
		case <-c.responses:
			return fmt.Errorf("unasked acknowledgement: %w", errProtocol)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// snapshot sends every pod and then the mark after which ztunnel drops what was not listed.
func (c *serverConn) snapshot(ctx context.Context) error {
	for _, w := range c.s.cfg.Snapshot() {
		err := c.add(ctx, w)
		if c.s.cfg.OnAck != nil {
			c.s.cfg.OnAck(w.UID, err)
		}
		var refused *AckError
		switch {
		case errors.As(err, &refused):
			c.s.cfg.Log.Warn("ztunnel refused a pod of the snapshot", "uid", w.UID, "err", err)
		case errors.Is(err, os.ErrClosed):
			// The pod was deleted after the snapshot was taken.
		case err != nil:
			return err
		}
	}
	data, err := encode(c.peer.Version, &zdsapi.WorkloadRequest{
		Payload: &zdsapi.WorkloadRequest_SnapshotSent{SnapshotSent: &zdsapi.SnapshotSent{}}})
	if err != nil {
		return err
	}
	return c.roundTrip(ctx, &request{data: data})
}

func (c *serverConn) add(ctx context.Context, w Workload) error {
	data, files, err := encodeAdd(c.peer.Version, w)
	if err != nil {
		return &AckError{UID: w.UID, Message: err.Error()} // this pod cannot be sent; the others can
	}
	fds, err := duplicateAll(files)
	if err != nil {
		return err
	}
	defer closeAll(fds)
	return c.roundTrip(ctx, &request{uid: w.UID, data: data, fds: fds})
}

// roundTrip sends one message and waits for its acknowledgement. Every error but *AckError ends the connection.
func (c *serverConn) roundTrip(ctx context.Context, r *request) error {
	if err := c.p.write(r.data, r.fds); err != nil {
		return err
	}
	timeout := time.NewTimer(c.s.cfg.AckTimeout)
	defer timeout.Stop()
	select {
	case text := <-c.responses:
		if text != "" {
			return &AckError{UID: r.uid, Message: text}
		}
		return nil
	case <-timeout.C:
		return fmt.Errorf("no acknowledgement within %s", c.s.cfg.AckTimeout)
	case <-ctx.Done():
		return ctx.Err()
	}
}
