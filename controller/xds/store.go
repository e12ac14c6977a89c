// Package xds serves the mesh to its nodes by delta ADS (DESIGN §5).
//
// A Store holds the newest encoded form of every resource in one change log a type; a connected client is a cursor into
// it. Invariants: a resource is encoded once however many clients there are (and once more while there are some that do not
// know short contents); a client that is slow gets the newest
// version of what changed and no history, so that it holds back nobody and costs no memory; nothing is served before the
// first Apply; within a change what a workload refers to is sent before the workload, and removed after it.
package xds

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/short"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// Resource is one resource to serve. Aliases are further names under which clients may subscribe to it; several
// resources may share one.
type Resource struct {
	Type, Name string
	Aliases    []string
	// Groups are names of other resources whose subscribers get this one too: who asks for a service is given its workloads.
	// Unlike Aliases they are not told to clients.
	Groups  []string
	Message proto.Message
}

// Key names one resource.
type Key struct{ Type, Name string }

// minTombstones is how many removals a type remembers at least for clients that lag; beyond it and beyond the number of
// live resources the oldest go, and a client that has not seen them must reconnect.
const minTombstones = 1024

// StoreConfig configures a Store. Clock is required.
type StoreConfig struct {
	Clock       clock.Clock
	Debounce    time.Duration // clients are told after so long without a change; default 10 ms
	MaxDebounce time.Duration // and at the latest so long after the first; default 100 ms
	Interval    time.Duration // but not again before so long after the last time; default 60 ms
	// MaxInterval is what Interval grows to, each time by two to maxGrowth times as the rate is, while many resources change between two times: then a
	// storm is few pushes however long the CPUs need for it. Default 1 s.
	MaxInterval time.Duration
}

// A storm is when more resources than stormRate change a second, and over at half as many; the rate is forgotten in about
// stormMemory, for where CPUs are short a storm comes in bursts with gaps between them. A roll-out of one service is far below.
const (
	stormRate   = 250
	stormMemory = 3 * time.Second
	maxGrowth   = 4 // at 10,000 events within a second: pushes after 0.1 s, 0.3 s and when they are over
)

// Store is the newest state of all resources. It is safe for concurrent use.
type Store struct {
	cfg StoreConfig

	mu         sync.RWMutex // protects below
	synced     bool
	generation uint64
	seq        uint64
	logs       map[string]*log
	cursors    map[*cursor]struct{}
	timer      clock.Timer   // nil when no wake-up is pending
	deadline   time.Time     // of the pending wake-up
	first      time.Time     // when the first change came that clients are not told of yet; zero: none
	woken      time.Time     // when clients were told last
	wokenSeq   uint64        // what had changed by then
	interval   time.Duration // now
	rate       float64       // changes a second
}

// log is one type: two rings in the order of the last change, next of the root is the oldest, prev the newest.
type log struct {
	entries map[string]*entry
	aliases map[string]entrySet
	live    entry // root of what exists
	gone    entry // root of the tombstones
	dead    int
	floor   uint64 // removals up to here are forgotten

	lists   [2][]*discovery.Resource // all that exists in full and in short, as it was at listSeq; never modified
	listSeq [2]uint64
	wholes  [2]*whole
}

// entry is one resource. What it points to is immutable and shared.
type entry struct {
	prev, next *entry
	seq        uint64
	typ, name  string
	aliases    []string            // sorted
	groups     []string            // sorted
	short      *discovery.Resource // as clients of package short get it, without aliases; nil for a tombstone
	full       *discovery.Resource // as others get it; nil before the first one asked
}

// entrySet is the entries that share an alias, most often one: only others need a map.
type entrySet struct {
	one  *entry // nil in the empty set
	more map[*entry]struct{}
}

func (s entrySet) with(e *entry) entrySet {
	switch {
	case s.one == nil || s.one == e:
		s.one = e
	case s.more == nil:
		s.more = map[*entry]struct{}{e: {}}
	default:
		s.more[e] = struct{}{}
	}
	return s
}

func (s entrySet) without(e *entry) entrySet {
	delete(s.more, e)
	if s.one != e {
		return s
	}
	s.one = nil
	for next := range s.more {
		s.one = next
		delete(s.more, next)
		break
	}
	return s
}

// sorted by name.
func (s entrySet) sorted() []*entry {
	if s.one == nil {
		return nil
	}
	out := append(slices.Collect(maps.Keys(s.more)), s.one)
	slices.SortFunc(out, byName)
	return out
}

// cursor is one client's place in the logs.
type cursor struct {
	wake chan struct{} // capacity 1

	// Protected by Store.mu.
	pos   map[string]uint64 // type -> everything up to here was handed out
	since time.Time         // when the first change came that the client was woken for and not given; zero: none
}

