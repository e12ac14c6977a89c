// Package quota shares out what strangers could use up: turns at something of which little can be done at once, amounts that
// are held, and lines of the log. Each is shared by key, which is who asks (an address, a caller), so that one who asks for
// much is served, and takes no more from the others than his part.
//
// Invariants: what is remembered of a key is gone when the key holds nothing (Turns, Amounts), or is bounded (Lines). All
// types are safe for concurrent use and own no goroutine.
package quota

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/undermesh/undermesh/ztunnel/clock"
)

// ErrFull is returned to a key that has as many waiting as it may.
var ErrFull = errors.New("too many wait already")

// Turns lets few in at once. Who finds no place waits in the line of its key, and the lines take turns: a key with a thousand
// waiting is served as often as one with a single one.
type Turns[K comparable] struct {
	places, each, line int

	mu    sync.Mutex // protects below
	busy  int
	held  map[K]int
	lines map[K][]chan struct{} // closed when it is one's turn
	order []K                   // that have a line, next first
}

// NewTurns returns Turns with so many places, of which one key has at most each, and in which at most line wait of one key.
func NewTurns[K comparable](places, each, line int) *Turns[K] {
	return &Turns[K]{places: places, each: each, line: line, held: map[K]int{}, lines: map[K][]chan struct{}{}}
}

// Enter waits for a place until ctx ends; the caller calls leave once. Returns ErrFull without waiting, and the cause of the
// context's end.
func (t *Turns[K]) Enter(ctx context.Context, key K) (leave func(), err error) {
	mine := make(chan struct{})
	t.mu.Lock()
	if len(t.lines[key]) >= t.line && (t.busy >= t.places || t.held[key] >= t.each) {
		t.mu.Unlock()
		return nil, fmt.Errorf("wait for a place: %w", ErrFull)
	}
	if len(t.lines[key]) == 0 {
		t.order = append(t.order, key)
	}
	t.lines[key] = append(t.lines[key], mine)
	t.admitLocked()
	t.mu.Unlock()
	select {
	case <-mine:
	case <-ctx.Done():
		if t.abandon(key, mine) {
			return nil, fmt.Errorf("wait for a place: %w", context.Cause(ctx))
		}
	}
	return sync.OnceFunc(func() { t.leave(key) }), nil
}

// admitLocked gives free places to who is next.
func (t *Turns[K]) admitLocked() {
	for t.busy < t.places {
		i := slices.IndexFunc(t.order, func(k K) bool { return t.held[k] < t.each })
		if i < 0 {
			return
		}
		key := t.order[i]
		t.order = slices.Delete(t.order, i, i+1)
		close(t.lines[key][0])
		t.busy++
		t.held[key]++
		if t.lines[key] = t.lines[key][1:]; len(t.lines[key]) == 0 {
			delete(t.lines, key)
		} else {
			t.order = append(t.order, key)
		}
	}
}

// abandon takes one out of its line. It returns false when its turn has come.
func (t *Turns[K]) abandon(key K, mine chan struct{}) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.Index(t.lines[key], mine)
	if i < 0 {
		return false
	}
	if t.lines[key] = slices.Delete(t.lines[key], i, i+1); len(t.lines[key]) == 0 {
		delete(t.lines, key)
		t.order = slices.DeleteFunc(t.order, func(k K) bool { return k == key })
	}
	return true
}

func (t *Turns[K]) leave(key K) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.busy--
	if t.held[key]--; t.held[key] == 0 {
		delete(t.held, key)
	}
	t.admitLocked()
}

// Amounts bounds what is held, of all keys and of each.
type Amounts[K comparable] struct {
	all, each int

	mu    sync.Mutex // protects below
	total int
	held  map[K]int
}

// NewAmounts returns Amounts of which each key holds at most each, and all together at most all.
func NewAmounts[K comparable](all, each int) *Amounts[K] {
	return &Amounts[K]{all: all, each: each, held: map[K]int{}}
}

// Take reports whether the key may hold n more, and counts them then. Who took gives back.
func (a *Amounts[K]) Take(key K, n int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.total+n > a.all || a.held[key]+n > a.each {
		return false
	}
	a.total += n
	a.held[key] += n
	return true
}

// Give gives back what was taken.
func (a *Amounts[K]) Give(key K, n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.total -= n
	if a.held[key] -= n; a.held[key] == 0 {
		delete(a.held, key)
	}
}

// Lines of the log that strangers cause: so many of a key in each period, and of what was left out the number.
const (
	linesEach   = 5
	linesPeriod = 10 * time.Second
	linesKeys   = 4096 // remembered; beyond that all new ones share the lines of the zero one
)

// Lines says which lines are written; nil: all.
type Lines[K comparable] struct {
	clock clock.Clock

	mu    sync.Mutex // protects below
	seen  map[K]*period
	swept time.Time // when what is over was forgotten last
}

// period is what was written for a key since a time.
type period struct {
	since         time.Time
	written, left int
}

// NewLines returns Lines that have written nothing yet.
func NewLines[K comparable](c clock.Clock) *Lines[K] {
	return &Lines[K]{clock: c, seen: map[K]*period{}}
}

// Take reports whether a line about the key is written, and how many were left out before it.
func (l *Lines[K]) Take(key K) (left int, ok bool) {
	if l == nil {
		return 0, true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.clock.Now()
	p := l.seen[key]
	if p == nil && len(l.seen) >= linesKeys {
		if now.Sub(l.swept) >= linesPeriod {
			l.swept = now
			maps.DeleteFunc(l.seen, func(_ K, old *period) bool { return now.Sub(old.since) >= linesPeriod })
		}
		if len(l.seen) >= linesKeys {
			var shared K
			key, p = shared, l.seen[shared]
		}
	}
	if p == nil {
		p = &period{since: now}
		l.seen[key] = p
	}
	if now.Sub(p.since) >= linesPeriod {
		p.since, p.written = now, 0
	}
	if p.written >= linesEach {
		p.left++
		return 0, false
	}
	left, p.left = p.left, 0
	p.written++
	return left, true
}

// Addr is the address of "ADDRESS:PORT", by which strangers are told apart; the zero value when there is none, as in a test:
// such peers are counted together. An IPv4 address in the form of IPv6 is the IPv4 address.
func Addr(peer string) netip.Addr {
	at, err := netip.ParseAddrPort(peer)
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap()
}

// Cut is the text, or of one that is longer than limit bytes the beginning, valid UTF-8, and "…".
func Cut(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	return strings.ToValidUTF8(text[:limit], "") + "…"
}
