package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// ErrOverflow is why a request may not go to a host: too many are waiting or under way (503, flag UO).
var ErrOverflow = errors.New("circuit breaker overflow")

// Pool is the connections of one source workload to one host, for requests of one priority and one version of HTTP. It decides, by
// Envoy's rules, which request uses which connection, when one is dialled, who waits and who is refused. It dials nothing: the
// request that is to have a new connection is told to make one.
//
// A request that finds no connection counts as pending until it has one. When the limit of connections is reached it waits for
// one of this pool; but a pool may always have one, so that a request that waits here is served here. All methods are safe for
// concurrent use.
type Pool[C any] struct {
	host     *Host
	breakers *Breakers
	close    func(C)

	mu       sync.Mutex // protects below and the connections
	conns    int        // that are there or are being dialled
	dialling int
	streams  int // requests at a time that a connection being dialled is expected to carry
	ready    []*PoolConn[C]
	busy     map[*PoolConn[C]]struct{} // with requests and no place for more, or retired
	waiting  []*waiter[C]
	tick     uint32
	draining bool
}

// PoolConn is a connection in a pool.
type PoolConn[C any] struct {
	Conn C

	pool    *Pool[C]
	active  int // requests
	limit   int // of requests at a time
	left    int // requests that may still begin; < 0: no limit
	retired bool
	closed  bool
	early   bool // it made place before it was closed
	remote  bool
	idleAt  uint32
}

type waiter[C any] struct {
	granted chan Lease[C]
	err     error
	done    bool
}

// NewPool makes a pool whose connections are expected to carry so many requests at a time (HTTP/1.1: 1); closeConn is called, once
// and without locks held, when a connection is of no more use.
func NewPool[C any](h *Host, p Priority, streams int, closeConn func(C)) *Pool[C] {
	pool := &Pool[C]{
		host: h, breakers: h.cluster.Breakers(p), close: closeConn, streams: h.capacity(streams), busy: map[*PoolConn[C]]struct{}{},
	}
	h.keep(pool)
	return pool
}

// capacity is how many requests at a time a connection to the host is good for.
func (h *Host) capacity(streams int) int {
	if n := h.cluster.Spec().HTTP.MaxRequestsPerConnection; n > 0 {
		streams = min(streams, int(n))
	}
	return max(1, streams)
}

// Lease is a request's right to a connection. It ends with Release, Stale or Failed, exactly one of them.
type Lease[C any] struct {
	pool *Pool[C]
	conn *PoolConn[C]
}

// MustDial reports that the request is to make the connection: Connected or Failed follows.
func (l Lease[C]) MustDial() bool { return l.conn == nil }

// Conn is the connection; nil while MustDial.
func (l Lease[C]) Conn() *PoolConn[C] { return l.conn }

// Acquire returns the right to a connection. It waits while the host's connections are busy and no more may be made. Returns
// ErrOverflow if too many requests wait or are under way, what dialling gave if that failed while the request waited for it,
// and the cause of ctx.
func (p *Pool[C]) Acquire(ctx context.Context) (Lease[C], error) {
	s := &p.host.cluster.stats
	p.mu.Lock()
	if n := len(p.ready); n > 0 {
		l, err := p.attachLocked(p.ready[n-1])
		p.mu.Unlock()
		return l, err
	}
	if !p.breakers.take(pending) {
		p.mu.Unlock()
		s.inc(RqPendingOverflow)
		return Lease[C]{}, ErrOverflow
	}
	s.inc(RqPendingTotal)
	s.inc(RqPendingActive)
	if len(p.waiting)+1 > p.dialling*p.streams-p.dialling && p.mayDialLocked() {
		p.dialling++
		p.mu.Unlock()
		return Lease[C]{pool: p}, nil
	}
	w := &waiter[C]{granted: make(chan Lease[C], 1)}
	p.waiting = append(p.waiting, w)
	p.mu.Unlock()
	return p.wait(ctx, w)
}

