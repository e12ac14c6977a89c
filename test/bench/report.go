package bench

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"
)

// report is one run as it is written down.
type report struct {
	facts  string
	rounds int
	length time.Duration
	expr   string // which cells
	seed   uint64
	took   time.Duration
	held   []held
	results
}

// complete reports whether every cell of every round was run and measured.
func (r *report) complete() bool { return r.expr == "." && r.missing() == 0 }

// head says what the run is.
func (r *report) head() string {
	return fmt.Sprintf("%s* %d rounds of %s a cell; in each round the sides of a load take turns in random order (seed %d); cells: `%s`\n",
		r.facts, r.rounds, r.length, r.seed, r.expr)
}

const reading = `Client, servers and proxies share the machine's CPUs, and other work may have run beside them: read ratios, not figures, and
mind the spread. Each entry is the median [minimum-maximum] of the rounds; a ratio is the median of the rounds' ratios, each
between two cells of one round. The proxies' CPU is that of both nodes' ztunnel from /proc/PID/stat (10 ms units), work of
the kernel in soft interrupts apart; RSS is of both together at the end of the last round. "No mesh" is the same topology
with nothing of the mesh on it; its ClusterIP is a DNAT rule of the node, with masquerade on the same node. "TLS/conn" is a
small Go proxy in each pod: TLS 1.3, both sides verified, one handshake a connection, no identity, policy, metrics or log;
ours has all of them on. Connections end by reset.

`

// String is the whole report.
func (r *report) String() string {
	var b strings.Builder
	b.WriteString("# Bench\n\n")
	b.WriteString(r.head())
	fmt.Fprintf(&b, "* took %s; %d of %d cells missing, peers apart: %s\n\n", r.took.Round(time.Second), r.missing(), len(r.results.cells), map[bool]string{true: "complete", false: "not complete"}[r.complete()])
	b.WriteString(reading)
	b.WriteString("## Aims\n\nAn aim is a ratio to Istio's ztunnel, restated by the reference figures of one run that had all sides; PERMISSIVE, pod IP.\nThose of the same node are for connections that the kernel carries past the proxy (path direct).\n\n")
	b.WriteString(aimTable(&r.results))
	b.WriteString("\n## Memory of held connections\n\n| node | mesh | connections | KiB a connection and proxy (aim: ≤ 7) |\n|---|---|---|---|\n")
	for _, h := range r.held {
		kib := short(h.kib)
		if h.missing != "" {
			kib = "missing: " + oneLine(h.missing)
		}
		fmt.Fprintf(&b, "| %s | %s | %d | %s |\n", h.side.place, h.side.mesh, h.conns, kib)
	}
	for i := range works {
		fmt.Fprintf(&b, "\n## %s\n\n%s", works[i].title, r.table(&works[i]))
	}
	b.WriteString("\n## All rounds\n\n")
	b.WriteString(r.results.rounds())
	return b.String()
}

// machine is what the figures depend on.
func machine(root string, at time.Time) string {
	line := func(file string) string {
		b, err := os.ReadFile(file)
		if err != nil {
			return "unknown"
		}
		return strings.TrimSpace(string(b))
	}
	git := func(args ...string) string {
		cmd := exec.Command("git", args...)
		cmd.Dir = root
		out, err := cmd.Output()
		if err != nil {
			return "unknown"
		}
		return strings.TrimSpace(string(out))
	}
	dirty := ""
	if git("status", "--porcelain", "--", "ztunnel", "nodeagent", "bpf", "controller", "cmd") != "" {
		dirty = ", with changes"
	}
	return fmt.Sprintf("* %s, commit %s%s, `make bench`\n* %s, %d CPUs, %s memory, Linux %s, %s, %s, load before: %s\n",
		at.UTC().Format(time.RFC3339), git("rev-parse", "--short=12", "HEAD"), dirty, fact("/proc/cpuinfo", "model name"), runtime.NumCPU(),
		fact("/proc/meminfo", "MemTotal"), line("/proc/sys/kernel/osrelease"), line("/proc/sys/net/ipv4/tcp_congestion_control"), runtime.Version(), line("/proc/loadavg"))
}
