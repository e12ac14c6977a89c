package watch

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/jwks"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// KubeConfig says which API server to watch.
type KubeConfig struct {
	Client    kubernetes.Interface
	Dynamic   dynamic.Interface
	Namespace string       // where the mesh's ConfigMap is
	Log       *slog.Logger // default slog.DiscardHandler
	Clock     clock.Clock  // default clock.System
	// Quiet is how long events are gathered before they are passed on; default 20 ms.
	Quiet time.Duration
	// CRDPoll is how often the API server is asked for kinds that it does not serve yet; default 2 s.
	CRDPoll time.Duration
}

func (c KubeConfig) withDefaults() KubeConfig {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Clock == nil {
		c.Clock = clock.System()
	}
	if c.Quiet <= 0 {
		c.Quiet = 20 * time.Millisecond
	}
	if c.CRDPoll <= 0 {
		c.CRDPoll = pollPeriod
	}
	return c
}

// Kubernetes is the Source of an API server.
type Kubernetes struct {
	cfg     KubeConfig
	history *History
	wake    chan struct{}

	mu      sync.Mutex // protects below
	pending map[objectKey]model.Event
	reached map[model.Kind]mark
}

type objectKey struct {
	kind model.Kind
	name model.Name
}

// NewKubernetes returns a Source that has not connected yet.
func NewKubernetes(cfg KubeConfig) *Kubernetes {
	cfg = cfg.withDefaults()
	return &Kubernetes{cfg: cfg, history: newHistory(cfg.Clock, cfg.Log), wake: make(chan struct{}, 1),
		pending: map[objectKey]model.Event{}, reached: map[model.Kind]mark{}}
}

// History is how far this source came.
func (k *Kubernetes) History() *History { return k.history }

// Run implements Source. It waits for the API server as long as it takes; objects whose kinds are not served are
// none, and are picked up when their kinds are.
func (k *Kubernetes) Run(ctx context.Context, emit func([]model.Event)) error {
	g, ctx := errgroup.WithContext(ctx)
	builtin := k.builtin()
	for _, f := range builtin {
		k.start(ctx, g, f)
	}
	known := k.runKinds(ctx, g)
	g.Go(func() error {
		for _, f := range builtin {
			select {
			case <-f.listed:
			case <-ctx.Done():
				return nil
			}
		}
		known()
		if ctx.Err() != nil {
			return nil
		}
		k.handOn(emit, true)
		k.pump(ctx, emit)
		return nil
	})
	return g.Wait()
}

// start follows a kind until ctx ends.
func (k *Kubernetes) start(ctx context.Context, g *errgroup.Group, f *follow) {
	if f.secures() {
		k.history.mu.Lock()
		k.history.follows[f.kind] = f
		k.history.mu.Unlock()
	}
	g.Go(func() error { f.run(ctx); return nil })
}

// builtin are the kinds that every API server has.
func (k *Kubernetes) builtin() []*follow {
	c, ns := k.cfg.Client, k.cfg.Namespace
	named := func(name string) func(*metav1.ListOptions) { // the control plane may read no other
		return func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
		}
	}
	all := func(*metav1.ListOptions) {}
	// Slices that Kubernetes' own controller makes for selectors say nothing that the pods do not; they are most of all.
	manual := func(o *metav1.ListOptions) {
		o.LabelSelector = discoveryv1.LabelManagedBy + "!=" + model.SliceController
	}
	typed := func(kind model.Kind, r reader, like any) *follow {
		return k.newFollow(kind, c, r, like, strip, eventOf)
	}
	keys := typed(model.KindConfigMap, read(c.CoreV1().ConfigMaps(ns), named(jwks.ConfigMap)), &corev1.ConfigMap{})
	keys.mark = keysKind // of its own: the mesh's is another list
	return []*follow{
		k.newFollow(model.KindPod, c, read(c.CoreV1().Pods(metav1.NamespaceAll), all), &corev1.Pod{}, newPool().slim, eventOf),
		typed(model.KindService, read(c.CoreV1().Services(metav1.NamespaceAll), all), &corev1.Service{}),
		typed(model.KindNode, read(c.CoreV1().Nodes(), all), &corev1.Node{}),
		typed(model.KindEndpointSlice, read(c.DiscoveryV1().EndpointSlices(metav1.NamespaceAll), manual), &discoveryv1.EndpointSlice{}),
		typed(model.KindConfigMap, read(c.CoreV1().ConfigMaps(ns), named(api.MeshConfigMap)), &corev1.ConfigMap{}),
		keys,
	}
}

// keysKind marks how far the ConfigMap of keys was followed.
const keysKind model.Kind = "ConfigMap of keys"

// read lists and watches what a client-go client of one kind has, as tweak narrows it.
func read[L runtime.Object](c interface {
	List(ctx context.Context, o metav1.ListOptions) (L, error)
	Watch(ctx context.Context, o metav1.ListOptions) (apiwatch.Interface, error)
}, tweak func(*metav1.ListOptions)) reader {
	return reader{
		list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			tweak(&o)
			return c.List(ctx, o)
		},
		watch: func(ctx context.Context, o metav1.ListOptions) (apiwatch.Interface, error) {
			tweak(&o)
			return c.Watch(ctx, o)
		},
	}
}

// eventOf is the event of an object of a built-in kind that is there.
func eventOf(o any) (model.Event, bool) {
	if p, ok := o.(*slimPod); ok {
		e := model.Event{Kind: model.KindPod, Name: p.name}
		if p.pod != nil {
			e.Object = p.pod
		}
		return e, true
	}
	kind, ok := kindOf(o)
	m, isMeta := o.(metav1.Object)
	if !ok || !isMeta {
		return model.Event{}, false
	}
	return model.Event{Kind: kind, Name: nameOf(m.GetNamespace(), m.GetName()), Object: m}, true
}

// take adds events to the batch that is gathered, and moves the mark of their kind with them.
func (k *Kubernetes) take(kind model.Kind, events []model.Event, move func(mark) mark) {
	k.mu.Lock()
	for _, e := range events {
		k.pending[objectKey{e.Kind, e.Name}] = e
	}
	k.reached[kind] = move(k.reached[kind])
	k.mu.Unlock()
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

func (k *Kubernetes) drain() ([]model.Event, map[model.Kind]mark) {
	k.mu.Lock()
	defer k.mu.Unlock()
	events := slices.SortedFunc(maps.Values(k.pending), func(a, b model.Event) int {
		return strings.Compare(string(a.Kind)+" "+a.Name.String(), string(b.Kind)+" "+b.Name.String())
	})
	k.pending = map[objectKey]model.Event{} // a map that was cleared keeps the room of the first list
	return events, maps.Clone(k.reached)
}

// handOn passes on what gathered; the first batch too when nothing did. What is served meanwhile may hold all of it already,
// or nothing yet.
func (k *Kubernetes) handOn(emit func([]model.Event), first bool) {
	events, reached := k.drain()
	k.history.before(reached)
	if len(events) > 0 || first {
		emit(events)
	}
	k.history.after(reached)
}

// pump passes on what gathered, Quiet after the first of it.
func (k *Kubernetes) pump(ctx context.Context, emit func([]model.Event)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.wake:
		}
		if !clock.Pause(ctx, k.cfg.Clock, k.cfg.Quiet) {
			return
		}
		k.handOn(emit, false)
	}
}
