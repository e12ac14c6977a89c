// Command samples is the sample applications of the documents in one static program: the name it is called by, or its first
// argument, chooses one.
package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// programs are the names that it answers to. A program ends when ctx does, or returns an error.
var programs = map[string]func(ctx context.Context, args []string) error{
	"pause":      pause,
	"httpbin":    httpbin,
	"gunicorn":   httpbin,
	"helloworld": helloworld,
	"tcp-echo":   tcpEcho,
	"go-echo":    goEcho,
	"load":       func(ctx context.Context, args []string) error { return load(ctx, os.Stdout, args) },

	"productpage": productpage,
	"details":     bookinfoPart("details"),
	"reviews":     bookinfoPart("reviews"),
	"ratings":     bookinfoPart("ratings"),
	"mongod":      mongo,
	"fortio":      fortio,
	"echo":        echo,
	"ask":         func(ctx context.Context, _ []string) error { return ask(ctx, os.Stdin, os.Stdout) },
	"sites":       sites,
	"nginx":       nginx,
	"squid":       squid,
}

func main() {
	name, args := filepath.Base(os.Args[0]), os.Args[1:]
	if programs[name] == nil && len(args) > 0 {
		name, args = args[0], args[1:]
	}
	program := programs[name]
	if program == nil {
		fmt.Fprintf(os.Stderr, "samples: no program %q; there are %s\n", name, strings.Join(slices.Sorted(maps.Keys(programs)), " "))
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := program(ctx, args); err != nil {
		fmt.Fprintln(os.Stderr, name+":", err)
		os.Exit(1)
	}
}

// pause holds a pod's namespaces, and reaps orphans where the pod shares one process namespace.
func pause(ctx context.Context, _ []string) error {
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-children:
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}
