// Package keeper fetches the keys by which JSON web tokens are judged from where RequestAuthentications say, and stores them
// for every replica of the controller (JW-09). One replica, the leader, runs it.
//
// Users name the URLs, and the controller stands where they may not reach: so it never connects to an address of its own
// host, of the link, or of a cloud's metadata service; it checks the address that it dials, not one that it looked up
// before; it follows no redirect, reads no more than it must, takes nothing but public keys out of an answer, and says no
// more of an answer than that it was none.
//
// Invariants: keys that were fetched once stay until there are newer ones, whatever fails; one source that fails holds up
// no other one.
package keeper

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/undermesh/undermesh/controller/jwks"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// Store keeps records where every replica sees them. Methods are safe for concurrent use.
type Store interface {
	// Save makes or replaces the record of its source.
	Save(ctx context.Context, r jwks.Record) error
	// Delete removes the record of a source, if there is one.
	Delete(ctx context.Context, source string) error
}

// Config is what a Keeper needs. Fetch, Store and Clock are required.
type Config struct {
	Fetch func(ctx context.Context, source string) (keys string, err error)
	Store Store
	Clock clock.Clock
	Log   *slog.Logger // default slog.DiscardHandler
	// Refresh is how old keys become; default 20 min, spread by up to a tenth.
	Refresh time.Duration
	// Retry is the wait after a failure, doubled after each further one up to Refresh; default 5 s.
	Retry time.Duration
	// Parallel bounds the fetches at a time; default 8.
	Parallel int
	// MaxSources bounds the sources that are looked after; default jwks.MaxSources. Others are counted and logged.
	MaxSources int
	// MaxStored bounds what is stored of all sources, in bytes; default 900 KiB, since the API server takes 1 MiB. Where it is not
	// enough the namespaces that take most of it lose their largest records.
	MaxStored int
}

// Keeper fetches what is wanted while it runs, which it does on one replica only. Set may be called on all.
type Keeper struct {
	cfg  Config
	wake chan struct{}

	mu      sync.Mutex // protects below
	sources map[string]*state
	skipped int               // sources beyond MaxSources
	fetches map[string]uint64 // by result
}

// state of one source.
type state struct {
	record   jwks.Record // the newest: stored, or saved since
	stored   jwks.Record // as Set said last
	wanted   bool
	running  bool
	owner    string // namespace that is charged with the size
	size     int    // of what is stored, or about to be, in bytes
	failures int
	// displaced: the room of its keys went to others since its last attempt began, so the next one is due.
	displaced bool
	next      time.Time // when it is due again, after an attempt of this process; zero: the record says
}

// New returns a Keeper that fetches nothing before Run.
func New(cfg Config) (*Keeper, error) {
	if cfg.Fetch == nil || cfg.Store == nil || cfg.Clock == nil {
		return nil, errors.New("check keeper config: Fetch, Store or Clock: missing")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&cfg.Refresh, 20 * time.Minute}, {&cfg.Retry, 5 * time.Second}} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	if cfg.Parallel <= 0 {
		cfg.Parallel = 8
	}
	if cfg.MaxSources <= 0 {
		cfg.MaxSources = jwks.MaxSources
	}
	if cfg.MaxStored <= 0 {
		cfg.MaxStored = 900 << 10
	}
	return &Keeper{cfg: cfg, wake: make(chan struct{}, 1), sources: map[string]*state{}, fetches: map[string]uint64{"good": 0, "failed": 0}}, nil
}

