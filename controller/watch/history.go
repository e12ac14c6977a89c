package watch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// mark is how far a kind was followed, in versions of the API server's.
type mark struct {
	changed uint64 // of the last change that was passed on
	current uint64 // and nothing happened after it up to here
}

// secures are the kinds whose older state may be less secure: who may connect, by which identity and how, and who is whom.
var secures = map[model.Kind]string{
	model.KindConfigMap: "cm", model.KindPod: "pod", model.KindAuthorizationPolicy: "ap", model.KindPeerAuthentication: "pa",
	model.KindRequestAuthentication: "ra", model.KindDestinationRule: "dr",
}

// History keeps a node that comes from another replica from going back. Every state that is served names the versions of the
// kinds above that it holds; a node gives them back when it connects, and a replica that has not come so far waits, looks, and
// answers only when it has. What it looks for is the API server's newest version: where that is older than what the node has
// seen, the API server was restored from a backup, and there is nothing newer to wait for.
//
// It is safe for concurrent use.
type History struct {
	clock clock.Clock
	log   *slog.Logger
	wait  *prometheus.CounterVec

	mu      sync.Mutex // protects below
	serving string
	applied map[model.Kind]mark
	moved   chan struct{} // closed, and made anew, when applied changed
	follows map[model.Kind]*follow
	looks   map[model.Kind]time.Time // when it was last listed again
}

// How long Reach waits for what comes by itself before it asks the API server, how long for everything, and how long between
// two lists of a kind.
const (
	patience  = 2 * time.Second
	maxBehind = 10 * time.Second
	relisting = 10 * time.Second
)

func newHistory(c clock.Clock, log *slog.Logger) *History {
	return &History{clock: c, log: log, applied: map[model.Kind]mark{}, moved: make(chan struct{}),
		follows: map[model.Kind]*follow{}, looks: map[model.Kind]time.Time{},
		wait: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "undermesh_controller_behind_total",
			Help: "Nodes that had seen more than this replica: caught_up, refused, or restored when the API server itself is older."}, []string{"outcome"}),
	}
}

// Describe implements prometheus.Collector.
func (h *History) Describe(ch chan<- *prometheus.Desc) { h.wait.Describe(ch) }

// Collect implements prometheus.Collector.
func (h *History) Collect(ch chan<- prometheus.Metric) { h.wait.Collect(ch) }

// Seen is what the state holds that is served now, "" before there is one. It may be ahead of it, never behind.
func (h *History) Seen() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.serving
}

// before is called with what is about to be applied, after with what was.
func (h *History) before(reached map[model.Kind]mark) {
	var parts []string
	for kind, short := range secures {
		if m := reached[kind]; m.changed > 0 {
			parts = append(parts, short+"="+strconv.FormatUint(m.changed, 10))
		}
	}
	slices.Sort(parts)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.serving = strings.Join(parts, ",")
}

func (h *History) after(reached map[model.Kind]mark) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.applied = reached
	close(h.moved)
	h.moved = make(chan struct{})
}

// behind returns the kinds that have not come as far as seen says, and what tells that they moved. What is no such text says
// nothing.
func (h *History) behind(seen map[model.Kind]uint64) (map[model.Kind]uint64, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := map[model.Kind]uint64{}
	for kind, v := range seen {
		if h.applied[kind].current < v {
			out[kind] = v
		}
	}
	return out, h.moved
}

func parseSeen(text string) map[model.Kind]uint64 {
	out := map[model.Kind]uint64{}
	for part := range strings.SplitSeq(text, ",") {
		short, v, _ := strings.Cut(part, "=")
		for kind, s := range secures {
			if s == short {
				out[kind] = version(v)
			}
		}
	}
	return out
}

// ErrBehind is in the error of Reach.
var ErrBehind = errors.New("this replica has not seen what the node has")

// Reach returns nil as soon as this replica serves no less than what seen says; within 10 s, or ErrBehind.
func (h *History) Reach(ctx context.Context, seen string) error {
	wanted := parseSeen(seen)
	behind, moved := h.behind(wanted)
	if len(behind) == 0 {
		return nil
	}
	limit, enough := h.timer(maxBehind)
	defer limit()
	patient, look := h.timer(patience)
	defer func() { patient() }()
	older := false
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the state that the node has: %w", context.Cause(ctx))
		case <-enough:
			h.wait.WithLabelValues("refused").Inc()
			return fmt.Errorf("%w: %s", ErrBehind, describe(behind))
		case <-moved:
		case <-look:
			for _, kind := range h.look(ctx, behind) {
				older = true
				delete(wanted, kind)
			}
			patient, look = h.timer(patience)
		}
		if behind, moved = h.behind(wanted); len(behind) > 0 {
			continue
		}
		if older {
			h.wait.WithLabelValues("restored").Inc()
			h.log.Error("API server is older than what a node has seen, as after a restore: what it has is served", "seen", seen, "serving", h.Seen())
		} else {
			h.wait.WithLabelValues("caught_up").Inc()
		}
		return nil
	}
}

// timer returns a channel that is closed after the time, and what ends the timer.
func (h *History) timer(d time.Duration) (stop func(), over <-chan struct{}) {
	ch := make(chan struct{})
	t := h.clock.AfterFunc(d, func() { close(ch) })
	return func() { t.Stop() }, ch
}

// look asks the API server how far the kinds are. It returns those that are older there than what was seen, and has the
// others listed again.
func (h *History) look(ctx context.Context, behind map[model.Kind]uint64) (older []model.Kind) {
	ctx, cancel := clock.WithTimeout(ctx, h.clock, patience, nil)
	defer cancel()
	for kind, v := range behind {
		h.mu.Lock()
		f := h.follows[kind]
		h.mu.Unlock()
		if f == nil {
			continue // it is not served yet, as far as is known
		}
		newest, err := f.newest(ctx)
		switch {
		case err != nil:
			h.log.Warn("a node has seen more than this replica, which cannot ask for it", "kind", string(kind), "err", err)
		case newest < v:
			older = append(older, kind)
		case h.mayList(kind):
			h.log.Warn("a node has seen more than this replica, which reads it again", "kind", string(kind), "seen", v)
			f.again()
		}
	}
	return older
}

// mayList spares the API server: nodes come in thousands.
func (h *History) mayList(kind model.Kind) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.clock.Now()
	if last, ok := h.looks[kind]; ok && now.Before(last.Add(relisting)) {
		return false
	}
	h.looks[kind] = now
	return true
}

func describe(behind map[model.Kind]uint64) string {
	var out []string
	for _, kind := range slices.Sorted(maps.Keys(behind)) {
		out = append(out, fmt.Sprintf("%s of version %d", kind, behind[kind]))
	}
	return strings.Join(out, ", ")
}
