package keeper

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/jwks"
)

// configMaps is what a ConfigMapStore asks of client-go's typed client.
type configMaps interface {
	Create(context.Context, *corev1.ConfigMap, metav1.CreateOptions) (*corev1.ConfigMap, error)
	Update(context.Context, *corev1.ConfigMap, metav1.UpdateOptions) (*corev1.ConfigMap, error)
	Delete(context.Context, string, metav1.DeleteOptions) error
}

// ConfigMapStore keeps records in ConfigMaps, one each, in the namespace of the control plane.
type ConfigMapStore struct {
	Client    configMaps
	Namespace string
}

// Save implements Store.
func (s ConfigMapStore) Save(ctx context.Context, r jwks.Record) error {
	cm := jwks.Encode(r, s.Namespace)
	_, err := s.Client.Update(ctx, cm, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		_, err = s.Client.Create(ctx, cm, metav1.CreateOptions{})
	}
	if err != nil {
		return fmt.Errorf("write config map %s/%s: %w", s.Namespace, cm.Name, err)
	}
	return nil
}

// Delete implements Store.
func (s ConfigMapStore) Delete(ctx context.Context, source string) error {
	name := jwks.ObjectName(source)
	if err := s.Client.Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete config map %s/%s: %w", s.Namespace, name, err)
	}
	return nil
}
