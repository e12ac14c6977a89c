package model

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	typebeta "istio.io/api/type/v1beta1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// visible makes a registry of objects; each is younger than those before it.
func visible(t *testing.T, mesh *meshv1alpha1.MeshConfig, objects ...metav1.Object) *Registry {
	t.Helper()
	r := New(Config{Mesh: Mesh{TrustDomain: "cluster.local", RootNamespace: "root", Config: mesh}})
	for i, o := range objects {
		e := Event{Name: Name{o.GetNamespace(), o.GetName()}, Object: o}
		switch o.(type) {
		case *networkingv1.DestinationRule:
			e.Kind = KindDestinationRule
		case *networkingv1.VirtualService:
			e.Kind = KindVirtualService
		case *networkingv1.Sidecar:
			e.Kind = KindSidecar
		default:
			t.Fatalf("%T", o)
		}
		o.SetCreationTimestamp(metav1.NewTime(time.Unix(int64(i), 0)))
		r.Apply([]Event{e})
	}
	return r
}

func meta(name string) metav1.ObjectMeta {
	ns, n, _ := strings.Cut(name, "/")
	return metav1.ObjectMeta{Namespace: ns, Name: n}
}

func rule(name, host string, exportTo ...string) *networkingv1.DestinationRule {
	return &networkingv1.DestinationRule{ObjectMeta: meta(name), Spec: networking.DestinationRule{Host: host, ExportTo: exportTo}}
}

func ruleFor(name, host string, labels map[string]string) *networkingv1.DestinationRule {
	r := rule(name, host)
	r.Spec.WorkloadSelector = &typebeta.WorkloadSelector{MatchLabels: labels}
	return r
}

// TestDestinationRules covers the places of SR-17.
func TestDestinationRules(t *testing.T) {
	const reviews = "reviews.shop.svc.cluster.local"
	app := map[string]string{"app": "web"}
	for _, tt := range []struct {
		row   string
		from  string
		mesh  *meshv1alpha1.MeshConfig
		rules []metav1.Object
		want  string
	}{
		{"client namespace first", "client", nil, []metav1.Object{rule("root/r", reviews), rule("shop/r", reviews), rule("client/r", reviews)}, "client/r"},
		{"then the service's", "client", nil, []metav1.Object{rule("root/r", reviews), rule("shop/r", reviews)}, "shop/r"},
		{"then the root", "client", nil, []metav1.Object{rule("root/r", reviews)}, "root/r"},
		{"nowhere else", "client", nil, []metav1.Object{rule("other/r", reviews)}, ""},
		{"short host is of the rule's namespace", "client", nil, []metav1.Object{rule("shop/r", "reviews"), rule("client/r", "reviews")}, "shop/r"},
		{"private in the service's namespace", "client", nil, []metav1.Object{rule("shop/r", reviews, "."), rule("root/r", reviews)}, "root/r"},
		{"private in the client's namespace", "client", nil, []metav1.Object{rule("client/r", reviews, ".")}, "client/r"},
		{"exported elsewhere only, in the client's own", "client", nil, []metav1.Object{rule("client/r", reviews, "other")}, "client/r"},
		{"private in the root", "client", nil, []metav1.Object{rule("root/r", reviews, ".")}, ""},
		{"exported to the client", "client", nil, []metav1.Object{rule("shop/r", reviews, "client")}, "shop/r"},
		{"~", "client", nil, []metav1.Object{rule("shop/r", reviews, "~")}, ""},
		{"default of the mesh", "client", &meshv1alpha1.MeshConfig{DefaultDestinationRuleExportTo: []string{"."}},
			[]metav1.Object{rule("shop/r", reviews)}, ""},
		{"the object says otherwise than the default", "client", &meshv1alpha1.MeshConfig{DefaultDestinationRuleExportTo: []string{"."}},
			[]metav1.Object{rule("shop/r", reviews, "*")}, "shop/r"},
		{"a client in the root namespace", "root", nil, []metav1.Object{rule("shop/r", reviews), rule("root/r", reviews)}, "shop/r"},
		{"the most specific host", "client", nil, []metav1.Object{rule("client/all", "*"), rule("client/wide", "*.svc.cluster.local"),
			rule("client/ns", "*.shop.svc.cluster.local"), rule("client/one", reviews)}, "client/one"},
		{"the longest pattern", "client", nil, []metav1.Object{rule("client/all", "*"), rule("client/ns", "*.shop.svc.cluster.local"),
			rule("client/wide", "*.svc.cluster.local")}, "client/ns"},
		{"a pattern at the client before a name at the service", "client", nil, []metav1.Object{rule("shop/one", reviews), rule("client/all", "*.local")}, "client/all"},
		{"several of one host, oldest first", "client", nil, []metav1.Object{rule("shop/b", reviews), rule("shop/a", reviews)}, "shop/b shop/a"},
		{"a rule that selects the workload", "client", nil, []metav1.Object{rule("client/any", reviews), ruleFor("client/web", reviews, app)}, "client/web client/any"},
		{"a rule that selects another workload", "client", nil, []metav1.Object{ruleFor("client/web", reviews, map[string]string{"app": "db"}), rule("shop/r", reviews)}, "shop/r"},
		{"a rule that selects workloads is for its namespace", "client", nil, []metav1.Object{ruleFor("shop/web", reviews, app)}, ""},
	} {
		t.Run(tt.row, func(t *testing.T) {
			r := visible(t, tt.mesh, tt.rules...)
			var got []string
			for _, d := range r.DestinationRules(tt.from, app, "shop", reviews) {
				got = append(got, d.Namespace+"/"+d.DestinationRule.Name)
			}
			if strings.Join(got, " ") != tt.want {
				t.Errorf("got %v, want %s", got, tt.want)
			}
		})
	}
}

