package keeper

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/undermesh/undermesh/controller/jwks"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// setOf is a set of one key that takes about n bytes more than it must.
func setOf(n int) string {
	return `{"keys":[{"kty":"OKP","kid":"` + strings.Repeat("k", n) + `","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`
}

// crowd is a world whose store takes 1 MiB, with a keeper.
func crowd(t *testing.T) (*world, *Keeper) {
	t.Helper()
	w := newWorld()
	w.owner, w.limit = map[string]string{}, 1<<20
	k, err := New(Config{Fetch: w.fetch, Store: w, Clock: clock.System()})
	if err != nil {
		t.Fatal(err)
	}
	w.keepers = append(w.keepers, k)
	return w, k
}

func (w *world) add(namespace, source, answer string) {
	w.set(func() { w.wanted[source], w.owner[source], w.answers[source] = true, namespace, answer })
}

// TestRoomIsSharedByNamespaces: a namespace whose sources send much fills what nobody else needs, and gives it back when others
// come; it freezes nobody's keys.
func TestRoomIsSharedByNamespaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const honest, late = "https://honest.example/keys", "https://late.example/keys"
		w, k := crowd(t)
		w.add("honest", honest, setOf(1))
		end := lead(t, k)
		defer end()
		for i := range 40 { // all of one size: a smaller one would take a larger one's room, which is free a moment later only
			w.add("evil", fmt.Sprintf("https://evil.example/%02d", i), setOf(60<<10))
		}
		pass(time.Hour)
		held := func() (n int) {
			w.mu.Lock()
			defer w.mu.Unlock()
			for s, r := range w.stored {
				if w.owner[s] == "evil" && r.Keys != "" {
					n++
				}
			}
			return n
		}
		if n := held(); n < 10 || n > 14 || w.refused > 0 {
			t.Errorf("with room to spare %d sets are kept, %d saves refused", n, w.refused)
		}
		w.set(func() { w.answers[honest] = setOf(50 << 10) })
		w.add("late", late, setOf(55<<10))
		pass(time.Hour)
		if w.record(honest).Keys != setOf(50<<10) || w.record(late).Keys != setOf(55<<10) {
			t.Errorf("others' keys are frozen: %q, %q", w.record(honest).Error, w.record(late).Error)
		}
		for i := range 12 {
			w.add(fmt.Sprint("ns", i), fmt.Sprintf("https://ns.example/%d", i), setOf(55<<10))
		}
		pass(2 * time.Hour)
		for i := range 12 {
			if r := w.record(fmt.Sprintf("https://ns.example/%d", i)); r.Keys == "" {
				t.Errorf("source %d of others has no keys: %s", i, r.Error)
			}
		}
		errs := 0
		for i := range 40 {
			if r := w.record(fmt.Sprintf("https://evil.example/%02d", i)); strings.Contains(r.Error, "no room") {
				errs++
			}
		}
		if n := held(); n == 0 || n > 4 || errs < 36 {
			t.Errorf("the greedy one keeps %d sets, and %d of its sources say why", n, errs)
		}
	})
}

// TestLeftOutSourcesTakeNoRoom: a namespace that names ever others of many sources fills nothing with those that were there before.
func TestLeftOutSourcesTakeNoRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, k := crowd(t)
		end := lead(t, k)
		defer end()
		var all []jwks.Wanted
		for round := range 5 {
			var next []jwks.Wanted
			for i := range jwks.MaxSources {
				s := fmt.Sprintf("https://evil.example/%d/%d", round, i)
				w.mu.Lock()
				w.answers[s] = setOf(2000)
				w.mu.Unlock()
				next = append(next, jwks.Wanted{Record: jwks.Record{Source: s}, Namespace: "evil"})
			}
			all = append(next, all...) // those before are named still, and come later
			for range 20 {
				w.mu.Lock()
				for i := range all {
					r := w.stored[all[i].Source]
					r.Source = all[i].Source
					all[i].Record = r
				}
				w.mu.Unlock()
				k.Set(all, nil)
				pass(30 * time.Second)
			}
		}
		if n := len(w.stored); n > jwks.MaxSources {
			t.Errorf("%d records are stored", n)
		}
	})
}

func TestFairShare(t *testing.T) {
	for _, c := range []struct {
		need map[string]int
		room int
		want int
	}{
		{nil, 10, 0},
		{map[string]int{"a": 3, "b": 7}, 10, 7},
		{map[string]int{"a": 3, "b": 8}, 10, 7},
		{map[string]int{"a": 9, "b": 8}, 10, 5},
		{map[string]int{"a": 1, "b": 9, "c": 9}, 10, 4},
		{map[string]int{"a": 1}, -5, 0},
	} {
		if got := fairShare(c.need, c.room); got != c.want {
			t.Errorf("%v in %d: %d, want %d", c.need, c.room, got, c.want)
		}
	}
}
