package hbone

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// TestSuspectedPeerThatIsDead: a stream that waits for a peer which says nothing ends soon once there is a suspicion, and else after
// the time of the keepalive.
func TestSuspectedPeerThatIsDead(t *testing.T) {
	for name, c := range map[string]struct {
		at   time.Duration // when the suspicion comes up; 0: never
		want time.Duration
	}{
		"at once":                {1, 3*time.Second + 1},
		"when it has been asked": {22 * time.Second, 25 * time.Second},
		"control: without it":    {0, 40 * time.Second}, // of which the settings are in the first 10
	} {
		t.Run(name, func(t *testing.T) {
			againstClient(t, testConfig(), func(cl *Client, p *rawPeer) {
				p.must(p.fr.WriteSettings())
				synctest.Wait()
				go func() { _, _ = io.Copy(io.Discard, p.c) }()
				start := time.Now()
				if c.at > 0 {
					time.AfterFunc(c.at, func() { cl.c.suspected(true) })
				}
				_, err := cl.Connect(p.t.Context(), Request{Authority: "10.0.0.7:80"})
				if d := time.Since(start); !errors.Is(err, ErrPeerDead) || d != c.want {
					t.Errorf("%v after %v, want %v after %v", err, d, ErrPeerDead, c.want)
				}
			})
		})
	}
}

// TestSuspectedPeerThatLives: nothing happens to streams of a peer that answers, however long it says nothing else; nobody is asked
// often any more when the suspicion goes.
func TestSuspectedPeerThatLives(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Pool[string], fl *fleet) {
		s := mustConnect(t, p, fl)
		one := func(string) bool { return true }
		for range 60 { // told again and again
			p.Suspect(one)
			time.Sleep(time.Second)
		}
		reads := func() uint64 { return s.c.reads.Load() }
		before := reads()
		time.Sleep(20 * time.Second)
		if n := reads() - before; n < 4 {
			t.Errorf("a suspected peer answered %d times in 20 s", n)
		}
		p.Suspect(func(string) bool { return false })
		time.Sleep(2 * time.Second)
		before = reads()
		time.Sleep(40 * time.Second)
		if n := reads() - before; n > 4 {
			t.Errorf("a peer that is suspected no longer answered %d times in 40 s", n)
		}
		if _, err := s.Write([]byte("x")); err != nil {
			t.Error(err)
		}
		if n, err := s.Read(make([]byte, 1)); n != 1 || err != nil {
			t.Errorf("read %d, %v", n, err)
		}
		_ = s.Close()
	})
}

// TestSuspectHurriesDials: who dials a suspected peer does not wait for the whole of the dial's time; others do.
func TestSuspectHurriesDials(t *testing.T) {
	for name, c := range map[string]struct {
		key  string
		want time.Duration
	}{"suspected": {"k", 3 * time.Second}, "control: another": {"other", 10 * time.Second}} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, p *Pool[string], fl *fleet) {
				nobody := func(ctx context.Context) (net.Conn, error) {
					<-ctx.Done()
					return nil, context.Cause(ctx)
				}
				start := time.Now()
				done := make(chan error, 1)
				go func() {
					_, err := p.Connect(t.Context(), c.key, nobody, Request{Authority: "10.0.0.7:80"})
					done <- err
				}()
				synctest.Wait()
				p.Suspect(func(key string) bool { return key == "k" })
				p.Suspect(func(key string) bool { return key == "k" })
				if err := <-done; err == nil || time.Since(start) != c.want {
					t.Errorf("%v after %v, want an error after %v", err, time.Since(start), c.want)
				}
			})
		})
	}
}

// TestLeft: a server knows when its client has heard of a drain, and its client's streams know that they are better not used again.
func TestLeft(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Pool[string], fl *fleet) {
		s := mustConnect(t, p, fl)
		srv := fl.servers[0]
		is := func(c <-chan struct{}) bool {
			synctest.Wait()
			select {
			case <-c:
				return true
			default:
				return false
			}
		}
		if is(srv.Left()) || s.Leaving() {
			t.Error("control: before the drain")
		}
		srv.Drain()
		if !is(srv.Left()) || !s.Leaving() {
			t.Error("the client does not know")
		}
		if _, err := s.Write([]byte("x")); err != nil {
			t.Error(err)
		}
		if n, err := s.Read(make([]byte, 1)); n != 1 || err != nil {
			t.Errorf("a stream of before the drain: %d, %v", n, err)
		}
		_ = s.Close()
	})
}
