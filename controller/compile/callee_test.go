package compile_test

import (
	"slices"
	"testing"
	"time"

	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/model"
)

func find(t *testing.T, c *compile.Compiler, typ, name string) compile.Resource {
	t.Helper()
	for _, r := range c.Resources() {
		if r.Type == typ && r.Name == name {
			return r
		}
	}
	t.Fatalf("no %s %s", typ, name)
	return compile.Resource{}
}

func plainService(annotations map[string]string) model.Event {
	return model.Event{Kind: model.KindService, Name: model.Name{Namespace: "shop", Name: "reviews"}, Object: &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "reviews", Annotations: annotations},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.1", Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}}}
}

func exportOf(t *testing.T, c *compile.Compiler) []string {
	t.Helper()
	r := find(t, c, api.AddressType, "shop/reviews.shop.svc.cluster.local")
	var set settings.ServiceSettings
	for _, e := range r.Message.(*workloadapi.Address).GetService().GetExtensions() {
		if e.GetName() == api.ServiceSettingsExtension {
			if err := e.GetConfig().UnmarshalTo(&set); err != nil {
				t.Fatal(err)
			}
		}
	}
	return set.GetExportTo()
}

// TestMeshDefaultsOfCalls: what MeshConfig says of visibility, timeouts and retries reaches services that nobody touched.
func TestMeshDefaultsOfCalls(t *testing.T) {
	c := compile.New(compile.Config{})
	c.Apply([]model.Event{plainService(nil)})
	said := func() *settings.CallDefaults {
		return find(t, c, api.MeshSettingsType, api.MeshSettingsName).Message.(*settings.MeshSettings).GetCallDefaults()
	}
	policy := func() *route.RetryPolicy {
		if said().GetRetryPolicy() == nil {
			return nil
		}
		out := &route.RetryPolicy{}
		if err := said().GetRetryPolicy().UnmarshalTo(out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	timeout := func() time.Duration { return said().GetConnectTimeout().AsDuration() }
	if exportOf(t, c) != nil || policy().GetNumRetries().GetValue() != 2 || timeout() != 0 {
		t.Error("defaults are", exportOf(t, c), policy(), timeout())
	}
	c.Apply([]model.Event{meshEvent("defaultServiceExportTo: [\".\"]\nconnectTimeout: 3s\ndefaultHttpRetryPolicy: {attempts: 5, perTryTimeout: 1s, retryOn: 5xx}\n")})
	if got := exportOf(t, c); !slices.Equal(got, []string{"shop"}) {
		t.Error("exported to", got)
	}
	if p := policy(); p.GetNumRetries().GetValue() != 5 || p.GetPerTryTimeout().AsDuration() != time.Second || p.GetRetryOn() != "5xx" {
		t.Error("retries are", p)
	}
	if timeout() != 3*time.Second {
		t.Error("timeout is", timeout())
	}
	c.Apply([]model.Event{meshEvent("defaultHttpRetryPolicy: {attempts: 0}\n"), plainService(map[string]string{model.AnnotationExportTo: "*"})})
	if policy() != nil || exportOf(t, c) != nil {
		t.Error("retries are", policy(), "exported to", exportOf(t, c))
	}
}

// TestServiceWithBytesThatAreNoText is served, to nobody's namespace.
func TestServiceWithBytesThatAreNoText(t *testing.T) {
	c := compile.New(compile.Config{})
	c.Apply([]model.Event{plainService(map[string]string{model.AnnotationExportTo: "\xff"})})
	if got := exportOf(t, c); len(got) != 1 || got[0] != "\uFFFD" {
		t.Errorf("got %q", got)
	}
}
