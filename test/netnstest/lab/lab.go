// Package lab runs the mesh without Kubernetes: the real binaries on nodes that are network namespaces, each node in a
// cgroup of its own, and a directory of YAML in place of the API server. A test has it in seconds.
//
//	fabric  10.99.0.1/24   the controller (undermesh mesh --config DIR)
//	nodeN   10.99.0.10+N   agent and ztunnel; a bridge 10.99.N.1/24 with the node's pods
//
// Everything ends with the test; processes are ended by pid.
package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/undermesh/undermesh/nodeagent/netns"
	"github.com/undermesh/undermesh/test/netnstest"
)

const prefix = "lab"

// Lab is a running mesh.
type Lab struct {
	T     testing.TB
	Dir   string // the directory of YAML
	Nodes []*Node

	root   string // repository
	bin    string
	tmp    string
	fabric *netns.NetNS
	bridge string
	token  string
	flags  []string // more of ztunnel's
	names  bool     // DNS is served
	left   *os.File // see leftFile
	mesh   *Process
}

// Node is a machine of the lab.
type Node struct {
	Name    string
	NS      *netns.NetNS
	Addr    netip.Addr
	Agent   *Process
	Ztunnel *Process

	lab    *Lab
	n      int
	bridge string
	cgroup string
	dir    string
	pods   int
}

// Config says what to start.
type Config struct {
	Nodes   int      // default 2
	Bare    bool     // no agent, no ztunnel, no controller: for the no-mesh side of a comparison
	Ztunnel []string // more flags of ztunnel
	// Names answers DNS for the pods, who have host names then, and for ztunnel; nil: they have the machine's. It is called from one
	// goroutine, from before New returns until the test's end.
	Names func(name string) (Record, bool)
}

// New builds the lab and starts the mesh. It calls netnstest.Require, and takes away what labs left whose tests were killed.
func New(t testing.TB, cfg Config) *Lab {
	t.Helper()
	netnstest.Require(t)
	if cfg.Nodes == 0 {
		cfg.Nodes = 2
	}
	sweep(t)
	l := &Lab{T: t, tmp: shortTemp(t), token: "lab-token", flags: cfg.Ztunnel}
	l.register()
	l.root = repository(t)
	l.bin = buildBinaries(t, l.root)
	l.Dir = filepath.Join(l.tmp, "config")
	l.must(os.Mkdir(l.Dir, 0o755))
	l.fabric = l.netns()
	l.bridge = netnstest.Bridge(t, l.fabric, prefix, netip.MustParsePrefix("10.99.0.1/24"))
	for n := 1; n <= cfg.Nodes; n++ {
		l.Nodes = append(l.Nodes, l.node(n, cfg.Nodes))
	}
	if cfg.Names != nil {
		l.serveNames(cfg.Names)
	}
	if cfg.Bare {
		return l
	}
	l.StartController()
	for _, n := range l.Nodes {
		n.StartAgent()
		n.StartZtunnel()
	}
	for _, n := range l.Nodes {
		n.AwaitReady()
	}
	return l
}

// shortTemp is a directory whose sockets fit into a socket address.
func shortTemp(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", prefix)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func repository(t testing.TB) string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		t.Fatalf("find repository: %v", err)
	}
	return filepath.Dir(strings.TrimSpace(string(out)))
}

var built struct {
	sync.Once
	dir string
	err error
}

