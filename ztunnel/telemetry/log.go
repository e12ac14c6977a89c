package telemetry

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"github.com/undermesh/undermesh/controller/api/reason"
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

// Run writes the queued lines until ctx ends, and then those that wait.
func (r *Registry) Run(ctx context.Context) error {
	jsonLog, textLog := r.cfg.AccessLog.With("scope", "access"), r.cfg.TextLog.With("scope", "access")
	write := func(l Line) {
		if r.cfg.Access().Text {
			l.write(ctx, textLog)
		} else {
			l.write(ctx, jsonLog)
		}
	}
	for {
		select {
		case l := <-r.lines:
			write(l)
		case <-ctx.Done():
			for {
				select {
				case l := <-r.lines:
					write(l)
				default:
					return nil
				}
			}
		}
	}
}

func (l Line) write(ctx context.Context, log *slog.Logger) {
	attrs := make([]slog.Attr, 0, 24)
	text := func(key, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(key, value))
		}
	}
	addr := func(key string, a netip.AddrPort) {
		if a.IsValid() {
			attrs = append(attrs, slog.String(key, a.String()))
		}
	}
	addr("src.addr", l.Src)
	text("src.workload", l.SrcWorkload)
	text("src.namespace", l.SrcNamespace)
	text("src.identity", l.SrcID)
	addr("dst.addr", l.Dst)
	addr("dst.hbone_addr", l.HBONE)
	text("dst.service", l.DstService)
	text("dst.workload", l.DstWorkload)
	text("dst.namespace", l.DstNamespace)
	text("dst.identity", l.DstID)
	text("direction", l.Direction)
	attrs = append(attrs, slog.Int64("bytes_sent", l.Sent), slog.Int64("bytes_recv", l.Received),
		slog.String("duration", l.Duration.Round(time.Microsecond).String()))
	if l.Reason != reason.None {
		text("reason", l.Reason.String())
	}
	if l.Policy != "" {
		text("policy", l.Policy)
		if l.Rule >= 0 {
			attrs = append(attrs, slog.Int("rule", l.Rule))
		}
	}
	if len(l.DryRun) > 0 {
		attrs = append(attrs, slog.Any("dry_run", l.DryRun))
	}
	text("path", l.Path)
	attrs = append(attrs, slog.Uint64("generation", l.Generation))
	level := slog.LevelInfo
	if q := l.Request; q != nil {
		attrs = append(attrs, slog.Int("status", q.Status), slog.Int("attempts", q.Attempts))
		text("method", cut(q.Method))
		text("authority", cut(q.Authority))
		text("url", cut(q.Path))
		text("flags", q.Flags)
		text("details", q.Details)
		text("cluster", q.Cluster)
		text("route", q.Route)
	}
	if l.Err != nil {
		attrs = append(attrs, slog.String("error", cut(l.Err.Error())))
		level = slog.LevelError
	}
	if l.Request != nil {
		log.LogAttrs(ctx, level, "request complete", attrs...)
		return
	}
	log.LogAttrs(ctx, level, "connection complete", attrs...)
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
