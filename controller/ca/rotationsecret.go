package ca

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api"
)

const (
	// RotationSecretName is the Secret that holds the Record, beside that of the self-signed root.
	RotationSecretName = "istio-ca-rotation"
	// RequestAnnotation of that Secret is a Request in JSON.
	RequestAnnotation = "ca.undermesh.io/request"

	recordKey    = "state.json"
	signerPrefix = "signer-"
	madePrefix   = "next-"
)

// writableSecrets is client-go's SecretInterface, as far as it is used.
type writableSecrets interface {
	secrets
	Update(ctx context.Context, s *corev1.Secret, opts metav1.UpdateOptions) (*corev1.Secret, error)
}

// RotationSecret is the RotationStore of a cluster. Client is clientset.CoreV1().Secrets(namespace).
type RotationSecret struct{ Client writableSecrets }

// ParseRotationSecret reads what RotationSecret stores.
func ParseRotationSecret(s *corev1.Secret) (*Record, error) {
	r := &Record{Version: s.ResourceVersion}
	if err := json.Unmarshal(s.Data[recordKey], r); err != nil {
		return nil, fmt.Errorf("parse secret %s: %s: %w", s.Name, recordKey, err)
	}
	if text := s.Annotations[RequestAnnotation]; text != "" {
		r.Request = &Request{}
		if err := json.Unmarshal([]byte(text), r.Request); err != nil {
			r.Request = &Request{Step: text} // is answered with a refusal
		}
	}
	for key, data := range s.Data {
		if f, ok := strings.CutPrefix(key, signerPrefix); ok {
			put(&r.Signer, f, data)
		} else if f, ok := strings.CutPrefix(key, madePrefix); ok {
			put(&r.Made, f, data)
		}
	}
	return r, nil
}

func put(m *map[string][]byte, key string, data []byte) {
	if *m == nil {
		*m = map[string][]byte{}
	}
	(*m)[key] = data
}

// Load implements RotationStore.
func (s RotationSecret) Load(ctx context.Context) (*Record, error) {
	got, err := s.Client.Get(ctx, RotationSecretName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("get secret %s: %w", RotationSecretName, err)
	}
	return ParseRotationSecret(got)
}

// Save implements RotationStore.
func (s RotationSecret) Save(ctx context.Context, r *Record) error {
	state, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode record: %w", err)
	}
	out := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: RotationSecretName, ResourceVersion: r.Version,
			Labels: map[string]string{"app": api.ControllerName, "app.kubernetes.io/part-of": "undermesh"}},
		Type: "ca.undermesh.io/rotation", Data: map[string][]byte{recordKey: state},
	}
	if r.Request != nil {
		text, err := json.Marshal(r.Request)
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		out.Annotations = map[string]string{RequestAnnotation: string(text)}
	}
	for f, data := range r.Signer {
		out.Data[signerPrefix+f] = data
	}
	for f, data := range r.Made {
		out.Data[madePrefix+f] = data
	}
	if r.Version == "" {
		_, err = s.Client.Create(ctx, out, metav1.CreateOptions{})
	} else {
		_, err = s.Client.Update(ctx, out, metav1.UpdateOptions{})
	}
	if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err) {
		return fmt.Errorf("store secret %s: %w: %w", RotationSecretName, ErrConflict, err)
	}
	if err != nil {
		return fmt.Errorf("store secret %s: %w", RotationSecretName, err)
	}
	return nil
}

// ReplaceRoot implements RotationStore.
func (s RotationSecret) ReplaceRoot(ctx context.Context, files map[string][]byte) error {
	got, err := s.Client.Get(ctx, api.CASecret, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("get secret %s: %w", api.CASecret, err)
	}
	got = got.DeepCopy()
	got.Data = files
	if _, err := s.Client.Update(ctx, got, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("update secret %s: %w", api.CASecret, err)
	}
	return nil
}
