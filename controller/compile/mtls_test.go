package compile_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	securitybeta "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/securityapi"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/policy"
)

const (
	unset      = securitybeta.PeerAuthentication_MutualTLS_UNSET
	disable    = securitybeta.PeerAuthentication_MutualTLS_DISABLE
	permissive = securitybeta.PeerAuthentication_MutualTLS_PERMISSIVE
	strict     = securitybeta.PeerAuthentication_MutualTLS_STRICT
)

type mode = securitybeta.PeerAuthentication_MutualTLS_Mode

// wish is one PeerAuthentication as the oracle sees it.
type wish struct {
	namespace, name string
	born            int64
	app             string // "" for all
	mode            mode
	ports           map[uint32]mode
}

func (x wish) event() model.Event {
	var selector map[string]string
	if x.app != "" {
		selector = map[string]string{"app": x.app}
	}
	e := peerEvent(x.namespace, x.name, 100-x.born, selector, x.mode)
	spec := &e.Object.(*securityv1.PeerAuthentication).Spec
	for port, m := range x.ports {
		if spec.PortLevelMtls == nil {
			spec.PortLevelMtls = map[uint32]*securitybeta.PeerAuthentication_MutualTLS{}
		}
		spec.PortLevelMtls[port] = &securitybeta.PeerAuthentication_MutualTLS{Mode: m}
	}
	return e
}

// oracle tells the mode of a port from the documents' sentences alone: of each level the policy that was made first, by name
// when two were made in one second; the narrowest level that says something; a port of the workload's own policy, if a
// service leads to it; PERMISSIVE when nobody says anything.
func oracle(wishes []wish, namespace, app string, port uint32, bound map[uint32]bool) mode {
	first := func(fits func(wish) bool) *wish {
		var best *wish
		for i, x := range wishes {
			if fits(x) && (best == nil || x.born < best.born || (x.born == best.born && x.name < best.name)) {
				best = &wishes[i]
			}
		}
		return best
	}
	own := first(func(x wish) bool { return x.namespace == namespace && x.app != "" && x.app == app })
	if own != nil && bound[port] && own.ports[port] != unset {
		return own.ports[port]
	}
	if own != nil && own.mode != unset {
		return own.mode
	}
	for _, ns := range []string{namespace, "istio-system"} {
		if x := first(func(x wish) bool { return x.namespace == ns && x.app == "" }); x != nil && x.mode != unset {
			return x.mode
		}
	}
	return permissive
}

// effective reads the mode of a port of a pod out of what nodes receive.
func effective(t *testing.T, c *compile.Compiler, namespace, pod string, port uint32) mode {
	t.Helper()
	var w *workloadapi.Workload
	policies := map[string]*securityapi.Authorization{}
	sets := map[string]*settings.WorkloadSettings{}
	mesh := &settings.MeshSettings{}
	for _, r := range c.Resources() {
		switch m := r.Message.(type) {
		case *workloadapi.Address:
			if r.Name == "Kubernetes//Pod/"+namespace+"/"+pod {
				w = m.GetWorkload()
			}
		case *securityapi.Authorization:
			policies[r.Name] = m
		case *settings.WorkloadSettings:
			sets[r.Name] = m
		case *settings.MeshSettings:
			mesh = m
		}
	}
	set := &settings.WorkloadSettings{}
	for _, e := range w.GetExtensions() {
		if ref := (&settings.SettingsRef{}); e.GetName() == api.WorkloadSettingsExtension {
			if err := e.GetConfig().UnmarshalTo(ref); err != nil {
				t.Fatal(err)
			}
			if set = sets[ref.GetName()]; set == nil {
				t.Fatal("there are no settings", ref.GetName())
			}
		}
	}
	got := set.GetMtls()
	if m, ok := set.GetPortMtls()[port]; ok {
		got = m
	}
	var named []*securityapi.Authorization
	for _, n := range w.GetAuthorizationPolicies() {
		if policies[n] == nil {
			t.Fatal("there is no policy", n)
		}
		named = append(named, policies[n])
	}
	plain := policy.Connection{Source: netip.MustParseAddrPort("10.9.9.9:1"), Destination: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), uint16(port))}
	proved := plain
	proved.Peer = api.Identity{TrustDomain: "cluster.local", Namespace: "a", ServiceAccount: "b"}
	if v := policy.Authorize(named, mesh, proved); !v.Allow {
		t.Errorf("%s/%s:%d refuses who has a principal", namespace, pod, port)
	}
	if v := policy.Authorize(named, mesh, plain); v.Allow == (got == settings.MtlsMode_MTLS_STRICT) {
		t.Errorf("%s/%s:%d is %s and plain text is let in: %t", namespace, pod, port, got, v.Allow)
	}
	return map[settings.MtlsMode]mode{settings.MtlsMode_MTLS_DISABLE: disable, settings.MtlsMode_MTLS_STRICT: strict, settings.MtlsMode_MTLS_PERMISSIVE: permissive}[got]
}

