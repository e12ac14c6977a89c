// Package netnstest builds network namespaces, links and cgroups for privileged tests, and removes them at their end.
//
// Every test that needs root calls Require first. Names of kernel objects carry the test's prefix and a random number,
// so that runs beside each other do not meet.
package netnstest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/undermesh/undermesh/nodeagent/netns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Env is the variable that makes privileged tests run; with it a test that cannot run fails instead of being skipped.
const Env = "MESH_TEST_PRIVILEGED"

// Require skips the test unless it is to run with privileges, and fails it when it is but cannot.
func Require(t testing.TB) {
	t.Helper()
	if os.Getenv(Env) != "1" {
		t.Skipf("privileged test: set %s=1 and run as root", Env)
	}
	if os.Geteuid() != 0 {
		t.Fatalf("%s=1, but the effective user is %d, not root", Env, os.Geteuid())
	}
}

// name is at most 15 bytes, the limit of an interface's, for a prefix of up to 6.
func name(prefix string) string {
	return fmt.Sprintf("%s-%08x", prefix, rand.Uint32())
}

// Netns makes a network namespace with lo up, mounted at a path as container runtimes do. Release ends it with the test,
// or before.
func Netns(t testing.TB) *netns.NetNS {
	t.Helper()
	path := filepath.Join(t.TempDir(), "netns")
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		t.Fatalf("make mount point: %v", err)
	}
	if err := create(path); err != nil {
		t.Fatalf("create network namespace: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	ns, err := netns.OpenPath(path)
	if err != nil {
		t.Fatalf("open network namespace: %v", err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	// Without detection of duplicates IPv6 addresses are usable, and routes complete, as soon as a link is up.
	err = ns.Do(func() error {
		return errors.Join(os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0),
			os.WriteFile("/proc/sys/net/ipv6/conf/all/accept_dad", []byte("0"), 0))
	})
	if err != nil {
		t.Fatalf("switch duplicate address detection off: %v", err)
	}
	with(t, ns, func(h *netlink.Handle) {
		lo, err := h.LinkByName("lo")
		if err == nil {
			err = h.LinkSetUp(lo)
		}
		if err != nil {
			t.Fatalf("set lo up: %v", err)
		}
	})
	return ns
}

// Release takes away what Netns holds: without other holders the namespace ends.
func Release(t testing.TB, ns *netns.NetNS) {
	t.Helper()
	if err := errors.Join(unix.Unmount(ns.Path(), unix.MNT_DETACH), ns.Close()); err != nil {
		t.Fatalf("release network namespace: %v", err)
	}
}

// create unshares on a thread that dies with its goroutine: it never serves another one.
func create(path string) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
		}
		done <- err
	}()
	return <-done
}

// with runs fn with a handle that holds the namespace no longer than that.
func with(t testing.TB, ns *netns.NetNS, fn func(*netlink.Handle)) {
	t.Helper()
	h := open(t, ns)
	defer h.Close()
	fn(h)
}

// Handle is a route netlink handle inside ns, closed with the test. It keeps the namespace alive.
func Handle(t testing.TB, ns *netns.NetNS) *netlink.Handle {
	t.Helper()
	h := open(t, ns)
	t.Cleanup(h.Close)
	return h
}

func open(t testing.TB, ns *netns.NetNS) *netlink.Handle {
	t.Helper()
	var h *netlink.Handle
	err := ns.Do(func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		t.Fatalf("open netlink in %s: %v", ns.Path(), err)
	}
	return h
}

// Bridge makes a bridge with the addresses inside ns and gives its name.
func Bridge(t testing.TB, ns *netns.NetNS, prefix string, addrs ...netip.Prefix) string {
	t.Helper()
	h := open(t, ns)
	defer h.Close()
	br := name(prefix)
	snooping := false // it loses the first neighbour solicitation of IPv6, which costs a second
	// An address of its own: otherwise it takes that of a port, and changes it under its neighbours.
	mac := net.HardwareAddr{2, 0, byte(rand.Uint32()), byte(rand.Uint32()), byte(rand.Uint32()), byte(rand.Uint32())}
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: br, HardwareAddr: mac}, MulticastSnooping: &snooping}
	if err := h.LinkAdd(link); err != nil {
		t.Fatalf("add bridge %s: %v", br, err)
	}
	configure(t, h, br, addrs)
	return br
}

