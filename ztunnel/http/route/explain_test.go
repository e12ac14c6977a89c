package route_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/undermesh/undermesh/ztunnel/http/route"
)

func TestExplain(t *testing.T) {
	req := request("POST", "shop.example", "/cart/items?colour=red", "x-user: jason", "x-n: 12", "content-type: application/json")
	for match, want := range map[string]string{
		`"prefix":"/b"`:                        `path "/cart/items" does not begin with "/b"`,
		`"path":"/Cart","caseSensitive":false`: `path "/cart/items" is not "/cart", whatever the case`,
		`"pathSeparatedPrefix":"/ca"`:          `path "/cart/items" is neither "/ca" nor below it`,
		`"safeRegex":{"regex":"/cart"}`:        `path "/cart/items" does not match "/cart"`,
		`"connectMatcher":{}`:                  `method "POST" is not CONNECT`,
		`"prefix":"/","grpc":{}`:               `content-type "application/json" is not gRPC's`,
		`"prefix":"/","runtimeFraction":{"defaultValue":{"numerator":3}}`:                    `it takes 3 of 100 requests, and this is none of them`,
		`"prefix":"/","headers":[{"name":":method","exactMatch":"GET"}]`:                     `method is "POST", which is not "GET"`,
		`"prefix":"/","headers":[{"name":":authority","prefixMatch":"www."}]`:                `authority is "shop.example", which does not begin with "www."`,
		`"prefix":"/","headers":[{"name":"x-user","stringMatch":{"suffix":"z"}}]`:            `header x-user is "jason", which does not end with "z"`,
		`"prefix":"/","headers":[{"name":"x-user","stringMatch":{"contains":"z"}}]`:          `header x-user is "jason", which does not contain "z"`,
		`"prefix":"/","headers":[{"name":"x-user","exactMatch":"jason","invertMatch":true}]`: `header x-user is "jason", which is excluded`,
		`"prefix":"/","headers":[{"name":"x-user","presentMatch":true,"invertMatch":true}]`:  `header x-user is there, and must not be`,
		`"prefix":"/","headers":[{"name":"x-none","presentMatch":true}]`:                     `header x-none is not there`,
		`"prefix":"/","headers":[{"name":"x-none","exactMatch":"a"}]`:                        `header x-none is not there, which is not "a"`,
		`"prefix":"/","headers":[{"name":"x-n","rangeMatch":{"start":"1","end":"12"}}]`:      `header x-n is "12", which is not a number from 1 to 11`,
		`"prefix":"/","queryParameters":[{"name":"colour","stringMatch":{"exact":"blue"}}]`:  `query parameter colour is "red", which is not "blue"`,
		`"prefix":"/","queryParameters":[{"name":"size","presentMatch":true}]`:               `query parameter size is not there`,
		`"prefix":"/","queryParameters":[{"name":"colour","presentMatch":false}]`:            `query parameter colour is there, and must not be`,
	} {
		v := host(t, to("first", match), to("rest", `"prefix":"/"`))
		taken, passed := v.Explain(req, &route.Input{Random: 42})
		if taken == nil || taken.Name != "rest" || len(passed) != 1 || passed[0].Route.Name != "first" || passed[0].Why != want {
			t.Errorf("%s: took %v after %+v, want %s", match, taken, passed, want)
		}
	}
	if taken, passed := host(t, to("only", `"prefix":"/x"`)).Explain(req, &route.Input{}); taken != nil || len(passed) != 1 {
		t.Error("no route matches, and Explain returns", taken, passed)
	}
}

// TestExplainIsMatch: whatever the routes and the request, both take the same one, and every route before it has a reason.
func TestExplainIsMatch(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 5))
	one := func(list ...string) string { return list[r.IntN(len(list))] }
	for range 300 {
		var routes []string
		for i := range 1 + r.IntN(12) {
			match := one(`"prefix":"/`, `"path":"/`, `"pathSeparatedPrefix":"/a`) + one("a", "ab", "a/b", "b") + `"`
			if r.IntN(2) == 0 {
				match += fmt.Sprintf(`,"headers":[{"name":%q,%s,"invertMatch":%t}]`, one("x-a", "x-b", ":method"),
					one(`"exactMatch":"GET"`, `"prefixMatch":"1"`, `"presentMatch":true`, `"safeRegexMatch":{"regex":"[0-9]+"}`), r.IntN(2) == 0)
			}
			if r.IntN(3) == 0 {
				match += fmt.Sprintf(`,"queryParameters":[{"name":"q",%s}]`, one(`"stringMatch":{"exact":"1"}`, `"presentMatch":true`))
			}
			routes = append(routes, to(fmt.Sprint(i), match))
		}
		v := host(t, routes...)
		for range 10 {
			req := request(one("GET", "POST"), "h", "/"+one("a", "ab", "a/b", "b", "")+one("", "?q=1", "?q=2"), one("x-a", "x-b")+": "+one("1", "12", "GET", ""))
			want := v.Match(req, &route.Input{})
			got, passed := v.Explain(req, &route.Input{})
			if got != want {
				t.Fatalf("Explain takes %v and Match %v of %s", got, want, routes)
			}
			for i, p := range passed {
				if p.Why == "" || p.Route != v.Routes[i] {
					t.Fatalf("%d: %+v passed without a reason", i, p)
				}
			}
		}
	}
}
