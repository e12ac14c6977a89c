package cluster

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/undermesh/undermesh/test/cluster/plan"
	"github.com/undermesh/undermesh/test/cluster/sandbox"
)

// Pause stops the processes of a daemon, named as by LogFiles, where they are: its connections stay open and nobody answers.
func (c *Cluster) Pause(component string) error { return c.signal(component, syscall.SIGSTOP) }

// Resume lets a daemon that was paused go on.
func (c *Cluster) Resume(component string) error { return c.signal(component, syscall.SIGCONT) }

func (c *Cluster) signal(component string, sig syscall.Signal) error {
	s, err := c.running()
	if err != nil {
		return err
	}
	hs, err := sandbox.Hierarchies()
	if err != nil {
		return err
	}
	name, on, one := strings.Cut(component, "/")
	if name == "" || filepath.Base(name) != name {
		return fmt.Errorf("find daemon %q: it is no name", name)
	}
	found := 0
	for _, n := range s.Plan.Members() {
		if one && on != strconv.Itoa(n) && on != plan.MemberName(n) {
			continue
		}
		pids, err := sandbox.Processes(hs, filepath.Join(memberCgroup(s.Plan, n), "system", name))
		if err != nil {
			return err
		}
		for _, pid := range pids {
			if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("signal %s of %s: %w", name, plan.MemberName(n), err)
			}
			found++
		}
	}
	if found == 0 {
		return fmt.Errorf("find daemon %s: cluster %s has none", component, s.Plan.Name)
	}
	return nil
}
