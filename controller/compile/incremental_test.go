package compile_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	securitybeta "istio.io/api/security/v1beta1"
	typebeta "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/jwks"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/validate"
)

// generator makes random objects of a small world, so that they meet often.
type generator struct{ *rand.Rand }

func (g generator) pick(values ...string) string { return values[g.IntN(len(values))] }

func (g generator) labels() map[string]string {
	out := map[string]string{}
	for _, k := range []string{"app", "version"} {
		if g.IntN(3) > 0 {
			out[k] = g.pick("a", "b", "c")
		}
	}
	return out
}

func (g generator) selector() map[string]string {
	if g.IntN(3) == 0 {
		return nil
	}
	return g.labels()
}

func (g generator) meta(n model.Name) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: n.Namespace, Name: n.Name,
		CreationTimestamp: metav1.Unix(int64(g.IntN(4)), 0)}
}

func (g generator) event() model.Event {
	kinds := []model.Kind{model.KindPod, model.KindPod, model.KindPod, model.KindService, model.KindEndpointSlice,
		model.KindNode, model.KindConfigMap, model.KindPeerAuthentication, model.KindAuthorizationPolicy,
		model.KindServiceEntry, model.KindServiceEntry, model.KindWorkloadEntry, model.KindSidecar,
		model.KindDestinationRule, model.KindVirtualService}
	if g.IntN(3) == 0 {
		kinds = others
	}
	e := model.Event{Kind: kinds[g.IntN(len(kinds))],
		Name: model.Name{Namespace: g.pick("foo", "bar", "istio-system"), Name: g.pick("x", "y", "z", "w")}}
	switch e.Kind {
	case model.KindNode:
		e.Name = model.Name{Name: g.pick("n1", "n2")}
	case model.KindConfigMap:
		e.Name = model.Name{Namespace: "istio-system", Name: "istio"}
	case kindKeys:
		e.Name = model.Name{Namespace: "istio-system", Name: jwks.ConfigMap}
	case model.KindGatewayClass, model.KindIngressClass:
		e.Name.Namespace = ""
	}
	if g.IntN(4) > 0 {
		if e.Object = g.object(e.Kind, e.Name); slices.Contains(others, e.Kind) {
			e.Object = g.other(e.Kind, e.Name)
		}
	}
	if r, ok := model.ResourceOf(e.Kind); ok && e.Object != nil && r.Group != model.GroupIngress && g.IntN(6) == 0 {
		e.Issues = []validate.Field{{Path: "spec." + g.pick("x", "selector"), Message: "unknown field"}}
	}
	if e.Kind == kindKeys {
		e.Kind = model.KindConfigMap
	}
	return e
}

