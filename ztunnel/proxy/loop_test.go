package proxy

import (
	"context"
	"errors"
	"net/netip"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/controller/client"
)

// captured makes whatever the proxy dials to addr arrive at it again, as an address of the pod's lo did.
func (p *testPod) captured(addr string) *memListener {
	l := p.w.net.listen(netip.MustParseAddrPort(addr))
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.out.ch <- c
		}
	}()
	return l
}

func TestOwnDialIsNotProxiedAgain(t *testing.T) {
	for _, at := range []string{"outside the mesh", "a pod elsewhere"} {
		t.Run(at, func(t *testing.T) {
			inWorld(t, nil, func(t *testing.T, w *world) {
				a := w.pod("a", "sleep", "10.0.0.1")
				defer w.stop(a)
				w.apply(client.Resource{Message: workload("foo", "sleep", a.ip)})
				dst, dials := "10.99.99.99:8080", uint16(8080)
				if at == "a pod elsewhere" {
					w.apply(client.Resource{Message: workload("foo", "far", netip.MustParseAddr("10.99.99.99"))})
					dials = 15008
				}
				l := a.captured(netip.AddrPortFrom(netip.MustParseAddr("10.99.99.99"), dials).String())
				defer l.Close()
				start := time.Now()
				if _, err := say(t, a.connect(dst), "x"); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("%v, want a reset", err)
				}
				if d := time.Since(start); d > time.Second {
					t.Errorf("it took %v", d)
				}
				synctest.Wait()
				if n := w.net.dialled(dials); n > 3 {
					t.Errorf("%d dials for one connection", n)
				}
				w.wantLog("reason=loop", "direction=outbound")
				time.Sleep(time.Second)
				if n := a.Status().Connections; n != 0 {
					t.Errorf("%d connections are left", n)
				}
				if n := len(a.loops.own) + len(a.loops.taken); n != 0 {
					t.Errorf("%d flows are left", n)
				}
			})
		})
	}
}

// The accepted end may be looked at before the dial has returned.
func TestLoopIsSeenFromEitherEnd(t *testing.T) {
	var l loops
	f := flow{netip.MustParseAddrPort("10.0.0.1:40000"), netip.MustParseAddrPort("10.99.99.99:80")}
	ctx, kill := context.WithCancelCause(t.Context())
	release, ok := l.accepted(f, kill)
	if !ok {
		t.Fatal("refused without a dial")
	}
	done := l.dialled(f)
	if r := refusalOf(context.Cause(ctx)); r == nil || r.Reason != reason.Loop {
		t.Errorf("accepted before the dial was noted: %v", context.Cause(ctx))
	}
	release()
	if _, ok := l.accepted(f, kill); ok {
		t.Error("accepted after the dial was noted")
	}
	for _, other := range []flow{{f.src, netip.MustParseAddrPort("10.99.99.99:81")}, {f.dst, f.src}} {
		release, ok := l.accepted(other, kill)
		if !ok {
			t.Errorf("%v refused: only %v was dialled", other, f)
			continue
		}
		release()
	}
	done()
	release, ok = l.accepted(f, kill)
	if !ok {
		t.Fatal("refused after the dial's end")
	}
	release()
	if len(l.own)+len(l.taken) != 0 {
		t.Errorf("left: %v %v", l.own, l.taken)
	}
}
