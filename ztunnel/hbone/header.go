package hbone

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"golang.org/x/net/http2/hpack"

	"github.com/undermesh/undermesh/ztunnel/http/frame"
)

// HeaderField is one header: a lower-case name and its value.
type HeaderField struct{ Name, Value string }

// Header is an ordered list of headers without pseudo headers: baggage, forwarded, traceparent and the like.
type Header []HeaderField

// Get returns the first value of name (lower case), or "".
func (h Header) Get(name string) string {
	for _, f := range h {
		if f.Name == name {
			return f.Value
		}
	}
	return ""
}

// Values returns all values of name (lower case), in order.
func (h Header) Values(name string) []string {
	var out []string
	for _, f := range h {
		if f.Name == name {
			out = append(out, f.Value)
		}
	}
	return out
}

// Request is what a CONNECT carries.
type Request struct {
	// Authority is the target, "ip:port", "[ip6]:port" or "host:port".
	Authority string
	// Header travels with the CONNECT; names are lower case.
	Header Header
	// First, when not empty, leaves in the same flush as the CONNECT, before the peer answered. At most
	// MaxFirst bytes; a target that is refused has not seen them.
	First []byte
}

// MaxFirst is the largest Request.First in bytes: what every peer takes before its SETTINGS are known.
const MaxFirst = 16 << 10

func (r Request) validate() error {
	if err := checkAuthority(r.Authority); err != nil {
		return fmt.Errorf("check CONNECT authority %.200q: %w", r.Authority, err)
	}
	if len(r.First) > MaxFirst {
		return fmt.Errorf("check CONNECT to %s: First has %d bytes, at most %d may go early", r.Authority, len(r.First), MaxFirst)
	}
	return r.Header.validate()
}

func (h Header) validate() error {
	for _, f := range h {
		if strings.HasPrefix(f.Name, ":") || !validName(f.Name) {
			return fmt.Errorf("check header: %q is not a lower-case header name", f.Name)
		}
		if !validValue(f.Value) {
			return fmt.Errorf("check header %s: the value has a control character or outer space", f.Name)
		}
		if connectionHeader(f.Name) {
			return fmt.Errorf("check header: %s does not exist in HTTP/2", f.Name)
		}
	}
	return nil
}

// maxAuthority is the longest authority in bytes: a DNS name of 255 with a dot at its end, a colon and a port.
const maxAuthority = 256 + len(":65535")

var errAuthority = errors.New("want host:port with port 1 to 65535")

// checkAuthority takes printable ASCII only: authorities are logged. An address with a zone is none of another node's.
func checkAuthority(a string) error {
	if len(a) > maxAuthority {
		return errAuthority
	}
	for i := 0; i < len(a); i++ {
		if a[i] <= ' ' || a[i] >= 0x7f {
			return errAuthority
		}
	}
	host, port, err := net.SplitHostPort(a)
	if err != nil || host == "" || strings.ContainsAny(host, "/@?#%\\") {
		return errAuthority
	}
	if p, err := strconv.ParseUint(port, 10, 16); err != nil || p == 0 {
		return errAuthority
	}
	return nil
}

// validName accepts the lower-case tokens of RFC 9113 §8.2.1.
func validName(s string) bool {
	if s == "" {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0 {
			continue
		}
		return false
	}
	return true
}

func validValue(s string) bool {
	if s == "" {
		return true
	}
	if c := s[0]; c == ' ' || c == '\t' {
		return false
	}
	if c := s[len(s)-1]; c == ' ' || c == '\t' {
		return false
	}
	return strings.IndexFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) < 0
}

// connectionHeader tells the fields that RFC 9113 §8.2.2 forbids. TE is one of them in a CONNECT.
func connectionHeader(name string) bool {
	switch name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade", "te":
		return true
	}
	return false
}

// volatileHeader tells the fields that differ in each request: they stay out of the peer's compression table.
func volatileHeader(name string) bool {
	return name == "traceparent" || name == "tracestate" || name == "forwarded" || name == ":authority"
}

// block encodes and decodes the header blocks of one connection. The encoder belongs to the writer's lock, the
// decoder to the read loop.
type block struct {
	out bytes.Buffer
	enc *hpack.Encoder
	dec *hpack.Decoder
}

func newBlock() *block {
	b := &block{dec: hpack.NewDecoder(4096, nil)}
	b.enc = hpack.NewEncoder(&b.out)
	return b
}

// encode returns the compressed list; it is valid until the next call.
func (b *block) encode(pseudo []HeaderField, h Header) []byte {
	b.out.Reset()
	for _, l := range [2][]HeaderField{pseudo, h} {
		for _, f := range l {
			// bytes.Buffer does not return errors
			_ = b.enc.WriteField(hpack.HeaderField{Name: f.Name, Value: f.Value, Sensitive: volatileHeader(f.Name)})
		}
	}
	return b.out.Bytes()
}

// message is a decoded header list.
type message struct {
	method, authority, status string
	scheme, path, protocol    bool
	header                    Header
	// malformed says why the list is not a legal request or response; the compression state is intact.
	malformed string
	// tooLarge: the list exceeded the limit and was dropped.
	tooLarge bool
}

// decode reads a whole header block. The error is a connection error: the compression state is lost.
func (b *block) decode(p []byte, limit int) (*message, error) {
	m := &message{}
	size, regular := 0, false
	seen := map[string]bool{}
	b.dec.SetMaxStringLength(maxBlock(limit))
	b.dec.SetEmitFunc(func(f hpack.HeaderField) {
		size += int(f.Size())
		if size > limit {
			m.tooLarge, m.header = true, nil
			return
		}
		if !strings.HasPrefix(f.Name, ":") {
			regular = true
			m.addRegular(f)
			return
		}
		if regular || seen[f.Name] {
			m.malformed = fmt.Sprintf("pseudo header %.64q repeated or after a regular one", f.Name)
			return
		}
		seen[f.Name] = true
		m.addPseudo(f)
	})
	if _, err := b.dec.Write(p); err != nil {
		return nil, frame.Errorf(frame.CodeCompression, "decode header block: %v", err)
	}
	if err := b.dec.Close(); err != nil {
		return nil, frame.Errorf(frame.CodeCompression, "decode header block: %v", err)
	}
	return m, nil
}

func (m *message) addRegular(f hpack.HeaderField) {
	if !validName(f.Name) || !validValue(f.Value) || connectionHeader(f.Name) {
		m.malformed = fmt.Sprintf("header %.64q is not legal in HTTP/2", f.Name)
		return
	}
	m.header = append(m.header, HeaderField{f.Name, f.Value})
}

func (m *message) addPseudo(f hpack.HeaderField) {
	switch f.Name {
	case ":method":
		m.method = f.Value
	case ":authority":
		m.authority = f.Value
	case ":status":
		m.status = f.Value
	case ":scheme":
		m.scheme = true
	case ":path":
		m.path = true
	case ":protocol":
		m.protocol = true
	default:
		m.malformed = fmt.Sprintf("pseudo header %.64q is unknown", f.Name)
	}
}

// maxBlock is the number of compressed bytes of a header block that are taken, for a list limit: a block of that
// size is decoded and the request answered with 431; beyond it the connection ends.
func maxBlock(limit int) int { return 2*limit + 4096 }