// NewStore returns an empty store, which serves nothing before the first Apply.
func NewStore(cfg StoreConfig) *Store {
	if cfg.Debounce == 0 {
		cfg.Debounce = 10 * time.Millisecond
	}
	if cfg.MaxDebounce == 0 {
		cfg.MaxDebounce = 100 * time.Millisecond
	}
	if cfg.Interval == 0 {
		cfg.Interval = 60 * time.Millisecond
	}
	if cfg.MaxInterval == 0 {
		cfg.MaxInterval = time.Second
	}
	return &Store{cfg: cfg, interval: cfg.Interval, logs: map[string]*log{}, cursors: map[*cursor]struct{}{}}
}

// Apply makes the upserts and removals the newest state, as one change: a client sees all of it or none. What equals the
// stored content costs nobody anything. It applies nothing when a resource cannot be encoded, and names it.
func (s *Store) Apply(generation uint64, upserts []Resource, removed []Key) error {
	encoded := make([]*discovery.Resource, len(upserts))
	for i, r := range upserts {
		res, err := encode(r)
		if err != nil {
			return err
		}
		encoded[i] = res
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	before, first := s.seq, !s.synced
	s.generation, s.synced = generation, true
	for i, r := range upserts {
		s.putLocked(r.Type, encoded[i], r.Aliases, r.Groups)
	}
	for _, k := range removed {
		s.removeLocked(k)
	}
	s.compactLocked()
	if s.seq != before || first {
		s.scheduleLocked()
	}
	return nil
}

// versionBytes of a content's hash make its version. Two contents of one resource that are taken for one leave a client
// that resumes with the older; whoever writes a resource can only do that to his own.
const versionBytes = 12

// encode returns the short form.
func encode(r Resource) (*discovery.Resource, error) {
	if r.Type == "" || r.Name == "" || r.Message == nil {
		return nil, fmt.Errorf("encode resource %q: type, name or message is missing", r.Name)
	}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(short.Shorten(r.Name, r.Message))
	if err != nil {
		return nil, fmt.Errorf("encode resource %s %q: %w", r.Type, r.Name, err)
	}
	sum := sha256.Sum256(raw)
	return &discovery.Resource{
		Name: r.Name, Version: base64.RawURLEncoding.EncodeToString(sum[:versionBytes]), Resource: &anypb.Any{Value: raw},
	}, nil
}

// form is the resource as a client gets it.
func (e *entry) form(shortened bool) *discovery.Resource {
	if shortened {
		return e.short
	}
	if e.full == nil {
		e.full = &discovery.Resource{Name: e.name, Aliases: e.aliases, Version: e.short.GetVersion(),
			Resource: &anypb.Any{TypeUrl: e.typ, Value: inFull(e.typ, e.name, e.short.GetResource().GetValue())}}
	}
	return e.full
}

// inFull is the content with what its name says. The store encoded it itself: what it cannot decode was never shortened.
func inFull(typ, name string, raw []byte) []byte {
	if typ != api.AddressType {
		return raw
	}
	m := &workloadapi.Address{}
	if proto.Unmarshal(raw, m) != nil {
		return raw
	}
	short.Restore(name, m)
	full, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return raw
	}
	return full
}

func (s *Store) logLocked(typ string) *log {
	l := s.logs[typ]
	if l == nil {
		l = &log{entries: map[string]*entry{}, aliases: map[string]entrySet{}}
		l.live.prev, l.live.next = &l.live, &l.live
		l.gone.prev, l.gone.next = &l.gone, &l.gone
		s.logs[typ] = l
	}
	return l
}

func (s *Store) putLocked(typ string, res *discovery.Resource, aliases, groups []string) {
	aliases, groups = sorted(aliases), sorted(groups)
	l := s.logLocked(typ)
	e := l.entries[res.GetName()]
	if e == nil {
		e = &entry{typ: typ, name: res.GetName()}
		l.entries[e.name] = e
	} else {
		if e.short != nil && bytes.Equal(e.short.GetResource().GetValue(), res.GetResource().GetValue()) && slices.Equal(e.aliases, aliases) &&
			slices.Equal(e.groups, groups) {
			return
		}
		if e.short == nil {
			l.dead--
		}
		l.unalias(e)
		e.unlink()
	}
	e.short, e.full, e.aliases, e.groups = res, nil, aliases, groups
	for _, list := range [][]string{aliases, groups} {
		for _, a := range list {
			l.aliases[a] = l.aliases[a].with(e)
		}
	}
	s.appendLocked(&l.live, e)
}

