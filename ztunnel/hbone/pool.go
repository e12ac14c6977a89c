package hbone

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/undermesh/undermesh/ztunnel/clock"
)

// DialFunc makes a connection whose TLS handshake is done. Its ctx has the values of the Connect that caused it, but not
// its end: others may wait for the same connection.
type DialFunc func(ctx context.Context) (net.Conn, error)

// PoolConfig holds a pool's limits. The zero value of every field but Conn.Clock means its default.
type PoolConfig[K comparable] struct {
	// Conn configures each connection. Conn.Clock is required and drives the pool's timers too.
	Conn Config
	// Max is the number of connections a key up to which load alone opens another. Beyond it one is opened when all are
	// full: how many streams there may be is not the pool's to decide; but not while one has no stream and allows none. Default 4.
	Max int
	// GrowStreams is the number of open streams on each connection at which another is opened. Default 32.
	GrowStreams int
	// StreamsPerConn is the number of streams a connection gets at most, whatever the peer allows. Default 100.
	StreamsPerConn int
	// IdleTimeout closes a key's last connection after that time without a stream. Default 5 min.
	IdleTimeout time.Duration
	// ShrinkTimeout closes the others after that time without a stream. Default 30 s.
	ShrinkTimeout time.Duration
	// MaxAge is how long a connection takes streams; those that it has then go on. A firewall, such as a NetworkPolicy, that
	// judges new connections only would otherwise never get to judge what an old tunnel carries. Default 20 s.
	MaxAge time.Duration
	// DialTimeout bounds a DialFunc. Default 10 s.
	DialTimeout time.Duration
	// Departed is called without locks when a peer says that nobody will answer at its address any more (Server.Depart), before
	// anything that was asked of it fails. Optional.
	Departed func(K)
	// GrowBackoff is the pause after an additional connection could not be made. Default 1 s.
	GrowBackoff time.Duration
}

func (c PoolConfig[K]) withDefaults() PoolConfig[K] {
	orDefault(&c.Max, 4)
	orDefault(&c.GrowStreams, 32)
	orDefault(&c.StreamsPerConn, 100)
	orDefault(&c.IdleTimeout, 5*time.Minute)
	orDefault(&c.ShrinkTimeout, min(30*time.Second, c.IdleTimeout))
	orDefault(&c.MaxAge, 20*time.Second)
	orDefault(&c.DialTimeout, 10*time.Second)
	orDefault(&c.GrowBackoff, time.Second)
	return c
}

// Validate reports the first field that is out of range.
func (c PoolConfig[K]) Validate() error {
	if err := c.Conn.Validate(); err != nil {
		return fmt.Errorf("check pool config: Conn: %w", err)
	}
	c = c.withDefaults()
	if c.Max < 1 || c.GrowStreams < 1 || c.StreamsPerConn < c.GrowStreams {
		return fmt.Errorf("check pool config: Max %d, GrowStreams %d, StreamsPerConn %d: want 1 <= Max, 1 <= GrowStreams <= StreamsPerConn",
			c.Max, c.GrowStreams, c.StreamsPerConn)
	}
	if c.IdleTimeout < 0 || c.ShrinkTimeout < 0 || c.MaxAge < 0 || c.DialTimeout < 0 || c.GrowBackoff < 0 {
		return fmt.Errorf("check pool config: a timeout is negative")
	}
	return nil
}

// errDialTimeout is the cause of a dial that took longer than PoolConfig.DialTimeout.
var errDialTimeout = errors.New("dial took too long")

// maxAttempts bounds how often a request is sent again after a retryable error.
const maxAttempts = 3

// Pool keeps tunnel connections by key (source identity, destination identity, source IP, destination). A key has one
// connection; more are opened while each has GrowStreams streams, and closed when idle. Safe for concurrent use.
type Pool[K comparable] struct {
	cfg PoolConfig[K]
	wg  sync.WaitGroup // dials and connections

	mu     sync.Mutex // protects below; before conn.mu
	closed bool
	groups map[K]*group[K]
	conns  map[*pooled]K // all that live, also those that no group has any more
	dials  map[*dialCall]K
}

