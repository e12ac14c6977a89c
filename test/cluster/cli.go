package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/undermesh/undermesh/test/cluster/cluster"
	"github.com/undermesh/undermesh/test/cluster/plan"
)

const usage = `usage: cluster [--name NAME] COMMAND

  up [--nodes 2] [--proxy nftables|iptables] [--family ipv4|dual]
                        bring a cluster up: nodes Ready, DNS answering, images there
  down                  remove every trace of it
  status                members, daemons, readiness
  kubectl ARGS...       kubectl against it
  node N -- CMD...      run a command inside node N (0 or "control" is the control plane)
  load IMAGE.tar...     import images on all nodes
  logs COMPONENT[/N] [-f]   etcd apiserver controller-manager scheduler; kubelet containerd kube-proxy netpol init ctr
  pause COMPONENT[/N]   stop a daemon where it is: its connections stay open and nobody answers; resume lets it go on
  resume COMPONENT[/N]
  build                 compile (or find in the cache) all that a cluster runs
  samples               write the images of samples and client to .cache/images
  image -name REF -o FILE.tar [-entrypoint PATH] [-link PATH=TARGET]... SRC:DST...
                        write an image of static binaries
  deps                  install the Debian packages that are missing
  env                   print KUBECONFIG=... of it

NAME, NODES, PROXY and FAMILY in the environment stand for the options.
`

type options struct {
	plan.Options
	log *slog.Logger
}

// command is one verb; it parses its own arguments.
type command func(ctx context.Context, o options, args []string) error

func commands() map[string]command {
	return map[string]command{"up": up, "down": down, "status": status, "kubectl": kubectl, "node": nodeCommand, "load": load,
		"logs": logs, "pause": daemon((*cluster.Cluster).Pause), "resume": daemon((*cluster.Cluster).Resume), "build": buildAll, "samples": samples, "image": writeImage, "deps": deps, "env": printEnv}
}

func run(ctx context.Context, args []string) error {
	o := options{Options: plan.Options{Name: os.Getenv("NAME"), Proxy: os.Getenv("PROXY"), Family: os.Getenv("FAMILY")},
		log: slog.New(progress{})}
	if n := os.Getenv("NODES"); n != "" {
		v, err := strconv.Atoi(n)
		if err != nil {
			return fmt.Errorf("read variable NODES: %w", err)
		}
		o.Nodes = v
	}
	args, err := takeName(&o, args)
	if err != nil {
		return err
	}
	if len(args) == 0 || args[0] == "help" || args[0] == "-h" || args[0] == "--help" {
		fmt.Print(usage)
		return nil
	}
	cmd := commands()[args[0]]
	if cmd == nil {
		return fmt.Errorf("find command %q: there is none; `cluster help` lists them", args[0])
	}
	return cmd(ctx, o, args[1:])
}

// takeName takes --name from before or directly after the verb, so that kubectl's own options are left alone.
func takeName(o *options, args []string) ([]string, error) {
	at := 0
	for range 2 {
		if at < len(args) {
			if v, ok := strings.CutPrefix(args[at], "--name="); ok {
				o.Name = v
				return append(args[:at:at], args[at+1:]...), nil
			}
			if args[at] == "--name" {
				if at+1 == len(args) {
					return nil, errors.New("read option --name: it has no value")
				}
				o.Name = args[at+1]
				return append(args[:at:at], args[at+2:]...), nil
			}
		}
		at++
	}
	return args, nil
}

// root finds the repository: UNDERMESH_ROOT, or two directories above this program, or the working directory's module.
func root() (string, error) {
	if r := os.Getenv("UNDERMESH_ROOT"); r != "" {
		return filepath.Abs(r)
	}
	exe, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	start := []string{filepath.Dir(exe)}
	if wd, err := os.Getwd(); err == nil {
		start = append(start, wd)
	}
	for _, dir := range start {
		for ; ; dir = filepath.Dir(dir) {
			if _, err := os.Stat(filepath.Join(dir, "test", "cluster", "go.mod")); err == nil {
				return dir, nil
			}
			if dir == "/" || dir == "." {
				break
			}
		}
	}
	return "", errors.New("find the repository: neither above this program nor above the working directory; set UNDERMESH_ROOT")
}

func open(o options) (*cluster.Cluster, error) {
	r, err := root()
	if err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	return cluster.New(cluster.Config{Options: o.Options, Root: r, Exe: exe, Log: o.log})
}

func up(ctx context.Context, o options, args []string) error {
	o.Options = o.WithDefaults()
	flags := flag.NewFlagSet("up", flag.ContinueOnError)
	flags.StringVar(&o.Name, "name", o.Name, "name of the cluster")
	flags.IntVar(&o.Nodes, "nodes", o.Nodes, "number of nodes")
	flags.StringVar(&o.Proxy, "proxy", o.Proxy, "mode of kube-proxy: nftables or iptables")
	flags.StringVar(&o.Family, "family", o.Family, "address family: ipv4 or dual")
	if err := parse(flags, args, 0); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("bring up a cluster: namespaces, links and cgroups need root")
	}
	if missing := missingPackages(); len(missing) > 0 {
		return fmt.Errorf("bring up a cluster: missing Debian packages: %s (`cluster deps` installs them)", strings.Join(missing, " "))
	}
	c, err := open(o)
	if err != nil {
		return err
	}
	return c.Up(ctx)
}

