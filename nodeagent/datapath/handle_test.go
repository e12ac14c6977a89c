package datapath

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/undermesh/undermesh/nodeagent/netns"
	"github.com/undermesh/undermesh/test/netnstest"
)

// TestPodKeepsItsNetns offers a captured pod a namespace of its own making that has the pod's address, before and after a
// restart: nothing changes. Only when the pod's namespace is gone another takes its place.
func TestPodKeepsItsNetns(t *testing.T) {
	l := newLab(t)
	a := l.pod("a", 2)
	h := l.enrol(a)
	decoy := netnstest.Netns(t)
	netnstest.Veth(t, l.node, l.bridge, "dpt", decoy, []netip.Prefix{netip.PrefixFrom(a.v4, 24)})
	captured := func(what string, h *PodHandle) {
		t.Helper()
		out, err := h.OutboundCaptured()
		if err != nil || !out || !h.InboundAttached() || h.Cookie() != cookie(t, a.ns) {
			t.Errorf("%s: outbound %t, inbound %t, cookie %d, %v", what, out, h.InboundAttached(), h.Cookie(), err)
		}
		own, err := h.Netns()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		defer own.Close()
		if own.ID() != a.ns.ID() {
			t.Errorf("%s: the handle has another namespace", what)
		}
	}
	spec := a.spec()
	spec.Netns = decoy
	if _, err := l.d.PreparePod(t.Context(), spec); !errors.Is(err, ErrOtherNetns) {
		t.Errorf("a decoy: %v", err)
	}
	captured("beside a decoy", h)
	if err := l.d.Close(); err != nil {
		t.Fatal(err)
	}
	l.d = l.open()
	if _, err := l.d.PreparePod(t.Context(), spec); !errors.Is(err, ErrOtherNetns) {
		t.Errorf("a decoy after a restart: %v", err)
	}
	pods, err := l.d.Pods()
	if err != nil || len(pods) != 1 {
		t.Fatalf("%d pods, %v", len(pods), err)
	}
	captured("after a restart beside a decoy", pods[0])
	thief := a.spec()
	thief.UID = "uid-thief"
	if _, err := l.d.PreparePod(t.Context(), thief); !errors.Is(err, ErrOtherNetns) {
		t.Errorf("another pod in the same namespace: %v", err)
	}
	captured("beside a thief", pods[0])
}

// TestLostNetnsIsReplaced: the sandbox was made anew while no agent ran.
func TestLostNetnsIsReplaced(t *testing.T) {
	l := newLab(t)
	a := l.pod("a", 2)
	l.enrol(a)
	for _, stop := range a.stop {
		stop()
	}
	if err := l.d.Close(); err != nil {
		t.Fatal(err)
	}
	netnstest.Release(t, a.ns)
	next := netnstest.Netns(t)
	netnstest.Veth(t, l.node, l.bridge, "dpt", next, []netip.Prefix{netip.PrefixFrom(a.v4, 24), netip.PrefixFrom(a.v6, 64)})
	l.d = l.open()
	spec := a.spec()
	spec.Netns = next
	h, err := l.d.PreparePod(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if h.Cookie() != cookie(t, next) || h.InboundAttached() {
		t.Errorf("cookie %d, inbound %t", h.Cookie(), h.InboundAttached())
	}
}

func cookie(t *testing.T, ns *netns.NetNS) uint64 {
	t.Helper()
	c, err := ns.Cookie()
	if err != nil {
		t.Fatal(err)
	}
	return c
}
