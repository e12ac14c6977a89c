package quota

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/undermesh/undermesh/ztunnel/clock"
)

// TestTurns: one key has hundreds waiting, another comes late and is served within a round; no key has more places than it may,
// and what gave up takes none.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := NewTurns[string](4, 3, 200)
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		now, most, served := map[string]int{}, map[string]int{}, map[string]int{}
		var wg sync.WaitGroup
		visit := func(ctx context.Context, key string) {
			leave, err := turns.Enter(ctx, key)
			if err != nil {
				return
			}
			mu.Lock()
			now[key]++
			most[key] = max(most[key], now[key])
			served[key]++
			mu.Unlock()
			time.Sleep(time.Second) // of the bubble
			mu.Lock()
			now[key]--
			mu.Unlock()
			leave()
		}
		for range 200 {
			wg.Go(func() { visit(ctx, "greedy") })
		}
		synctest.Wait()
		for i := range 3 {
			wg.Go(func() { visit(ctx, fmt.Sprint("modest-", i)) })
		}
		before := time.Now()
		for came := false; !came && time.Since(before) < time.Minute; {
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
			mu.Lock()
			came = served["modest-2"] > 0
			mu.Unlock()
		}
		if took := time.Since(before); took > 2500*time.Millisecond {
			t.Errorf("the last of three waited %s behind one that has 200", took)
		}
		cancel()
		wg.Wait()
		if most["greedy"] != 3 {
			t.Errorf("at once %d of one key", most["greedy"])
		}
		if turns.busy+len(turns.held)+len(turns.lines)+len(turns.order) != 0 {
			t.Errorf("left behind: %+v", turns)
		}
	})
}

func TestTurnsLineIsBounded(t *testing.T) {
	turns := NewTurns[int](1, 1, 0)
	leave, err := turns.Enter(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := turns.Enter(t.Context(), 2); !errors.Is(err, ErrFull) {
		t.Error(err)
	}
	leave()
	leave() // once
	if leave, err = turns.Enter(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	leave()
}

func TestAmounts(t *testing.T) {
	a := NewAmounts[string](10, 6)
	if !a.Take("a", 6) || a.Take("a", 1) || !a.Take("b", 4) || a.Take("b", 1) {
		t.Errorf("%+v", a)
	}
	a.Give("a", 6)
	if !a.Take("b", 2) || a.Take("b", 1) || len(a.held) != 1 {
		t.Errorf("%+v", a)
	}
}

func TestLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLines[string](clock.System())
		count := func(key string, times int) (written, left int) {
			for range times {
				if n, ok := l.Take(key); ok {
					written, left = written+1, left+n
				}
			}
			return written, left
		}
		if n, left := count("a", 1000); n != linesEach || left != 0 {
			t.Error(n, left)
		}
		if n, _ := count("b", 1); n != 1 {
			t.Error("another key is not concerned")
		}
		time.Sleep(linesPeriod) // of the bubble
		if n, left := count("a", 1); n != 1 || left != 1000-linesEach {
			t.Error(n, left)
		}
		all := 0
		for i := range 10 * linesKeys {
			n, _ := count(fmt.Sprint(i), 1)
			all += n
		}
		if len(l.seen) > linesKeys+1 || all > linesKeys+linesEach {
			t.Errorf("%d keys remembered, %d lines of %d", len(l.seen), all, 10*linesKeys)
		}
		time.Sleep(linesPeriod)
		if n, _ := count("new", 1); n != 1 || len(l.seen) > linesKeys {
			t.Error("what is over is not forgotten")
		}
	})
}

func TestAddr(t *testing.T) {
	for peer, want := range map[string]netip.Addr{
		"10.0.0.1:80": netip.MustParseAddr("10.0.0.1"), "[::ffff:10.0.0.1]:80": netip.MustParseAddr("10.0.0.1"),
		"[fd00::1]:80": netip.MustParseAddr("fd00::1"), "bufconn": {}, "": {},
	} {
		if got := Addr(peer); got != want {
			t.Errorf("%q is of %v, want %v", peer, got, want)
		}
	}
}

func TestCut(t *testing.T) {
	for _, c := range []struct {
		text  string
		limit int
		want  string
	}{{"abc", 3, "abc"}, {"abcd", 3, "abc…"}, {"aéb", 2, "a…"}, {"", 0, ""}} {
		if got := Cut(c.text, c.limit); got != c.want {
			t.Errorf("%q within %d bytes is %q, want %q", c.text, c.limit, got, c.want)
		}
	}
}