// Set says what is known of the sources now: what is stored of the wanted ones (of some nothing but the Source), those first
// that should be looked after before others, and what is stored although nobody wants it any more. What is stored of wanted
// ones that cannot be looked after is removed: it would take room that nobody counts.
func (k *Keeper) Set(wanted []jwks.Wanted, unwanted []jwks.Record) {
	k.mu.Lock()
	defer k.mu.Unlock()
	skipped := max(0, len(wanted)-k.cfg.MaxSources)
	unwanted = slices.Clone(unwanted)
	for _, r := range wanted[len(wanted)-skipped:] {
		if r.Keys != "" || r.Error != "" {
			unwanted = append(unwanted, r.Record)
		}
	}
	wanted = wanted[:len(wanted)-skipped]
	all := map[string]bool{}
	for _, r := range wanted {
		all[r.Source] = true
	}
	for s, st := range k.sources {
		if !all[s] {
			st.wanted = false
			if !st.running {
				delete(k.sources, s)
			}
		}
	}
	for _, w := range wanted {
		s, r := w.Source, w.Record
		st := k.sources[s]
		if st == nil {
			st = &state{}
			k.sources[s] = st
		}
		st.owner = w.Namespace
		if st.wanted && st.stored.Keys != "" && r.Keys == "" {
			st.next = time.Time{} // somebody removed what was stored: now
		}
		if !st.wanted || st.stored != r { // otherwise what was saved since has not come back yet
			st.record = r
			if !st.running {
				st.size = jwks.Size(r)
			}
		}
		st.stored, st.wanted = r, true
	}
	if skipped != k.skipped && skipped > 0 {
		k.cfg.Log.Error("keys are not fetched: there are too many sources", "limit", k.cfg.MaxSources, "left_out", skipped)
	}
	k.skipped = skipped
	for _, r := range unwanted {
		if all[r.Source] {
			continue
		}
		st := k.sources[r.Source]
		if st == nil {
			st = &state{size: jwks.Size(r)}
			k.sources[r.Source] = st
		}
		st.record.Source, st.wanted = r.Source, false
	}
	k.signal()
}