func (g generator) object(kind model.Kind, n model.Name) any {
	switch kind {
	case model.KindPod:
		p := &corev1.Pod{ObjectMeta: g.meta(n)}
		p.Labels = g.labels()
		p.Spec = corev1.PodSpec{NodeName: g.pick("n1", "n2"), HostNetwork: g.IntN(6) == 0,
			Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "main", ContainerPort: int32(80 + g.IntN(2))}}}}}
		p.Status.Phase = corev1.PodPhase(g.pick("Running", "Running", "Succeeded"))
		if g.IntN(6) > 0 {
			p.Status.PodIP = "10.0.0." + strconv.Itoa(g.IntN(6))
		}
		if g.IntN(2) == 0 {
			p.Annotations = map[string]string{api.AnnotationRedirection: api.RedirectionEnabled}
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
			if g.IntN(4) == 0 {
				p.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
			}
		}
		return p
	case model.KindService:
		s := &corev1.Service{ObjectMeta: g.meta(n)}
		s.Annotations = map[string]string{model.AnnotationExportTo: g.pick("", "", ".", "*", "~", "foo,bar")}
		s.Spec = corev1.ServiceSpec{Selector: g.selector(), ClusterIP: "10.96.0." + strconv.Itoa(g.IntN(9)),
			Type:         corev1.ServiceType(g.pick("ClusterIP", "ClusterIP", "ExternalName")),
			ExternalName: g.pick("x.foo.svc.cluster.local", "Y.bar.svc.cluster.local.", "ext.example.com", "10.0.0.1"),
			Ports:        []corev1.ServicePort{{Name: g.pick("http", "foo"), Port: 80}, {Name: "n", Port: 81, TargetPort: intstr.FromString("main")}}}
		return s
	case model.KindEndpointSlice:
		s := &discoveryv1.EndpointSlice{ObjectMeta: g.meta(n)}
		s.Labels = map[string]string{discoveryv1.LabelServiceName: g.pick("x", "y", "z", "w", "none")}
		port := int32(90 + g.IntN(2))
		s.Ports = []discoveryv1.EndpointPort{{Name: ptr("http"), Port: &port}}
		for range g.IntN(3) {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{"10.0.0." + strconv.Itoa(g.IntN(8))},
				Conditions: discoveryv1.EndpointConditions{Ready: ptr(g.IntN(2) == 0), Serving: ptr(g.IntN(2) == 0), Terminating: ptr(g.IntN(2) == 0)}})
		}
		s.AddressType = discoveryv1.AddressType(g.pick("IPv4", "IPv4", "FQDN"))
		return s
	case model.KindNode:
		o := &corev1.Node{ObjectMeta: g.meta(n)}
		o.Labels = map[string]string{corev1.LabelTopologyZone: g.pick("z1", "z2")}
		for range g.IntN(3) {
			o.Status.Addresses = append(o.Status.Addresses, corev1.NodeAddress{Address: "10.0.0." + strconv.Itoa(g.IntN(8))})
		}
		return o
	case model.KindConfigMap:
		return &corev1.ConfigMap{ObjectMeta: g.meta(n), Data: map[string]string{"mesh": "trustDomain: " + g.pick("cluster.local", "td") +
			"\nrootNamespace: " + g.pick("istio-system", "bar") + "\noutboundTrafficPolicy: {mode: " + g.pick("ALLOW_ANY", "REGISTRY_ONLY") + "}\n" +
			g.pick("", "trustDomainAliases: [old]\n", "enableAutoMtls: false\n", "meshMTLS: {minProtocolVersion: TLSV1_3}\n") +
			g.pick("", "defaultServiceExportTo: [\".\"]\n", "defaultDestinationRuleExportTo: [\".\"]\n", "connectTimeout: 3s\n", "defaultHttpRetryPolicy: {attempts: 4}\n")}}
	case model.KindPeerAuthentication:
		return g.peer(n)
	case model.KindServiceEntry:
		return g.entry(n)
	case model.KindWorkloadEntry:
		return g.workload(n)
	case model.KindSidecar, model.KindDestinationRule, model.KindVirtualService:
		return g.traffic(kind, n)
	}
	return g.policy(n)
}

func (g generator) mode() *securitybeta.PeerAuthentication_MutualTLS {
	return &securitybeta.PeerAuthentication_MutualTLS{Mode: securitybeta.PeerAuthentication_MutualTLS_Mode(g.IntN(4))}
}

func (g generator) workloads() *typebeta.WorkloadSelector {
	if s := g.selector(); s != nil {
		return &typebeta.WorkloadSelector{MatchLabels: s}
	}
	return nil
}

func (g generator) peer(n model.Name) any {
	p := &securityv1.PeerAuthentication{ObjectMeta: g.meta(n)}
	p.Spec.Selector, p.Spec.Mtls = g.workloads(), g.mode()
	if g.IntN(2) == 0 {
		p.Spec.PortLevelMtls = map[uint32]*securitybeta.PeerAuthentication_MutualTLS{80: g.mode(), 81: g.mode()}
	}
	return p
}

func (g generator) policy(n model.Name) any {
	p := &securityv1.AuthorizationPolicy{ObjectMeta: g.meta(n)}
	p.Spec.Action = securitybeta.AuthorizationPolicy_Action(g.IntN(4))
	p.Annotations = map[string]string{"istio.io/dry-run": g.pick("", "", "true")}
	if g.IntN(4) == 0 {
		p.Spec.TargetRefs = []*typebeta.PolicyTargetReference{{Kind: g.pick("Service", "Gateway", "Other"), Name: g.pick("x", "y")}}
	} else {
		p.Spec.Selector = g.workloads()
	}
	p.Spec.Rules = []*securitybeta.Rule{{From: []*securitybeta.Rule_From{{Source: &securitybeta.Source{
		Principals: []string{g.pick("cluster.local/ns/foo/sa/x", "*", "a*b")}}}}}}
	return p
}

