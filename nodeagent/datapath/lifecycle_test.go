package datapath

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/undermesh/undermesh/bpf/types"
	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/nodeagent/netns"
	"github.com/undermesh/undermesh/test/netnstest"
)

// linkIDs are the kernel's numbers of every pinned link, by name.
func (l *lab) linkIDs() map[string]link.ID {
	l.t.Helper()
	ids := map[string]link.ID{}
	for _, pattern := range []string{"links/*", "pods/*/" + progLookup} {
		paths, _ := filepath.Glob(filepath.Join(l.cfg.BPFFS, "undermesh", pattern))
		for _, p := range paths {
			k, err := link.LoadPinnedLink(p, nil)
			if err != nil {
				l.t.Fatal(err)
			}
			info, err := k.Info()
			if err != nil {
				l.t.Fatal(err)
			}
			ids[strings.TrimPrefix(p, l.cfg.BPFFS)] = info.ID
			_ = k.Close()
		}
	}
	return ids
}

// The agent restarts while ztunnel holds the listeners: nothing changes for the pod.
func TestAdoptAfterRestart(t *testing.T) {
	l := newLab(t)
	a, b := l.pod("a", 2), l.pod("b", 3)
	l.app(b, 9000)
	l.enrol(a, func(p *Pod) { p.ExcludeOutPorts = []uint16{9000} }) // serve() holds the listeners as ztunnel would
	handed := map[Kind]*os.File{}
	for k, f := range a.h.Listeners() {
		dup, err := dupFile(f)
		if err != nil {
			t.Fatal(err)
		}
		defer dup.Close()
		handed[k] = dup
	}
	before := l.linkIDs()
	if len(before) != len(hooks)+1 {
		t.Fatalf("%d links are pinned: %v", len(before), before)
	}
	links := filepath.Join(l.cfg.BPFFS, "undermesh/links")
	stale, err := link.LoadPinnedLink(filepath.Join(links, hooks[0].name), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := stale.Pin(filepath.Join(links, "mesh_of_an_older_build")); err != nil { // moves the pin
		t.Fatal(err)
	}
	_ = stale.Close()
	delete(before, "/undermesh/links/"+hooks[0].name)
	_ = l.d.Close()
	l.want("agent away", l.dial(a.ns, "10.95.0.3:9001", netns.Options{}), "OUTBOUND", "10.95.0.3:9001")

	l.d = l.open()
	pods, err := l.d.Pods()
	if err != nil || len(pods) != 1 || pods[0].UID() != "uid-a" {
		t.Fatalf("recovered pods: %v, %v", pods, err)
	}
	h, err := l.d.PreparePod(t.Context(), a.spec())
	if err != nil || h != pods[0] {
		t.Fatalf("prepare again: %v, same handle %v", err, h == pods[0])
	}
	for _, k := range Kinds() {
		if !h.ListenerHeld(k) {
			t.Errorf("%s listener is not held", k)
		}
	}
	if err := errors.Join(h.SetListeners(handed), h.EnsureListeners(), h.AttachInbound()); err != nil {
		t.Fatal(err)
	}
	if on, err := h.OutboundCaptured(); !on || err != nil || !h.InboundAttached() {
		t.Errorf("outbound %v, inbound %v, %v", on, h.InboundAttached(), err)
	}
	after := l.linkIDs()
	if _, ok := after["/undermesh/links/mesh_of_an_older_build"]; ok {
		t.Error("a hook that this build has not is still attached")
	}
	delete(after, "/undermesh/links/"+hooks[0].name)
	if !maps.Equal(before, after) {
		t.Errorf("links before %v, after %v", before, after)
	}
	l.want("after restart", l.dial(a.ns, "10.95.0.3:9001", netns.Options{}), "OUTBOUND", "10.95.0.3:9001")
	l.want("exclusion of the former run is pruned", l.dial(a.ns, "10.95.0.3:9000", netns.Options{}), "OUTBOUND", "10.95.0.3:9000")

	foreign, err := netns.Listen(b.ns, 15006, 1, netns.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	if err := h.SetListeners(map[Kind]*os.File{KindInbound: foreign}); !errors.Is(err, ErrForeignListener) {
		t.Errorf("listener of another namespace: %v", err)
	}
}

const ownerEnv = "MESH_TEST_OWNER"

type ownerTask struct {
	Config Config
	Pod    Pod
	Netns  string
}

// TestMain turns the process into the agent of TestKilledOwnerKeepsCapture when that started it.
func TestMain(m *testing.M) {
	raw := os.Getenv(ownerEnv)
	if raw == "" {
		os.Exit(m.Run())
	}
	if err := own(raw); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	_, _ = io.Copy(io.Discard, os.Stdin) // until killed
}

// own enrols the pod of the task and serves its listeners.
func own(raw string) error {
	var task ownerTask
	if err := json.Unmarshal([]byte(raw), &task); err != nil {
		return err
	}
	ns, err := netns.OpenPath(task.Netns)
	if err != nil {
		return err
	}
	task.Pod.Netns = ns
	d := New(task.Config)
	if err := d.Open(context.Background()); err != nil {
		return err
	}
	h, err := d.PreparePod(context.Background(), task.Pod)
	if err == nil {
		err = errors.Join(h.AttachInbound(), h.CaptureOutbound(true))
	}
	if err != nil {
		return err
	}
	for k, f := range h.Listeners() {
		ln, err := net.FileListener(f)
		if err != nil {
			return err
		}
		go accept(ln, strings.ToUpper(k.String()))
	}
	fmt.Println("enrolled")
	return nil
}

func TestKilledOwnerKeepsCapture(t *testing.T) {
	l := newLab(t)
	a, b := l.pod("a", 2), l.pod("b", 3)
	l.app(a, 9000)
	l.app(b, 9000)
	_ = l.d.Close()
	spec := a.spec()
	spec.Netns = nil
	cfg := l.cfg
	cfg.Log = nil
	task, err := json.Marshal(ownerTask{cfg, spec, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), a.ns.FD())})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), ownerEnv+"="+string(task))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, len("enrolled"))
	if _, err := io.ReadFull(out, buf); err != nil || string(buf) != "enrolled" {
		_ = cmd.Process.Kill()
		t.Fatalf("owner says %q, %v", buf, err)
	}
	l.want("owner lives", l.dial(a.ns, "10.95.0.3:9000", netns.Options{}), "OUTBOUND", "10.95.0.3:9000")
	before := l.linkIDs()
	_ = cmd.Process.Kill()
	_ = cmd.Wait()

	l.refused("outbound, owner killed", l.dial(a.ns, "10.95.0.3:9000", netns.Options{}))
	l.refused("outbound v6, owner killed", l.dial(a.ns, "[fd95::3]:9000", netns.Options{}))
	l.refused("inbound, owner killed", l.dial(b.ns, "10.95.0.2:9000", netns.Options{}))

	l.d = l.open()
	pods, err := l.d.Pods()
	if err != nil || len(pods) != 1 {
		t.Fatalf("recovered pods: %v, %v", pods, err)
	}
	a.h = pods[0]
	if n := l.reason(reason.ListenerMissing); n < 3 {
		t.Errorf("listener_missing counted %d times, want 3 or more", n)
	}
	if a.h.ListenerHeld(KindOutbound) {
		t.Error("the slot of a dead listener is held")
	}
	if a.h, err = l.d.PreparePod(t.Context(), a.spec()); err == nil {
		err = a.h.EnsureListeners()
	}
	if err != nil {
		t.Fatal(err)
	}
	for k, f := range a.h.Listeners() {
		serve(t, f, strings.ToUpper(k.String()))
	}
	l.want("successor", l.dial(a.ns, "10.95.0.3:9000", netns.Options{}), "OUTBOUND", "10.95.0.3:9000")
	l.want("successor, inbound", l.dial(b.ns, "10.95.0.2:9000", netns.Options{}), "INBOUND", "10.95.0.2:9000")
	if after := l.linkIDs(); !maps.Equal(before, after) {
		t.Errorf("links before %v, after %v", before, after)
	}
}

