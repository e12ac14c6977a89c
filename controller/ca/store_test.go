package ca

import (
	"context"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/undermesh/undermesh/controller/api"
)

func TestDirStore(t *testing.T) {
	d := DirStore{filepath.Join(t.TempDir(), "ca")}
	if got, err := d.Load(t.Context()); got != nil || err != nil {
		t.Fatalf("before: %v, %v", got, err)
	}
	first := map[string][]byte{FileCACert: []byte("1"), FileCAKey: []byte("k")}
	for _, data := range []map[string][]byte{first, {FileCACert: []byte("2"), FileCAKey: []byte("l")}} {
		got, err := d.CreateOnce(t.Context(), data)
		if err != nil || string(got[FileCACert]) != "1" {
			t.Errorf("got %s, %v", got[FileCACert], err)
		}
	}
	if got, err := d.Load(t.Context()); err != nil || string(got[FileCAKey]) != "k" {
		t.Errorf("after: %v, %v", got, err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(d.Path), ".ca-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

type fakeSecrets struct{ stored *corev1.Secret }

func (f *fakeSecrets) Get(context.Context, string, metav1.GetOptions) (*corev1.Secret, error) {
	if f.stored == nil {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, api.CASecret)
	}
	return f.stored, nil
}

func (f *fakeSecrets) Create(_ context.Context, s *corev1.Secret, _ metav1.CreateOptions) (*corev1.Secret, error) {
	if f.stored != nil {
		return nil, apierrors.NewAlreadyExists(schema.GroupResource{Resource: "secrets"}, s.Name)
	}
	f.stored = s
	return s, nil
}

func TestSecretStore(t *testing.T) {
	s := SecretStore{&fakeSecrets{}}
	if got, err := s.Load(t.Context()); got != nil || err != nil {
		t.Fatalf("before: %v, %v", got, err)
	}
	for _, v := range []string{"1", "2"} {
		got, err := s.CreateOnce(t.Context(), map[string][]byte{FileCACert: []byte(v)})
		if err != nil || string(got[FileCACert]) != "1" {
			t.Errorf("got %s, %v", got[FileCACert], err)
		}
	}
}
