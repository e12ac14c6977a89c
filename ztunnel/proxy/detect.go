package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/ztunnel/hbone"
	"github.com/undermesh/undermesh/ztunnel/proxy/sniff"
)

// speaks is what a port declares (SR-12).
type speaks int

const (
	undeclared  speaks = iota // the first bytes tell
	speaksHTTP                // whatever the first bytes are
	speaksTLS                 // nothing is served before a ClientHello
	speaksOther               // TCP, also where the server speaks first
)

// speaksOf reads a protocol of settings.ServiceSettings.app_protocols.
func speaksOf(protocol string) speaks {
	switch protocol {
	case "":
		return undeclared
	case "http", "http2", "grpc", "grpc-web":
		return speaksHTTP
	case "https", "tls":
		return speaksTLS
	}
	return speaksOther
}

// declaredBy is what a port of a service declares.
func declaredBy(svc *client.Service, port uint16) speaks {
	return speaksOf(svc.Settings.GetAppProtocols()[uint32(port)])
}

// declaredBehind is what the services that lead to a port of w declare.
func declaredBehind(snap *client.Snapshot, w *client.Workload, port uint16) speaks {
	return speaksOf(protocolBehind(snap, w, port))
}

// protocolBehind is the protocol that the services of w's own namespace that lead to its port declare; of several that do not agree
// none does, and services of other namespaces, which may list the address of any pod, have no say.
func protocolBehind(snap *client.Snapshot, w *client.Workload, port uint16) string {
	found, what := false, ""
	for key, list := range w.GetServices() {
		namespace, host, _ := strings.Cut(key, "/")
		if namespace != w.GetNamespace() {
			continue
		}
		svc := snap.ServiceByHost(namespace, host)
		if svc == nil {
			continue
		}
		for _, p := range list.GetPorts() {
			if p.GetTargetPort() != uint32(port) {
				continue
			}
			says := svc.Settings.GetAppProtocols()[p.GetServicePort()]
			if found && says != what {
				return ""
			}
			found, what = true, says
		}
	}
	return what
}

// detectionTimeout is how long a client that may have to speak first is waited for.
func (p *Proxy) detectionTimeout(snap *client.Snapshot) time.Duration {
	if d := snap.Mesh().GetProtocolDetectionTimeout(); d.IsValid() && d.AsDuration() > 0 {
		return min(d.AsDuration(), p.cfg.HoldTimeout)
	}
	return p.cfg.DetectTimeout
}

// detect tells what the client speaks. It reads from c as far as it must, which is in s.early then, and waits for the client where
// the port does not say who speaks first. A client that sends nothing in time, or has ended its direction, speaks TCP.
func (s *session) detect(c net.Conn, snap *client.Snapshot, declared speaks) (sniff.Protocol, error) {
	var wait time.Duration
	switch declared {
	case speaksHTTP:
		return sniff.HTTP1, nil
	case speaksOther:
		return sniff.TCP, nil
	case speaksTLS:
		wait = s.p.cfg.HoldTimeout
	case undeclared:
		wait = s.p.detectionTimeout(snap)
	}
	stop := context.AfterFunc(s.ctx, func() { reset(c) })
	defer stop()
	if err := c.SetReadDeadline(s.p.cfg.Clock.Now().Add(wait)); err != nil {
		return sniff.TCP, ended(s.ctx, reason.DownstreamReset, err)
	}
	what, err := s.readFirst(c)
	if err != nil {
		return what, ended(s.ctx, reason.DownstreamReset, err)
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		return what, ended(s.ctx, reason.DownstreamReset, err)
	}
	s.spoke = true
	s.hushed = declared == undeclared && len(s.early) == 0
	if declared == speaksTLS && what != sniff.TLS {
		return sniff.TCP, nil // HTTP to a port of TLS is the server's to refuse
	}
	return what, nil
}

// detectInbound reports whether the client of a connection to the pod's port speaks HTTP. On a port that declares HTTP everything does
// but a client that begins with a ClientHello: the TLS is between it and the application. A client that the other node has waited for
// already, s.hushed, is not waited for again.
func (s *session) detectInbound(c net.Conn, port uint16) (bool, error) {
	snap := s.p.cfg.Snapshot()
	declared := declaredBehind(snap, s.pod.workload(snap), port)
	s.hushed = s.hushed && declared == undeclared
	if q, ok := c.(*hbone.Stream); ok && s.hushed && declared == undeclared && q.Quiet() {
		return false, nil
	}
	ask := declared
	if declared == speaksHTTP {
		ask = speaksTLS // its client speaks first as well
	}
	what, err := s.detect(c, snap, ask)
	if declared == speaksHTTP {
		return what != sniff.TLS, err
	}
	return what.HTTP(), err
}

