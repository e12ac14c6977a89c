package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/undermesh/undermesh/test/cluster/build"
	"github.com/undermesh/undermesh/test/cluster/plan"
	"github.com/undermesh/undermesh/test/cluster/sandbox"
)

// logRef names the log of one component.
type logRef struct {
	member    int
	component string
}

// pollEvery is how often a condition is looked at.
const pollEvery = 100 * time.Millisecond

// wait polls check until it returns nil, and logs what was waited for. When the time is up, or a member ended, the error holds
// the last answer and the ends of the logs.
func (u *ascent) wait(ctx context.Context, what string, limit time.Duration, logs []logRef, check func(context.Context) error) error {
	begin := time.Now()
	parent := ctx
	ctx, cancel := context.WithTimeoutCause(parent, limit, fmt.Errorf("gave up after %s", limit))
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := check(ctx)
		if err == nil {
			u.cfg.Log.Info("waited for "+what, "dur", since(begin), "total", since(u.start))
			return nil
		}
		if !u.state.alive() {
			err = errors.New("a member's init process ended")
			logs = append(logs, logRef{0, "init"}, logRef{1, "init"})
			cancel()
		}
		select {
		case <-ctx.Done():
			if parent.Err() != nil {
				return fmt.Errorf("wait for %s: %w", what, context.Cause(parent))
			}
			return fmt.Errorf("wait for %s: %w: last: %w\n%s", what, context.Cause(ctx), err, u.tails(logs))
		case <-tick.C:
		}
	}
}

// tails returns the ends of logs.
func (u *ascent) tails(logs []logRef) string {
	const keep = 12 // lines of each
	var b strings.Builder
	for _, l := range logs {
		text, err := os.ReadFile(u.state.Plan.LogFile(l.member, l.component))
		if err != nil || len(text) == 0 {
			continue
		}
		lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
		fmt.Fprintf(&b, "--- end of the log of %s on %s:\n", l.component, plan.MemberName(l.member))
		for _, line := range lines[max(0, len(lines)-keep):] {
			fmt.Fprintf(&b, "    %.300s\n", line)
		}
	}
	return b.String()
}

func (u *ascent) kubectl(ctx context.Context, stdin []byte, args ...string) error {
	return u.Cluster.kubectl(ctx, *u.state, bytes.NewReader(stdin), args...)
}

// Kubectl returns the command line prefix of kubectl and the environment that points it at the cluster.
func (s State) Kubectl() (path string, args, env []string) {
	path = filepath.Join(s.Bin[build.Kubernetes], "kubeall")
	env = append(os.Environ(), "KUBECONFIG="+s.Plan.Kubeconfig())
	return path, []string{"kubectl"}, env
}

func (c *Cluster) kubectl(ctx context.Context, s State, stdin io.Reader, args ...string) error {
	path, prefix, env := s.Kubectl()
	cmd := exec.CommandContext(ctx, path, append(prefix, args...)...)
	cmd.Env, cmd.Stdin = env, stdin
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run kubectl %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// importTimeout bounds the import of one image on one node.
const importTimeout = 2 * time.Minute

// importAll imports image files on all nodes, on all at once.
func (u *ascent) importAll(ctx context.Context, files []string) error {
	if len(files) == 0 {
		return nil
	}
	begin := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	for _, n := range u.state.Plan.Members()[1:] {
		g.Go(func() error {
			for _, f := range files {
				if err := u.state.importImage(ctx, n, f); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := g.Wait()
	if err == nil {
		u.cfg.Log.Info("imported images on all nodes", "files", len(files), "dur", since(begin))
	}
	return err
}

func (s State) importImage(ctx context.Context, n int, file string) error {
	ctx, cancel := context.WithTimeout(ctx, importTimeout)
	defer cancel()
	// The file may lie below a directory that the node covers: it goes in by standard input.
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("open image: %w", err)
	}
	defer f.Close()
	var out bytes.Buffer
	e := s.enter(n, []string{filepath.Join(s.Bin[build.Containerd], "ctr"), "-n", "k8s.io", "images", "import", "-"})
	e.Stdin, e.Stdout, e.Stderr = f, &out, &out
	if err := e.Run(ctx); err != nil {
		return fmt.Errorf("import image %s on %s: %w: %s", filepath.Base(file), plan.MemberName(n), err, out.String())
	}
	return nil
}

// enter prepares a command inside member n.
func (s State) enter(n int, args []string) sandbox.Enter {
	path := "PATH=" + s.Bin[build.Containerd] + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	return sandbox.Enter{Proc: s.Members[n], Cgroup: memberCgroup(s.Plan, n), Args: args, Env: append(os.Environ(), path)}
}
