package proxy

import (
	"container/list"
	"context"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/undermesh/undermesh/ztunnel/clock"
)

const (
	helloTimeout = 5 * time.Second // until a client's ClientHello must be whole
	// placeTime is what a handshake has in any case; one that takes longer loses its place to those that wait.
	placeTime = 2 * time.Second
	// What one address may have of a pod's places, and how many connections may wait, by MaxHandshakes.
	placeShare    = 8        // one address has an eighth of the places
	unprovedPlace = 32       // connections of a pod for each place
	maxUnproved   = 64 << 10 // connections of the node
)

// errCrowded is the cause of what the gate ends in favour of others.
var errCrowded = errors.New("too many handshakes")

// gate is where the clients of one pod's tunnel listener are that have proved nothing yet. Nothing that such a client leaves
// undone takes away what another one needs: a place is for those whose ClientHello is whole, an address has a part of the
// places only, and when a limit is reached the client that has been silent for longest goes. Safe for concurrent use.
type gate struct {
	clock                clock.Clock
	places, placesEach   int // handshakes at a time: of the pod, of one address
	clients, clientsEach int // connections: of the pod, of one address
	node                 *atomic.Int64

	mu      sync.Mutex // protects below
	sources map[netip.Addr]*source
	total   int
	silent  list.List // of *visitor whose ClientHello is not whole; the oldest first
	queue   list.List // of *visitor that wait for a place, in order
	busy    list.List // of *visitor that have one; the oldest first
	timer   clock.Timer
}

type source struct{ clients, busy int }

// visitor is one connection at the gate; its fields are protected by gate.mu.
type visitor struct {
	addr  netip.Addr
	src   *source // nil: it has left
	cut   context.CancelCauseFunc
	in    *list.List // where it is
	at    *list.Element
	since time.Time // it has its place
	late  bool      // it was cut off
	place chan struct{}
}

func newGate(c clock.Clock, handshakes int, node *atomic.Int64) *gate {
	return &gate{
		clock: c, places: handshakes, placesEach: max(1, handshakes/placeShare),
		clients: handshakes * unprovedPlace, clientsEach: handshakes, node: node, sources: map[netip.Addr]*source{},
	}
}

// enter takes in a connection from addr, nil when there is no room. cut is called when it has to go; leave must be called.
func (g *gate) enter(addr netip.Addr, cut context.CancelCauseFunc) *visitor {
	g.mu.Lock()
	defer g.mu.Unlock()
	src := g.sources[addr]
	if src != nil && src.clients >= g.clientsEach && !g.evictLocked(src) {
		return nil
	}
	if (g.total >= g.clients || g.node.Load() >= maxUnproved) && !g.evictLocked(nil) {
		return nil
	}
	if src = g.sources[addr]; src == nil {
		src = &source{}
		g.sources[addr] = src
	}
	v := &visitor{addr: addr, src: src, cut: cut, place: make(chan struct{})}
	src.clients++
	g.total++
	g.node.Add(1)
	g.moveLocked(v, &g.silent)
	return v
}

// evictLocked ends the oldest silent client, of src unless that is nil; false when there is none.
func (g *gate) evictLocked(src *source) bool {
	for e := g.silent.Front(); e != nil; e = e.Next() {
		if v := visitorOf(e); src == nil || v.src == src {
			g.leaveLocked(v)
			v.cut(errCrowded)
			return true
		}
	}
	return false
}

func visitorOf(e *list.Element) *visitor { return e.Value.(*visitor) }

// wait waits for a place, until ctx ends or the gate cuts v off.
func (g *gate) wait(ctx context.Context, v *visitor) bool {
	g.mu.Lock()
	if v.src != nil {
		g.moveLocked(v, &g.queue)
		g.grantLocked()
	}
	g.mu.Unlock()
	select {
	case <-v.place:
		return true
	case <-ctx.Done():
		return false
	}
}

// leave lets v go: its handshake is done, or has failed.
func (g *gate) leave(v *visitor) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.leaveLocked(v)
	g.grantLocked()
}

func (g *gate) leaveLocked(v *visitor) {
	src := v.src
	if src == nil {
		return
	}
	if v.in == &g.busy {
		src.busy--
	}
	g.moveLocked(v, nil)
	v.src = nil
	g.total--
	g.node.Add(-1)
	if src.clients--; src.clients == 0 {
		delete(g.sources, v.addr)
	}
}

// moveLocked puts v at the end of to; nil: nowhere.
func (g *gate) moveLocked(v *visitor, to *list.List) {
	if v.in != nil {
		v.in.Remove(v.at)
	}
	if v.in = to; to != nil {
		v.at = to.PushBack(v)
	}
}

// grantLocked gives free places to those that have waited for longest and whose address may have more.
func (g *gate) grantLocked() {
	for e := g.queue.Front(); e != nil && g.busy.Len() < g.places; {
		v := visitorOf(e)
		e = e.Next()
		if v.src.busy < g.placesEach {
			v.src.busy++
			v.since = g.clock.Now()
			g.moveLocked(v, &g.busy)
			close(v.place)
		}
	}
	g.armLocked()
}

// armLocked calls cutLate when the oldest handshake has had its time, while somebody waits.
func (g *gate) armLocked() {
	if g.queue.Len() == 0 {
		if g.timer != nil {
			g.timer.Stop()
			g.timer = nil
		}
		return
	}
	for e := g.busy.Front(); e != nil && g.timer == nil; e = e.Next() {
		if v := visitorOf(e); !v.late {
			g.timer = g.clock.AfterFunc(placeTime-g.clock.Now().Sub(v.since), g.cutLate)
		}
	}
}

// cutLate ends the handshakes that had their time and that others wait for.
func (g *gate) cutLate() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.timer = nil
	now, crowded := g.clock.Now(), g.busy.Len() >= g.places
	for e := g.busy.Front(); e != nil; e = e.Next() {
		v := visitorOf(e)
		if now.Sub(v.since) < placeTime {
			break
		}
		if !v.late && (crowded || v.src.busy >= g.placesEach) {
			v.late = true
			v.cut(errCrowded)
		}
	}
	g.armLocked()
}
