package main

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/test/bufconn"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/ca"
	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/identity"
)

var (
	sleep = api.Identity{TrustDomain: "cluster.local", Namespace: "foo", ServiceAccount: "sleep"}
	other = api.Identity{TrustDomain: "cluster.local", Namespace: "bar", ServiceAccount: "elsewhere"}
)

// onNode grants sleep on node n1 and nothing else.
type onNode struct{}

func (onNode) MayImpersonate(_ context.Context, c ca.Caller, id api.Identity) error {
	if c.Node == "n1" && id == sleep {
		return nil
	}
	return errors.New("no pod of that account is on the node")
}

// realCA serves the controller's CA over TLS in memory; its root is persisted in dir.
func realCA(t *testing.T, dir string) (rootPEM func() ([]byte, error), dial func(context.Context, string) (net.Conn, error)) {
	t.Helper()
	tokens, err := ca.ParseStaticTokens(strings.NewReader(
		"good,system:serviceaccount:istio-system:ztunnel,node:n1\nuntrusted,system:serviceaccount:foo:sleep,n1\n"))
	must(t, err)
	a := ca.New(ca.Config{Store: ca.DirStore{Path: filepath.Join(dir, "ca")}, Authenticator: tokens, NodeAuthorizer: onNode{}, Clock: clock.System()})
	must(t, a.Load(t.Context()))
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{GetCertificate: a.ServingCertificate([]string{"istiod.istio-system.svc"})})))
	a.Register(s)
	l := bufconn.Listen(64 << 10)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		<-done
	})
	return a.RootPEM, func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }
}

// managerOf runs the node's side with a token.
func managerOf(t *testing.T, token string, root func() ([]byte, error), dial func(context.Context, string) (net.Conn, error)) *identity.Manager {
	t.Helper()
	roots := identity.NewRoots(root)
	conn, err := identity.ControlPlane{
		Addr: "istiod.istio-system.svc:15012", Roots: roots, Clock: clock.System(), Dial: dial,
		Token: func() (string, error) { return token, nil },
	}.Connect()
	must(t, err)
	m, err := identity.New(identity.Config{
		Issuer: identity.NewCAClient(conn), Roots: roots, Clock: clock.System(), FirstWait: 300 * time.Millisecond,
		Trust: func() identity.Trust { return identity.Trust{Domain: "cluster.local"} },
	})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
		conn.Close()
	})
	return m
}

func TestControllersCAAndNodeAgree(t *testing.T) {
	root, dial := realCA(t, t.TempDir())
	m := managerOf(t, "good", root, dial)
	cert, err := m.Certificate(t.Context(), sleep)
	must(t, err)
	if len(cert.Leaf.URIs) != 1 || cert.Leaf.URIs[0].String() != sleep.String() {
		t.Errorf("it names %v", cert.Leaf.URIs)
	}
	if life := time.Until(cert.Leaf.NotAfter); life < 23*time.Hour || life > 24*time.Hour {
		t.Errorf("it lives %s", life)
	}
	// Both ends of a tunnel accept what the CA signed.
	client, err := m.ClientTLS(t.Context(), sleep, []api.Identity{sleep})
	must(t, err)
	l := bufconn.Listen(64 << 10)
	defer l.Close()
	served := make(chan error, 1)
	go func() {
		raw, err := l.Accept()
		if err != nil {
			served <- err
			return
		}
		defer raw.Close()
		served <- tls.Server(raw, m.ServerTLS(sleep)).HandshakeContext(t.Context())
	}()
	raw, err := l.Dial()
	must(t, err)
	defer raw.Close()
	if err := tls.Client(raw, client).HandshakeContext(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// The other rows of the same agreement: who may not have a certificate gets none, and the error says why.
func TestControllersCARefuses(t *testing.T) {
	root, dial := realCA(t, t.TempDir())
	for name, c := range map[string]struct {
		token string
		id    api.Identity
		want  string
	}{
		"no pod on the node":   {"good", other, "no pod of that account is on the node"},
		"another trust domain": {"good", api.Identity{TrustDomain: "evil.example", Namespace: "foo", ServiceAccount: "sleep"}, "evil.example"},
		"unknown token":        {"forged", sleep, "Unauthenticated"},
		"caller is no ztunnel": {"untrusted", other, "PermissionDenied"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := managerOf(t, c.token, root, dial).Certificate(t.Context(), c.id)
			if !errors.Is(err, identity.ErrNoIdentity) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %v, want %q", err, c.want)
			}
		})
	}
}
