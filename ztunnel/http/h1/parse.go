package h1

import (
	"bytes"

	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// Limits bound a head. Zero means the default.
type Limits struct {
	Bytes  int // of the head, the empty line included; default 60 KiB (Envoy's)
	Fields int // default 100 (Envoy's)
}

// Defaults of Limits.
const (
	DefaultBytes  = 60 << 10
	DefaultFields = 100
)

func (l Limits) withDefaults() Limits {
	if l.Bytes <= 0 {
		l.Bytes = DefaultBytes
	}
	if l.Fields <= 0 {
		l.Fields = DefaultFields
	}
	return l
}

// ParseRequest reads the head of a request at the beginning of b into r, which refers to b from then on, and returns how many
// bytes it has. The error is ErrMore when b does not hold all of it, else an *Error.
//
// r.Authority is nil when there is neither a Host nor an absolute target, and empty when Host is. r.Protocol is the upgrade that
// is asked for; one to h2c is not, as with Envoy. r.Body is -1 for chunked.
func ParseRequest(b []byte, r *head.Request, limits Limits) (int, error) {
	limits = limits.withDefaults()
	pos := 0
	for pos < len(b) && pos < 4 && (b[pos] == '\r' || b[pos] == '\n') { // RFC 9112 §2.2: an empty line before it
		pos++
	}
	eol := bytes.IndexByte(b[pos:], '\n')
	if eol < 0 {
		if pos < len(b) && classes[b[pos]]&inToken == 0 {
			return 0, errLine // not the beginning of any
		}
		return 0, incomplete(b[pos:], limits)
	}
	r.Reset(b)
	if err := requestLine(r, b[pos:pos+eol]); err != nil {
		return 0, err
	}
	n, err := parseFields(b, pos+eol+1, &r.Fields, limits)
	if err != nil {
		return 0, err
	}
	if err := requestFields(r); err != nil {
		return 0, err
	}
	return n, nil
}

// incomplete judges the text of a line that has no end yet.
func incomplete(b []byte, limits Limits) error {
	if len(b) >= limits.Bytes {
		return ErrLarge
	}
	return ErrMore
}

// requestLine reads the line, which has its CR.
func requestLine(r *head.Request, l []byte) error {
	if len(l) == 0 || l[len(l)-1] != '\r' {
		return errLine
	}
	l = l[:len(l)-1]
	for _, c := range l {
		if c < 0x20 || c == 0x7f {
			return errCharacter
		}
	}
	sp := bytes.IndexByte(l, ' ')
	if sp <= 0 {
		return errLine
	}
	r.Method = l[:sp]
	if !known(r.Method) {
		return errMethod
	}
	l = l[sp+1:]
	sp = bytes.LastIndexByte(l, ' ')
	if sp < 0 {
		if len(l) > 0 && all(l, inTarget) {
			return errVersion // HTTP/0.9
		}
		return errLine
	}
	version, target := l[sp+1:], l[:sp]
	if len(version) != 8 || string(version[:5]) != "HTTP/" || version[6] != '.' || !digit(version[5]) || !digit(version[7]) {
		return errLine
	}
	if len(target) == 0 || !all(target, inTarget) {
		return errTarget
	}
	if string(version[5:]) != "1.1" {
		return errVersion
	}
	r.Major, r.Minor = 1, 1
	return requestTarget(r, target)
}

func digit(c byte) bool { return c >= '0' && c <= '9' }

func requestTarget(r *head.Request, target []byte) error {
	switch {
	case string(r.Method) == "CONNECT":
		if !hosted(target) || target[len(target)-1] == ']' || bytes.IndexByte(target, ':') < 0 { // it needs a port
			return errURL
		}
		r.Authority = target
	case target[0] == '/':
		r.Path = target
	case string(target) == "*":
		if string(r.Method) != "OPTIONS" {
			return errURL
		}
		r.Path = target
	default:
		return absolute(r, target)
	}
	return nil
}

// hosted reports whether an authority is that of a URL: a name or an address, one of IPv6 in brackets, and perhaps a port.
func hosted(a []byte) bool {
	host, rest := a, []byte(nil)
	if len(a) > 0 && a[0] == '[' {
		end := bytes.IndexByte(a, ']')
		if end < 0 {
			return false
		}
		host, rest = a[:end+1], a[end+1:]
	} else if i := bytes.IndexByte(a, ':'); i >= 0 {
		host, rest = a[:i], a[i:]
	}
	if len(host) == 0 || !all(host, inAuthority) || len(rest) == 1 || len(rest) > 1 && rest[0] != ':' {
		return false
	}
	for i := 1; i < len(rest); i++ {
		if !digit(rest[i]) {
			return false
		}
	}
	return true
}

// absolute reads a target in absolute form.
func absolute(r *head.Request, target []byte) error {
	i := bytes.Index(target, []byte("://"))
	if i <= 0 {
		return errTarget
	}
	switch scheme := target[:i]; {
	case head.EqualFold(scheme, "http"), head.EqualFold(scheme, "https"):
		r.Scheme = scheme
	default:
		return errScheme
	}
	rest := target[i+3:]
	end := bytes.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	r.Authority, r.Path = rest[:end], rest[end:]
	r.Authority = r.Authority[bytes.IndexByte(r.Authority, '@')+1:] // who asks is no part of the host's name
	if !hosted(r.Authority) || bytes.IndexByte(r.Authority, '@') >= 0 {
		return errURL
	}
	if len(r.Path) == 0 {
		r.Path = slash
	} else if r.Path[0] != '/' {
		return errURL
	}
	return nil
}

var slash = []byte("/")

// parseFields reads the field lines from pos on and returns where the head ends.
func parseFields(b []byte, pos int, f *head.Fields, limits Limits) (int, error) {
	for count := 0; ; count++ {
		rest := b[pos:]
		if pos >= limits.Bytes {
			return 0, ErrLarge
		}
		if len(rest) < 2 {
			return 0, ErrMore
		}
		if rest[0] == '\r' {
			if rest[1] != '\n' {
				return 0, errField
			}
			return pos + 2, nil
		}
		i := 0
		for i < len(rest) && classes[rest[i]]&inToken != 0 {
			i++
		}
		if i == len(rest) {
			return 0, incomplete(b, limits)
		}
		if i == 0 || rest[i] != ':' {
			return 0, errField
		}
		nl := bytes.IndexByte(rest[i:], '\n')
		if nl < 0 {
			return 0, incomplete(b, limits)
		}
		nl += i
		if rest[nl-1] != '\r' {
			return 0, errField
		}
		if count == limits.Fields {
			return 0, ErrMany
		}
		v, e := trim(rest, i+1, nl-1)
		if !all(rest[v:e], inValue) {
			return 0, errCharacter
		}
		f.PutLine(head.Field{Line: uint32(pos), NameEnd: uint32(pos + i), Val: uint32(pos + v), ValEnd: uint32(pos + e),
			End: uint32(pos + nl + 1), ID: head.IDOf(rest[:i])})
		pos += nl + 1
	}
}

// trim returns the bounds of the value in b[v:e] without blanks around it.
func trim(b []byte, v, e int) (int, int) {
	for v < e && (b[v] == ' ' || b[v] == '\t') {
		v++
	}
	for e > v && (b[e-1] == ' ' || b[e-1] == '\t') {
		e--
	}
	return v, e
}

// Framing is how the body of a response ends.
type Framing uint8

// The framings.
const (
	None       Framing = iota // no body, whatever is announced
	Length                    // after Response.Body bytes
	Chunked                   // as the chunked coding says
	UntilClose                // with the connection
)

// ParseResponse is ParseRequest for the head of a response; toHead says that it answers a HEAD. r.Body is what is announced, also
// where the framing is None.
func ParseResponse(b []byte, r *head.Response, toHead bool, limits Limits) (int, Framing, error) {
	limits = limits.withDefaults()
	eol := bytes.IndexByte(b, '\n')
	if eol < 0 {
		return 0, None, incomplete(b, limits)
	}
	r.Reset(b)
	l := b[:eol]
	if len(l) < 13 || l[eol-1] != '\r' || string(l[:7]) != "HTTP/1." || !digit(l[7]) || l[8] != ' ' {
		return 0, None, errStatusLine
	}
	for _, c := range l[9:12] {
		if !digit(c) {
			return 0, None, errStatusLine
		}
		r.Status = r.Status*10 + int(c-'0')
	}
	if r.Status < 100 || l[12] != ' ' && l[12] != '\r' || !all(l[12:eol-1], inValue) {
		return 0, None, errStatusLine
	}
	r.Major, r.Minor = 1, l[7]-'0'
	n, err := parseFields(b, eol+1, &r.Fields, limits)
	if err != nil {
		return 0, None, err
	}
	framing, err := responseFields(r, toHead)
	return n, framing, err
}
