package app

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/undermesh/undermesh/controller/api/credential"
	"github.com/undermesh/undermesh/controller/configdir"
	"github.com/undermesh/undermesh/controller/credentials"
	"github.com/undermesh/undermesh/controller/model"
)

// secretsIn reads Secrets of an API server, one by its name at a time: they are never listed, and none is kept that nobody names. The
// client is one of its own, so that it takes no request from others.
func secretsIn(rc *rest.Config) (func(context.Context, model.Name) (credential.Data, error), error) {
	own := rest.CopyConfig(rc)
	own.QPS, own.Burst = 100, 100 // the keeper has a pace of its own, below
	own.RateLimiter = nil
	client, err := kubernetes.NewForConfig(protobuf(own))
	if err != nil {
		return nil, fmt.Errorf("make client for secrets: %w", err)
	}
	return func(ctx context.Context, n model.Name) (credential.Data, error) { return secretIn(ctx, client, n) }, nil
}

func secretIn(ctx context.Context, client kubernetes.Interface, n model.Name) (credential.Data, error) {
	s, err := client.CoreV1().Secrets(n.Namespace).Get(ctx, n.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case apierrors.IsForbidden(err):
		return nil, credentials.ErrForbidden
	case err != nil:
		return nil, fmt.Errorf("read secret %s: %w", n, err)
	}
	return dataOf(s), nil
}

// secretsOf reads the Secrets of a directory of YAML.
func secretsOf(dir *configdir.Dir) func(context.Context, model.Name) (credential.Data, error) {
	return func(_ context.Context, n model.Name) (credential.Data, error) {
		view := dir.View()
		if view == nil {
			return nil, errors.New("read secret: the directory was not read yet")
		}
		e := view.Get(configdir.Key{Kind: "Secret", Namespace: n.Namespace, Name: n.Name})
		if e == nil {
			return nil, nil
		}
		s, ok := e.Object.(*corev1.Secret)
		if !ok {
			return nil, fmt.Errorf("read secret %s: it is a %T", n, e.Object)
		}
		return dataOf(s), nil
	}
}

// dataOf is never nil.
func dataOf(s *corev1.Secret) credential.Data {
	out := credential.Data{}
	for k, v := range s.Data {
		out[k] = v
	}
	for k, v := range s.StringData { // a file's; an API server has made it Data
		out[k] = []byte(v)
	}
	return out
}
