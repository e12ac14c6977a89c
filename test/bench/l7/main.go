// Command l7 compares the L7 engine with Envoy and, where they are installed, nginx and haproxy: one request path over
// loopback (client, proxy, server), cells of load in rounds, every proxy after the other within a cell in random order. The
// proxy under test has CPU 0 for itself and one thread; the load and the server have CPU 1. It asserts no time.
//
// Without a role it runs everything and writes the report; "make bench-l7" does. The other roles are its own processes.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	roles := map[string]func(context.Context, []string) error{"proxy": runProxy, "server": runServer, "load": runLoad, "idle": runIdle}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	run, args := compare, os.Args[1:]
	if len(args) > 0 && roles[args[0]] != nil {
		run, args = roles[args[0]], args[1:]
	}
	if err := run(ctx, args); err != nil {
		fmt.Fprintln(os.Stderr, "l7:", err)
		os.Exit(1)
	}
}
