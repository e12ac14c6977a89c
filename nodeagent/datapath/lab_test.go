package datapath

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/undermesh/undermesh/nodeagent/netns"
	"github.com/undermesh/undermesh/test/netnstest"
)

// lab is a node with a bridge and pods, a cgroup of its own with the hooks on it, and a datapath.
type lab struct {
	t      *testing.T
	cgroup string
	groups map[string]string
	node   *netns.NetNS
	bridge string
	cfg    Config
	d      *Datapath
	pods   map[string]*labPod
}

type labPod struct {
	name   string
	ns     *netns.NetNS
	v4, v6 netip.Addr
	h      *PodHandle
	stop   []func() // ends the servers of the listeners
}

func newLab(t *testing.T) *lab {
	netnstest.Require(t)
	root := netnstest.Cgroup2(t)
	home := ownCgroup(t)
	l := &lab{t: t, groups: map[string]string{}, pods: map[string]*labPod{}}
	l.cgroup = netnstest.Cgroup(t, root, "dpt")
	for _, g := range []string{"app", "proxy", "kubelet"} {
		l.groups[g] = netnstest.Cgroup(t, l.cgroup, g)
	}
	l.groups["child"] = netnstest.Cgroup(t, l.groups["proxy"], "child")
	t.Cleanup(func() { move(t, filepath.Join(root, home)) })
	l.node = netnstest.Netns(t)
	l.bridge = netnstest.Bridge(t, l.node, "dpt", netip.MustParsePrefix("10.95.0.1/24"), netip.MustParsePrefix("fd95::1/64"))
	bpffs := netnstest.BPFFS(t)
	l.cfg = Config{BPFFS: bpffs, RunDir: t.TempDir(), CgroupRoot: l.cgroup, Build: "test", Log: slog.New(slog.DiscardHandler)}
	l.d = l.open()
	t.Cleanup(func() {
		if err := l.d.Uninstall(context.Background()); err != nil {
			t.Errorf("uninstall: %v", err)
		}
	})
	if err := l.d.Exempt(netnstest.CgroupID(t, l.groups["proxy"])); err != nil {
		t.Fatal(err)
	}
	l.join("app")
	return l
}

func (l *lab) open() *Datapath {
	l.t.Helper()
	d := New(l.cfg)
	if err := d.Open(l.t.Context()); err != nil {
		l.t.Fatalf("open: %+v", err)
	}
	return d
}

// ownCgroup is the path of this process in the cgroup2 hierarchy.
func ownCgroup(t *testing.T) string {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "0::"); ok {
			return strings.TrimSpace(rest)
		}
	}
	t.Fatal("process is in no cgroup2")
	return ""
}

func move(t *testing.T, dir string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0); err != nil {
		t.Fatalf("move to cgroup %s: %v", dir, err)
	}
}

// join moves the test process: connect hooks see the cgroup of the caller.
func (l *lab) join(group string) { l.t.Helper(); move(l.t, l.groups[group]) }

// pod makes a namespace with addresses ending in n.
func (l *lab) pod(name string, n int) *labPod {
	l.t.Helper()
	p := &labPod{name: name, ns: netnstest.Netns(l.t), v4: netip.AddrFrom4([4]byte{10, 95, 0, byte(n)}), v6: netip.MustParseAddr(fmt.Sprintf("fd95::%x", n))}
	netnstest.Veth(l.t, l.node, l.bridge, "dpt", p.ns, []netip.Prefix{netip.PrefixFrom(p.v4, 24), netip.PrefixFrom(p.v6, 64)},
		netip.MustParseAddr("10.95.0.1"), netip.MustParseAddr("fd95::1"))
	l.pods[name] = p
	return p
}

func (p *labPod) spec() Pod {
	return Pod{UID: "uid-" + p.name, Netns: p.ns, IPs: []netip.Addr{p.v4, p.v6}}
}

