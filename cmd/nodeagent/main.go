// Command nodeagent enrols the pods of its node in the mesh: it owns the kernel's side, the in-pod listeners and the CNI
// plugin. With the argument "uninstall" it takes everything away again.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/undermesh/undermesh/cmd/memory"
)

func main() {
	memory.Tune()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := start(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "Error:", err)
		stop()
		os.Exit(1)
	}
}

func start(ctx context.Context, args []string) error {
	do := run
	if len(args) > 0 && args[0] == "uninstall" {
		do, args = uninstall, args[1:]
	}
	cfg, err := parse(args, os.Getenv)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: cfg.logLevel}))
	return do(ctx, cfg, log)
}
