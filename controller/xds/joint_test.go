package xds

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/undermesh/undermesh/controller/api"
)

// follow acknowledges until the answer is whole, and applies all of it.
func (f *fakeStream) follow(t *testing.T, state map[string]string) (responses int) {
	t.Helper()
	for {
		r := f.next()
		if r == nil {
			t.Fatalf("nothing completes the state after %d responses", responses)
		}
		responses++
		for _, res := range r.GetResources() {
			state[res.GetName()] = res.GetVersion()
		}
		for _, n := range r.GetRemovedResources() {
			delete(state, n)
		}
		f.ack(r)
		if r.GetControlPlane().GetIdentifier() == api.DiscoveryWhole {
			return responses
		}
	}
}

// versions is what the store has of a type.
func versions(st *Store, typ string) map[string]string {
	st.mu.Lock()
	defer st.mu.Unlock()
	out := map[string]string{}
	for n, e := range st.logLocked(typ).entries {
		if e.short != nil {
			out[n] = e.short.GetVersion()
		}
	}
	return out
}

// TestClientsThatStartShareAnEncoding: whatever changed since it was made, each client ends with what there is.
func TestClientsThatStartShareAnEncoding(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Run(fmt.Sprintf("SEED=%d", seed), func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := rand.New(rand.NewPCG(seed, 1))
			st, srv := newServer(t)
			resource := func(i int) Resource {
				return wl("p"+strconv.Itoa(i), fmt.Sprintf("10.%d.0.%d", g.IntN(200), i%200))
			}
			var first []Resource
			for i := range 400 {
				first = append(first, resource(i))
			}
			apply(t, st, 1, first)
			shared := map[*whole]int{}
			for step := range uint64(60) {
				var up []Resource
				var gone []Key
				for range g.IntN(6) {
					if i := g.IntN(450); g.IntN(3) == 0 {
						gone = append(gone, Key{api.AddressType, uid + "p" + strconv.Itoa(i)})
					} else {
						up = append(up, resource(i))
					}
				}
				apply(t, st, step+2, up, gone...)
				f := open(t, srv)
				f.subscribe(api.AddressType, nil)
				got := map[string]string{}
				f.follow(t, got)
				if want := versions(st, api.AddressType); !maps.Equal(got, want) {
					t.Fatalf("step %d: a client that starts has %d resources, not the %d that there are", step, len(got), len(want))
				}
				shared[st.logs[api.AddressType].wholes[form(false)]]++
			}
			if n := len(shared); n < 2 || n > 20 {
				t.Errorf("60 clients that started one after the other had %d encodings", n)
			}
		})
	})
}

// TestEncodingIsInPieces: they are as long as others, and together everything.
func TestEncodingIsInPieces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, srv := newServer(t)
		var all []Resource
		for i := range 2000 {
			all = append(all, wl("p"+strconv.Itoa(i), fmt.Sprintf("10.0.%d.%d", i/200, i%200)))
		}
		apply(t, st, 1, all)
		f := open(t, srv)
		f.subscribe(api.AddressType, nil)
		got := map[string]string{}
		if n := f.follow(t, got); n < 3 || len(got) != len(all) {
			t.Errorf("%d resources in %d responses", len(got), n)
		}
		for _, p := range st.logs[api.AddressType].wholes[form(false)].pieces {
			if len(p) > pieceSize*5/4 {
				t.Errorf("a piece has %d bytes, want about %d", len(p), pieceSize)
			}
		}
	})
}
