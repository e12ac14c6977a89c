package watch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/configdir"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/validate"
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
		c.CRDPoll = 2 * time.Second
	}
	return c
}

// crdKinds are the kinds that are watched and whose definitions may be missing.
var crdKinds = []model.Kind{model.KindPeerAuthentication, model.KindAuthorizationPolicy, model.KindServiceEntry, model.KindWorkloadEntry}

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

// Run implements Source. It waits for the API server as long as it takes; policies whose kinds are not served are none,
// and are picked up when their kinds are.
func (k *Kubernetes) Run(ctx context.Context, emit func([]model.Event)) error {
	g, ctx := errgroup.WithContext(ctx)
	synced, stop, err := k.startBuiltin(ctx)
	if err != nil {
		return err
	}
	var known sync.WaitGroup // each of these kinds is absent, or listed
	for _, kind := range crdKinds {
		resource, _ := model.ResourceOf(kind)
		known.Add(1)
		g.Go(func() error { return k.runCRD(ctx, kind, resource, sync.OnceFunc(known.Done)) })
	}
	g.Go(func() error {
		if !cache.WaitForCacheSync(ctx.Done(), synced...) {
			return nil
		}
		known.Wait()
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
	own := informers.NewSharedInformerFactoryWithOptions(k.cfg.Client, 0, informers.WithTransform(strip),
		informers.WithNamespace(k.cfg.Namespace), informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, api.MeshConfigMap).String()
		}))
	// Slices that Kubernetes' own controller makes for selectors say nothing that the pods do not; they are most of all.
	manual := informers.NewSharedInformerFactoryWithOptions(k.cfg.Client, 0, informers.WithTransform(strip),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.LabelSelector = discoveryv1.LabelManagedBy + "!=" + model.SliceController
		}))
	for _, inf := range []cache.SharedIndexInformer{
		all.Core().V1().Pods().Informer(), all.Core().V1().Services().Informer(), all.Core().V1().Nodes().Informer(),
		manual.Discovery().V1().EndpointSlices().Informer(), own.Core().V1().ConfigMaps().Informer(),
	} {
		reg, err := inf.AddEventHandler(k.handler())
		if err != nil {
			return nil, nil, fmt.Errorf("watch API server: %w", err)
		}
		synced = append(synced, reg.HasSynced)
	}
	all.Start(ctx.Done())
	own.Start(ctx.Done())
	manual.Start(ctx.Done())
	return synced, func() { all.Shutdown(); own.Shutdown(); manual.Shutdown() }, nil
}

func (k *Kubernetes) handler() cache.ResourceEventHandler {
	set := func(o any, gone bool) {
		if tomb, ok := o.(cache.DeletedFinalStateUnknown); ok {
			o = tomb.Obj
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
	clear(k.pending)
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
		if !sleep(ctx, k.cfg.Clock, k.cfg.Quiet) {
			return
		}
		if events := k.drain(); len(events) > 0 {
			emit(events)
		}
	}
}

// sleep reports false when ctx ended first.
func sleep(ctx context.Context, c clock.Clock, d time.Duration) bool {
	done := make(chan struct{})
	timer := c.AfterFunc(d, func() { close(done) })
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-done:
		return true
	}
}

