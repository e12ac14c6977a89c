package identity

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/test/bufconn"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/reason"
)

// outcome of one handshake over an in-memory connection, with one byte sent each way to be sure that both sides finished.
type outcome struct {
	client, server        error
	clientState, srvState tls.ConnectionState
}

func handshake(t *testing.T, client, server *tls.Config) (o outcome) {
	t.Helper()
	l := bufconn.Listen(64 << 10)
	defer l.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, _ := l.Accept()
		accepted <- c
	}()
	a, err := l.Dial()
	must(t, err)
	b := <-accepted
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer b.Close()
		s := tls.Server(b, server)
		if o.server = s.HandshakeContext(ctx); o.server == nil {
			_, o.server = s.Write([]byte("s"))
		}
		o.srvState = s.ConnectionState()
	}()
	c := tls.Client(a, client)
	if o.client = c.HandshakeContext(ctx); o.client == nil {
		_, o.client = c.Read(make([]byte, 1))
	}
	o.clientState = c.ConnectionState()
	a.Close()
	<-done
	return o
}

// leafFor is a certificate outside of any Manager, for peers that misbehave.
func leafFor(t *testing.T, ca *fakeCA, uris ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	var names []*url.URL
	for _, s := range uris {
		u, err := url.Parse(s)
		must(t, err)
		names = append(names, u)
	}
	block, _ := pem.Decode(ca.sign(key.Public(), names))
	return tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: key}
}

func rawClient(certs ...tls.Certificate) *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, Certificates: certs}
}

func TestMutualHandshake(t *testing.T) {
	ca := newFakeCA(t, "one")
	m, _ := start(t, ca, bundle(ca), nil)
	var hello *tls.ClientHelloInfo
	server := m.ServerTLS(bob)
	server.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) { hello = h; return nil, nil }
	for range 2 { // the second shows that nothing is resumed
		client, err := m.ClientTLS(t.Context(), alice, []api.Identity{alice, bob})
		must(t, err)
		client.ClientSessionCache = tls.NewLRUClientSessionCache(4)
		o := handshake(t, client, server)
		if o.client != nil || o.server != nil {
			t.Fatalf("client %v, server %v", o.client, o.server)
		}
		if got, err := PeerIdentity(o.srvState); err != nil || got != alice {
			t.Errorf("server sees %v, %v", got, err)
		}
		if got, err := PeerIdentity(o.clientState); err != nil || got != bob {
			t.Errorf("client sees %v, %v", got, err)
		}
		s := o.srvState
		if s.Version != tls.VersionTLS13 || s.NegotiatedProtocol != "h2" || s.DidResume || hello.ServerName != "" {
			t.Errorf("version %x, protocol %q, resumed %v, server name %q", s.Version, s.NegotiatedProtocol, s.DidResume, hello.ServerName)
		}
		if !slices.Contains([]uint16{tls.TLS_AES_128_GCM_SHA256, tls.TLS_AES_256_GCM_SHA384, tls.TLS_CHACHA20_POLY1305_SHA256}, s.CipherSuite) {
			t.Errorf("suite %s", tls.CipherSuiteName(s.CipherSuite))
		}
	}
}

func TestServerRefusesClients(t *testing.T) {
	ca, foreign := newFakeCA(t, "one"), newFakeCA(t, "foreign")
	m, _ := start(t, ca, bundle(ca), nil)
	expired := newFakeCA(t, "x")
	expired.key, expired.root = ca.key, ca.root
	expired.alter = func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	}
	serverOnly := newFakeCA(t, "x")
	serverOnly.key, serverOnly.root = ca.key, ca.root
	serverOnly.alter = func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }
	good := leafFor(t, ca, alice.String())
	noALPN := rawClient(good)
	noALPN.NextProtos = nil
	old := rawClient(good)
	old.MaxVersion = tls.VersionTLS12
	for name, c := range map[string]struct {
		client *tls.Config
		cause  string
		want   error
		why    reason.Reason
	}{
		"no certificate":  {rawClient(), "no_certificate", nil, reason.TLSHandshake},
		"foreign root":    {rawClient(leafFor(t, foreign, alice.String())), "untrusted_root", ErrPeerUntrusted, reason.TLSHandshake},
		"expired":         {rawClient(leafFor(t, expired, alice.String())), "expired", ErrPeerExpired, reason.TLSHandshake},
		"server use only": {rawClient(leafFor(t, serverOnly, alice.String())), "untrusted_root", ErrPeerUntrusted, reason.TLSHandshake},
		"no name":         {rawClient(leafFor(t, ca)), "no_spiffe_name", ErrPeerName, reason.PeerIdentity},
		"two names":       {rawClient(leafFor(t, ca, alice.String(), bob.String())), "no_spiffe_name", ErrPeerName, reason.PeerIdentity},
		"not a workload":  {rawClient(leafFor(t, ca, "https://cluster.local/ns/foo/sa/alice")), "no_spiffe_name", ErrPeerName, reason.PeerIdentity},
		"foreign domain":  {rawClient(leafFor(t, ca, "spiffe://evil.example/ns/foo/sa/alice")), "foreign_trust_domain", ErrPeerTrustDomain, reason.PeerIdentity},
		"no protocol":     {noALPN, "protocol", ErrPeerProtocol, reason.TLSHandshake},
		"TLS 1.2":         {old, "other", nil, reason.TLSHandshake},
	} {
		t.Run(name, func(t *testing.T) {
			o := handshake(t, c.client, m.ServerTLS(bob))
			if o.server == nil || o.client == nil {
				t.Fatalf("accepted: client %v, server %v", o.client, o.server)
			}
			if c.want != nil && !errors.Is(o.server, c.want) {
				t.Errorf("error is %v, want %v", o.server, c.want)
			}
			if Cause(o.server) != c.cause || ReasonOf(o.server) != c.why {
				t.Errorf("cause %s, reason %s, of %v", Cause(o.server), ReasonOf(o.server), o.server)
			}
		})
	}
	t.Run("an alias is accepted", func(t *testing.T) {
		if o := handshake(t, rawClient(leafFor(t, ca, "spiffe://old.local/ns/foo/sa/alice")), m.ServerTLS(bob)); o.server != nil {
			t.Error(o.server)
		}
	})
	t.Run("nobody is accepted before the mesh is known", func(t *testing.T) {
		m, _ := start(t, ca, bundle(ca), func(c *Config) { c.Trust = func() Trust { return Trust{} } })
		if o := handshake(t, rawClient(good), m.ServerTLS(bob)); !errors.Is(o.server, ErrPeerTrustDomain) {
			t.Error(o.server)
		}
	})
}

