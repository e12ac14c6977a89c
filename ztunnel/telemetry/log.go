package telemetry

import (
	"context"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// Line is the record of one connection, written when it ended or was refused, or of one request. Empty values are left out.
type Line struct {
	Request   *Request // nil: of a connection
	Direction string   // "outbound", "inbound"
	Src, Dst  netip.AddrPort
	// HBONE is the address inside the tunnel when Dst is a tunnel's.
	HBONE                            netip.AddrPort
	SrcWorkload, SrcNamespace, SrcID string // pod, namespace, SPIFFE ID
	DstService                       string
	DstWorkload, DstNamespace, DstID string
	Sent, Received                   int64 // bytes as this side of the connection sees them
	Duration                         time.Duration
	Reason                           reason.Reason
	Policy                           string // namespace/name
	Rule                             int    // index in Policy; -1: none
	DryRun                           []string
	Path                             string
	Generation                       uint64
	Err                              error
}

// Request is what the record of a request has beside that of its connection.
type Request struct {
	Method, Authority, Path string
	Status                  int    // that the client got; 0: none
	Flags                   string // of Envoy, "-" for none
	Details                 string
	Cluster, Route          string
	Attempts                int
}

// Access is what the mesh wants logged (MeshConfig accessLogFile and accessLogEncoding).
type Access struct {
	Quiet bool // only connections that were refused, that failed, or that a dry-run policy speaks of
	Text  bool // not as JSON
}

// plain reports whether there is nothing to say of the connection but that it was.
func (l Line) plain() bool { return l.Reason == reason.None && l.Err == nil && len(l.DryRun) == 0 }

// Quiet reports whether a line that says nothing but that something went well would not be written.
func (r *Registry) Quiet() bool { return r.cfg.Access().Quiet }

// Log queues a line, unless the mesh does not want it. It never blocks: when the buffer is full the line is dropped and
// counted.
func (r *Registry) Log(l Line) {
	if l.plain() && r.cfg.Access().Quiet {
		return
	}
	select {
	case r.lines <- l:
	default:
		r.dropped.Add(1)
	}
}

// batch is how many bytes of lines are written together at most: a write of its own for each request of a busy pod costs more
// than the request's routes.
const batch = 60 << 10

// Run writes the queued lines until ctx ends, and then those that wait.
func (r *Registry) Run(ctx context.Context) error {
	var e encoder
	for {
		select {
		case l := <-r.lines:
			r.encode(&e, &l)
			if r.cfg.Gather > 0 {
				clock.Pause(ctx, r.cfg.Clock, r.cfg.Gather) // what ends it early ends Run
			}
			r.drain(&e)
		case <-ctx.Done():
			r.drain(&e)
			return nil
		}
	}
}

// drain writes what is queued. An output that fails loses lines: nobody is to wait for it.
func (r *Registry) drain(e *encoder) {
	for {
		select {
		case l := <-r.lines:
			r.encode(e, &l)
			if len(e.b) < batch {
				continue
			}
			_, _ = r.cfg.Out.Write(e.b)
			e.b = e.b[:0]
		default:
			if len(e.b) > 0 {
				_, _ = r.cfg.Out.Write(e.b)
			}
			if e.b = e.b[:0]; cap(e.b) > 2*batch {
				e.b = nil // a few lines were very long
			}
			return
		}
	}
}

func (r *Registry) encode(e *encoder, l *Line) {
	level := slog.LevelInfo
	if l.Err != nil {
		level = slog.LevelError
	}
	if level < r.cfg.Level.Level() {
		return
	}
	e.text = r.cfg.Access().Text
	message := "connection complete"
	if l.Request != nil {
		message = "request complete"
	}
	e.begin(r.cfg.Clock.Now(), level, message)
	l.encode(e)
	e.end()
}

// encode appends the fields of a line.
func (l *Line) encode(e *encoder) {
	e.addr("src.addr", l.Src)
	e.str("src.workload", l.SrcWorkload)
	e.str("src.namespace", l.SrcNamespace)
	e.str("src.identity", l.SrcID)
	e.addr("dst.addr", l.Dst)
	e.addr("dst.hbone_addr", l.HBONE)
	e.str("dst.service", l.DstService)
	e.str("dst.workload", l.DstWorkload)
	e.str("dst.namespace", l.DstNamespace)
	e.str("dst.identity", l.DstID)
	e.str("direction", l.Direction)
	e.num("bytes_sent", l.Sent)
	e.num("bytes_recv", l.Received)
	e.str("duration", l.Duration.Round(time.Microsecond).String())
	if l.Reason != reason.None {
		e.str("reason", l.Reason.String())
	}
	if l.Policy != "" {
		e.str("policy", l.Policy)
		if l.Rule >= 0 {
			e.num("rule", int64(l.Rule))
		}
	}
	e.list("dry_run", l.DryRun)
	e.str("path", l.Path)
	e.key("generation")
	e.b = strconv.AppendUint(e.b, l.Generation, 10)
	if q := l.Request; q != nil {
		e.num("status", int64(q.Status))
		e.num("attempts", int64(q.Attempts))
		e.str("method", cut(q.Method))
		e.str("authority", cut(q.Authority))
		e.str("url", cut(q.Path))
		e.str("flags", q.Flags)
		e.str("details", q.Details)
		e.str("cluster", q.Cluster)
		e.str("route", q.Route)
	}
	if l.Err != nil {
		e.str("error", cut(l.Err.Error()))
	}
}

// maxErrorText bounds what a peer's bytes can put into a line.
const maxErrorText = 1024

// cut keeps the first bytes of a text, whole characters.
func cut(s string) string {
	if len(s) <= maxErrorText {
		return s
	}
	return strings.ToValidUTF8(s[:maxErrorText], "") + "…"
}
