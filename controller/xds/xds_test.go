package xds

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/securityapi"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// fakeStream is a client under the test's control: it acknowledges when told to.
type fakeStream struct {
	ctx  context.Context
	in   chan *discovery.DeltaDiscoveryRequest
	out  chan *discovery.DeltaDiscoveryResponse
	done chan error
}

func (f *fakeStream) Context() context.Context { return f.ctx }

func (f *fakeStream) Send(m *discovery.DeltaDiscoveryResponse) error {
	r, err := received(m)
	if err != nil {
		return err
	}
	select {
	case f.out <- r:
		return nil
	case <-f.ctx.Done():
		return f.ctx.Err()
	}
}

// received is a response as it is on the other side.
func received(m *discovery.DeltaDiscoveryResponse) (*discovery.DeltaDiscoveryResponse, error) {
	sent, err := proto.Marshal(m)
	if err != nil {
		return nil, err
	}
	r := &discovery.DeltaDiscoveryResponse{}
	return r, proto.Unmarshal(sent, r)
}

func (f *fakeStream) Recv() (*discovery.DeltaDiscoveryRequest, error) {
	select {
	case r, ok := <-f.in:
		if !ok {
			return nil, io.EOF
		}
		return r, nil
	case <-f.ctx.Done():
		return nil, f.ctx.Err()
	}
}

func open(t *testing.T, s *Server) *fakeStream {
	ctx, cancel := context.WithCancel(t.Context())
	f := &fakeStream{ctx, make(chan *discovery.DeltaDiscoveryRequest), make(chan *discovery.DeltaDiscoveryResponse, 64), make(chan error, 1)}
	go func() { f.done <- s.serve(f) }()
	t.Cleanup(func() { cancel(); <-f.done })
	return f
}

func (f *fakeStream) subscribe(typ string, known map[string]string, names ...string) {
	f.in <- &discovery.DeltaDiscoveryRequest{Node: &core.Node{Id: "n", ClientFeatures: []string{api.DiscoveryParts}}, TypeUrl: typ, InitialResourceVersions: known, ResourceNamesSubscribe: names}
}

func (f *fakeStream) ack(r *discovery.DeltaDiscoveryResponse) {
	f.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()}
}

// next waits until the bubble is idle, then takes one response; nil when there is none.
func (f *fakeStream) next() *discovery.DeltaDiscoveryResponse {
	synctest.Wait()
	select {
	case r := <-f.out:
		return r
	default:
		return nil
	}
}

func show(r *discovery.DeltaDiscoveryResponse) string {
	if r == nil {
		return "nothing"
	}
	var names []string
	for _, x := range r.GetResources() {
		names = append(names, x.GetName())
	}
	return fmt.Sprintf("%s +%v -%v", r.GetTypeUrl()[strings.LastIndexByte(r.GetTypeUrl(), '.')+1:], names, r.GetRemovedResources())
}

func expect(t *testing.T, r *discovery.DeltaDiscoveryResponse, want string) *discovery.DeltaDiscoveryResponse {
	t.Helper()
	if got := show(r); got != want {
		t.Fatalf("got %s, want %s", got, want)
	}
	return r
}

func newServer(t *testing.T) (*Store, *Server) {
	t.Helper()
	st := NewStore(StoreConfig{Clock: clock.System()})
	return st, NewServer(Config{Store: st, Clock: clock.System()})
}

func wl(n, ip string, aliases ...string) Resource {
	uid := "Kubernetes//Pod/foo/" + n
	w := &workloadapi.Workload{Uid: uid, Name: n, Namespace: "foo", Addresses: [][]byte{netip.MustParseAddr(ip).AsSlice()}}
	return Resource{api.AddressType, uid, append(aliases, "/"+ip), nil, &workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: w}}}
}

func authz(n string, dry bool) Resource {
	return Resource{Type: api.AuthorizationType, Name: "foo/" + n, Message: &securityapi.Authorization{Namespace: "foo", Name: n, DryRun: dry}}
}

