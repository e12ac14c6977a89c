package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// statusNamespace holds what the tests of statuses and backups write.
const statusNamespace = "statuses"

// inStatusNamespace gives a world with an empty namespace that no pod lives in, so that policies harm nobody.
func inStatusNamespace(t *testing.T) (context.Context, *World) {
	t.Helper()
	ctx, w := meshed(t)
	check(t, w.Apply(ctx, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+statusNamespace+"}\n"))
	t.Cleanup(func() {
		_, err := w.Kubectl(context.Background(), "delete", "namespace", statusNamespace, "--wait")
		check(t, err)
	})
	return ctx, w
}

// conditions are those of one object's status, by type, and who writes it.
type conditions struct {
	state    map[string]string // "STATUS REASON"
	message  map[string]string
	managers []string // "MANAGER OPERATION"
}

// conditions reads the status of one object; namespace is "" for one of the cluster.
func (w *World) conditions(ctx context.Context, resource, namespace, name string) (conditions, error) {
	args := []string{"get", resource, name, "--show-managed-fields", "-o", "json"}
	if namespace != "" {
		args = append(args, "-n", namespace)
	}
	c := conditions{state: map[string]string{}, message: map[string]string{}}
	out, err := w.Kubectl(ctx, args...)
	if err != nil {
		return c, err
	}
	var o struct {
		Metadata struct {
			ManagedFields []struct{ Manager, Operation, Subresource string }
		}
		Status struct {
			Conditions []struct{ Type, Status, Reason, Message string }
		}
	}
	if err := json.Unmarshal([]byte(out), &o); err != nil {
		return c, fmt.Errorf("parse %s %s: %w", resource, name, err)
	}
	for _, x := range o.Status.Conditions {
		c.state[x.Type], c.message[x.Type] = x.Status+" "+x.Reason, x.Message
	}
	for _, m := range o.Metadata.ManagedFields {
		if m.Subresource == "status" {
			c.managers = append(c.managers, m.Manager+" "+m.Operation)
		}
	}
	return c, nil
}

// awaitReason waits until a condition is "STATUS REASON", or "STATUS" with any reason, and its message has the text.
func (w *World) awaitReason(ctx context.Context, resource, namespace, name, condition, want, text string) error {
	return Until(ctx, 30*time.Second, fmt.Sprintf("%s %s to be %s: %s", resource, name, condition, want), func(ctx context.Context) error {
		c, err := w.conditions(ctx, resource, namespace, name)
		if err != nil {
			return err
		}
		status, _, _ := strings.Cut(c.state[condition], " ")
		if c.state[condition] != want && status != want || !strings.Contains(c.message[condition], text) {
			return fmt.Errorf("it is %v %v", c.state, c.message)
		}
		w.Say("  %s: %s: %s", name, c.state[condition], c.message[condition])
		return nil
	})
}

const unenforced = `apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: filter, namespace: ` + statusNamespace + `}
spec: {configPatches: [{applyTo: CLUSTER, patch: {operation: MERGE, value: {connect_timeout: 1s}}}]}
`

// TestStatusOfWhatIsNotEnforced: an object that the mesh reads and does not enforce says so, field by field.
func TestStatusOfWhatIsNotEnforced(t *testing.T) {
	ctx, w := inStatusNamespace(t)
	check(t, w.Apply(ctx, unenforced))
	check(t, w.awaitReason(ctx, "envoyfilters", statusNamespace, "filter", "Accepted", "True AcceptedNotEnforced", "spec.configPatches[].patch.value"))
	check(t, w.awaitReason(ctx, "envoyfilters", statusNamespace, "filter", "Enforced", "False AcceptedNotEnforced", ""))
	c, err := w.conditions(ctx, "envoyfilters", statusNamespace, "filter")
	check(t, err)
	if strings.Join(c.managers, ", ") != "istiod-status Apply" {
		t.Errorf("the status is managed by %v", c.managers)
	}
	t.Run("a RequestAuthentication denies, and says so", func(t *testing.T) {
		check(t, w.Apply(ctx, `apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: jwt, namespace: `+statusNamespace+`}
spec: {jwtRules: [{issuer: "testing@secure.istio.io", jwks: '{"keys":[{"kty":"EC","crv":"P-256","kid":"a","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}'}]}
`))
		check(t, w.awaitReason(ctx, "requestauthentications", statusNamespace, "jwt", "Enforced", "False DeniesAll", "tokens are not checked yet"))
	})
	t.Run("control: an object without such fields is enforced", func(t *testing.T) {
		check(t, w.Apply(ctx, "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: none, namespace: "+statusNamespace+"}\nspec: {}\n"))
		check(t, w.awaitReason(ctx, "telemetries", statusNamespace, "none", "Enforced", "True Enforced", ""))
	})
}

// TestStatusOfLateKinds: kinds that are installed while the controller runs are watched, and objects of another
// implementation of the Gateway API are left alone.
func TestStatusOfLateKinds(t *testing.T) {
	ctx, w := inStatusNamespace(t)
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/gateway-api").Output()
	check(t, err)
	for _, kind := range []string{"gatewayclasses", "gateways"} {
		file := filepath.Join(strings.TrimSpace(string(out)), "config", "crd", "standard", "gateway.networking.k8s.io_"+kind+".yaml")
		_, err := w.Kubectl(ctx, "apply", "--server-side", "-f", file)
		check(t, err)
		t.Cleanup(func() {
			_, err := w.Kubectl(context.Background(), "delete", "-f", file, "--wait")
			check(t, err)
		})
	}
	objects := func(class, controller string) string {
		return `apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: ` + class + `}
spec: {controllerName: ` + controller + `}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: ` + class + `, namespace: ` + statusNamespace + `}
spec: {gatewayClassName: ` + class + `, listeners: [{name: http, port: 80, protocol: HTTP}]}
`
	}
	check(t, Until(ctx, 20*time.Second, "the Gateway API to be served", func(ctx context.Context) error {
		return w.Apply(ctx, objects("istio", "istio.io/gateway-controller")+"---\n"+objects("foreign", "example.com/controller"))
	}))
	check(t, w.awaitReason(ctx, "gatewayclasses", "", "istio", "Accepted", "True AcceptedNotEnforced", ""))
	check(t, w.awaitReason(ctx, "gateways.gateway.networking.k8s.io", statusNamespace, "istio", "Programmed", "False AcceptedNotEnforced", "spec.listeners[].port"))
	t.Run("control: a gateway of another controller", func(t *testing.T) {
		c, err := w.conditions(ctx, "gateways.gateway.networking.k8s.io", statusNamespace, "foreign")
		if err == nil && strings.Contains(strings.Join(c.managers, " "), "istiod") {
			err = errors.New("we wrote the status of another's gateway")
		}
		check(t, err)
	})
}
