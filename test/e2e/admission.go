package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/undermesh/undermesh/controller/api"
)

// validator is the name of the configuration by which the API server asks the controller.
const validator = "istio-validator-" + api.DefaultRootNamespace

// wrongRoute has a host that is no host and a route that goes nowhere.
const wrongRoute = `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: wrong, namespace: foo}
spec:
  hosts: ["httpbin foo"]
  http:
  - timeout: 1s
`

// DryRun asks the API server to store YAML without doing it. It returns what kubectl says, and whether it was refused.
func (w *World) DryRun(ctx context.Context, yaml string) (says string, refused bool, err error) {
	r, err := w.kubectl(ctx, []byte(yaml), "apply", "--dry-run=server", "-f", "-")
	return r.Out + r.Err, r.Code != 0, err
}

// AwaitAdmission waits until the API server refuses what is wrong, or until it does not.
func (w *World) AwaitAdmission(ctx context.Context, want bool) error {
	return Until(ctx, 45*time.Second, fmt.Sprintf("admission to refuse what is wrong: %t", want), func(ctx context.Context) error {
		says, refused, err := w.DryRun(ctx, wrongRoute)
		switch {
		case err != nil:
			return err
		case refused != want:
			return errors.New(strings.TrimSpace(says))
		case refused && !strings.Contains(says, "contains white space"):
			return errors.New("refused by something else: " + strings.TrimSpace(says))
		}
		return nil
	})
}
