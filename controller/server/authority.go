package server

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"k8s.io/client-go/kubernetes"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/ca"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/quota"
	"github.com/undermesh/undermesh/controller/xds"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// AuthorityConfig configures the certificate authority of a Server.
type AuthorityConfig struct {
	Store ca.Store
	// PlugIn returns the files of cacerts, nil when there are none; it may be nil. It is asked every SyncPeriod.
	PlugIn func(ctx context.Context) (map[string][]byte, error)
	// Rotation is what replicas agree upon while a root is replaced; nil: none ever is.
	Rotation ca.RotationStore
	Spread   time.Duration // how long another root is published before it signs; default 5 min
	// External signs workloads' certificates; nil: the authority's own key does.
	External      *ca.External
	Authenticator ca.Authenticator
	// Direct answers for pods whose events have not arrived yet; nil: there is nothing to ask.
	Direct kubernetes.Interface
	// TrustedNodeAccounts may discover the mesh, and ask for the identities of the pods on their node; default
	// ROOT-NAMESPACE/ztunnel.
	TrustedNodeAccounts []string
	// ServingNames are the DNS names and addresses of the server's own certificate.
	ServingNames []string
	// DNS is where the certificates of the mesh configuration are kept; nil: nowhere.
	DNS        *ca.DNSConfig
	Retry      time.Duration // between attempts to load; default 1 s
	SyncPeriod time.Duration // between looks at the stores; default 5 s
}

// authority loads the CA, however long it takes, makes it available and keeps it up to date.
type authority struct {
	cfg     AuthorityConfig
	ca      *ca.Authority
	log     *slog.Logger
	clock   clock.Clock
	ready   chan struct{} // closed when loaded is set
	loaded  atomic.Pointer[ca.Authority]
	leading atomic.Bool
	why     atomic.Pointer[string] // why it is not loaded; nil or "": it was not tried yet
}

func newAuthority(cfg AuthorityConfig, sc Config, trustDomain func() string, metrics prometheus.Registerer) *authority {
	if cfg.Retry <= 0 {
		cfg.Retry = time.Second
	}
	if cfg.SyncPeriod <= 0 {
		cfg.SyncPeriod = 5 * time.Second
	}
	cfg.TrustedNodeAccounts = sc.nodeAccounts()
	return &authority{
		cfg: cfg, log: sc.Log, clock: sc.Clock, ready: make(chan struct{}),
		ca: ca.New(ca.Config{Store: cfg.Store, PlugIn: cfg.PlugIn, Rotation: cfg.Rotation, Spread: cfg.Spread, External: cfg.External,
			TrustDomain: trustDomain, Authenticator: cfg.Authenticator,
			NodeAuthorizer:      nodeAuthorizer{runsOn{index: sc.Index, direct: cfg.Direct}},
			TrustedNodeAccounts: cfg.TrustedNodeAccounts, DefaultTTL: sc.Compile.CertTTL, Clock: sc.Clock, Log: sc.Log,
			Metrics: metrics}),
	}
}

// run looks at the stores until ctx ends. A state that lasts is one line of the log.
func (a *authority) run(ctx context.Context) error {
	said := ""
	for {
		err := a.sync(ctx)
		text := ""
		if err != nil {
			text = err.Error()
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil && said != "":
			a.log.Info("certificate authority is in order again")
		case errors.Is(err, ca.ErrConflict): // another replica was first: the next look shows what it did
			text = said
		case err != nil && text != said:
			a.log.Error("certificate authority: what was good before stays in force", "err", err)
		}
		said = text
		a.why.Store(&text)
		period := a.cfg.SyncPeriod
		if a.loaded.Load() == nil {
			period = a.cfg.Retry
		}
		if !clock.Pause(ctx, a.clock, period) {
			return nil
		}
	}
}

// sync loads the authority, or brings it up to date.
func (a *authority) sync(ctx context.Context) error {
	if a.loaded.Load() != nil {
		return a.ca.Sync(ctx, a.leading.Load())
	}
	if a.leading.Load() { // it may be for the leader to decide with which root to start
		if err := a.ca.Sync(ctx, true); err != nil {
			return err
		}
	}
	if err := a.ca.Load(ctx); err != nil {
		return err
	}
	a.loaded.Store(a.ca)
	close(a.ready)
	return nil
}

// missing says that the authority is not loaded, and why.
func (a *authority) missing() string {
	const text = "the certificate authority is not loaded yet"
	if why := a.why.Load(); why != nil && *why != "" {
		return text + ": " + *why
	}
	return text
}

// lead lets this replica decide until ctx ends.
func (a *authority) lead(ctx context.Context) error {
	a.leading.Store(true)
	defer a.leading.Store(false)
	<-ctx.Done()
	return nil
}

// dnsPeriod is how often the Secrets of DNS certificates are looked at: a deleted one is back within 10 s (MT-21).
const dnsPeriod = 4 * time.Second

// keepDNS makes and renews the DNS certificates that the mesh configuration asks for, until ctx ends.
func (a *authority) keepDNS(ctx context.Context, mesh func() *model.Mesh) error {
	select {
	case <-ctx.Done():
		return nil
	case <-a.ready:
	}
	said := ""
	for {
		var wanted []ca.DNSCertificate
		if m := mesh(); m != nil {
			for _, c := range m.Config.GetCertificates() {
				wanted = append(wanted, ca.DNSCertificate{SecretName: c.GetSecretName(), DNSNames: c.GetDnsNames()})
			}
		}
		text := ""
		if err := a.ca.KeepDNS(ctx, *a.cfg.DNS, wanted); err != nil {
			if text = err.Error(); text != said && ctx.Err() == nil {
				a.log.Error("DNS certificates are not as the mesh configuration wants them", "err", err)
			}
		}
		said = text
		if !clock.Pause(ctx, a.clock, dnsPeriod) {
			return nil
		}
	}
}

// options are the transport's credentials and the check of callers. What is discovered is every workload and policy of the
// mesh: it is for the proxies of nodes, and nobody else connects.
func (a *authority) options(loaded *ca.Authority) []grpc.ServerOption {
	creds := credentials.NewTLS(a.tls(loaded))
	auth := xds.StreamAuth(xds.Auth{Log: a.log, Lines: quota.NewLines[netip.Addr](a.clock), Accounts: a.cfg.TrustedNodeAccounts, BadToken: ca.ErrBadToken,
		Authenticate: func(ctx context.Context, token string) (xds.Caller, error) {
			caller, err := a.cfg.Authenticator.Authenticate(ctx, token)
			out := xds.Caller{Account: caller.String(), Node: caller.Node, Place: cmp.Or(caller.PodName, caller.Node), Expires: caller.Expires}
			if caller.PodName != "" {
				out.Pod = caller.PodName + "." + caller.Namespace
			}
			return out, err
		}})
	return []grpc.ServerOption{grpc.Creds(metered{creds}), grpc.ChainStreamInterceptor(auth, lift)}
}

// tls is what the documents promise of TLS 1.2 (MT-14), and TLS 1.3, which clients prefer.
func (a *authority) tls(loaded *ca.Authority) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, CipherSuites: api.TLS12Suites(), NextProtos: []string{"h2"},
		GetCertificate: loaded.ServingCertificate(a.cfg.ServingNames)}
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
