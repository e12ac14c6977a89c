package preamble

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// line is the text of version 1: no leading zeros, one space between the words.
var line = regexp.MustCompile(`^PROXY (TCP4|TCP6) ([0-9a-f.:]{2,39}) ([0-9a-f.:]{2,39}) (0|[1-9]\d{0,4}) (0|[1-9]\d{0,4})\r\n`)

// parse reads a header as a strict server does, and returns what follows it. It was written by the protocol's text alone.
func parse(b []byte) (src, dst netip.AddrPort, rest []byte, err error) {
	if len(b) > 16 && string(b[:12]) == "\x0D\x0A\x0D\x0A\x00\x0D\x0A\x51\x55\x49\x54\x0A" {
		return parseBinary(b)
	}
	m := line.FindSubmatch(b[:min(len(b), 107)])
	if m == nil {
		return src, dst, nil, errors.New("neither signature nor line")
	}
	at := func(addr, port []byte) (out netip.AddrPort) {
		a, aerr := netip.ParseAddr(string(addr))
		p, perr := strconv.ParseUint(string(port), 10, 16)
		if is4 := string(m[1]) == "TCP4"; aerr != nil || perr != nil || a.Is4() != is4 {
			err = errors.Join(aerr, perr, fmt.Errorf("%s is no address of %s", addr, m[1]))
		}
		return netip.AddrPortFrom(a, uint16(p))
	}
	src, dst = at(m[2], m[4]), at(m[3], m[5])
	return src, dst, b[len(m[0]):], err
}

func parseBinary(b []byte) (src, dst netip.AddrPort, rest []byte, err error) {
	size := map[byte]int{0x11: 4, 0x21: 16}[b[13]]
	length := int(b[14])<<8 | int(b[15])
	if b[12] != 0x21 || size == 0 || length != 2*size+4 || len(b) < 16+length {
		return src, dst, nil, fmt.Errorf("header % x", b[:16])
	}
	b, rest = b[16:16+length], b[16+length:]
	from, _ := netip.AddrFromSlice(b[:size])
	to, _ := netip.AddrFromSlice(b[size : 2*size])
	return netip.AddrPortFrom(from, binary.BigEndian.Uint16(b[2*size:])), netip.AddrPortFrom(to, binary.BigEndian.Uint16(b[2*size+2:])), rest, nil
}

func TestHeader(t *testing.T) {
	for _, tc := range []struct{ src, dst, wantSrc, wantDst string }{
		{"10.0.0.1:33333", "192.0.2.1:80", "10.0.0.1:33333", "192.0.2.1:80"},
		{"[::ffff:10.0.0.1]:1", "192.0.2.1:65535", "10.0.0.1:1", "192.0.2.1:65535"},
		{"[2001:db8::1]:33333", "[2001:db8:1:2:3:4:5:6]:443", "[2001:db8::1]:33333", "[2001:db8:1:2:3:4:5:6]:443"},
		{"[fe80::1%eth0]:1", "[fe80::2]:2", "[fe80::1]:1", "[fe80::2]:2"},
		{"10.0.0.1:33333", "[2001:db8::1]:443", "[::ffff:10.0.0.1]:33333", "[2001:db8::1]:443"},
	} {
		for _, version := range []uint32{V1, V2} {
			b, err := Header(version, netip.MustParseAddrPort(tc.src), netip.MustParseAddrPort(tc.dst))
			if err != nil {
				t.Fatal(err)
			}
			src, dst, rest, err := parse(append(b, "hello"...))
			if err != nil || src != netip.MustParseAddrPort(tc.wantSrc) || dst != netip.MustParseAddrPort(tc.wantDst) || string(rest) != "hello" {
				t.Errorf("version %d from %s to %s: %q is %s, %s, %q, %v", version, tc.src, tc.dst, b, src, dst, rest, err)
			}
		}
	}
	good := netip.MustParseAddrPort("10.0.0.1:1")
	for version, src := range map[uint32]netip.AddrPort{0: good, 3: good, V1: {}, V2: {}} {
		if b, err := Header(version, src, good); err == nil {
			t.Errorf("version %d from %s: %q", version, src, b)
		}
	}
}

