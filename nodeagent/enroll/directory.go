package enroll

import (
	"context"
	"fmt"
	"log/slog"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/configdir"
)

// Directory is a Cluster over a directory of YAML, for a mesh without Kubernetes. Events go to the log.
type Directory struct {
	dir  *configdir.Dir
	path string
	node string
	log  *slog.Logger
}

// NewDirectory returns a Cluster of the pods whose spec.nodeName is node. The caller runs dir, which watches path.
func NewDirectory(dir *configdir.Dir, path, node string, log *slog.Logger) *Directory {
	return &Directory{dir: dir, path: path, node: node, log: log}
}

// List implements Cluster. Namespaces that no file defines exist without labels, as pods need one.
func (d *Directory) List() ([]*corev1.Pod, map[string]*corev1.Namespace, bool) {
	view := d.dir.View()
	if view == nil {
		return nil, nil, false
	}
	namespaces := map[string]*corev1.Namespace{}
	for _, ns := range configdir.List[*corev1.Namespace](view) {
		namespaces[ns.Name] = ns
	}
	var pods []*corev1.Pod
	for _, p := range configdir.List[*corev1.Pod](view) {
		if p.Spec.NodeName != d.node {
			continue
		}
		if p.UID == "" { // a file need not have one
			p = p.DeepCopy()
			p.UID = directoryUID(p.Namespace, p.Name)
		}
		pods = append(pods, p)
		if namespaces[p.Namespace] == nil {
			namespaces[p.Namespace] = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: p.Namespace}}
		}
	}
	return pods, namespaces, true
}

// Watch implements Cluster.
func (d *Directory) Watch() (<-chan struct{}, func()) { return d.dir.Watch() }

// Get implements Cluster: it reads the directory now.
func (d *Directory) Get(_ context.Context, namespace, name string) (*corev1.Pod, *corev1.Namespace, error) {
	if _, err := d.dir.Load(); err != nil {
		return nil, nil, fmt.Errorf("read directory: %w", err)
	}
	pods, namespaces, _ := d.List()
	for _, p := range pods {
		if p.Namespace == namespace && p.Name == name {
			return p, namespaces[namespace], nil
		}
	}
	return nil, nil, fmt.Errorf("no file defines it: %w", ErrPodGone)
}

// Annotate implements Cluster by an overlay of the writer "nodeagent".
func (d *Directory) Annotate(_ context.Context, pod *corev1.Pod, enrolled bool) error {
	key := configdir.Key{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name}
	if !enrolled {
		return configdir.RemoveOverlay(d.path, "nodeagent", key)
	}
	value := api.RedirectionEnabled
	return configdir.WriteOverlay(d.path, "nodeagent", configdir.Overlay{APIVersion: "v1", Key: key,
		Annotations: map[string]*string{api.AnnotationRedirection: &value}})
}

// Event implements Events.
func (d *Directory) Event(pod *corev1.Pod, kind, reason, message string) {
	d.log.Info("event", "pod", pod.Namespace+"/"+pod.Name, "type", kind, "reason", reason, "text", message)
}

// Clear removes the annotation from every pod of the node, for an uninstallation.
func (d *Directory) Clear(ctx context.Context) error {
	if _, err := d.dir.Load(); err != nil {
		return fmt.Errorf("read directory: %w", err)
	}
	pods, _, _ := d.List()
	for _, p := range pods {
		if err := d.Annotate(ctx, p, false); err != nil {
			return err
		}
	}
	return nil
}
