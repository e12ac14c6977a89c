package keeper

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/undermesh/undermesh/controller/jwks"
)

// configMaps is what a ConfigMapStore asks of client-go's typed client.
type configMaps interface {
	Create(context.Context, *corev1.ConfigMap, metav1.CreateOptions) (*corev1.ConfigMap, error)
	Patch(ctx context.Context, name string, pt types.PatchType, data []byte, o metav1.PatchOptions, subresources ...string) (*corev1.ConfigMap, error)
}

// ConfigMapStore keeps records in one ConfigMap of the control plane's namespace, which the API server bounds to 1 MiB.
type ConfigMapStore struct{ Client configMaps }

// Save implements Store.
func (s ConfigMapStore) Save(ctx context.Context, r jwks.Record) error {
	key, value := jwks.Encode(r)
	err := s.patch(ctx, key, value)
	if apierrors.IsNotFound(err) {
		_, err = s.Client.Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: jwks.ConfigMap, Labels: map[string]string{"app.kubernetes.io/part-of": "undermesh"}},
			Data:       map[string]string{key: value}}, metav1.CreateOptions{})
	}
	if err != nil {
		return fmt.Errorf("write config map %s: %w", jwks.ConfigMap, err)
	}
	return nil
}

// Delete implements Store.
func (s ConfigMapStore) Delete(ctx context.Context, source string) error {
	if err := s.patch(ctx, jwks.Name(source), nil); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("write config map %s: %w", jwks.ConfigMap, err)
	}
	return nil
}

// patch sets one key and leaves the others to themselves; nil removes it.
func (s ConfigMapStore) patch(ctx context.Context, key string, value any) error {
	body, err := json.Marshal(map[string]any{"data": map[string]any{key: value}})
	if err != nil {
		return err
	}
	_, err = s.Client.Patch(ctx, jwks.ConfigMap, types.MergePatchType, body, metav1.PatchOptions{FieldManager: "istiod"})
	return err
}

// LocalStore keeps records in memory, for a control plane without an API server. Put receives the ConfigMap that it would
// be; calls do not overlap.
type LocalStore struct {
	put func(*corev1.ConfigMap)

	mu   sync.Mutex // protects below, and orders the calls of put
	data map[string]string
}

// NewLocalStore returns an empty LocalStore.
func NewLocalStore(put func(*corev1.ConfigMap)) *LocalStore {
	return &LocalStore{put: put, data: map[string]string{}}
}

// Save implements Store.
func (s *LocalStore) Save(_ context.Context, r jwks.Record) error {
	key, value := jwks.Encode(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.data[key] = value
	s.tellLocked()
	return nil
}

// Delete implements Store.
func (s *LocalStore) Delete(_ context.Context, source string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.data, jwks.Name(source))
	s.tellLocked()
	return nil
}

func (s *LocalStore) tellLocked() {
	s.put(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: jwks.ConfigMap}, Data: maps.Clone(s.data)})
}
