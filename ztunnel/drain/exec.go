package drain

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// LifelineFD is the descriptor under which a worker finds its lifeline.
const LifelineFD = 3

// Exec starts workers as processes and collects the orphans that fall to the container's first process. Safe for
// concurrent use.
type Exec struct {
	Path string   // of the binary
	Args []string // after the program's name
	Env  []string // of the worker

	mu   sync.Mutex
	pids map[int]bool // workers that were started and not yet waited for
}

// Start starts a worker with our stdout and stderr and a lifeline as descriptor 3.
func (e *Exec) Start() (Process, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make lifeline: %w", err)
	}
	defer read.Close()
	cmd := exec.Command(e.Path, e.Args...)
	cmd.Env, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = e.Env, os.Stdout, os.Stderr, []*os.File{read}
	// A group of its own: a terminal's Ctrl-C reaches the supervisor alone, which passes it on.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := cmd.Start(); err != nil {
		write.Close()
		return nil, fmt.Errorf("start %s: %w", e.Path, err)
	}
	if e.pids == nil {
		e.pids = map[int]bool{}
	}
	e.pids[cmd.Process.Pid] = true
	return &execProcess{owner: e, cmd: cmd, lifeline: write}, nil
}

// Reap collects ended children that are not workers: processes whose parent ended before them fall to process 1. Call it
// on SIGCHLD.
func (e *Exec) Reap() {
	for {
		var info unix.Siginfo
		// WNOWAIT leaves the child: a worker's status belongs to its Wait.
		if err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != nil {
			return
		}
		pid := siginfoPID(&info)
		e.mu.Lock()
		ours := pid == 0 || e.pids[pid]
		if !ours {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
		}
		e.mu.Unlock()
		if ours {
			return // the next SIGCHLD or the end of the worker brings us back
		}
	}
}

type execProcess struct {
	owner    *Exec
	cmd      *exec.Cmd
	lifeline *os.File
}

func (p *execProcess) PID() int { return p.cmd.Process.Pid }

func (p *execProcess) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

func (p *execProcess) Wait() (Exit, error) {
	err := p.cmd.Wait()
	p.lifeline.Close()
	p.owner.mu.Lock()
	delete(p.owner.pids, p.PID())
	p.owner.mu.Unlock()
	p.owner.Reap()
	if exited := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exited) {
		return Exit{}, err
	}
	e := Exit{PID: p.PID(), Code: p.cmd.ProcessState.ExitCode()}
	if s, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && s.Signaled() {
		e.Signal = s.Signal()
	}
	return e, nil
}

// Lifeline returns a channel that is closed when the supervisor is gone. f is the worker's descriptor LifelineFD; the goroutine
// that reads it ends with it, or with the process.
func Lifeline(f *os.File) <-chan struct{} {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		defer f.Close()
		// Nothing is ever written: any return is the end.
		_, _ = f.Read(make([]byte, 1))
	}()
	return gone
}

// siginfoPID reads si_pid, which x/sys does not name: it follows three numbers and, on 64-bit platforms, their padding.
func siginfoPID(info *unix.Siginfo) int {
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(info), 16)))
}
