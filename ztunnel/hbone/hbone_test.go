package hbone

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"hash/crc32"
	"io"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/undermesh/undermesh/ztunnel/clock"
)

func testConfig() Config { return Config{Clock: clock.System()} }

// tcpPair returns two ends of a loopback connection.
func tcpPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	d, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); d.Close() })
	return c.(*net.TCPConn), d.(*net.TCPConn)
}

var testTLS = sync.OnceValue(func() *tls.Config {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: []string{"test"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		panic(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}},
		RootCAs:      pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, ServerName: "test",
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, DynamicRecordSizingDisabled: true,
	}
})

// tlsPair returns the two ends of a mutual TLS connection over loopback TCP, with Transports under both.
func tlsPair(t testing.TB) (client, server *tls.Conn) {
	t.Helper()
	a, b := tcpPair(t)
	client, server = tls.Client(NewTransport(a), testTLS()), tls.Server(NewTransport(b), testTLS())
	errs := make(chan error, 1)
	go func() { errs <- server.Handshake() }()
	if err := client.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
	return client, server
}

// startPair runs a client and a server on two ends; both end with the test.
func startPair(t testing.TB, a, b net.Conn, ccfg, scfg Config, h Handler) *Client {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, b, scfg, h) }()
	cl := NewClient(a, ccfg)
	t.Cleanup(func() {
		cl.Close()
		cancel()
		<-served
	})
	return cl
}

// echoHandler accepts and echoes until EOF.
func echoHandler(_ context.Context, r *ServerRequest) {
	s, err := r.Accept(nil)
	if err != nil {
		return
	}
	_, _ = io.Copy(s, struct{ io.Reader }{s})
	_ = s.CloseWrite()
}

func TestConnectEcho(t *testing.T) {
	for _, kind := range []string{"pipe", "tls"} {
		t.Run(kind, func(t *testing.T) {
			var a, b net.Conn
			if kind == "pipe" {
				a, b = net.Pipe()
			} else {
				a, b = tlsPair(t)
			}
			hdr := Header{{"baggage", "k8s.namespace.name=foo"}, {"forwarded", "for=\"10.0.0.1:5\""}}
			cl := startPair(t, a, b, testConfig(), testConfig(), func(ctx context.Context, r *ServerRequest) {
				if r.Authority != "10.0.0.7:80" || r.Header.Get("baggage") != hdr[0].Value || len(r.Header) != 2 {
					t.Errorf("server got %q %v", r.Authority, r.Header)
				}
				if kind == "tls" && len(r.Peer.PeerCertificates) != 1 {
					t.Errorf("server sees %d peer certificates", len(r.Peer.PeerCertificates))
				}
				echoHandler(ctx, r)
			})
			s, err := cl.Connect(t.Context(), Request{Authority: "10.0.0.7:80", Header: hdr, First: []byte("hello ")})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Write([]byte("world")); err != nil {
				t.Fatal(err)
			}
			if err := s.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(s)
			if err != nil || string(got) != "hello world" {
				t.Fatalf("read %q, %v", got, err)
			}
			if n := cl.Streams(); n != 0 {
				t.Errorf("%d streams are open after both half-closes", n)
			}
		})
	}
}

// TestBulkRelay sends several MiB each way on 32 streams at once, through Relay on both sides, with half-close.
func TestBulkRelay(t *testing.T) {
	ca, cb := tlsPair(t)
	cl := startPair(t, ca, cb, testConfig(), testConfig(), func(ctx context.Context, r *ServerRequest) {
		up, far := tcpPair(t)
		go func() { // the upstream echoes the length-independent stream back
			_, _ = io.Copy(far, far)
			_ = far.CloseWrite()
		}()
		s, err := r.Accept(nil)
		if err != nil {
			t.Error(err)
			return
		}
		if _, err := Relay(ctx, s, up); err != nil {
			t.Error(err)
		}
	})
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() { bulkOne(t, cl, uint64(i), 3<<20+i*1001) })
	}
	wg.Wait()
}

func bulkOne(t *testing.T, cl *Client, seed uint64, size int) {
	s, err := cl.Connect(t.Context(), Request{Authority: "10.0.0.7:80"})
	if err != nil {
		t.Error(err)
		return
	}
	app, near := tcpPair(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		st, err := Relay(t.Context(), s, near)
		if err != nil || st.Sent != uint64(size) || st.Received != uint64(size) {
			t.Errorf("relay: %+v, %v; want %d bytes each way", st, err, size)
		}
	})
	data := make([]byte, size)
	src := mrand.NewChaCha8([32]byte{byte(seed)})
	_, _ = src.Read(data)
	wg.Go(func() {
		if _, err := io.Copy(app, bytes.NewReader(data)); err != nil {
			t.Error(err)
		}
		_ = app.CloseWrite()
	})
	h := crc32.NewIEEE()
	if n, err := io.Copy(h, app); err != nil || n != int64(size) || h.Sum32() != crc32.ChecksumIEEE(data) {
		t.Errorf("stream %d: got %d of %d bytes, crc equal %v, %v", seed, n, size, h.Sum32() == crc32.ChecksumIEEE(data), err)
	}
	wg.Wait()
}
