package cluster_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/undermesh/undermesh/ztunnel/cluster"
)

// levelModel is one priority as the documents of Envoy read: what takes part, how much is up, and what it gets.
type levelModel struct {
	priority  uint32
	all, up   []string
	load      int // percent
	panicking bool
}

// levelsOf is a reading of Envoy's documents on priorities and panics that shares no code with the cluster. sure is false when every
// level is in a panic, where only who may be picked is told.
func levelsOf(list []cluster.Endpoint, threshold int) (levels []levelModel, sure bool) {
	last := !slices.ContainsFunc(list, func(e cluster.Endpoint) bool { return !e.Draining })
	for p := range uint32(4) {
		l := levelModel{priority: p}
		for _, e := range list {
			if e.Priority != p || e.Draining && !last {
				continue
			}
			l.all = append(l.all, e.Key)
			if e.Healthy || last {
				l.up = append(l.up, e.Key)
			}
		}
		if len(l.all) > 0 {
			levels = append(levels, l)
		}
	}
	health, sum := make([]int, len(levels)), 0
	for i, l := range levels {
		health[i] = min(100, 140*len(l.up)/len(l.all)) // the overprovisioning factor
		sum += health[i]
	}
	sum = min(100, sum)
	panics := 0
	for i := range levels {
		l := &levels[i]
		if l.panicking = sum < 100 && 100*len(l.up) < threshold*len(l.all); l.panicking {
			panics++
		}
	}
	if panics == len(levels) || sum == 0 {
		return levels, false
	}
	left, first := 100, -1
	for i := range levels {
		levels[i].load = min(left, health[i]*100/sum)
		if left -= levels[i].load; first < 0 && health[i] > 0 {
			first = i
		}
	}
	levels[first].load += left
	return levels, true
}

// TestBalancingInvariants: whatever the endpoints are and however they change, each policy picks only who may be picked: of a level
// that has a share of the load, who is up unless the level is in a panic; levels get the shares that their health gives them, and a
// hash stays where it is while nothing changes.
func TestBalancingInvariants(t *testing.T) {
	policies := []string{"ROUND_ROBIN", "RANDOM", "LEAST_REQUEST", "RING_HASH", "MAGLEV"}
	uncertain := 0
	for seed := range uint64(150) {
		r := rand.New(rand.NewPCG(seed, 7))
		policy, threshold := policies[seed%5], []int{0, 50, 70}[r.IntN(3)]
		w := newWorld(t, fmt.Sprintf(`{"lbPolicy": %q, "commonLbConfig": {"healthyPanicThreshold": {"value": %d}}}`, policy, threshold))
		for change := range 3 {
			sick := r.IntN(4)
			list := endpoints(1+r.IntN(24), func(_ int, e *cluster.Endpoint) {
				e.Priority, e.Weight = uint32(r.IntN(3)), uint32(1+r.IntN(3))
				e.Healthy, e.Draining = r.IntN(4) >= sick, r.IntN(6) == 0
			})
			what := fmt.Sprintf("seed %d, change %d, %s", seed, change, policy)
			levels, sure := levelsOf(list, threshold)
			w.Update(w.Spec(), cluster.NewHosts(slices.Clone(list)))
			if !sure {
				uncertain++
			}
			w.checkLevels(what, levels, sure)
			for range 20 {
				in := cluster.PickInput{Hash: r.Uint64(), HasHash: true}
				if a, b := w.pick(in), w.pick(in); a != b && seed%5 > 2 {
					t.Errorf("%s: a hash leads to %q and to %q", what, a, b)
				}
			}
		}
	}
	if uncertain > 250 {
		t.Errorf("%d of 450 cases say nothing of loads", uncertain)
	}
}

// checkLevels compares many picks with a model.
func (w *world) checkLevels(what string, levels []levelModel, sure bool) {
	w.t.Helper()
	const rounds = 2000
	level := map[string]int{}
	may := map[string]bool{"": !sure}
	for i, l := range levels {
		for _, k := range l.all {
			level[k] = i
		}
		from := l.up
		if l.panicking {
			from = l.all
		}
		for _, k := range from {
			may[k] = !sure || l.load > 0
		}
	}
	got := make([]int, len(levels))
	for k, n := range w.picks(rounds) {
		if !may[k] {
			w.t.Errorf("%s: %q is picked %d times: %+v", what, k, n, levels)
		} else if k != "" {
			got[level[k]] += n
		}
	}
	for i, l := range levels {
		if sure {
			if t, ok := w.t.(*testing.T); ok {
				near(t, fmt.Sprintf("%s: priority %d", what, l.priority), got[i], rounds, float64(l.load)/100)
			}
		}
	}
}
