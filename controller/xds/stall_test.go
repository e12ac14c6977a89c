package xds

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// count reads the counter of a name that has no labels.
func count(t *testing.T, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// TestStalledClientIsCut: who acknowledges nothing, or does not even read, is cut off after the time; who is slow is not.
func TestStalledClientIsCut(t *testing.T) {
	for what, unread := range map[string]bool{"reads and is silent": false, "does not read": true} {
		synctest.Test(t, func(t *testing.T) {
			st := NewStore(StoreConfig{Clock: clock.System()})
			reg := prometheus.NewRegistry()
			s := NewServer(Config{Store: st, Clock: clock.System(), Registerer: reg})
			apply(t, st, 1, []Resource{wl("a", "10.0.0.1")})
			ctx, cancel := context.WithCancel(t.Context())
			f := &fakeStream{ctx, make(chan *discovery.DeltaDiscoveryRequest), make(chan *discovery.DeltaDiscoveryResponse), make(chan error, 1)}
			go func() {
				f.done <- s.serve(f)
				cancel() // as gRPC does
			}()
			f.subscribe(api.AddressType, nil)
			if !unread {
				<-f.out
			}
			time.Sleep(time.Minute - time.Second)
			synctest.Wait()
			if len(f.done) != 0 {
				t.Fatalf("%s: cut off too early", what)
			}
			if got := s.Clients()[0].Types[api.AddressType].State(); !unread && got != Stale {
				t.Errorf("%s: %s", what, got)
			}
			time.Sleep(time.Second)
			synctest.Wait()
			if err := <-f.done; status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("%s: %v", what, err)
			}
			if n, cut := len(s.Clients()), count(t, reg, "pilot_xds_write_timeout"); n != 0 || cut != 1 {
				t.Errorf("%s: %d clients, %v counted", what, n, cut)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		st, s := newServer(t)
		apply(t, st, 1, []Resource{wl("a", "10.0.0.1")})
		f := open(t, s)
		f.subscribe(api.AddressType, nil)
		for i := range 5 { // each answer takes nearly the whole time
			r := f.next()
			if r == nil {
				err := <-f.done
				f.done <- err
				t.Fatalf("no response %d: %v", i, err)
			}
			time.Sleep(time.Minute - 2*time.Second)
			f.ack(r)
			apply(t, st, uint64(i+2), []Resource{wl("a", fmt.Sprintf("10.0.1.%d", i))})
			time.Sleep(time.Second)
		}
		f.ack(f.next())
		time.Sleep(time.Hour) // nothing to say is no stall
		synctest.Wait()
		if len(f.done) != 0 || len(s.Clients()) != 1 {
			t.Errorf("a client that is slow was cut off: %d clients", len(s.Clients()))
		}
	})
}

// TestJoinsWait: who comes when as many as may join do so waits for one of them, and is served then.
func TestJoinsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStore(StoreConfig{Clock: clock.System()})
		s := NewServer(Config{Store: st, Clock: clock.System(), Joins: 1})
		apply(t, st, 1, []Resource{wl("a", "10.0.0.1")})
		join := func() *fakeStream {
			ctx, cancel := context.WithCancel(t.Context())
			f := &fakeStream{ctx, make(chan *discovery.DeltaDiscoveryRequest), make(chan *discovery.DeltaDiscoveryResponse), make(chan error, 1)}
			go func() { f.done <- s.serve(f) }()
			t.Cleanup(func() { cancel(); <-f.done })
			f.subscribe(api.AddressType, nil)
			synctest.Wait()
			return f
		}
		slow := join()
		next := join()
		select {
		case <-next.out:
			t.Fatal("two clients join at once")
		case err := <-next.done:
			next.done <- err
			t.Fatalf("the client that waits is cut off: %v", err)
		case <-time.After(59 * time.Second):
		}
		expect(t, <-slow.out, "Address +["+uid+"a] -[]")
		expect(t, <-next.out, "Address +["+uid+"a] -[]")
	})
}
