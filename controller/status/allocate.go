package status

import (
	"cmp"
	"context"
	"hash/fnv"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// Assignment is what the status of one ServiceEntry should say of addresses.
type Assignment struct {
	Name model.Name
	UID  string // of the object that it is for; "" for any of that name
	Gone bool   // there is no such entry any more: what was stored apart from it goes
	// Addresses are sorted by host; those of one host begin with IPv4.
	Addresses []HostAddress
}

// HostAddress is one address of one host.
type HostAddress struct {
	Host string
	IP   netip.Addr
}

// addressWriter stores an assignment; it does nothing when the entry is gone.
type addressWriter interface {
	WriteAddresses(ctx context.Context, a Assignment) error
}

// AllocatorConfig of an Allocator.
type AllocatorConfig struct {
	Writer  addressWriter  // required
	Pools   []netip.Prefix // one address of each for every host; required
	Log     *slog.Logger   // default slog.DiscardHandler
	Clock   clock.Clock    // default clock.System
	Backoff time.Duration  // between attempts after an error; default 2 s
}

// Allocator gives addresses to the hosts of ServiceEntries that have none. Only one replica, the leader, runs it; all serve
// what is stored. An address depends on the host and what else is assigned, so that another leader comes to the same one. It is
// free again when the entry is gone. All methods are safe for concurrent use.
type Allocator struct {
	cfg  AllocatorConfig
	wake chan struct{}

	mu      sync.Mutex // protects below
	entries map[model.Name]model.EntryAddresses
	written map[model.Name]written // that the API server has not shown yet
	gone    map[model.Name]bool    // entries to clean up after
}

// written is an assignment that was stored. What the API server shows may be older for a while.
type written struct {
	Assignment
	at time.Time
}

// settle is how long an assignment that was written may take to be shown; then what is shown counts.
const settle = 10 * time.Second

// NewAllocator returns an Allocator that writes nothing before Run.
func NewAllocator(cfg AllocatorConfig) *Allocator {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.System()
	}
	if cfg.Backoff <= 0 {
		cfg.Backoff = 2 * time.Second
	}
	return &Allocator{cfg: cfg, wake: make(chan struct{}, 1), entries: map[model.Name]model.EntryAddresses{},
		written: map[model.Name]written{}, gone: map[model.Name]bool{}}
}

// Update takes in entries that changed.
func (a *Allocator) Update(entries []model.EntryAddresses) {
	a.mu.Lock()
	for _, e := range entries {
		if old, had := a.entries[e.Name]; e.Gone || had && old.UID != e.UID {
			a.gone[e.Name] = had || a.gone[e.Name]
			delete(a.entries, e.Name)
			delete(a.written, e.Name)
		}
		if e.Gone {
			continue
		}
		delete(a.gone, e.Name)
		a.entries[e.Name] = e
		if w, waits := a.written[e.Name]; waits && e.Clean && w.holds(e) {
			delete(a.written, e.Name)
		}
	}
	a.mu.Unlock()
	a.signal()
}

// holds reports whether the entry shows the assignment.
func (w Assignment) holds(e model.EntryAddresses) bool {
	for _, h := range w.Addresses {
		if !slices.Contains(e.Hosts[h.Host], h.IP) {
			return false
		}
	}
	return true
}

func (a *Allocator) signal() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// Run assigns until ctx ends.
func (a *Allocator) Run(ctx context.Context) error {
	a.mu.Lock()
	clear(a.written) // by the time before this replica led: another one did since
	a.mu.Unlock()
	a.signal()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.wake:
		}
		if a.write(ctx) {
			continue
		}
		timer := a.cfg.Clock.AfterFunc(a.cfg.Backoff, a.signal)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-a.wake:
			timer.Stop()
		}
		a.signal()
	}
}