// group is the connections of one key. Protected by Pool.mu.
type group[K comparable] struct {
	key     K
	conns   []*pooled
	dial    *dialCall     // under way
	changed chan struct{} // closed when a waiter should look again; nil: nobody waits
	noGrow  time.Time     // until then
	retry   clock.Timer   // wakes waiters at noGrow; nil: not armed
}

type pooled struct {
	cl     *Client
	bornAt time.Time
	timer  clock.Timer // runs while the connection is idle
	idleAt time.Time   // when the last stream ended
}

// dialCall is one connection being made.
type dialCall struct {
	cancel context.CancelCauseFunc
	hurry  clock.Timer // of a suspected peer; nil: none. Protected by Pool.mu
	done   chan struct{}
	err    error // valid once done is closed
}

// NewPool makes an empty pool. It panics when cfg is not valid.
func NewPool[K comparable](cfg PoolConfig[K]) *Pool[K] {
	if err := cfg.Validate(); err != nil {
		panic(err)
	}
	cfg = cfg.withDefaults()
	cfg.Conn = cfg.Conn.withDefaults()
	return &Pool[K]{
		cfg: cfg, groups: map[K]*group[K]{}, conns: map[*pooled]K{}, dials: map[*dialCall]K{},
	}
}

// Connect opens a stream on a connection of key, making one with dial when there is none. A request that the peer has
// not seen is sent again on another connection. It returns the errors of Client.Connect, the error of dial, ctx's
// cause, or ErrClosed after Close.
func (p *Pool[K]) Connect(ctx context.Context, key K, dial DialFunc, req Request) (*Stream, error) {
	if err := req.validate(); err != nil {
		return nil, err
	}
	for attempt := 1; ; {
		cl, err := p.acquire(ctx, key, dial)
		if err != nil {
			return nil, fmt.Errorf("connect tunnel for %s: %w", req.Authority, err)
		}
		s, err := cl.Connect(ctx, req)
		switch {
		case err == nil:
			return s, nil
		case errors.Is(err, ErrTooManyStreams): // acquire waits until there is room
			continue
		case !Retryable(err) || attempt == maxAttempts:
			return nil, err
		}
		attempt++
	}
}

// acquire returns a connection that has room, waiting for a dial or for the end of a stream.
func (p *Pool[K]) acquire(ctx context.Context, key K, dial DialFunc) (*Client, error) {
	for {
		p.retireAged(key)
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return nil, ErrClosed
		}
		g := p.groups[key]
		if g == nil {
			g = &group[K]{key: key}
			p.groups[key] = g
		}
		cl := p.pickLocked(ctx, g, dial)
		if cl != nil {
			p.mu.Unlock()
			return cl, nil
		}
		if g.changed == nil {
			g.changed = make(chan struct{})
		}
		changed, call := g.changed, g.dial
		p.mu.Unlock()

		var dialed <-chan struct{}
		if call != nil {
			dialed = call.done
		}
		select {
		case <-changed:
		case <-dialed:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		select {
		case <-dialed: // the end of a dial is a change too: its error counts whichever of the two was seen
			if call.err != nil && !errors.Is(call.err, errRetired) && p.Conns(key) == 0 {
				return nil, call.err
			}
		default:
		}
	}
}

// retireAged drains the connections of key that are older than MaxAge.
func (p *Pool[K]) retireAged(key K) {
	p.mu.Lock()
	var old []*Client
	if g := p.groups[key]; g != nil {
		for _, c := range slices.Clone(g.conns) {
			if p.cfg.Conn.Clock.Now().Sub(c.bornAt) >= p.cfg.MaxAge {
				p.removeLocked(g, c)
				old = append(old, c.cl)
			}
		}
	}
	p.mu.Unlock()
	for _, cl := range old {
		cl.Drain()
	}
}

