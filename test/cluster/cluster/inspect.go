package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/undermesh/undermesh/test/cluster/kube"
	"github.com/undermesh/undermesh/test/cluster/plan"
	"github.com/undermesh/undermesh/test/cluster/sandbox"
)

// Run runs a command inside member n. The error is an *exec.ExitError when the command ended with another code than 0.
func (c *Cluster) Run(ctx context.Context, n int, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	s, err := c.running()
	if err != nil {
		return err
	}
	if n < 0 || n > s.Plan.Nodes {
		return fmt.Errorf("find node %d: cluster %s has nodes 1 to %d", n, s.Plan.Name, s.Plan.Nodes)
	}
	e := s.enter(n, args)
	e.Env = append(e.Env, "KUBECONFIG="+s.Plan.Kubeconfig())
	e.Stdin, e.Stdout, e.Stderr = stdin, stdout, stderr
	return e.Run(ctx)
}

// Load imports image files on all nodes.
func (c *Cluster) Load(ctx context.Context, files []string) error {
	s, err := c.running()
	if err != nil {
		return err
	}
	u := &ascent{Cluster: c, state: &s, start: time.Now()}
	return u.importAll(ctx, files)
}

// LogFiles returns the log files of a component, on all members or, as COMPONENT/N, on one.
func (c *Cluster) LogFiles(component string) ([]string, error) {
	s, err := c.State()
	if err != nil {
		return nil, err
	}
	name, on, one := strings.Cut(component, "/")
	var out []string
	for _, n := range s.Plan.Members() {
		if one && on != strconv.Itoa(n) && on != plan.MemberName(n) {
			continue
		}
		if f := s.Plan.LogFile(n, name); filepath.Base(f) == name+".log" {
			if _, err := os.Stat(f); err == nil {
				out = append(out, f)
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("find log of %s: cluster %s has none", component, s.Plan.Name)
	}
	return out, nil
}

// Status returns a table: the cluster, its members with their daemons' processes, and what the API server says of them.
func (c *Cluster) Status(ctx context.Context) ([][]string, error) {
	s, err := c.State()
	if err != nil {
		return nil, err
	}
	rows := [][]string{{"MEMBER", "ADDRESS", "INIT", "DAEMONS", "STATE"}}
	nodes, apiErr := map[string]string{}, error(nil)
	client, err := kube.New(s.Plan)
	if err == nil {
		defer client.Close()
		nodes, apiErr = client.Nodes(ctx)
	}
	hs, err := sandbox.Hierarchies()
	if err != nil {
		return nil, err
	}
	bad := !s.Complete
	for n, p := range s.Members {
		name := plan.MemberName(n)
		state := "Ready"
		switch why, ok := nodes[name]; {
		case !p.Alive():
			state = "dead"
		case apiErr != nil:
			state = apiErr.Error()
		case n > 0 && !ok:
			state = "not registered"
		case why != "":
			state = why
		}
		bad = bad || state != "Ready"
		rows = append(rows, []string{name, s.Plan.MemberAddrs(n)[0].Addr().String(), strconv.Itoa(p.PID), daemons(hs, memberCgroup(s.Plan, n)), state})
	}
	if bad {
		return rows, errors.New("check the cluster: not all of it is up")
	}
	return rows, nil
}

// daemons lists the groups below system and the first process of each.
func daemons(hs []sandbox.Hierarchy, group string) string {
	var out []string
	for _, h := range hs {
		if h.Type != "cgroup2" {
			continue
		}
		dirs, err := os.ReadDir(filepath.Join(h.Mount, group, "system"))
		if err != nil {
			return err.Error()
		}
		for _, d := range dirs {
			pids, err := sandbox.Processes([]sandbox.Hierarchy{h}, filepath.Join(group, "system", d.Name()))
			if err == nil && len(pids) > 0 && d.Name() != "init" && d.Name() != "exec" {
				out = append(out, fmt.Sprintf("%s(%d)", d.Name(), pids[0]))
			}
		}
	}
	return strings.Join(out, " ")
}