// proxied answers a CONNECT with the text, and returns what Connect makes of it, what the proxy read and what the client reads then.
func proxied(t *testing.T, host string, port uint16, answer string) (asked, rest string, err error) {
	t.Helper()
	near, far := net.Pipe()
	defer near.Close()
	done := make(chan string, 1)
	go func() {
		defer far.Close()
		b := make([]byte, 4096)
		n, _ := far.Read(b)
		done <- string(b[:n])
		_, _ = io.WriteString(far, answer)
	}()
	c, err := Connect(near, Target{Host: host, Port: port})
	var b []byte
	if err == nil {
		b, err = io.ReadAll(c)
	}
	_ = near.Close()
	return <-done, string(b), err
}

func TestConnect(t *testing.T) {
	for _, tc := range []struct{ name, host, answer, asked, rest, err string }{
		{name: "200", answer: "HTTP/1.1 200 OK\r\n\r\n"},
		{name: "of another 2xx, HTTP/1.0, with a length that counts for nothing", answer: "HTTP/1.0 299 Fine\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n220 smtp\r\n", rest: "220 smtp\r\n"},
		{name: "after a 1xx", answer: "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n\x00", rest: "\x00"},
		{name: "of IPv6", host: "2001:db8::1", asked: "CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n\r\n", answer: "HTTP/1.1 200 OK\r\n\r\n"},
		{name: "403", answer: "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", err: `it answers "403 Forbidden"`},
		{name: "407", answer: "HTTP/1.1 407 Who are you\r\nConnection: close\r\n\r\nsay", err: `it answers "407 Who are you"`},
		{name: "101", answer: "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", err: "101"},
		{name: "HTTP/2", answer: "HTTP/2.0 200 OK\r\n\r\n", err: "HTTP/2.0"},
		{name: "1xx for ever", answer: strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 9), err: "without an end"},
		{name: "too much", answer: "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("x", maxAnswer) + "\r\n\r\n", err: "read its answer"},
		{name: "nothing", err: "read its answer: unexpected EOF"},
		{name: "something else", answer: "SSH-2.0-OpenSSH\r\n", err: "malformed"},
		{name: "a host that is none", host: "a b", err: "is not a host and a port"},
		{name: "a second request in the host", host: "a:1 HTTP/1.1\r\nX: y\r\n\r\n", err: "is not a host and a port"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			host, want := tc.host, tc.asked
			if host == "" {
				host, want = "www.wikipedia.org", "CONNECT www.wikipedia.org:443 HTTP/1.1\r\nHost: www.wikipedia.org:443\r\n\r\n"
			}
			if strings.Contains(tc.err, "host and a port") {
				want = ""
			}
			asked, rest, err := proxied(t, host, 443, tc.answer)
			if tc.err == "" && (err != nil || rest != tc.rest) || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
				t.Errorf("got %q, %v", rest, err)
			}
			if asked != want {
				t.Errorf("the proxy read %q, want %q", asked, want)
			}
		})
	}
}

// heard is a connection whose other side says a text and hears nothing.
type heard struct {
	net.Conn
	io.Reader
}

func (h heard) Read(p []byte) (int, error) { return h.Reader.Read(p) }

// FuzzAnswer: whatever a proxy answers, its head is bounded, and nothing of what follows a good one is lost.
func FuzzAnswer(f *testing.F) {
	f.Add("HTTP/1.1 200 OK\r\n\r\nrest")
	f.Add("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 204 None\r\nA: b\r\n\r\n")
	f.Add("HTTP/1.1 407 No\r\nContent-Length: 3\r\n\r\nabc")
	f.Add("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
	f.Fuzz(func(t *testing.T, answer string) {
		if c, err := readAnswer(heard{Reader: strings.NewReader(answer)}); err == nil {
			b, _ := io.ReadAll(c)
			if all := string(b); !strings.HasSuffix(answer, all) || !strings.Contains(answer[:len(answer)-len(all)], "HTTP/1.") {
				t.Errorf("%q: %q is left", answer, all)
			}
		}
		if c, err := readPosted(heard{Reader: strings.NewReader(answer)}); err == nil {
			if b, _ := io.ReadAll(c); len(b) > len(answer) {
				t.Errorf("%q: a body of %q", answer, b)
			}
		}
	})
}
