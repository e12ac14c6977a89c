package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/drain"
)

// endSlack is what a worker may take to end beyond the time that its connections have; twice that, what the supervisor waits.
const endSlack = 1500 * time.Millisecond

// supervise keeps a worker with the same flags running until a signal ends both.
func supervise(args []string, o options, stdout io.Writer) error {
	runtime.GOMAXPROCS(1)
	log := slog.New(slog.NewJSONHandler(stdout, &slog.HandlerOptions{Level: o.level})).With("component", "supervisor")
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own binary: %w", err)
	}
	worker := &drain.Exec{Path: self, Args: append([]string{"worker"}, args...), Env: os.Environ()}

	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(signals)
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	var reaper sync.WaitGroup
	reaper.Go(func() {
		for range children {
			worker.Reap()
		}
	})
	defer reaper.Wait()
	defer close(children)
	defer signal.Stop(children)

	s, err := drain.New(drain.Config{
		Start: worker.Start, Signals: signals, Clock: clock.System(), Log: log, StopTimeout: o.drainTimeout + 2*endSlack,
	})
	if err != nil {
		return err
	}
	return s.Run(context.Background())
}
