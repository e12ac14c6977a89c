package xds

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// TestConvergence: the time from a change to its acknowledgement is counted once for each client that it is for.
func TestConvergence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStore(StoreConfig{Clock: clock.System()})
		reg := prometheus.NewRegistry()
		s := NewServer(Config{Store: st, Clock: clock.System(), Registerer: reg})
		apply(t, st, 1, []Resource{wl("a", "10.0.0.1")})
		follow := func(typ string) *fakeStream {
			ctx, cancel := context.WithCancel(t.Context())
			f := &fakeStream{ctx, make(chan *discovery.DeltaDiscoveryRequest), make(chan *discovery.DeltaDiscoveryResponse, 64), make(chan error, 1)}
			go func() { f.done <- s.serve(f) }()
			t.Cleanup(func() { cancel(); <-f.done })
			f.subscribe(typ, nil)
			f.ack(<-f.out)
			return f
		}
		f := follow(api.AddressType)
		follow(api.AuthorizationType)
		time.Sleep(time.Minute)
		seen := func() (uint64, float64) {
			families, err := reg.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range families {
				if m.GetName() == "pilot_proxy_convergence_time" {
					h := m.GetMetric()[0].GetHistogram()
					return h.GetSampleCount(), h.GetSampleSum()
				}
			}
			t.Fatal("there is no such metric")
			return 0, 0
		}
		was, before := seen()
		apply(t, st, 2, []Resource{wl("a", "10.0.0.2")})
		r := <-f.out
		time.Sleep(7 * time.Second)
		if n, _ := seen(); n != was {
			t.Errorf("counted %d times before the acknowledgement", n-was)
		}
		f.ack(r)
		synctest.Wait()
		time.Sleep(time.Minute)
		if n, sum := seen(); n != was+1 || sum-before < 7 || sum-before > 7.2 {
			t.Errorf("counted %d times, %v s", n-was, sum-before)
		}
	})
}
