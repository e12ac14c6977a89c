package http

import (
	"encoding/binary"
	"encoding/hex"

	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// Trace says how requests are traced. The zero value: trace contexts go on as they come.
type Trace struct {
	On     bool
	Sample uint32 // of 10,000 requests that come without a decision, so many are sampled
}

// contexts are the forms in which a request carries its place in a trace.
type contexts uint8

const (
	inB3Fields    contexts = 1 << iota // x-b3-traceid and its kin
	inB3                               // the one field b3
	inTraceparent                      // W3C's
)

// span is one step of a trace; parent 0: the first.
type span struct{ id, parent uint64 }

// trace makes the request a step of the trace that it belongs to, in all forms in which it carries that, or begins one in B3's
// fields (TT-02). A decision whether to sample is kept, and made once where there is none (TT-05). What is no context counts for
// nothing and goes away when a trace is begun.
func (x *exchange) trace() {
	x.span, x.contexts, x.legged = span{}, 0, false
	if x.f.Trace == nil {
		return
	}
	how := x.f.Trace()
	if !how.On {
		return
	}
	req := x.req
	var parent []byte
	if v := req.Get(head.Traceparent); isTraceparent(v) {
		x.contexts, parent = x.contexts|inTraceparent, v[36:52]
	}
	one := parseB3(req.Get(head.B3))
	if one.trace != nil {
		x.contexts, parent = x.contexts|inB3, one.span
	}
	if v := req.Get(head.XB3SpanID); isTraceID(req.Get(head.XB3TraceID)) && isSpanID(v) {
		x.contexts, parent = x.contexts|inB3Fields, v
	}
	x.span = span{id: x.e.spanID(), parent: spanOf(parent)}
	if x.contexts == 0 {
		x.contexts = inB3Fields
		x.valueBuf = appendHex(appendHex(x.valueBuf[:0], x.e.spanID(), 16), x.span.id, 16)
		req.Set(head.XB3TraceID, head.Names[head.XB3TraceID], x.valueBuf)
	}
	x.sampling(one, how)
	x.step(x.span)
}

// sampling writes whether to sample into B3's forms of the context, where they do not say it: as another form says, or as is drawn, once.
func (x *exchange) sampling(one b3, how Trace) {
	req := x.req
	fields := x.contexts&inB3Fields != 0 && !isDecision(req.Get(head.XB3Sampled))
	single := x.contexts&inB3 != 0 && one.decision == 0
	if !fields && !single {
		return
	}
	decision := x.sampled(one.decision)
	if decision == 0 {
		if decision = '1'; !x.forced {
			decision = x.e.sample(how)
		}
	}
	if fields {
		req.Set(head.XB3Sampled, head.Names[head.XB3Sampled], append(x.valueBuf[:0], decision))
	}
	if single {
		x.valueBuf = append(append(append(append(x.valueBuf[:0], one.trace...), '-'), one.span...), '-', decision)
		req.Set(head.B3, head.Names[head.B3], x.valueBuf)
	}
}

// sampled is what was decided before the request came here, '0' or '1'; 0: nothing. inOne is what B3's one field says.
func (x *exchange) sampled(inOne byte) byte {
	if v := x.req.Get(head.XB3Sampled); isDecision(v) {
		return v[0]
	}
	if flags, _ := x.req.Find("x-b3-flags"); inOne == 'd' || string(flags) == "1" { // to debug is to sample
		return '1'
	}
	if inOne != 0 || x.contexts&inTraceparent == 0 {
		return inOne
	}
	flags, _ := head.Unhex(x.req.Get(head.Traceparent)[54])
	return '0' + byte(flags&1)
}

// leg makes what goes to a workload of this node a step of its own where the engine does that workload's part too.
func (x *exchange) leg(is bool) {
	switch {
	case x.contexts == 0:
	case is:
		x.step(span{id: x.e.spanID(), parent: x.span.id})
	case x.legged:
		x.step(x.span)
	}
	x.legged = is
}

// step writes a span into the contexts of the request.
func (x *exchange) step(s span) {
	req := x.req
	if x.contexts&inB3Fields != 0 {
		x.valueBuf = appendHex(x.valueBuf[:0], s.id, 16)
		req.Set(head.XB3SpanID, head.Names[head.XB3SpanID], x.valueBuf)
		req.Del(head.XB3ParentSpanID, head.Names[head.XB3ParentSpanID])
		if s.parent != 0 {
			x.valueBuf = appendHex(x.valueBuf[:0], s.parent, 16)
			req.Add(head.XB3ParentSpanID, head.Names[head.XB3ParentSpanID], x.valueBuf)
		}
	}
	if x.contexts&inB3 != 0 {
		one := parseB3(req.Get(head.B3))
		x.valueBuf = append(append(x.valueBuf[:0], one.trace...), '-')
		x.valueBuf = append(appendHex(x.valueBuf, s.id, 16), '-', one.decision, '-')
		req.Set(head.B3, head.Names[head.B3], appendHex(x.valueBuf, s.parent, 16))
	}
	if x.contexts&inTraceparent != 0 {
		x.valueBuf = append(x.valueBuf[:0], req.Get(head.Traceparent)...)
		appendHex(x.valueBuf[:36], s.id, 16)
		req.Set(head.Traceparent, head.Names[head.Traceparent], x.valueBuf)
	}
}

// spanID returns a new one, which is not 0.
func (e *Engine) spanID() uint64 { return max(e.cfg.Random(), 1) }

func (e *Engine) sample(how Trace) byte {
	if e.cfg.Random()%10_000 < uint64(how.Sample) {
		return '1'
	}
	return '0'
}

// b3 is the field b3. Trace is nil where it holds no context; decision is '0', '1', 'd', or 0 where it holds none.
type b3 struct {
	trace, span []byte
	decision    byte
}

// parseB3 reads TRACE-SPAN, TRACE-SPAN-DECISION, TRACE-SPAN-DECISION-PARENT or DECISION.
func parseB3(v []byte) (out b3) {
	if len(v) == 1 {
		if isDecision(v) || v[0] == 'd' {
			out.decision = v[0]
		}
		return out
	}
	n := 32
	if len(v) > 16 && v[16] == '-' {
		n = 16
	}
	if len(v) < n+17 || v[n] != '-' || !isTraceID(v[:n]) || !isSpanID(v[n+1:n+17]) {
		return out
	}
	rest := v[n+17:]
	switch {
	case len(rest) == 0:
	case rest[0] != '-' || len(rest) != 2 && (len(rest) != 19 || rest[2] != '-' || !isHex(rest[3:])):
		return out
	case rest[1] != 'd' && !isDecision(rest[1:2]):
		return out
	default:
		out.decision = rest[1]
	}
	out.trace, out.span = v[:n], v[n+1:n+17]
	return out
}

// isTraceparent: version, trace, span, flags (W3C Trace Context, 3.2). Later versions may have more.
func isTraceparent(v []byte) bool {
	return len(v) >= 55 && (len(v) == 55 || v[55] == '-' && string(v[:2]) != "00") && v[2] == '-' && v[35] == '-' && v[52] == '-' &&
		isHex(v[:2]) && string(v[:2]) != "ff" && isTraceID(v[3:35]) && isSpanID(v[36:52]) && isHex(v[53:55])
}

func isTraceID(v []byte) bool { return (len(v) == 16 || len(v) == 32) && isHex(v) && !isZero(v) }

func isSpanID(v []byte) bool { return len(v) == 16 && isHex(v) && !isZero(v) }

func isDecision(v []byte) bool { return len(v) == 1 && (v[0] == '0' || v[0] == '1') }

func isHex(v []byte) bool {
	for _, c := range v {
		if _, ok := head.Unhex(c); !ok {
			return false
		}
	}
	return true
}

func isZero(v []byte) bool {
	for _, c := range v {
		if c != '0' {
			return false
		}
	}
	return true
}

// spanOf returns 0 for none.
func spanOf(v []byte) uint64 {
	var raw [8]byte
	if n, err := hex.Decode(raw[:], v); err != nil || n != len(raw) {
		return 0
	}
	return binary.BigEndian.Uint64(raw[:])
}