func TestClientRefusesServers(t *testing.T) {
	ca, foreign := newFakeCA(t, "one"), newFakeCA(t, "foreign")
	expired := newFakeCA(t, "x")
	expired.key, expired.root = ca.key, ca.root
	expired.alter = func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	}
	m, _ := start(t, ca, bundle(ca), nil)
	for name, c := range map[string]struct {
		cert  tls.Certificate
		cause string
		want  error
	}{
		"another identity": {leafFor(t, ca, alice.String()), "unexpected_identity", ErrPeerUnexpected},
		"foreign root":     {leafFor(t, foreign, bob.String()), "untrusted_root", ErrPeerUntrusted},
		"expired":          {leafFor(t, expired, bob.String()), "expired", ErrPeerExpired},
		"no name":          {leafFor(t, ca), "no_spiffe_name", ErrPeerName},
		"two names":        {leafFor(t, ca, bob.String(), alice.String()), "no_spiffe_name", ErrPeerName},
	} {
		t.Run(name, func(t *testing.T) {
			client, err := m.ClientTLS(t.Context(), alice, []api.Identity{bob})
			must(t, err)
			server := &tls.Config{Certificates: []tls.Certificate{c.cert}, NextProtos: []string{"h2"}, ClientAuth: tls.RequestClientCert}
			o := handshake(t, client, server)
			if !errors.Is(o.client, c.want) || Cause(o.client) != c.cause {
				t.Errorf("error is %v, want %v", o.client, c.want)
			}
			if o.clientState.HandshakeComplete {
				t.Error("the handshake counts as complete")
			}
		})
	}
	if _, err := m.ClientTLS(t.Context(), alice, nil); !errors.Is(err, ErrPeerUnexpected) {
		t.Errorf("without expectation: %v", err)
	}
	if _, err := m.ClientTLS(t.Context(), alice, []api.Identity{{}}); !errors.Is(err, ErrPeerUnexpected) {
		t.Errorf("with the zero identity expected: %v", err)
	}
}

// A server without a certificate of its own answers nobody.
func TestServerWithoutIdentityRefuses(t *testing.T) {
	ca := newFakeCA(t, "one")
	good := leafFor(t, ca, alice.String())
	ca.setFail(errors.New("no"))
	m, _ := start(t, ca, bundle(ca), func(c *Config) { c.FirstWait = 50 * time.Millisecond })
	o := handshake(t, rawClient(good), m.ServerTLS(bob))
	if !errors.Is(o.server, ErrNoIdentity) || o.client == nil {
		t.Errorf("server %v, client %v", o.server, o.client)
	}
}

func TestListingHoldsNoKey(t *testing.T) {
	ca := newFakeCA(t, "one")
	m, _ := start(t, ca, bundle(ca), nil)
	_, err := m.Certificate(t.Context(), alice)
	must(t, err)
	l := m.Certificates()
	if len(l) != 1 || l[0].State != StateAvailable || len(l[0].CertChain) != 1 || len(l[0].RootCerts) != 1 {
		t.Fatalf("listing is %+v", l)
	}
	if text := string(l[0].CertChain[0].PEM); strings.Contains(text, "PRIVATE") || !strings.Contains(text, "CERTIFICATE") {
		t.Errorf("chain is %s", text)
	}
}

func TestRootsKeepWhatTheyKnew(t *testing.T) {
	ca := newFakeCA(t, "one")
	file := bundle(ca)
	r := NewRoots(file.read)
	if len(r.Pool().Subjects()) != 0 { //nolint:staticcheck // a pool of ours, not the system's
		t.Error("something is trusted before the first read")
	}
	must(t, r.Reload())
	leaf := leafFor(t, ca, alice.String())
	for name, data := range map[string][]byte{
		"garbage": []byte("garbage"), "empty": {}, "a leaf": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Certificate[0]}),
		"a key": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte{1}}), "half": ca.pem()[:100],
	} {
		file.set(data)
		if err := r.Reload(); err == nil {
			t.Errorf("%s was accepted", name)
		}
		if len(r.List()) != 1 || r.Generation() != 1 {
			t.Errorf("%s changed the roots", name)
		}
	}
	file.set(ca.pem(), []byte("\n\n"))
	must(t, r.Reload())
}

func FuzzParsePEM(f *testing.F) {
	ca := newFakeCA(&testing.T{}, "one")
	f.Add(ca.pem())
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		all, err := parsePEM(data)
		if (err == nil) == (len(all) == 0) {
			t.Errorf("%d certificates with error %v", len(all), err)
		}
		for _, c := range all {
			if !bytes.Contains(data, []byte("BEGIN CERTIFICATE")) {
				t.Error("a certificate out of nothing")
			}
			_, _ = leafIdentity(c)
		}
	})
}
