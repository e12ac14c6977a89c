package compile_test

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	securitybeta "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/model"
)

const goodMesh = "rootNamespace: mesh-config\ntrustDomain: prod\n"

// meshEvent is the mesh's ConfigMap; "" removes it.
func meshEvent(text string) model.Event {
	e := model.Event{Kind: model.KindConfigMap, Name: model.Name{Namespace: "istio-system", Name: api.MeshConfigMap}}
	if text != "" {
		e.Object = &corev1.ConfigMap{Data: map[string]string{"mesh": text}}
	}
	return e
}

// meshWide is a pod, and a policy that denies everything in the whole mesh when mesh-config is the root namespace.
func meshWide() []model.Event {
	deny := &securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "mesh-config", Name: "deny"}}
	deny.Spec.Action, deny.Spec.Rules = securitybeta.AuthorizationPolicy_DENY, []*securitybeta.Rule{{}}
	strict := &securityv1.PeerAuthentication{ObjectMeta: metav1.ObjectMeta{Namespace: "mesh-config", Name: "strict"}}
	strict.Spec.Mtls = &securitybeta.PeerAuthentication_MutualTLS{Mode: securitybeta.PeerAuthentication_MutualTLS_STRICT}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: "p"}}
	pod.Status.PodIP = "10.0.0.1"
	return []model.Event{
		{Kind: model.KindPod, Name: model.Name{Namespace: "foo", Name: "p"}, Object: pod},
		{Kind: model.KindAuthorizationPolicy, Name: model.Name{Namespace: "mesh-config", Name: "deny"}, Object: deny},
		{Kind: model.KindPeerAuthentication, Name: model.Name{Namespace: "mesh-config", Name: "strict"}, Object: strict},
	}
}

func meshText(c *compile.Compiler) string {
	var all []string
	for _, f := range c.MeshFindings() {
		all = append(all, f.Error())
	}
	return strings.Join(all, "\n")
}

// TestUnknownMeshPublishesNothing: a start with a bad configuration must not take mesh-wide policies from the nodes.
func TestUnknownMeshPublishesNothing(t *testing.T) {
	for name, x := range map[string]struct {
		events  []model.Event
		require bool
		want    string
	}{
		"bad":     {[]model.Event{meshEvent(goodMesh + "outboundTrafficPolicy: {mode: NOPE}\n")}, false, "istio-system/istio data.mesh.outboundTrafficPolicy.mode: \"NOPE\" is not one of"},
		"missing": {nil, true, "istio-system/istio: is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			c, nodes := compile.New(compile.Config{InstallNamespace: "istio-system", RequireMesh: x.require}), state{}
			first := c.Apply(append(meshWide(), x.events...))
			if !first.Empty() || len(first.Status) > 0 || len(c.Resources()) > 0 || !c.Held() || !strings.Contains(meshText(c), x.want) {
				t.Fatalf("published %v, status %v, held %t, findings %s", first.Upserts, first.Status, c.Held(), meshText(c))
			}
			if again := c.Apply([]model.Event{meshEvent("")}); !again.Empty() || !c.Held() || meshText(c) == "" {
				t.Fatalf("a ConfigMap that is gone publishes %v, findings %q", again.Upserts, meshText(c))
			}
			d := c.Apply([]model.Event{meshEvent(goodMesh)})
			nodes.apply(t, d)
			full := compile.New(compile.Config{})
			full.Apply(append(meshWide(), meshEvent(goodMesh)))
			compare(t, "good at last", nodes, full.Resources())
			if c.Held() || len(d.Status) != 2 || meshText(c) != "" {
				t.Errorf("held %t, status %v, findings %s", c.Held(), d.Status, meshText(c))
			}
		})
	}
	c := compile.New(compile.Config{})
	if d := c.Apply(meshWide()); d.Empty() || c.Held() {
		t.Error("a directory without a ConfigMap is not served with the defaults")
	}
}

// TestMeshTracing: requests are traced, one in a hundred is sampled (TT-03), unless MeshConfig says otherwise (TT-04).
func TestMeshTracing(t *testing.T) {
	c := compile.New(compile.Config{})
	c.Apply(meshWide())
	for _, x := range []struct {
		mesh string
		want *settings.Tracing
	}{
		{"", &settings.Tracing{Sampling: 100}},
		{goodMesh, &settings.Tracing{Sampling: 100}},
		{goodMesh + "enableTracing: true\n", &settings.Tracing{Sampling: 100}},
		{goodMesh + "defaultConfig: {tracing: {sampling: 12.34}}\n", &settings.Tracing{Sampling: 1234}},
		{goodMesh + "defaultConfig: {tracing: {sampling: 0}}\n", &settings.Tracing{}},
		{goodMesh + "enableTracing: false\n", nil},
	} {
		if x.mesh != "" {
			c.Apply([]model.Event{meshEvent(x.mesh)})
		}
		got := find(t, c, api.MeshSettingsType, api.MeshSettingsName).Message.(*settings.MeshSettings).GetTracing()
		if !proto.Equal(got, x.want) {
			t.Errorf("%q: %v, want %v", x.mesh, got, x.want)
		}
	}
}

// TestLiveMeshKeepsItsLastGoodState: neither a bad edit nor a removal changes what nodes have, and findings say so.
func TestLiveMeshKeepsItsLastGoodState(t *testing.T) {
	c := compile.New(compile.Config{RequireMesh: true})
	c.Apply(append(meshWide(), meshEvent(goodMesh)))
	for text, want := range map[string]string{"trustDomain: [x]": "data.mesh.trustDomain", "": "is gone: what it said last stays in force"} {
		d := c.Apply([]model.Event{meshEvent(text)})
		if len(d.Upserts) != 1 || d.Upserts[0].Type != api.MeshSettingsType || len(d.Removed) > 0 {
			t.Errorf("%q changed %v, removed %v", text, d.Upserts, d.Removed)
		}
		if m := c.Mesh(); m.RootNamespace != "mesh-config" || m.TrustDomain != "prod" || !strings.Contains(meshText(c), want) {
			t.Errorf("%q: in force %+v, findings %s", text, m, meshText(c))
		}
	}
	if c.Apply([]model.Event{meshEvent(goodMesh)}); meshText(c) != "" {
		t.Error("findings stay:", meshText(c))
	}
}
