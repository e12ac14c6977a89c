package policy

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
)

func egress(port uint32, hosts ...string) *settings.Egress {
	return &settings.Egress{Port: port, Hosts: hosts}
}

func limited(e ...*settings.Egress) *settings.Scope { return &settings.Scope{Egress: e} }

// TestSees covers what SR-16 and IN-36 need of visibility.
func TestSees(t *testing.T) {
	reviews := Callee{Namespace: "bookinfo", Hostname: "reviews.bookinfo.svc.cluster.local"}
	with := func(namespaces ...string) Callee {
		s := reviews
		s.ExportTo = namespaces
		return s
	}
	wiki := Callee{Namespace: "ext", Hostname: "en.wikipedia.org"}
	for _, tt := range []struct {
		row    string
		from   string
		scope  *settings.Scope
		callee Callee
		port   uint32
		want   bool
	}{
		{"no Sidecar: every workload", "other", nil, reviews, 80, true},
		{"a Scope that only has a policy limits nothing", "other", &settings.Scope{}, reviews, 80, true},
		{"exportTo .", "bookinfo", nil, with("bookinfo"), 80, true},
		{"exportTo . from elsewhere", "other", nil, with("bookinfo"), 80, false},
		{"exportTo of another namespace", "other", nil, with("other"), 80, true},
		{"exportTo of another namespace hides it at home", "bookinfo", nil, with("other"), 80, false},
		{"exportTo ~", "bookinfo", nil, with("~"), 80, false},
		{"exportTo and a scope that would show it", "other", limited(egress(0, "*/*")), with("bookinfo"), 80, false},
		{"./* at home", "bookinfo", limited(egress(0, "./*")), reviews, 80, true},
		{"./* from elsewhere", "other", limited(egress(0, "./*")), reviews, 80, false},
		{"namespace/*", "other", limited(egress(0, "./*", "bookinfo/*")), reviews, 80, true},
		{"another namespace/*", "other", limited(egress(0, "istio-system/*")), reviews, 80, false},
		{"*/*", "other", limited(egress(0, "*/*")), reviews, 80, true},
		{"~/*", "bookinfo", limited(egress(0, "~/*")), reviews, 80, false},
		{"*/host", "other", limited(egress(0, "*/reviews.bookinfo.svc.cluster.local")), reviews, 80, true},
		{"*/other host", "other", limited(egress(0, "*/ratings.bookinfo.svc.cluster.local")), reviews, 80, false},
		{"*/*.suffix", "other", limited(egress(0, "*/*.bookinfo.svc.cluster.local")), reviews, 80, true},
		{"a suffix is of whole labels", "other", limited(egress(0, "*/*.info.svc.cluster.local")), reviews, 80, false},
		{"upper case", "other", limited(egress(0, "*/Reviews.bookinfo.svc.cluster.LOCAL")), reviews, 80, true},
		{"external host", "other", limited(egress(0, "ext/*.wikipedia.org")), wiki, 443, true},
		{"a port of its own", "bookinfo", limited(egress(9080, "~/*"), egress(0, "*/*")), reviews, 9080, false},
		{"the other ports", "bookinfo", limited(egress(9080, "~/*"), egress(0, "*/*")), reviews, 80, true},
		{"a port that no item names", "bookinfo", limited(egress(9080, "*/*")), reviews, 80, false},
		{"taken out by namespace", "other", limited(egress(0, "*/*", "~bookinfo/*")), reviews, 80, false},
		{"taken out by host", "other", limited(egress(0, "*/*", "~bookinfo/reviews.bookinfo.svc.cluster.local")), reviews, 80, false},
		{"taken out wherever it is", "other", limited(egress(0, "*/*", "~/reviews.bookinfo.svc.cluster.local")), reviews, 80, false},
		{"taken out of the own namespace", "bookinfo", limited(egress(0, "*/*", "~./*")), reviews, 80, false},
		{"another one is taken out", "other", limited(egress(0, "*/*", "~ext/*", "~/ratings.bookinfo.svc.cluster.local")), reviews, 80, true},
		{"taken out and not brought in", "other", limited(egress(0, "~ext/*")), reviews, 80, false},
		{"all is taken out", "other", limited(egress(0, "*/*", "~/*")), reviews, 80, false},
		{"no form at all", "bookinfo", limited(egress(0, "reviews")), reviews, 80, false},
	} {
		t.Run(tt.row, func(t *testing.T) {
			if got := (View{Namespace: tt.from, Scope: tt.scope}).Sees(tt.callee, tt.port); got != tt.want {
				t.Errorf("seen is %t", got)
			}
		})
	}
}

func TestHosts(t *testing.T) {
	v := View{Namespace: "default", ClusterDomain: "mesh.test"}
	for authority, want := range map[string]string{
		"reviews":                           "reviews reviews.default.svc.mesh.test *",
		"reviews:9080":                      "reviews reviews.default.svc.mesh.test *",
		"Reviews.":                          "reviews reviews.default.svc.mesh.test *",
		"reviews.bookinfo":                  "reviews.bookinfo reviews.bookinfo.svc.mesh.test *.bookinfo *",
		"reviews.bookinfo.svc":              "reviews.bookinfo.svc reviews.bookinfo.svc.mesh.test *.bookinfo.svc *.svc *",
		"reviews.bookinfo.svc.mesh.test:80": "reviews.bookinfo.svc.mesh.test *.bookinfo.svc.mesh.test *.svc.mesh.test *.mesh.test *.test *",
		"en.wikipedia.org":                  "en.wikipedia.org *.wikipedia.org *.org *",
		"10.0.0.1:80":                       "10.0.0.1",
		"[fd00::1]:80":                      "fd00::1",
		"":                                  "",
	} {
		if got := strings.Join(v.Hosts(authority), " "); got != want {
			t.Errorf("%q is %q, want %q", authority, got, want)
		}
	}
}