func apply(t *testing.T, st *Store, g uint64, up []Resource, rm ...Key) {
	t.Helper()
	if err := st.Apply(g, up, rm); err != nil {
		t.Fatal(err)
	}
}

const uid = "Kubernetes//Pod/foo/"

func TestNothingIsServedBeforeTheFirstApply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, s := newServer(t)
		f := open(t, s)
		f.subscribe(api.AddressType, nil)
		time.Sleep(time.Second)
		expect(t, f.next(), "nothing")
		apply(t, st, 1, nil)
		time.Sleep(time.Second)
		r := expect(t, f.next(), "Address +[] -[]") // empty, so that the client becomes ready
		if r.GetSystemVersionInfo() != "1" {
			t.Errorf("generation %q", r.GetSystemVersionInfo())
		}
		f.ack(r)
		expect(t, f.next(), "nothing")
	})
}

func TestWildcardDeltasAndOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, s := newServer(t)
		apply(t, st, 1, []Resource{wl("a", "10.0.0.1"), authz("p", false)})
		f := open(t, s)
		f.subscribe(api.AddressType, nil)
		f.ack(expect(t, f.next(), "Address +["+uid+"a] -[]"))
		f.subscribe(api.AuthorizationType, nil)
		f.ack(expect(t, f.next(), "Authorization +[foo/p] -[]"))
		apply(t, st, 2, []Resource{wl("a", "10.0.0.1")}) // equal content
		time.Sleep(time.Second)
		expect(t, f.next(), "nothing")
		apply(t, st, 3, []Resource{wl("b", "10.0.0.2"), authz("q", false)}, Key{api.AuthorizationType, "foo/p"}, Key{api.AddressType, uid + "a"})
		time.Sleep(time.Second)
		// What the workload refers to comes before it, what it does not refer to any more goes after it.
		up := expect(t, f.next(), "Authorization +[foo/q] -[]")
		addr := expect(t, f.next(), "Address +["+uid+"b] -["+uid+"a]")
		rm := expect(t, f.next(), "Authorization +[] -[foo/p]")
		f.ack(up)
		f.ack(addr)
		apply(t, st, 4, []Resource{wl("c", "10.0.0.3")})
		time.Sleep(time.Second)
		expect(t, f.next(), "nothing") // one response is not acknowledged
		apply(t, st, 5, []Resource{wl("c", "10.0.0.4")})
		f.ack(rm)
		last := expect(t, f.next(), "Address +["+uid+"c] -[]") // once, in its newest form
		var a workloadapi.Address
		if err := last.GetResources()[0].GetResource().UnmarshalTo(&a); err != nil || a.GetWorkload().GetAddresses()[0][3] != 4 {
			t.Errorf("not the newest form: %v, %v", &a, err)
		}
	})
}

func TestResumeSendsOnlyTheDifference(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, s := newServer(t)
		apply(t, st, 1, []Resource{wl("a", "10.0.0.1"), wl("b", "10.0.0.2"), authz("p", false), authz("q", false)})
		f := open(t, s)
		known := map[string]map[string]string{}
		for _, typ := range []string{api.AuthorizationType, api.AddressType} {
			f.subscribe(typ, nil)
			r := f.next()
			f.ack(r)
			known[typ] = map[string]string{}
			for _, x := range r.GetResources() {
				known[typ][x.GetName()] = x.GetVersion()
			}
		}
		close(f.in)
		apply(t, st, 2, []Resource{wl("b", "10.0.0.9")}, Key{api.AddressType, uid + "a"}, Key{api.AuthorizationType, "foo/p"})
		time.Sleep(time.Second)
		g := open(t, s)
		g.subscribe(api.AuthorizationType, known[api.AuthorizationType])
		first := expect(t, g.next(), "Authorization +[] -[]") // its removal waits for the workloads
		g.subscribe(api.AddressType, known[api.AddressType])
		addr := expect(t, g.next(), "Address +["+uid+"b] -["+uid+"a]")
		g.ack(first)
		expect(t, g.next(), "nothing")
		g.ack(addr)
		g.ack(expect(t, g.next(), "Authorization +[] -[foo/p]"))
		expect(t, g.next(), "nothing")
	})
}

