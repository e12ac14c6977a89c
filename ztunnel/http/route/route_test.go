package route_test

import (
	"fmt"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/undermesh/undermesh/ztunnel/http/head"
	"github.com/undermesh/undermesh/ztunnel/http/route"
)

// request makes the head of one: method, authority, path, then "name: value" each.
func request(method, authority, path string, fields ...string) *head.Request {
	var r head.Request
	r.Reset(nil)
	r.Method, r.Scheme, r.Major, r.Minor = []byte(method), []byte("http"), 1, 1
	if authority != "" {
		r.Authority = []byte(authority)
	}
	if path != "" {
		r.Path = []byte(path)
	}
	add(&r.Fields, fields)
	return &r
}

func add(to *head.Fields, fields []string) {
	for _, f := range fields {
		n, v, _ := strings.Cut(f, ": ")
		to.Add(head.IDOf([]byte(n)), n, []byte(v))
	}
}

// text is fields as "name: value" lines.
func text(f *head.Fields) string {
	return strings.TrimSuffix(strings.ReplaceAll(string(f.AppendLines(nil)), "\r\n", "\n"), "\n")
}

// host compiles routes, given as the JSON of route.v3.Route each.
func host(t testing.TB, routes ...string) *route.VirtualHost {
	t.Helper()
	v, err := compile(routes...)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func compile(routes ...string) (*route.VirtualHost, error) {
	var vh routev3.VirtualHost
	if err := protojson.Unmarshal(fmt.Appendf(nil, `{"name":"h","domains":["*"],"routes":[%s]}`, strings.Join(routes, ",")), &vh); err != nil {
		return nil, err
	}
	return route.Compile(&vh)
}

// to is a route to a cluster of its own name.
func to(name, match string) string {
	return fmt.Sprintf(`{"name":%q,"match":{%s},"route":{"cluster":%q}}`, name, match, name)
}

func TestFirstMatchWins(t *testing.T) {
	v := host(t, to("a", `"path":"/x"`), to("b", `"prefix":"/x"`), to("c", `"prefix":"/"`))
	for path, want := range map[string]string{"/x": "a", "/x?q": "a", "/x#f": "a", "/xy": "b", "/x/": "b", "/y": "c"} {
		if r := v.Match(request("GET", "h", path), &route.Input{}); r == nil || r.Name != want {
			t.Errorf("%s matched %v, want %s", path, r, want)
		}
	}
}
