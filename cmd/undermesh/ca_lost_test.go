package main

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/ca"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// nobody may have another identity.
type nobody struct{}

func (nobody) MayImpersonate(context.Context, ca.Caller, api.Identity) error { return errors.New("no") }

// TestStatusNamesALostKey: before a controller is started in vain, "ca status" says which key is gone and how to go on.
func TestStatusNamesALostKey(t *testing.T) {
	store := ca.DirStore{Path: filepath.Join(t.TempDir(), "ca")}
	tokens, err := ca.ParseStaticTokens(strings.NewReader(""))
	if err != nil {
		t.Fatal(err)
	}
	a := ca.New(ca.Config{Store: store, Authenticator: tokens, NodeAuthorizer: nobody{}, Clock: clock.System()})
	if err := a.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	files, err := store.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	rec := &ca.Record{Root: files[ca.FileCACert]}
	secret := func(name string) *corev1.Secret {
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: name}, Data: files}
	}
	with, without := &cluster{kube: fake.NewClientset(secret(api.CASecret))}, &cluster{kube: fake.NewClientset(secret("another"))}
	if got, err := with.lostKey(t.Context(), "istio-system", rec); got != "" || err != nil {
		t.Errorf("it is there: %q, %v", got, err)
	}
	got, err := without.lostKey(t.Context(), "istio-system", rec)
	if err != nil || !strings.Contains(got, "root "+ca.Fingerprint(rec.Root)) || !strings.Contains(got, "undermesh ca rotate") {
		t.Errorf("it is gone: %q, %v", got, err)
	}
	rec.Next, rec.Since = rec.Root, time.Now()
	if got, err := without.lostKey(t.Context(), "istio-system", rec); got != "" || err != nil {
		t.Errorf("another one is to come: %q, %v", got, err)
	}
}
