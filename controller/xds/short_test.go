package xds

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/short"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
)

func named(n, ip string) Resource {
	r := wl(n, ip)
	r.Message.(*workloadapi.Address).GetWorkload().ClusterId = "Kubernetes"
	return r
}

func (f *fakeStream) as(id string, features ...string) func(typ string, names ...string) *discovery.DeltaDiscoveryResponse {
	return func(typ string, names ...string) *discovery.DeltaDiscoveryResponse {
		f.in <- &discovery.DeltaDiscoveryRequest{Node: &core.Node{Id: id, ClientFeatures: features}, TypeUrl: typ, ResourceNamesSubscribe: names}
		return f.next()
	}
}

// TestShortContents: only a client that asks for it is given them, by wildcard; both forms have one meaning and one version.
func TestShortContents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, s := newServer(t)
		in := named("a", "10.0.0.1")
		apply(t, st, 1, []Resource{in})
		a, b, c := open(t, s), open(t, s), open(t, s)
		ours := a.as("ours", api.DiscoveryShort)(api.AddressType).GetResources()[0]
		foreign := b.as("istio")(api.AddressType).GetResources()[0]
		demand := c.as("ours", api.DiscoveryShort)(api.AddressType, "/10.0.0.1").GetResources()[0]
		if ours.GetVersion() != foreign.GetVersion() || len(ours.GetAliases()) != 0 || ours.GetResource().GetTypeUrl() != "" {
			t.Errorf("short form %v, full form %v", ours, foreign)
		}
		if len(foreign.GetAliases()) != 1 || foreign.GetResource().GetTypeUrl() != api.AddressType || !proto.Equal(foreign, demand) {
			t.Errorf("full form %v, on demand %v", foreign, demand)
		}
		if proto.Size(ours) > proto.Size(foreign)*2/3 {
			t.Errorf("short form of %d bytes, full one of %d", proto.Size(ours), proto.Size(foreign))
		}
		for _, r := range []*discovery.Resource{ours, foreign} {
			m := &workloadapi.Address{}
			if err := proto.Unmarshal(r.GetResource().GetValue(), m); err != nil {
				t.Fatal(err)
			}
			if r == ours {
				short.Restore(r.GetName(), m)
			}
			if !proto.Equal(m, in.Message) {
				t.Errorf("%v is not %v", m, in.Message)
			}
		}
		apply(t, st, 2, []Resource{named("a", "10.0.0.2")})
		time.Sleep(time.Second)
		synctest.Wait()
		if n := len(b.out); n != 0 {
			t.Errorf("%d responses before the first is acknowledged", n)
		}
	})
}

// TestStormOfManyResources: however long a storm of many resources lasts, it is few pushes; and when it is over, a change
// that comes alone goes out at once again.
func TestStormOfManyResources(t *testing.T) {
	for _, gap := range []int{1, 15, 100} { // evenly, in bursts every 300 ms, and every 2 s
		stormOfMany(t, gap)
	}
}

func stormOfMany(t *testing.T, gap int) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		st, s := newServer(t)
		apply(t, st, 1, nil)
		f := open(t, s)
		f.subscribe(api.AddressType, nil)
		f.ack(f.next())
		time.Sleep(time.Minute)
		pushes, have := 0, map[string]string{}
		take := func() {
			for r := f.next(); r != nil; r = f.next() {
				if r.GetControlPlane().GetIdentifier() == api.DiscoveryWhole { // else more follows of the same push
					pushes++
				}
				for _, x := range r.GetResources() {
					have[x.GetName()] = x.GetVersion()
				}
				f.ack(r)
			}
		}
		const batches, size = 500, 20 // 10,000 events in 10 s
		for i := range batches {
			var list []Resource
			for j := range size {
				list = append(list, wl(fmt.Sprintf("pod-%d", (i*size+j)%2000), fmt.Sprintf("10.0.%d.%d", i/100, j)))
			}
			apply(t, st, uint64(i+2), list)
			if i%gap == gap-1 {
				time.Sleep(time.Duration(gap) * 20 * time.Millisecond)
				take()
			}
		}
		for range 20 {
			time.Sleep(100 * time.Millisecond)
			take()
		}
		if pushes > 20 {
			t.Errorf("%d pushes of %d changes in 10 s, in bursts of %d", pushes, batches*size, gap*size)
		}
		for n, e := range st.logs[api.AddressType].entries {
			if have[n] != e.short.GetVersion() {
				t.Fatalf("%s: the client has version %q, the newest is %q", n, have[n], e.short.GetVersion())
			}
		}
		apply(t, st, 9000, []Resource{wl("pod-0", "10.9.9.9")})
		time.Sleep(11 * time.Millisecond)
		if expect(t, f.next(), "Address +["+uid+"pod-0] -[]") == nil {
			t.Error("the change after the storm waits")
		}
	})
}