func (s *Store) removeLocked(k Key) {
	l := s.logLocked(k.Type)
	e := l.entries[k.Name]
	if e == nil || e.short == nil {
		return
	}
	l.unalias(e)
	e.unlink()
	e.short, e.full, e.aliases, e.groups = nil, nil, nil, nil
	l.dead++
	s.appendLocked(&l.gone, e)
}

func (s *Store) appendLocked(root, e *entry) {
	s.seq++
	e.seq = s.seq
	e.prev, e.next = root.prev, root
	e.prev.next, root.prev = e, e
}

func (e *entry) unlink() {
	e.prev.next, e.next.prev = e.next, e.prev
	e.prev, e.next = nil, nil
}

func (l *log) unalias(e *entry) {
	for _, list := range [][]string{e.aliases, e.groups} {
		for _, a := range list {
			if left := l.aliases[a].without(e); left.one == nil {
				delete(l.aliases, a)
			} else {
				l.aliases[a] = left
			}
		}
	}
}

// sorted is a copy of the list, each name once; nil for none.
func sorted(list []string) []string {
	out := slices.Clone(list)
	slices.Sort(out)
	return slices.Clip(slices.Compact(out))
}

// compactLocked forgets removals that every cursor has seen, and the oldest when there are too many.
func (s *Store) compactLocked() {
	for typ, l := range s.logs {
		if l.dead == 0 {
			continue
		}
		seen := s.seq
		for c := range s.cursors {
			if pos, ok := c.pos[typ]; ok {
				seen = min(seen, pos)
			}
		}
		limit := max(minTombstones, len(l.entries)-l.dead)
		for e := l.gone.next; e != &l.gone && (e.seq <= seen || l.dead > limit); e = l.gone.next {
			l.floor = max(l.floor, e.seq)
			e.unlink()
			delete(l.entries, e.name)
			l.dead--
		}
	}
}

// scheduleLocked wakes the clients after the quiet time, but no later than MaxDebounce after the first change, and not
// sooner than the interval after the last time: a change that comes alone goes out at once, a storm in few pushes.
func (s *Store) scheduleLocked() {
	now := s.cfg.Clock.Now()
	if s.first.IsZero() {
		s.first = now
	}
	soonest := s.woken.Add(s.interval).Sub(now)
	if s.timer == nil {
		s.deadline = now.Add(max(s.cfg.MaxDebounce, soonest))
		s.timer = s.cfg.Clock.AfterFunc(max(s.cfg.Debounce, soonest), s.wakeAll)
		return
	}
	s.timer.Reset(max(0, soonest, min(s.cfg.Debounce, s.deadline.Sub(now))))
}

func (s *Store) wakeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Clock.Now()
	passed, changed := now.Sub(s.woken), float64(s.seq-s.wokenSeq)
	s.rate = max(changed/max(passed, s.cfg.Debounce).Seconds(), s.rate*math.Exp(-passed.Seconds()/stormMemory.Seconds()))
	switch {
	case s.rate > stormRate:
		grow := max(2, min(s.rate/stormRate, maxGrowth))
		s.interval = min(time.Duration(grow*float64(s.interval)), s.cfg.MaxInterval)
	case s.rate < stormRate/2:
		s.interval = max(s.interval/2, s.cfg.Interval)
	}
	s.timer, s.woken, s.wokenSeq = nil, now, s.seq
	for c := range s.cursors {
		if c.since.IsZero() {
			c.since = s.first
		}
		c.signal()
	}
	s.first = time.Time{}
}

func (c *cursor) signal() {
	select {
	case c.wake <- struct{}{}:
	default: // it has not looked since the last signal
	}
}

func (s *Store) subscribe() *cursor {
	c := &cursor{wake: make(chan struct{}, 1), pos: map[string]uint64{}}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cursors[c] = struct{}{}
	return c
}

func (s *Store) unsubscribe(c *cursor) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.cursors, c)
	s.compactLocked()
}

// Generation is that of the last Apply.
func (s *Store) Generation() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.generation
}

// Len is the number of live resources of a type.
func (s *Store) Len(typ string) int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if l := s.logs[typ]; l != nil {
		return len(l.entries) - l.dead
	}
	return 0
}

// lastOrder is that of the type which refers to the others.
const lastOrder = 4

// order is the one in which the types of a change are sent: what is referred to comes first.
func order(typ string) int {
	switch typ {
	case api.MeshSettingsType:
		return 0
	case api.WorkloadSettingsType:
		return 1
	case api.AuthorizationType:
		return 2
	case api.AddressType:
		return lastOrder
	}
	return 3
}

func byOrder(a, b *subscription) int {
	return cmp.Or(cmp.Compare(order(a.typ), order(b.typ)), cmp.Compare(a.typ, b.typ))
}

func (s *Store) versionLocked() string { return strconv.FormatUint(s.generation, 10) }
