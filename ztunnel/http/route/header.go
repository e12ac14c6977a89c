package route

import (
	"errors"
	"fmt"
	"strings"

	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/undermesh/undermesh/ztunnel/http/head"
)

type pseudo uint8

const (
	field pseudo = iota
	pseudoMethod
	pseudoAuthority
	pseudoScheme
	pseudoPath
)

// name is that of a field or pseudo-header field. The zero value names none.
type name struct {
	text   string // in lower case
	id     head.ID
	pseudo pseudo
	joined bool // see joins
}

func newName(s string, pseudos bool) (name, error) {
	n := name{text: strings.ToLower(s)}
	if n.text == "" {
		return n, errors.New("must not be empty")
	}
	n.id, n.joined = head.IDOf([]byte(n.text)), joins(n.text)
	switch {
	case !pseudos:
		if n.text[0] == ':' {
			return n, fmt.Errorf("pseudo-header field %q cannot be named here", s)
		}
	case n.text == ":method":
		n.pseudo = pseudoMethod
	case n.text == ":authority" || n.text == "host":
		n.pseudo = pseudoAuthority
	case n.text == ":scheme":
		n.pseudo = pseudoScheme
	case n.text == ":path":
		n.pseudo = pseudoPath
	case n.text[0] == ':':
		return n, fmt.Errorf("pseudo-header field %q is not supported", s)
	}
	return n, nil
}

var get = []byte("GET")

// first returns the value: the first of several lines, or all of them when the name is one whose lines Envoy joins. It is valid
// until in is used for another. req is nil for a response.
func (n *name) first(req *head.Request, f *head.Fields, in *Input) ([]byte, bool) {
	if n.pseudo != field {
		v := n.special(req)
		return v, v != nil
	}
	i := f.Next(0, n.id, n.text)
	if i < 0 {
		return nil, false
	}
	v := f.Value(i)
	j := -1
	if n.joined {
		j = f.Next(i+1, n.id, n.text)
	}
	if j < 0 {
		return v, true
	}
	in.lines = append(in.lines[:0], v...)
	for ; j >= 0; j = f.Next(j+1, n.id, n.text) {
		v := f.Value(j)
		if len(v) == 0 {
			continue // as in Envoy it adds nothing
		}
		if len(in.lines) > 0 {
			in.lines = append(in.lines, ',')
		}
		in.lines = append(in.lines, v...)
	}
	return in.lines, true
}

func (n *name) special(req *head.Request) []byte {
	if req == nil {
		return nil
	}
	switch n.pseudo {
	case pseudoMethod:
		if req.Protocol != nil && string(req.Method) == "CONNECT" {
			return get
		}
		return req.Method
	case pseudoAuthority:
		return req.Authority
	case pseudoScheme:
		return req.Scheme
	}
	return req.Path
}

// joins reports whether Envoy keeps the lines of a field as one value, joined by commas: those are the ones that it knows. All
// other names, cookie among them, keep a value a line.
func joins(name string) bool {
	switch name {
	case "accept", "accept-encoding", "access-control-request-headers", "access-control-request-method", "authentication",
		"authorization", "cache-control", "connection", "content-encoding", "content-length", "content-type", "etag", "expect",
		"grpc-accept-encoding", "grpc-message", "grpc-status", "grpc-timeout", "if-match", "if-modified-since", "if-none-match",
		"if-range", "if-unmodified-since", "keep-alive", "last-modified", "location", "origin", "pragma", "proxy-connection",
		"referer", "server", "te", "transfer-encoding", "upgrade", "user-agent", "via", "x-client-trace-id",
		"x-forwarded-client-cert", "x-forwarded-for", "x-forwarded-host", "x-forwarded-port", "x-forwarded-proto", "x-request-id":
		return true
	}
	return strings.HasPrefix(name, "x-envoy-")
}

// header is a compiled route.v3.HeaderMatcher.
type header struct {
	name    name
	text    text
	ranged  bool
	from    int64 // of the range, to is not in it
	to      int64
	present bool // only whether it is there is asked: want
	want    bool
	invert  bool
	empty   bool // a field that is not there is like one without a value
	always  bool // exact_match of nothing: any value
}

