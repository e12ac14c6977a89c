package enroll

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/nodeagent/zds"
	"github.com/undermesh/undermesh/nodeagent/zds/zdsapi"
)

func TestResetterResetsWhatWaitsAndLetsGo(t *testing.T) {
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	f, err := ln.File() // as the agent holds it
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	addr := ln.Addr().String()
	_ = ln.Close()
	waiting, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	var r resetter
	for range 2 { // the second is the same listener
		if err := r.serve("uid/inbound", zdsapi.ListenerKind_INBOUND, f); err != nil {
			t.Fatal(err)
		}
	}
	_ = waiting.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := waiting.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a waiting connection ended with %v, want a reset", err)
	}
	if n := r.stop(); n != 1 {
		t.Errorf("%d connections were reset, want 1", n)
	}
	// ztunnel is back: the same socket serves.
	back, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := back.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = s.Write([]byte("x"))
	_ = s.Close()
	if n, err := c.Read(make([]byte, 1)); n != 1 {
		t.Errorf("a connection after ztunnel's return: %v", err)
	}
}

// procTree makes a proc file system with the given cgroup files.
func procTree(t *testing.T, cgroups map[int]string) string {
	t.Helper()
	root := t.TempDir()
	for pid, text := range cgroups {
		dir := filepath.Join(root, strconv.Itoa(pid))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func mkdir(t *testing.T, parts ...string) uint64 {
	t.Helper()
	dir := filepath.Join(parts...)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestProcessesOfAPod(t *testing.T) {
	proc := procTree(t, map[int]string{7: "4:cpu:/kubepods/podu-1/c\n0::/kubepods/podu-1/c\n", 8: "0::/kubepods/podu-2/c\n", 9: "0::/\n"})
	pids, err := Finder{ProcRoot: proc}.processes("u-1")
	if err != nil || !slices.Equal(pids, []int{7}) {
		t.Errorf("%v %v", pids, err)
	}
}

func TestCgroupOfProcess(t *testing.T) {
	root := t.TempDir()
	want := mkdir(t, root, "kubepods/podu/c")
	hidden := mkdir(t, root, "other/c")
	if err := os.WriteFile(filepath.Join(root, "other/c/cgroup.procs"), []byte("70\n8\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := Cgroups{Root: root, Finder: Finder{ProcRoot: procTree(t, map[int]string{
		7: "1:cpu:/x\n0::/kubepods/podu/c\n", 8: "0::/../../other/c\n", 9: "1:cpu:/x\n", 10: "0::/../gone\n"})}}
	if id, path, err := c.OfProcess(7); err != nil || id != want || path != "/kubepods/podu/c" {
		t.Errorf("%d %s %v", id, path, err)
	}
	if id, path, err := c.OfProcess(8); err != nil || id != hidden || path != "/other/c" {
		t.Errorf("outside the agent's cgroup namespace: %d %s %v", id, path, err)
	}
	for _, pid := range []int{9, 10, 11} {
		if id, _, err := c.OfProcess(pid); err == nil {
			t.Errorf("pid %d has group %d", pid, id)
		}
	}
	if _, err := c.OfPath("/../escape"); err == nil {
		t.Error("a path outside of the hierarchy was followed")
	}
}

func TestKubeletIsTheOwnerOfItsPort(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	port := uint16(ln.Addr().(*net.TCPAddr).Port)
	path, err := Finder{}.cgroup2Path(os.Getpid())
	if err != nil {
		t.Skip("this machine has no cgroup2")
	}
	root := t.TempDir()
	want := KubeletProcess{PID: os.Getpid(), ID: mkdir(t, root, path), Path: path}
	c := Cgroups{Root: root}
	for _, last := range []int{0, os.Getpid(), 1} {
		if got, err := c.Kubelet(port, last); path != "/" && (err != nil || got != want) {
			t.Errorf("last %d: %+v %v, want %+v", last, got, err, want)
		} else if path == "/" && (err == nil || !strings.Contains(err.Error(), "root cgroup")) {
			t.Errorf("last %d: a process in the root cgroup is kubelet: %+v %v", last, got, err)
		}
	}
	_ = ln.Close()
	if _, err := c.Kubelet(port, os.Getpid()); !errors.Is(err, errNoKubelet) {
		t.Errorf("nobody listens: %v", err)
	}
}

// kubeletProc makes a proc file system in which processes of the given groups listen on port 10250 of several addresses.
func kubeletProc(t *testing.T, groups map[int]string) string {
	t.Helper()
	proc := procTree(t, groups)
	if err := os.MkdirAll(filepath.Join(proc, "thread-self/net"), 0o755); err != nil {
		t.Fatal(err)
	}
	table := "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
	for pid := range groups {
		table += fmt.Sprintf("   0: 0100007F:280A 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 %d 1 0 100 0 0 10 0\n", 7000+pid)
		fd := filepath.Join(proc, strconv.Itoa(pid), "fd")
		if err := errors.Join(os.Mkdir(fd, 0o755), os.Symlink(fmt.Sprintf("socket:[%d]", 7000+pid), filepath.Join(fd, "3"))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(proc, "thread-self/net/tcp"), []byte(table), 0o600); err != nil {
		t.Fatal(err)
	}
	return proc
}

// TestKubeletIsNoPod: a pod in the node's network may listen on 127.0.0.1:10250 when kubelet takes the node's address only.
func TestKubeletIsNoPod(t *testing.T) {
	const pod = "3:cpu:/kubepods/burstable/podx/c\n0::/x\n"
	root := t.TempDir()
	want := mkdir(t, root, "system.slice/kubelet.service")
	mkdir(t, root, "x")
	c := Cgroups{Root: root, Finder: Finder{ProcRoot: kubeletProc(t, map[int]string{10: pod, 20: "0::/system.slice/kubelet.service\n"})}}
	for _, last := range []int{0, 10, 20} {
		if k, err := c.Kubelet(10250, last); err != nil || k.PID != 20 || k.ID != want {
			t.Errorf("last %d: %+v %v", last, k, err)
		}
	}
	c.Finder.ProcRoot = kubeletProc(t, map[int]string{10: pod})
	if k, err := c.Kubelet(10250, 0); !errors.Is(err, errNoKubelet) {
		t.Errorf("a pod is taken for kubelet: %+v %v", k, err)
	}
	for name, spoil := range map[string]func(dir string) error{
		"pods": func(dir string) error { return os.MkdirAll(filepath.Join(dir, "deep/kubepods.slice"), 0o755) },
		"agent": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Appendf(nil, "1\n%d\n", os.Getpid()), 0o600)
		},
	} {
		c.Root = t.TempDir()
		mkdir(t, c.Root, "system.slice/containerd.service")
		c.Finder.ProcRoot = kubeletProc(t, map[int]string{20: "0::/system.slice/containerd.service\n"})
		if _, err := c.Kubelet(10250, 0); err != nil {
			t.Fatal(err)
		}
		if err := spoil(filepath.Join(c.Root, "system.slice/containerd.service")); err != nil {
			t.Fatal(err)
		}
		if k, err := c.Kubelet(10250, 20); err == nil {
			t.Errorf("a group that holds the %s is kubelet's: %+v", name, k)
		}
	}
}

