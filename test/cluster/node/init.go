// Package node is what runs as process 1 of a member of the cluster (the control plane or a node), in namespaces of its own:
// it makes the mounts, starts the daemons each in its own cgroup, starts them again when they end, and reaps orphans. When
// it ends the kernel ends everything in its process namespace and drops its mounts and links.
package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/undermesh/undermesh/test/cluster/plan"
	"github.com/undermesh/undermesh/test/cluster/sandbox"
)

// Config is what a member is told; the harness passes it as JSON.
type Config struct {
	Plan plan.Plan
	// Member is 0 for the control plane, else the node's number.
	Member int
	// Bin maps component names of package build to directories.
	Bin map[string]string
	// EarlyImages are imported before kubelet starts: the pause image and DNS.
	EarlyImages []string
	// Netpol starts the NetworkPolicy engine.
	Netpol bool
}

// Bytes that the harness writes into init's pipe. When the pipe ends without Keep the harness died half-way, and the member
// ends too: nothing of a killed `up` stays behind running.
const (
	GoNetwork = 'n' // links and addresses are there
	Keep      = 'k' // the cluster is complete
)

// Run is the hidden init command. It returns only when the member shall end.
func Run(arg string, log *slog.Logger) error {
	var c Config
	if err := json.Unmarshal([]byte(arg), &c); err != nil {
		return fmt.Errorf("decode init arguments: %w", err)
	}
	if os.Getpid() != 1 {
		return errors.New("run init: not process 1 of a process namespace")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	pipe := os.NewFile(3, "pipe")
	unix.CloseOnExec(3)
	if err := unix.Sethostname([]byte(plan.MemberName(c.Member))); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := c.mounts(); err != nil {
		return err
	}
	one := make([]byte, 1)
	if _, err := io.ReadFull(pipe, one); err != nil || one[0] != GoNetwork {
		return fmt.Errorf("wait for the network: the harness ended: %w", err)
	}
	if err := delegate(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		if _, err := io.ReadFull(pipe, one); err != nil || one[0] != Keep {
			cancel(fmt.Errorf("wait for the cluster to be complete: the harness ended: %w", err))
		}
		pipe.Close()
	}()
	if err := c.files(); err != nil {
		return err
	}
	s := newSupervisor(c, log)
	err := s.run(ctx, c.services())
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

// service is one daemon.
type service struct {
	name string
	args []string
	env  []string
	// ready, when set, is polled after the start; services after this one wait for it.
	ready func(context.Context, *supervisor) error
	// once runs after ready, before the next service starts.
	once func(context.Context, *supervisor) error
}

// supervisor owns the daemons and is the only one that waits for children: process 1 also gets the orphans.
type supervisor struct {
	cfg   Config
	log   *slog.Logger
	group string // mount point of the cgroup2 hierarchy

	mu    sync.Mutex // protects below
	waits map[int]chan syscall.WaitStatus
}

func newSupervisor(c Config, log *slog.Logger) *supervisor {
	return &supervisor{cfg: c, log: log, waits: map[int]chan syscall.WaitStatus{}}
}

// Limits of a restart: a daemon that ends soon after its start is started again later and later.
const (
	restartMin   = 200 * time.Millisecond
	restartMax   = 3 * time.Second
	readyTimeout = 60 * time.Second
)

func (s *supervisor) run(ctx context.Context, services []service) error {
	hs, err := sandbox.Hierarchies()
	if err != nil {
		return err
	}
	for _, h := range hs {
		if h.Type == "cgroup2" {
			s.group = h.Mount
		}
	}
	if s.group == "" {
		return errors.New("find the cgroup2 hierarchy: none is mounted")
	}
	sigs := make(chan os.Signal, 1)
	signal.Notify(sigs, syscall.SIGCHLD)
	var all sync.WaitGroup
	all.Go(func() { s.reap(ctx, sigs) })
	for _, svc := range services {
		all.Go(func() { s.keep(ctx, svc) })
		if err := s.await(ctx, svc); err != nil {
			s.log.Error("service is not ready", "service", svc.name, "err", err)
		}
	}
	all.Wait()
	return nil
}

// await waits until svc is ready and does what belongs directly after it.
func (s *supervisor) await(ctx context.Context, svc service) error {
	if svc.ready == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := svc.ready(ctx, s)
		if err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w: %w", svc.name, ctx.Err(), err)
		case <-tick.C:
		}
	}
	if svc.once != nil {
		return svc.once(ctx, s)
	}
	return nil
}

// keep runs svc until ctx ends, again and again.
func (s *supervisor) keep(ctx context.Context, svc service) {
	pause := restartMin
	for ctx.Err() == nil {
		start := time.Now()
		status, err := s.runOnce(ctx, svc.name, svc.args, svc.env)
		if ctx.Err() != nil {
			return
		}
		s.log.Warn("service ended", "service", svc.name, "status", int(status), "err", err)
		if time.Since(start) > 10*restartMax {
			pause = restartMin
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, restartMax)
	}
}

// runOnce starts a program in its cgroup leaf system/name with its log, and waits for its end.
func (s *supervisor) runOnce(ctx context.Context, name string, args, env []string) (syscall.WaitStatus, error) {
	leaf := filepath.Join(s.group, "system", name)
	if err := os.MkdirAll(leaf, 0o755); err != nil {
		return 0, fmt.Errorf("make cgroup of %s: %w", name, err)
	}
	group, err := os.Open(leaf)
	if err != nil {
		return 0, fmt.Errorf("open cgroup of %s: %w", name, err)
	}
	defer group.Close()
	log, err := os.OpenFile(s.cfg.Plan.LogFile(s.cfg.Member, name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return 0, fmt.Errorf("open log of %s: %w", name, err)
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, fmt.Errorf("open null device: %w", err)
	}
	defer null.Close()
	done := make(chan syscall.WaitStatus, 1)
	s.mu.Lock()
	p, err := os.StartProcess(args[0], args, &os.ProcAttr{
		Dir: "/", Env: env,
		Files: []*os.File{null, log, log},
		Sys:   &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(group.Fd())},
	})
	if err != nil {
		s.mu.Unlock()
		return 0, fmt.Errorf("start %s: %w", name, err)
	}
	s.waits[p.Pid] = done
	s.mu.Unlock()
	select {
	case status := <-done:
		return status, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// reap waits for every child, also those that others left behind, until ctx ends.
func (s *supervisor) reap(ctx context.Context, sigs <-chan os.Signal) {
	tick := time.NewTicker(time.Second) // a signal that comes while one is handled is not lost for long
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-sigs:
		case <-tick.C:
		}
		for {
			s.mu.Lock() // a child that ends at once must be in waits before it is looked up
			var status syscall.WaitStatus
			pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
			if err != nil || pid <= 0 {
				s.mu.Unlock()
				break
			}
			done := s.waits[pid]
			delete(s.waits, pid)
			s.mu.Unlock()
			if done != nil {
				done <- status
			}
		}
	}
}