// enrol takes the pod in, both directions, and serves its listeners by their names.
func (l *lab) enrol(p *labPod, change ...func(*Pod)) *PodHandle {
	l.t.Helper()
	spec := p.spec()
	for _, f := range change {
		f(&spec)
	}
	h, err := l.d.PreparePod(l.t.Context(), spec)
	if err != nil {
		l.t.Fatalf("prepare: %+v", err)
	}
	p.h = h
	if err := errors.Join(h.AttachInbound(), h.CaptureOutbound(true)); err != nil {
		l.t.Fatalf("enrol: %+v", err)
	}
	for k, f := range h.Listeners() {
		p.stop = append(p.stop, serve(l.t, f, strings.ToUpper(k.String())))
	}
	return h
}

// app listens in the pod as an application.
func (l *lab) app(p *labPod, port uint16) *os.File {
	l.t.Helper()
	f, err := netns.Listen(p.ns, port, 128, netns.Options{ReuseAddr: true})
	if err != nil {
		l.t.Fatal(err)
	}
	serve(l.t, f, "APP")
	l.t.Cleanup(func() { _ = f.Close() })
	return f
}

// serve answers each connection with "TAG local peer" and holds it until the client ends it, or the test.
func serve(t *testing.T, f *os.File, tag string) (stop func()) {
	t.Helper()
	ln, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { accept(ln, tag) })
	t.Cleanup(wg.Wait)
	t.Cleanup(func() { _ = ln.Close() })
	return func() { _ = ln.Close() }
}

// accept serves until ln is closed and the last client has gone.
func accept(ln net.Listener, tag string) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		wg.Go(func() {
			defer c.Close()
			fmt.Fprintf(c, "%s %s %s\n", tag, c.LocalAddr(), c.RemoteAddr())
			_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
			_, _ = io.Copy(io.Discard, c)
		})
	}
}

// answer is what a server said of a connection.
type answer struct {
	tag         string
	local, peer netip.AddrPort
	conn        *net.TCPConn
	err         error
}

// dial connects from inside ns and reads the server's line; conn stays open until the test ends or it is closed.
func (l *lab) dial(ns *netns.NetNS, dst string, o netns.Options) answer {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), 3*time.Second)
	defer cancel()
	c, err := netns.Dial(ctx, ns, netip.MustParseAddrPort(dst), o)
	if err != nil {
		return answer{err: err}
	}
	return l.read(c)
}

func (l *lab) read(c *net.TCPConn) answer {
	l.t.Helper()
	l.t.Cleanup(func() { _ = c.Close() })
	_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return answer{err: err, conn: c}
	}
	f := strings.Fields(line)
	return answer{tag: f[0], local: unmap(netip.MustParseAddrPort(f[1])), peer: unmap(netip.MustParseAddrPort(f[2])), conn: c}
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// want checks who answered, for which destination.
func (l *lab) want(what string, a answer, tag, local string) {
	l.t.Helper()
	if a.err != nil || a.tag != tag || a.local.String() != local {
		l.t.Errorf("%s: answered by %q for %s (%v), want %s for %s", what, a.tag, a.local, a.err, tag, local)
	}
}

// refused checks that nobody answered, by error or by silence.
func (l *lab) refused(what string, a answer) {
	l.t.Helper()
	if a.err == nil {
		l.t.Errorf("%s: answered by %q for %s, want no answer", what, a.tag, a.local)
	}
}

func (l *lab) event(e string) uint64 {
	l.t.Helper()
	s, err := l.d.Stats()
	if err != nil {
		l.t.Fatal(err)
	}
	n, ok := s.Events[e]
	if !ok {
		l.t.Fatalf("no event %q", e)
	}
	return n
}

func (l *lab) reason(r Reason) uint64 {
	l.t.Helper()
	s, err := l.d.Stats()
	if err != nil {
		l.t.Fatal(err)
	}
	return s.Reasons[r]
}

// eventually polls until ok is true.
func (l *lab) eventually(what string, ok func() bool) {
	l.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(5 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			l.t.Fatalf("%s: not within 5 s", what)
		}
	}
}

func mark(t *testing.T, c *net.TCPConn) int {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var v int
	_ = raw.Control(func(fd uintptr) { v, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK) })
	if err != nil {
		t.Fatal(err)
	}
	return v
}