func virtual(name string, gateways []string, exportTo []string, hosts ...string) *networkingv1.VirtualService {
	return &networkingv1.VirtualService{ObjectMeta: meta(name), Spec: networking.VirtualService{Hosts: hosts, Gateways: gateways, ExportTo: exportTo}}
}

// TestVirtualServices covers the choice of SR-15.
func TestVirtualServices(t *testing.T) {
	const reviews = "reviews.shop.svc.cluster.local"
	for _, tt := range []struct {
		row     string
		mesh    *meshv1alpha1.MeshConfig
		objects []metav1.Object
		want    string
	}{
		{"no gateways: the mesh", nil, []metav1.Object{virtual("shop/v", nil, nil, "reviews")}, "shop/v"},
		{"a gateway alone is not for the mesh", nil, []metav1.Object{virtual("shop/v", []string{"gw"}, nil, "reviews")}, ""},
		{"a gateway and the mesh", nil, []metav1.Object{virtual("shop/v", []string{"gw", "mesh"}, nil, "reviews")}, "shop/v"},
		{"another host", nil, []metav1.Object{virtual("client/v", nil, nil, "reviews")}, ""},
		{"private", nil, []metav1.Object{virtual("shop/v", nil, []string{"."}, "reviews")}, ""},
		{"private, of the client", nil, []metav1.Object{virtual("client/v", nil, []string{"."}, reviews)}, "client/v"},
		{"default of the mesh", &meshv1alpha1.MeshConfig{DefaultVirtualServiceExportTo: []string{"."}}, []metav1.Object{virtual("shop/v", nil, nil, "reviews")}, ""},
		{"name before pattern, oldest first", nil, []metav1.Object{virtual("shop/p", nil, nil, "*.shop.svc.cluster.local"),
			virtual("shop/b", nil, nil, "reviews"), virtual("shop/a", nil, nil, "x", "reviews")}, "shop/b shop/a"},
		{"pattern", nil, []metav1.Object{virtual("shop/p", nil, nil, "*")}, "shop/p"},
	} {
		t.Run(tt.row, func(t *testing.T) {
			var got []string
			for _, v := range visible(t, tt.mesh, tt.objects...).VirtualServices("client", reviews) {
				got = append(got, v.Key().String())
			}
			if strings.Join(got, " ") != tt.want {
				t.Errorf("got %v, want %s", got, tt.want)
			}
		})
	}
}

func sidecar(name string, labels map[string]string) *networkingv1.Sidecar {
	s := &networkingv1.Sidecar{ObjectMeta: meta(name)}
	if labels != nil {
		s.Spec.WorkloadSelector = &networking.WorkloadSelector{Labels: labels}
	}
	return s
}

