package main

import (
	"context"
	"log/slog"
	"net"

	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/configdir"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/server"
	"github.com/undermesh/undermesh/controller/status"
	"github.com/undermesh/undermesh/controller/watch"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// run assembles the controller from the flags and serves until ctx ends.
func run(ctx context.Context, o options, log *slog.Logger) error {
	cfg := server.Config{
		Log: log, Clock: clock.System(), Listen: net.Listen, Index: watch.NewIndex(),
		XDSAddr: o.xdsAddr, XDSPlainAddr: o.xdsPlainAddr, MonitorAddr: o.monitorAddr, ReadyAddr: o.readyAddr,
		Compile: compile.Config{
			Mesh:             model.Mesh{TrustDomain: o.trustDomain, RootNamespace: o.rootNamespace},
			InstallNamespace: o.rootNamespace, ClusterDomain: o.clusterDomain, ClusterID: o.clusterID, CertTTL: o.certTTL,
		},
	}
	cfg.Source = watch.NewDirectory(configdir.New(configdir.Config{Dir: o.configDir, Log: log, Clock: cfg.Clock}))
	cfg.Status = status.Directory{Dir: o.configDir}
	s, err := server.New(cfg)
	if err != nil {
		return err
	}
	return s.Run(ctx)
}
