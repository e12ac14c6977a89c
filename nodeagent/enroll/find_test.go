package enroll

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/nodeagent/netns"
	"github.com/undermesh/undermesh/test/netnstest"
)

// findLab is a node's view of processes and mounts.
type findLab struct {
	t *testing.T
	f Finder
}

// process adds a process in a cgroup and a namespace.
func (l findLab) process(pid int, group, ns string) {
	l.t.Helper()
	dir := filepath.Join(l.f.ProcRoot, strconv.Itoa(pid))
	if err := os.MkdirAll(filepath.Join(dir, "ns"), 0o755); err != nil {
		l.t.Fatal(err)
	}
	err := errors.Join(os.WriteFile(filepath.Join(dir, "cgroup"), []byte(group), 0o600), os.Symlink(ns, filepath.Join(dir, "ns/net")))
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l findLab) mount(name string, ns *netns.NetNS) {
	l.t.Helper()
	if err := os.Symlink(ns.Path(), filepath.Join(l.f.NetnsDir, name)); err != nil {
		l.t.Fatal(err)
	}
}

// TestFindNeedsProcessAndMount finds a pod in the namespace that the runtime mounted and a process of the pod is in, and
// in no other, whatever addresses others have.
func TestFindNeedsProcessAndMount(t *testing.T) {
	netnstest.Require(t)
	node, pod, evil, foreign := netnstest.Netns(t), netnstest.Netns(t), netnstest.Netns(t), netnstest.Netns(t)
	bridge := netnstest.Bridge(t, node, "agt", netip.MustParsePrefix("10.93.0.1/24"))
	addr := netip.MustParseAddr("10.93.0.5")
	for _, ns := range []*netns.NetNS{pod, evil} {
		netnstest.Veth(t, node, bridge, "agt", ns, []netip.Prefix{netip.PrefixFrom(addr, 24)})
	}
	netnstest.Veth(t, node, bridge, "agt", foreign, []netip.Prefix{netip.MustParsePrefix("10.93.0.6/24")})
	const group, attacker = "0::/kubepods/podu-1/c\n", "0::/kubepods/podu-2/c/podu-1\n"
	for name, c := range map[string]struct {
		make func(findLab)
		want error // nil: pod
	}{
		"process and mount": {make: func(l findLab) { l.process(5, group, pod.Path()); l.mount("cni-a", pod) }},
		"a mount of another runtime": {make: func(l findLab) {
			l.process(5, "0::/kubepods.slice/kubepods-podu_1.slice/crio-c.scope\n", pod.Path())
			l.mount("b6a1", pod)
		}},
		"the pod's own decoy comes first": {make: func(l findLab) {
			l.process(500, group, pod.Path())
			l.process(1000, group, evil.Path()) // unshare -Urn; 1000 sorts before 500
			l.mount("cni-z", pod)
		}},
		"a decoy and no mount":   {make: func(l findLab) { l.process(5, group, evil.Path()) }, want: errNoNetns},
		"a mount and no process": {make: func(l findLab) { l.mount("cni-a", pod) }, want: errNoNetns},
		"the mount of a pod that got the address": {make: func(l findLab) {
			l.process(5, "0::/kubepods/podu-2/c\n", evil.Path())
			l.mount("cni-a", evil)
		}, want: errNoNetns},
		"a nested group of another pod": {make: func(l findLab) { l.process(5, attacker, evil.Path()); l.mount("cni-a", evil) }, want: errNoNetns},
		"a process that entered another pod": {make: func(l findLab) {
			l.process(5, group, foreign.Path())
			l.mount("cni-a", foreign)
		}, want: errNoNetns},
		"a process in another pod with the address": {make: func(l findLab) {
			l.process(5, group, pod.Path())
			l.process(6, group, evil.Path())
			l.mount("cni-a", evil)
			l.mount("cni-b", pod)
		}, want: errAmbiguous},
		"the node's own": {make: func(l findLab) { l.process(5, group, "/proc/self/ns/net") }, want: errNoNetns},
	} {
		t.Run(name, func(t *testing.T) {
			l := findLab{t: t, f: Finder{ProcRoot: t.TempDir(), NetnsDir: t.TempDir()}}
			c.make(l)
			ns, err := l.f.Find("u-1", []netip.Addr{netip.MustParseAddr("fd00::5"), addr})
			if ns != nil {
				defer ns.Close()
			}
			if !errors.Is(err, c.want) {
				t.Fatalf("%v, want %v", err, c.want)
			}
			if c.want == nil && ns.ID() != pod.ID() {
				t.Errorf("found %s", ns.Path())
			}
		})
	}
}

