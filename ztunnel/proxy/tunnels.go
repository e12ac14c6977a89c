package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/hbone"
	"github.com/undermesh/undermesh/ztunnel/http/frame"
	"github.com/undermesh/undermesh/ztunnel/identity"
	"github.com/undermesh/undermesh/ztunnel/telemetry"
)

// tunnels are the tunnel connections that one pod's processes use. Source address and netns are the pod's, so they are not
// in the key.
type tunnels struct {
	pod  *Pod
	pool *hbone.Pool[tunnelKey]
}

type tunnelKey struct {
	source  api.Identity
	servers string // sorted SPIFFE IDs
	addr    netip.AddrPort
}

func newTunnels(pod *Pod) *tunnels {
	return &tunnels{pod, hbone.NewPool[tunnelKey](hbone.PoolConfig[tunnelKey]{
		Conn: pod.p.cfg.Tunnel, DialTimeout: pod.p.cfg.ConnectTimeout,
		Departed: func(k tunnelKey) { pod.p.departs(k.addr.Addr()) },
	})}
}

func serverKey(ids []api.Identity) string {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = id.String()
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// connect opens a stream to req's authority through the tunnel at addr, whose server must prove one of servers.
func (t *tunnels) connect(ctx context.Context, source api.Identity, servers []api.Identity, addr netip.AddrPort, req hbone.Request) (*hbone.Stream, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx) // the pool would dial for it
	}
	key := tunnelKey{source, serverKey(servers), addr}
	return t.pool.Connect(ctx, key, func(ctx context.Context) (net.Conn, error) { return t.dial(ctx, key, servers) }, req)
}

// dial makes a tunnel connection: from the pod, proved on both sides. Connections of several clients may wait for it.
func (t *tunnels) dial(ctx context.Context, key tunnelKey, servers []api.Identity) (c net.Conn, err error) {
	err = t.pod.p.guard("tunnel", key.addr.String(), func() error {
		cfg, err := t.pod.p.cfg.Identity.ClientTLS(ctx, key.source, servers)
		if err != nil {
			return refused(identity.ReasonOf(err), err)
		}
		if t.pod.p.doubtful(t.pod.p.cfg.Snapshot(), key.addr.Addr()) { // it may be gone: others wait to be tried
			var cancel context.CancelFunc
			ctx, cancel = clock.WithTimeout(ctx, t.pod.p.cfg.Clock, doubtfulDial, nil)
			defer cancel()
		}
		raw, err := t.pod.cfg.Sockets.Dial(ctx, key.addr)
		if err != nil {
			return refused(reason.UpstreamConnect, err)
		}
		// A loop ends in no handshake: the other side is this client again.
		defer t.pod.loops.dialled(flow{addrPort(raw.LocalAddr()), key.addr})()
		tune(raw, nil)
		tc := tls.Client(hbone.NewTransport(raw), cfg)
		if err := tc.HandshakeContext(ctx); err != nil {
			_ = raw.Close()
			return refused(identity.ReasonOf(err), fmt.Errorf("open tunnel to %s: %w", key.addr, err))
		}
		c = tc
		return nil
	})
	return c, err
}

// close ends every tunnel and refuses new ones.
func (t *tunnels) close() { t.pool.Close() }

