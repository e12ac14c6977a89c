package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/undermesh/undermesh/cni/install"
	"github.com/undermesh/undermesh/controller/configdir"
	"github.com/undermesh/undermesh/nodeagent/datapath"
	"github.com/undermesh/undermesh/nodeagent/enroll"
	"github.com/undermesh/undermesh/nodeagent/netns"
	"github.com/undermesh/undermesh/nodeagent/server"
	"github.com/undermesh/undermesh/nodeagent/zds"
	"github.com/undermesh/undermesh/nodeagent/zds/zdsapi"
)

// cluster is where pods come from, with what keeps it up to date.
type cluster interface {
	enroll.Cluster
	enroll.Events
	Run(ctx context.Context) error
	Clear(ctx context.Context) error
}

// agent is the assembled process.
type agent struct {
	o       options
	log     *slog.Logger
	kernel  kernel
	cluster cluster
	manager *enroll.Manager
	proxy   *zds.Server
	super   *enroll.Supervisor
	reg     *prometheus.Registry

	open    atomic.Bool           // the kernel's side is in place
	chained atomic.Pointer[error] // why the plugin is not installed; nil before the first look
}

// run works until ctx ends and leaves everything captured as it is.
func run(ctx context.Context, o options, log *slog.Logger) error {
	a, err := assemble(ctx, o, log)
	if err != nil {
		return err
	}
	defer a.kernel.Close()
	g, ctx := errgroup.WithContext(ctx)
	for _, part := range []func(context.Context) error{a.cluster.Run, a.manager.Run, a.super.Run, a.serveProxy, a.serveCNI,
		a.monitor().Run, a.logDecisions, a.installPlugin} {
		g.Go(func() error { return part(ctx) })
	}
	return g.Wait()
}

// assemble opens the kernel's side and builds the parts.
func assemble(ctx context.Context, o options, log *slog.Logger) (*agent, error) {
	a := &agent{o: o, log: log, reg: prometheus.NewRegistry()}
	a.reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	var err error
	if a.cluster, err = openCluster(o, log); err != nil {
		return nil, err
	}
	if a.kernel, err = openKernel(ctx, o, log); err != nil {
		return nil, err
	}
	groups, err := enroll.HierarchyRoot(a.kernel.CgroupRoot())
	if err != nil {
		return nil, errors.Join(err, a.kernel.Close())
	}
	finder := enroll.Finder{ProcRoot: o.procRoot, NetnsDir: o.netnsDir}
	a.super = enroll.NewSupervisor(enroll.SupervisorConfig{Rules: a.kernel, Log: log, ZtunnelCgroup: o.ztunnelCgroup,
		Cgroups: enroll.Cgroups{Root: groups, Finder: finder}, KubeletPort: uint16(o.kubeletPort)})
	// The server asks the manager and the manager the server: the closures see a.manager once it is set below.
	a.proxy = zds.NewServer(zds.ServerConfig{Path: o.zds, Log: log,
		Snapshot:  func() []zds.Workload { return a.manager.Snapshot() },
		OnHeld:    func(uid string, l zds.Listeners) { a.manager.OnHeld(uid, l) },
		OnAck:     func(uid string, err error) { a.manager.OnAck(uid, err) },
		OnConnect: a.admit,
		OnDisconnect: func(p zds.Peer) {
			a.super.Depart(p)
			a.manager.OnDisconnect(p)
		}})
	a.manager = enroll.New(enroll.Config{Datapath: a.kernel, Proxy: a.proxy, Cluster: a.cluster, Events: a.cluster, Log: log,
		FindNetns: finder.Find, Digest: o.cniDigest, Propagation: o.propagation,
		Policy: enroll.Policy{ExcludedNamespaces: o.excluded, EnrollByDefault: o.byDefault}})
	return a, nil
}

// admit refuses ztunnels that would open their own listeners: the kernel hands connections to the agent's only.
func (a *agent) admit(ctx context.Context, p zds.Peer) error {
	if p.Version != zdsapi.Version_V2 {
		return fmt.Errorf("ztunnel pid %d speaks ZDS %s; in-pod listeners are handed over since V2", p.PID, p.Version)
	}
	return a.super.Admit(ctx, p)
}

func openKernel(ctx context.Context, o options, log *slog.Logger) (kernel, error) {
	home, err := netns.Current()
	if err != nil {
		return kernel{}, err
	}
	defer home.Close()
	cookie, err := home.Cookie()
	if err != nil {
		return kernel{}, err
	}
	d := datapath.New(o.datapath(log))
	if err := d.Open(ctx); err != nil {
		return kernel{}, fmt.Errorf("open datapath: %w", err)
	}
	return kernel{Datapath: d, hostCookie: cookie}, nil
}

func (o options) datapath(log *slog.Logger) datapath.Config {
	c := datapath.Config{PinDir: o.bpfPinDir, RunDir: o.runDir, CgroupRoot: o.cgroupRoot, Build: buildVersion(), Log: log}
	if o.bpfPinDir != "" {
		c.BPFFS = filepath.Dir(o.bpfPinDir)
	}
	return c
}

