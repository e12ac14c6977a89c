// Command cluster runs real Kubernetes clusters on this machine, for tests and demonstrations: every node is a process tree in
// namespaces of its own, everything comes from Go modules and Debian packages.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/undermesh/undermesh/test/cluster/node"
	"github.com/undermesh/undermesh/test/cluster/sandbox"
)

// exitInterrupted is the exit code after SIGINT, as shells have it.
const exitInterrupted = 130

func main() {
	if len(os.Args) == 3 && (os.Args[1] == sandbox.LaunchArg || os.Args[1] == sandbox.InitArg) {
		os.Exit(internal(os.Args[1], os.Args[2]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:])
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		os.Exit(exit.ExitCode()) // the command has said why
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "cluster: interrupted:", err)
		os.Exit(exitInterrupted)
	default:
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

// internal runs one of the commands by which the harness calls itself.
func internal(command, arg string) int {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	do := func() error { return node.Run(arg, log) }
	if command == sandbox.LaunchArg {
		do = func() error { return sandbox.RunLaunch("/proc/self/exe", arg, os.Stdout) }
	}
	if err := do(); err != nil {
		log.Error("internal command ended", "command", command, "err", err)
		return 1
	}
	return 0
}
