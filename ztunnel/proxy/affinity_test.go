package proxy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/policy"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// handClock stands still unless it is moved. Only Now is used of it.
type handClock struct {
	clock.Clock
	now time.Time
}

func (c *handClock) Now() time.Time { return c.now }

func newHandClock() *handClock { return &handClock{now: time.Unix(1_000_000, 0)} }

func key(service string, n int) pinKey {
	return pinKey{serviceName{"foo", service}, 80, netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})}
}

func at(name string) policy.Endpoint { return policy.Endpoint{UID: name, Port: 8080} }

func TestAffinityTimeout(t *testing.T) {
	c := newHandClock()
	a, pod := newAffinity(c, affinityLimits{10, 10, 10}), &Pod{}
	a.add(pod)
	look := func() string { return a.last(pod, key("web", 1), time.Minute).UID }
	if got := look(); got != "" {
		t.Errorf("before any use: %q", got)
	}
	for range 5 { // each use begins the timeout anew
		a.note(pod, key("web", 1), at("p"), time.Minute)
		c.now = c.now.Add(time.Minute - 1)
		if got := look(); got != "p" {
			t.Fatalf("within the timeout: %q", got)
		}
	}
	c.now = c.now.Add(1)
	if got := look(); got != "" {
		t.Errorf("after the timeout: %q", got)
	}
	if a.total != 0 {
		t.Errorf("%d are remembered", a.total)
	}
	a.note(pod, key("web", 1), at("p"), time.Minute)
	for what, k := range map[string]pinKey{"another client": key("web", 2), "another service": key("api", 1)} {
		if got := a.last(pod, k, time.Minute); got != (policy.Endpoint{}) {
			t.Errorf("%s: %v", what, got)
		}
	}
	other := key("web", 1)
	other.port = 81
	if got := a.last(pod, other, time.Minute); got != (policy.Endpoint{}) {
		t.Errorf("another port: %v", got)
	}
	a.note(pod, key("web", 1), policy.Endpoint{}, time.Minute)
	if got := look(); got != "" || a.total != 0 {
		t.Errorf("no endpoint any more: %q, %d remembered", got, a.total)
	}
}

func TestAffinityEndsWithItsPod(t *testing.T) {
	a, pod := newAffinity(newHandClock(), affinityLimits{10, 10, 10}), &Pod{}
	a.note(pod, key("web", 1), at("p"), time.Minute)
	if len(a.pods) != 0 {
		t.Error("a pod that is not there is remembered")
	}
	a.add(pod)
	a.note(pod, key("web", 1), at("p"), time.Minute)
	a.remove(pod)
	a.remove(pod)
	a.note(pod, key("web", 1), at("p"), time.Minute) // a connection that was on its way
	if got := a.last(pod, key("web", 1), time.Minute); got != (policy.Endpoint{}) || len(a.pods) != 0 || a.total != 0 {
		t.Errorf("after the pod: %v, %d pods, %d pins", got, len(a.pods), a.total)
	}
}

// TestAffinityLimits: a pod with many clients loses its own oldest, nobody else's.
func TestAffinityLimits(t *testing.T) {
	a, quiet, loud := newAffinity(newHandClock(), affinityLimits{node: 20, pod: 16, service: 6}), &Pod{}, &Pod{}
	a.add(quiet)
	a.add(loud)
	kept := func(pod *Pod, service string, n int) bool {
		return a.last(pod, key(service, n), time.Minute) != (policy.Endpoint{})
	}
	for n := range 8 {
		a.note(quiet, key(fmt.Sprint("s", n), 0), at("p"), time.Minute)
	}
	for n := range 1000 {
		a.note(loud, key("web", n), at("p"), time.Minute)
	}
	for n := range 1000 {
		if kept(loud, "web", n) != (n >= 994) {
			t.Errorf("at one service: client %d of 1000 kept: %v", n, kept(loud, "web", n))
		}
	}
	a.note(loud, key("web", 994), at("p"), time.Minute) // used: no longer the oldest
	a.note(loud, key("web", 1000), at("p"), time.Minute)
	if !kept(loud, "web", 994) || kept(loud, "web", 995) {
		t.Error("the one used last was forgotten first")
	}
	for n := range 1000 {
		a.note(loud, key(fmt.Sprint("other", n), 0), at("p"), time.Minute)
	}
	for n := range 8 {
		if !kept(quiet, fmt.Sprint("s", n), 0) {
			t.Errorf("client of service %d of the quiet pod was forgotten", n)
		}
	}
	if len(a.pods[loud].pins) != 12 || a.total != 20 {
		t.Errorf("the loud pod has %d of %d", len(a.pods[loud].pins), a.total)
	}
	a.remove(quiet)
	for n := range 1000 {
		a.note(loud, key(fmt.Sprint("other", n), 0), at("p"), time.Minute)
	}
	if len(a.pods[loud].pins) != 16 || a.total != 16 {
		t.Errorf("the only pod has %d of %d, want its limit", len(a.pods[loud].pins), a.total)
	}
}

