package identity

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/structpb"
	securityv1 "istio.io/api/security/v1alpha1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// impersonated is the key of the request's metadata that names the workload; the caller proves itself as the node's
// ztunnel by its token.
const impersonated = "ImpersonatedIdentity"

// maxAnswer bounds one message of the control plane: a snapshot of a large mesh is far below.
const maxAnswer = 200 << 20

// ControlPlane says how the node talks to the controller: TLS verified against the root file, the node's service-account
// token with each call. CA and xDS share it.
type ControlPlane struct {
	Addr       string // host:port
	ServerName string // in the controller's certificate; default istiod.istio-system.svc
	Roots      *Roots
	// Token returns the bearer token; called for each call, so that a rotated file counts at once.
	Token     func() (string, error)
	ClusterID string
	// Dial connects to addr. It sees to it that a connection to a dead peer ends (TCP keepalive and user timeout): pings of
	// HTTP/2 are not sent, since a server of gRPC with its defaults closes connections for them.
	Dial  func(ctx context.Context, addr string) (net.Conn, error)
	Clock clock.Clock
}

// Connect makes a connection that dials when it is used. The caller closes it.
func (p ControlPlane) Connect() (*grpc.ClientConn, error) {
	if p.ServerName == "" {
		p.ServerName = "istiod.istio-system.svc"
	}
	switch {
	case p.Addr == "":
		return nil, errors.New("connect to control plane: no address")
	case p.Roots == nil, p.Token == nil, p.Dial == nil, p.Clock == nil:
		return nil, errors.New("connect to control plane: Roots, Token, Dial and Clock must be set")
	}
	// gRPC's own back-off ends at two minutes: too long for a node whose pods wait for certificates.
	dialling := grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: 5 * time.Second}
	dialling.Backoff.BaseDelay, dialling.Backoff.MaxDelay = 200*time.Millisecond, 5*time.Second
	conn, err := grpc.NewClient("passthrough:///"+p.Addr,
		grpc.WithContextDialer(p.Dial),
		grpc.WithConnectParams(dialling),
		grpc.WithTransportCredentials(&rootedTLS{serverName: p.ServerName, roots: p.Roots, clock: p.Clock}),
		grpc.WithPerRPCCredentials(bearer{token: p.Token, clusterID: p.ClusterID}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
	)
	if err != nil {
		return nil, fmt.Errorf("connect to control plane %s: %w", p.Addr, err)
	}
	return conn, nil
}

// rootedTLS is TLS against the roots of the moment: each handshake reads the root file anew if it changed.
type rootedTLS struct {
	serverName string
	roots      *Roots
	clock      clock.Clock
}

func (t *rootedTLS) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	reloadErr := t.roots.Reload()
	c := credentials.NewTLS(&tls.Config{
		ServerName: t.serverName, RootCAs: t.roots.Pool(), MinVersion: tls.VersionTLS12,
		CipherSuites: api.TLS12Suites(), Time: t.clock.Now,
	})
	conn, info, err := c.ClientHandshake(ctx, authority, raw)
	if err != nil {
		// Both matter: a root file that is not there looks like an unknown authority.
		return nil, nil, errors.Join(fmt.Errorf("verify control plane as %s: %w", t.serverName, err), reloadErr)
	}
	return conn, info, nil
}

func (t *rootedTLS) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("serve TLS: this side is a client")
}

func (t *rootedTLS) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls", SecurityVersion: "1.2", ServerName: t.serverName}
}

func (t *rootedTLS) Clone() credentials.TransportCredentials { c := *t; return &c }

func (t *rootedTLS) OverrideServerName(name string) error { t.serverName = name; return nil }

// bearer adds the token; never on a connection without TLS.
type bearer struct {
	token     func() (string, error)
	clusterID string
}

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := b.token()
	if err != nil {
		return nil, fmt.Errorf("read token: %w", err)
	}
	token = strings.TrimSpace(token)
	if token == "" {
		return nil, errors.New("read token: it is empty")
	}
	m := map[string]string{"authorization": "Bearer " + token}
	if b.clusterID != "" {
		m["clusterid"] = b.clusterID
	}
	return m, nil
}

func (bearer) RequireTransportSecurity() bool { return true }

// CAClient asks istio.v1.auth.IstioCertificateService.
type CAClient struct {
	service securityv1.IstioCertificateServiceClient
}

// NewCAClient makes a client over conn, usually of ControlPlane.Connect.
func NewCAClient(conn grpc.ClientConnInterface) *CAClient {
	return &CAClient{service: securityv1.NewIstioCertificateServiceClient(conn)}
}

// Issue implements Issuer.
func (c *CAClient) Issue(ctx context.Context, r Request) ([]string, error) {
	answer, err := c.service.CreateCertificate(ctx, &securityv1.IstioCertificateRequest{
		Csr: string(r.CSR), ValidityDuration: int64(r.TTL.Seconds()),
		Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{impersonated: structpb.NewStringValue(r.Identity.String())}},
	})
	if err != nil {
		return nil, fmt.Errorf("create certificate: %w", err)
	}
	return answer.GetCertChain(), nil
}