// pickLocked fills the first connections first, so that the last ones become idle; when all are loaded it takes the least
// loaded and starts another.
func (p *Pool[K]) pickLocked(ctx context.Context, g *group[K], dial DialFunc) *Client {
	var best *Client
	least := p.cfg.StreamsPerConn
	barren := false
	for _, c := range g.conns {
		n := c.cl.Streams()
		if c.cl.free() == 0 || n >= least {
			if n == 0 && c.cl.usable() {
				barren = true
				if until := c.bornAt.Add(p.cfg.GrowBackoff); until.After(g.noGrow) {
					g.noGrow = until
				}
			}
			continue
		}
		if best, least = c.cl, n; n < p.cfg.GrowStreams {
			return best
		}
	}
	// a server that allows no stream at all is not asked beyond Max
	if g.dial != nil || len(g.conns) >= p.cfg.Max && (best != nil || barren) {
		return best
	}
	wait := g.noGrow.Sub(p.cfg.Conn.Clock.Now())
	switch {
	case len(g.conns) == 0 || wait <= 0:
		p.dialLocked(ctx, g, dial)
	case best == nil && g.retry == nil:
		g.retry = p.cfg.Conn.Clock.AfterFunc(wait, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			g.retry = nil
			g.wakeLocked()
		})
	}
	return best
}

// dialLocked makes another connection for g in a goroutine of the pool.
func (p *Pool[K]) dialLocked(ctx context.Context, g *group[K], dial DialFunc) {
	dctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	call := &dialCall{cancel: cancel, done: make(chan struct{})}
	g.dial = call
	p.dials[call] = g.key
	p.wg.Go(func() {
		t := p.cfg.Conn.Clock.AfterFunc(p.cfg.DialTimeout, func() { cancel(errDialTimeout) })
		nc, err := dial(dctx)
		t.Stop()
		if err != nil && dctx.Err() != nil {
			err = fmt.Errorf("%w: %w", context.Cause(dctx), err)
		}
		cancel(nil)
		p.dialed(g, call, nc, err)
	})
}

// dialed puts a new connection into its group.
func (p *Pool[K]) dialed(g *group[K], call *dialCall, nc net.Conn, err error) {
	p.mu.Lock()
	delete(p.dials, call)
	stopTimer(call.hurry)
	g.dial = nil
	switch {
	case p.closed:
		err = ErrClosed
	case p.groups[g.key] != g:
		err = errRetired
	case err == nil:
		p.addLocked(g, nc)
	}
	if err != nil {
		g.noGrow = p.cfg.Conn.Clock.Now().Add(p.cfg.GrowBackoff)
		p.forgetLocked(g)
	}
	call.err = err
	close(call.done)
	g.wakeLocked()
	p.mu.Unlock()
	if err != nil {
		p.cfg.Conn.Log.Debug("tunnel dial ended in error", "err", err)
		if nc != nil {
			_ = nc.Close()
		}
	}
}

func (p *Pool[K]) addLocked(g *group[K], nc net.Conn) {
	now := p.cfg.Conn.Clock.Now()
	c := &pooled{bornAt: now, idleAt: now}
	cfg := p.cfg.Conn
	cfg.onStreamDone = func() { p.update(g, c) }
	if f := p.cfg.Departed; f != nil {
		cfg.onDepart = func() { f(g.key) }
	}
	cfg.onEnd = func() { p.ended(g, c) }
	p.wg.Add(1)
	c.cl = NewClient(nc, cfg) // its hooks wait for p.mu
	p.conns[c] = g.key
	g.conns = append(g.conns, c)
	p.armLocked(g, c)
}

func (g *group[K]) wakeLocked() {
	if g.changed != nil {
		close(g.changed)
		g.changed = nil
	}
}

// forgetLocked drops a group that has nothing.
func (p *Pool[K]) forgetLocked(g *group[K]) {
	if len(g.conns) == 0 && g.dial == nil && p.groups[g.key] == g {
		delete(p.groups, g.key)
	}
}

// update follows the end of a stream or a change of a connection's state. Called without locks.
func (p *Pool[K]) update(g *group[K], c *pooled) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.conns[c]; !ok {
		return
	}
	if !c.cl.usable() {
		p.removeLocked(g, c)
	} else if c.cl.Streams() == 0 {
		c.idleAt = p.cfg.Conn.Clock.Now()
		p.armLocked(g, c)
	}
	g.wakeLocked()
}

// ended is called when a connection is gone.
func (p *Pool[K]) ended(g *group[K], c *pooled) {
	p.mu.Lock()
	delete(p.conns, c)
	p.removeLocked(g, c)
	g.wakeLocked()
	p.mu.Unlock()
	p.wg.Done()
}

