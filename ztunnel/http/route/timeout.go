package route

import (
	"strconv"
	"time"

	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/undermesh/undermesh/ztunnel/http/head"
)

const defaultTimeout = 15 * time.Second // Envoy's, of a route that says none

// times are the timeouts that a route says. -1 is not said, 0 is none.
type times struct {
	global     time.Duration
	stream     time.Duration // max_stream_duration
	grpcMax    time.Duration // max_stream_duration.grpc_timeout_header_max
	grpcOffset time.Duration // max_stream_duration.grpc_timeout_header_offset
	streamed   bool          // max_stream_duration is there: global does not hold
	oldMax     time.Duration // max_grpc_timeout
	oldOffset  time.Duration // grpc_timeout_offset
}

// Timeouts are those of one request. 0 is none.
type Timeouts struct {
	Global     time.Duration // from the end of the request to the end of the response
	PerTry     time.Duration
	PerTryIdle time.Duration
	Stream     time.Duration // of the whole, from the first byte; -1 not said: that of the connection manager
	TryStream  time.Duration // of one try, from its connection to its last byte; -1 not said: that of the cluster
	Quiet      bool          // x-envoy-expected-rq-timeout-ms is not told
	NoContent  bool          // x-envoy-upstream-rq-timeout-alt-response: a timeout is answered 204, not 504

	grpc bool // grpc-timeout is to say what is expected, too
}

func (f *Forward) setTimes(a *route.RouteAction) error {
	t := times{stream: -1, grpcMax: -1, grpcOffset: -1, oldMax: -1, oldOffset: -1}
	s := a.GetMaxStreamDuration()
	if err := within("max_stream_duration", only(s, "max_stream_duration", "grpc_timeout_header_max", "grpc_timeout_header_offset")); err != nil {
		return err
	}
	t.streamed = s != nil
	t.global, f.IdleTimeout = defaultTimeout, -1
	for _, x := range []struct {
		field string
		from  *durationpb.Duration
		to    *time.Duration
	}{
		{"timeout", a.GetTimeout(), &t.global}, {"idle_timeout", a.GetIdleTimeout(), &f.IdleTimeout},
		{"max_stream_duration.max_stream_duration", s.GetMaxStreamDuration(), &t.stream},
		{"max_stream_duration.grpc_timeout_header_max", s.GetGrpcTimeoutHeaderMax(), &t.grpcMax},
		{"max_stream_duration.grpc_timeout_header_offset", s.GetGrpcTimeoutHeaderOffset(), &t.grpcOffset},
		{"max_grpc_timeout", a.GetMaxGrpcTimeout(), &t.oldMax}, {"grpc_timeout_offset", a.GetGrpcTimeoutOffset(), &t.oldOffset},
	} {
		d, ok, err := duration(x.field, x.from)
		if err != nil {
			return err
		}
		if ok {
			*x.to = d
		}
	}
	f.times = t
	return nil
}

// Timeouts works out those of a request, takes the fields out of it that ask for others (x-envoy-upstream-rq-timeout-ms and
// what belongs to it) and tells what is expected in x-envoy-expected-rq-timeout-ms, unless quiet, and grpc-timeout. The route must be a Forward.
func (r *Route) Timeouts(req *head.Request, quiet bool) Timeouts {
	f := r.Forward
	grpc := IsGRPC(req)
	out := Timeouts{Stream: f.times.streamOf(req, grpc), TryStream: -1, Quiet: quiet}
	old := grpc && !f.times.streamed && f.times.oldMax >= 0
	switch {
	case f.times.streamed:
	case old:
		out.Global = f.times.grpcGlobal(req)
	default:
		out.Global = f.times.global
	}
	if f.Policy != nil {
		out.PerTry, out.PerTryIdle = f.Policy.PerTry, f.Policy.PerTryIdle
	}
	milliseconds(req, head.XEnvoyUpstreamRqTimeoutMS, &out.Global)
	milliseconds(req, head.XEnvoyUpstreamRqPerTryTimeoutMS, &out.PerTry)
	milliseconds(req, head.XEnvoyUpstreamStreamDurationMS, &out.TryStream)
	if out.Global != 0 && out.PerTry >= out.Global {
		out.PerTry = 0
	}
	out.grpc = old
	out.Expect(req, 0)
	out.NoContent = req.Del(head.XEnvoyUpstreamRqTimeoutAltResponse, head.Names[head.XEnvoyUpstreamRqTimeoutAltResponse])
	req.Del(head.XEnvoyUpstreamAltStatName, head.Names[head.XEnvoyUpstreamAltStatName]) // nothing is counted by it, and a host is not to see it
	return out
}

