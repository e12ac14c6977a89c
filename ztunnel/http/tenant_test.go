package http

import (
	"slices"
	"testing"
	"testing/synctest"

	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/http/frame"
	"github.com/undermesh/undermesh/ztunnel/http/h2"
	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// TestWindowsAreBounded: the connections of a workload hold no more bytes together than it may, and the later ones fewer.
func TestWindowsAreBounded(t *testing.T) {
	w := NewTenant(TenantLimits{Windows: 8 << 20})
	var sizes []int
	var ends []func()
	for range 12 {
		c := w.windowed(h2.Config{})
		sizes = append(sizes, c.ConnWindow>>10)
		if c.StreamWindowMax > c.ConnWindow/4 || c.StreamWindow > c.StreamWindowMax {
			t.Errorf("a connection of %d has streams of %d to %d", c.ConnWindow, c.StreamWindow, c.StreamWindowMax)
		}
		if c.Ended != nil {
			ends = append(ends, c.Ended)
		} else if c.ConnWindow != frame.DefaultWindow {
			t.Errorf("a window of %d is not given back", c.ConnWindow)
		}
	}
	if want := []int{4096, 1024, 1024, 256, 256, 256, 256, 256, 256, 256, 256, 63}; !slices.Equal(sizes, want) {
		t.Errorf("windows of %v KiB, want %v", sizes, want)
	}
	for _, end := range ends {
		end()
	}
	if n := w.windows.Load(); n != 0 {
		t.Errorf("%d bytes are reserved for nobody", n)
	}
}

// TestWindowsAreGivenBack by connections of both sides.
func TestWindowsAreGivenBack(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.cluster("up", nil, answers(ok))
		c := w.connect()
		hc := h2.NewClient(c.Conn, h2.Config{Clock: clock.System()})
		s, err := hc.Open(&head.Request{Method: []byte("GET"), Scheme: []byte("http"), Authority: []byte("a"), Path: []byte("/")}, true)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.ReadHead(); err != nil {
			t.Fatal(err)
		}
		if n := w.flow.Workload.windows.Load(); n != 4<<20 {
			t.Errorf("%d bytes are reserved", n)
		}
		hc.Kill(h2.ErrClosed)
		synctest.Wait()
		if n := w.flow.Workload.windows.Load(); n != 0 {
			t.Errorf("%d bytes are reserved for nobody", n)
		}
	})
}
