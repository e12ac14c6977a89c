package hbone

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// becomes waits until the connection is quiet or not.
func becomes(t *testing.T, tr *Transport, tc *tls.Conn, want bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(5 * time.Second); tr.Quiet(tc) != want; <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("the connection does not become quiet=%v", want)
		}
	}
}

// TestTransportQuiet: a connection of TLS that is idle tells whether its peer has ended it or said something, whatever became of
// the bytes below the records: session tickets are not mistaken for an answer, and an end that came along with the last answer is seen.
func TestTransportQuiet(t *testing.T) {
	for name, versions := range map[string][2]uint16{"1.2": {tls.VersionTLS12, tls.VersionTLS12}, "1.3": {tls.VersionTLS13, tls.VersionTLS13}} {
		for _, end := range []string{"close", "alert only", "reset", "bytes"} {
			t.Run(name+" "+end, func(t *testing.T) {
				near, far := tcpPair(t)
				cfg := testTLS().Clone()
				cfg.MinVersion, cfg.MaxVersion = versions[0], versions[1]
				server := tls.Server(far, cfg)
				done := make(chan error, 1)
				go func() { done <- server.Handshake() }()
				tr := NewTransport(near)
				tc := tls.Client(tr, cfg)
				if err := tc.Handshake(); err != nil {
					t.Fatal(err)
				}
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				in := bufio.NewReader(tc)
				for range 3 {
					ask(t, tc, in, server)
					becomes(t, tr, tc, true)
				}
				var err error
				switch end {
				case "close":
					err = server.Close()
				case "alert only":
					err = server.CloseWrite()
				case "reset":
					_ = far.SetLinger(0)
					err = far.Close()
				case "bytes":
					_, err = server.Write([]byte("HTTP/1.1 408 Request Timeout\r\n\r\n"))
				}
				if err != nil {
					t.Fatal(err)
				}
				becomes(t, tr, tc, false)
				_ = tc.Close()
			})
		}
	}
}

// ask has one byte go there and an answer come back.
func ask(t *testing.T, tc *tls.Conn, in *bufio.Reader, server *tls.Conn) {
	t.Helper()
	if _, err := tc.Write([]byte("?")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(server, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(server, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "ok" {
		t.Fatalf("%q, %v", b, err)
	}
}

// TestTransportQuietOverOthers: on what is no socket the connection below is asked.
func TestTransportQuietOverOthers(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	server := tls.Server(far, testTLS())
	done := make(chan error, 1)
	go func() { done <- server.Handshake() }()
	below := &telling{Conn: near, quiet: true}
	tr := NewTransport(below)
	tc := tls.Client(tr, testTLS())
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if !tr.Quiet(tc) {
		t.Error("nothing was said")
	}
	_ = far.Close()
	below.quiet = false
	if tr.Quiet(tc) {
		t.Error("the connection below has ended")
	}
	_ = near.Close()
}

type telling struct {
	net.Conn
	quiet bool
}

func (c *telling) Quiet() bool { return c.quiet }