func TestOnDemand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, s := newServer(t)
		apply(t, st, 1, []Resource{wl("a", "10.0.0.1", "foo/svc"), wl("b", "10.0.0.2", "foo/svc"), wl("c", "10.0.0.3")})
		f := open(t, s)
		f.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: api.AddressType, ResourceNamesSubscribe: []string{"*"}, ResourceNamesUnsubscribe: []string{"*"}}
		f.ack(expect(t, f.next(), "Address +[] -[]"))
		f.subscribe(api.AddressType, nil, "/10.0.0.3", "/10.0.0.99")
		f.ack(expect(t, f.next(), "Address +["+uid+"c] -[/10.0.0.99]"))
		f.subscribe(api.AddressType, nil, "foo/svc")
		f.ack(expect(t, f.next(), "Address +["+uid+"a "+uid+"b] -[]"))
		apply(t, st, 2, []Resource{wl("d", "10.0.0.99"), wl("e", "10.0.0.5"), wl("f", "10.0.0.6", "foo/svc")}, Key{api.AddressType, uid + "a"})
		time.Sleep(time.Second)
		f.ack(expect(t, f.next(), "Address +["+uid+"d "+uid+"f] -["+uid+"a]"))
		f.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: api.AddressType, ResourceNamesUnsubscribe: []string{"/10.0.0.99", uid + "d"}}
		synctest.Wait()
		apply(t, st, 3, []Resource{wl("d", "10.0.0.99", "x")}, Key{api.AddressType, uid + "e"})
		time.Sleep(time.Second)
		expect(t, f.next(), "nothing")
	})
}

func TestNackIsRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, s := newServer(t)
		apply(t, st, 7, []Resource{wl("a", "10.0.0.1")})
		f := open(t, s)
		f.subscribe(api.AddressType, nil)
		r := f.next()
		if c := s.Clients(); len(c) != 1 || c[0].ID != "n" || c[0].Types[api.AddressType].State() != Stale {
			t.Fatalf("before the answer: %+v", c)
		}
		f.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: api.AddressType, ResponseNonce: r.GetNonce(), ErrorDetail: &rpcstatus.Status{Message: "bad foo/a"}}
		synctest.Wait()
		if ty := s.Clients()[0].Types[api.AddressType]; ty.Rejected != 1 || ty.LastError != "bad foo/a" || ty.State() != Rejected {
			t.Errorf("after the NACK: %+v", ty)
		}
		apply(t, st, 8, []Resource{wl("a", "10.0.0.2")})
		time.Sleep(time.Second)
		f.ack(expect(t, f.next(), "Address +["+uid+"a] -[]"))
		synctest.Wait()
		if ty := s.Clients()[0].Types[api.AddressType]; ty.State() != Synced || ty.AckedGeneration != 8 {
			t.Errorf("after the ACK: %+v", ty)
		}
	})
}

func TestDebounce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, _ := newServer(t)
		c := st.subscribe()
		start := time.Now()
		apply(t, st, 1, nil)
		<-c.wake
		if d := time.Since(start); d != 10*time.Millisecond {
			t.Errorf("one change: woken after %s", d)
		}
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() { // a change each 5 ms never leaves 10 ms of quiet
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(5 * time.Millisecond):
					apply(t, st, 2, []Resource{wl("a", fmt.Sprintf("10.0.%d.%d", i/200, i%200))})
				}
			}
		})
		start = time.Now()
		<-c.wake
		if d := time.Since(start); d < 90*time.Millisecond || d > 110*time.Millisecond {
			t.Errorf("steady changes: woken after %s", d)
		}
		close(stop)
		wg.Wait()
		time.Sleep(time.Second)
	})
}

