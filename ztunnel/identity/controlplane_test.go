package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	securityv1 "istio.io/api/security/v1alpha1"

	"github.com/undermesh/undermesh/ztunnel/clock"
)

// caService answers with a fakeCA and keeps what it was sent.
type caService struct {
	securityv1.UnimplementedIstioCertificateServiceServer
	ca *fakeCA

	mu       sync.Mutex
	request  *securityv1.IstioCertificateRequest
	metadata metadata.MD
}

func (s *caService) CreateCertificate(ctx context.Context, r *securityv1.IstioCertificateRequest) (*securityv1.IstioCertificateResponse, error) {
	s.mu.Lock()
	s.request = r
	s.metadata, _ = metadata.FromIncomingContext(ctx)
	s.mu.Unlock()
	chain, err := s.ca.Issue(ctx, Request{CSR: []byte(r.GetCsr())})
	if err != nil {
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	return &securityv1.IstioCertificateResponse{CertChain: chain}, nil
}

// serveCA serves the CA over TLS with a certificate of its own root for the DNS name.
func serveCA(t *testing.T, ca *fakeCA, name string) (*caService, func(context.Context, string) (net.Conn, error)) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(9), DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.root, key.Public(), ca.key)
	must(t, err)
	s := &caService{ca: ca}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})))
	securityv1.RegisterIstioCertificateServiceServer(server, s)
	l := bufconn.Listen(64 << 10)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	return s, func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }
}

func connect(t *testing.T, p ControlPlane) *grpc.ClientConn {
	t.Helper()
	p.Addr, p.ClusterID, p.Clock = "istiod.istio-system.svc:15012", "Kubernetes", clock.System()
	conn, err := p.Connect()
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestCertificateOverTheRealProtocol(t *testing.T) {
	ca := newFakeCA(t, "one")
	service, dial := serveCA(t, ca, "istiod.istio-system.svc")
	file := bundle(ca)
	roots := NewRoots(file.read)
	token := "first\n"
	var mu sync.Mutex
	conn := connect(t, ControlPlane{Roots: roots, Dial: dial, Token: func() (string, error) {
		mu.Lock()
		defer mu.Unlock()
		return token, nil
	}})
	m, _ := start(t, NewCAClient(conn), file, func(c *Config) { c.Roots = roots; c.TTL = func() time.Duration { return time.Hour } })
	cert, err := m.Certificate(t.Context(), alice)
	must(t, err)
	if got, _ := leafIdentity(cert.Leaf); got != alice {
		t.Errorf("certificate of %v", got)
	}
	if v := service.request.GetMetadata().GetFields()["ImpersonatedIdentity"].GetStringValue(); v != alice.String() {
		t.Errorf("impersonated %q", v)
	}
	if service.request.GetValidityDuration() != 3600 || strings.Contains(service.request.GetCsr(), "PRIVATE") {
		t.Errorf("request is %v", service.request)
	}
	if got := service.metadata.Get("authorization"); len(got) != 1 || got[0] != "Bearer first" {
		t.Errorf("authorization %v", got)
	}
	if got := service.metadata.Get("clusterid"); len(got) != 1 || got[0] != "Kubernetes" {
		t.Errorf("clusterid %v", got)
	}
	// A token that the kubelet replaced counts for the next call.
	mu.Lock()
	token = "second"
	mu.Unlock()
	_, err = m.Certificate(t.Context(), bob)
	must(t, err)
	if got := service.metadata.Get("authorization"); got[0] != "Bearer second" {
		t.Errorf("authorization %v", got)
	}
}

func TestControlPlaneMustProveItself(t *testing.T) {
	ca, foreign := newFakeCA(t, "one"), newFakeCA(t, "foreign")
	token := func() (string, error) { return "secret", nil }
	for name, c := range map[string]struct {
		served *fakeCA
		dns    string
		file   *rootFile
		token  func() (string, error)
		want   string
	}{
		"foreign root": {foreign, "istiod.istio-system.svc", bundle(ca), token, "unknown authority"},
		"another name": {ca, "istiod.other.svc", bundle(ca), token, "istiod.other.svc"},
		"no root file": {ca, "istiod.istio-system.svc", &rootFile{}, token, "no such file"},
		"no token":     {ca, "istiod.istio-system.svc", bundle(ca), func() (string, error) { return "", errors.New("gone") }, "read token: gone"},
		"empty token":  {ca, "istiod.istio-system.svc", bundle(ca), func() (string, error) { return " \n", nil }, "it is empty"},
	} {
		t.Run(name, func(t *testing.T) {
			service, dial := serveCA(t, c.served, c.dns)
			conn := connect(t, ControlPlane{Roots: NewRoots(c.file.read), Dial: dial, Token: c.token})
			_, csr, err := newRequest(alice)
			must(t, err)
			_, err = NewCAClient(conn).Issue(t.Context(), Request{Identity: alice, CSR: csr, TTL: time.Hour})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %v, want %q", err, c.want)
			}
			if service.request != nil {
				t.Error("the request, and with it the token, was sent")
			}
		})
	}
}

// A root file that is replaced counts at the next connection, without a restart.
func TestControlPlaneFollowsTheRootFile(t *testing.T) {
	older, newer := newFakeCA(t, "older"), newFakeCA(t, "newer")
	_, dial := serveCA(t, newer, "istiod.istio-system.svc")
	file := bundle(older)
	conn := connect(t, ControlPlane{Roots: NewRoots(file.read), Dial: dial, Token: func() (string, error) { return "t", nil }})
	_, csr, err := newRequest(alice)
	must(t, err)
	ask := func(opts ...grpc.CallOption) error {
		_, err := securityv1.NewIstioCertificateServiceClient(conn).CreateCertificate(t.Context(),
			&securityv1.IstioCertificateRequest{Csr: string(csr)}, opts...)
		return err
	}
	if err := ask(); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Fatalf("error is %v", err)
	}
	file.set(newer.pem())
	conn.ResetConnectBackoff()
	if err := ask(grpc.WaitForReady(true)); err != nil {
		t.Error(err)
	}
}

func TestConnectNamesWhatIsMissing(t *testing.T) {
	if _, err := (ControlPlane{}).Connect(); err == nil || !strings.Contains(err.Error(), "address") {
		t.Errorf("error is %v", err)
	}
	if _, err := (ControlPlane{Addr: "a:1"}).Connect(); err == nil || !strings.Contains(err.Error(), "Roots") {
		t.Errorf("error is %v", err)
	}
}

func TestKeyIsNotInTheRequest(t *testing.T) {
	key, csr, err := newRequest(alice)
	must(t, err)
	if !strings.HasPrefix(string(csr), "-----BEGIN CERTIFICATE REQUEST-----") || strings.Count(string(csr), "BEGIN") != 1 {
		t.Errorf("request is %s", csr)
	}
	block, _ := pem.Decode(csr)
	secret := key.D.Bytes() //nolint:staticcheck // the raw scalar is what must not be there
	if strings.Contains(string(block.Bytes), string(secret)) {
		t.Error("the key is in the request")
	}
}
