package watch

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// store is an API server with one kind, whose watches can be held up.
type store struct {
	mu      sync.Mutex // protects below
	version int
	pods    map[string]int // version by name
	watches []*apiwatch.RaceFreeFakeWatcher

	down  atomic.Bool
	deaf  atomic.Bool // watches say nothing
	lists atomic.Int32
}

// advance lets other kinds change, or restores a backup.
func (s *store) advance(by int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version += by
}

func (s *store) object(name string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: name, ResourceVersion: strconv.Itoa(s.pods[name])},
		Spec: corev1.PodSpec{NodeName: "n" + strconv.Itoa(s.pods[name])}}
}

// set changes a pod, or removes it.
func (s *store) set(name string, gone bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	s.pods[name] = s.version
	o := s.object(name)
	if gone {
		delete(s.pods, name)
	}
	for _, w := range s.watches {
		switch {
		case s.deaf.Load() || w.IsStopped():
		case gone:
			w.Delete(o)
		default:
			w.Modify(o)
		}
	}
}

func (s *store) reader() reader {
	return reader{
		list: func(_ context.Context, o metav1.ListOptions) (runtime.Object, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.down.Load() {
				return nil, errors.New("connection refused")
			}
			if o.ResourceVersion == "0" {
				return nil, errors.New("a list of any version")
			}
			out := &corev1.PodList{ListMeta: metav1.ListMeta{ResourceVersion: strconv.Itoa(s.version)}}
			if o.Limit == 1 {
				return out, nil
			}
			s.lists.Add(1)
			for n := range s.pods {
				out.Items = append(out.Items, *s.object(n))
			}
			return out, nil
		},
		watch: func(context.Context, metav1.ListOptions) (apiwatch.Interface, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.down.Load() {
				return nil, errors.New("connection refused")
			}
			w := apiwatch.NewRaceFreeFake()
			s.watches = append(s.watches, w)
			return w, nil
		},
	}
}

