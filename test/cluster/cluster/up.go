package cluster

import (
	"context"
	_ "embed" // the manifest
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/undermesh/undermesh/test/cluster/build"
	"github.com/undermesh/undermesh/test/cluster/kube"
	"github.com/undermesh/undermesh/test/cluster/node"
	"github.com/undermesh/undermesh/test/cluster/pki"
	"github.com/undermesh/undermesh/test/cluster/plan"
	"github.com/undermesh/undermesh/test/cluster/sandbox"
)

//go:embed manifests/system.yaml
var systemManifest []byte

// downTimeout bounds the clean-up after an `up` that did not succeed.
const downTimeout = 60 * time.Second

// Up brings the cluster up and returns when the nodes are Ready, DNS answers on each of them and all images are there. A
// cluster that is already up with the same options is only checked. On an error, and when ctx ends, nothing is left behind
// but the logs, which move to NAME.failed.
func (c *Cluster) Up(ctx context.Context) error {
	release, err := c.lock()
	if err != nil {
		return err
	}
	defer release()
	if done, err := c.already(ctx); done || err != nil {
		return err
	}
	start := time.Now()
	bin, err := c.Build(ctx)
	if err != nil {
		return err
	}
	images, err := c.images(ctx, bin)
	if err != nil {
		return err
	}
	c.cfg.Log.Info("binaries and images are ready", "dur", since(start))
	s, err := c.reserve(bin)
	if err != nil {
		return err
	}
	u := &ascent{Cluster: c, state: &s, images: images, start: start}
	err = u.run(ctx)
	for _, p := range u.pipes {
		p.Close()
	}
	if err == nil {
		c.cfg.Log.Info("cluster is up", "name", s.Plan.Name, "nodes", s.Plan.Nodes, "kubeconfig", s.Plan.Kubeconfig(),
			"dur", since(start))
		return nil
	}
	kept := failedDir(s.Plan)
	if rmErr := os.RemoveAll(kept); rmErr != nil {
		return errors.Join(err, rmErr)
	}
	if ctx.Err() != nil {
		kept = "" // the user gave up: the logs tell nothing
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), downTimeout)
	defer cancel()
	c.cfg.Log.Info("up did not succeed, cleaning up", "logs", kept)
	return errors.Join(err, c.remove(clean, s, kept))
}

// failedDir receives the logs of an `up` that did not succeed, until the next up or down.
func failedDir(p plan.Plan) string { return p.StateDir() + ".failed" }

func since(t time.Time) string { return time.Since(t).Round(10 * time.Millisecond).String() }

// already tells whether the cluster is up as asked for. What is left of a killed run is removed.
func (c *Cluster) already(ctx context.Context) (bool, error) {
	s, err := c.State()
	if errors.Is(err, ErrNotUp) {
		// Without a record there may still be groups and a link of this name.
		return false, c.remove(ctx, State{Plan: plan.Plan{Options: c.cfg.Options, Root: c.cfg.Root}}, "")
	}
	if err != nil {
		return false, err
	}
	if !s.Complete || !s.alive() {
		c.cfg.Log.Info("removing what is left of an earlier run", "name", s.Plan.Name)
		return false, c.remove(ctx, s, "")
	}
	if s.Plan.Root != c.cfg.Root {
		return false, fmt.Errorf("bring up cluster %s: the checkout %s has one of this name up; bring it down (cluster down) or give another name",
			s.Plan.Name, s.Plan.Root)
	}
	if s.Plan.Options != c.cfg.Options {
		return false, fmt.Errorf("bring up cluster %s: it is up with other options (nodes %d, proxy %s, family %s); bring it down first",
			s.Plan.Name, s.Plan.Nodes, s.Plan.Proxy, s.Plan.Family)
	}
	u := &ascent{Cluster: c, state: &s, start: time.Now()}
	if err := u.observe(ctx); err != nil {
		return false, fmt.Errorf("check the running cluster %s (bring it down to start anew): %w", s.Plan.Name, err)
	}
	c.cfg.Log.Info("cluster is already up", "name", s.Plan.Name, "kubeconfig", s.Plan.Kubeconfig())
	return true, nil
}

// reserve draws addresses and writes the record, before anything is made that a killed run would leave.
func (c *Cluster) reserve(bin build.Set) (State, error) {
	release, err := lockAddresses()
	if err != nil {
		return State{}, err
	}
	defer release()
	p, err := c.draw()
	if err != nil {
		return State{}, err
	}
	s := State{Plan: p, Bin: bin.Dirs()}
	return s, s.write()
}

