package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/undermesh/undermesh/test/cluster/plan"
	"github.com/undermesh/undermesh/test/cluster/sandbox"
)

// Down removes every trace of the cluster but caches. It is no error when there is none.
func (c *Cluster) Down(ctx context.Context) error {
	release, err := c.lock()
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, downTimeout)
	defer cancel()
	s, err := c.State()
	switch {
	case errors.Is(err, ErrNotUp):
		s = State{Plan: plan.Plan{Options: c.cfg.Options, Root: c.cfg.Root}}
	case err != nil:
		c.cfg.Log.Warn("record is not readable, removing by name", "err", err)
		s = State{Plan: plan.Plan{Options: c.cfg.Options, Root: c.cfg.Root}}
	}
	if err := c.remove(ctx, s, ""); err != nil {
		return err
	}
	if err := os.RemoveAll(failedDir(s.Plan)); err != nil {
		return fmt.Errorf("remove logs of a failed run: %w", err)
	}
	c.cfg.Log.Info("cluster is down", "name", s.Plan.Name)
	return nil
}

// reapTimeout is how long zombies of a removed cluster are waited for; they are not the cluster's to remove.
const reapTimeout = 3 * time.Second

// remove kills all members and removes link, groups, state and record. Everything is found by name, so that it works for
// what a killed run left. When keep is not empty the state directory is moved there, less what is big.
func (c *Cluster) remove(ctx context.Context, s State, keep string) error {
	// Process 1 first: the kernel then ends all of its namespace at once, and nothing can start anew.
	for _, p := range s.Members {
		if p.Alive() {
			if err := unix.Kill(p.PID, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill init process %d: %w", p.PID, err)
			}
		}
	}
	hs, err := sandbox.Hierarchies()
	if err != nil {
		return err
	}
	if err := sandbox.RemoveCgroups(ctx, hs, s.Plan.CgroupName()); err != nil {
		return err
	}
	if err := sandbox.RestoreRoot(hs, s.Controllers); err != nil {
		return err
	}
	reaped, cancel := context.WithTimeout(ctx, reapTimeout)
	defer cancel()
	for _, p := range s.Members {
		p.AwaitReaped(reaped)
	}
	if err := sandbox.RemoveLink(s.Plan.HostLink()); err != nil {
		return err
	}
	if keep != "" {
		for _, n := range s.Plan.Members() {
			for _, big := range []string{"etcd", "var", "etc", "opt"} {
				if err := os.RemoveAll(filepath.Join(s.Plan.MemberDir(n), big)); err != nil {
					return fmt.Errorf("remove state of member: %w", err)
				}
			}
		}
		if err := os.Rename(s.Plan.StateDir(), keep); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("keep logs: %w", err)
		}
	}
	if err := os.RemoveAll(s.Plan.StateDir()); err != nil {
		return fmt.Errorf("remove state: %w", err)
	}
	for _, f := range []string{s.Plan.Kubeconfig(), recordFile(s.Plan.Name)} {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove record: %w", err)
		}
	}
	return nil
}
