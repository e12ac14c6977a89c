package compile_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/validate"
)

func class(name, controller string) model.Event {
	return model.Event{Kind: model.KindGatewayClass, Name: model.Name{Name: name}, Object: &gatewayv1.GatewayClass{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: gatewayv1.GatewayClassSpec{ControllerName: gatewayv1.GatewayController(controller)}}}
}

func kubeGateway(name, class string) model.Event {
	return model.Event{Kind: model.KindKubeGateway, Name: model.Name{Namespace: "foo", Name: name}, Object: &gatewayv1.Gateway{
		ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: name}, Spec: gatewayv1.GatewaySpec{GatewayClassName: gatewayv1.ObjectName(class)}}}
}

func httpRoute(name string, gateways ...string) model.Event {
	r := &gatewayv1.HTTPRoute{ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: name}}
	for _, g := range gateways {
		ref := gatewayv1.ParentReference{Name: gatewayv1.ObjectName(g)}
		if kind, ok := strings.CutPrefix(g, "service:"); ok {
			service, core := gatewayv1.Kind("Service"), gatewayv1.Group("")
			ref = gatewayv1.ParentReference{Group: &core, Kind: &service, Name: gatewayv1.ObjectName(kind)}
		}
		r.Spec.ParentRefs = append(r.Spec.ParentRefs, ref)
	}
	return model.Event{Kind: model.KindHTTPRoute, Name: model.Name{Namespace: "foo", Name: name}, Object: r}
}

func gone(e model.Event) model.Event {
	e.Object = nil
	return e
}

// parentsOf tells under which parents the delta says something of the route: "?" when it says nothing of it.
func parentsOf(d compile.Delta, name string) string {
	for _, s := range d.Status {
		if s.Key() == "HTTPRoute foo/"+name {
			var all []string
			for _, p := range s.Parents {
				all = append(all, string(p.Name))
			}
			return strings.Join(all, " ")
		}
	}
	return "?"
}

// TestForeignGateways: the objects of another implementation of the Gateway API are none of our business, and change sides.
func TestForeignGateways(t *testing.T) {
	c := compile.New(compile.Config{})
	d := c.Apply([]model.Event{class("istio", model.GatewayController), class("other", "example.com/x"), kubeGateway("a", "istio"),
		kubeGateway("b", "other"), kubeGateway("c", "none"), httpRoute("r", "a", "b", "c", "missing", "service:svc")})
	var keys []string
	for _, s := range d.Status {
		keys = append(keys, s.Key())
		if s.Gone || !s.Accepted || s.AcceptedBy != validate.ReasonNotEnforced || s.Enforced || s.Object == nil {
			t.Errorf("%+v", s)
		}
	}
	if got, want := strings.Join(keys, ", "), "Gateway.gateway.networking.k8s.io foo/a, GatewayClass /istio, HTTPRoute foo/r"; got != want {
		t.Errorf("statuses of %s, want %s", got, want)
	}
	for _, x := range []struct {
		what  string
		event model.Event
		want  string
	}{
		{"the first state", model.Event{Kind: model.KindNode, Name: model.Name{Name: "n"}}, "?"},
		{"another class becomes ours", class("other", model.GatewayController), "a b svc"},
		{"the same again", class("other", model.GatewayController), "?"},
		{"a gateway appears", kubeGateway("missing", "istio"), "a b missing svc"},
		{"a gateway changes its class", kubeGateway("a", "none"), "b missing svc"},
		{"a class goes", gone(class("other", "")), "missing svc"},
		{"a gateway goes", gone(kubeGateway("missing", "")), "svc"},
		{"the route names no service any more", httpRoute("r", "a"), ""},
	} {
		if got := parentsOf(c.Apply([]model.Event{x.event}), "r"); got != x.want {
			t.Errorf("%s: parents %q, want %q", x.what, got, x.want)
		}
	}
}

// TestStatusesAsFromScratch: after any sequence of changes each object's status is what compiling everything would say.
func TestStatusesAsFromScratch(t *testing.T) {
	for seed := range uint64(200) {
		g := rand.New(rand.NewPCG(seed, 1))
		pick := func(all ...string) string { return all[g.IntN(len(all))] }
		world, said := map[string]model.Event{}, map[string]string{}
		c := compile.New(compile.Config{})
		for range 30 {
			e := []model.Event{class(pick("c1", "c2"), pick(model.GatewayController, "x")), kubeGateway(pick("a", "b"), pick("c1", "c2", "c3")),
				httpRoute(pick("r", "s"), pick("a", "b", "service:a"), pick("a", "b"))}[g.IntN(3)]
			if g.IntN(4) == 0 {
				e = gone(e)
			}
			world[string(e.Kind)+e.Name.String()] = e
			remember(said, c.Apply([]model.Event{e}).Status)
		}
		wanted := map[string]string{}
		remember(wanted, compile.New(compile.Config{}).Apply(slices.Collect(maps.Values(world))).Status)
		for k, v := range wanted {
			if said[k] != v {
				t.Fatalf("seed %d: %s: %s, from scratch %s", seed, k, said[k], v)
			}
		}
	}
}

func remember(all map[string]string, statuses []validate.Status) {
	for _, s := range statuses {
		s.Object, s.Findings = nil, nil
		var parents []string
		for _, p := range s.Parents {
			parents = append(parents, string(p.Name))
		}
		s.Parents = nil
		all[s.Key()] = fmt.Sprintf("%+v %v", s, parents)
	}
}

// TestInertIsSaid: an object of a kind that the mesh does nothing with is not enforced, also when it says nothing.
func TestInertIsSaid(t *testing.T) {
	meta := metav1.ObjectMeta{Namespace: "foo", Name: "x"}
	for kind, object := range map[model.Kind]any{model.KindEnvoyFilter: &networkingv1alpha3.EnvoyFilter{ObjectMeta: meta},
		model.KindTelemetry: &telemetryv1.Telemetry{ObjectMeta: meta}} {
		d := compile.New(compile.Config{}).Apply([]model.Event{{Kind: kind, Name: model.Name{Namespace: "foo", Name: "x"}, Object: object}})
		if len(d.Status) != 1 || !d.Status[0].Accepted || d.Status[0].Enforced || d.Status[0].EnforcedBy != validate.ReasonNotEnforced ||
			!strings.Contains(d.Status[0].Message, "does not act on this kind") {
			t.Errorf("%s: %+v", kind, d.Status)
		}
	}
}

// TestUnreadableIsSaid: an object that the decoder did not understand is not accepted.
func TestUnreadableIsSaid(t *testing.T) {
	d := compile.New(compile.Config{}).Apply([]model.Event{{Kind: model.KindGateway, Name: model.Name{Namespace: "foo", Name: "g"},
		Object: &networkingv1.Gateway{ObjectMeta: metav1.ObjectMeta{Generation: 7}}, Issues: []validate.Field{{Path: "spec.x", Message: "unknown field"}}}})
	if len(d.Status) != 1 || d.Status[0].Accepted || d.Status[0].AcceptedBy != validate.ReasonInvalid || d.Status[0].Generation != 7 ||
		!strings.Contains(d.Status[0].Message, "spec.x: unknown field") {
		t.Errorf("%+v", d.Status)
	}
}