// write reports whether everything was written.
func (a *Allocator) write(ctx context.Context) bool {
	good := true
	for _, w := range a.plan() {
		if ctx.Err() != nil {
			return true
		}
		if err := a.cfg.Writer.WriteAddresses(ctx, w); err != nil {
			if ctx.Err() == nil {
				a.cfg.Log.Warn("write addresses of service entry", "object", w.Name.String(), "err", err)
			}
			good = false
			continue
		}
		a.mu.Lock()
		if e, still := a.entries[w.Name]; w.Gone {
			delete(a.gone, w.Name)
		} else if still && e.UID == w.UID {
			a.written[w.Name] = written{w, a.cfg.Clock.Now()}
		}
		a.mu.Unlock()
	}
	return good
}

// plan returns what must be written, the oldest entry first. Addresses that are stored, or were written and are not shown yet,
// stay as they are.
func (a *Allocator) plan() []Assignment {
	a.mu.Lock()
	defer a.mu.Unlock()
	now, used := a.cfg.Clock.Now(), map[netip.Addr]bool{}
	maps.DeleteFunc(a.written, func(_ model.Name, w written) bool { return now.Sub(w.at) > settle })
	for n, e := range a.entries {
		for _, ips := range e.Hosts {
			for _, ip := range ips {
				used[ip] = true
			}
		}
		for _, h := range a.written[n].Addresses {
			used[h.IP] = true
		}
	}
	var out []Assignment
	for n := range a.gone {
		out = append(out, Assignment{Name: n, Gone: true})
	}
	list := slices.SortedFunc(maps.Values(a.entries), func(x, y model.EntryAddresses) int {
		return cmp.Or(cmp.Compare(x.Since, y.Since), cmp.Compare(x.Name.String(), y.Name.String()))
	})
	for _, e := range list {
		if _, waits := a.written[e.Name]; waits && a.written[e.Name].covers(e) {
			continue
		}
		if w, changed := a.assign(e, used); changed {
			out = append(out, w)
		}
	}
	return out
}

// covers reports whether the assignment has an address for every host of the entry and no other host.
func (w Assignment) covers(e model.EntryAddresses) bool {
	hosts := map[string]bool{}
	for _, h := range w.Addresses {
		hosts[h.Host] = true
		if _, wanted := e.Hosts[h.Host]; !wanted {
			return false
		}
	}
	return len(hosts) == len(e.Hosts)
}

// assign returns what the entry should have, and whether that is not what it has.
func (a *Allocator) assign(e model.EntryAddresses, used map[netip.Addr]bool) (w Assignment, changed bool) {
	w = Assignment{Name: e.Name, UID: e.UID}
	changed = !e.Clean
	for _, host := range slices.Sorted(maps.Keys(e.Hosts)) {
		for _, pool := range a.cfg.Pools {
			ip := have(e.Hosts[host], pool)
			if !ip.IsValid() {
				if ip = pickFree(pool, e.Name.Namespace+"/"+host, used); !ip.IsValid() {
					a.cfg.Log.Error("no address is left", "pool", pool.String(), "object", e.Name.String())
					continue
				}
				used[ip], changed = true, true
			}
			w.Addresses = append(w.Addresses, HostAddress{host, ip})
		}
	}
	return w, changed
}

func have(ips []netip.Addr, pool netip.Prefix) netip.Addr {
	for _, ip := range ips {
		if pool.Contains(ip) {
			return ip
		}
	}
	return netip.Addr{}
}

// poolBits bounds how many addresses of a pool are used: those whose last 16 bits differ.
const poolBits = 16

// pickFree takes the free address that follows the one that the name hashes to, the zero value when there is none. The first
// and the last are left out.
func pickFree(pool netip.Prefix, name string, used map[netip.Addr]bool) netip.Addr {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name)) // never fails
	bits := min(poolBits, pool.Addr().BitLen()-pool.Bits())
	size := uint32(1)<<bits - 2
	start := h.Sum32() % size
	raw := pool.Masked().Addr().AsSlice()
	for i := range size {
		n := (start+i)%size + 1
		b := slices.Clone(raw)
		b[len(b)-2] |= byte(n >> 8)
		b[len(b)-1] |= byte(n)
		if ip, ok := netip.AddrFromSlice(b); ok && !used[ip] {
			return ip
		}
	}
	return netip.Addr{}
}