// parse allows n arguments after the options, any number when n is negative.
func parse(flags *flag.FlagSet, args []string, n int) error {
	if err := flags.Parse(args); err != nil {
		return fmt.Errorf("parse options of %s: %w", flags.Name(), err)
	}
	if n >= 0 && flags.NArg() != n {
		return fmt.Errorf("parse arguments of %s: got %q", flags.Name(), flags.Args())
	}
	return nil
}

func down(ctx context.Context, o options, args []string) error {
	flags := flag.NewFlagSet("down", flag.ContinueOnError)
	flags.StringVar(&o.Name, "name", o.Name, "name of the cluster")
	if err := parse(flags, args, 0); err != nil {
		return err
	}
	c, err := open(o)
	if err != nil {
		return err
	}
	return c.Down(ctx)
}

func status(ctx context.Context, o options, _ []string) error {
	c, err := open(o)
	if err != nil {
		return err
	}
	rows, statusErr := c.Status(ctx)
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(w, strings.Join(r, "\t"))
	}
	return errors.Join(w.Flush(), statusErr)
}

func kubectl(_ context.Context, o options, args []string) error {
	c, err := open(o)
	if err != nil {
		return err
	}
	s, err := c.State()
	if err != nil {
		return err
	}
	path, prefix, env := s.Kubectl()
	if err := syscall.Exec(path, append(prefix, args...), env); err != nil {
		return fmt.Errorf("run kubectl: %w", err)
	}
	return nil
}

func nodeCommand(_ context.Context, o options, args []string) error {
	if len(args) > 1 && args[1] == "--" {
		args = append(args[:1:1], args[2:]...)
	}
	if len(args) < 2 {
		return errors.New("parse arguments of node: give its number, -- and a command")
	}
	n, err := strconv.Atoi(strings.TrimPrefix(args[0], "node"))
	if args[0] == plan.MemberName(0) {
		n, err = 0, nil
	}
	if err != nil {
		return fmt.Errorf("parse arguments of node: %q is not a number", args[0])
	}
	c, err := open(o)
	if err != nil {
		return err
	}
	// The command shares the terminal and gets SIGINT itself; this program waits for its end.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	go func() { <-term; cancel() }()
	return c.Run(ctx, n, args[1:], os.Stdin, os.Stdout, os.Stderr)
}

func load(ctx context.Context, o options, args []string) error {
	if len(args) == 0 {
		return errors.New("parse arguments of load: give image files")
	}
	c, err := open(o)
	if err != nil {
		return err
	}
	return c.Load(ctx, args)
}

func logs(ctx context.Context, o options, args []string) error {
	var follow bool
	var names []string
	for _, a := range args {
		if a == "-f" || a == "--follow" {
			follow = true
			continue
		}
		names = append(names, a)
	}
	if len(names) != 1 {
		return errors.New("parse arguments of logs: give one component")
	}
	c, err := open(o)
	if err != nil {
		return err
	}
	files, err := c.LogFiles(names[0])
	if err != nil {
		return err
	}
	tail := []string{"-n", "+1"}
	if follow {
		tail = append(tail, "-F")
	}
	cmd := exec.CommandContext(ctx, "tail", append(tail, files...)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("print logs: %w", err)
	}
	return nil
}

// daemon is a verb about one daemon.
func daemon(do func(c *cluster.Cluster, component string) error) command {
	return func(_ context.Context, o options, args []string) error {
		if len(args) != 1 {
			return errors.New("parse arguments: give one component")
		}
		c, err := open(o)
		if err != nil {
			return err
		}
		return do(c, args[0])
	}
}

func buildAll(ctx context.Context, o options, _ []string) error {
	c, err := open(o)
	if err != nil {
		return err
	}
	start := time.Now()
	bin, err := c.Build(ctx)
	if err != nil {
		return err
	}
	for name, dir := range bin.Dirs() {
		fmt.Printf("%s\t%s\n", name, dir)
	}
	o.log.Info("binaries are ready", "dur", time.Since(start).Round(time.Millisecond).String())
	return nil
}

func samples(ctx context.Context, o options, _ []string) error {
	c, err := open(o)
	if err != nil {
		return err
	}
	files, err := c.Samples(ctx)
	for _, f := range files {
		fmt.Println(f)
	}
	return err
}

func printEnv(_ context.Context, o options, _ []string) error {
	c, err := open(o)
	if err != nil {
		return err
	}
	s, err := c.State()
	if err != nil {
		return err
	}
	fmt.Printf("KUBECONFIG=%s\n", s.Plan.Kubeconfig())
	return nil
}
