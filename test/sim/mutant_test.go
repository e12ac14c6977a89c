package sim

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/test/sim/memnet"
	"github.com/undermesh/undermesh/ztunnel/proxy"
)

// altered derives each snapshot that a proxy sees.
func altered(t *testing.T, snapshot func() *client.Snapshot, alter func(*client.Snapshot) ([]client.Resource, []client.Key)) func() *client.Snapshot {
	var mu sync.Mutex
	var from, made *client.Snapshot
	return func() *client.Snapshot {
		s := snapshot()
		mu.Lock()
		defer mu.Unlock()
		if s == nil || s == from {
			return made
		}
		upserts, removed := alter(s)
		next, err := s.With(s.Generation(), upserts, removed)
		if err != nil {
			t.Error(err)
		}
		from, made = s, next
		return made
	}
}

// alwaysProxied is a mesh without tunnels on one node.
func alwaysProxied(t *testing.T, snapshot func() *client.Snapshot) func() *client.Snapshot {
	return altered(t, snapshot, func(s *client.Snapshot) ([]client.Resource, []client.Key) {
		m := proto.CloneOf(s.Mesh())
		m.SameNode = settings.SameNode_SAME_NODE_PROXIED
		return []client.Resource{{Name: api.MeshSettingsName, Message: m}}, nil
	})
}

// withoutPolicies is a mesh where everything is allowed.
func withoutPolicies(t *testing.T, snapshot func() *client.Snapshot) func() *client.Snapshot {
	return altered(t, snapshot, func(s *client.Snapshot) (upserts []client.Resource, removed []client.Key) {
		for _, w := range s.Workloads() {
			for _, p := range s.Policies(w) {
				removed = append(removed, client.Key{Type: api.AuthorizationType, Name: p.GetNamespace() + "/" + p.GetName()})
			}
			free := proto.CloneOf(w.Workload)
			free.AuthorizationPolicies = nil
			upserts = append(upserts, client.Resource{Name: free.GetUid(), Message: &workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: free}}})
		}
		return upserts, removed
	})
}

// liar presents the certificate of whichever identity of the node was asked for first.
type liar struct {
	proxy.Identity
	first *atomic.Pointer[api.Identity]
}

func (l liar) ClientTLS(ctx context.Context, src api.Identity, want []api.Identity) (*tls.Config, error) {
	l.first.CompareAndSwap(nil, &src)
	return l.Identity.ClientTLS(ctx, *l.first.Load(), want)
}

// corrupter changes one byte of what it delivers.
type corrupter struct{ proxy.Sockets }

func (c corrupter) Deliver(ctx context.Context, from netip.Addr, to netip.AddrPort) (net.Conn, error) {
	conn, err := c.Sockets.Deliver(ctx, from, to)
	if err != nil {
		return nil, err
	}
	return &corruptConn{Conn: conn.(*memnet.Conn)}, nil //nolint:forcetypeassert // memnet's
}

type corruptConn struct {
	*memnet.Conn
	n int
}

func (c *corruptConn) Write(p []byte) (int, error) {
	p = slices.Clone(p)
	if at := headerSize + 100 - c.n; at >= 0 && at < len(p) {
		p[at] ^= 1
	}
	c.n += len(p)
	return c.Conn.Write(p)
}

// swallower ends the connection to the application before its end.
type swallower struct{ proxy.Sockets }

func (s swallower) Deliver(ctx context.Context, from netip.Addr, to netip.AddrPort) (net.Conn, error) {
	conn, err := s.Sockets.Deliver(ctx, from, to)
	if err != nil {
		return nil, err
	}
	return &shortConn{Conn: conn.(*memnet.Conn)}, nil //nolint:forcetypeassert // memnet's
}

type shortConn struct {
	*memnet.Conn
	n int
}

func (c *shortConn) Write(p []byte) (int, error) {
	if c.n += len(p); c.n > headerSize+500 {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// TestChecksFail breaks the mesh in one way at a time; the check that it concerns must say so within a few histories.
func TestChecksFail(t *testing.T) {
	for _, m := range []struct {
		name, invariant string
		hooks           func(t *testing.T) Hooks
	}{
		{"a node allows everything", "forbidden", func(t *testing.T) Hooks {
			return Hooks{Proxy: func(_ string, c *proxy.Config) { c.Snapshot = withoutPolicies(t, c.Snapshot) }}
		}},
		{"a node does not judge again", "forbidden", func(*testing.T) Hooks {
			return Hooks{Proxy: func(_ string, c *proxy.Config) {
				c.Changed = func() (<-chan struct{}, func()) { return make(chan struct{}), func() {} }
			}}
		}},
		{"a node shows another identity", "principal", func(*testing.T) Hooks {
			return Hooks{Proxy: func(_ string, c *proxy.Config) { c.Identity = liar{c.Identity, &atomic.Pointer[api.Identity]{}} }}
		}},
		{"plain text goes round the proxy", "plaintext", func(*testing.T) Hooks {
			return Hooks{Steer: func(_ memnet.SYN, _, app *memnet.Socket) *memnet.Socket { return app }}
		}},
		{"a byte changes", "integrity", func(*testing.T) Hooks {
			return Hooks{Sockets: func(s proxy.Sockets) proxy.Sockets { return corrupter{s} }}
		}},
		{"the end is missing", "integrity", func(*testing.T) Hooks {
			return Hooks{Sockets: func(s proxy.Sockets) proxy.Sockets { return swallower{s} }}
		}},
		{"a reason is missing", "reason", func(*testing.T) Hooks {
			return Hooks{Record: func(kv map[string]string) { delete(kv, "reason") }}
		}},
		{"a node stays away", "recovery", func(*testing.T) Hooks {
			return Hooks{Restart: func(string) bool { return false }}
		}},
		{"who leaves the mesh is cut", "continuity", func(*testing.T) Hooks {
			return Hooks{Proxy: func(_ string, c *proxy.Config) { c.RemovedGrace = time.Millisecond }}
		}},
		{"a leg to a STRICT pod has no TLS", "plaintext", func(t *testing.T) Hooks {
			return Hooks{Proxy: func(_ string, c *proxy.Config) { c.Snapshot = alwaysProxied(t, c.Snapshot) }}
		}},
	} {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			for seed := uint64(1); seed <= 30; seed++ {
				r := history(t, Options{Seed: seed, Calm: m.invariant == "continuity", Hooks: m.hooks(t)})
				if i := slices.IndexFunc(r.Violations, func(v Violation) bool { return v.Invariant == m.invariant }); i >= 0 {
					t.Logf("seed %d: %v", seed, r.Violations[i])
					return
				}
			}
			t.Errorf("no %s was noticed", m.invariant)
		})
	}
}

// TestLeakIsFound: a goroutine that waits for ever is seen, and one that was there before is not.
func TestLeakIsFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		defer close(hang)
		go func() { <-hang }()
		before := goroutines()
		if got := leaked(before); len(got) != 0 {
			t.Errorf("%d goroutines are called new", len(got))
		}
		go func() { <-hang }()
		if got := leaked(before); len(got) != 1 || !strings.Contains(got[0], "TestLeakIsFound") {
			t.Errorf("got %q", got)
		}
	})
}