// mayDialLocked asks the limits for one more connection, and counts it. The pool's only one it has whatever they say.
func (p *Pool[C]) mayDialLocked() bool {
	b, c := p.breakers, p.host.cluster
	free := p.host.conns.Load() < int64(b.spec(c.state.Load()).perHost) && b.take(connections)
	if !free {
		c.stats.inc(CxOverflow)
		if p.conns > 0 {
			return false
		}
		b.force(connections)
	}
	p.conns++
	b.connected(p.host)
	return true
}

func (p *Pool[C]) wait(ctx context.Context, w *waiter[C]) (Lease[C], error) {
	select {
	case l, ok := <-w.granted:
		if !ok {
			return Lease[C]{}, w.err
		}
		return l, nil
	case <-ctx.Done():
	}
	p.mu.Lock()
	if w.done {
		p.mu.Unlock()
		l, ok := <-w.granted
		switch {
		case !ok:
			return Lease[C]{}, w.err
		case l.MustDial():
			l.Failed(nil, false)
		default:
			l.giveBack(true)
		}
		return Lease[C]{}, context.Cause(ctx)
	}
	p.dropLocked(w)
	p.mu.Unlock()
	p.pendingDone()
	p.host.cluster.stats.inc(RqCancelled)
	return Lease[C]{}, context.Cause(ctx)
}

func (p *Pool[C]) dropLocked(w *waiter[C]) {
	w.done = true
	for i, x := range p.waiting {
		if x == w {
			p.waiting = append(p.waiting[:i], p.waiting[i+1:]...)
			return
		}
	}
}

// pendingDone ends what the breaker counts after what the statistics count, so that these never show more than the limit.
func (p *Pool[C]) pendingDone() {
	p.host.cluster.stats.dec(RqPendingActive)
	p.breakers.release(pending)
}

// attachLocked begins a request on a connection that has place for one.
func (p *Pool[C]) attachLocked(c *PoolConn[C]) (Lease[C], error) {
	s := &p.host.cluster.stats
	if !p.breakers.take(requests) {
		s.inc(RqPendingOverflow)
		return Lease[C]{}, ErrOverflow
	}
	c.active++
	if c.left > 0 {
		if c.left--; c.left == 0 {
			c.retired = true
			s.inc(CxMaxRequests)
		}
	}
	if c.retired || c.active >= c.limit {
		p.unreadyLocked(c)
		p.busy[c] = struct{}{}
	}
	p.host.Begin()
	s.inc(RqTotal)
	s.inc(RqActive)
	return Lease[C]{p, c}, nil
}

func (p *Pool[C]) unreadyLocked(c *PoolConn[C]) {
	for i := len(p.ready) - 1; i >= 0; i-- {
		if p.ready[i] == c {
			copy(p.ready[i:], p.ready[i+1:])
			p.ready[len(p.ready)-1] = nil
			p.ready = p.ready[:len(p.ready)-1]
			return
		}
	}
}

// Connected brings the connection that MustDial asked for; it carries up to streams requests at a time (HTTP/1.1: 1). The lease
// that it returns takes the place of l. Returns ErrOverflow if too many requests are under way: what it returns beside is good for its
// Conn only, which stays for others.
func (l Lease[C]) Connected(conn C, streams int) (Lease[C], error) {
	p := l.pool
	c := &PoolConn[C]{Conn: conn, pool: p, limit: max(1, streams), left: -1}
	if n := p.host.cluster.Spec().HTTP.MaxRequestsPerConnection; n > 0 {
		c.left = int(n)
	}
	p.mu.Lock()
	p.dialling--
	p.streams = p.host.capacity(c.limit)
	p.ready = append(p.ready, c)
	p.pendingDone()
	lease, err := p.attachLocked(c)
	gone := false
	if p.draining {
		gone = c.retireLocked(false)
	}
	p.serveLocked()
	p.mu.Unlock()
	if gone {
		p.close(conn)
	}
	if err != nil {
		return Lease[C]{p, c}, err
	}
	return lease, nil
}