// readFirst reads until it is sure what c speaks. The end of the direction and of the time are no errors.
func (s *session) readFirst(c net.Conn) (sniff.Protocol, error) {
	r := newIdleReader(c, &s.p.buffers)
	for {
		what, sure := sniff.Detect(s.early)
		if sure || len(s.early) >= sniff.MaxBytes {
			return what, nil
		}
		switch err := r.appendTo(&s.early); {
		case err == nil:
		case quiet(err):
			what, _ = sniff.Detect(s.early)
			return what, nil
		default:
			return what, err
		}
	}
}

// quiet reports whether a read ended because nothing came.
func quiet(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) }

// firstWord waits until a side of a connection speaks whose client had its time to do so first and did not, and reports whether the
// client does, and in HTTP: patience must not get it past what HTTP is judged and told by. What the server said is passed on to c.
func (s *session) firstWord(c, up net.Conn) (isHTTP bool, err error) {
	defer context.AfterFunc(s.ctx, func() { reset(c); reset(up) })()
	past := time.Unix(1, 0)
	var what sniff.Protocol
	heard := make(chan error, 1)
	go func() {
		heard <- s.guard(func() (err error) {
			what, err = s.hear(c)
			return err
		})
		_ = up.SetReadDeadline(past)
	}()
	b, n, err := newIdleReader(up, &s.p.buffers).read()
	_ = c.SetReadDeadline(past)
	cerr := <-heard
	if b != nil {
		_, werr := c.Write((*b)[:n])
		s.sent.Add(int64(n))
		s.p.buffers.put(b)
		cerr, what = errors.Join(cerr, werr), sniff.TCP // no server of HTTP speaks first
	}
	switch {
	case cerr != nil:
		return false, ended(s.ctx, reason.DownstreamReset, cerr)
	case err != nil && !quiet(err):
		return false, ended(s.ctx, reason.UpstreamReset, err)
	}
	if err := errors.Join(c.SetReadDeadline(time.Time{}), up.SetReadDeadline(time.Time{})); err != nil {
		return false, ended(s.ctx, reason.DownstreamReset, err)
	}
	return what.HTTP(), nil
}

// hear waits for the client without a limit, and for the rest of what it begins with for as long as detection may take.
func (s *session) hear(c net.Conn) (sniff.Protocol, error) {
	switch err := newIdleReader(c, &s.p.buffers).appendTo(&s.early); {
	case err == nil:
	case quiet(err):
		return sniff.TCP, nil
	default:
		return sniff.TCP, err
	}
	if err := c.SetReadDeadline(s.p.cfg.Clock.Now().Add(s.p.detectionTimeout(s.p.cfg.Snapshot()))); err != nil {
		return sniff.TCP, err
	}
	return s.readFirst(c)
}

// detectLeg reports whether the client of a connection to a pod of this node, at the other end of up, speaks HTTP to what the pod's port
// is by the services of its own namespace. What the service declares that was dialled, which may be anybody's, is no answer to that.
func (s *session) detectLeg(up net.Conn, r *way) (bool, error) {
	declared := declaredBehind(r.snap, r.path.Destination, r.addr.Port())
	switch {
	case declared == speaksOther || declared == speaksTLS:
		return false, nil
	case len(s.early) > 0:
		what, _ := sniff.Detect(s.early)
		return what.HTTP() || declared == speaksHTTP && what != sniff.TLS, nil
	case declared == speaksHTTP:
		what, err := s.detect(s.client, r.snap, speaksTLS)
		return what != sniff.TLS, err
	}
	return s.firstWord(s.client, up)
}

const firstRead = 512 // bytes that a connection which cannot tell when it is readable is read by at first

// appendTo reads once and appends to b, for a few bytes that are kept.
func (r *idleReader) appendTo(b *[]byte) error {
	if r.raw == nil {
		room := min(max(firstRead, 2*len(*b)), sniff.MaxBytes)
		p := make([]byte, room)
		n, err := r.src.Read(p)
		*b = append(*b, p[:n]...)
		return err
	}
	buf, n, err := r.read()
	if n > 0 {
		*b = append(*b, (*buf)[:n]...)
		r.buffers.put(buf)
	}
	return err
}