func portsEvent(namespace, app string, ports ...uint32) model.Event {
	s := &corev1.Service{}
	s.Namespace, s.Name = namespace, app
	s.Spec.Selector, s.Spec.ClusterIP = map[string]string{"app": app}, "10.96.0.1"
	for i, p := range ports {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: fmt.Sprint("p", i), Port: int32(8000 + i), TargetPort: intstr.FromInt32(int32(p))})
	}
	return model.Event{Kind: model.KindService, Name: model.Name{Namespace: namespace, Name: app}, Object: s}
}

// TestMT09MT10MT11AgainstOracle compiles random policies one after the other, with removals, and compares every port.
func TestMT09MT10MT11AgainstOracle(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 9))
		modes := []mode{unset, disable, permissive, strict}
		c := compile.New(compile.Config{})
		events := []model.Event{}
		bound := map[uint32]bool{80: true, 9000: true}
		places := [][2]string{{"foo", "a"}, {"foo", "b"}, {"bar", "a"}, {"istio-system", "a"}}
		for i, p := range places {
			events = append(events, podEvent(p[0], p[1], fmt.Sprintf("10.0.0.%d", i+1), map[string]string{"app": p[1]}), portsEvent(p[0], p[1], 80, 9000))
		}
		c.Apply(events)
		var wishes []wish
		for step := range 12 {
			if len(wishes) > 0 && r.IntN(4) == 0 {
				i := r.IntN(len(wishes))
				c.Apply([]model.Event{{Kind: model.KindPeerAuthentication, Name: model.Name{Namespace: wishes[i].namespace, Name: wishes[i].name}}})
				wishes = append(wishes[:i], wishes[i+1:]...)
			} else {
				x := wish{namespace: []string{"foo", "bar", "istio-system"}[r.IntN(3)], name: fmt.Sprintf("%c%d", 'a'+rune(r.IntN(3)), step),
					born: r.Int64N(3), app: []string{"", "a", "b"}[r.IntN(3)], mode: modes[r.IntN(4)]}
				if x.app != "" && r.IntN(2) == 0 {
					x.ports = map[uint32]mode{[]uint32{80, 9000, 9002}[r.IntN(3)]: modes[r.IntN(4)]}
				}
				wishes = append(wishes, x)
				c.Apply([]model.Event{x.event()})
			}
			for _, p := range places {
				for _, port := range []uint32{80, 9000, 9002} {
					if got, want := effective(t, c, p[0], p[1], port), oracle(wishes, p[0], p[1], port, bound); got != want {
						t.Fatalf("seed %d, step %d: %s/%s:%d is %s, want %s under %+v", seed, step, p[0], p[1], port, got, want, wishes)
					}
				}
			}
		}
	}
}

// TestMT08UnboundPort: the port counts from when a service leads to it, and no longer.
func TestMT08UnboundPort(t *testing.T) {
	c := compile.New(compile.Config{})
	x := wish{namespace: "foo", name: "x", app: "a", mode: strict, ports: map[uint32]mode{9002: disable}}
	c.Apply([]model.Event{podEvent("foo", "a", "10.0.0.1", map[string]string{"app": "a"}), x.event()})
	for i, step := range []struct {
		event model.Event
		want  mode
	}{
		{portsEvent("foo", "a", 80), strict}, {portsEvent("foo", "a", 80, 9002), disable}, {portsEvent("foo", "a", 9002), disable},
		{model.Event{Kind: model.KindService, Name: model.Name{Namespace: "foo", Name: "a"}}, strict},
	} {
		c.Apply([]model.Event{step.event})
		if got := effective(t, c, "foo", "a", 9002); got != step.want {
			t.Errorf("step %d: %s, want %s", i, got, step.want)
		}
	}
}
