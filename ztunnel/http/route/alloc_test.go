//go:build !race

package route_test

import (
	"fmt"
	"testing"

	"github.com/undermesh/undermesh/ztunnel/http/route"
)

// table is n routes, each below a path of its own.
func table(t testing.TB, n int) *route.VirtualHost {
	var list []string
	for i := range n {
		list = append(list, to(fmt.Sprint(i), fmt.Sprintf(`"prefix":"/svc%d/","headers":[{"name":"x-user","stringMatch":{"prefix":"a"}}]`, i)))
	}
	return host(t, list...)
}

func TestNoAllocation(t *testing.T) {
	v := table(t, 50)
	for _, more := range []string{`"safeRegex":{"regex":"/.*"},"headers":[{"name":"cookie","safeRegexMatch":{"regex":"^(.*?;)?(user=jason)(;.*)?$"}}],"queryParameters":[{"name":"q","stringMatch":{"exact":"1"}}]`} {
		v2 := host(t, to("r", more))
		req, in := request("GET", "h", "/a?q=1", "cookie: a=b; user=jason"), &route.Input{}
		if n := testing.AllocsPerRun(100, func() { v2.Match(req, in) }); n != 0 {
			t.Errorf("%v allocations for {%s}", n, more)
		}
	}
	req, in := request("GET", "h", "/svc49/x", "x-user: ab", "x-other: c", "user-agent: a", "user-agent: b"), &route.Input{}
	if n := testing.AllocsPerRun(100, func() {
		r := v.Match(req, in)
		r.Pick(req, in)
		r.Fault.Applies(req, route.Target{}, in)
		r.Hash(req, in)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkMatch(b *testing.B) {
	for _, n := range []int{1, 50, 5000} {
		v := table(b, n)
		req, in := request("GET", "h", fmt.Sprintf("/svc%d/x", n-1), "x-user: ab"), &route.Input{}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if v.Match(req, in) == nil {
					b.Fatal("no match")
				}
			}
		})
	}
}
