package xds

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/undermesh/undermesh/controller/api"
)

// TestStormOfOneSecond: 10,000 events within a second, of two types, in few or many changes, are at most 20 pushes for a
// client that acknowledges at once (issue 4), with a margin; each type that has changes is one more push, however many responses hold it.
func TestStormOfOneSecond(t *testing.T) {
	for _, changes := range []int{8, 20, 100, 1000} {
		t.Run(fmt.Sprint(changes, " changes"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { stormOfOneSecond(t, changes) })
		})
	}
}

func stormOfOneSecond(t *testing.T, changes int) {
	const events, pods, margin = 10_000, 1000, 10
	st, s := newServer(t)
	var all []Resource
	for i := range pods {
		all = append(all, wl(fmt.Sprint("p", i), fmt.Sprintf("10.1.%d.%d", i/250, i%250)))
	}
	apply(t, st, 1, all)
	f := open(t, s)
	pushes, responses, more, have := 0, 0, "", map[string]string{}
	take := func() {
		for r := f.next(); r != nil; r = f.next() {
			if responses++; r.GetTypeUrl() != more {
				pushes++
			}
			if more = r.GetTypeUrl(); r.GetControlPlane().GetIdentifier() == api.DiscoveryWhole {
				more = ""
			}
			for _, x := range r.GetResources() {
				have[x.GetName()] = x.GetVersion()
			}
			f.ack(r)
		}
	}
	for _, typ := range []string{api.AddressType, api.AuthorizationType} {
		f.subscribe(typ, nil)
		take()
	}
	time.Sleep(10 * time.Second)
	pushes, responses = 0, 0
	for c := range changes {
		var up []Resource
		for i := range events / changes {
			n := c*events/changes + i
			if n%2 == 0 {
				up = append(up, wl(fmt.Sprint("p", n%pods), fmt.Sprintf("10.2.%d.%d", n/250, n%250)))
			} else {
				up = append(up, authz(fmt.Sprint("x", n), false))
			}
		}
		apply(t, st, uint64(c+2), up)
		const look = 5 * time.Millisecond
		for left := time.Second / time.Duration(changes); left > 0; left -= look {
			time.Sleep(min(look, left))
			take()
		}
	}
	for range 50 {
		time.Sleep(100 * time.Millisecond)
		take()
	}
	t.Logf("%d pushes, %d responses", pushes, responses)
	if pushes > margin || pushes < 4 || responses > 20 {
		t.Errorf("%d events are %d pushes in %d responses, want 4 to %d", events, pushes, responses, margin)
	}
	for _, l := range st.logs {
		for n, e := range l.entries {
			if have[n] != e.short.GetVersion() {
				t.Fatalf("%s: the client has version %q, the newest is %q", n, have[n], e.short.GetVersion())
			}
		}
	}
}