// runCRD waits until the kind is served, lists and watches it. known is called once it is absent or listed.
func (k *Kubernetes) runCRD(ctx context.Context, kind model.Kind, resource model.Resource, known func()) error {
	defer known()
	var gvr schema.GroupVersionResource
	for {
		var err error
		gvr, err = k.find(resource)
		if err == nil {
			break
		}
		if errors.Is(err, errNotServed) {
			known()
		} else {
			k.cfg.Log.Warn("ask API server for kinds", "kind", string(kind), "err", err)
		}
		if !sleep(ctx, k.cfg.Clock, k.cfg.CRDPoll) {
			return nil
		}
	}
	inf := dynamicinformer.NewFilteredDynamicInformer(k.cfg.Dynamic, gvr, metav1.NamespaceAll, 0, cache.Indexers{}, nil).Informer()
	set := func(o any, gone bool) {
		if tomb, ok := o.(cache.DeletedFinalStateUnknown); ok {
			o = tomb.Obj
		}
		u, ok := o.(*unstructured.Unstructured)
		if !ok {
			k.cfg.Log.Error("informer delivered an unknown type", "type", wrongType(o))
			return
		}
		k.put(k.crdEvent(kind, u, gone))
	}
	reg, err := inf.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) { set(o, false) }, UpdateFunc: func(_, o any) { set(o, false) },
		DeleteFunc: func(o any) { set(o, true) },
	})
	if err != nil {
		return fmt.Errorf("watch %s: %w", resource.Plural, err)
	}
	done := make(chan struct{})
	go func() { defer close(done); inf.RunWithContext(ctx) }()
	if cache.WaitForCacheSync(ctx.Done(), reg.HasSynced) {
		known()
	}
	<-done
	return nil
}

var errNotServed = errors.New("kind is not served")

// find returns the newest version in which the resource is served, or errNotServed.
func (k *Kubernetes) find(resource model.Resource) (schema.GroupVersionResource, error) {
	for _, v := range resource.Versions {
		gv := schema.GroupVersion{Group: resource.Group, Version: v}
		list, err := k.cfg.Client.Discovery().ServerResourcesForGroupVersion(gv.String())
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return schema.GroupVersionResource{}, fmt.Errorf("list resources of %s: %w", gv, err)
		}
		for _, r := range list.APIResources {
			if r.Name == resource.Plural {
				return gv.WithResource(r.Name), nil
			}
		}
	}
	return schema.GroupVersionResource{}, errNotServed
}

// crdEvent decodes strictly: the API server may store fields that this build does not know, and a policy must not be
// enforced without them. An object of another kind that cannot be decoded counts as gone.
func (k *Kubernetes) crdEvent(kind model.Kind, u *unstructured.Unstructured, gone bool) model.Event {
	e := model.Event{Kind: kind, Name: nameOf(u.GetNamespace(), u.GetName())}
	if gone {
		return e
	}
	meta := metav1.ObjectMeta{Name: u.GetName(), Namespace: u.GetNamespace(), UID: u.GetUID(), Labels: u.GetLabels(),
		Annotations: u.GetAnnotations(), Generation: u.GetGeneration(), CreationTimestamp: u.GetCreationTimestamp()}
	raw := map[string]any{"apiVersion": u.GetAPIVersion(), "kind": u.GetKind(), "spec": u.Object["spec"],
		"metadata": map[string]any{"name": u.GetName(), "namespace": u.GetNamespace()}}
	if kind == model.KindServiceEntry {
		raw["status"] = u.Object["status"]
	}
	entry, err := configdir.Decode(raw)
	switch {
	case err == nil:
	case kind == model.KindPeerAuthentication:
		e.Issues = []validate.Field{{Path: "spec", Message: err.Error()}}
		e.Object = &securityv1.PeerAuthentication{ObjectMeta: meta}
		return e
	case kind == model.KindAuthorizationPolicy:
		e.Issues = []validate.Field{{Path: "spec", Message: err.Error()}}
		e.Object = &securityv1.AuthorizationPolicy{ObjectMeta: meta}
		return e
	default:
		k.cfg.Log.Error("object cannot be read and does not count", "kind", string(kind), "object", e.Name.String(), "err", err)
		return e
	}
	switch o := entry.Object.(type) {
	case *securityv1.PeerAuthentication:
		o.ObjectMeta = meta
	case *securityv1.AuthorizationPolicy:
		o.ObjectMeta = meta
	case *networkingv1.ServiceEntry:
		o.ObjectMeta = meta
	case *networkingv1.WorkloadEntry:
		o.ObjectMeta = meta
	}
	e.Object, e.Issues = entry.Object, fieldsOf(entry.Issues)
	return e
}
