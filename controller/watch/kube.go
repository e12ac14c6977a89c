package watch

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

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
	cfg  KubeConfig
	wake chan struct{}

	mu      sync.Mutex // protects below
	pending map[objectKey]model.Event
}

type objectKey struct {
	kind model.Kind
	name model.Name
}

// NewKubernetes returns a Source that has not connected yet.
func NewKubernetes(cfg KubeConfig) *Kubernetes {
	return &Kubernetes{cfg: cfg.withDefaults(), wake: make(chan struct{}, 1), pending: map[objectKey]model.Event{}}
}

// Run implements Source. It waits for the API server as long as it takes; objects whose kinds are not served are
// none, and are picked up when their kinds are.
func (k *Kubernetes) Run(ctx context.Context, emit func([]model.Event)) error {
	g, ctx := errgroup.WithContext(ctx)
	synced, stop, err := k.startBuiltin(ctx)
	if err != nil {
		return err
	}
	known := k.runKinds(ctx, g)
	g.Go(func() error {
		if !cache.WaitForCacheSync(ctx.Done(), synced...) {
			return nil
		}
		known()
		if ctx.Err() != nil {
			return nil
		}
		emit(k.drain())
		k.pump(ctx, emit)
		return nil
	})
	err = g.Wait()
	stop()
	return err
}

func (k *Kubernetes) startBuiltin(ctx context.Context) (synced []cache.InformerSynced, stop func(), err error) {
	all := informers.NewSharedInformerFactoryWithOptions(k.cfg.Client, 0, informers.WithTransform(strip))
	named := func(name string) informers.SharedInformerFactory { // the control plane may read no others
		return informers.NewSharedInformerFactoryWithOptions(k.cfg.Client, 0, informers.WithTransform(strip),
			informers.WithNamespace(k.cfg.Namespace), informers.WithTweakListOptions(func(o *metav1.ListOptions) {
				o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
			}))
	}
	own, keys := named(api.MeshConfigMap), named(jwks.ConfigMap)
	// Slices that Kubernetes' own controller makes for selectors say nothing that the pods do not; they are most of all.
	manual := informers.NewSharedInformerFactoryWithOptions(k.cfg.Client, 0, informers.WithTransform(strip),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.LabelSelector = discoveryv1.LabelManagedBy + "!=" + model.SliceController
		}))
	pods := all.Core().V1().Pods().Informer()
	if err := pods.SetTransform(newPool().slim); err != nil {
		return nil, nil, fmt.Errorf("watch API server: %w", err)
	}
	for _, inf := range []cache.SharedIndexInformer{
		pods, all.Core().V1().Services().Informer(), all.Core().V1().Nodes().Informer(),
		manual.Discovery().V1().EndpointSlices().Informer(), own.Core().V1().ConfigMaps().Informer(),
		keys.Core().V1().ConfigMaps().Informer(),
	} {
		reg, err := inf.AddEventHandler(k.handler())
		if err != nil {
			return nil, nil, fmt.Errorf("watch API server: %w", err)
		}
		synced = append(synced, reg.HasSynced)
	}
	all.Start(ctx.Done())
	own.Start(ctx.Done())
	keys.Start(ctx.Done())
	manual.Start(ctx.Done())
	return synced, func() { all.Shutdown(); own.Shutdown(); keys.Shutdown(); manual.Shutdown() }, nil
}

func (k *Kubernetes) handler() cache.ResourceEventHandler {
	set := func(o any, gone bool) {
		if tomb, ok := o.(cache.DeletedFinalStateUnknown); ok {
			o = tomb.Obj
		}
		if p, ok := o.(*slimPod); ok {
			e := model.Event{Kind: model.KindPod, Name: p.name}
			if !gone && p.pod != nil {
				e.Object = p.pod
			}
			k.put(e)
			return
		}
		kind, ok := kindOf(o)
		meta, isMeta := o.(metav1.Object)
		if !ok || !isMeta {
			k.cfg.Log.Error("informer delivered an unknown type", "type", wrongType(o))
			return
		}
		e := model.Event{Kind: kind, Name: nameOf(meta.GetNamespace(), meta.GetName())}
		if !gone {
			e.Object = o
		}
		k.put(e)
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) { set(o, false) }, UpdateFunc: func(_, o any) { set(o, false) },
		DeleteFunc: func(o any) { set(o, true) },
	}
}

func (k *Kubernetes) put(e model.Event) {
	k.mu.Lock()
	k.pending[objectKey{e.Kind, e.Name}] = e
	k.mu.Unlock()
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

func (k *Kubernetes) drain() []model.Event {
	k.mu.Lock()
	defer k.mu.Unlock()
	events := slices.SortedFunc(maps.Values(k.pending), func(a, b model.Event) int {
		return strings.Compare(string(a.Kind)+" "+a.Name.String(), string(b.Kind)+" "+b.Name.String())
	})
	k.pending = map[objectKey]model.Event{} // a map that was cleared keeps the room of the first list
	return events
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
		if events := k.drain(); len(events) > 0 {
			emit(events)
		}
	}
}
