package keeper

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/undermesh/undermesh/controller/jwks"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// world is what keepers of several replicas share: sources, and a store whose content comes back to them.
type world struct {
	mu      sync.Mutex
	answers map[string]string // "" fails
	stored  map[string]jwks.Record
	wanted  map[string]bool
	owner   map[string]string // namespace
	limit   int               // of what is stored, in bytes, as the API server has one; 0: none
	keepers []*Keeper
	fetches map[string]int
	broken  bool // the store
	running int
	most    int // fetches at a time
	refused int // saves, for their size
	telling sync.Mutex
	slow    time.Duration
}

func newWorld(wanted ...string) *world {
	w := &world{answers: map[string]string{}, stored: map[string]jwks.Record{}, wanted: map[string]bool{}, fetches: map[string]int{}}
	for _, s := range wanted {
		w.wanted[s] = true
	}
	return w
}

func (w *world) keeper(t *testing.T) *Keeper {
	k, err := New(Config{Fetch: w.fetch, Store: w, Clock: clock.System(), Refresh: 20 * time.Minute, Retry: 5 * time.Second, Parallel: 3})
	if err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	w.keepers = append(w.keepers, k)
	w.mu.Unlock()
	w.tell()
	return k
}

func (w *world) fetch(_ context.Context, source string) (string, error) {
	w.mu.Lock()
	w.running++
	w.most = max(w.most, w.running)
	slow := w.slow
	w.mu.Unlock()
	if slow > 0 {
		done := make(chan struct{})
		clock.System().AfterFunc(slow, func() { close(done) })
		<-done
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.running--
	w.fetches[source]++
	if w.answers[source] == "" {
		return "", errors.New("cannot connect")
	}
	return w.answers[source], nil
}

func (w *world) Save(_ context.Context, r jwks.Record) error {
	w.mu.Lock()
	if w.broken {
		w.mu.Unlock()
		return errors.New("the API server is away")
	}
	if w.limit > 0 {
		_, value := jwks.Encode(r)
		total := len(value)
		for s, other := range w.stored {
			if s != r.Source {
				total += len(other.Source) + len(other.Keys) + len(other.Error)
			}
		}
		if total > w.limit {
			w.refused++
			w.mu.Unlock()
			return errors.New("is too long: may not be more than the limit")
		}
	}
	w.stored[r.Source] = r
	w.mu.Unlock()
	w.tell()
	return nil
}

func (w *world) Delete(_ context.Context, source string) error {
	w.mu.Lock()
	delete(w.stored, source)
	w.mu.Unlock()
	w.tell()
	return nil
}

// tell brings what is stored to all keepers, as informers do: never what was there before what they were told.
func (w *world) tell() {
	w.telling.Lock()
	defer w.telling.Unlock()
	w.mu.Lock()
	var wanted []jwks.Wanted
	var unwanted []jwks.Record
	for s, is := range w.wanted {
		if is {
			r := w.stored[s]
			r.Source = s
			wanted = append(wanted, jwks.Wanted{Record: r, Namespace: w.owner[s]})
		}
	}
	for s, r := range w.stored {
		if !w.wanted[s] {
			unwanted = append(unwanted, r)
		}
	}
	keepers := w.keepers
	w.mu.Unlock()
	for _, k := range keepers {
		k.Set(wanted, unwanted)
	}
}

func (w *world) set(f func()) {
	w.mu.Lock()
	f()
	w.mu.Unlock()
	w.tell()
}

func (w *world) count(source string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fetches[source]
}

func (w *world) record(source string) jwks.Record {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stored[source]
}

// lead runs a keeper until the returned function is called.
func lead(t *testing.T, k *Keeper) (end func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// sources reads the metric of sources by state.
func sources(t *testing.T, k *Keeper) map[string]float64 {
	reg := prometheus.NewRegistry()
	if err := reg.Register(k); err != nil {
		t.Fatal(err)
	}
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range all {
		if f.GetName() == "undermesh_jwks_sources" {
			for _, m := range f.GetMetric() {
				got[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
			}
		}
	}
	return got
}

func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestJW09KeeperFetchesRefreshesAndKeeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const a = "https://a.example/keys"
		w := newWorld(a)
		w.answers[a] = "one"
		k := w.keeper(t)
		synctest.Wait()
		if w.count(a) != 0 {
			t.Fatal("it fetches without being the leader")
		}
		end := lead(t, k)
		synctest.Wait()
		if r := w.record(a); r.Keys != "one" || r.Fetched.IsZero() || w.count(a) != 1 {
			t.Fatalf("stored %+v after %d fetches", r, w.count(a))
		}
		pass(17 * time.Minute)
		if w.count(a) != 1 {
			t.Errorf("%d fetches before the keys are old", w.count(a))
		}
		w.set(func() { w.answers[a] = "two" })
		pass(4 * time.Minute)
		if r := w.record(a); r.Keys != "two" || w.count(a) != 2 {
			t.Errorf("stored %+v after %d fetches", r, w.count(a))
		}
		w.set(func() { w.answers[a] = "" })
		pass(21 * time.Minute)
		r := w.record(a)
		if r.Keys != "two" || r.Error != "cannot connect" || w.count(a) < 4 || w.count(a) > 10 {
			t.Errorf("after the source failed %+v is stored, %d fetches", r, w.count(a))
		}
		pass(2 * time.Hour)
		if got := sources(t, k); got["stale"] != 1 || got["fresh"] != 0 || got["missing"] != 0 {
			t.Error("metric of sources:", got)
		}
		w.set(func() { w.answers[a] = "three" })
		pass(21 * time.Minute)
		if r := w.record(a); r.Keys != "three" || r.Error != "" {
			t.Errorf("after the source came back %+v is stored", r)
		}
		w.set(func() { delete(w.wanted, a) })
		pass(time.Second)
		if _, ok := w.stored[a]; ok {
			t.Error("what nobody wants is kept")
		}
		end()
	})
}

func TestKeeperHandsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const a = "https://a.example/keys"
		w := newWorld(a)
		w.answers[a] = "one"
		first, second := w.keeper(t), w.keeper(t)
		end := lead(t, first)
		pass(time.Minute)
		end()
		end = lead(t, second)
		pass(time.Minute)
		if w.count(a) != 1 {
			t.Errorf("the next leader fetches what is fresh: %d", w.count(a))
		}
		w.set(func() { w.answers[a] = "two" })
		pass(20 * time.Minute)
		if r := w.record(a); r.Keys != "two" {
			t.Errorf("the next leader keeps %+v", r)
		}
		w.set(func() { delete(w.stored, a) }) // by hand
		pass(time.Second)
		if r := w.record(a); r.Keys != "two" {
			t.Errorf("what was removed is %+v", r)
		}
		end()
		pass(time.Hour)
		if n := w.count(a); n != 3 {
			t.Errorf("%d fetches, want 3", n)
		}
	})
}

// TestKeeperLeadsAgain: leadership is lost while fetches wait for a slot; the same process fetches them in its next term.
func TestKeeperLeadsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.slow = 2 * time.Second
		for i := range 10 {
			s := fmt.Sprintf("https://a.example/%d", i)
			w.wanted[s], w.answers[s] = true, "keys"
		}
		k := w.keeper(t)
		end := lead(t, k)
		pass(3 * time.Second)
		w.set(func() { delete(w.wanted, "https://a.example/9") })
		end()
		if n := len(w.stored); n == 0 || n >= 9 {
			t.Fatalf("%d are stored after the first term", n)
		}
		end = lead(t, k)
		pass(time.Minute)
		end()
		if n := len(w.stored); n != 9 || sources(t, k)["fresh"] != 9 || len(k.sources) != 9 {
			t.Errorf("%d are stored after the second term: %v", n, sources(t, k))
		}
	})
}

func TestKeeperHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.slow = 5 * time.Second
		for i := range 9 {
			w.wanted[fmt.Sprintf("https://slow%d.example/", i)] = true
		}
		k := w.keeper(t)
		end := lead(t, k)
		pass(2 * time.Second)
		const b = "https://b.example/"
		w.set(func() { w.wanted[b], w.answers[b] = true, "b" })
		pass(30 * time.Second)
		if w.record(b).Keys != "b" {
			t.Error("sources that fail hold up another one")
		}
		if w.most > 3 {
			t.Errorf("%d fetches at a time", w.most)
		}
		w.set(func() { w.broken = true; w.wanted["https://c.example/"], w.answers["https://c.example/"] = true, "c" })
		pass(time.Minute)
		w.set(func() { w.broken = false })
		pass(5 * time.Minute)
		if w.record("https://c.example/").Keys != "c" {
			t.Error("a store that was away is not asked again")
		}
		end()
	})
}

func TestKeeperBoundsSources(t *testing.T) {
	k, err := New(Config{Fetch: func(context.Context, string) (string, error) { return "", nil }, Store: newWorld(), Clock: clock.System(), MaxSources: 2})
	if err != nil {
		t.Fatal(err)
	}
	set := func(sources ...string) string {
		var wanted []jwks.Wanted
		for _, s := range sources {
			wanted = append(wanted, jwks.Wanted{Record: jwks.Record{Source: s}})
		}
		k.Set(wanted, nil)
		return strings.Join(slices.Sorted(maps.Keys(k.sources)), "") + fmt.Sprint(" ", k.skipped)
	}
	if got := set("c", "a", "b"); got != "ac 1" {
		t.Errorf("looks after %s", got)
	}
	if got := set("b", "c", "a"); got != "bc 1" { // the first ones, whoever came before
		t.Errorf("looks after %s", got)
	}
	if got := set("a"); got != "a 0" {
		t.Errorf("looks after %s", got)
	}
	if _, err := New(Config{}); err == nil {
		t.Error("a keeper without a store is made")
	}
}

// TestStores: both give back what they were given, and one source does not touch another.
func TestStores(t *testing.T) {
	const a, b = "https://a.example/keys", "https://b.example/keys"
	client := fake.NewClientset().CoreV1().ConfigMaps("istio-system")
	var local *corev1.ConfigMap
	for name, s := range map[string]struct {
		Store
		read func() map[string]string
	}{
		"config map": {ConfigMapStore{Client: client}, func() map[string]string {
			cm, err := client.Get(t.Context(), jwks.ConfigMap, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			return cm.Data
		}},
		"local": {NewLocalStore(func(cm *corev1.ConfigMap) { local = cm }), func() map[string]string { return local.Data }},
	} {
		t.Run(name, func(t *testing.T) {
			want := map[string]jwks.Record{a: {Source: a, Keys: keySet(t), Fetched: time.Unix(5000, 0).UTC()}, b: {Source: b, Error: "cannot connect"}}
			err := errors.Join(s.Delete(t.Context(), a), s.Save(t.Context(), jwks.Record{Source: a, Error: "cannot connect"}), s.Save(t.Context(), want[b]), s.Save(t.Context(), want[a]))
			if err != nil {
				t.Fatal(err)
			}
			data := s.read()
			if len(data) != 2 {
				t.Fatal(data)
			}
			for key, value := range data {
				if got, err := jwks.Decode(key, value); err != nil || got != want[got.Source] {
					t.Errorf("got %+v, %v", got, err)
				}
			}
			if err := errors.Join(s.Delete(t.Context(), a), s.Delete(t.Context(), a)); err != nil {
				t.Error(err)
			}
			if data := s.read(); len(data) != 1 || data[jwks.Name(b)] == "" {
				t.Error(data)
			}
		})
	}
}
