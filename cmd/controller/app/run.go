// Package app is the controller as a program: flags and wiring, for "controller" and for "undermesh mesh".
package app

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/version"
	"github.com/undermesh/undermesh/controller/ca"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/configdir"
	"github.com/undermesh/undermesh/controller/jwks/keeper"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/server"
	"github.com/undermesh/undermesh/controller/status"
	"github.com/undermesh/undermesh/controller/watch"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// Run assembles the controller from the flags and serves until ctx ends.
func Run(ctx context.Context, o Options, log *slog.Logger) error {
	cfg := server.Config{
		Log: log, Clock: clock.System(), Listen: net.Listen, Index: watch.NewIndex(o.nodeAccount()),
		XDSAddr: o.xdsAddr, XDSPlainAddr: o.xdsPlainAddr, MonitorAddr: o.monitorAddr, ReadyAddr: o.readyAddr,
		DebugAddr: o.debugAddr, Replica: o.identity,
		Compile: compile.Config{
			Mesh:             model.Mesh{TrustDomain: o.trustDomain, RootNamespace: o.rootNamespace},
			InstallNamespace: o.rootNamespace, ClusterDomain: o.clusterDomain, ClusterID: o.clusterID, CertTTL: o.certTTL,
		},
	}
	klog.SetSlogLogger(log) // what client-go has to say
	var err error
	if cfg.Keys, err = fetchKeys(o.keys); err != nil {
		return err
	}
	if o.configDir != "" {
		err = forDirectory(&cfg, o)
	} else {
		err = forKubernetes(&cfg, o)
	}
	if err != nil {
		return err
	}
	s, err := server.New(cfg)
	if err != nil {
		return err
	}
	log.Info("controller starts", "version", version.Version, "identity", o.identity, "config", o.configDir, "xds", o.xdsAddr)
	return s.Run(ctx)
}

// forDirectory serves a directory of YAML; callers are known by a file of tokens.
func forDirectory(cfg *server.Config, o Options) error {
	dir := configdir.New(configdir.Config{Dir: o.configDir, Log: cfg.Log, Clock: cfg.Clock})
	source := watch.Inject(watch.NewDirectory(dir))
	cfg.Source, cfg.Secrets = source, secretsOf(dir)
	cfg.Keys.Store = keeper.NewLocalStore(func(cm *corev1.ConfigMap) {
		source.Put(model.Event{Kind: model.KindConfigMap, Name: model.Name{Namespace: o.rootNamespace, Name: cm.Name}, Object: cm})
	})
	writer := status.Directory{Dir: o.configDir}
	cfg.Status, cfg.Addresses = writer, writer
	if o.xdsAddr == "" {
		return nil
	}
	f, err := os.Open(o.tokenFile)
	if err != nil {
		return fmt.Errorf("open token file: %w", err)
	}
	defer f.Close()
	tokens, err := ca.ParseStaticTokens(f)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.certDir, 0o700); err != nil {
		return fmt.Errorf("make certificate directory: %w", err)
	}
	root := ca.DirStore{Path: filepath.Join(o.certDir, "ca")}
	cfg.Authority = &server.AuthorityConfig{Store: root, Authenticator: tokens, ServingNames: o.servingNames()}
	if o.writeRoot != "" {
		cfg.Publish = func(_ context.Context, roots []byte) error { return writeFile(o.writeRoot, roots) }
	}
	return nil
}

// nodeAccount is that of the nodes' proxies, "namespace/account".
func (o Options) nodeAccount() string { return o.rootNamespace + "/" + api.ZtunnelName }

// servingNames are those of the Service, those of this machine, and what the flags add.
func (o Options) servingNames() []string {
	short := api.ControllerName + "." + o.rootNamespace
	names := []string{short + ".svc", short + ".svc." + o.clusterDomain, short, api.ControllerName, "localhost", "127.0.0.1", "::1"}
	if host, _, err := net.SplitHostPort(o.xdsAddr); err == nil && host != "" {
		names = append(names, host)
	}
	return append(names, list(o.tlsNames)...)
}

// list reads words separated by commas.
func list(text string) (out []string) {
	for word := range strings.SplitSeq(text, ",") {
		if word = strings.TrimSpace(word); word != "" {
			out = append(out, word)
		}
	}
	return out
}

// writeFile makes the file appear whole; a file that is the same already is left alone.
func writeFile(path string, data []byte) error {
	if old, err := os.ReadFile(path); err == nil && string(old) == string(data) {
		return nil
	}
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".tmp")
	if err := os.WriteFile(tmp, data, 0o644); err != nil {
		return fmt.Errorf("write root certificates: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write root certificates: %w", err)
	}
	return nil
}
