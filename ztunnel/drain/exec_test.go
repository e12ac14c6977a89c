package drain

import (
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func self(t *testing.T, role string) *Exec {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return &Exec{Path: path, Env: append(os.Environ(), roleVar+"="+role)}
}

func TestWorkerMayNotCallBPF(t *testing.T) {
	e := self(t, "bpf")
	cmd := exec.Command(e.Path)
	cmd.Env = e.Env
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func TestExitStatus(t *testing.T) {
	p, err := self(t, "status").Start()
	if err != nil {
		t.Fatal(err)
	}
	if e, err := p.Wait(); err != nil || e.Code != 7 || e.Signal != 0 || e.PID != p.PID() {
		t.Errorf("exit is %+v, %v", e, err)
	}
	p, err = self(t, "lifeline").Start()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e, err := p.Wait(); err != nil || e.Signal != syscall.SIGKILL || e.Code != -1 {
		t.Errorf("exit is %+v, %v", e, err)
	}
}

// A worker whose supervisor is gone learns it through its lifeline.
func TestLifelineEndsWithSupervisor(t *testing.T) {
	started, err := self(t, "lifeline").Start()
	if err != nil {
		t.Fatal(err)
	}
	p := started.(*execProcess)
	ended := make(chan error, 1)
	go func() { ended <- p.cmd.Wait() }()
	select {
	case <-ended:
		t.Fatal("the worker ended although its lifeline holds")
	case <-time.After(200 * time.Millisecond):
	}
	p.lifeline.Close() // what the kernel does when the supervisor dies
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		_ = p.cmd.Process.Kill()
		t.Error("the worker did not notice")
	}
}

// Orphans are collected, and a worker's status is left to its Wait.
func TestReapLeavesWorkers(t *testing.T) {
	e := self(t, "status")
	worker, err := e.Start()
	if err != nil {
		t.Fatal(err)
	}
	waitZombie(t, worker.PID())
	e.Reap()
	if exit, err := worker.Wait(); err != nil || exit.Code != 7 {
		t.Errorf("the worker's status was taken: %+v, %v", exit, err)
	}
	// A child that nobody waits for stands for an orphan.
	orphan, err := syscall.ForkExec(e.Path, []string{e.Path}, &syscall.ProcAttr{Env: e.Env, Files: []uintptr{0, 1, 2}})
	if err != nil {
		t.Fatal(err)
	}
	waitZombie(t, orphan)
	e.Reap()
	if _, err := unix.Wait4(orphan, nil, unix.WNOHANG, nil); err != unix.ECHILD {
		t.Errorf("the orphan is still there: %v", err)
	}
}

func waitZombie(t *testing.T, pid int) {
	t.Helper()
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
}

func TestFilterJumpsStayInside(t *testing.T) {
	f := bpfRefusal(1)
	returns := func(i int) bool { return f[i].Code == unix.BPF_RET|unix.BPF_K }
	for i, in := range f {
		for _, to := range []int{i + 1 + int(in.Jt), i + 1 + int(in.Jf)} {
			if !returns(i) && (to >= len(f)) {
				t.Errorf("instruction %d jumps to %d of %d", i, to, len(f))
			}
		}
	}
	if !returns(len(f) - 1) {
		t.Error("the filter does not end")
	}
	if !slices.ContainsFunc(f, func(in unix.SockFilter) bool { return in.K == unix.SYS_BPF }) {
		t.Error("bpf is not in it")
	}
}
