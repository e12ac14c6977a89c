package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
)

func sick(w *workloadapi.Workload) { w.Status = workloadapi.WorkloadStatus_UNHEALTHY }

// ending is a pod that is being deleted and still answers.
func ending(t testing.TB) func(*workloadapi.Workload) {
	state, err := anypb.New(&settings.WorkloadState{ServingTerminating: true})
	if err != nil {
		t.Fatal(err)
	}
	return func(w *workloadapi.Workload) {
		sick(w)
		w.Extensions = append(w.Extensions, &workloadapi.Extension{Name: api.WorkloadStateExtension, Config: state})
	}
}

func sticky(t testing.TB) func(*workloadapi.Service) {
	set, err := anypb.New(&settings.ServiceSettings{ClientIpAffinity: durationpb.New(10800e9)})
	if err != nil {
		t.Fatal(err)
	}
	return func(s *workloadapi.Service) {
		s.Extensions = []*workloadapi.Extension{{Name: api.ServiceSettingsExtension, Config: set}}
	}
}

func TestPickTerminating(t *testing.T) {
	zone := func(z string) func(*workloadapi.Workload) {
		return func(w *workloadapi.Workload) { w.Locality = &workloadapi.Locality{Region: "r", Zone: z} }
	}
	local := &workloadapi.LoadBalancing{Mode: workloadapi.LoadBalancing_STRICT, RoutingPreference: []workloadapi.LoadBalancing_Scope{workloadapi.LoadBalancing_NODE}}
	near := &workloadapi.LoadBalancing{Mode: workloadapi.LoadBalancing_FAILOVER, RoutingPreference: []workloadapi.LoadBalancing_Scope{workloadapi.LoadBalancing_ZONE}}
	end := ending(t)
	src := endpoint("src", "n1", zone("z1"), func(w *workloadapi.Workload) { w.Services = nil })
	for _, tc := range []struct {
		name string
		lb   *workloadapi.LoadBalancing
		pods []client.Resource
		want []string
	}{
		{"the last one serves until it ends", nil, []client.Resource{endpoint("a", "n1", end)}, []string{"a"}},
		{"one that is ready is enough", nil, []client.Resource{endpoint("a", "n1", end), endpoint("b", "n2")}, []string{"b"}},
		{"one that is not ready is none", nil, []client.Resource{endpoint("a", "n1", end), endpoint("b", "n2", sick)}, []string{"a"}},
		{"not ready and not serving", nil, []client.Resource{endpoint("a", "n1", sick)}, nil},
		{"Local: the one here, though one elsewhere is ready", local, []client.Resource{endpoint("a", "n1", end), endpoint("b", "n2")}, []string{"a"}},
		{"Local: one elsewhere does not count", local, []client.Resource{endpoint("b", "n2", end)}, nil},
		{"near: the ready one, however far", near, []client.Resource{endpoint("a", "n1", zone("z1"), end), endpoint("b", "n2", zone("z2"))}, []string{"b"}},
		{"near: terminating ones count everywhere", near, []client.Resource{endpoint("a", "n1", zone("z1"), end), endpoint("b", "n2", zone("z2"), end)}, []string{"a", "b"}},
		{"publishNotReadyAddresses: all are the same", &workloadapi.LoadBalancing{HealthPolicy: workloadapi.LoadBalancing_ALLOW_ALL},
			[]client.Resource{endpoint("a", "n1", end), endpoint("b", "n2"), endpoint("c", "n1", sick)}, []string{"a", "b", "c"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, svc := build(t, append(tc.pods, service(tc.lb), src)...)
			got := reachable(t, PickQuery{Snapshot: s, Service: svc, Port: 80, Source: s.WorkloadByName("foo", "src")})
			if !slices.Equal(got, tc.want) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

// nth is a Rand that gives one number; asked for numbers out of more, it says of how many.
type nth struct{ n, of int }

func (r *nth) IntN(n int) int {
	r.of = n
	return min(r.n, n-1)
}

// reachable is every endpoint that chance may choose, sorted.
func reachable(t *testing.T, q PickQuery) []string {
	t.Helper()
	var out []string
	for r := (&nth{of: 1}); r.n < r.of; r.n++ {
		c, why := Pick(q, r)
		if why != reason.None {
			return nil
		}
		out = append(out, c.Workload.GetName())
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// naive is an endpoint as kube-proxy has it in an EndpointSlice.
type naive struct {
	name, node, zone            string
	ready, serving, terminating bool
}

// naiveEndpoints are what kube-proxy programs for a Service on a node, as KEP-1669, KEP-2086 and KEP-2433 have it.
func naiveEndpoints(all []naive, node, zone string, local, near bool) []string {
	filter := func(keep func(naive) bool) (out []string) {
		for _, e := range all {
			if keep(e) {
				out = append(out, e.name)
			}
		}
		slices.Sort(out)
		return out
	}
	here := func(e naive) bool { return !local || e.node == node }
	out := filter(func(e naive) bool { return e.ready && here(e) })
	if near && !local {
		if hinted := filter(func(e naive) bool { return e.ready && e.zone == zone }); len(hinted) > 0 {
			out = hinted
		}
	}
	if len(out) == 0 {
		out = filter(func(e naive) bool { return e.serving && e.terminating && here(e) })
	}
	return out
}

// TestPickAgainstNaive compares whom chance may choose with the rules of kube-proxy, on random services.
func TestPickAgainstNaive(t *testing.T) {
	end := ending(t)
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 7))
		flip := func() bool { return r.IntN(2) == 0 }
		publish, local, near := r.IntN(5) == 0, r.IntN(3) == 0, r.IntN(3) == 0
		lb := &workloadapi.LoadBalancing{}
		switch {
		case local:
			lb.Mode, lb.RoutingPreference = workloadapi.LoadBalancing_STRICT, []workloadapi.LoadBalancing_Scope{workloadapi.LoadBalancing_NODE}
		case near:
			lb.Mode, lb.RoutingPreference = workloadapi.LoadBalancing_FAILOVER,
				[]workloadapi.LoadBalancing_Scope{workloadapi.LoadBalancing_NETWORK, workloadapi.LoadBalancing_REGION, workloadapi.LoadBalancing_ZONE}
		}
		if publish {
			lb.HealthPolicy = workloadapi.LoadBalancing_ALLOW_ALL
		}
		var rs []client.Resource
		var all []naive
		for i := range r.IntN(6) {
			serving, terminating := flip(), flip()
			e := naive{fmt.Sprint("p", i), fmt.Sprint("n", r.IntN(3)), fmt.Sprint("z", r.IntN(2)), publish || serving && !terminating, serving, terminating}
			all = append(all, e)
			rs = append(rs, endpoint(e.name, e.node, func(w *workloadapi.Workload) {
				w.Locality = &workloadapi.Locality{Region: "r", Zone: e.zone}
				if serving && terminating {
					end(w)
				} else if !serving || terminating {
					sick(w)
				}
			}))
		}
		rs = append(rs, service(lb), endpoint("src", "n1", func(w *workloadapi.Workload) {
			w.Locality, w.Services = &workloadapi.Locality{Region: "r", Zone: "z1"}, nil
		}))
		s, svc := build(t, rs...)
		got := reachable(t, PickQuery{Snapshot: s, Service: svc, Port: 80, Source: s.WorkloadByName("foo", "src")})
		if want := naiveEndpoints(all, "n1", "z1", local, near); !slices.Equal(got, want) {
			t.Fatalf("seed %d, local %v, near %v, publish %v: got %v, kube-proxy has %v of %+v", seed, local, near, publish, got, want, all)
		}
	}
}

func TestPickStays(t *testing.T) {
	const clientIP = "10.1.1.1"
	pick := func(t *testing.T, last Endpoint, rs ...client.Resource) Choice {
		t.Helper()
		s, svc := build(t, rs...)
		c, why := Pick(PickQuery{Snapshot: s, Service: svc, Port: 80, Client: netip.MustParseAddr(clientIP), Last: last}, nil)
		if why != reason.None {
			t.Fatal(why)
		}
		return c
	}
	svc := service(nil, sticky(t))
	last := pick(t, Endpoint{}, endpoint("p0", "n1"), svc).Endpoint()
	more := []client.Resource{svc}
	for i := 1; i < 9; i++ {
		more = append(more, endpoint(fmt.Sprint("p", i), "n1"))
	}
	elsewhere := pick(t, Endpoint{}, append(more, endpoint("p0", "n1"))...)
	if elsewhere.Workload.GetName() == "p0" {
		t.Fatal("the hash happens to lead to p0: the test says nothing")
	}
	moved := func(edit ...func(*workloadapi.Workload)) string {
		return pick(t, last, append(more, endpoint("p0", "n1", edit...))...).Workload.GetName()
	}
	if got := moved(); got != "p0" {
		t.Errorf("the client left p0, which lives, for %s", got)
	}
	for name, edit := range map[string]func(*workloadapi.Workload){
		"not ready":             sick,
		"terminating":           ending(t),
		"made anew":             func(w *workloadapi.Workload) { w.Addresses = [][]byte{{10, 9, 9, 9}} },
		"serves on other ports": func(w *workloadapi.Workload) { w.Services[svcKey].Ports[0].TargetPort = 9090 },
		"serves it no more":     func(w *workloadapi.Workload) { w.Services[svcKey].Ports = nil },
	} {
		if got := moved(edit); got != elsewhere.Workload.GetName() {
			t.Errorf("%s: the client is at %s, the hash leads to %s", name, got, elsewhere.Workload.GetName())
		}
	}
	if got := pick(t, last, svc, endpoint("p0", "n1", ending(t))).Workload.GetName(); got != "p0" {
		t.Errorf("the last endpoint terminates: the client is at %s", got)
	}
	if got := pick(t, last, append(more[:3:3], endpoint("p0", "n1"), service(nil, sticky(t)))...); got.Workload.GetName() != "p0" {
		t.Errorf("fewer others: the client is at %s", got.Workload.GetName())
	}
}