// Expect tells the upstream how long it may take, when elapsed of the global timeout is over. Timeouts did it for the first try;
// it is called again before each other.
func (t *Timeouts) Expect(req *head.Request, elapsed time.Duration) {
	expected := t.PerTry
	if expected == 0 {
		expected = t.Global
	}
	if expected == 0 {
		return
	}
	if t.Global > 0 {
		expected = max(min(expected, t.Global-elapsed), time.Millisecond)
	}
	if !t.Quiet {
		var buf [20]byte
		req.Set(head.XEnvoyExpectedRqTimeoutMS, head.Names[head.XEnvoyExpectedRqTimeoutMS], strconv.AppendInt(buf[:0], expected.Milliseconds(), 10))
	}
	if t.grpc {
		setGRPCTimeout(req, expected)
	}
}

// milliseconds reads a field into d when it is one number, and removes it.
func milliseconds(req *head.Request, id head.ID, d *time.Duration) {
	name := head.Names[id]
	first := req.Next(0, id, name)
	if first < 0 {
		return
	}
	if n, ok := parseInt(req.Value(first)); ok && n >= 0 && req.Next(first+1, id, name) < 0 { // two are no number
		*d = ms(uint64(n))
	}
	req.Del(id, name)
}

func ms(n uint64) time.Duration {
	const most = uint64(1<<63-1) / uint64(time.Millisecond)
	return time.Duration(min(n, most)) * time.Millisecond
}

// grpcGlobal is the deadline that grpc-timeout names, in the bounds of max_grpc_timeout.
func (t *times) grpcGlobal(req *head.Request) time.Duration {
	d, _ := grpcTimeout(req.Get(head.GRPCTimeout))
	if t.oldOffset > 0 && t.oldOffset < d {
		d -= t.oldOffset
	}
	if t.oldMax != 0 && (d == 0 || d > t.oldMax) {
		d = t.oldMax
	}
	return d
}

// streamOf is how long the whole stream may take, and tells so in grpc-timeout.
func (t *times) streamOf(req *head.Request, grpc bool) time.Duration {
	limit := t.stream
	if d, ok := grpcTimeout(req.Get(head.GRPCTimeout)); ok && t.grpcMax >= 0 {
		if t.grpcMax != 0 && d > t.grpcMax {
			d = t.grpcMax
		}
		if d != 0 && t.grpcOffset > 0 {
			d = max(0, d-t.grpcOffset)
		}
		limit = d
	} else if limit <= 0 {
		return limit
	}
	if grpc && t.streamed {
		setGRPCTimeout(req, limit)
	}
	return limit
}

// grpcTimeout reads a value of grpc-timeout, rounded up to milliseconds.
func grpcTimeout(v []byte) (time.Duration, bool) {
	if len(v) < 2 || len(v) > 9 {
		return 0, false
	}
	n, ok := parseUint(v[:len(v)-1])
	if !ok {
		return 0, false
	}
	switch v[len(v)-1] {
	case 'H':
		return ms(n * 3_600_000), true
	case 'M':
		return ms(n * 60_000), true
	case 'S':
		return ms(n * 1000), true
	case 'm':
		return ms(n), true
	case 'u':
		return ms((n + 999) / 1000), true
	case 'n':
		return ms((n + 999_999) / 1_000_000), true
	}
	return 0, false
}

func setGRPCTimeout(req *head.Request, d time.Duration) {
	const most = 99_999_999 // eight digits
	n, unit := d.Milliseconds(), byte('m')
	if n > most {
		n, unit = n/1000, 'S'
	}
	if n > most {
		n, unit = n/60, 'M'
	}
	if n > most {
		n, unit = n/60, 'H'
	}
	var buf [20]byte
	req.Set(head.GRPCTimeout, head.Names[head.GRPCTimeout], append(strconv.AppendInt(buf[:0], n, 10), unit))
}