// Failed says that the connection that MustDial asked for could not be made; all who wait in the pool learn it, as in Envoy. With
// a nil err the request was given up meanwhile: then who waits goes on. timeout tells that it took too long.
func (l Lease[C]) Failed(err error, timeout bool) {
	p, s := l.pool, &l.pool.host.cluster.stats
	p.pendingDone()
	p.mu.Lock()
	p.dialling--
	p.goneLocked(err != nil && !timeout)
	var purged []*waiter[C]
	if err != nil {
		purged, p.waiting = p.waiting, nil
	}
	for _, w := range purged {
		w.done, w.err = true, fmt.Errorf("wait for connection: %w", err)
	}
	p.serveLocked()
	p.mu.Unlock()
	if err == nil {
		s.inc(RqCancelled)
		return
	}
	s.inc(CxConnectFail)
	p.host.notMade.Add(1)
	if timeout {
		s.inc(CxConnectTimeout)
	}
	s.inc(RqPendingFailureEject)
	for _, w := range purged {
		s.inc(RqPendingFailureEject)
		p.pendingDone()
		close(w.granted)
	}
}

// goneLocked counts a connection that ended.
func (p *Pool[C]) goneLocked(remote bool) {
	p.conns--
	p.breakers.DoneConnection(p.host, remote)
}

// serveLocked gives those who wait what is ready, and lets them dial as far as they may.
func (p *Pool[C]) serveLocked() {
	for len(p.waiting) > 0 && len(p.ready) > 0 {
		w := p.waiting[0]
		l, err := p.attachLocked(p.ready[len(p.ready)-1])
		p.dropLocked(w)
		p.pendingDone()
		if err != nil {
			w.err = err
			close(w.granted)
			continue
		}
		w.granted <- l
	}
	for len(p.waiting) > p.dialling*(p.streams-1) {
		if !p.mayDialLocked() {
			return
		}
		w := p.waiting[0]
		p.dropLocked(w)
		p.dialling++
		w.granted <- Lease[C]{pool: p}
	}
}

// Release ends the request. keep tells that the connection can carry another; otherwise it is closed when its other requests have
// ended, and remote tells that the server wanted or did it.
func (l Lease[C]) Release(keep, remote bool) { l.end(keep, remote) }

// Stale gives back a connection that was found dead before the request was sent; the request acquires again.
func (l Lease[C]) Stale() { l.giveBack(false) }

// Answered says that the host's answer has come to its end while it is still passed on: a connection that carries no further request
// makes place for another at once, as in Envoy, and is closed by Release.
func (l Lease[C]) Answered() {
	p, c := l.pool, l.conn
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.retired && c.active == 1 && !c.closed {
		c.early = true
		p.endLocked(c, c.remote)
	}
}

// giveBack undoes that the request was counted.
func (l Lease[C]) giveBack(keep bool) {
	l.pool.host.cluster.stats.n[RqTotal].Add(^uint64(0))
	l.pool.host.requests.Add(^uint64(0))
	l.end(keep, !keep)
}

func (l Lease[C]) end(keep, remote bool) {
	p, c := l.pool, l.conn
	s := &p.host.cluster.stats
	s.dec(RqActive)
	p.host.End()
	p.breakers.release(requests)
	p.mu.Lock()
	c.active--
	if !keep && !c.retired {
		c.retired, c.remote = true, remote
		p.unreadyLocked(c)
		p.busy[c] = struct{}{}
	}
	gone := false
	switch {
	case c.early:
		gone = true
	case c.closed:
	case c.retired && c.active == 0:
		gone = true
		p.endLocked(c, c.remote || remote && !keep)
	case !c.retired:
		c.idleAt = p.tick
		if _, was := p.busy[c]; was {
			delete(p.busy, c)
			p.ready = append(p.ready, c)
		}
		p.serveLocked()
	}
	p.mu.Unlock()
	if gone {
		p.close(c.Conn)
	}
}