func newHeaders(list []*route.HeaderMatcher, pseudos bool) ([]header, error) {
	var out []header
	for i, m := range list {
		h, err := newHeader(m, pseudos)
		if err != nil {
			return nil, fmt.Errorf("[%d]: %w", i, err)
		}
		out = append(out, h)
	}
	return out, nil
}

func newHeader(m *route.HeaderMatcher, pseudos bool) (header, error) {
	h := header{invert: m.GetInvertMatch(), empty: m.GetTreatMissingHeaderAsEmpty()}
	err := only(m, "name", "invert_match", "treat_missing_header_as_empty", "exact_match", "safe_regex_match", "range_match",
		"present_match", "prefix_match", "suffix_match", "contains_match", "string_match")
	if err != nil {
		return h, err
	}
	if h.name, err = newName(m.GetName(), pseudos); err != nil {
		return h, fmt.Errorf("name: %w", err)
	}
	switch p := m.GetHeaderMatchSpecifier().(type) {
	case *route.HeaderMatcher_ExactMatch:
		h.text, h.always = text{kind: textExact, want: p.ExactMatch}, p.ExactMatch == ""
	case *route.HeaderMatcher_PrefixMatch:
		h.text = text{kind: textPrefix, want: p.PrefixMatch}
	case *route.HeaderMatcher_SuffixMatch:
		h.text = text{kind: textSuffix, want: p.SuffixMatch}
	case *route.HeaderMatcher_ContainsMatch:
		h.text = text{kind: textContains, want: p.ContainsMatch}
	case *route.HeaderMatcher_SafeRegexMatch:
		h.text.kind = textRegex
		if h.text.regex, err = newPattern(p.SafeRegexMatch); err != nil {
			return h, fmt.Errorf("safe_regex_match: %w", err)
		}
	case *route.HeaderMatcher_RangeMatch:
		h.ranged, h.from, h.to = true, p.RangeMatch.GetStart(), p.RangeMatch.GetEnd()
	case *route.HeaderMatcher_PresentMatch:
		h.present, h.want = true, p.PresentMatch
	case *route.HeaderMatcher_StringMatch:
		if h.text, err = newText(p.StringMatch); err != nil {
			return h, fmt.Errorf("string_match: %w", err)
		}
	default:
		h.present, h.want = true, true
	}
	return h, nil
}

// matches is asked of a request (f is its Fields) or a response (req is nil). Of several lines one that matches is enough.
func (h *header) matches(req *head.Request, f *head.Fields, in *Input) bool {
	v, ok := h.name.first(req, f, in)
	if h.present {
		return ((ok || h.empty) == h.want) != h.invert
	}
	if !ok && !h.empty {
		return false
	}
	hit := h.hits(v, in)
	if n := &h.name; !hit && ok && n.pseudo == field && !n.joined {
		for i := f.Next(f.Next(0, n.id, n.text)+1, n.id, n.text); i >= 0 && !hit; i = f.Next(i+1, n.id, n.text) {
			hit = h.hits(f.Value(i), in)
		}
	}
	return hit != h.invert
}

func (h *header) hits(v []byte, in *Input) bool {
	if h.ranged {
		n, ok := parseInt(v)
		return ok && n >= h.from && n < h.to
	}
	return h.always || h.text.match(v, in)
}

// parseInt reads a signed decimal number.
func parseInt(v []byte) (n int64, ok bool) {
	neg := false
	if len(v) > 0 && (v[0] == '-' || v[0] == '+') {
		neg, v = v[0] == '-', v[1:]
	}
	u, ok := parseUint(v)
	if !ok || u > 1<<63 || u == 1<<63 && !neg {
		return 0, false
	}
	if neg {
		return -int64(u), true
	}
	return int64(u), true
}

// parseUint reads an unsigned decimal number.
func parseUint(v []byte) (n uint64, ok bool) {
	if len(v) == 0 || len(v) > 20 {
		return 0, false
	}
	for _, c := range v {
		d := uint64(c - '0')
		if d > 9 || n > (1<<64-1-d)/10 {
			return 0, false
		}
		n = n*10 + d
	}
	return n, true
}
