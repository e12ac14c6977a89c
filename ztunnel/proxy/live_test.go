package proxy

import (
	"errors"
	"io"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/undermesh/undermesh/controller/client"
)

// publish is apply without the notice: as if the next change coalesced with this one.
func (w *world) publish(list ...client.Resource) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	snap, err := w.snap.With(w.snap.Generation()+1, list, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	w.snap = snap
}

func TestAdmittedBetweenCoalescedChangesIsJudged(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		b := w.pod("b", "httpbin", "10.0.1.1")
		defer w.stop(b)
		b.echo()
		closed := client.Resource{Message: workload("foo", "httpbin", b.ip, "istio-system/"+strict().GetName())}
		w.apply(client.Resource{Message: strict()}, closed)
		synctest.Wait()
		if got, err := say(t, b.arrive(b.in, "10.9.9.9:1234", 80), "x"); err == nil {
			t.Fatalf("STRICT let plain text in: %q", got)
		}
		w.publish(client.Resource{Message: workload("foo", "httpbin", b.ip)})
		c := b.arrive(b.in, "10.9.9.9:1235", 80)
		if _, err := c.Read(make([]byte, 64)); err != nil {
			t.Fatalf("refused while nothing forbade it: %v", err)
		}
		w.apply(closed)
		synctest.Wait()
		if _, err := c.Read(make([]byte, 64)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("plain text goes on under STRICT: %v, want a reset", err)
		}
		w.wantLog("reason=policy_changed")
	})
}

// An old snapshot that is still being looked at does not end what the newer one let in.
func TestOldSnapshotEndsNothingThatTheNewOneAllows(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		b := w.pod("b", "httpbin", "10.0.1.1")
		defer w.stop(b)
		b.echo()
		closed := client.Resource{Message: workload("foo", "httpbin", b.ip, "istio-system/"+strict().GetName())}
		w.apply(client.Resource{Message: strict()}, closed)
		synctest.Wait()
		old := w.snapshot()
		w.publish(client.Resource{Message: workload("foo", "httpbin", b.ip)})
		c := b.arrive(b.in, "10.9.9.9:1235", 80)
		if _, err := c.Read(make([]byte, 64)); err != nil {
			t.Fatal(err)
		}
		b.judgeAgain(old)
		if _, err := io.WriteString(c, "still"); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(make([]byte, 64)); n != 5 || err != nil {
			t.Fatalf("%d bytes, %v: it was ended by a snapshot that is no longer in force", n, err)
		}
		w.apply(closed) // what it is judged by next is what the old snapshot had
		synctest.Wait()
		if _, err := c.Read(make([]byte, 64)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%v, want a reset", err)
		}
	})
}

// A change that concerns no policy of the pod costs nothing for connections that were judged.
func TestUnchangedPoliciesAreNotJudgedTwice(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		b := w.pod("b", "httpbin", "10.0.1.1")
		defer w.stop(b)
		b.echo()
		w.apply(client.Resource{Message: workload("foo", "httpbin", b.ip)})
		synctest.Wait() // or the look at this change comes after the admission
		c := b.arrive(b.in, "10.9.9.9:1235", 80)
		if _, err := c.Read(make([]byte, 64)); err != nil {
			t.Fatal(err)
		}
		sizes := func() [2]int {
			synctest.Wait()
			b.live.mu.Lock()
			defer b.live.mu.Unlock()
			return [2]int{len(b.live.fresh), len(b.live.judged)}
		}
		if got := sizes(); got != [2]int{1, 0} {
			t.Errorf("after the admission: %v fresh and judged", got)
		}
		w.apply(client.Resource{Message: workload("foo", "other", b.ip.Next())})
		if got := sizes(); got != [2]int{0, 1} {
			t.Errorf("after a change: %v fresh and judged", got)
		}
		_ = c.Close()
		time.Sleep(time.Second)
		if got := sizes(); got != [2]int{0, 0} {
			t.Errorf("after the end: %v fresh and judged", got)
		}
	})
}