// buildVersion is that of the build, as the Go tool records it.
func buildVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || len(info.Main.Version) > 50 {
		return "unknown"
	}
	return info.Main.Version
}

// directory joins the two parts of directory mode.
type directory struct {
	*enroll.Directory
	dir *configdir.Dir
}

func (d directory) Run(ctx context.Context) error { return d.dir.Run(ctx) }

func openCluster(o options, log *slog.Logger) (cluster, error) {
	if o.configDir != "" {
		dir := configdir.New(configdir.Config{Dir: o.configDir, Log: log})
		return directory{enroll.NewDirectory(dir, o.configDir, o.nodeName, log), dir}, nil
	}
	client, err := kubeClient(o)
	if err != nil {
		return nil, err
	}
	return enroll.NewKube(client, o.nodeName), nil
}

func kubeClient(o options) (kubernetes.Interface, error) {
	cfg, err := rest.InClusterConfig()
	if o.kubeconfig != "" || errors.Is(err, rest.ErrNotInCluster) {
		cfg, err = clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("configure API client: %w", err)
	}
	cfg.UserAgent = "undermesh-nodeagent"
	cfg.QPS, cfg.Burst = 50, 100
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("make API client: %w", err)
	}
	return client, nil
}

// recovered waits until the pods of an earlier run are known again; false when ctx ended before.
func (a *agent) recovered(ctx context.Context) bool {
	select {
	case <-a.manager.Recovered():
		a.open.Store(true)
		return true
	case <-ctx.Done():
		return false
	}
}

// serveProxy lets ztunnel in once its snapshot is complete: it drops what is not in it.
func (a *agent) serveProxy(ctx context.Context) error {
	if !a.recovered(ctx) {
		return nil
	}
	return a.proxy.Run(ctx)
}

func (a *agent) serveCNI(ctx context.Context) error {
	if !a.recovered(ctx) {
		return nil
	}
	return server.New(server.Config{Socket: a.o.cniSocket, Pods: a.manager, Log: a.log, Metrics: a.reg, Ready: a.ready}).Run(ctx)
}

// ready says why pods of the mesh could not be enrolled.
func (a *agent) ready() error {
	if !a.open.Load() {
		return errors.New("pods of the node are not known yet")
	}
	if a.o.cniConfDir != "" {
		switch err := a.chained.Load(); {
		case err == nil:
			return errors.New("the CNI plugin is not installed yet")
		case *err != nil:
			return fmt.Errorf("the CNI plugin is not in force: %w", *err)
		}
	}
	return nil
}

func (a *agent) monitor() *server.Monitor {
	return server.NewMonitor(server.MonitorConfig{MetricsAddr: a.o.metricsAddr, ReadyAddr: a.o.readyAddr, Log: a.log,
		Ready: a.ready, Pods: a.manager.Status, Counters: a.kernel.counters, Connected: a.proxy.Connected, Registry: a.reg})
}

func (a *agent) logDecisions(ctx context.Context) error {
	l := server.DecisionLog{Log: a.log, PodName: a.manager.PodName}
	err := a.kernel.Decisions(ctx, func(d datapath.Decision) { l.Write(decision(d)) })
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (o options) installer(log *slog.Logger, state func(error)) *install.Installer {
	return install.New(install.Config{Binary: o.cniBinary, BinDir: o.cniBinDir, ConfDir: o.cniConfDir, Log: log, OnState: state,
		Entry: install.Entry{Socket: o.cniSocket, Digest: o.cniDigest, ExcludeNamespaces: o.excluded, LogFile: o.cniLog}})
}

// installPlugin comes after the socket is served, so that no pod meets a plugin without an agent.
func (a *agent) installPlugin(ctx context.Context) error {
	if a.o.cniConfDir == "" || !a.recovered(ctx) {
		return nil
	}
	return a.o.installer(a.log, func(err error) { a.chained.Store(&err) }).Run(ctx)
}

// uninstall takes the plugin out first, then the annotations, then the kernel's side, then the sockets' files.
func uninstall(ctx context.Context, o options, log *slog.Logger) error {
	var errs []error
	if o.cniConfDir != "" {
		errs = append(errs, o.installer(log, nil).Uninstall())
	}
	errs = append(errs, clearAnnotations(ctx, o, log))
	d := datapath.New(o.datapath(log))
	errs = append(errs, d.Uninstall(ctx))
	for _, path := range []string{o.cniSocket, o.cniDigest, o.zds} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove %s: %w", path, err))
		}
		if dir := filepath.Dir(path); slices.Contains([]string{"istio-cni", "ztunnel"}, filepath.Base(dir)) {
			_ = os.Remove(dir) // not while it is a mount or somebody keeps files there
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("uninstall node %s: %w", o.nodeName, err)
	}
	log.Info("node is clean", "node", o.nodeName)
	return nil
}

// clearAnnotations takes the annotation from every pod of the node.
func clearAnnotations(ctx context.Context, o options, log *slog.Logger) error {
	c, err := openCluster(o, log)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, enroll.RequestTimeout)
	defer cancel()
	return c.Clear(ctx)
}
