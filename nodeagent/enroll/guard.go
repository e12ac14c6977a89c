package enroll

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/undermesh/undermesh/nodeagent/zds/zdsapi"
)

// guard answers the connections that wait while no ztunnel is there. For BacklogLimit they wait: a ztunnel that is
// restarted serves them. Then they are accepted and reset, until one is back.
func (m *Manager) guard(ctx context.Context) {
	tick := time.NewTicker(m.cfg.Poll / 4)
	defer tick.Stop()
	away := time.Now()
	var resetting *resetter
	defer func() { resetting.stop() }()
	for {
		switch connected := m.cfg.Proxy.Connected(); {
		case connected:
			away = time.Now()
			if resetting != nil {
				m.cfg.Log.Info("ztunnel is back, connections wait for it", "reset", resetting.stop())
				resetting = nil
			}
		case time.Since(away) >= m.cfg.BacklogLimit:
			if resetting == nil {
				m.cfg.Log.Warn("no ztunnel, connections of mesh pods are reset", "after", m.cfg.BacklogLimit)
				resetting = &resetter{}
			}
			m.feed(resetting)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// feed gives the resetter every listener of every pod.
func (m *Manager) feed(r *resetter) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for uid, p := range m.pods {
		p.mu.Lock()
		h := p.handle
		p.mu.Unlock()
		if h == nil {
			continue
		}
		for kind, f := range h.Files() {
			if err := r.serve(fmt.Sprint(uid, "/", kind), kind, f); err != nil {
				p.log.Debug("waiting connections not reset", "kind", kind.String(), "err", err)
			}
		}
	}
}

// resetter accepts connections and resets them. The zero value is ready.
type resetter struct {
	group sync.WaitGroup

	mu        sync.Mutex // protects below
	listeners map[string]net.Listener
	count     int
}

// serve starts on a copy of the listener f unless it did under this key.
func (r *resetter) serve(key string, kind zdsapi.ListenerKind, f *os.File) error {
	if kind == zdsapi.ListenerKind_DNS_UDP {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.listeners[key] != nil {
		return nil
	}
	ln, err := net.FileListener(f)
	if err != nil {
		return fmt.Errorf("copy listener: %w", err)
	}
	if r.listeners == nil {
		r.listeners = map[string]net.Listener{}
	}
	r.listeners[key] = ln
	r.group.Go(func() { r.reset(ln, key) })
	return nil
}

func (r *resetter) reset(ln net.Listener, key string) {
	for {
		c, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // the namespace ended, or descriptors ran out: a later round tries again
			_ = ln.Close()
			r.mu.Lock()
			delete(r.listeners, key)
			r.mu.Unlock()
			return
		}
		if t, ok := c.(*net.TCPConn); ok {
			_ = t.SetLinger(0) // reset instead of FIN: the client must not take it for an empty answer
		}
		_ = c.Close()
		r.mu.Lock()
		r.count++
		r.mu.Unlock()
	}
}

// stop ends all and returns how many connections were reset. A nil resetter may be stopped.
func (r *resetter) stop() int {
	if r == nil {
		return 0
	}
	r.mu.Lock()
	for _, ln := range r.listeners {
		_ = ln.Close() // our copy; the socket lives on
	}
	r.mu.Unlock()
	r.group.Wait()
	return r.count
}
