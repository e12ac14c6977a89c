// Command controller is the mesh's control plane: it turns the objects of a Kubernetes API server, or of a directory of
// YAML, into what the nodes receive, and signs the workloads' certificates.
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

	"github.com/undermesh/undermesh/cmd/controller/app"
	"github.com/undermesh/undermesh/cmd/memory"
)

func main() {
	opts, err := app.Parse("controller", os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "controller:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	memory.Tune()
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: opts.LogLevel}))
	if err := app.Run(ctx, opts, log); err != nil {
		log.Error("controller ended", "err", err)
		stop()
		os.Exit(1)
	}
}
