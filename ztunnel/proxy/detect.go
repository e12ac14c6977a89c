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
	return what == sniff.HTTP1 || what == sniff.HTTP2, err
}

// readFirst reads until it is sure what c speaks. The end of the direction and of the time are no errors.
func (s *session) readFirst(c net.Conn) (sniff.Protocol, error) {
	r := newIdleReader(c, &s.p.buffers)
	for {
		err := r.appendTo(&s.early)
		what, sure := sniff.Detect(s.early)
		switch {
		case sure, len(s.early) >= sniff.MaxBytes:
			return what, nil
		case err == nil:
		case errors.Is(err, io.EOF), errors.Is(err, os.ErrDeadlineExceeded):
			return what, nil
		default:
			return what, err
		}
	}
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