// followed runs a source over one kind and returns it with what was handed on.
func followed(t *testing.T, s *store) (*Kubernetes, func() map[string]string) {
	t.Helper()
	client := fake.NewClientset()
	k := NewKubernetes(KubeConfig{Client: client, Clock: clock.System()})
	f := k.newFollow(model.KindPod, client, s.reader(), &corev1.Pod{}, newPool().slim, eventOf)
	k.history.follows[model.KindPod] = f
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	nodes := map[string]string{}
	emit := func(events []model.Event) {
		mu.Lock()
		defer mu.Unlock()
		for _, e := range events {
			if p := model.PodOf(e.Object); p != nil {
				nodes[e.Name.Name] = p.Node
			} else {
				delete(nodes, e.Name.Name)
			}
		}
	}
	var running sync.WaitGroup
	running.Go(func() { f.run(ctx) })
	running.Go(func() {
		<-f.listed
		k.handOn(emit, true)
		k.pump(ctx, emit)
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	<-f.listed
	time.Sleep(time.Second) // of the bubble
	return k, func() map[string]string {
		mu.Lock()
		defer mu.Unlock()
		return nodes
	}
}

func outcomes(t *testing.T, h *History) string {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(h)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range families {
		for _, m := range f.GetMetric() {
			out = append(out, m.GetLabel()[0].GetValue()+" "+strconv.Itoa(int(m.GetCounter().GetValue())))
		}
	}
	return strings.Join(out, ", ")
}

// TestReach: a replica answers a node that has seen more than it has only when it has come as far, or when the API server
// itself is older than that.
func TestReach(t *testing.T) {
	for _, x := range []struct {
		name    string
		seen    string
		during  func(s *store)   // while the replica's watch says nothing
		after   func(s *store)   // 1 s after the node came
		within  [2]time.Duration // how long it waits
		refused bool
		outcome string
		nodes   string
	}{
		{name: "no more than it has", seen: "pod=7", outcome: "", nodes: "n7"},
		{name: "nothing", seen: "", nodes: "n7"},
		{name: "no such text", seen: "pod=x,y,=,pod,ap=-1,zz=99999", nodes: "n7"},
		{name: "the change arrives", seen: "pod=8", after: func(s *store) { s.deaf.Store(false); s.set("a", false) },
			within: [2]time.Duration{time.Second, 2 * time.Second}, outcome: "caught_up 1", nodes: "n8"},
		{name: "the watch is stuck", seen: "pod=8", during: func(s *store) { s.set("a", false) },
			within: [2]time.Duration{2 * time.Second, 4 * time.Second}, outcome: "caught_up 1", nodes: "n8"},
		{name: "the API server is away", seen: "pod=8", during: func(s *store) { s.set("a", false); s.down.Store(true) },
			within: [2]time.Duration{10 * time.Second, 11 * time.Second}, refused: true, outcome: "refused 1", nodes: "n7"},
		{name: "and comes back", seen: "pod=8", during: func(s *store) { s.set("a", false); s.down.Store(true) }, after: func(s *store) { s.down.Store(false) },
			within: [2]time.Duration{2 * time.Second, 5 * time.Second}, outcome: "caught_up 1", nodes: "n8"},
		{name: "it was restored", seen: "pod=9000",
			within: [2]time.Duration{2 * time.Second, 3 * time.Second}, outcome: "restored 1", nodes: "n7"},
	} {
		t.Run(x.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &store{version: 6, pods: map[string]int{}}
				s.set("a", false)
				k, nodes := followed(t, s)
				if got := k.History().Seen(); got != "pod=7" {
					t.Errorf("seen is %q", got)
				}
				s.deaf.Store(true)
				if x.during != nil {
					x.during(s)
				}
				if x.after != nil {
					time.AfterFunc(time.Second, func() { x.after(s) })
				}
				begin := time.Now()
				err := k.History().Reach(t.Context(), x.seen)
				took := time.Since(begin)
				if errors.Is(err, ErrBehind) != x.refused || (err != nil) != x.refused {
					t.Errorf("got %v", err)
				}
				if took < x.within[0] || took > x.within[1] {
					t.Errorf("it took %s", took)
				}
				if got := outcomes(t, k.History()); got != x.outcome {
					t.Errorf("counted %q", got)
				}
				if got := nodes()["a"]; got != x.nodes {
					t.Errorf("serves %s, want %s", got, x.nodes)
				}
			})
		})
	}
}

// TestReachManyNodes: nodes in thousands make the API server be read once.
func TestReachManyNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &store{version: 6, pods: map[string]int{}}
		s.set("a", false)
		k, _ := followed(t, s)
		s.deaf.Store(true)
		s.set("a", false)
		before := s.lists.Load()
		var all sync.WaitGroup
		for range 1000 {
			all.Go(func() {
				if err := k.History().Reach(t.Context(), "pod=8"); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if n := s.lists.Load() - before; n != 1 {
			t.Errorf("%d lists", n)
		}
	})
}

// TestSeen: what was deleted counts too, also when it was deleted while nobody watched; and after a restore the version goes
// back with what is served.
func TestSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &store{version: 6, pods: map[string]int{}}
		s.set("a", false)
		s.set("b", false)
		k, nodes := followed(t, s)
		h := k.History()
		want := func(what, seen string, pods int) {
			t.Helper()
			time.Sleep(time.Second)
			if got := h.Seen(); got != seen || len(nodes()) != pods {
				t.Errorf("%s: %q, %d pods", what, got, len(nodes()))
			}
		}
		want("at the start", "pod=8", 2)
		s.set("a", true)
		want("deleted", "pod=9", 1)
		s.deaf.Store(true)
		s.set("b", true)
		s.advance(10)
		h.follows[model.KindPod].again()
		want("deleted unseen", "pod=20", 0)
		s.advance(10)
		h.follows[model.KindPod].again()
		want("nothing happened", "pod=20", 0)
		s.advance(-27)
		h.follows[model.KindPod].again()
		want("restored", "pod=3", 0)
	})
}
