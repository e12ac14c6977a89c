package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Proc identifies a process for good: a number alone is used again.
type Proc struct {
	PID int `json:"pid"`
	// Start is when it began, in clock ticks since boot (field 22 of /proc/PID/stat).
	Start uint64 `json:"start"`
}

// Alive tells whether the process still runs.
func (p Proc) Alive() bool {
	start, err := startTime(p.PID)
	return p.PID > 0 && err == nil && start == p.Start
}

// AwaitReaped waits until the machine's process 1 has taken note of the end of a killed process, or ctx ends: until then it is
// listed as a zombie.
func (p Proc) AwaitReaped(ctx context.Context) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", p.PID)); err != nil {
			return
		}
		if start, err := startTime(p.PID); err == nil && start != p.Start {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read status of process: %w", err)
	}
	// The command may hold blanks and brackets; the fields after it do not.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 20 || f[0] == "Z" || f[0] == "X" {
		return 0, fmt.Errorf("read status of process %d: it has ended", pid)
	}
	return strconv.ParseUint(f[19], 10, 64)
}

// LaunchArg and InitArg are the hidden commands by which the harness calls itself.
const (
	LaunchArg = "internal-launch"
	InitArg   = "internal-init"
)

// Launch is what the two hidden commands are told, as JSON in their second argument.
type Launch struct {
	// Cgroup is the group to live in, relative to each hierarchy.
	Cgroup string
	// Log receives the output of the init process.
	Log string
	// Init is passed on to the init process.
	Init json.RawMessage
}

// Started is a running init process and the pipe that it obeys: see node.Run.
type Started struct {
	Proc Proc
	Pipe *os.File
}

// Start runs an init process in new net, mnt, uts, ipc, pid and cgroup namespaces whose cgroup root is l.Cgroup. A short-lived
// helper process joins the groups first: the root of a cgroup namespace is the group of the process that makes it.
func Start(ctx context.Context, exe string, l Launch) (Started, error) {
	arg, err := json.Marshal(l)
	if err != nil {
		return Started{}, fmt.Errorf("encode launch arguments: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return Started{}, fmt.Errorf("make pipe to init: %w", err)
	}
	defer r.Close()
	cmd := exec.CommandContext(ctx, exe, LaunchArg, string(arg))
	cmd.ExtraFiles = []*os.File{r}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		w.Close()
		return Started{}, fmt.Errorf("launch init in cgroup %s: %w: %s", l.Cgroup, err, strings.TrimSpace(errs.String()))
	}
	var p Proc
	if err := json.Unmarshal(out, &p); err != nil {
		w.Close()
		return Started{}, fmt.Errorf("read the number of the init process: %w", err)
	}
	return Started{Proc: p, Pipe: w}, nil
}

// RunLaunch is the hidden launch command: it joins the cgroups, starts init in new namespaces and prints its Proc on out.
func RunLaunch(exe, arg string, out io.Writer) error {
	var l Launch
	if err := json.Unmarshal([]byte(arg), &l); err != nil {
		return fmt.Errorf("decode launch arguments: %w", err)
	}
	hs, err := Hierarchies()
	if err != nil {
		return err
	}
	if err := JoinCgroups(hs, l.Cgroup, "", os.Getpid()); err != nil {
		return err
	}
	log, err := os.OpenFile(l.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("open log of init: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(exe, InitArg, string(l.Init))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{os.NewFile(3, "pipe")}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true,
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWPID | unix.CLONE_NEWNET |
			unix.CLONE_NEWCGROUP,
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start init in new namespaces: %w", err)
	}
	start, err := startTime(cmd.Process.Pid)
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(Proc{PID: cmd.Process.Pid, Start: start})
}

// Enter is a command that runs inside a member: its namespaces and its cgroups.
type Enter struct {
	Proc           Proc
	Cgroup         string
	Args           []string
	Env            []string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Run runs the command and waits for it; it is killed when ctx ends. The error is an *exec.ExitError when the
// command ran and ended with another code than 0.
func (e Enter) Run(ctx context.Context) error {
	if !e.Proc.Alive() {
		return fmt.Errorf("enter member: its init process %d is not running", e.Proc.PID)
	}
	hs, err := Hierarchies()
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread is left in the namespaces and ends with the goroutine.
		runtime.LockOSThread()
		done <- e.inside(ctx, hs)
	}()
	return <-done
}

// program finds the command by the PATH that it will have, in the member's file system. What is not found stays a bare name, so
// that the error of the start names it.
func (e Enter) program() string {
	path := ""
	for _, kv := range e.Env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = v // the last one counts
		}
	}
	if strings.Contains(e.Args[0], "/") {
		return e.Args[0]
	}
	for _, dir := range filepath.SplitList(path) {
		file := filepath.Join(dir, e.Args[0])
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return file
		}
	}
	return e.Args[0]
}

func (e Enter) inside(ctx context.Context, hs []Hierarchy) error {
	dirs := map[string]int{}
	defer func() {
		for _, fd := range dirs {
			unix.Close(fd)
		}
	}()
	for _, h := range hs {
		dir := filepath.Join(h.Mount, e.Cgroup)
		if h.Type == "cgroup2" {
			dir = filepath.Join(dir, "system", "exec")
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return fmt.Errorf("make cgroup leaf: %w", err)
			}
		}
		fd, err := unix.Open(filepath.Join(dir, "tasks"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if h.Type == "cgroup2" {
			fd, err = unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		}
		if err != nil {
			return fmt.Errorf("open cgroup of member: %w", err)
		}
		dirs[h.Type+h.Mount] = fd
	}
	attr := &syscall.SysProcAttr{} // no Pdeathsig: across process namespaces its check for a dead parent always fires
	for k, fd := range dirs {
		if strings.HasPrefix(k, "cgroup2") {
			attr.UseCgroupFD, attr.CgroupFD = true, fd
			continue
		}
		// Version 1 groups take single threads; what this thread forks starts in them.
		if _, err := unix.Write(fd, []byte("0")); err != nil {
			return fmt.Errorf("join cgroup %s: %w", k, err)
		}
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare file system attributes: %w", err)
	}
	if err := setns(e.Proc.PID, "cgroup", "ipc", "uts", "net", "pid", "mnt"); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, e.program(), e.Args[1:]...)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = e.Env, e.Stdin, e.Stdout, e.Stderr
	cmd.SysProcAttr = attr
	cmd.Dir = "/"
	return cmd.Run()
}

// setns opens all namespaces before it enters the first: /proc is another one afterwards.
func setns(pid int, kinds ...string) error {
	fds := make([]int, 0, len(kinds))
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for _, k := range kinds {
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, k), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %s namespace of process %d: %w", k, pid, err)
		}
		fds = append(fds, fd)
	}
	for i, fd := range fds {
		if err := unix.Setns(fd, 0); err != nil {
			return fmt.Errorf("enter %s namespace of process %d: %w", kinds[i], pid, err)
		}
	}
	return nil
}

// InNetns runs fn on a thread that is in the network namespace of process pid. fn may make sockets, and do nothing that moves to
// another thread.
func InNetns(pid int, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := setns(pid, "net"); err != nil {
			done <- err
			return
		}
		done <- fn()
	}()
	return <-done
}