func TestTrustedGroups(t *testing.T) {
	c := Cgroups{Root: t.TempDir()}
	for path, want := range map[string]string{
		"/kubepods/burstable/podz/c":    "",
		"/system.slice/ztunnel.service": "",
		"/":                             "root cgroup",
		"/kubepods":                     "pods of the node",
		"/kubepods.slice":               "pods of the node",
		"/kubepods/burstable":           "pods of the node",
		"/kubepods.slice/kubepods-burstable.slice": "pods of the node",
		"/docker":                          "pods of the node in /node/kubepods",
		"/system.slice/containerd.service": "node agent",
	} {
		mkdir(t, c.Root, path)
		switch {
		case strings.Contains(want, "/node/"):
			mkdir(t, c.Root, path, "node/kubepods")
		case want == "node agent":
			mkdir(t, c.Root, path, "x")
			if err := os.WriteFile(filepath.Join(c.Root, path, "x/cgroup.procs"), fmt.Appendln(nil, os.Getpid()), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		err := c.Trusted(path)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

// rules is a fake of the kernel's.
type rules struct {
	mu      sync.Mutex
	exempt  map[uint64]bool
	kubelet []uint64
	refuse  int // so many more calls of SetKubelet fail
}

func (r *rules) Exempt(id uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.exempt[id] = true
	return nil
}
func (r *rules) Unexempt(id uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.exempt, id)
	return nil
}
func (r *rules) Exempted() (ids []uint64, _ error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id := range r.exempt {
		ids = append(ids, id)
	}
	return ids, nil
}
func (r *rules) SetKubelet(id uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.kubelet = append(r.kubelet, id)
	if r.refuse > 0 {
		r.refuse--
		return errors.New("the kernel is busy")
	}
	return nil
}

func (r *rules) has(id uint64) bool { r.mu.Lock(); defer r.mu.Unlock(); return r.exempt[id] }

func TestSupervisorExemptsConnectedGroupsOnly(t *testing.T) {
	root := t.TempDir()
	group := mkdir(t, root, "z")
	k := &rules{exempt: map[uint64]bool{1 << 60: true}, refuse: 2} // left by a group that is gone
	s := NewSupervisor(SupervisorConfig{Rules: k, Log: slog.New(slog.DiscardHandler), KubeletPort: 1, Recheck: 5 * time.Millisecond,
		Cgroups: Cgroups{Root: root, Finder: Finder{ProcRoot: procTree(t, map[int]string{7: "0::/z\n", 8: "0::/\n"})}}})
	if err := s.Admit(t.Context(), zds.Peer{PID: 7}); err != nil || !k.has(group) {
		t.Fatalf("admit: %v, exempt %v", err, k.exempt)
	}
	if err := s.Admit(t.Context(), zds.Peer{PID: 8}); err == nil || !strings.Contains(err.Error(), "root cgroup") {
		t.Errorf("the root group was exempted: %v", err)
	}
	for _, pid := range []int{0, 9} {
		if err := s.Admit(t.Context(), zds.Peer{PID: pid}); err == nil {
			t.Errorf("an invisible process %d was admitted", pid)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	await(t, "stale exemption is removed", func() bool { return !k.has(1 << 60) })
	if !k.has(group) {
		t.Error("the connected ztunnel's exemption was removed")
	}
	moved := mkdir(t, root, "y")
	if err := os.WriteFile(filepath.Join(s.cfg.Cgroups.Finder.ProcRoot, "7/cgroup"), []byte("0::/y\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	await(t, "ztunnel is followed to its new group", func() bool { return k.has(moved) })
	s.Depart(zds.Peer{PID: 7})
	if err := os.Remove(filepath.Join(root, "z")); err != nil {
		t.Fatal(err)
	}
	await(t, "exemption ends with the group", func() bool { return !k.has(group) })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if !slices.Equal(k.kubelet, []uint64{0, 0, 0}) {
		t.Errorf("kubelet was written as %v, want 0 until it was taken", k.kubelet)
	}
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not in time: %s", what)
		}
	}
}

func TestKube(t *testing.T) {
	mine, other := running("a"), running("b")
	other.Spec.NodeName = "n2"
	client := fake.NewClientset(mine, other, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "foo"}})
	var selectors []string
	var mu sync.Mutex
	client.PrependReactor("list", "pods", func(a ktesting.Action) (bool, runtime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		selectors = append(selectors, a.(ktesting.ListAction).GetListRestrictions().Fields.String())
		return false, nil, nil
	})
	k := NewKube(client, "n1")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	changed, stop := k.Watch()
	defer stop()
	await(t, "lists are known", func() bool { _, _, ok := k.List(); return ok })
	<-changed
	mu.Lock()
	if !slices.Contains(selectors, "spec.nodeName=n1") {
		t.Errorf("pods are listed with %q", selectors)
	}
	mu.Unlock()
	if err := k.Annotate(ctx, mine, true); err != nil {
		t.Fatal(err)
	}
	pod, ns, err := k.Get(ctx, "foo", "a")
	if err != nil || ns.Name != "foo" || pod.Annotations[api.AnnotationRedirection] != api.RedirectionEnabled {
		t.Errorf("%v %v", pod.Annotations, err)
	}
	var patch string
	for _, a := range client.Actions() {
		if p, ok := a.(ktesting.PatchAction); ok {
			patch = string(p.GetPatch())
		}
	}
	if !strings.Contains(patch, fmt.Sprintf(`"uid":%q`, mine.UID)) {
		t.Errorf("the patch does not name the pod's UID: %s", patch)
	}
	if err := k.Annotate(ctx, running("gone"), true); err != nil {
		t.Errorf("a pod that is gone: %v", err)
	}
	if _, _, err := k.Get(ctx, "foo", "gone"); !errors.Is(err, ErrPodGone) {
		t.Errorf("a pod that is gone: %v", err)
	}
	k.Event(mine, corev1.EventTypeWarning, "MeshLabelUnknown", "text")
	await(t, "event is sent", func() bool {
		return slices.ContainsFunc(client.Actions(), func(a ktesting.Action) bool { return a.GetResource().Resource == "events" })
	})
	if err := k.Annotate(ctx, mine, false); err != nil {
		t.Fatal(err)
	}
	if pod, _, _ := k.Get(ctx, "foo", "a"); len(pod.Annotations) != 0 {
		t.Errorf("annotation is left: %v", pod.Annotations)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
