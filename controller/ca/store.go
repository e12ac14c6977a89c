package ca

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api"
)

// secrets is client-go's SecretInterface, as far as it is used.
type secrets interface {
	Get(ctx context.Context, name string, opts metav1.GetOptions) (*corev1.Secret, error)
	Create(ctx context.Context, s *corev1.Secret, opts metav1.CreateOptions) (*corev1.Secret, error)
}

// SecretStore keeps the root in the Secret istio-ca-secret. Client is clientset.CoreV1().Secrets(namespace).
type SecretStore struct{ Client secrets }

// Load returns nil when the Secret does not exist.
func (s SecretStore) Load(ctx context.Context) (map[string][]byte, error) {
	got, err := s.Client.Get(ctx, api.CASecret, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("get secret %s: %w", api.CASecret, err)
	}
	return nonNil(got.Data), nil
}

// CreateOnce returns what another controller stored when it was first.
func (s SecretStore) CreateOnce(ctx context.Context, data map[string][]byte) (map[string][]byte, error) {
	_, err := s.Client.Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: api.CASecret}, Type: "istio.io/ca-root", Data: data,
	}, metav1.CreateOptions{})
	switch {
	case err == nil:
		return data, nil
	case !apierrors.IsAlreadyExists(err):
		return nil, fmt.Errorf("create secret %s: %w", api.CASecret, err)
	}
	stored, err := s.Load(ctx)
	if err == nil && stored == nil {
		err = fmt.Errorf("get secret %s: it existed and is gone", api.CASecret)
	}
	return stored, err
}

func nonNil(m map[string][]byte) map[string][]byte {
	if m == nil {
		return map[string][]byte{} // it exists and is empty: an error later, not a new root
	}
	return m
}

// DirStore keeps the root in a directory of its own, for the directory mode. The directory's parent must exist.
type DirStore struct{ Path string }

// Load returns nil when the directory does not exist.
func (d DirStore) Load(context.Context) (map[string][]byte, error) {
	if _, err := os.Stat(d.Path); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	out := map[string][]byte{}
	for _, f := range []string{FileCACert, FileCAKey} {
		raw, err := os.ReadFile(filepath.Join(d.Path, f))
		if err != nil {
			return nil, fmt.Errorf("read root: %w", err)
		}
		out[f] = raw
	}
	return out, nil
}

// CreateOnce makes the directory whole by a rename, which fails when another process was first.
func (d DirStore) CreateOnce(ctx context.Context, data map[string][]byte) (_ map[string][]byte, err error) {
	tmp, err := os.MkdirTemp(filepath.Dir(d.Path), ".ca-*")
	if err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	for f, raw := range data {
		if err := os.WriteFile(filepath.Join(tmp, filepath.Base(f)), raw, 0o600); err != nil {
			return nil, fmt.Errorf("write root: %w", err)
		}
	}
	if err := os.Rename(tmp, d.Path); err == nil {
		return data, nil
	} else if !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("publish root: %w", err)
	}
	return d.Load(ctx)
}