// traffic makes objects that say how workloads call.
func (g generator) traffic(kind model.Kind, n model.Name) any {
	switch kind {
	case model.KindSidecar:
		return g.visibleSidecar(g.meta(n))
	case model.KindDestinationRule:
		return g.rule(n)
	}
	return g.virtual(n)
}

// state is what nodes would hold after all deltas.
type state map[compile.Key]compile.Resource

func (s state) apply(t *testing.T, d compile.Delta) {
	t.Helper()
	for _, r := range d.Upserts {
		s[compile.Key{Type: r.Type, Name: r.Name}] = r
	}
	for _, k := range d.Removed {
		if _, ok := s[k]; !ok {
			t.Fatalf("%v was removed and never sent", k)
		}
		delete(s, k)
	}
}

func compare(t *testing.T, step string, got state, want []compile.Resource) {
	t.Helper()
	seen := map[compile.Key]bool{}
	for _, r := range want {
		k := compile.Key{Type: r.Type, Name: r.Name}
		seen[k] = true
		if r.Type == api.MeshSettingsType { // counts its snapshots
			continue
		}
		have, ok := got[k]
		if !ok {
			t.Fatalf("%s: %v is missing", step, k)
		}
		if !proto.Equal(have.Message, r.Message) || !slices.Equal(have.Aliases, r.Aliases) {
			t.Fatalf("%s: %v is\n%v %v\nwant\n%v %v", step, k, have.Message, have.Aliases, r.Message, r.Aliases)
		}
	}
	for k := range got {
		if !seen[k] {
			t.Fatalf("%s: %v is stale", step, k)
		}
	}
}

// TestIncrementalEqualsFull applies random events in batches and compares what the deltas add up to with a compilation
// from nothing of the objects as they are then. SEED repeats one history.
func TestIncrementalEqualsFull(t *testing.T) {
	seeds := 25
	first := uint64(time.Now().UnixNano())
	if s := os.Getenv("SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		first, seeds = n, 1
	}
	for i := range seeds {
		seed := first + uint64(i)
		t.Run(fmt.Sprintf("SEED=%d", seed), func(t *testing.T) { runHistory(t, seed) })
	}
}

// keepStatuses makes all what users are told after the statuses.
func keepStatuses(all map[string]string, statuses []validate.Status) {
	for _, s := range statuses {
		if delete(all, s.Key()); !s.Gone {
			all[s.Key()] = fmt.Sprintf("%+v", s)
		}
	}
}

func runHistory(t *testing.T, seed uint64) {
	g := generator{rand.New(rand.NewPCG(seed, 1))}
	type objectKey struct {
		kind model.Kind
		name model.Name
	}
	world := map[objectKey]model.Event{}
	c, nodes, meshGone := compile.New(compile.Config{}), state{}, false
	said := map[string]string{}
	for step := range 60 {
		var batch []model.Event
		for range 1 + g.IntN(4) {
			e := g.event()
			batch = append(batch, e)
			k := objectKey{e.Kind, e.Name}
			_, had := world[k]
			switch {
			case e.Kind == model.KindConfigMap && e.Name.Name == api.MeshConfigMap:
				if had || e.Object != nil { // what it said last stays in force
					meshGone = e.Object == nil
				}
				if e.Object != nil {
					world[k] = e
				}
			case e.Object == nil:
				delete(world, k)
			default:
				world[k] = e
			}
		}
		d := c.Apply(batch)
		nodes.apply(t, d)
		keepStatuses(said, d.Status)
		full, wanted := compile.New(compile.Config{}), map[string]string{}
		keepStatuses(wanted, full.Apply(slices.Collect(maps.Values(world))).Status)
		for k, want := range wanted {
			if said[k] != want {
				t.Fatalf("step %d: status of %s is\n%s\nwant\n%s", step, k, said[k], want)
			}
		}
		if len(said) != len(wanted) {
			t.Fatalf("step %d: statuses of %v, want of %v", step, slices.Sorted(maps.Keys(said)), slices.Sorted(maps.Keys(wanted)))
		}
		if meshGone {
			full.Apply([]model.Event{{Kind: model.KindConfigMap, Name: model.Name{Namespace: "istio-system", Name: "istio"}}})
		}
		compare(t, fmt.Sprintf("step %d", step), nodes, full.Resources())
		if got, want := fmt.Sprint(c.Findings()), fmt.Sprint(full.Findings()); got != want {
			t.Fatalf("step %d: findings\n%s\nwant\n%s", step, got, want)
		}
		if step%10 == 0 {
			acceptable(t, c)
		}
	}
}