func sharedRoute(name, namespace string, port uint32, declared bool, exportTo ...string) SharedRoute {
	host := name + "." + namespace + ".svc.cluster.local"
	return SharedRoute{Callee: Callee{Namespace: namespace, Hostname: host, ExportTo: exportTo}, Port: port, Declared: declared, Config: &route.RouteConfiguration{
		Name: api.RouteKey(namespace, port, host), VirtualHosts: []*route.VirtualHost{{Name: fmt.Sprintf("%s:%d", host, port),
			Domains: []string{host, name + "." + namespace}}}}}
}

func describeRoutes(all []*route.RouteConfiguration) string {
	var b strings.Builder
	for _, rc := range all {
		for _, vh := range rc.GetVirtualHosts() {
			fmt.Fprintln(&b, rc.GetName(), vh.GetName(), vh.GetDomains())
		}
	}
	return b.String()
}

func TestRoutes(t *testing.T) {
	shared := []SharedRoute{
		sharedRoute("reviews", "default", 80, true), sharedRoute("ratings", "other", 80, true),
		sharedRoute("secret", "other", 80, true, "other"), sharedRoute("raw", "default", 9000, false),
	}
	before := proto.CloneOf(shared[0].Config)
	mesh := &settings.MeshSettings{}
	got := describeRoutes(View{Namespace: "default"}.Routes(mesh, shared))
	want := `80 ratings.other.svc.cluster.local:80 [ratings.other.svc.cluster.local ratings.other]
80 reviews.default.svc.cluster.local:80 [reviews.default.svc.cluster.local reviews reviews.default]
80 allow_any [*]
raw.default.svc.cluster.local:9000 raw.default.svc.cluster.local:9000 [raw.default.svc.cluster.local raw raw.default]
raw.default.svc.cluster.local:9000 allow_any [*]
`
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if !proto.Equal(before, shared[0].Config) {
		t.Error("the shared resource was modified")
	}
	registry := settings.OutboundPolicy_REGISTRY_ONLY
	scope := &settings.Scope{Egress: []*settings.Egress{egress(0, "./*")}, OutboundPolicy: &registry}
	got = describeRoutes(View{Namespace: "other", Scope: scope}.Routes(mesh, shared))
	want = `80 ratings.other.svc.cluster.local:80 [ratings.other.svc.cluster.local ratings ratings.other]
80 secret.other.svc.cluster.local:80 [secret.other.svc.cluster.local secret secret.other]
80 block_all [*]
`
	if got != want {
		t.Errorf("in a scope: got\n%swant\n%s", got, want)
	}
}

// TestRoutesNoDomainTwice: Envoy refuses a RouteConfiguration whose virtual hosts share a domain.
func TestRoutesNoDomainTwice(t *testing.T) {
	a, b := sharedRoute("a", "default", 80, true), sharedRoute("b", "default", 80, true)
	b.Config.VirtualHosts[0].Domains = append(b.Config.VirtualHosts[0].Domains, "a.default", "*")
	for _, rc := range (View{Namespace: "default"}).Routes(&settings.MeshSettings{}, []SharedRoute{b, a}) {
		var all []string
		for _, vh := range rc.GetVirtualHosts() {
			all = append(all, vh.GetDomains()...)
		}
		slices.Sort(all)
		if len(slices.Compact(slices.Clone(all))) != len(all) || !slices.Contains(all, "*") {
			t.Error(all)
		}
	}
}

func TestChoose(t *testing.T) {
	in := func(namespace string, exportTo ...string) Callee {
		return Callee{Namespace: namespace, Hostname: "api.example.com", ExportTo: exportTo, Declared: true}
	}
	for _, tt := range []struct {
		from string
		all  []Callee
		want string
	}{
		{"c", []Callee{in("b"), in("a")}, "a"},
		{"b", []Callee{in("a"), in("b")}, "b"},
		{"c", []Callee{in("a", "a"), in("b")}, "b"},
		{"c", []Callee{in("a", "a")}, ""},
		{"c", nil, ""},
	} {
		got, ok := View{Namespace: tt.from}.Choose(tt.all, 443)
		if got.Namespace != tt.want || ok != (tt.want != "") {
			t.Errorf("from %s of %v: %v, %t", tt.from, tt.all, got, ok)
		}
	}
}

func FuzzHosts(f *testing.F) {
	f.Add("reviews:80", "default")
	f.Add("[::1]:80", "")
	f.Add("a..b.", "x")
	f.Fuzz(func(t *testing.T, authority, namespace string) {
		for _, h := range (View{Namespace: namespace}).Hosts(authority) {
			if h == "" {
				t.Errorf("%q may mean the empty host", authority)
			}
		}
	})
}
