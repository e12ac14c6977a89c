package zds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/undermesh/undermesh/nodeagent/zds/zdsapi"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// Handler is ztunnel's side of the protocol. Its methods are called one after the other from Client.Run.
type Handler interface {
	// Add takes a pod and owns its files, also when it returns an error. A known UID is an update: the pod may come with
	// no, the same or new listeners. The error is reported to the agent.
	Add(ctx context.Context, w Workload) error
	// Del drops a pod. deleted: its processes have ended, and its network is about to go; else it leaves the mesh, and its
	// connections go on. It does not wait for their end. An unknown UID is no error.
	Del(ctx context.Context, uid string, deleted bool) error
	// Keep says that a pod belongs to the snapshot although its Add is not repeated.
	Keep(uid string)
	// SnapshotSent says that the snapshot is complete: pods that were not in it since the connection began are gone.
	SnapshotSent(ctx context.Context) error
	// Held returns the pods whose listeners are offered to an agent that may have lost them. The files stay the
	// handler's. Called at the start of each connection of version 2, before any Add: the handler begins a new snapshot.
	Held() []Workload
}

// ClientConfig configures ztunnel's side.
type ClientConfig struct {
	Path    string         // of the agent's socket
	Version zdsapi.Version // default V2
	Log     *slog.Logger   // required
	Clock   clock.Clock    // default the system's
	Handler Handler        // required
	// Dial connects to the agent; default a SOCK_SEQPACKET connection to Path.
	Dial func(ctx context.Context) (*net.UnixConn, error)
	// RetryMin and RetryMax bound the pause before a new connection; defaults 50 ms and 2 s.
	RetryMin, RetryMax time.Duration
}

// Client receives pods from the agent.
type Client struct{ cfg ClientConfig }

// NewClient returns a client; Run starts it.
func NewClient(cfg ClientConfig) *Client {
	if cfg.Version == zdsapi.Version_NOT_USED {
		cfg.Version = zdsapi.Version_V2
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.System()
	}
	if cfg.Dial == nil {
		cfg.Dial = func(ctx context.Context) (*net.UnixConn, error) { return dial(ctx, cfg.Path) }
	}
	if cfg.RetryMin == 0 {
		cfg.RetryMin = 50 * time.Millisecond
	}
	if cfg.RetryMax == 0 {
		cfg.RetryMax = 2 * time.Second
	}
	return &Client{cfg: cfg}
}

func dial(ctx context.Context, path string) (*net.UnixConn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unixpacket", path)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

// Run connects, serves and reconnects with back-off until ctx ends; it then returns nil. The pods outlive a connection:
// a restarted agent sends its snapshot again.
func (c *Client) Run(ctx context.Context) error {
	pause := c.cfg.RetryMin
	for ctx.Err() == nil {
		served, err := c.connect(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if served {
			pause = c.cfg.RetryMin
			if errors.Is(err, io.EOF) {
				c.cfg.Log.Info("agent closed the connection")
			} else {
				c.cfg.Log.Warn("agent connection ended", "err", err)
			}
		} else {
			c.cfg.Log.Debug("agent not reachable", "path", c.cfg.Path, "err", err)
		}
		clock.Pause(ctx, c.cfg.Clock, pause)
		pause = min(2*pause, c.cfg.RetryMax)
	}
	return nil
}

// connect serves one connection; served says whether the agent took the hello.
func (c *Client) connect(ctx context.Context) (served bool, err error) {
	uc, err := c.cfg.Dial(ctx)
	if err != nil {
		return false, fmt.Errorf("connect to agent: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = uc.Close() })
	defer func() { stop(); _ = uc.Close() }()
	p := newPacketConn(uc, bound(c.cfg.Version))
	if err := c.hello(p); err != nil {
		return false, err
	}
	for {
		data, fds, err := p.read()
		if err != nil {
			return served, err
		}
		if !served {
			c.cfg.Log.Info("agent connected", "version", c.cfg.Version.String())
			served = true
		}
		ack := &zdsapi.Ack{}
		if herr := c.handle(ctx, data, fds); herr != nil {
			c.cfg.Log.Warn("request of the agent refused", "err", herr)
			ack.Error = truncate(herr.Error(), MaxMessageV1/2)
		}
		out, err := encode(c.cfg.Version, &zdsapi.WorkloadResponse{Payload: &zdsapi.WorkloadResponse_Ack{Ack: ack}})
		if err != nil {
			return served, err
		}
		if err := p.write(out, nil); err != nil {
			return served, err
		}
	}
}

// truncate shortens s to n bytes and keeps it valid UTF-8, which protobuf demands.
func truncate(s string, n int) string {
	out := make([]byte, 0, n)
	for _, r := range s { // a broken byte becomes U+FFFD
		if len(out)+4 > n {
			break
		}
		out = append(out, string(r)...)
	}
	return string(out)
}

func (c *Client) hello(p *packetConn) error {
	var held []Workload
	if c.cfg.Version == zdsapi.Version_V2 {
		held = c.cfg.Handler.Held()
	}
	data, err := encode(zdsapi.Version_V1, &zdsapi.ZdsHello{Version: c.cfg.Version, Held: uint32(len(held))})
	if err != nil {
		return err
	}
	if err := p.write(data, nil); err != nil {
		return err
	}
	for _, w := range held {
		if err := c.offer(p, w); err != nil {
			return err
		}
	}
	return nil
}

// offer sends one Held message. Listeners that were closed meanwhile are left out: the count is announced already.
func (c *Client) offer(p *packetConn, w Workload) error {
	kinds := w.Listeners.kinds()
	files := make([]*os.File, len(kinds))
	for i, k := range kinds {
		files[i] = w.Listeners[k]
	}
	fds, err := duplicateAll(files)
	if err != nil {
		c.cfg.Log.Warn("listeners of a pod not offered to the agent", "uid", w.UID, "err", err)
		kinds = nil
	}
	defer closeAll(fds)
	data, err := encode(c.cfg.Version, &zdsapi.Held{Uid: w.UID, Listeners: kinds})
	if err != nil {
		return err
	}
	return p.write(data, fds)
}

// handle gives one request to the handler. Descriptors that the request may not carry are closed.
func (c *Client) handle(ctx context.Context, data []byte, fds []int) error {
	m, err := decodeRequest(c.cfg.Version, data, len(fds))
	if err != nil {
		closeAll(fds)
		return err
	}
	switch p := m.GetPayload().(type) {
	case *zdsapi.WorkloadRequest_Add:
		addrs, err := addresses(p.Add)
		if err != nil {
			closeAll(fds)
			return err
		}
		uid := p.Add.GetUid()
		return c.cfg.Handler.Add(ctx, Workload{UID: uid, Info: p.Add.GetWorkloadInfo(), Probes: p.Add.GetProbes(), Addrs: addrs,
			Netns:     os.NewFile(uintptr(fds[0]), "netns of pod "+uid),
			Listeners: takeListeners(uid, p.Add.GetListeners(), fds[1:])})
	case *zdsapi.WorkloadRequest_Keep:
		c.cfg.Handler.Keep(p.Keep.GetUid())
		return nil
	case *zdsapi.WorkloadRequest_Del:
		return c.cfg.Handler.Del(ctx, p.Del.GetUid(), p.Del.GetDeleted())
	default:
		return c.cfg.Handler.SnapshotSent(ctx)
	}
}