// tunnelOut opens a stream through a tunnel to the destination's node. What the client said so far goes with it.
func (s *session) tunnelOut(r *way) (net.Conn, func(), error) {
	w := r.path.Destination
	s.label(r, w, telemetry.MutualTLS)
	tunnelAddr := netip.AddrPortFrom(r.addr.Addr(), r.path.TunnelPort)
	s.line.Dst, s.line.HBONE = tunnelAddr, r.addr
	ctx, cancel := clock.WithTimeout(s.ctx, s.p.cfg.Clock, s.connectTimeout(), nil)
	defer cancel()
	first, rest := s.early[:min(len(s.early), hbone.MaxFirst)], s.early[min(len(s.early), hbone.MaxFirst):]
	var b *[]byte
	if len(first) == 0 && s.client != nil {
		b = s.p.buffers.get()
		var err error
		if first, err = readNow(s.client, (*b)[:hbone.MaxFirst]); err != nil {
			s.p.buffers.put(b)
			return nil, nil, ended(s.ctx, reason.DownstreamReset, err)
		}
		s.spoke = s.spoke || len(first) > 0
	}
	stream, err := s.pod.tunnels.connect(ctx, r.source.Identity, r.path.ServerIdentities, tunnelAddr, hbone.Request{
		Authority: r.addr.String(), Header: s.tunnelHeader(r), First: first,
	})
	if b != nil {
		s.p.buffers.put(b)
	}
	if err == nil && len(rest) > 0 {
		stop := context.AfterFunc(s.ctx, func() { stream.Reset(frame.CodeCancel) })
		if _, err = stream.Write(rest); err != nil {
			stream.Reset(frame.CodeCancel)
		}
		stop()
	}
	if err != nil {
		return nil, nil, s.tunnelRefusal(err)
	}
	return stream, func() {}, nil
}

// tunnelRefusal names why no stream could be opened.
func (s *session) tunnelRefusal(err error) error {
	if r := refusalOf(err); r != nil {
		return ended(s.ctx, r.Reason, err)
	}
	if errors.Is(err, hbone.ErrClosed) {
		return ended(s.ctx, reason.PodRemoved, err)
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" { // a TLS alert: the server looks at our certificate after our own handshake
		return ended(s.ctx, reason.TLSHandshake, err)
	}
	var status *hbone.StatusError
	if errors.As(err, &status) {
		if why := headerSafe(status.Header.Get(reasonHeader)); why != "" {
			err = fmt.Errorf("%w: %.40s", err, why)
		}
		if status.Code == 503 {
			return ended(s.ctx, reason.UpstreamConnect, err)
		}
		return ended(s.ctx, reason.TunnelRejected, err)
	}
	return ended(s.ctx, reason.UpstreamConnect, err)
}

// relayEnd names the side that ended a relay over a tunnel: far is the tunnel's peer, near the socket.
func (s *session) relayEnd(err error, far, near reason.Reason) error {
	if err == nil {
		return nil
	}
	var se *hbone.StreamError
	if errors.As(err, &se) && !se.Remote {
		return ended(s.ctx, near, err)
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return ended(s.ctx, near, err)
	}
	return ended(s.ctx, far, err)
}

// tunnelHeader are the headers that Istio's ztunnel sends: who calls, and by which service name; and what this one saw of the client.
func (s *session) tunnelHeader(r *way) hbone.Header {
	w := r.source
	kind := map[string]string{"DEPLOYMENT": "deployment", "CRONJOB": "cronjob", "POD": "pod", "JOB": "job"}[w.GetWorkloadType().String()]
	cluster := w.GetClusterId()
	if cluster == "" {
		cluster = s.p.cfg.ClusterID
	}
	var b strings.Builder
	for _, kv := range [][2]string{
		{"k8s.cluster.name", cluster}, {"k8s.namespace.name", w.GetNamespace()}, {"k8s." + kind + ".name", w.GetWorkloadName()},
		{"service.name", w.GetCanonicalName()}, {"service.version", w.GetCanonicalRevision()},
		{"cloud.region", w.GetLocality().GetRegion()}, {"cloud.availability_zone", w.GetLocality().GetZone()},
	} {
		if kv[1] == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(kv[0] + "=" + headerSafe(kv[1]))
	}
	forwarded := `for="` + s.src.String() + `"`
	if r.svc != nil {
		forwarded += ";host=" + headerSafe(r.svc.GetHostname())
	}
	h := hbone.Header{{Name: "baggage", Value: b.String()}, {Name: "forwarded", Value: forwarded}}
	if s.hushed {
		h = append(h, hbone.HeaderField{Name: clientHeader, Value: clientSilent})
	}
	return h
}

// headerSafe drops what would end a value early; the names of Kubernetes objects have none of it.
func headerSafe(v string) string {
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r >= 0x7f || strings.ContainsRune(`,;="\`, r) {
			return -1
		}
		return r
	}, v)
}
