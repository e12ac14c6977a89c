package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/undermesh/undermesh/controller/model"
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
		check(t, w.Apply(ctx, "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: own, namespace: "+statusNamespace+"}\nspec: {egress: [{hosts: [./*]}]}\n"))
		check(t, w.awaitReason(ctx, "sidecars", statusNamespace, "own", "Enforced", "True Enforced", ""))
	})
}

// installGatewayAPI installs definitions of the Gateway API until the test ends.
func installGatewayAPI(ctx context.Context, t *testing.T, w *World, plurals ...string) {
	t.Helper()
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/gateway-api").Output()
	check(t, err)
	for _, plural := range plurals {
		file := filepath.Join(strings.TrimSpace(string(out)), "config", "crd", "standard", "gateway.networking.k8s.io_"+plural+".yaml")
		_, err := w.Kubectl(ctx, "apply", "--server-side", "-f", file)
		check(t, err)
		t.Cleanup(func() {
			_, err := w.Kubectl(context.Background(), "delete", "-f", file, "--wait")
			check(t, err)
		})
	}
}

// TestStatusOfLateKinds: kinds that are installed while the controller runs are watched, and objects of another
// implementation of the Gateway API are left alone.
func TestStatusOfLateKinds(t *testing.T) {
	ctx, w := inStatusNamespace(t)
	installGatewayAPI(ctx, t, w, "gatewayclasses", "gateways")
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

// said is what the mesh says of an object of a kind: conditions, conditions below its parents, or, for a kind without any, a
// line of "undermesh analyze".
const (
	inConditions = "conditions"
	inParents    = "parents"
	inAnalyze    = "analyze"
)

// kindCase is one object of a kind, and what is said of it.
type kindCase struct {
	kind    model.Kind
	spec    string
	where   string
	says    string // status and reason of Accepted, or the beginning of the line
	message string
}

// kindCases are one object of each kind of the catalogue (section 2), which mesh and API server take.
var kindCases = []kindCase{
	{model.KindVirtualService, "{hosts: [kinds.example], http: [{timeout: 1s, route: [{destination: {host: kinds.example}}]}]}", inConditions, "True Accepted", ""},
	{model.KindDestinationRule, "{host: kinds.example, trafficPolicy: {loadBalancer: {simple: RANDOM}}}", inConditions, "True Accepted", ""},
	{model.KindGateway, "{selector: {a: b}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [kinds.example]}]}", inConditions, "True AcceptedNotEnforced", "spec.servers[]"},
	{model.KindServiceEntry, "{hosts: [kinds.example], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}", inConditions, "True Accepted", ""},
	{model.KindWorkloadEntry, "{address: 192.0.2.1}", inConditions, "True Accepted", ""},
	{model.KindWorkloadGroup, "{template: {serviceAccount: default}}", inConditions, "True AcceptedNotEnforced", "spec.template.serviceAccount"},
	{model.KindSidecar, "{egress: [{hosts: ['./*']}]}", inConditions, "True Accepted", ""},
	{model.KindEnvoyFilter, "{configPatches: [{applyTo: CLUSTER, patch: {operation: MERGE, value: {connect_timeout: 1s}}}]}", inConditions, "True AcceptedNotEnforced", "spec.configPatches[]"},
	{model.KindProxyConfig, "{concurrency: 1}", inConditions, "True AcceptedNotEnforced", "spec.concurrency"},
	{model.KindPeerAuthentication, "{mtls: {mode: PERMISSIVE}}", inConditions, "True Accepted", ""},
	{model.KindRequestAuthentication, "{jwtRules: [{issuer: kinds.example, jwksUri: 'https://kinds.example/keys'}]}", inConditions, "True AcceptedNotEnforced", "tokens are not checked yet"},
	{model.KindAuthorizationPolicy, "{rules: [{}]}", inConditions, "True Accepted", ""},
	{model.KindTelemetry, "{tracing: [{randomSamplingPercentage: 1}]}", inConditions, "True AcceptedNotEnforced", "spec.tracing[].randomSamplingPercentage"},
	{model.KindWasmPlugin, "{url: 'oci://kinds.example/a'}", inConditions, "True AcceptedNotEnforced", "spec.url"},
	{model.KindTrafficExtension, "{lua: {inlineCode: 'a = 1'}}", inConditions, "True AcceptedNotEnforced", ""},
	{model.KindGatewayClass, "{controllerName: istio.io/gateway-controller}", inConditions, "True AcceptedNotEnforced", ""},
	{model.KindKubeGateway, "{gatewayClassName: kinds, listeners: [{name: http, port: 80, protocol: HTTP}]}", inConditions, "True AcceptedNotEnforced", "spec.listeners[].port"},
	{model.KindListenerSet, "{parentRef: {name: kinds}, listeners: [{name: more, port: 81, protocol: HTTP}]}", inConditions, "True AcceptedNotEnforced", "spec.listeners[].port"},
	{model.KindHTTPRoute, "{parentRefs: [{name: kinds}], rules: [{backendRefs: [{name: a, port: 80}]}]}", inParents, "True AcceptedNotEnforced", "spec.rules[].backendRefs[]"},
	{model.KindGRPCRoute, "{parentRefs: [{name: kinds}], rules: [{backendRefs: [{name: a, port: 80}]}]}", inParents, "True AcceptedNotEnforced", "spec.rules[].backendRefs[]"},
	{model.KindTCPRoute, "{parentRefs: [{name: kinds}], rules: [{backendRefs: [{name: a, port: 80}]}]}", inParents, "True AcceptedNotEnforced", "spec.rules[].backendRefs[]"},
	{model.KindTLSRoute, "{parentRefs: [{name: kinds}], hostnames: [kinds.example], rules: [{backendRefs: [{name: a, port: 80}]}]}", inParents, "True AcceptedNotEnforced", "spec.rules[].backendRefs[]"},
	{model.KindUDPRoute, "{parentRefs: [{name: kinds}], rules: [{backendRefs: [{name: a, port: 80}]}]}", inParents, "True AcceptedNotEnforced", "spec.rules[].backendRefs[]"},
	{model.KindReferenceGrant, "{from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: default}], to: [{group: '', kind: Service}]}", inAnalyze, "Info [UM0209] (ReferenceGrant " + statusNamespace + "/kinds)", "spec.from[].namespace"},
	{model.KindBackendTLSPolicy, "{targetRefs: [{group: '', kind: Service, name: a}], validation: {hostname: kinds.example, wellKnownCACertificates: System}}", inAnalyze, "Info [UM0209] (BackendTLSPolicy " + statusNamespace + "/kinds)", "spec.validation.hostname"},
	{model.KindIngress, "{ingressClassName: kinds, rules: [{http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: a, port: {number: 80}}}}]}}]}", inAnalyze, "Info [UM0209] (Ingress " + statusNamespace + "/kinds)", "spec.ingressClassName"},
	{model.KindIngressClass, "{controller: istio.io/ingress-controller}", inAnalyze, "Info [UM0209] (IngressClass kinds)", "spec.controller"},
}

// TestStatusOfEveryKind: an object of each kind of the catalogue says what the mesh makes of it, on an API server: all that the
// mesh knows are in the table.
func TestStatusOfEveryKind(t *testing.T) {
	ctx, w := inStatusNamespace(t)
	installGatewayAPI(ctx, t, w, "gatewayclasses", "gateways", "listenersets", "httproutes", "grpcroutes", "tcproutes", "tlsroutes", "udproutes", "referencegrants", "backendtlspolicies")
	for _, r := range model.Resources() {
		if !slices.ContainsFunc(kindCases, func(c kindCase) bool { return c.kind == r.Kind }) {
			t.Errorf("the table has no %s", r.Kind)
		}
	}
	for _, tc := range kindCases {
		r, _ := model.ResourceOf(tc.kind)
		namespace := statusNamespace
		if r.Cluster {
			namespace = ""
		}
		object := "apiVersion: " + r.Group + "/" + r.Versions[0] + "\nkind: " + r.APIKind + "\nmetadata: {name: kinds, namespace: \"" + namespace + "\"}\nspec: " + tc.spec + "\n"
		if r.Cluster { // until the end: those below it are the mesh's by it
			t.Cleanup(func() { check(t, w.Delete(context.Background(), object)) })
		}
		t.Run(string(tc.kind), func(t *testing.T) {
			check(t, Until(ctx, 30*time.Second, "the kind to be served", func(ctx context.Context) error { return w.Apply(ctx, object) }))
			check(t, Until(ctx, 30*time.Second, "what the mesh says", func(ctx context.Context) error {
				got, err := w.said(ctx, r, namespace, tc.where)
				if err == nil && (!strings.Contains(got, tc.says) || !strings.Contains(got, tc.message)) {
					err = fmt.Errorf("it is %s", got)
				}
				return err
			}))
		})
	}
}

// said returns what the mesh says of the object "kinds".
func (w *World) said(ctx context.Context, r model.Resource, namespace, where string) (string, error) {
	resource := r.Plural + "." + r.Group
	switch where {
	case inConditions:
		c, err := w.conditions(ctx, resource, namespace, "kinds")
		return c.state["Accepted"] + ": " + c.message["Accepted"], err
	case inParents:
		return w.Kubectl(ctx, "get", resource, "-n", namespace, "kinds", "-o",
			`jsonpath={range .status.parents[?(@.controllerName=="`+model.GatewayController+`")].conditions[?(@.type=="Accepted")]}{.status} {.reason}: {.message}{end}`)
	}
	args := []string{"analyze", "-A"}
	out, err := run(ctx, nil, []string{"KUBECONFIG=" + w.Kubeconfig()}, w.Root+"/bin/undermesh", args...)
	return out.Out, err
}