// endLocked takes a connection out of the pool.
func (p *Pool[C]) endLocked(c *PoolConn[C], remote bool) {
	c.closed = true
	p.unreadyLocked(c)
	delete(p.busy, c)
	p.goneLocked(remote)
	p.serveLocked()
}

// Retire lets the connection end when its requests have: GOAWAY, its duration is over.
func (c *PoolConn[C]) Retire(remote bool) {
	p := c.pool
	p.mu.Lock()
	gone := c.retireLocked(remote)
	p.mu.Unlock()
	if gone {
		p.close(c.Conn)
	}
}

func (c *PoolConn[C]) retireLocked(remote bool) (gone bool) {
	p := c.pool
	if c.closed || c.retired {
		return false
	}
	c.retired, c.remote = true, remote
	if c.active == 0 {
		p.endLocked(c, remote)
		return true
	}
	p.unreadyLocked(c)
	p.busy[c] = struct{}{}
	return false
}

// Lost tells that the connection is dead. Its requests end as they find out.
func (c *PoolConn[C]) Lost(remote bool) {
	p := c.pool
	p.mu.Lock()
	if c.closed {
		p.mu.Unlock()
		return
	}
	if c.active > 0 {
		s := &p.host.cluster.stats
		s.inc(CxDestroyWithActiveRq)
		if remote {
			s.inc(CxDestroyRemoteWithActiveRq)
		} else {
			s.inc(CxDestroyLocalWithActiveRq)
		}
	}
	c.retired = true
	p.endLocked(c, remote)
	p.mu.Unlock()
	p.close(c.Conn)
}

// Limit changes how many requests the connection carries at a time (SETTINGS of HTTP/2).
func (c *PoolConn[C]) Limit(streams int) {
	p := c.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	c.limit = streams
	if c.closed || c.retired {
		return
	}
	_, busy := p.busy[c]
	switch {
	case busy && c.active < c.limit:
		delete(p.busy, c)
		p.ready = append(p.ready, c)
		p.serveLocked()
	case !busy && c.active >= c.limit:
		p.unreadyLocked(c)
		p.busy[c] = struct{}{}
	}
}

// Drain closes the connections without requests and lets the others end with theirs. The pool still serves who comes, with a
// connection for each request.
func (p *Pool[C]) Drain() {
	p.mu.Lock()
	p.draining = true
	p.mu.Unlock()
	p.renew()
}

// renew ends the connections that there are as soon as they carry no request.
func (p *Pool[C]) renew() { p.retire(func(*PoolConn[C]) bool { return true }) }

// Reap closes the connections that have been without requests for as many calls of Reap, and returns how many are left. Who
// owns the pool calls it as time goes.
func (p *Pool[C]) Reap(calls uint32) int {
	p.mu.Lock()
	p.tick++
	tick := p.tick
	p.mu.Unlock()
	for range p.retire(func(c *PoolConn[C]) bool { return c.active == 0 && tick-c.idleAt >= calls }) {
		p.host.cluster.stats.inc(CxIdleTimeout)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.conns
}

// Weed closes the connections without requests that are dead, which it is told by a func that must not block.
func (p *Pool[C]) Weed(dead func(C) bool) {
	p.retire(func(c *PoolConn[C]) bool { return c.active == 0 && dead(c.Conn) })
}

// retire ends connections, and returns how many were closed.
func (p *Pool[C]) retire(which func(*PoolConn[C]) bool) int {
	var gone []*PoolConn[C]
	p.mu.Lock()
	var list []*PoolConn[C]
	list = append(list, p.ready...)
	for c := range p.busy {
		list = append(list, c)
	}
	for _, c := range list {
		if which(c) && c.retireLocked(false) {
			gone = append(gone, c)
		}
	}
	p.mu.Unlock()
	for _, c := range gone {
		p.close(c.Conn)
	}
	return len(gone)
}
