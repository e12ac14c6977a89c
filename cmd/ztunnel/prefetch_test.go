package main

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/client"
)

// watched counts holds of identities as the manager does.
type watched struct {
	mu    sync.Mutex
	holds map[string]int
}

func (w *watched) watch(ids ...api.Identity) func() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range ids {
		w.holds[id.String()]++
	}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, id := range ids {
			w.holds[id.String()]--
		}
	}
}

func (w *watched) held() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []string
	for id, n := range w.holds {
		for range n {
			list = append(list, id)
		}
	}
	slices.Sort(list)
	return list
}

// Pods come before the mesh is known; their accounts are asked for once it is, and again when its trust domain changes.
func TestPrefetchFollowsTrustDomain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var snapshot *client.Snapshot
		changed := make(chan struct{}, 1)
		w := &watched{holds: map[string]int{}}
		p := &prefetch{
			snapshot: func() *client.Snapshot { return snapshot }, watch: w.watch, held: map[*account]struct{}{},
			changed: func() (<-chan struct{}, func()) { return changed, func() {} },
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.run(ctx) }()
		become := func(domain string) {
			s, err := client.NewSnapshot(client.Resource{Message: &settings.MeshSettings{TrustDomain: domain}})
			must(t, err)
			snapshot = s
			changed <- struct{}{}
			synctest.Wait()
		}
		expect := func(when string, want ...string) {
			t.Helper()
			if got := w.held(); !slices.Equal(got, want) {
				t.Errorf("%s: held are %v, want %v", when, got, want)
			}
		}
		synctest.Wait()
		first := p.hold("foo", "sleep")
		expect("before the mesh is known")
		become("one.example")
		expect("once it is", "spiffe://one.example/ns/foo/sa/sleep")
		second := p.hold("foo", "")
		expect("a later pod", "spiffe://one.example/ns/foo/sa/default", "spiffe://one.example/ns/foo/sa/sleep")
		become("two.example")
		expect("another trust domain", "spiffe://two.example/ns/foo/sa/default", "spiffe://two.example/ns/foo/sa/sleep")
		first()
		expect("a pod less", "spiffe://two.example/ns/foo/sa/default")
		second()
		expect("none left")
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