// snapshot is what enrolment may change in a namespace.
func snapshot(t *testing.T, ns *netns.NetNS) []string {
	t.Helper()
	var all []string
	h := netnstest.Handle(t, ns)
	for _, f := range []int{unix.AF_INET, unix.AF_INET6} {
		rules, err := h.RuleList(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rules {
			all = append(all, fmt.Sprint("rule ", f, r))
		}
		routes, err := h.RouteListFiltered(f, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range routes {
			all = append(all, fmt.Sprint("route ", f, r))
		}
	}
	err := ns.Do(func() error {
		for name := range sysctls {
			b, err := os.ReadFile(sysctlPath(name))
			if err != nil {
				return err
			}
			all = append(all, name+"="+strings.TrimSpace(string(b)))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

func TestUnenrolRestores(t *testing.T) {
	l := newLab(t)
	a, b := l.pod("a", 2), l.pod("b", 3)
	l.app(b, 9000)
	// a value of the pod's own must come back, not a default
	err := a.ns.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/tcp_tw_reuse", []byte("0"), 0) })
	if err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, a.ns)
	h := l.enrol(a, func(p *Pod) { p.ExcludeOutPorts = []uint16{7} })
	if slices.Equal(before, snapshot(t, a.ns)) {
		t.Fatal("enrolment changed nothing: the comparison shows nothing")
	}
	live := l.dial(a.ns, "10.95.0.3:9000", netns.Options{})
	l.want("captured", live, "OUTBOUND", "10.95.0.3:9000")
	live6 := l.dial(a.ns, "[fd95::3]:9000", netns.Options{})
	l.want("captured", live6, "OUTBOUND", "[fd95::3]:9000")
	if n, err := h.LiveCaptured(); n != 2 || err != nil {
		t.Errorf("live captured connections: %d, %v, want 2", n, err)
	}
	if err := errors.Join(h.CaptureOutbound(false), h.DetachInbound()); err != nil {
		t.Fatal(err)
	}
	l.want("un-enrolled", l.dial(a.ns, "10.95.0.3:9000", netns.Options{}), "APP", "10.95.0.3:9000")
	if n, err := h.LiveCaptured(); n != 2 || err != nil {
		t.Errorf("live captured connections: %d, %v, want 2: they need rule and route", n, err)
	}
	_, _ = live.conn.Close(), live6.conn.Close()
	l.eventually("captured connections end", func() bool { n, err := h.LiveCaptured(); return n == 0 && err == nil })
	if err := errors.Join(h.Cleanup(t.Context()), h.Cleanup(t.Context())); err != nil {
		t.Fatal(err)
	}
	if after := snapshot(t, a.ns); !slices.Equal(before, after) {
		t.Errorf("before:\n%s\nafter:\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	if left, _ := filepath.Glob(filepath.Join(l.cfg.BPFFS, "undermesh/pods/*")); len(left) != 0 {
		t.Errorf("pins are left: %v", left)
	}
	for _, m := range []string{mapPods, mapUsage, mapPorts, mapExcluded, mapFlows} {
		if n := entries(t, l.d.maps[m]); n != 0 {
			t.Errorf("map %s has %d entries", m, n)
		}
	}
	for _, stop := range a.stop {
		stop() // as ztunnel gives its copies back
	}
	l.enrol(a) // and once more
	l.want("enrolled again", l.dial(a.ns, "10.95.0.3:9000", netns.Options{}), "OUTBOUND", "10.95.0.3:9000")
}

// TestLiveCountsUndelivered: a connection that lies in the plaintext listener's queue, or in ztunnel's hands without a leg to
// the application, has no mark yet. One that ended there would be reset by the removal of a pod that leaves the mesh.
func TestLiveCountsUndelivered(t *testing.T) {
	l := newLab(t)
	a, b := l.pod("a", 2), l.pod("b", 3)
	h := l.enrol(b)
	in := l.dial(a.ns, "10.95.0.3:9000", netns.Options{})
	in6 := l.dial(a.ns, "[fd95::3]:9000", netns.Options{})
	tunnel := l.dial(a.ns, "10.95.0.3:15008", netns.Options{})
	if err := h.DetachInbound(); err != nil {
		t.Fatal(err)
	}
	if n, err := h.LiveCaptured(); n != 2 || err != nil {
		t.Errorf("live captured connections: %d, %v, want 2: both families, and not the tunnel", n, err)
	}
	_, _, _ = in.conn.Close(), in6.conn.Close(), tunnel.conn.Close()
	l.eventually("captured connections end", func() bool { n, err := h.LiveCaptured(); return n == 0 && err == nil })
}

func entries(t *testing.T, m *ebpf.Map) (n int) {
	t.Helper()
	it := m.Iterate()
	k, v := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
	for it.Next(&k, &v) {
		n++
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestCleanupWithoutNetns(t *testing.T) {
	l := newLab(t)
	p := l.pod("gone", 8)
	h, err := l.d.PreparePod(t.Context(), p.spec())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(h.AttachInbound(), h.CaptureOutbound(true)); err != nil {
		t.Fatal(err)
	}
	_ = l.d.Close() // the last descriptors of the namespace go
	netnstest.Release(t, p.ns)
	l.d = l.open()
	if pods, err := l.d.Pods(); err != nil || len(pods) != 1 || pods[0].ns != nil {
		t.Fatalf("recovered pods: %v, %v", pods, err)
	}
	if err := l.d.Prune(t.Context(), func(string) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(l.cfg.BPFFS, "undermesh/pods/*")); len(left) != 0 {
		t.Errorf("pins are left: %v", left)
	}
	if n := entries(t, l.d.maps[mapPods]); n != 0 {
		t.Errorf("%d pods are left", n)
	}
}

func TestAddressChange(t *testing.T) {
	l := newLab(t)
	a := l.pod("a", 2)
	spec := a.spec()
	l.enrol(a)
	spec.IPs = spec.IPs[:1] // loses its IPv6 address
	if err := a.h.UpdateConfig(spec); err != nil {
		t.Fatal(err)
	}
	l.want("v4", l.dial(a.ns, "10.95.0.3:9000", netns.Options{}), "OUTBOUND", "10.95.0.3:9000")
	l.refused("v6 without an address that the mesh knows", l.dial(a.ns, "[fd95::1]:9000", netns.Options{}))
	spec = a.spec()
	if err := a.h.UpdateConfig(spec); err != nil {
		t.Fatal(err)
	}
	l.want("v6 again", l.dial(a.ns, "[fd95::1]:9000", netns.Options{}), "OUTBOUND", "[fd95::1]:9000")
}

func TestDropsAreRecorded(t *testing.T) {
	l := newLab(t)
	a, b := l.pod("a", 2), l.pod("b", 3)
	l.app(a, 9000)
	h := l.enrol(a)
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan Decision, 64)
	done := make(chan error, 1)
	go func() { done <- l.d.Decisions(ctx, func(d Decision) { got <- d }) }()
	expect := func(what string, r Reason, src, dst string, detail uint32) {
		t.Helper()
		late := time.After(3 * time.Second)
		for {
			select {
			case d := <-got:
				if d.Reason == r && d.UID == "uid-a" && d.Src.Addr().String() == src && d.Dst.String() == dst && d.Verdict.String() == "drop" && d.Layer.String() == "sk_lookup" && d.Detail == detail {
					return
				}
			case <-late:
				t.Errorf("%s: no record %s of %s -> %s", what, r, src, dst)
				return
			}
		}
	}
	for _, port := range []int{15001, 15006, 15007, 15053} {
		dst := fmt.Sprintf("10.95.0.2:%d", port)
		n := l.reason(reason.LoopPort)
		l.refused("mesh port from outside", l.dial(b.ns, dst, netns.Options{}))
		if l.reason(reason.LoopPort) == n {
			t.Errorf("%s is not counted", dst)
		}
		expect("mesh port from outside", reason.LoopPort, "10.95.0.3", dst, 0)
		l.refused("mesh port from the pod itself", l.dial(a.ns, dst, netns.Options{}))
		l.refused("mesh port over loopback", l.dial(a.ns, fmt.Sprintf("127.0.0.1:%d", port), netns.Options{}))
	}
	for _, k := range Kinds() { // nobody holds the listeners any more
		if err := h.listeners.Delete(uint32(k)); err != nil {
			t.Fatal(err)
		}
	}
	l.refused("inbound listener missing", l.dial(b.ns, "10.95.0.2:9000", netns.Options{}))
	expect("inbound listener missing", reason.ListenerMissing, "10.95.0.3", "10.95.0.2:9000", uint32(KindInbound))
	l.refused("tunnel listener missing", l.dial(b.ns, "10.95.0.2:15008", netns.Options{}))
	expect("tunnel listener missing", reason.ListenerMissing, "10.95.0.3", "10.95.0.2:15008", uint32(KindTunnel))
	l.refused("outbound listener missing", l.dial(a.ns, "[fd95::3]:9000", netns.Options{}))
	expect("outbound listener missing", reason.ListenerMissing, "fd95::2", "[fd95::3]:9000", uint32(KindOutbound))
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("reader ended with %v", err)
	}
}

func TestLayoutMismatch(t *testing.T) {
	l := newLab(t)
	other := types.BPFMeshMeta{Layout: 99}
	copy(other.Build[:], "v0.0.9")
	if err := l.d.maps[mapMeta].Put(uint32(0), other); err != nil {
		t.Fatal(err)
	}
	before := l.linkIDs()
	_ = l.d.Close()
	err := New(l.cfg).Open(t.Context())
	if !errors.Is(err, ErrLayout) {
		t.Fatalf("open: %v, want ErrLayout", err)
	}
	for _, s := range []string{"layout 99 of build v0.0.9", "layout 1 of build test"} {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("error %q does not name %q", err, s)
		}
	}
	if after := l.linkIDs(); !maps.Equal(before, after) {
		t.Error("links changed")
	}
}

func TestUninstallLeavesNothing(t *testing.T) {
	l := newLab(t)
	a, b := l.pod("a", 2), l.pod("b", 3)
	l.app(b, 9000)
	before := snapshot(t, a.ns)
	l.enrol(a)
	_ = l.d.Close()
	l.d = New(l.cfg) // as `uninstall` would: without Open
	if err := errors.Join(l.d.Uninstall(t.Context()), l.d.Uninstall(t.Context())); err != nil {
		t.Fatal(err)
	}
	if after := snapshot(t, a.ns); !slices.Equal(before, after) {
		t.Errorf("before:\n%s\nafter:\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	if empty, err := noPins(l.cfg.BPFFS); !empty || err != nil {
		t.Errorf("pins are left: %v", err)
	}
	l.want("after uninstall", l.dial(a.ns, "10.95.0.3:9000", netns.Options{}), "APP", "10.95.0.3:9000")
}

func TestProgramsPassVerifier(t *testing.T) {
	l := newLab(t)
	a := l.pod("a", 2)
	l.enrol(a)
	start := time.Now()
	const rounds = 20
	for range rounds {
		p, err := a.h.load(a.h.config, a.h.listeners)
		if err != nil {
			t.Fatalf("%+v", err)
		}
		_ = p.Close()
	}
	t.Logf("one sk_lookup instance: %v", time.Since(start)/rounds)
	l.kubeletGroup()
	paths, _ := filepath.Glob(filepath.Join(l.cfg.BPFFS, "undermesh/links/*"))
	paths = append(paths, filepath.Join(a.h.dir, progLookup))
	if len(paths) != len(hooks)+2 {
		t.Fatalf("links: %v", paths)
	}
	for _, path := range paths {
		k, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			t.Fatal(err)
		}
		info, err := k.Info()
		if err != nil {
			t.Fatal(err)
		}
		p, err := ebpf.NewProgramFromID(info.Program)
		if err != nil {
			t.Fatal(err)
		}
		pi, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		n, _ := pi.VerifiedInstructions()
		size, _ := pi.JitedSize()
		t.Logf("%s: %d verified instructions, %d bytes of machine code", pi.Name, n, size)
		if n == 0 {
			t.Errorf("%s: the kernel verified nothing", pi.Name)
		}
		_, _ = p.Close(), k.Close()
	}
}

func BenchmarkLoadLookup(b *testing.B) {
	netnstest.Require(b)
	bpffs := netnstest.BPFFS(b)
	d := New(Config{BPFFS: bpffs, RunDir: b.TempDir(), CgroupRoot: netnstest.Cgroup(b, netnstest.Cgroup2(b), "dpt")})
	if err := d.Open(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = d.Uninstall(context.Background()) })
	h := d.newHandleLocked(record{UID: "bench"})
	if err := errors.Join(os.MkdirAll(h.dir, 0o700), h.openMapsLocked()); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		p, err := h.load(h.config, h.listeners)
		if err != nil {
			b.Fatal(err)
		}
		_ = p.Close()
	}
}

// What an ADD waits for: prepare, attach, capture.
func TestEnrolmentIsCheap(t *testing.T) {
	l := newLab(t)
	a := l.pod("a", 2)
	var each []time.Duration
	for range 20 {
		start := time.Now()
		h, err := l.d.PreparePod(t.Context(), a.spec())
		if err == nil {
			err = errors.Join(h.AttachInbound(), h.CaptureOutbound(true))
		}
		if err != nil {
			t.Fatal(err)
		}
		each = append(each, time.Since(start))
		if err := h.Cleanup(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(each)
	t.Logf("one enrolment: p50 %v, max %v", each[len(each)/2], each[len(each)-1])
	if p50 := each[len(each)/2]; p50 > 100*time.Millisecond {
		t.Errorf("p50 %v: a SOCKMAP refused and made again, or BTF parsed for each pod, would look like this", p50)
	}
}
