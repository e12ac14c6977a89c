package server

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"

	"github.com/undermesh/undermesh/controller/model"
)

// runsOn answers whether a pod of an account runs on a node: from what the controller has seen, and on a miss from the
// API server itself, because a pod may ask for its certificate before its event arrived.
type runsOn struct {
	index interface {
		Runs(node, namespace, account string) bool
		NodeOf(n model.Name, uid string) string
	}
	direct kubernetes.Interface // nil: there is nothing to ask
}

func (r runsOn) check(ctx context.Context, node, namespace, account string) (bool, error) {
	if r.index.Runs(node, namespace, account) {
		return true, nil
	}
	if r.direct == nil {
		return false, nil
	}
	list, err := r.direct.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{FieldSelector: fields.AndSelectors(
		fields.OneTermEqualSelector("spec.nodeName", node),
		fields.OneTermEqualSelector("spec.serviceAccountName", account)).String()})
	if err != nil {
		return false, fmt.Errorf("list pods of %s/%s on node %s: %w", namespace, account, node, err)
	}
	for _, p := range list.Items {
		if _, mirrored := p.Annotations[corev1.MirrorPodAnnotationKey]; mirrored { // the node made the object itself
			continue
		}
		if p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
			return true, nil
		}
	}
	return false, nil
}

// nodeOf returns the node of a pod; "" when there is no such pod. uid guards against a pod of the same name made anew. A pod
// never changes its node: what was seen needs no second look, and is known while the API server is away.
func (r runsOn) nodeOf(ctx context.Context, n model.Name, uid string) (string, error) {
	if node := r.index.NodeOf(n, uid); node != "" || r.direct == nil {
		return node, nil
	}
	p, err := r.direct.CoreV1().Pods(n.Namespace).Get(ctx, n.Name, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("read pod %s: %w", n, err)
	}
	if uid != "" && string(p.UID) != uid {
		return "", fmt.Errorf("read pod %s: it is not the pod with uid %s", n, uid)
	}
	return p.Spec.NodeName, nil
}
