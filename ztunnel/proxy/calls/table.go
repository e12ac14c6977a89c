package calls

import (
	"cmp"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/policy"
	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/cluster"
	"github.com/undermesh/undermesh/ztunnel/http/route"
)

const (
	maxNames    = 4096      // authorities of one pod's requests that are remembered; beyond, they are looked up again
	maxHosts    = 4096      // virtual hosts of one pod; beyond, those are compiled anew that were not used for longest
	maxBytes    = 8 << 20   // and bytes of their messages, of which there is one for each port and host that a request names
	maxClusters = 16384     // clusters of one pod; beyond, there are no further ones
	maxName     = 300       // bytes of an authority that is remembered: the longest name and its port
	Idle        = time.Hour // after which what was not used is forgotten
)

// Config is what the tables of a node need. Clock and Rand are required.
type Config struct {
	Clock clock.Clock
	Rand  func() uint64 // safe for concurrent use
	Log   *slog.Logger  // default: discard
}

// Shared is what the tables of a node have in common. Safe for concurrent use.
type Shared struct {
	cfg    Config
	hosts  interned[route.VirtualHost]
	specs  interned[cluster.Spec]
	lists  cluster.Lists
	faulty sync.Map // texts of errors that were logged; as many as the mesh has faulty objects
}

// NewShared does nothing but to make one.
func NewShared(cfg Config) *Shared {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Shared{cfg: cfg}
}

// Pin says which endpoint of a service with ClientIP affinity the pod is held to now; false when there is none. It is asked at each use.
type Pin func(c policy.Caller, svc *client.Service, port uint16) (Endpoint, bool)

// Table is what the calls of one pod go by. Safe for concurrent use; methods do not block. Callers are of the newest snapshot that
// their pod is known in.
type Table struct {
	shared *Shared
	pin    Pin

	mu       sync.RWMutex // protects below
	snap     *client.Snapshot
	names    map[nameKey]*host // of snap
	hosts    map[policy.Target]*host
	bytes    int // of the messages of hosts
	clusters map[string]*Cluster
	inbound  map[inboundKey]*Inbound
	arrivals map[uint16]*arrivals // by port
}

type nameKey struct {
	port      uint16
	dialled   *client.Service
	workload  bool // policy.Caller.AtWorkload
	authority string
}

// host is a virtual host that is kept.
type host struct {
	compiled *route.VirtualHost
	target   policy.Target
	size     int // bytes of its message
	inputs   policy.Inputs
	checked  *client.Snapshot // the inputs hold in it
	used     atomic.Int64     // Unix seconds
}

// NewTable makes the table of a pod.
func (s *Shared) NewTable(pin Pin) *Table {
	return &Table{shared: s, pin: pin, names: map[nameKey]*host{}, hosts: map[policy.Target]*host{}, clusters: map[string]*Cluster{},
		inbound: map[inboundKey]*Inbound{}, arrivals: map[uint16]*arrivals{}}
}

func (s *Shared) now() int64 { return s.cfg.Clock.Now().Unix() }

// VirtualHost returns what a request for the authority goes by that was made to the port; dialled is the service of the address that
// was dialled, or nil. It never returns nil.
func (t *Table) VirtualHost(c policy.Caller, port uint16, authority []byte, dialled *client.Service) *route.VirtualHost {
	t.mu.RLock()
	var h *host
	if t.snap == c.Snapshot {
		h = t.names[nameKey{port, dialled, c.AtWorkload, string(authority)}]
	}
	t.mu.RUnlock()
	if h == nil {
		h = t.find(c, nameKey{port, dialled, c.AtWorkload, string(authority)})
	}
	if now := t.shared.now(); h.used.Load() != now {
		h.used.Store(now)
	}
	return h.compiled
}

// find looks the name up in the caller's snapshot.
func (t *Table) find(c policy.Caller, key nameKey) *host {
	target := c.Target(key.port, key.authority, key.dialled)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.snap != c.Snapshot {
		t.snap = c.Snapshot
		clear(t.names)
	}
	h := t.hosts[target]
	if h == nil || h.checked != c.Snapshot && !h.inputs.Hold(c) {
		t.dropLocked(target)
		h = t.compile(c, target)
		for len(t.hosts) >= maxHosts || len(t.hosts) > 0 && t.bytes+h.size > maxBytes {
			t.evictLocked()
		}
		t.hosts[target] = h
		t.bytes += h.size
	}
	h.checked = c.Snapshot
	if len(key.authority) > maxName {
		return h
	}
	if len(t.names) >= maxNames {
		clear(t.names)
	}
	t.names[key] = h
	return h
}

// compile never fails: what cannot be compiled answers so.
func (t *Table) compile(c policy.Caller, target policy.Target) *host {
	vh, inputs := c.VirtualHost(target)
	compiled, err := t.shared.hosts.get(vh, func() (*route.VirtualHost, error) { return route.Compile(vh) })
	if err != nil {
		t.shared.report("virtual host cannot be served", vh.GetName(), err)
		compiled = t.shared.mustHost(unserved(vh, err))
	}
	h := &host{compiled: compiled, target: target, size: proto.Size(vh), inputs: inputs, checked: c.Snapshot}
	h.used.Store(t.shared.now())
	return h
}

// report logs an error once.
func (s *Shared) report(msg, name string, err error) {
	if _, again := s.faulty.LoadOrStore(name+"\x00"+err.Error(), nil); !again {
		s.cfg.Log.Warn(msg, "name", name, "err", err)
	}
}

// evictLocked drops the virtual hosts that were not used for longest, an eighth of all.
func (t *Table) evictLocked() {
	order := slices.SortedFunc(maps.Keys(t.hosts), func(a, b policy.Target) int {
		return cmp.Compare(t.hosts[a].used.Load(), t.hosts[b].used.Load())
	})
	for _, target := range order[:(len(order)+7)/8] {
		t.dropLocked(target)
	}
	clear(t.names)
}

// dropLocked forgets a virtual host, if there is one; names may still lead to it.
func (t *Table) dropLocked(target policy.Target) {
	if h := t.hosts[target]; h != nil {
		t.bytes -= h.size
		delete(t.hosts, target)
	}
}