// removeLocked takes c out of its group; its streams go on.
func (p *Pool[K]) removeLocked(g *group[K], c *pooled) {
	for i, o := range g.conns {
		if o == c {
			g.conns = append(g.conns[:i:i], g.conns[i+1:]...)
			break
		}
	}
	if c.timer != nil {
		c.timer.Stop()
	}
	p.forgetLocked(g)
}

// limitLocked is how long c may be idle: long for a key's last connection.
func (p *Pool[K]) limitLocked(g *group[K]) time.Duration {
	if len(g.conns) > 1 {
		return p.cfg.ShrinkTimeout
	}
	return p.cfg.IdleTimeout
}

func (p *Pool[K]) armLocked(g *group[K], c *pooled) {
	if c.timer != nil {
		c.timer.Stop()
	}
	c.timer = p.cfg.Conn.Clock.AfterFunc(p.limitLocked(g), func() { p.idle(g, c) })
}

// idle closes a connection that had no stream for its limit.
func (p *Pool[K]) idle(g *group[K], c *pooled) {
	p.mu.Lock()
	_, live := p.conns[c]
	if !live || p.closed || c.cl.Streams() > 0 {
		p.mu.Unlock()
		return // the end of the last stream arms again
	}
	if rest := p.limitLocked(g) - p.cfg.Conn.Clock.Now().Sub(c.idleAt); rest > 0 {
		c.timer.Reset(rest)
		p.mu.Unlock()
		return
	}
	p.removeLocked(g, c)
	p.mu.Unlock()
	c.cl.Drain()
}

// Conns returns the number of connections of key that take streams.
func (p *Pool[K]) Conns(key K) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if g := p.groups[key]; g != nil {
		return len(g.conns)
	}
	return 0
}

// Suspect tells which keys there is reason to think that nobody answers to any more. Their connections, with those that only have
// old streams, ask the peer at once and often whether it lives (Config.SuspectTimeout), and dials that are under way have
// SuspectTimeout left. A peer that lives loses nothing. The connections of other keys are suspected no longer.
func (p *Pool[K]) Suspect(match func(K) bool) {
	p.mu.Lock()
	live := make(map[*Client]bool, len(p.conns))
	for c, key := range p.conns {
		live[c.cl] = match(key)
	}
	for d, key := range p.dials {
		if d.hurry == nil && match(key) {
			d.hurry = p.cfg.Conn.Clock.AfterFunc(p.cfg.Conn.SuspectTimeout, func() { d.cancel(errSuspect) })
		}
	}
	p.mu.Unlock()
	for cl, on := range live {
		cl.c.suspected(on)
	}
}

// errSuspect is the cause of a dial to a peer that is probably gone.
var errSuspect = errors.New("nobody answers, and the peer is about to go or gone")

// Retire drains all connections whose key matches: open streams go on, the next Connect makes a new connection. It is
// for a rotated or revoked identity.
func (p *Pool[K]) Retire(match func(K) bool) {
	p.mu.Lock()
	var old []*Client
	for key, g := range p.groups {
		if !match(key) {
			continue
		}
		delete(p.groups, key)
		for _, c := range g.conns {
			old = append(old, c.cl)
		}
		if g.dial != nil {
			g.dial.cancel(errRetired)
		}
		g.conns = nil
		g.wakeLocked()
	}
	p.mu.Unlock()
	for _, cl := range old {
		cl.Drain()
	}
}

// errRetired is the cause of a dial that Retire ended.
var errRetired = fmt.Errorf("%w: key retired", ErrUnusable)

// Close ends all dials and connections at once and waits for them. Connect returns ErrClosed from then on.
func (p *Pool[K]) Close() {
	p.mu.Lock()
	p.closed = true
	for _, g := range p.groups {
		g.wakeLocked()
	}
	for d := range p.dials {
		d.cancel(ErrClosed)
	}
	open := make([]*Client, 0, len(p.conns))
	for c := range p.conns {
		if c.timer != nil {
			c.timer.Stop()
		}
		open = append(open, c.cl)
	}
	p.mu.Unlock()
	for _, cl := range open {
		cl.c.end(ErrClosed)
	}
	p.wg.Wait()
}