// ascent is one run of Up.
type ascent struct {
	*Cluster
	state  *State
	images []string
	start  time.Time
	pipes  []*os.File
	client *kube.Client
}

func (u *ascent) run(ctx context.Context) error {
	if err := loadModules(ctx); err != nil {
		return err
	}
	if err := u.files(); err != nil {
		return err
	}
	if err := u.launch(ctx); err != nil {
		return err
	}
	if err := u.network(); err != nil {
		return err
	}
	for _, p := range u.pipes {
		if _, err := p.Write([]byte{node.GoNetwork}); err != nil {
			return fmt.Errorf("start daemons: %w", err)
		}
	}
	if err := u.observe(ctx); err != nil {
		return err
	}
	// The record first: a kill between the two leaves members that end, which the next `up` sees.
	u.state.Complete = true
	if err := u.state.write(); err != nil {
		return err
	}
	for _, p := range u.pipes {
		if _, err := p.Write([]byte{node.Keep}); err != nil {
			return fmt.Errorf("let the members stay: %w", err)
		}
	}
	return nil
}

// loadModules loads the one kernel module that nothing loads by itself, where it is not built in.
func loadModules(ctx context.Context) error {
	if _, err := os.Stat("/proc/sys/net/bridge"); err == nil {
		return nil
	}
	if out, err := exec.CommandContext(ctx, "modprobe", "br_netfilter").CombinedOutput(); err != nil {
		return fmt.Errorf("load kernel module br_netfilter: %w: %s", err, out)
	}
	return nil
}

