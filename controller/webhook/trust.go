package webhook

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"

	admissionregistration "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// configurations is the client of the API server's webhook configurations.
type configurations interface {
	Get(ctx context.Context, name string, opts metav1.GetOptions) (*admissionregistration.ValidatingWebhookConfiguration, error)
	Update(ctx context.Context, c *admissionregistration.ValidatingWebhookConfiguration, opts metav1.UpdateOptions) (*admissionregistration.ValidatingWebhookConfiguration, error)
}

// Trust keeps the root certificates by which the API server knows this controller. One replica at a time calls Keep.
type Trust struct {
	Client configurations
	Name   string // of the ValidatingWebhookConfiguration
	Log    *slog.Logger

	last string // what was said
}

// Keep writes the roots into every webhook of the configuration. Without a configuration there is nothing to keep. What goes
// wrong is logged once: nothing else waits for it, and it is tried again at the next call.
func (t *Trust) Keep(ctx context.Context, roots []byte) {
	changed, err := t.keep(ctx, roots)
	switch {
	case err != nil && ctx.Err() == nil && err.Error() != t.last:
		t.Log.Warn("tell API server the roots of admission", "err", err)
	case changed:
		t.Log.Info("API server was told the roots of admission", "configuration", t.Name)
	}
	t.last = ""
	if err != nil {
		t.last = err.Error()
	}
}

func (t *Trust) keep(ctx context.Context, roots []byte) (changed bool, err error) {
	c, err := t.Client.Get(ctx, t.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read ValidatingWebhookConfiguration %s: %w", t.Name, err)
	}
	for i := range c.Webhooks {
		if !bytes.Equal(c.Webhooks[i].ClientConfig.CABundle, roots) {
			c.Webhooks[i].ClientConfig.CABundle = roots
			changed = true
		}
	}
	if !changed {
		return false, nil
	}
	if _, err := t.Client.Update(ctx, c, metav1.UpdateOptions{}); err != nil {
		return false, fmt.Errorf("update ValidatingWebhookConfiguration %s: %w", t.Name, err)
	}
	return true, nil
}
