package policy

import (
	"strings"
	"testing"

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
		strings.Repeat("a.", 30<<10):        "*", // no name: its patterns would be as many bytes squared
	} {
		if got := strings.Join(v.Hosts(authority), " "); got != want {
			t.Errorf("%q is %q, want %q", authority, got, want)
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