// files makes the state directory with certificates and kubeconfigs.
func (u *ascent) files() error {
	p := u.state.Plan
	for _, n := range p.Members() {
		if err := os.MkdirAll(p.MemberDir(n), 0o755); err != nil {
			return fmt.Errorf("make directory of member: %w", err)
		}
	}
	if err := os.MkdirAll(p.PKIDir(), 0o700); err != nil {
		return fmt.Errorf("make directory of certificates: %w", err)
	}
	cfg := pki.Config{
		Dir: p.PKIDir(), Server: p.APIServer(), Now: time.Now(),
		ServerNames: []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc",
			"kubernetes.default.svc.cluster.local", "localhost"},
		ServerIPs: []net.IP{net.ParseIP("127.0.0.1"), net.ParseIP(plan.APIServiceIP)},
	}
	for _, a := range p.MemberAddrs(0) {
		cfg.ServerIPs = append(cfg.ServerIPs, a.Addr().AsSlice())
	}
	for _, n := range p.Members()[1:] {
		cfg.Nodes = append(cfg.Nodes, plan.MemberName(n))
	}
	if err := pki.Write(cfg); err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(p.PKIDir(), "admin.kubeconfig"))
	if err == nil {
		err = os.WriteFile(p.Kubeconfig(), b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	u.client, err = kube.New(p)
	return err
}

func memberCgroup(p plan.Plan, n int) string {
	return filepath.Join(p.CgroupName(), plan.MemberName(n))
}

// launch starts the init process of each member.
func (u *ascent) launch(ctx context.Context) error {
	p := u.state.Plan
	hs, err := sandbox.Hierarchies()
	if err != nil {
		return err
	}
	for _, n := range p.Members() {
		added, err := sandbox.MakeCgroups(hs, memberCgroup(p, n))
		u.state.Controllers = append(u.state.Controllers, added...)
		if err != nil {
			return err
		}
		arg, err := json.Marshal(node.Config{Plan: p, Member: n, Bin: u.state.Bin, EarlyImages: u.images[:1], Netpol: true})
		if err != nil {
			return fmt.Errorf("encode arguments of member: %w", err)
		}
		started, err := sandbox.Start(ctx, u.cfg.Exe, sandbox.Launch{Cgroup: memberCgroup(p, n), Log: p.LogFile(n, "init"), Init: arg})
		if err != nil {
			return err
		}
		u.pipes = append(u.pipes, started.Pipe)
		u.state.Members = append(u.state.Members, started.Proc)
		if err := u.state.write(); err != nil {
			return err
		}
	}
	return nil
}

// network makes the bridge in the control plane's namespace and links every node and the machine to it.
func (u *ascent) network() error {
	p := u.state.Plan
	bridge := u.state.Members[0].PID
	if err := sandbox.MakeBridge(bridge, p.MemberAddrs(0)); err != nil {
		return err
	}
	podRoutes := func(except int) []sandbox.Route {
		var out []sandbox.Route
		for _, n := range p.Members()[1:] {
			for i, cidr := range p.PodCIDRs(n) {
				if n != except {
					out = append(out, sandbox.Route{Dst: cidr, Via: p.MemberAddrs(n)[i].Addr()})
				}
			}
		}
		return out
	}
	var out []sandbox.Route
	for _, a := range p.HostAddrs() {
		out = append(out, sandbox.Route{Via: a.Addr()})
	}
	for _, n := range p.Members()[1:] {
		err := sandbox.Plug(sandbox.Port{BridgePID: bridge, BridgeEnd: plan.MemberName(n), PID: u.state.Members[n].PID, End: "eth0",
			Addrs: p.MemberAddrs(n), Routes: append(podRoutes(n), out...)})
		if err != nil {
			return fmt.Errorf("connect %s: %w", plan.MemberName(n), err)
		}
	}
	err := sandbox.Plug(sandbox.Port{BridgePID: bridge, BridgeEnd: "machine", End: p.HostLink(), Addrs: p.HostAddrs(),
		Routes: podRoutes(0)})
	if err != nil {
		return fmt.Errorf("connect the machine: %w", err)
	}
	return sandbox.AddRoutes(bridge, sandbox.Bridge, append(podRoutes(0), out...))
}

// Deadlines of what `up` waits for; each is many times what it takes on a loaded machine with two cores.
const (
	apiTimeout  = 90 * time.Second
	nodeTimeout = 120 * time.Second
	dnsTimeout  = 90 * time.Second
)

// observe waits until everything that `up` promises was seen.
func (u *ascent) observe(ctx context.Context) error {
	if u.client == nil {
		var err error
		if u.client, err = kube.New(u.state.Plan); err != nil {
			return err
		}
	}
	defer u.client.Close()
	if err := u.wait(ctx, "the API server to be ready", apiTimeout, []logRef{{0, "etcd"}, {0, "apiserver"}}, u.client.Ready); err != nil {
		return err
	}
	if err := u.kubectl(ctx, systemManifest, "apply", "-f", "-"); err != nil {
		return err
	}
	var nodeLogs, dnsLogs []logRef
	for _, n := range u.state.Plan.Members()[1:] {
		nodeLogs = append(nodeLogs, logRef{n, "containerd"}, logRef{n, "ctr"}, logRef{n, "kubelet"})
		dnsLogs = append(dnsLogs, logRef{n, "kubelet"}, logRef{n, "kube-proxy"})
	}
	if err := u.wait(ctx, "all nodes to be Ready", nodeTimeout, nodeLogs, u.nodesReady); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return u.importAll(gctx, u.images[min(1, len(u.images)):]) })
	g.Go(func() error {
		return u.wait(gctx, "the default service account", nodeTimeout, []logRef{{0, "controller-manager"}},
			func(ctx context.Context) error { return u.client.ServiceAccount(ctx, "default") })
	})
	g.Go(func() error {
		return u.wait(gctx, "DNS to answer on every node", dnsTimeout, dnsLogs, u.dnsAnswers)
	})
	return g.Wait()
}

func (u *ascent) nodesReady(ctx context.Context) error {
	nodes, err := u.client.Nodes(ctx)
	if err != nil {
		return err
	}
	for _, n := range u.state.Plan.Members()[1:] {
		why, ok := nodes[plan.MemberName(n)]
		if !ok {
			why = "not registered"
		}
		if why != "" {
			return fmt.Errorf("check %s: %s", plan.MemberName(n), why)
		}
	}
	return nil
}

// dnsAnswers asks the DNS service from inside each node; the way through kube-proxy is part of what is proved.
func (u *ascent) dnsAnswers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for _, n := range u.state.Plan.Members()[1:] {
		var conn net.Conn
		err := sandbox.InNetns(u.state.Members[n].PID, func() (err error) {
			conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(plan.DNSServiceIP), 53)))
			return err
		})
		if err != nil {
			return fmt.Errorf("open DNS socket on %s: %w", plan.MemberName(n), err)
		}
		r := net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}
		ips, err := r.LookupNetIP(ctx, "ip4", "kubernetes.default.svc.cluster.local.")
		conn.Close()
		if err != nil {
			return fmt.Errorf("ask DNS on %s: %w", plan.MemberName(n), err)
		}
		if len(ips) != 1 || ips[0].Unmap().String() != plan.APIServiceIP {
			return fmt.Errorf("ask DNS on %s: got %v, not %s", plan.MemberName(n), ips, plan.APIServiceIP)
		}
	}
	return nil
}