// TestAffinityForgetsWhatIsOver: a client that comes makes room of those whose time is over.
func TestAffinityForgetsWhatIsOver(t *testing.T) {
	c := newHandClock()
	a, pod := newAffinity(c, affinityLimits{1000, 1000, 1000}), &Pod{}
	a.add(pod)
	for n := range 500 {
		a.note(pod, key("web", n), at("p"), time.Minute)
		c.now = c.now.Add(time.Second)
	}
	if a.total != 60 {
		t.Errorf("%d are remembered, one came a second for a minute", a.total)
	}
}

// TestAffinityAgainstNaive plays random histories: whom kube-proxy's lists, one for each endpoint, hold to an endpoint stays
// there.
func TestAffinityAgainstNaive(t *testing.T) {
	const timeout = time.Minute
	stays := 0
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 3))
		c := newHandClock()
		a, pod := newAffinity(c, affinityLimits{1000, 1000, 1000}), &Pod{}
		a.add(pod)
		lists := map[policy.Endpoint]map[netip.Addr]time.Time{} // kube-proxy's
		live := map[int]bool{0: true}
		for step := range 300 {
			switch n := r.IntN(6); r.IntN(4) {
			case 0:
				live[n] = !live[n]
				c.now = c.now.Add(time.Duration(r.Int64N(int64(timeout / 2))))
			default:
				snap, svc := stickyService(t, live, timeout)
				addr := key("web", n).client
				k := pinOf(svc, 80, addr)
				choice, _ := policy.Pick(policy.PickQuery{Snapshot: snap, Service: svc, Port: 80, Client: addr, Last: a.last(pod, k, timeout)}, nil)
				for e := range lists { // endpoints that go take their lists with them
					if w := snap.WorkloadByUID(e.UID); w == nil {
						delete(lists, e)
					}
				}
				var got policy.Endpoint
				if choice.Workload != nil {
					got = choice.Endpoint()
				}
				for e, seen := range lists {
					if last, ok := seen[addr]; ok && c.now.Sub(last) < timeout {
						if stays++; got != e {
							t.Fatalf("seed %d, step %d: client %d was at %v, is led to %v", seed, step, n, e, got)
						}
					}
				}
				a.note(pod, k, got, timeout)
				if choice.Workload == nil {
					continue
				}
				for _, seen := range lists {
					delete(seen, addr)
				}
				if lists[got] == nil {
					lists[got] = map[netip.Addr]time.Time{}
				}
				lists[got][addr] = c.now
			}
		}
	}
	if stays < 1000 {
		t.Errorf("clients had to stay %d times: the test says little", stays)
	}
}

