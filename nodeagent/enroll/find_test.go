package enroll

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/undermesh/undermesh/nodeagent/netns"
	"github.com/undermesh/undermesh/test/netnstest"
)

// TestFindOwnsTheAddress finds a pod by its processes and by the runtime's mount, and takes no namespace that lacks the
// pod's address: a privileged container may have entered another pod's or the node's.
func TestFindOwnsTheAddress(t *testing.T) {
	netnstest.Require(t)
	node, pod, other := netnstest.Netns(t), netnstest.Netns(t), netnstest.Netns(t)
	bridge := netnstest.Bridge(t, node, "agt", netip.MustParsePrefix("10.93.0.1/24"))
	addr, foreign := netip.MustParseAddr("10.93.0.5"), netip.MustParseAddr("10.93.0.6")
	netnstest.Veth(t, node, bridge, "agt", pod, []netip.Prefix{netip.PrefixFrom(addr, 24)})
	netnstest.Veth(t, node, bridge, "agt", other, []netip.Prefix{netip.PrefixFrom(foreign, 24)})
	const group = "0::/kubepods/podu-1/c\n"
	proc := procTree(t, map[int]string{5: group, 6: group, 7: group, 8: "0::/\n"})
	enter := func(pid int, target string) {
		t.Helper()
		dir := filepath.Join(proc, strconv.Itoa(pid), "ns")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, filepath.Join(dir, "net")); err != nil {
			t.Fatal(err)
		}
	}
	enter(5, "/proc/self/ns/net") // the node's
	enter(6, other.Path())
	enter(8, pod.Path()) // no process of the pod
	mounts := t.TempDir()
	f := Finder{ProcRoot: proc, NetnsDir: mounts}
	if ns, err := f.Find("u-1", []netip.Addr{addr}); !errors.Is(err, errNoNetns) {
		t.Fatalf("found %v, %v", ns, err)
	}
	enter(7, pod.Path())
	find := func(what string) {
		t.Helper()
		ns, err := f.Find("u-1", []netip.Addr{netip.MustParseAddr("fd00::5"), addr})
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		defer ns.Close()
		if ns.ID() != pod.ID() {
			t.Errorf("%s: found another namespace", what)
		}
	}
	find("by a process")
	if err := os.RemoveAll(filepath.Join(proc, "7")); err != nil {
		t.Fatal(err)
	}
	for name, ns := range map[string]*netns.NetNS{"cni-a": other, "cni-b": pod, "unrelated": pod} {
		if err := os.Symlink(ns.Path(), filepath.Join(mounts, name)); err != nil {
			t.Fatal(err)
		}
	}
	find("by the runtime's mount")
}