func (k *Keeper) signal() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Run fetches and stores until ctx ends, and returns when every fetch has ended.
func (k *Keeper) Run(ctx context.Context) error {
	k.mu.Lock()
	for _, st := range k.sources { // the leader before may have done better or worse
		st.next, st.failures = time.Time{}, 0
	}
	k.mu.Unlock()
	var running sync.WaitGroup
	defer running.Wait()
	slots := make(chan struct{}, k.cfg.Parallel)
	for {
		due, wait := k.due()
		for i, s := range due {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				k.release(due[i:])
				return nil
			}
			running.Go(func() {
				defer func() { <-slots }()
				k.attempt(ctx, s)
				k.signal()
			})
		}
		var timer clock.Timer
		if wait > 0 {
			timer = k.cfg.Clock.AfterFunc(wait, k.signal)
		}
		select {
		case <-ctx.Done():
		case <-k.wake:
		}
		if timer != nil {
			timer.Stop()
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// due marks the sources that need something now as running, and returns when the next one does; 0: none.
func (k *Keeper) due() (now []string, wait time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	at := k.cfg.Clock.Now()
	for s, st := range k.sources {
		if st.running {
			continue
		}
		rest := k.dueAt(s, st).Sub(at)
		if rest <= 0 {
			st.running = true
			now = append(now, s)
		} else if wait == 0 || rest < wait {
			wait = rest
		}
	}
	return now, wait
}

// release takes back that sources are running of which nothing was begun: this process may lead again.
func (k *Keeper) release(sources []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, s := range sources {
		k.sources[s].running = false
	}
}

func (k *Keeper) dueAt(source string, st *state) time.Time {
	switch {
	case st.displaced && st.record.Keys != "":
		return time.Time{}
	case !st.next.IsZero():
		return st.next
	case !st.wanted || st.record.Keys == "" || st.record.Error != "":
		return time.Time{}
	}
	return st.record.Fetched.Add(k.spread(source))
}

// spread is the age at which keys of the source are refreshed: sources that began together part.
func (k *Keeper) spread(source string) time.Duration {
	h := fnv.New32a()
	h.Write([]byte(source)) // never fails
	return k.cfg.Refresh - time.Duration(uint64(k.cfg.Refresh)/10*uint64(h.Sum32()%1024)/1024)
}

// attempt fetches and stores one source, or removes what is stored of one that nobody wants.
func (k *Keeper) attempt(ctx context.Context, source string) {
	k.mu.Lock()
	st := k.sources[source]
	old, wanted := st.record, st.wanted
	st.displaced = false
	k.mu.Unlock()
	if !wanted {
		err := k.cfg.Store.Delete(ctx, source)
		if err != nil && ctx.Err() == nil {
			k.cfg.Log.Warn("remove keys that nobody wants", "source", source, "err", err)
		}
		k.done(source, old, err == nil, "")
		return
	}
	keys, err := k.cfg.Fetch(ctx, source)
	if ctx.Err() != nil {
		k.done(source, old, true, "")
		return
	}
	now := old
	now.Source, now.Error = source, ""
	if err == nil {
		now.Keys, now.Fetched = keys, k.cfg.Clock.Now().UTC().Truncate(time.Second)
		if !k.fits(now) {
			err = fmt.Errorf("answers with %d bytes of keys, for which there is no room", len(keys))
		}
	}
	if err != nil {
		now.Keys, now.Fetched, now.Error = old.Keys, old.Fetched, err.Error()
		if old.Error != now.Error {
			k.cfg.Log.Warn("fetch keys", "source", source, "err", err, "last", old.Fetched)
		}
		if !k.fits(now) { // nor for those that it had
			now.Keys, now.Fetched = "", time.Time{}
			k.shrink(now)
		}
	}
	result := map[bool]string{true: "good", false: "failed"}[err == nil]
	if now != old {
		if serr := k.cfg.Store.Save(ctx, now); serr != nil {
			if ctx.Err() == nil {
				k.cfg.Log.Warn("store keys", "source", source, "err", serr)
			}
			k.done(source, old, false, result)
			return
		}
	}
	k.done(source, now, err == nil, result)
}

// done records how an attempt ended.
func (k *Keeper) done(source string, r jwks.Record, good bool, result string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if result != "" {
		k.fetches[result]++
	}
	st := k.sources[source]
	st.running = false // what could not be stored keeps its room, for the next attempt
	switch {
	case !st.wanted && good:
		delete(k.sources, source)
	case good:
		st.record, st.failures, st.next = r, 0, time.Time{}
	default:
		st.record = r
		wait := min(k.cfg.Retry<<min(st.failures, 20), k.cfg.Refresh)
		st.failures++
		st.next = k.cfg.Clock.Now().Add(wait)
	}
}

var (
	fetchesDesc = prometheus.NewDesc("undermesh_jwks_fetches_total", "Fetches of keys, by how they ended.", []string{"result"}, nil)
	sourcesDesc = prometheus.NewDesc("undermesh_jwks_sources",
		"Sources of keys by state: fresh, stale (older than they should be; the last known keys are served), missing (none yet).", []string{"state"}, nil)
	ageDesc = prometheus.NewDesc("undermesh_jwks_age_seconds", "Age of the oldest keys that are served.", nil, nil)
)

// Describe implements prometheus.Collector.
func (k *Keeper) Describe(ch chan<- *prometheus.Desc) {
	ch <- fetchesDesc
	ch <- sourcesDesc
	ch <- ageDesc
}

// Collect implements prometheus.Collector.
func (k *Keeper) Collect(ch chan<- prometheus.Metric) {
	k.mu.Lock()
	states, age, now := map[string]int{"fresh": 0, "stale": 0, "missing": k.skipped}, time.Duration(0), k.cfg.Clock.Now()
	for _, st := range k.sources {
		switch a := now.Sub(st.record.Fetched); {
		case !st.wanted:
		case st.record.Keys == "":
			states["missing"]++
		case a > 2*k.cfg.Refresh || st.record.Error != "":
			states["stale"]++
			age = max(age, a)
		default:
			states["fresh"]++
			age = max(age, a)
		}
	}
	fetches := maps.Clone(k.fetches)
	k.mu.Unlock()
	for s, n := range states {
		ch <- prometheus.MustNewConstMetric(sourcesDesc, prometheus.GaugeValue, float64(n), s)
	}
	for r, n := range fetches {
		ch <- prometheus.MustNewConstMetric(fetchesDesc, prometheus.CounterValue, float64(n), r)
	}
	ch <- prometheus.MustNewConstMetric(ageDesc, prometheus.GaugeValue, age.Seconds())
}