// stickyService is the service web of foo with ClientIP affinity and pods p0 … of those that are live.
func stickyService(t *testing.T, live map[int]bool, timeout time.Duration) (*client.Snapshot, *client.Service) {
	t.Helper()
	const host = "web.foo.svc.cluster.local"
	set, err := anypb.New(&settings.ServiceSettings{ClientIpAffinity: durationpb.New(timeout)})
	if err != nil {
		t.Fatal(err)
	}
	rs := []client.Resource{{Message: &workloadapi.Service{Name: "web", Namespace: "foo", Hostname: host,
		Addresses:  []*workloadapi.NetworkAddress{{Address: netip.MustParseAddr("10.96.0.1").AsSlice()}},
		Ports:      []*workloadapi.Port{{ServicePort: 80, TargetPort: 80}},
		Extensions: []*workloadapi.Extension{{Name: api.ServiceSettingsExtension, Config: set}}}}}
	for n, ok := range live {
		if ok {
			w := workload("foo", fmt.Sprint("p", n), netip.AddrFrom4([4]byte{10, 0, 1, byte(n)}))
			w.Services = map[string]*workloadapi.PortList{"foo/" + host: {Ports: []*workloadapi.Port{{ServicePort: 80, TargetPort: 80}}}}
			rs = append(rs, client.Resource{Message: w})
		}
	}
	s, err := client.NewSnapshot(rs...)
	if err != nil {
		t.Fatal(err)
	}
	return s, s.ServiceByHost("foo", host)
}

// TestServiceKeepsItsClients goes through the whole proxy: a client stays while endpoints are added, and an endpoint that
// terminates serves when no other does.
func TestServiceKeepsItsClients(t *testing.T) {
	const timeout = time.Minute
	inWorld(t, nil, func(t *testing.T, w *world) {
		pods := []*testPod{w.pod("a", "sleep", "10.0.0.1")}
		defer func() { w.stop(pods...) }()
		serve := func(n int, edit func(*workloadapi.Workload)) client.Resource {
			s, _ := stickyService(t, map[int]bool{n: true}, timeout)
			wl := s.WorkloadByName("foo", fmt.Sprint("p", n)).Workload
			if edit != nil {
				edit(wl)
			}
			return client.Resource{Message: wl}
		}
		ask := func() string {
			t.Helper()
			before := len(w.log.String())
			if _, err := say(t, pods[0].connect("10.96.0.1:80"), "x"); err != nil {
				return err.Error()
			}
			synctest.Wait() // the line comes when the proxy has seen the end
			for line := range strings.Lines(w.log.String()[before:]) {
				if _, rest, ok := strings.Cut(line, "dst.workload="); ok && strings.Contains(line, "direction=outbound") {
					return strings.Fields(rest)[0]
				}
			}
			return "nobody"
		}
		_, svc := stickyService(t, nil, timeout)
		for n := range 8 {
			p := w.pod("b", fmt.Sprint("p", n), fmt.Sprint("10.0.1.", n))
			p.echo()
			pods = append(pods, p)
		}
		w.apply(client.Resource{Message: workload("foo", "sleep", pods[0].ip)}, client.Resource{Message: svc.Service}, serve(7, nil))
		if got := ask(); got != "p7" {
			t.Fatalf("the only endpoint: %s", got)
		}
		for n := range 7 {
			w.apply(serve(n, nil))
			if got := ask(); got != "p7" {
				t.Fatalf("with %d more endpoints the client is at %s", n+1, got)
			}
		}
		<-time.After(timeout)
		fresh := ask()
		if fresh == "p7" {
			t.Fatal("the hash happens to lead to p7: the test says nothing")
		}
		state, err := anypb.New(&settings.WorkloadState{ServingTerminating: true})
		if err != nil {
			t.Fatal(err)
		}
		end := func(wl *workloadapi.Workload) {
			wl.Status = workloadapi.WorkloadStatus_UNHEALTHY
			wl.Extensions = []*workloadapi.Extension{{Name: api.WorkloadStateExtension, Config: state}}
		}
		sick := func(wl *workloadapi.Workload) { wl.Status = workloadapi.WorkloadStatus_UNHEALTHY }
		for n := range 7 {
			w.apply(serve(n, sick))
		}
		w.apply(serve(7, end))
		if got := ask(); got != "p7" {
			t.Errorf("only p7 serves, while it terminates: %s", got)
		}
		w.apply(serve(3, nil))
		if got := ask(); got != "p3" {
			t.Errorf("p3 is ready: %s", got)
		}
	})
}
