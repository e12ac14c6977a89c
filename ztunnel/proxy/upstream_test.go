package proxy

import (
	"crypto/tls"
	"net"
	"testing"
	"time"

	"github.com/undermesh/undermesh/ztunnel/hbone"
)

// TestUpstreamTLSTellsItsEnd: a connection of TLS to a server says when the server has closed it, before a request is written to it.
func TestUpstreamTLSTellsItsEnd(t *testing.T) {
	ca := newTestCA(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	closing := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		server := tls.Server(c, &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{ca.root.Raw}, PrivateKey: ca.key}}})
		err = server.Handshake()
		<-closing
		done <- err
		_ = server.Close()
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	tc := tls.Client(hbone.NewTransport(raw), &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // of this test
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	conn, ok := metered(tc).conn(func() {}).(interface {
		net.Conn
		Quiet() bool
	})
	if !ok {
		t.Fatal("the connection does not tell")
	}
	defer conn.Close()
	if !conn.Quiet() {
		t.Error("an idle connection is not quiet")
	}
	close(closing)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(5 * time.Second); conn.Quiet(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("the end is not told")
		}
	}
}
