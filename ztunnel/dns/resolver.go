package dns

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/undermesh/undermesh/ztunnel/clock"
)

// ErrNoSuchHost is returned for a name that does not exist or has no address.
var ErrNoSuchHost = errors.New("no such host")

// ErrTooMany is returned when as many names are known as there may be.
var ErrTooMany = errors.New("too many names")

// Config of a Resolver. Servers, Dial, Clock and ID are required.
type Config struct {
	Servers []netip.AddrPort // asked in order until one answers
	// Dial opens a connection to a server; the network is "udp" or "tcp".
	Dial  func(ctx context.Context, network, address string) (net.Conn, error)
	Clock clock.Clock
	ID    func() uint16 // of the next question: not to be guessed
	Log   *slog.Logger  // default: discard

	Timeout  time.Duration // for one server's answer; default 2 s
	MinTTL   time.Duration // a shorter time to live counts as this; default 1 s
	MaxTTL   time.Duration // a longer one as this; default 5 min
	Retry    time.Duration // after a failure, and for a name without address; default 5 s
	IdleTTL  time.Duration // the least time to live of a name that nobody asked for in the last minute; default 30 s
	MaxNames int           // default 4096
}

// idleAfter is when a name counts as one that nobody asks for.
const idleAfter = time.Minute

// parallel is how many names are refreshed at a time.
const parallel = 8

func (c Config) withDefaults() Config {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&c.Timeout, 2 * time.Second}, {&c.MinTTL, time.Second}, {&c.MaxTTL, 5 * time.Minute}, {&c.Retry, 5 * time.Second}, {&c.IdleTTL, 30 * time.Second}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	if c.MaxNames == 0 {
		c.MaxNames = 4096
	}
	return c
}

// Validate names the first field that is missing or out of range.
func (c Config) Validate() error {
	switch {
	case len(c.Servers) == 0:
		return errors.New("check dns config: Servers: none")
	case c.Dial == nil:
		return errors.New("check dns config: Dial: missing")
	case c.Clock == nil:
		return errors.New("check dns config: Clock: missing")
	case c.ID == nil:
		return errors.New("check dns config: ID: missing")
	case c.Timeout < 0 || c.MinTTL < 0 || c.MaxTTL < c.MinTTL || c.Retry < 0 || c.IdleTTL < 0 || c.MaxNames < 0:
		return errors.New("check dns config: a limit is negative, or MaxTTL is less than MinTTL")
	}
	return nil
}

// Resolver keeps the addresses of names. All methods are safe for concurrent use.
type Resolver struct {
	cfg  Config
	wake chan struct{}

	mu    sync.Mutex // protects below
	names map[string]*record
	at    map[netip.Addr]map[string]bool // address → names that resolve to it
}

// record is what is known of one name; its fields are protected by Resolver.mu.
type record struct {
	tracked bool
	addrs   []netip.Addr // last known, sorted as the server gave them
	err     error        // of the last attempt, when addrs is empty
	known   bool         // an attempt was made
	expires time.Time    // the end of its time to live
	due     time.Time    // when it is asked for again: later than that while nobody asks for it
	used    time.Time
	busy    chan struct{} // holds one token: who has it asks
}

// New returns a Resolver that knows nothing yet.
func New(cfg Config) (*Resolver, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Resolver{cfg: cfg, wake: make(chan struct{}, 1), names: map[string]*record{}, at: map[netip.Addr]map[string]bool{}}, nil
}

// canonical is how a name is filed.
func canonical(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// Track says which names there are, each with its owner, the namespace that declared it: these are kept current by Run, all
// others are forgotten. Of more than MaxNames the owners have equal shares.
func (r *Resolver) Track(names iter.Seq2[string, string]) {
	want, n, most := share(names, r.cfg.MaxNames)
	if n > len(want) {
		r.cfg.Log.Warn("more names than are resolved", "names", n, "limit", r.cfg.MaxNames, "namespace", most)
	}
	r.mu.Lock()
	for n, rec := range r.names {
		if !want[n] {
			r.placeLocked(n, rec.addrs, nil)
			delete(r.names, n)
		}
	}
	for n := range want {
		r.recordLocked(n).tracked = true
	}
	r.mu.Unlock()
	r.signal()
}

func (r *Resolver) signal() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *Resolver) recordLocked(name string) *record {
	rec := r.names[name]
	if rec == nil {
		rec = &record{busy: make(chan struct{}, 1)}
		r.names[name] = rec
	}
	return rec
}

