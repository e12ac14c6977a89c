package route

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// format is a header's value: text and Envoy's command operators. What an operator has no value for is empty.
type format []piece

type piece struct {
	text string // when op is nil
	op   operator
	arg  argument
	max  int // bytes of the value; 0: all
}

type argument struct {
	name, other name // of REQ and RESP
	text        string
}

type operator func(dst []byte, a *argument, in *Input) []byte

func newFormat(s string, response bool) (format, error) {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return nil, errors.New("has a control character")
		}
	}
	var out format
	var lit []byte
	for i := 0; i < len(s); {
		if s[i] != '%' {
			lit = append(lit, s[i])
			i++
			continue
		}
		if i+1 < len(s) && s[i+1] == '%' {
			lit = append(lit, '%')
			i += 2
			continue
		}
		p, n, err := newPiece(s[i+1:], response)
		if err != nil {
			return nil, err
		}
		if len(lit) > 0 {
			out, lit = append(out, piece{text: string(lit)}), nil
		}
		out = append(out, p)
		i += 1 + n
	}
	if len(lit) > 0 {
		out = append(out, piece{text: string(lit)})
	}
	return out, nil
}

// newPiece reads NAME%, NAME(argument)% or NAME(argument):MAX%, and says how long that is.
func newPiece(s string, response bool) (piece, int, error) {
	end := strings.IndexAny(s, "%(:")
	if end < 0 {
		return piece{}, 0, errors.New("a % begins an operator that does not end; write %% for the sign itself")
	}
	called, arg, n, has := s[:end], "", end, false
	if s[end] == '(' {
		inner, _, ok := strings.Cut(s[end+1:], ")")
		if !ok {
			return piece{}, 0, fmt.Errorf("operator %%%s: the bracket is not closed", called)
		}
		arg, has, n = inner, true, end+len(inner)+2
	}
	p := piece{}
	if n < len(s) && s[n] == ':' {
		stop := strings.IndexByte(s[n:], '%')
		if stop < 0 {
			return p, 0, fmt.Errorf("operator %%%s: does not end", called)
		}
		var err error
		if p.max, err = strconv.Atoi(s[n+1 : n+stop]); err != nil || p.max <= 0 {
			return p, 0, fmt.Errorf("operator %%%s: length %q is no positive number", called, s[n+1:n+stop])
		}
		n += stop
	}
	if n >= len(s) || s[n] != '%' {
		return p, 0, fmt.Errorf("operator %%%s: does not end", called)
	}
	return p, n + 1, p.set(called, arg, has, response)
}

func (p *piece) set(called, arg string, has, response bool) error {
	switch called {
	case "REQ", "RESP":
		if called == "RESP" && !response {
			return errors.New("operator %RESP%: there is no response yet")
		}
		one, two, both := strings.Cut(arg, "?")
		var err error
		if p.arg.name, err = newName(one, called == "REQ"); err != nil {
			return fmt.Errorf("operator %%%s%%: %w", called, err)
		}
		if both {
			if p.arg.other, err = newName(two, called == "REQ"); err != nil {
				return fmt.Errorf("operator %%%s%%: %w", called, err)
			}
		}
		if p.op = requestField; called == "RESP" {
			p.op = responseField
		}
		return nil
	case "START_TIME":
		var err error
		if p.op, err = startTime(arg); err != nil {
			return fmt.Errorf("operator %%START_TIME%%: %w", err)
		}
		p.arg.text = arg
		return nil
	}
	op := simple(called)
	if op == nil {
		return fmt.Errorf("operator %%%s%%: not supported", called)
	}
	if has || p.max > 0 {
		return fmt.Errorf("operator %%%s%%: takes no argument", called)
	}
	p.op = op
	return nil
}

func (f format) append(dst []byte, in *Input) []byte {
	for i := range f {
		p := &f[i]
		if p.op == nil {
			if dst = append(dst, p.text...); len(dst) > maxMade {
				in.Excess = tooLong
				return dst
			}
			continue
		}
		from := len(dst)
		dst = p.op(dst, &p.arg, in)
		if p.max > 0 && len(dst) > from+p.max {
			dst = dst[:from+p.max]
		}
		if len(dst) > maxMade {
			in.Excess = tooLong
			return dst[:from]
		}
	}
	return dst
}

func requestField(dst []byte, a *argument, in *Input) []byte {
	if in.Request == nil {
		return dst
	}
	v, ok := a.name.first(in.Request, &in.Request.Fields, in)
	if !ok && a.other.text != "" {
		v, _ = a.other.first(in.Request, &in.Request.Fields, in)
	}
	return append(dst, v...)
}

func responseField(dst []byte, a *argument, in *Input) []byte {
	if in.Response == nil {
		return dst
	}
	v, ok := a.name.first(nil, &in.Response.Fields, in)
	if !ok && a.other.text != "" {
		v, _ = a.other.first(nil, &in.Response.Fields, in)
	}
	return append(dst, v...)
}

