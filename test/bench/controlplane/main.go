// Command controlplane measures the controller: clusters of generated objects, many discovery clients, one process that
// is the controller and nothing else, one that is the clients.
//
// Everything of the controller is real, as cmd/controller assembles it: informers, registry, compiler, change log, CA,
// gRPC over TLS with tokens. What is replaced is outside of it: the API server, which is this process (lists and watches
// over HTTP and JSON), and the review of tokens. "make bench-controller" runs it; results are in docs/bench.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/undermesh/undermesh/test/bench/dated"
)

// With these the program is the controller, which the bench starts.
const (
	serveEnv = "BENCH_CONTROLLER_API"
	swarmEnv = "BENCH_CONTROLLER_XDS" // or clients of the controller at this address
	dirEnv   = "BENCH_CONTROLLER_DIR"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "controlplane:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if api := os.Getenv(serveEnv); api != "" {
		return serve(ctx, api, os.Getenv(dirEnv), slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	}
	if addr := os.Getenv(swarmEnv); addr != "" {
		return serveSwarm(ctx, addr, os.Getenv(dirEnv))
	}
	fs := flag.NewFlagSet("controlplane", flag.ContinueOnError)
	rounds := fs.Int("rounds", 3, "rounds")
	sizes := fs.String("sizes", "2000/20,20000/200,100000/1000", "`pods/nodes`, comma-separated")
	clients := fs.String("clients", "10,100,1000", "numbers of clients, growing, at least 2")
	before := fs.String("before", "", "earlier `build` of this program: its controller is measured in turn with this one's")
	out := fs.String("out", "", "`directory` for the report")
	if err := fs.Parse(args); err != nil {
		return err
	}
	szs, err := parseSizes(*sizes)
	if err != nil {
		return err
	}
	counts, err := parseInts(*clients)
	if err != nil {
		return fmt.Errorf("-clients: %w", err)
	}
	begin := time.Now()
	r := &report{facts: machine(begin), rounds: *rounds, begin: begin}
	fmt.Println(r.facts)
	sides := []side{{}}
	if *before != "" {
		sides = []side{{"before", *before}, {}}
	}
	for round := range *rounds {
		for _, sz := range szs {
			ld := load{syncs: max(3, 40_000/sz.pods), changes: 200, least: 60, fan: 60_000, storm: 10_000, limit: 5 * time.Minute, rest: 15 * time.Second}
			for _, by := range sides {
				cells, err := measure(ctx, round+1, by, sz, counts, ld)
				if err != nil {
					cells = append(cells, &cell{round: round + 1, side: by.name, size: sz, missing: err.Error()})
				}
				r.cells = append(r.cells, cells...)
			}
			slices.Reverse(sides)
		}
	}
	r.took = time.Since(begin)
	text := r.String()
	fmt.Println(text)
	if *out == "" {
		return nil
	}
	path, err := dated.Write(*out, "controller-", r.begin, r.String())
	if err == nil {
		fmt.Println("written:", path)
	}
	return err
}

func parseSizes(text string) (out []size, err error) {
	for part := range strings.SplitSeq(text, ",") {
		n, err := parseInts(strings.ReplaceAll(part, "/", ","))
		if err != nil || len(n) != 2 {
			return nil, fmt.Errorf("-sizes: %q: want pods/nodes", part)
		}
		out = append(out, size{n[0], n[1]})
	}
	return out, nil
}

func parseInts(text string) (out []int, err error) {
	for part := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(part)
		if err != nil || n < 2 {
			return nil, fmt.Errorf("%q: want a number of at least 2", part)
		}
		out = append(out, n)
	}
	return out, nil
}
