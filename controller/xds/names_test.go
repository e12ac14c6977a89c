package xds

import (
	"context"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestNamesOfACallerAreBounded: a node's token subscribes to short names that nobody has, of every type and on several streams;
// what it holds is bounded over all of them, another caller is not concerned, and streams that end give back what they held.
func TestNamesOfACallerAreBounded(t *testing.T) {
	st, s := newServer(t)
	apply(t, st, 1, []Resource{wl("a", "10.0.0.1")})
	// fill opens a stream and subscribes to batches of names, each of another type; it returns how many were taken, and why the
	// stream ended.
	fill := func(caller Caller, batches int) (taken int, end func(), why error) {
		ctx, cancel := context.WithCancel(context.WithValue(t.Context(), callerKey{}, caller))
		f := &fakeStream{ctx, make(chan *discovery.DeltaDiscoveryRequest), make(chan *discovery.DeltaDiscoveryResponse, 64), make(chan error, 1)}
		go func() { f.done <- s.serve(f) }()
		names := unknownNames(maxRequest)
		for i := range batches {
			select {
			case f.in <- &discovery.DeltaDiscoveryRequest{Node: &core.Node{Id: "n"}, TypeUrl: s.cfg.Types[i], ResourceNamesSubscribe: names}:
			case why = <-f.done:
				cancel()
				return taken, func() {}, why
			}
			select {
			case <-f.out: // they do not exist
				taken += len(names)
			case why = <-f.done:
				cancel()
				return taken, func() {}, why
			}
		}
		return taken, func() { cancel(); <-f.done }, nil
	}
	node := Caller{Account: "istio-system/ztunnel", Place: "n1", Node: "n1"}
	taken, first, why := fill(node, 2)
	if why != nil {
		t.Fatal(why)
	}
	more, _, why := fill(node, len(s.cfg.Types))
	if status.Code(why) != codes.InvalidArgument || !strings.Contains(why.Error(), "istio-system/ztunnel at n1 holds more than") {
		t.Errorf("%v", why)
	}
	if taken+more > maxHeld/nameOverhead {
		t.Errorf("%d names are taken", taken+more)
	}
	if _, end, why := fill(Caller{Account: "istio-system/ztunnel", Place: "n2"}, 1); why != nil {
		t.Errorf("another node: %v", why)
	} else {
		end()
	}
	first()
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !s.names.Take(placeOf(node), maxHeld) {
		if <-tick.C; time.Now().After(deadline) {
			t.Fatal("what the streams held is not given back")
		}
	}
	s.names.Give(placeOf(node), maxHeld)
	t.Run("control: one type and one stream", func(t *testing.T) {
		if n, end, why := fill(node, 1); why != nil || n != maxRequest {
			t.Error(n, why)
		} else {
			end()
		}
	})
}