// placeLocked files the addresses of a name instead of those that it had.
func (r *Resolver) placeLocked(name string, old, now []netip.Addr) {
	for _, a := range old {
		if delete(r.at[a], name); len(r.at[a]) == 0 {
			delete(r.at, a)
		}
	}
	for _, a := range now {
		if r.at[a] == nil {
			r.at[a] = map[string]bool{}
		}
		r.at[a][name] = true
	}
}

// Names returns the tracked names that resolve to the address, sorted.
func (r *Resolver) Names(addr netip.Addr) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for n := range r.at[addr.Unmap()] {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// Lookup returns the addresses of a name: what is known, even when it is being asked for again, else what the servers say
// now. The slice must not be modified. Errors: ErrNoSuchHost, ErrTooMany, the end of ctx, or why no server answered.
func (r *Resolver) Lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	name = canonical(name)
	r.mu.Lock()
	rec := r.names[name]
	if rec == nil {
		if len(r.names) >= r.cfg.MaxNames {
			r.mu.Unlock()
			return nil, fmt.Errorf("resolve %s: %w", name, ErrTooMany)
		}
		rec = r.recordLocked(name)
	}
	rec.used = r.cfg.Clock.Now()
	idle := rec.due.After(rec.expires)
	if idle {
		rec.due = rec.expires
	}
	addrs, err, fresh := r.answerLocked(rec, idle)
	r.mu.Unlock()
	if idle {
		r.signal()
	}
	if fresh {
		return addrs, err
	}
	if err := r.ask(ctx, name, rec); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(rec.addrs) == 0 {
		return nil, rec.err
	}
	return rec.addrs, nil
}

// answerLocked reports whether what is known will do: it is current, or kept so by Run, which is about to ask.
func (r *Resolver) answerLocked(rec *record, idle bool) (addrs []netip.Addr, err error, fresh bool) {
	switch current := rec.known && r.cfg.Clock.Now().Before(rec.due); {
	case len(rec.addrs) > 0 && (rec.tracked && !idle || current):
		return rec.addrs, nil, true
	case current:
		return nil, rec.err, true
	}
	return nil, nil, false
}

// ask asks the servers unless somebody else just did. The error is the end of ctx; what the servers said is in rec.
func (r *Resolver) ask(ctx context.Context, name string, rec *record) error {
	select {
	case rec.busy <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-rec.busy }()
	r.mu.Lock()
	current := rec.known && r.cfg.Clock.Now().Before(rec.due)
	r.mu.Unlock()
	if current {
		return nil
	}
	addrs, ttl, err := r.query(ctx, name)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	r.store(name, rec, addrs, ttl, err)
	return nil
}

// store takes in the outcome of a question.
func (r *Resolver) store(name string, rec *record, addrs []netip.Addr, ttl time.Duration, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.cfg.Clock.Now()
	rec.known = true
	if err != nil && !errors.Is(err, ErrNoSuchHost) && len(rec.addrs) > 0 {
		rec.expires = now.Add(r.cfg.Retry)
		rec.due = rec.expires
		r.cfg.Log.Warn("name cannot be resolved, its last addresses stay", "name", name, "err", err)
		return
	}
	live := min(max(ttl, r.cfg.MinTTL), r.cfg.MaxTTL)
	if err != nil {
		live = r.cfg.Retry
	}
	old := rec.addrs
	rec.addrs, rec.err, rec.expires = addrs, err, now.Add(live)
	rec.due = rec.expires
	if now.Sub(rec.used) > idleAfter {
		rec.due = now.Add(max(live, r.cfg.IdleTTL))
	}
	if rec.tracked && r.names[name] == rec {
		r.placeLocked(name, old, addrs)
	}
}

// Run keeps the tracked names current until ctx ends.
func (r *Resolver) Run(ctx context.Context) error {
	for {
		next, due := r.due()
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(parallel)
		for _, d := range due {
			g.Go(func() error { return r.ask(gctx, d.name, d.rec) })
		}
		if err := g.Wait(); err != nil || ctx.Err() != nil {
			return nil // only the end of ctx is an error here
		}
		if len(due) > 0 {
			continue
		}
		timer := r.cfg.Clock.AfterFunc(next, r.signal)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-r.wake:
			timer.Stop()
		}
	}
}

type named struct {
	name string
	rec  *record
}

// due returns the tracked names whose time is over, or how long it is until the next one's. Untracked ones are dropped then.
func (r *Resolver) due() (next time.Duration, due []named) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.cfg.Clock.Now()
	next = r.cfg.MaxTTL
	for n, rec := range r.names {
		left := rec.due.Sub(now)
		switch {
		case rec.known && left > 0:
			next = min(next, left)
		case rec.tracked:
			due = append(due, named{n, rec})
		case rec.known:
			delete(r.names, n)
		}
	}
	return max(next, 10*time.Millisecond), due
}