// TestSidecarOf covers the three levels of SR-16.
func TestSidecarOf(t *testing.T) {
	web := map[string]string{"app": "web"}
	for _, tt := range []struct {
		row, from string
		objects   []metav1.Object
		want      string
	}{
		{"none", "shop", nil, ""},
		{"of another namespace", "shop", []metav1.Object{sidecar("other/s", nil)}, ""},
		{"root for all", "shop", []metav1.Object{sidecar("root/s", nil)}, "root/s"},
		{"root with a selector is for root's own", "shop", []metav1.Object{sidecar("root/s", web)}, ""},
		{"root with a selector, in root", "root", []metav1.Object{sidecar("root/all", nil), sidecar("root/s", web)}, "root/s"},
		{"namespace before root", "shop", []metav1.Object{sidecar("root/s", nil), sidecar("shop/s", nil)}, "shop/s"},
		{"selector before namespace", "shop", []metav1.Object{sidecar("shop/all", nil), sidecar("shop/web", web)}, "shop/web"},
		{"selector of others", "shop", []metav1.Object{sidecar("shop/db", map[string]string{"app": "db"}), sidecar("root/s", nil)}, "root/s"},
		{"oldest", "shop", []metav1.Object{sidecar("shop/b", nil), sidecar("shop/a", nil)}, "shop/b"},
	} {
		t.Run(tt.row, func(t *testing.T) {
			got := ""
			if s := visible(t, nil, tt.objects...).SidecarOf(tt.from, web); s != nil {
				got = s.Namespace + "/" + s.Sidecar.Name
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// TestSidecarInherits: a Sidecar without egress has that of the next level; its outbound policy stays its own.
func TestSidecarInherits(t *testing.T) {
	web := map[string]string{"app": "web"}
	with := func(s *networkingv1.Sidecar, hosts ...string) *networkingv1.Sidecar {
		s.Spec.Egress = []*networking.IstioEgressListener{{Hosts: hosts}}
		return s
	}
	only := func(s *networkingv1.Sidecar) *networkingv1.Sidecar {
		s.Spec.OutboundTrafficPolicy = &networking.OutboundTrafficPolicy{Mode: networking.OutboundTrafficPolicy_REGISTRY_ONLY}
		return s
	}
	unix := with(sidecar("shop/s", nil), "*/*")
	unix.Spec.Egress[0].Bind = "unix:///x"
	for _, tt := range []struct {
		row     string
		objects []metav1.Object
		want    string
	}{
		{"its own", []metav1.Object{with(sidecar("root/s", nil), "root/*"), with(sidecar("shop/s", nil), "./*")}, "shop/s [{0 [./*]}] false"},
		{"the root's", []metav1.Object{with(sidecar("root/s", nil), "root/*"), only(sidecar("shop/s", nil))}, "shop/s [{0 [root/*]}] true"},
		{"the namespace's", []metav1.Object{with(sidecar("root/s", nil), "root/*"), with(sidecar("shop/s", nil), "./*"),
			only(sidecar("shop/web", web))}, "shop/web [{0 [./*]}] true"},
		{"past one that has none", []metav1.Object{with(sidecar("root/s", nil), "root/*"), only(sidecar("shop/s", nil)),
			sidecar("shop/web", web)}, "shop/web [{0 [root/*]}] false"},
		{"nobody has any", []metav1.Object{sidecar("shop/s", nil)}, "shop/s [] false"},
		{"by a unix socket only", []metav1.Object{unix}, "shop/s [{0 []}] false"},
	} {
		t.Run(tt.row, func(t *testing.T) {
			s := visible(t, nil, tt.objects...).SidecarOf("shop", web)
			if got := fmt.Sprint(s.Namespace, "/", s.Sidecar.Name, " ", s.Egress, " ", s.RegistryOnly && s.OwnPolicy); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// TestSidecarMarksItsPods: a Sidecar's change compiles its pods again, as it was and as it is, and no others.
func TestSidecarMarksItsPods(t *testing.T) {
	r := New(Config{Mesh: defaults})
	var events []Event
	for _, n := range []string{"shop/web", "shop/db", "other/web"} {
		m := meta(n)
		m.Labels = map[string]string{"app": m.Name}
		events = append(events, Event{Kind: KindPod, Name: Name{m.Namespace, m.Name}, Object: &corev1.Pod{ObjectMeta: m}})
	}
	r.Apply(events)
	for i, tt := range []struct {
		name string
		o    *networkingv1.Sidecar
		want string
	}{
		{"shop/s", sidecar("shop/s", map[string]string{"app": "web"}), "shop/web"},
		{"shop/s", sidecar("shop/s", map[string]string{"app": "db"}), "shop/db shop/web"},
		{"shop/s", nil, "shop/db"},
		{"istio-system/s", sidecar("istio-system/s", nil), "other/web shop/db shop/web"},
	} {
		m := meta(tt.name)
		e := Event{Kind: KindSidecar, Name: Name{m.Namespace, m.Name}}
		if tt.o != nil {
			e.Object = tt.o
		}
		var got []string
		for n := range r.Apply([]Event{e}).Pods {
			got = append(got, n.String())
		}
		slices.Sort(got)
		if strings.Join(got, " ") != tt.want {
			t.Errorf("change %d marks %v, want %s", i, got, tt.want)
		}
	}
}

func TestNewExportTo(t *testing.T) {
	for _, tt := range []struct {
		values, fallback string
		want             string // seen from own, other, third
	}{
		{"", "", "own other third"}, {"*", "", "own other third"}, {".", "", "own"}, {"~", "", ""}, {"other", "", "other"},
		{"., other", "", "own other"}, {".,*", "", "own other third"}, {"~,*", "", ""}, {" , ", ".", "own"},
		{"", ".", "own"}, {"", "*", "own other third"}, {"*", ".", "own other third"}, {"other", "~", "other"}, {"", "~", ""},
	} {
		var got []string
		e := NewExportTo(strings.Split(tt.values, ","), "own", strings.Split(tt.fallback, ","))
		for _, ns := range []string{"own", "other", "third"} {
			if e.Visible(ns) {
				got = append(got, ns)
			}
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%q with default %q is seen from %v, want %s", tt.values, tt.fallback, got, tt.want)
		}
	}
}

func TestHostMatches(t *testing.T) {
	for _, tt := range []struct {
		pattern, host string
		want          bool
	}{
		{"*", "a.b", true}, {"*.b", "a.b", true}, {"*.b", "b", false}, {"*.b", ".b", false}, {"a.b", "a.b", true},
		{"a.b", "x.a.b", false}, {"*.b", "*.b", true}, {"*.b", "*.a.b", true}, {"*.a.b", "*.b", false}, {"a.b", "*.b", false},
	} {
		if got := HostMatches(tt.pattern, tt.host); got != tt.want {
			t.Errorf("%q covers %q: %t", tt.pattern, tt.host, got)
		}
	}
}
