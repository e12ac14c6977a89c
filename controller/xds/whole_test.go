package xds

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"google.golang.org/protobuf/proto"

	"github.com/undermesh/undermesh/controller/api"
)

func completes(t *testing.T, r *discovery.DeltaDiscoveryResponse, want string) {
	t.Helper()
	if got := r.GetControlPlane().GetIdentifier(); got != want {
		t.Errorf("%s says %q, want %q", show(r), got, want)
	}
}

// TestResponsesSayWhatBelongsTogether: only the last response of a change completes it, and something always does.
func TestResponsesSayWhatBelongsTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, srv := newServer(t)
		apply(t, st, 1, []Resource{authz("p", false), wl("a", "10.0.0.1")})
		f := open(t, srv)
		for _, typ := range []string{api.AuthorizationType, api.AddressType} {
			f.subscribe(typ, nil)
			r := f.next()
			completes(t, r, api.DiscoveryWhole)
			f.ack(r)
		}
		apply(t, st, 2, []Resource{authz("p", true), wl("a", "10.0.0.2")}, Key{api.AuthorizationType, "foo/none"})
		time.Sleep(time.Second)
		for _, want := range []string{api.DiscoveryPart, api.DiscoveryWhole} {
			r := f.next()
			completes(t, r, want)
			defer f.ack(r)
		}
	})
}

// TestAnswerThatRunsAhead: a name that is asked for is answered at once; when other types changed meanwhile, the answer is a
// part, and is completed even if nothing of the change is this client's.
func TestAnswerThatRunsAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, srv := newServer(t)
		apply(t, st, 1, []Resource{authz("p", false)})
		f := open(t, srv)
		f.subscribe(api.AuthorizationType, nil, "foo/p")
		first := expect(t, f.next(), "Authorization +[foo/p] -[]")
		apply(t, st, 2, []Resource{authz("q", false), wl("a", "10.0.0.1")}) // q is not asked for
		f.subscribe(api.AddressType, nil)
		second := expect(t, f.next(), "Address +[Kubernetes//Pod/foo/a] -[]")
		completes(t, second, api.DiscoveryPart)
		f.ack(second)
		f.ack(first)
		last := f.next()
		if last == nil {
			t.Fatal("the change is never completed")
		}
		completes(t, last, api.DiscoveryWhole)
		f.ack(last)
		expect(t, f.next(), "nothing")
	})
}

// TestResumeIsWholeAfterTheRemovals: what is gone is removed after the first answers; until then they are parts.
func TestResumeIsWholeAfterTheRemovals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, srv := newServer(t)
		apply(t, st, 1, nil)
		f := open(t, srv)
		f.subscribe(api.AuthorizationType, map[string]string{"foo/old": "v"})
		r := expect(t, f.next(), "Authorization +[] -[]")
		completes(t, r, api.DiscoveryPart)
		f.ack(r)
		r = expect(t, f.next(), "Authorization +[] -[foo/old]")
		completes(t, r, api.DiscoveryWhole)
	})
}

// TestLargeAnswerIsManyResponses: no response is much larger than its bound, together they are everything once, and only
// the last one completes the state. A removal comes with the last one too.
func TestLargeAnswerIsManyResponses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, srv := newServer(t)
		var all []Resource
		for i := range 4000 {
			all = append(all, wl(fmt.Sprintf("pod-%04d-%s", i, strings.Repeat("x", 100)), "10.0.0.1"))
		}
		apply(t, st, 1, all)
		f := open(t, srv)
		f.subscribe(api.AddressType, map[string]string{"gone": "v"})
		seen, pieces := map[string]bool{}, 0
		for r := f.next(); r != nil; r = f.next() {
			pieces++
			if n := proto.Size(r); n > pieceSize*3/2 {
				t.Errorf("a response of %d bytes", n)
			}
			for _, x := range r.GetResources() {
				if seen[x.GetName()] {
					t.Errorf("%s came twice", x.GetName())
				}
				seen[x.GetName()] = true
			}
			want, removed := api.DiscoveryPart, 0
			if len(seen) == len(all) {
				want, removed = api.DiscoveryWhole, 1
			}
			completes(t, r, want)
			if len(r.GetRemovedResources()) != removed {
				t.Errorf("response %d removes %v", pieces, r.GetRemovedResources())
			}
			f.ack(r)
		}
		if len(seen) != len(all) || pieces < 3 {
			t.Errorf("%d resources in %d responses, want %d in several", len(seen), pieces, len(all))
		}
	})
}

// TestForeignClientIsAnsweredAtOnce: a client that does not know of parts takes the first answer for everything.
func TestForeignClientIsAnsweredAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, srv := newServer(t)
		var all []Resource
		for i := range 4000 {
			all = append(all, wl(fmt.Sprintf("pod-%04d-%s", i, strings.Repeat("x", 100)), "10.0.0.1"))
		}
		apply(t, st, 1, all)
		f := open(t, srv)
		f.in <- &discovery.DeltaDiscoveryRequest{Node: &core.Node{Id: "ztunnel"}, TypeUrl: api.AddressType}
		if r := f.next(); len(r.GetResources()) != len(all) {
			t.Errorf("the first answer has %d of %d resources", len(r.GetResources()), len(all))
		}
	})
}

// TestListIsShared: clients that start together share one list; after a change there is a new one.
func TestListIsShared(t *testing.T) {
	st, _ := newServer(t)
	apply(t, st, 1, []Resource{wl("a", "10.0.0.1"), wl("b", "10.0.0.2")})
	l := st.logs[api.AddressType]
	first, again := l.all(false), l.all(false)
	if len(first) != 2 || &first[0] != &again[0] || cap(first) != 2 {
		t.Errorf("lists of %d and %d, capacity %d", len(first), len(again), cap(first))
	}
	apply(t, st, 2, nil, Key{api.AddressType, uid + "a"})
	if now := l.all(false); len(now) != 1 || len(first) != 2 || first[0] == nil {
		t.Errorf("after a removal: %d, the old list has %d", len(now), len(first))
	}
}
