package netns_test

import (
	"testing"

	"github.com/undermesh/undermesh/nodeagent/netns"
	"github.com/undermesh/undermesh/test/netnstest"
)

// Namespaces that are opened while every thread, the main one too, may be inside another one still lead home.
func TestOpenedDuringDoReturnsHome(t *testing.T) {
	netnstest.Require(t)
	home, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	pod := netnstest.Netns(t)
	// Hold as many threads inside the pod as there are idle ones: the main thread is among them sooner or later.
	const inside = 32
	release := make(chan struct{})
	done := make(chan error, inside)
	for range inside {
		go func() {
			done <- pod.Do(func() error { <-release; return nil })
		}()
	}
	var opened []*netns.NetNS
	for range 32 {
		n, err := netns.OpenPath(pod.Path())
		if err != nil {
			t.Fatal(err)
		}
		opened = append(opened, n)
		if err := n.Do(func() error { return nil }); err != nil { // comes back to what it took for home
			t.Error(err)
		}
		now, err := netns.Current()
		if err != nil {
			t.Fatal(err)
		}
		if now.ID() != home.ID() {
			t.Error("a thread outside of Do is in another namespace")
		}
		_ = now.Close()
	}
	close(release)
	for range inside {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	for _, n := range opened {
		_ = n.Close()
	}
}
