package xds

import (
	"testing"
	"testing/synctest"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

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
