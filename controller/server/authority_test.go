package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/credentials"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/fake"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/ca"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// TestMT14VersionsAndSuites meets the controller's port with TLS of different kinds.
func TestMT14VersionsAndSuites(t *testing.T) {
	c, _ := startEmpty(t)
	addr := c.addr("xds")
	meet := func(version uint16, suites ...uint16) (tls.ConnectionState, error) {
		d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: version,
			CipherSuites: suites, NextProtos: []string{"h2"}}}
		conn, err := d.DialContext(t.Context(), "tcp", addr)
		if err != nil {
			return tls.ConnectionState{}, err
		}
		defer conn.Close()
		return conn.(*tls.Conn).ConnectionState(), nil
	}
	for _, v := range []uint16{tls.VersionTLS10, tls.VersionTLS11} {
		if _, err := meet(v); err == nil {
			t.Errorf("%s is accepted", tls.VersionName(v))
		}
	}
	if s, err := meet(tls.VersionTLS13); err != nil || s.Version != tls.VersionTLS13 {
		t.Errorf("TLS 1.3: %v", err)
	}
	ours := api.TLS12Suites()
	if len(ours) != 6 {
		t.Errorf("%d suites, the documents have six", len(ours))
	}
	for _, suite := range slices.Concat(tls.CipherSuites(), tls.InsecureCipherSuites()) {
		if !slices.Contains(suite.SupportedVersions, tls.VersionTLS12) {
			continue
		}
		// The certificate has an ECDSA key: of the documents' suites two are for it.
		want := slices.Contains(ours, suite.ID) && strings.Contains(suite.Name, "ECDSA")
		s, err := meet(tls.VersionTLS12, suite.ID)
		if want != (err == nil) || want && (s.CipherSuite != suite.ID || s.Version != tls.VersionTLS12) {
			t.Errorf("%s: %v, want it accepted: %v", suite.Name, err, want)
		}
	}
}

// TestServingCertificateIsOptionsOwn: what MT-14 meets is what options configures, whatever the listener.
func TestServingCertificateIsOptionsOwn(t *testing.T) {
	a := newAuthority(AuthorityConfig{Store: &vault{}, Authenticator: &ca.StaticTokens{}, ServingNames: []string{"istiod.istio-system.svc"}},
		Config{Clock: clock.System(), Log: slog.New(slog.DiscardHandler)}, func() string { return "cluster.local" }, nil)
	if err := a.sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	ours, theirs := net.Pipe()
	defer ours.Close()
	defer theirs.Close()
	roots, err := a.ca.RootPEM()
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	go func() {
		_, _, _ = credentials.NewTLS(a.tls(a.ca)).ServerHandshake(ours)
	}()
	client := tls.Client(theirs, &tls.Config{RootCAs: pool, ServerName: "istiod.istio-system.svc", NextProtos: []string{"h2"}})
	if err := client.HandshakeContext(t.Context()); err != nil {
		t.Error(err)
	}
}

// fickle is a PlugIn and a Store whose answers change.
type fickle struct {
	mu    sync.Mutex
	files map[string][]byte
	err   error
}

func (f *fickle) plugIn(context.Context) (map[string][]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.files, f.err
}

func (f *fickle) set(files map[string][]byte, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.files, f.err = files, err
}

// TestAuthorityKeepsUp: what is wrong with the stores is one line for as long as it lasts, and nothing stops.
func TestAuthorityKeepsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		plug, logs := &fickle{}, &lines{}
		plug.set(nil, errors.New("the API server is away"))
		a := newAuthority(AuthorityConfig{Store: &vault{}, PlugIn: plug.plugIn, Authenticator: &ca.StaticTokens{}},
			Config{Clock: clock.System(), Log: logs.logger()}, func() string { return "cluster.local" }, nil)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- a.run(ctx) }()
		time.Sleep(10 * time.Second)
		if a.loaded.Load() != nil || logs.count("what was good before stays in force") != 1 {
			t.Errorf("loaded %v, %d lines", a.loaded.Load() != nil, logs.count("what was good"))
		}
		if got := a.missing(); got != "the certificate authority is not loaded yet: read cacerts: the API server is away" {
			t.Errorf("not ready: %q", got)
		}
		plug.set(nil, nil)
		time.Sleep(2 * time.Second)
		if a.loaded.Load() == nil || logs.count("in order again") != 1 {
			t.Error("not loaded once the stores answer")
		}
		plug.set(map[string][]byte{ca.FileCACert: []byte("x")}, nil)
		time.Sleep(time.Minute)
		if n := logs.count("check cacerts: " + ca.FileCAKey + ": missing"); n != 1 {
			t.Errorf("%d lines on bad cacerts, want 1", n)
		}
		if _, err := a.ca.RootPEM(); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestMT21SecretIsBackWithinTenSeconds: deleted, it is made again; one of somebody else is not touched.
func TestMT21SecretIsBackWithinTenSeconds(t *testing.T) {
	client := fake.NewSimpleClientset(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "theirs"}, Type: corev1.SecretTypeOpaque,
		Data: map[string][]byte{"a": []byte("b")}})
	secrets := client.CoreV1().Secrets("istio-system")
	synctest.Test(t, func(t *testing.T) {
		logs := &lines{}
		a := newAuthority(AuthorityConfig{Store: &vault{}, Authenticator: &ca.StaticTokens{}, DNS: &ca.DNSConfig{Client: secrets, Namespace: "istio-system"}},
			Config{Clock: clock.System(), Log: logs.logger()}, func() string { return "cluster.local" }, nil)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		mesh := &model.Mesh{Config: &meshv1alpha1.MeshConfig{Certificates: []*meshv1alpha1.Certificate{
			{SecretName: "dns.example1-service-account", DnsNames: []string{"example1.istio-system.svc", "example1.istio-system"}},
			{SecretName: "theirs", DnsNames: []string{"a.b.svc"}},
		}}}
		running.Go(func() { _ = a.run(ctx) })
		running.Go(func() { _ = a.keepDNS(ctx, func() *model.Mesh { return mesh }) })
		names := func() string {
			s, err := secrets.Get(ctx, "dns.example1-service-account", metav1.GetOptions{})
			if err != nil {
				return err.Error()
			}
			c, err := tls.X509KeyPair(s.Data[ca.FileCertChain], s.Data[ca.FileKey])
			if err != nil {
				return err.Error()
			}
			return fmt.Sprint(c.Leaf.DNSNames)
		}
		const want = "[example1.istio-system.svc example1.istio-system]"
		for range 2 {
			time.Sleep(10 * time.Second)
			if got := names(); got != want {
				t.Errorf("after 10 s: %s", got)
			}
			if err := secrets.Delete(ctx, "dns.example1-service-account", metav1.DeleteOptions{}); err != nil {
				t.Error(err)
			}
		}
		if s, err := secrets.Get(ctx, "theirs", metav1.GetOptions{}); err != nil || len(s.Data) != 1 {
			t.Errorf("somebody else's Secret: %v", err)
		}
		if n := logs.count("secret istio-system/theirs: exists and is not ours"); n != 1 {
			t.Errorf("%d lines, want 1", n)
		}
		cancel()
		running.Wait()
	})
}

// lines is a log.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func (l *lines) count(part string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), part)
}
