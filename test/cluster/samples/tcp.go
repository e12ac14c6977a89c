package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
)

// tcpEcho answers each line with "PREFIX line". Arguments: ports separated by commas, and the prefix.
func tcpEcho(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return errors.New("give two arguments: port[,port...] and prefix")
	}
	prefix := args[1]
	return listenAll(ctx, strings.Split(args[0], ","), func(c net.Conn) {
		r := bufio.NewReader(c)
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			fmt.Printf("request: %s", line)
			response := prefix + " " + line
			if _, err := io.WriteString(c, response); err != nil {
				return
			}
			fmt.Printf("response: %s", response)
		}
	})
}

// goEcho greets with where it runs, from the variables that its manifest sets, and then sends back every byte. TCP_PORT is the
// port, default 2701.
func goEcho(ctx context.Context, _ []string) error {
	port := os.Getenv("TCP_PORT")
	if port == "" {
		port = "2701"
	}
	var banner strings.Builder
	for _, l := range [][2]string{{"Welcome, you are connected to node %s.\n", "NODE_NAME"}, {"Running on Pod %s.\n", "POD_NAME"},
		{"In namespace %s.\n", "POD_NAMESPACE"}, {"With IP address %s.\n", "POD_IP"}, {"Service %s.\n", "SERVICE_ACCOUNT"}} {
		if v := os.Getenv(l[1]); v != "" {
			fmt.Fprintf(&banner, l[0], v)
		}
	}
	return listenAll(ctx, []string{port}, func(c net.Conn) {
		if _, err := io.WriteString(c, banner.String()); err == nil {
			_, _ = io.Copy(c, c) // the connection ends in either case
		}
	})
}

// listenAll serves connections on all ports until ctx ends, and then closes them and waits for their handlers.
func listenAll(ctx context.Context, ports []string, handle func(net.Conn)) error {
	var all sync.WaitGroup
	defer all.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make(chan error, len(ports))
	for _, p := range ports {
		l, err := net.Listen("tcp", ":"+p)
		if err != nil {
			return fmt.Errorf("listen on port %s: %w", p, err)
		}
		fmt.Printf("listening on %s\n", l.Addr())
		defer l.Close() // also when a later port cannot be had
		context.AfterFunc(ctx, func() { l.Close() })
		all.Go(func() { errs <- accept(ctx, l, handle) })
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-errs:
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
}

func accept(ctx context.Context, l net.Listener, handle func(net.Conn)) error {
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		}
		conns.Go(func() {
			defer c.Close()
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			handle(c)
		})
	}
}