// TestStormIsFewPushes: batches with quiet between them, to a client that acknowledges at once, are at most 20 pushes in 1 s,
// and the last one brings it to the newest state.
func TestStormIsFewPushes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, s := newServer(t)
		apply(t, st, 1, []Resource{wl("a", "10.0.0.1")})
		f := open(t, s)
		f.subscribe(api.AddressType, nil)
		f.ack(f.next())
		time.Sleep(time.Second)
		pushes, want := 0, ""
		take := func() {
			for r := f.next(); r != nil; r = f.next() {
				pushes++
				want = r.GetResources()[0].GetVersion()
				f.ack(r)
				synctest.Wait()
			}
		}
		for i := range 80 {
			apply(t, st, uint64(i+2), []Resource{wl("a", fmt.Sprintf("10.0.1.%d", i))})
			time.Sleep(12500 * time.Microsecond)
			take()
		}
		time.Sleep(time.Second)
		take()
		if pushes > 20 || pushes < 10 {
			t.Errorf("%d pushes of 80 changes in 1 s", pushes)
		}
		if now := st.logs[api.AddressType].entries[uid+"a"].short.GetVersion(); now != want {
			t.Errorf("the client has version %s, the newest is %s", want, now)
		}
	})
}

// TestFanOut has 1,000 cursors follow 100,000 changes to 1,000 resources, each at its own pace, and checks that all end
// in the same state and that removals are not kept for ever.
func TestFanOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		r := rand.New(rand.NewPCG(seed, 0))
		st, _ := newServer(t)
		type follower struct {
			cur   *cursor
			sub   *subscription
			state map[string]string
		}
		all := make([]*follower, 1000)
		for i := range all {
			all[i] = &follower{st.subscribe(), newSubscription(&discovery.DeltaDiscoveryRequest{TypeUrl: api.AuthorizationType}), map[string]string{}}
		}
		follow := func(f *follower) {
			got, err := st.collect(f.cur, []*subscription{f.sub})
			if err != nil || !got.ready {
				t.Fatalf("ready %v, %v", got.ready, err)
			}
			for _, d := range got.deltas {
				for _, x := range d.upserts {
					f.state[x.GetName()] = x.GetVersion()
				}
				for _, n := range d.removed {
					delete(f.state, n)
				}
			}
		}
		for g := range 100 {
			up := make([]Resource, 1000)
			for i := range up {
				up[i] = authz(fmt.Sprint(r.IntN(1000)), r.IntN(2) == 0)
			}
			rm := make([]Key, 200)
			for i := range rm {
				rm[i] = Key{api.AuthorizationType, fmt.Sprintf("foo/%d", r.IntN(1000))}
			}
			apply(t, st, uint64(g+1), up, rm...)
			for range 20 {
				follow(all[r.IntN(len(all)-1)+1])
			}
		}
		want := map[string]string{}
		l := st.logs[api.AuthorizationType]
		for n, e := range l.entries {
			if e.short != nil {
				want[n] = e.short.GetVersion()
			}
		}
		for i, f := range all {
			follow(f)
			if len(f.state) != len(want) {
				t.Fatalf("cursor %d: %d resources, want %d", i, len(f.state), len(want))
			}
			for n, v := range want {
				if f.state[n] != v {
					t.Fatalf("cursor %d: %s is %s, want %s", i, n, f.state[n], v)
				}
			}
		}
		apply(t, st, 200, []Resource{authz("x", true)})
		if l.dead != 0 || st.Len(api.AuthorizationType) != len(l.entries) {
			t.Errorf("%d removals are kept although all have seen them", l.dead)
		}
		time.Sleep(time.Second)
	})
}

func TestLaggingClientIsSentAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, s := newServer(t)
		apply(t, st, 1, []Resource{wl("a", "10.0.0.1")})
		f := open(t, s)
		f.subscribe(api.AddressType, nil)
		r := f.next()
		for i := range 2 * minTombstones {
			n := fmt.Sprint("t", i)
			apply(t, st, 2, []Resource{wl(n, "10.1.0.1")})
			apply(t, st, 3, nil, Key{api.AddressType, uid + n})
		}
		if n := len(st.logs[api.AddressType].entries); n > minTombstones+2 {
			t.Errorf("%d entries kept for one client", n)
		}
		f.ack(r)
		err := <-f.done
		f.done <- err
		if status.Code(err) != codes.Aborted {
			t.Errorf("got %v", err)
		}
		time.Sleep(time.Second)
	})
}
