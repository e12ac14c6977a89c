package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	securityv1 "istio.io/api/security/v1alpha1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
)

// fakeController is a controller of one workload and a CA, over TLS on the loopback. It shares no code with ours.
type fakeController struct {
	securityv1.UnimplementedIstioCertificateServiceServer
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	t      *testing.T
	addr   string
	key    *ecdsa.PrivateKey
	root   *x509.Certificate
	serial atomic.Int64
	token  string
}

func startController(t *testing.T, dir string) *fakeController {
	t.Helper()
	c := &fakeController{t: t, token: "the-token"}
	c.key = newKey(t)
	now := time.Now()
	der := c.sign(&x509.Certificate{
		Subject: pkix.Name{Organization: []string{"cluster.local"}}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0), KeyUsage: x509.KeyUsageCertSign,
	}, c.key.Public())
	var err error
	c.root, err = x509.ParseCertificate(der)
	must(t, err)
	serving := newKey(t)
	cert := c.sign(&x509.Certificate{
		DNSNames: []string{"istiod.istio-system.svc"}, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, serving.Public())
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: serving}}})))
	securityv1.RegisterIstioCertificateServiceServer(s, c)
	discovery.RegisterAggregatedDiscoveryServiceServer(s, c)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	c.addr = l.Addr().String()
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		<-done
	})
	must(t, os.WriteFile(filepath.Join(dir, "root.pem"), pemOf(c.root.Raw), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "token"), []byte(c.token), 0o600))
	return c
}

func (c *fakeController) sign(tmpl *x509.Certificate, public any) []byte {
	tmpl.SerialNumber = big.NewInt(c.serial.Add(1))
	parent := c.root
	if parent == nil {
		parent = tmpl
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, public, c.key)
	must(c.t, err)
	return der
}

func (c *fakeController) admit(ctx context.Context) error {
	if md, _ := metadata.FromIncomingContext(ctx); len(md.Get("authorization")) != 1 || md.Get("authorization")[0] != "Bearer "+c.token {
		return errors.New("no token, or another")
	}
	return nil
}

// CreateCertificate signs whatever a caller with the token asks for.
func (c *fakeController) CreateCertificate(ctx context.Context, r *securityv1.IstioCertificateRequest) (*securityv1.IstioCertificateResponse, error) {
	if err := c.admit(ctx); err != nil {
		return nil, err
	}
	block, _ := pem.Decode([]byte(r.GetCsr()))
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	leaf := c.sign(&x509.Certificate{
		URIs: csr.URIs, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, csr.PublicKey)
	return &securityv1.IstioCertificateResponse{CertChain: []string{string(pemOf(leaf)), string(pemOf(c.root.Raw))}}, nil
}

// DeltaAggregatedResources sends every type once and nothing after.
func (c *fakeController) DeltaAggregatedResources(s discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	if err := c.admit(s.Context()); err != nil {
		return err
	}
	resources := map[string]map[string]proto.Message{
		api.AddressType: {"Kubernetes//Pod/foo/sleep": &workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: &workloadapi.Workload{
			Uid: "Kubernetes//Pod/foo/sleep", Name: "sleep", Namespace: "foo", ServiceAccount: "sleep", Node: "n1", Addresses: [][]byte{{10, 0, 0, 1}},
		}}}},
		api.MeshSettingsType: {api.MeshSettingsName: &settings.MeshSettings{TrustDomain: "cluster.local", Generation: 7}},
	}
	for {
		r, err := s.Recv()
		if err != nil {
			return nil
		}
		if r.GetResponseNonce() != "" {
			continue
		}
		answer := &discovery.DeltaDiscoveryResponse{TypeUrl: r.GetTypeUrl(), Nonce: "1", SystemVersionInfo: "7"}
		for name, m := range resources[r.GetTypeUrl()] {
			packed, err := anypb.New(m)
			if err != nil {
				return err
			}
			answer.Resources = append(answer.Resources, &discovery.Resource{Name: name, Version: "1", Resource: packed})
		}
		if err := s.Send(answer); err != nil {
			return err
		}
	}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return key
}

func pemOf(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