func TestPodOfCgroup(t *testing.T) {
	const uid, other = "0a-1b", "ff-ff"
	for path, want := range map[string]bool{
		"/kubepods/pod0a-1b/c":                      true, // guaranteed
		"/kubepods/besteffort/pod0a-1b":             true,
		"/kubepods/burstable/pod0a-1b/c/init":       true,
		"/node1/kubepods/burstable/pod0a-1b/c":      true, // --cgroup-root, or a node in a group
		"/kubepods.slice/kubepods-pod0a_1b.slice/c": true,
		"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0a_1b.slice/cri-containerd-c.scope":                    true,
		"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod0a_1b.slice/c": true,
		"/../../pod0a-1b/c":                                                 true, // the agent is in a cgroup namespace of its own
		"/../../../besteffort/pod0a-1b/c":                                   true,
		"/../../../../kubepods/besteffort/pod0a-1b":                         true,
		"/../../kubepods-besteffort-pod0a_1b.slice/c":                       true,
		"/kubepods/podff-ff/c/pod0a-1b":                                     false, // a container names its groups as it likes
		"/kubepods/podff-ff/c/kubepods/pod0a-1b":                            false,
		"/kubepods/besteffort/podff-ff/burstable/pod0a-1b":                  false,
		"/kubepods.slice/kubepods-podff_ff.slice/c/kubepods-pod0a_1b.slice": false,
		"/../../podff-ff/c/kubepods/pod0a-1b":                               false,
		"/system.slice/pod0a-1b":                                            false,
		"/kubepods/pod0a_1b":                                                false,
		"/kubepods/pod":                                                     false,
		"/kubepods":                                                         false,
		"/":                                                                 false,
		"/..":                                                               false,
	} {
		if got := inPod("0::"+path+"\n", uid); got != want {
			t.Errorf("%s: %t", path, got)
		}
		if inPod("0::"+path+"\n", other) && want {
			t.Errorf("%s is of two pods", path)
		}
	}
	if g, below := podOf("/kubepods/burstable"); g != (podGroup{}) || !below {
		t.Errorf("the group of all pods of a class is %+v, %t", g, below)
	}
	if inPod("4:cpu:/kubepods/pod0a-1b/c\n0::/kubepods/podff-ff/c\n", uid) {
		t.Error("a process in the groups of two pods is taken")
	}
	if !inPod("4:cpu:/kubepods/pod0a-1b/c\n2:pids:/\n0::/system.slice/containerd.service\n", uid) {
		t.Error("a process that is in the pod's group in some hierarchies is not taken")
	}
}

func TestGroupUIDOfStaticPods(t *testing.T) {
	pod := func(hash, mirror, owner string) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "api"}, Spec: corev1.PodSpec{NodeName: "n1"}}
		p.Annotations = map[string]string{configHash: hash, configMirror: mirror}
		p.OwnerReferences = []metav1.OwnerReference{{Kind: owner, Name: "n1"}}
		return p
	}
	for want, p := range map[string]*corev1.Pod{"static": pod("static", "static", "Node"), "api": pod("victim", "victim", "ReplicaSet")} {
		if got := groupUID(p); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if got := groupUID(pod("victim", "", "Node")); got != "api" {
		t.Errorf("a pod that is no mirror: %s", got)
	}
}

func FuzzPodOfCgroup(f *testing.F) {
	f.Add("/kubepods/podu/c")
	f.Add("/../../kubepods-besteffort-podu.slice")
	f.Fuzz(func(t *testing.T, path string) {
		if g, below := podOf(path); g != (podGroup{}) && (!below || g.uid == "") {
			t.Errorf("%q: %+v %t", path, g, below)
		}
	})
}
