package cluster_test

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// lifecycleName is a cluster of this test's own, beside whichever is up.
const lifecycleName = "lifecycle"

// harness is the built program and what it is to leave as it was.
type harness struct {
	root, exe string
	settings  map[string]string
}

func newHarness(t *testing.T) harness {
	t.Helper()
	if os.Getenv("MESH_TEST_PRIVILEGED") != "1" {
		t.Skip("brings clusters up: needs root and MESH_TEST_PRIVILEGED=1")
	}
	if os.Geteuid() != 0 {
		t.Fatal("root is needed")
	}
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	h := harness{root: root, exe: filepath.Join(t.TempDir(), "cluster")}
	build := exec.CommandContext(t.Context(), "go", "build", "-o", h.exe, "..")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	h.settings = h.readSettings(t)
	return h
}

func (h harness) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, h.exe, append([]string{"--name", lifecycleName}, args...)...)
	cmd.Env = append(os.Environ(), "UNDERMESH_ROOT="+h.root, "NODES=1", "PROXY=nftables", "FAMILY=ipv4")
	return cmd
}

func (h harness) run(t *testing.T, args ...string) {
	t.Helper()
	if out, err := h.command(t.Context(), args...).CombinedOutput(); err != nil {
		t.Fatalf("cluster %v: %v\n%s", args, err, out)
	}
}

// signalWhen starts `up` and sends sig as soon as a line of its output holds text. It returns how the command ended.
func (h harness) signalWhen(t *testing.T, text string, sig syscall.Signal) error {
	t.Helper()
	cmd := h.command(t.Context(), "up")
	pipe, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	seen := false
	var all strings.Builder
	for s := bufio.NewScanner(pipe); s.Scan(); {
		all.WriteString(s.Text() + "\n")
		if !seen && strings.Contains(s.Text(), text) {
			seen = true
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
		}
	}
	err = cmd.Wait()
	if !seen {
		t.Fatalf("up never said %q: %v\n%s", text, err, all.String())
	}
	return err
}

// settings that the daemons of a node would change for the whole machine.
func (h harness) readSettings(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, name := range []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
		"net/netfilter/nf_conntrack_max"} {
		b, err := os.ReadFile(filepath.Join("/proc/sys", name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		out[name] = string(b)
	}
	return out
}

// processes returns those in a group of the cluster.
func (h harness) processes(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), "/cluster-"+lifecycleName) {
			out = append(out, f)
		}
	}
	return out
}

// traces returns what of the cluster can be found on the machine.
func (h harness) traces(t *testing.T) []string {
	t.Helper()
	out := h.processes(t)
	for _, pattern := range []string{"/sys/fs/cgroup/cluster-" + lifecycleName, "/sys/fs/cgroup/*/cluster-" + lifecycleName,
		"/run/undermesh-clusters/" + lifecycleName + "*", filepath.Join(h.root, ".cache/cluster", lifecycleName+"*")} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, found...)
	}
	if l, err := netlink.LinkByName("uc-" + lifecycleName); err == nil {
		out = append(out, "link "+l.Attrs().Name)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(mounts), "\n") {
		if strings.Contains(line, "/"+lifecycleName) {
			out = append(out, "mount "+line)
		}
	}
	for name, value := range h.readSettings(t) {
		if value != h.settings[name] {
			out = append(out, "setting "+name+" is "+value)
		}
	}
	return out
}

// TestUpAndDownLeaveNoTrace: a killed and an interrupted `up`, `up` on what they left, `up` on a running cluster, `down`.
func TestUpAndDownLeaveNoTrace(t *testing.T) {
	h := newHarness(t)
	t.Cleanup(func() {
		if out, err := h.command(context.WithoutCancel(t.Context()), "down").CombinedOutput(); err != nil {
			t.Errorf("cluster down: %v\n%s", err, out)
		}
	})
	h.run(t, "down")

	if err := h.signalWhen(t, "waited for the API server", syscall.SIGKILL); err == nil {
		t.Fatal("up was not killed")
	}
	// Nobody cleans up now: the members notice by themselves that the harness is gone.
	deadline := time.Now().Add(10 * time.Second)
	for len(h.processes(t)) > 0 {
		if time.Now().After(deadline) {
			t.Fatalf("processes of a killed up live on: %v", h.processes(t))
		}
		<-time.After(50 * time.Millisecond)
	}

	err := h.signalWhen(t, "waited for the API server", syscall.SIGINT)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 130 {
		t.Errorf("an interrupted up ended with %v, want exit code 130", err)
	}
	if left := h.traces(t); len(left) > 0 {
		t.Errorf("an interrupted up left %v", left)
	}

	if err := h.signalWhen(t, "waited for the API server", syscall.SIGKILL); err == nil {
		t.Fatal("up was not killed")
	}
	h.run(t, "up") // on the leftovers
	begin := time.Now()
	h.run(t, "up")
	if d := time.Since(begin); d > 20*time.Second {
		t.Errorf("up of a running cluster took %s", d)
	}
	if out, err := h.command(t.Context(), "up", "--proxy", "iptables").CombinedOutput(); err == nil || !strings.Contains(string(out), "proxy nftables") {
		t.Errorf("up with other options: got %v, %s", err, out)
	}
	out, err := h.command(t.Context(), "node", "1", "--", "hostname").CombinedOutput()
	if err != nil || string(out) != "node1\n" {
		t.Errorf("hostname in node 1: got %q, %v", out, err)
	}
	if out, err := h.command(t.Context(), "node", "1", "--", "ctr", "version").CombinedOutput(); err != nil {
		t.Errorf("ctr in node 1: %v, %s", err, out)
	}
	if len(h.traces(t)) == 0 {
		t.Error("a running cluster shows no trace: the check finds nothing")
	}
	h.run(t, "down")
	if left := h.traces(t); len(left) > 0 {
		t.Errorf("down left %v", left)
	}
}