// TestChangeCostsOneResource: a pod's change sends that pod and the mesh's generation, nothing else.
func TestChangeCostsOneResource(t *testing.T) {
	c := compile.New(compile.Config{})
	var events []model.Event
	pod := func(i int, ready bool) model.Event {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: "p" + strconv.Itoa(i), Labels: map[string]string{"app": "a"}}}
		p.Status.PodIP = fmt.Sprintf("10.0.%d.%d", i/256, i%256)
		if ready {
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		}
		return model.Event{Kind: model.KindPod, Name: model.Name{Namespace: "foo", Name: p.Name}, Object: p}
	}
	for i := range 300 {
		events = append(events, pod(i, false))
	}
	events = append(events, model.Event{Kind: model.KindService, Name: model.Name{Namespace: "foo", Name: "s"}, Object: &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: "s"}, Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "a"}}}})
	c.Apply(events)
	d := c.Apply([]model.Event{pod(7, true)})
	if len(d.Upserts) != 2 || d.Upserts[0].Name != "Kubernetes//Pod/foo/p7" || d.Upserts[1].Type != api.MeshSettingsType || len(d.Removed) > 0 {
		t.Errorf("got %v, removed %v", d.Upserts, d.Removed)
	}
	if d := c.Apply([]model.Event{pod(7, true)}); len(d.Upserts)+len(d.Removed) != 0 {
		t.Errorf("the same pod again changed %v", d.Upserts)
	}
}

func ptr[T any](v T) *T { return &v }

// BenchmarkPodChange is the cost of one pod's readiness in a namespace of 20,000 pods, 200 services and 200 policies.
func BenchmarkPodChange(b *testing.B) {
	c := compile.New(compile.Config{})
	var events []model.Event
	app := func(i int) map[string]string { return map[string]string{"app": "a" + strconv.Itoa(i%200)} }
	pod := func(i int, ready corev1.ConditionStatus) model.Event {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: "p" + strconv.Itoa(i), Labels: app(i)}}
		p.Status.PodIP = fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255)
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}
		return model.Event{Kind: model.KindPod, Name: model.Name{Namespace: "foo", Name: p.Name}, Object: p}
	}
	for i := range 20000 {
		events = append(events, pod(i, corev1.ConditionFalse))
	}
	for i := range 200 {
		n := model.Name{Namespace: "foo", Name: "x" + strconv.Itoa(i)}
		meta := metav1.ObjectMeta{Namespace: n.Namespace, Name: n.Name}
		ap := &securityv1.AuthorizationPolicy{ObjectMeta: meta}
		ap.Spec.Selector = &typebeta.WorkloadSelector{MatchLabels: app(i)}
		events = append(events, model.Event{Kind: model.KindAuthorizationPolicy, Name: n, Object: ap}, model.Event{Kind: model.KindService,
			Name: n, Object: &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{Selector: app(i), Ports: []corev1.ServicePort{{Port: 80}}}}})
	}
	c.Apply(events)
	states := []corev1.ConditionStatus{corev1.ConditionTrue, corev1.ConditionFalse}
	for i := 0; b.Loop(); i++ {
		if d := c.Apply([]model.Event{pod(7, states[i%2])}); len(d.Upserts) != 2 {
			b.Fatal(len(d.Upserts))
		}
	}
}
