// Command ztunnel carries the connections of a node's pods. It runs as a supervisor, and once more as its worker
// (see package ztunnel/drain); the hidden first argument "worker" tells the two apart.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"

	"github.com/undermesh/undermesh/cmd/memory"
	"github.com/undermesh/undermesh/ztunnel/drain"
)

func main() {
	memory.Tune()
	args, worker := os.Args[1:], false
	if len(args) > 0 && args[0] == "worker" {
		args, worker = args[1:], true
	}
	o, err := parse(args, os.Getenv, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(drain.ExitConfig)
	case worker:
		err = runWorker(o, os.Stdout)
	default:
		err = supervise(args, o, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(status(err))
	}
}

// status is the exit status for err: that of the worker where there is one.
func status(err error) int {
	if exit := (*drain.Exit)(nil); errors.As(err, &exit) && exit.Code > 0 {
		return exit.Code
	}
	return 1
}