// Veth joins pod to the bridge of node: inside pod the end is eth0 with the addresses and default routes by the
// gateways.
func Veth(t testing.TB, node *netns.NetNS, bridge, prefix string, pod *netns.NetNS, addrs []netip.Prefix, gateways ...netip.Addr) {
	t.Helper()
	hn, hp := open(t, node), open(t, pod)
	defer hn.Close()
	defer hp.Close()
	host := name(prefix)
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: host}, PeerName: "eth0", PeerNamespace: netlink.NsFd(pod.FD())}
	if err := hn.LinkAdd(link); err != nil {
		t.Fatalf("add veth %s: %v", host, err)
	}
	br, err := hn.LinkByName(bridge)
	if err != nil {
		t.Fatalf("find bridge %s: %v", bridge, err)
	}
	l, err := hn.LinkByName(host)
	if err != nil {
		t.Fatalf("find veth %s: %v", host, err)
	}
	if err := errors.Join(hn.LinkSetMaster(l, br), hn.LinkSetUp(l)); err != nil {
		t.Fatalf("join veth %s to %s: %v", host, bridge, err)
	}
	configure(t, hp, "eth0", addrs)
	eth, err := hp.LinkByName("eth0")
	if err != nil {
		t.Fatalf("find eth0: %v", err)
	}
	for _, gw := range gateways {
		if err := hp.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: gw.AsSlice()}); err != nil {
			t.Fatalf("add default route by %s: %v", gw, err)
		}
	}
	settle(t, hp, eth)
	settle(t, hn, l) // the bridge forwards by it only then
	settle(t, hn, br)
}

// settle waits until the link has its carrier and IPv6 addresses are in use: the kernel does both some time after the
// link is up.
func settle(t testing.TB, h *netlink.Handle, link netlink.Link) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	late := time.After(5 * time.Second)
	for {
		l, err := h.LinkByIndex(link.Attrs().Index)
		if err != nil {
			t.Fatalf("find %s: %v", link.Attrs().Name, err)
		}
		addrs, err := h.AddrList(l, netlink.FAMILY_V6)
		if err != nil {
			t.Fatalf("list addresses of %s: %v", link.Attrs().Name, err)
		}
		tentative := func(a netlink.Addr) bool { return a.Flags&unix.IFA_F_TENTATIVE != 0 }
		local := func(a netlink.Addr) bool { return a.Scope == unix.RT_SCOPE_LINK }
		if l.Attrs().OperState == netlink.OperUp && !slices.ContainsFunc(addrs, tentative) && slices.ContainsFunc(addrs, local) {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s is not up within 5 s", link.Attrs().Name)
		}
	}
}

func configure(t testing.TB, h *netlink.Handle, link string, addrs []netip.Prefix) {
	t.Helper()
	l, err := h.LinkByName(link)
	if err != nil {
		t.Fatalf("find %s: %v", link, err)
	}
	for _, p := range addrs {
		a, err := netlink.ParseAddr(p.String())
		if err != nil {
			t.Fatalf("address %s: %v", p, err)
		}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD // usable at once
		}
		if err := h.AddrAdd(l, a); err != nil {
			t.Fatalf("add address %s to %s: %v", p, link, err)
		}
	}
	if err := h.LinkSetUp(l); err != nil {
		t.Fatalf("set %s up: %v", link, err)
	}
}

// Cgroup2 is the mount point of the cgroup2 hierarchy.
func Cgroup2(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatalf("read mounts: %v", err)
	}
	for line := range strings.Lines(string(b)) {
		before, after, _ := strings.Cut(line, " - ")
		f := strings.Fields(before)
		if strings.HasPrefix(after, "cgroup2 ") && len(f) > 4 && f[3] == "/" {
			return f[4]
		}
	}
	t.Fatal("no cgroup2 hierarchy is mounted")
	return ""
}

// Cgroup makes a cgroup below the one at parent and removes it with the test. Processes in it are moved to the parent.
func Cgroup(t testing.TB, parent, prefix string) string {
	t.Helper()
	dir := filepath.Join(parent, name(prefix))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatalf("make cgroup: %v", err)
	}
	t.Cleanup(func() {
		b, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		for pid := range strings.FieldsSeq(string(b)) {
			_ = os.WriteFile(filepath.Join(parent, "cgroup.procs"), []byte(pid), 0)
		}
		if err := os.Remove(dir); err != nil {
			t.Errorf("remove cgroup %s: %v", dir, err)
		}
	})
	return dir
}

// CgroupID is the id that BPF programs see.
func CgroupID(t testing.TB, dir string) uint64 {
	t.Helper()
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, dir, 0)
	if err != nil {
		t.Fatalf("read id of cgroup %s: %v", dir, err)
	}
	return binary.NativeEndian.Uint64(h.Bytes())
}

// BPFFS mounts a BPF file system of the test's own and unmounts it at the end, pins and all.
func BPFFS(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatalf("mount bpffs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount bpffs: %v", err)
		}
	})
	return dir
}