// buildBinaries compiles what the lab runs, once a test process.
func buildBinaries(t testing.TB, root string) string {
	t.Helper()
	built.Do(func() {
		built.dir = filepath.Join(root, ".cache", "lab", "bin")
		for _, args := range [][]string{
			{"build", "-o", built.dir + "/", "./cmd/undermesh", "./cmd/nodeagent", "./cmd/ztunnel", "./cmd/undermesh-cni"},
			{"build", "-C", "test/cluster", "-o", filepath.Join(built.dir, "samples"), "./samples"},
		} {
			cmd := exec.Command("go", args...)
			cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
			if out, err := cmd.CombinedOutput(); err != nil {
				built.err = fmt.Errorf("go %s: %w: %s", strings.Join(args, " "), err, out)
				return
			}
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.dir
}

func (l *Lab) must(err error) {
	l.T.Helper()
	if err != nil {
		l.T.Fatal(err)
	}
}

// node makes a node: its namespace on the fabric, its pods' bridge, routes to the other nodes, its cgroup.
func (l *Lab) node(n, of int) *Node {
	l.T.Helper()
	t := l.T
	node := &Node{lab: l, n: n, Name: fmt.Sprintf("node%d", n), NS: l.netns(), Addr: netip.AddrFrom4([4]byte{10, 99, 0, byte(10 + n)})}
	netnstest.Veth(t, l.fabric, l.bridge, prefix, node.NS, []netip.Prefix{netip.PrefixFrom(node.Addr, 24)}, netip.MustParseAddr("10.99.0.1"))
	node.bridge = netnstest.Bridge(t, node.NS, prefix, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 99, byte(n), 1}), 24))
	l.must(node.NS.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) }))
	fabric := netnstest.Handle(t, l.fabric)
	route, err := netlink.ParseIPNet(fmt.Sprintf("10.99.%d.0/24", n))
	l.must(err)
	l.must(fabric.RouteAdd(&netlink.Route{Dst: route, Gw: node.Addr.AsSlice()}))
	h := netnstest.Handle(t, node.NS)
	for m := 1; m <= of; m++ {
		if m == n {
			continue
		}
		route, err := netlink.ParseIPNet(fmt.Sprintf("10.99.%d.0/24", m))
		l.must(err)
		l.must(h.RouteAdd(&netlink.Route{Dst: route, Gw: []byte{10, 99, 0, byte(10 + m)}}))
	}
	node.cgroup = netnstest.Cgroup(t, netnstest.Cgroup2(t), prefix)
	l.leaves(leftGroup, node.cgroup)
	l.leaves(leftPins, node.pins())
	l.T.Cleanup(func() { _ = os.RemoveAll(node.pins()) }) // an agent that ends leaves them for the next one
	for _, sub := range []string{"system", "system/agent", "system/ztunnel", "kubepods"} {
		node.group(sub)
	}
	node.dir = filepath.Join(l.tmp, node.Name)
	l.must(os.MkdirAll(filepath.Join(node.dir, "netns"), 0o755))
	return node
}

// netns makes a network namespace.
func (l *Lab) netns() *netns.NetNS {
	l.T.Helper()
	ns := netnstest.Netns(l.T)
	l.leaves(leftMount, ns.Path())
	return ns
}

// group makes a cgroup below the node's, which ends with the test.
func (n *Node) group(name string) string {
	n.lab.T.Helper()
	dir := filepath.Join(n.cgroup, name)
	n.lab.must(os.Mkdir(dir, 0o755))
	n.lab.T.Cleanup(func() { removeGroup(n.lab.T, dir) })
	return dir
}

// removeGroup waits for the kernel to let go of the group's ended processes.
func removeGroup(t testing.TB, dir string) {
	err := until(5*time.Second, func() error { return os.Remove(dir) })
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Errorf("remove cgroup: %v", err)
	}
}

// until polls f until it returns nil or the limit is over.
func until(limit time.Duration, f func() error) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	late := time.After(limit)
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-late:
			return err
		}
	}
}

// Until fails the test when f does not return nil within the limit.
func (l *Lab) Until(limit time.Duration, what string, f func() error) {
	l.T.Helper()
	if err := until(limit, f); err != nil {
		l.T.Fatalf("wait %s for %s: %v", limit, what, err)
	}
}

// Process is a running binary of the lab.
type Process struct {
	Name string
	cmd  *exec.Cmd
	log  *os.File
	done chan struct{}
}

