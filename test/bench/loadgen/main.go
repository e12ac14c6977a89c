// Command loadgen is the load tool of the bench: server, clients and the proxies of "TLS per connection", by its first
// argument. Clients print one JSON result.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/undermesh/undermesh/test/bench/load"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "loadgen:", err)
		os.Exit(1)
	}
}

// options are the flags of all modes.
type options struct {
	cfg        load.Config
	echo, sink string
	dir        string
	pairs      []string // LISTEN=TARGET
}

func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 0 {
		return errors.New("give a mode: serve, bulk, rr, connect, hold, tls-in or tls-out")
	}
	var o options
	f := flag.NewFlagSet(args[0], flag.ContinueOnError)
	f.StringVar(&o.cfg.Addr, "addr", "", "`host:port` of the server")
	f.IntVar(&o.cfg.Conns, "conns", 1, "connections")
	f.DurationVar(&o.cfg.For, "for", time.Second, "how long to send")
	f.StringVar(&o.echo, "echo", ":9000", "`address` that answers requests")
	f.StringVar(&o.sink, "sink", ":9001", "`address` that takes bulk")
	f.StringVar(&o.dir, "dir", ".", "`directory` of the certificate")
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	o.pairs = f.Args()
	clients := map[string]func(context.Context, load.Config) (load.Result, error){"bulk": load.Bulk, "rr": load.RoundTrips, "connect": load.Connects}
	if client := clients[args[0]]; client != nil {
		r, err := client(ctx, o.cfg)
		if err != nil {
			return err
		}
		return json.NewEncoder(out).Encode(r)
	}
	switch args[0] {
	case "serve":
		return serve(ctx, map[string]func(net.Conn){o.echo: load.Echo, o.sink: load.Sink})
	case "hold":
		return load.Hold(ctx, o.cfg, func() { fmt.Fprintln(out, "held") })
	case "tls-in", "tls-out":
		return proxy(ctx, args[0] == "tls-in", o)
	}
	return fmt.Errorf("no such mode: %q", args[0])
}

// proxy serves each pair LISTEN=TARGET.
func proxy(ctx context.Context, in bool, o options) error {
	cfg, err := load.TLSConfig(o.dir)
	if err != nil {
		return err
	}
	handlers := map[string]func(net.Conn){}
	for _, p := range o.pairs {
		listen, target, ok := strings.Cut(p, "=")
		if !ok {
			return fmt.Errorf("%q is not LISTEN=TARGET", p)
		}
		handlers[listen] = load.TLSOut(ctx, cfg, target)
		if in {
			handlers[listen] = load.TLSIn(ctx, cfg, target)
		}
	}
	return serve(ctx, handlers)
}

func serve(ctx context.Context, handlers map[string]func(net.Conn)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, 0, len(handlers))
	var mu sync.Mutex // protects errs
	for addr, handle := range handlers {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			cancel()
			wg.Wait()
			return fmt.Errorf("listen on %s: %w", addr, err)
		}
		wg.Go(func() {
			if err := load.Serve(ctx, l, handle); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
				cancel()
			}
		})
	}
	fmt.Println("listening")
	wg.Wait()
	return errors.Join(errs...)
}
