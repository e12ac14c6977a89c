package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"k8s.io/client-go/kubernetes"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/ca"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/xds"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// AuthorityConfig configures the certificate authority of a Server.
type AuthorityConfig struct {
	Store ca.Store
	// PlugIn returns the files of cacerts, nil when there are none; it may be nil. It is asked once, at the start.
	PlugIn        func(ctx context.Context) (map[string][]byte, error)
	Authenticator ca.Authenticator
	// Direct answers for pods whose events have not arrived yet; nil: there is nothing to ask.
	Direct kubernetes.Interface
	// TrustedNodeAccounts may discover the mesh, and ask for the identities of the pods on their node; default
	// ROOT-NAMESPACE/ztunnel.
	TrustedNodeAccounts []string
	// ServingNames are the DNS names and addresses of the server's own certificate.
	ServingNames []string
	Retry        time.Duration // between attempts to load; default 1 s
}

// authority loads the CA, however long it takes, and makes it available.
type authority struct {
	cfg    AuthorityConfig
	ca     ca.Config
	log    *slog.Logger
	clock  clock.Clock
	ready  chan struct{} // closed when loaded is set
	loaded atomic.Pointer[ca.Authority]
}

func newAuthority(cfg AuthorityConfig, sc Config, trustDomain func() string) *authority {
	if cfg.Retry <= 0 {
		cfg.Retry = time.Second
	}
	if cfg.TrustedNodeAccounts == nil {
		root := sc.Compile.InstallNamespace
		if root == "" {
			root = api.DefaultRootNamespace
		}
		cfg.TrustedNodeAccounts = []string{root + "/" + api.ZtunnelName}
	}
	return &authority{
		cfg: cfg, log: sc.Log, clock: sc.Clock, ready: make(chan struct{}),
		ca: ca.Config{Store: cfg.Store, TrustDomain: trustDomain, Authenticator: cfg.Authenticator,
			NodeAuthorizer:      nodeAuthorizer{runsOn{index: sc.Index, direct: cfg.Direct}},
			TrustedNodeAccounts: cfg.TrustedNodeAccounts, DefaultTTL: sc.Compile.CertTTL, Clock: sc.Clock, Log: sc.Log},
	}
}

// load tries until it succeeds or ctx ends.
func (a *authority) load(ctx context.Context) error {
	for {
		loaded, err := a.try(ctx)
		if err == nil {
			a.loaded.Store(loaded)
			close(a.ready)
			return nil
		}
		if ctx.Err() != nil {
			return nil
		}
		a.log.Error("load certificate authority", "err", err)
		if !pause(ctx, a.clock, a.cfg.Retry) {
			return nil
		}
	}
}

func (a *authority) try(ctx context.Context) (*ca.Authority, error) {
	cfg := a.ca
	if a.cfg.PlugIn != nil {
		files, err := a.cfg.PlugIn(ctx)
		if err != nil {
			return nil, fmt.Errorf("read plugged-in certificates: %w", err)
		}
		cfg.PlugIn = files
	}
	out := ca.New(cfg)
	return out, out.Load(ctx)
}

// options are the transport's credentials and the check of callers. What is discovered is every workload and policy of the
// mesh: it is for the proxies of nodes, and nobody else connects.
func (a *authority) options(loaded *ca.Authority) []grpc.ServerOption {
	creds := credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		GetCertificate: loaded.ServingCertificate(a.cfg.ServingNames)})
	auth := xds.StreamAuth(xds.Auth{Log: a.log, Accounts: a.cfg.TrustedNodeAccounts, BadToken: ca.ErrBadToken,
		Authenticate: func(ctx context.Context, token string) (string, error) {
			caller, err := a.cfg.Authenticator.Authenticate(ctx, token)
			return caller.String(), err
		}})
	return []grpc.ServerOption{grpc.Creds(metered{creds}), grpc.ChainStreamInterceptor(auth, lift)}
}

// nodeAuthorizer grants a node's proxy the identities of the pods that run there.
type nodeAuthorizer struct{ runsOn }

// MayImpersonate implements ca.NodeAuthorizer.
func (n nodeAuthorizer) MayImpersonate(ctx context.Context, caller ca.Caller, id api.Identity) error {
	node := caller.Node
	if node == "" {
		if caller.PodName == "" {
			return errors.New("the caller's token is bound to no pod and no node")
		}
		var err error
		node, err = n.nodeOf(ctx, model.Name{Namespace: caller.Namespace, Name: caller.PodName}, caller.PodUID)
		if err != nil {
			return err
		}
		if node == "" {
			return errors.New("the caller's pod is not known")
		}
	}
	ok, err := n.check(ctx, node, id.Namespace, id.ServiceAccount)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("no pod of %s/%s runs on node %s", id.Namespace, id.ServiceAccount, node)
	}
	return nil
}