// start runs a binary in a namespace and a cgroup; its output goes to a file that is shown when the test fails.
func (l *Lab) start(name string, ns *netns.NetNS, cgroup string, env []string, bin string, args ...string) *Process {
	l.T.Helper()
	p := &Process{Name: name, done: make(chan struct{})}
	var err error
	p.log, err = os.OpenFile(filepath.Join(l.tmp, name+".log"), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o644)
	l.must(err)
	p.cmd = exec.Command(bin, args...)
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Env = p.log, p.log, append(os.Environ(), env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: 0}
	if cgroup != "" {
		dir, err := os.Open(cgroup)
		l.must(err)
		defer dir.Close()
		p.cmd.SysProcAttr.UseCgroupFD, p.cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	if err := ns.Do(p.cmd.Start); err != nil {
		l.T.Fatalf("start %s: %v", name, err)
	}
	l.leaves(leftProcess, fmt.Sprintf("%d %s", p.PID(), startOf(p.PID())))
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	l.T.Cleanup(func() {
		p.End(syscall.SIGTERM)
		if l.T.Failed() {
			l.T.Logf("--- %s ---\n%s", name, p.Tail(60))
		}
		_ = p.log.Close()
	})
	return p
}

// PID is the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// End sends a signal to the process and waits for its end; after 15 s it and its group are killed.
func (p *Process) End(sig syscall.Signal) {
	_ = p.cmd.Process.Signal(sig)
	select {
	case <-p.done:
	case <-time.After(15 * time.Second):
	}
	p.Kill()
}

// Kill ends the process and its group at once.
func (p *Process) Kill() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.done
}

// Alive reports whether the process still runs.
func (p *Process) Alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Tail is the last lines of the process's output.
func (p *Process) Tail(lines int) string {
	b, _ := os.ReadFile(p.log.Name())
	all := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	return string(bytes.Join(all[max(0, len(all)-lines):], []byte("\n")))
}

// Output is everything that the process wrote so far.
func (p *Process) Output() string {
	b, _ := os.ReadFile(p.log.Name())
	return string(b)
}

// OutputFrom is what the process wrote from an offset on, and the offset of its end; a negative offset means the end.
func (p *Process) OutputFrom(offset int64) (string, int64) {
	f, err := os.Open(p.log.Name())
	if err != nil {
		return "", offset
	}
	defer f.Close()
	if offset < 0 {
		end, _ := f.Seek(0, io.SeekEnd)
		return "", end
	}
	b, _ := io.ReadAll(io.NewSectionReader(f, offset, math.MaxInt64-offset))
	return string(b), offset + int64(len(b))
}

// Forget drops what the process wrote so far, for runs that are long.
func (p *Process) Forget() error { return os.Truncate(p.log.Name(), 0) }

// Apply writes a file of the directory of YAML, whole or not at all.
func (l *Lab) Apply(name, yaml string) {
	l.T.Helper()
	tmp := filepath.Join(l.tmp, "apply.tmp")
	l.must(os.WriteFile(tmp, []byte(yaml), 0o644))
	l.must(os.Rename(tmp, filepath.Join(l.Dir, name+".yaml")))
}

// Delete removes such a file.
func (l *Lab) Delete(name string) {
	l.T.Helper()
	l.must(os.Remove(filepath.Join(l.Dir, name+".yaml")))
}

// Run executes a command in a namespace and cgroup and returns its output and exit code.
func (l *Lab) run(ns *netns.NetNS, cgroup string, limit time.Duration, name string, args ...string) (string, int) {
	l.T.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	l.must(runIn(ns, cgroup, cmd))
	return out.String(), cmd.ProcessState.ExitCode()
}

// runIn runs a command in a namespace and cgroup to its end; how it ended is in its state.
func runIn(ns *netns.NetNS, cgroup string, cmd *exec.Cmd) error {
	if cgroup != "" {
		dir, err := os.Open(cgroup)
		if err != nil {
			return err
		}
		defer dir.Close()
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	}
	if err := ns.Do(cmd.Start); err != nil {
		return fmt.Errorf("run %s: %w", cmd.Path, err)
	}
	_ = cmd.Wait()
	return nil
}