// simple returns an operator without arguments, nil when there is none of the name.
func simple(called string) operator {
	switch called {
	case "DOWNSTREAM_REMOTE_ADDRESS":
		return func(dst []byte, _ *argument, in *Input) []byte { return appendAddr(dst, in.Source) }
	case "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT":
		return func(dst []byte, _ *argument, in *Input) []byte { return appendIP(dst, in.Source) }
	case "DOWNSTREAM_REMOTE_PORT":
		return func(dst []byte, _ *argument, in *Input) []byte { return appendPort(dst, in.Source) }
	case "DOWNSTREAM_DIRECT_REMOTE_ADDRESS":
		return func(dst []byte, _ *argument, in *Input) []byte { return appendAddr(dst, in.Direct) }
	case "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT":
		return func(dst []byte, _ *argument, in *Input) []byte { return appendIP(dst, in.Direct) }
	case "DOWNSTREAM_LOCAL_ADDRESS":
		return func(dst []byte, _ *argument, in *Input) []byte { return appendAddr(dst, in.Destination) }
	case "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT":
		return func(dst []byte, _ *argument, in *Input) []byte { return appendIP(dst, in.Destination) }
	case "DOWNSTREAM_LOCAL_PORT":
		return func(dst []byte, _ *argument, in *Input) []byte { return appendPort(dst, in.Destination) }
	case "UPSTREAM_HOST", "UPSTREAM_REMOTE_ADDRESS":
		return func(dst []byte, _ *argument, in *Input) []byte { return appendAddr(dst, in.Upstream) }
	case "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT":
		return func(dst []byte, _ *argument, in *Input) []byte { return appendIP(dst, in.Upstream) }
	case "UPSTREAM_REMOTE_PORT":
		return func(dst []byte, _ *argument, in *Input) []byte { return appendPort(dst, in.Upstream) }
	case "UPSTREAM_LOCAL_ADDRESS":
		return func(dst []byte, _ *argument, in *Input) []byte { return appendAddr(dst, in.UpstreamLocal) }
	}
	return simpleText(called)
}

func simpleText(called string) operator {
	switch called {
	case "UPSTREAM_CLUSTER":
		return func(dst []byte, _ *argument, in *Input) []byte { return append(dst, in.Cluster...) }
	case "DOWNSTREAM_PEER_URI_SAN":
		return func(dst []byte, _ *argument, in *Input) []byte { return append(dst, in.PeerURI...) }
	case "DOWNSTREAM_LOCAL_URI_SAN":
		return func(dst []byte, _ *argument, in *Input) []byte { return append(dst, in.LocalURI...) }
	case "REQUESTED_SERVER_NAME":
		return func(dst []byte, _ *argument, in *Input) []byte { return append(dst, in.SNI...) }
	case "RESPONSE_FLAGS":
		return func(dst []byte, _ *argument, in *Input) []byte { return append(dst, cmp.Or(in.Flags, "-")...) }
	case "RESPONSE_CODE_DETAILS":
		return func(dst []byte, _ *argument, in *Input) []byte { return append(dst, in.Details...) }
	case "ROUTE_NAME":
		return func(dst []byte, _ *argument, in *Input) []byte { return append(dst, in.route...) }
	case "RESPONSE_CODE":
		return func(dst []byte, _ *argument, in *Input) []byte {
			if in.Response == nil || in.Local {
				return append(dst, '0')
			}
			return strconv.AppendInt(dst, int64(in.Response.Status), 10)
		}
	case "UPSTREAM_REQUEST_ATTEMPT_COUNT":
		return func(dst []byte, _ *argument, in *Input) []byte { return strconv.AppendInt(dst, int64(in.Attempts), 10) }
	case "PROTOCOL":
		return appendProtocol
	}
	return nil
}

func appendProtocol(dst []byte, _ *argument, in *Input) []byte {
	r := in.Request
	switch {
	case r == nil:
		return dst
	case r.Major == 2:
		return append(dst, "HTTP/2"...)
	case r.Minor == 0:
		return append(dst, "HTTP/1.0"...)
	}
	return append(dst, "HTTP/1.1"...)
}

func appendAddr(dst []byte, a netip.AddrPort) []byte {
	if !a.IsValid() {
		return dst
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()).AppendTo(dst)
}

func appendIP(dst []byte, a netip.AddrPort) []byte {
	if !a.IsValid() {
		return dst
	}
	return a.Addr().Unmap().AppendTo(dst)
}

func appendPort(dst []byte, a netip.AddrPort) []byte {
	if !a.IsValid() {
		return dst
	}
	return strconv.AppendUint(dst, uint64(a.Port()), 10)
}

// startTime understands no argument (ISO 8601 with milliseconds) and "%s" (seconds since 1970).
func startTime(arg string) (operator, error) {
	switch arg {
	case "":
		return func(dst []byte, _ *argument, in *Input) []byte {
			return in.Start.UTC().AppendFormat(dst, "2006-01-02T15:04:05.000Z")
		}, nil
	case "%s":
		return func(dst []byte, _ *argument, in *Input) []byte { return strconv.AppendInt(dst, in.Start.Unix(), 10) }, nil
	}
	return nil, fmt.Errorf("format %q: not supported", arg)
}
