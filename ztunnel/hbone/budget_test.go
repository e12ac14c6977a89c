package hbone

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestBudgetOfManyApplicationsThatDoNotRead fills 8 connections of 32 streams each. The buffers that they hold stay within the
// budget and what each stream has in any case; others go on, and everything is given back.
func TestBudgetOfManyApplicationsThatDoNotRead(t *testing.T) {
	const conns, streams, limit = 8, 32, 4 << 20
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.Budget = NewBudget(limit)
		ctx, cancel := context.WithCancel(t.Context())
		h := func(rctx context.Context, r *ServerRequest) {
			if r.Header.Get("x-slow") == "" {
				echoHandler(rctx, r)
				return
			}
			s, err := r.Accept(nil)
			if err != nil {
				return
			}
			near, far := net.Pipe() // nobody reads near
			defer near.Close()
			_, _ = Relay(ctx, s, far)
		}
		var wg, served sync.WaitGroup
		var clients []*Client
		for range conns {
			a, b := bufPipe()
			served.Go(func() { _ = Serve(t.Context(), b, cfg, h) })
			cl := NewClient(a, testConfig())
			clients = append(clients, cl)
			for range streams {
				s, err := cl.Connect(t.Context(), Request{Authority: "a:1", Header: Header{{"x-slow", "1"}}})
				if err != nil {
					t.Fatal(err)
				}
				wg.Go(func() {
					_, _ = s.Write(make([]byte, 4<<20))
					_, _ = s.Read(make([]byte, 1))
					_ = s.Close()
				})
			}
		}
		time.Sleep(time.Second)
		synctest.Wait()
		held := cfg.Budget.Held()
		t.Logf("%d streams of %d connections that nobody reads: %d KiB held of %d KiB", conns*streams, conns, held>>10, limit>>10)
		if most := int64(limit + conns*streams*(minHeld+smallChunk)); held > most || held < limit/2 {
			t.Errorf("%d bytes are held, want %d to %d", held, limit/2, most)
		}
		for i, cl := range clients { // a reader that keeps up goes on, however little memory is left
			s, err := cl.Connect(t.Context(), Request{Authority: "a:1"})
			if err != nil {
				t.Fatal(err)
			}
			const n = 1 << 20
			go func() {
				part := make([]byte, 8<<10) // at most minHeld is on its way
				for range n / len(part) {
					_, _ = s.Write(part)
					time.Sleep(time.Millisecond)
				}
				_ = s.CloseWrite()
			}()
			if got, err := io.Copy(io.Discard, s); got != n || err != nil {
				t.Errorf("connection %d: %d bytes of %d, %v", i, got, n, err)
			}
			_ = s.Close()
		}
		cancel()
		for _, cl := range clients {
			cl.Close()
		}
		wg.Wait()
		served.Wait()
		if held := cfg.Budget.Held(); held != 0 {
			t.Errorf("%d bytes are still counted", held)
		}
	})
}

// TestTightBudgetDeadlocksNobody: half of the budget is held by others, and a transfer of many windows goes on.
func TestTightBudgetDeadlocksNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.Budget = NewBudget(16 << 20)
		cfg.Budget.add(9 << 20)
		a, b := bufPipe()
		cl := startPair(t, a, b, cfg, cfg, echoHandler)
		s, err := cl.Connect(t.Context(), Request{Authority: "a:1"})
		if err != nil {
			t.Fatal(err)
		}
		const n = 8 << 20
		go func() {
			_, _ = s.Write(make([]byte, n/2))
			synctest.Wait()
			cfg.Budget.add(-9 << 20) // it ends in the middle
			_, _ = s.Write(make([]byte, n/2))
			_ = s.CloseWrite()
		}()
		if got, err := io.Copy(io.Discard, s); got != n || err != nil {
			t.Errorf("%d bytes of %d, %v", got, n, err)
		}
		_ = s.Close()
	})
}
