package enroll

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedv1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/undermesh/undermesh/controller/api"
)

// Kube is a Cluster over the API server: informers for the pods of one node and for all namespaces.
type Kube struct {
	client     kubernetes.Interface
	node       string
	pods       cache.SharedIndexInformer
	namespaces cache.SharedIndexInformer
	changes    notifier
	recorder   record.EventRecorder
	broadcast  record.EventBroadcaster
}

// NewKube returns a Kube for the node; Run starts it.
func NewKube(client kubernetes.Interface, node string) *Kube {
	onNode := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", node).String()
	}), informers.WithTransform(slim))
	all := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(slim))
	b := record.NewBroadcaster()
	return &Kube{client: client, node: node, pods: onNode.Core().V1().Pods().Informer(), namespaces: all.Core().V1().Namespaces().Informer(),
		broadcast: b, recorder: b.NewRecorder(scheme.Scheme, corev1.EventSource{Component: api.AgentName, Host: node})}
}

// slim drops what nobody here reads.
func slim(o any) (any, error) {
	if m, ok := o.(metav1.Object); ok {
		m.SetManagedFields(nil)
	}
	return o, nil
}

// Run fills the cache and sends events until ctx ends.
func (k *Kube) Run(ctx context.Context) error {
	k.broadcast.StartRecordingToSink(&typedv1.EventSinkImpl{Interface: k.client.CoreV1().Events("")})
	defer k.broadcast.Shutdown()
	poke := cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { k.changes.notify() },
		UpdateFunc: func(any, any) { k.changes.notify() },
		DeleteFunc: func(any) { k.changes.notify() },
	}
	for name, inf := range map[string]cache.SharedIndexInformer{"pods": k.pods, "namespaces": k.namespaces} {
		if _, err := inf.AddEventHandler(poke); err != nil {
			return fmt.Errorf("watch %s: %w", name, err)
		}
	}
	var g sync.WaitGroup
	g.Go(func() { k.namespaces.RunWithContext(ctx) })
	g.Go(func() { k.pods.RunWithContext(ctx) })
	if cache.WaitForCacheSync(ctx.Done(), k.pods.HasSynced, k.namespaces.HasSynced) {
		k.changes.notify() // the last event may have come before List said that it is complete
	}
	g.Wait()
	return nil
}

// List implements Cluster.
func (k *Kube) List() ([]*corev1.Pod, map[string]*corev1.Namespace, bool) {
	if !k.pods.HasSynced() || !k.namespaces.HasSynced() {
		return nil, nil, false
	}
	var pods []*corev1.Pod
	for _, o := range k.pods.GetStore().List() {
		if p, ok := o.(*corev1.Pod); ok {
			pods = append(pods, p)
		}
	}
	namespaces := map[string]*corev1.Namespace{}
	for _, o := range k.namespaces.GetStore().List() {
		if n, ok := o.(*corev1.Namespace); ok {
			namespaces[n.Name] = n
		}
	}
	return pods, namespaces, true
}

// Watch implements Cluster.
func (k *Kube) Watch() (<-chan struct{}, func()) { return k.changes.watch() }

// Get implements Cluster.
func (k *Kube) Get(ctx context.Context, namespace, name string) (*corev1.Pod, *corev1.Namespace, error) {
	pod, err := k.client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil, fmt.Errorf("%w: %w", ErrPodGone, err)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read pod: %w", err)
	}
	ns, err := k.client.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})
	if err != nil {
		return nil, nil, fmt.Errorf("read namespace %s: %w", namespace, err)
	}
	return pod, ns, nil
}

// Annotate implements Cluster. The patch names the pod's UID, so that a successor of the same name is not touched. It goes
// through the status subresource, whose strategy takes metadata and keeps the spec: the right to do it is no right to
// change what a pod runs.
func (k *Kube) Annotate(ctx context.Context, pod *corev1.Pod, enrolled bool) error {
	var value any
	if enrolled {
		value = api.RedirectionEnabled
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": pod.UID, "annotations": map[string]any{api.AnnotationRedirection: value}}})
	if err != nil {
		return fmt.Errorf("encode patch: %w", err)
	}
	_, err = k.client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("patch pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}

// Event implements Events.
func (k *Kube) Event(pod *corev1.Pod, kind, reason, message string) {
	k.recorder.Event(pod, kind, reason, message)
}

// Clear removes the annotation from every pod of the node, for an uninstallation.
func (k *Kube) Clear(ctx context.Context) error {
	list, err := k.client.CoreV1().Pods("").List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("spec.nodeName", k.node).String()})
	if err != nil {
		return fmt.Errorf("list pods of node %s: %w", k.node, err)
	}
	for i := range list.Items {
		if list.Items[i].Annotations[api.AnnotationRedirection] == "" {
			continue
		}
		if err := k.Annotate(ctx, &list.Items[i], false); err != nil {
			return err
		}
	}
	return nil
}

// RequestTimeout bounds one call to the API server outside of watches.
const RequestTimeout = 10 * time.Second
