package nodes

import (
	"fmt"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

// key names the cells that differ only by round.
type key struct{ work, place, side string }

// results are the cells of one run.
type results []*cell

// median of a figure of the cells of a key that were measured, with the least and the greatest; n is how many they are.
func (r results) median(k key, figure func(*cell) float64) (mid, low, high float64, n int) {
	var all []float64
	for _, c := range r {
		if c.missing == "" && (key{c.work, c.place, c.side}) == k {
			all = append(all, figure(c))
		}
	}
	if len(all) == 0 {
		return 0, 0, 0, 0
	}
	slices.Sort(all)
	return all[len(all)/2], all[0], all[len(all)-1], len(all)
}

// ratio of the medians of a figure; false: one of them is missing.
func (r results) ratio(mine, base key, figure func(*cell) float64) (float64, bool) {
	a, _, _, n := r.median(mine, figure)
	b, _, _, m := r.median(base, figure)
	if n == 0 || m == 0 || b == 0 {
		return 0, false
	}
	return a / b, true
}

// why is the first reason for which cells of a key are missing.
func (r results) why(k key) string {
	for _, c := range r {
		if c.missing != "" && (key{c.work, c.place, c.side}) == k {
			return strings.NewReplacer("\n", " ", "|", "/").Replace(c.missing)
		}
	}
	return ""
}

func sum(c *cell) float64    { return c.sum() }
func source(c *cell) float64 { return c.source() }
func p99(c *cell) float64    { return c.p99 }
func rss(c *cell) float64    { return c.rss }

// base is the side of a place that ratios are to.
func base(place string) string {
	if place == same {
		return envoy1
	}
	return envoyM
}

// aim is a goal of the CPU of ours, beside that of a peer in the same run.
type aim struct {
	what        string
	work, place string
	peer        string
	figure      func(*cell) float64
	limit       float64
}

var aims = []aim{
	{"single pass, full pipeline", "h1-c64", same, envoy1, sum, 0.45},
	{"single pass, full pipeline", "h1-c64", same, envoy2, sum, 0.45},
	{"h2c 8x64", "h2-8x64", same, envoy1, sum, 0.5},
	{"h2c 1x64", "h2-1x64", same, envoy1, sum, 0.7},
	{"mTLS leg: the client's proxy", "h1-c64", other, envoyM, source, 0.5},
	{"pair across nodes", "h1-c64", other, envoyM, sum, 0.5},
}

// table is the section of the aims.
func (r results) aims() string {
	var b strings.Builder
	b.WriteString("| aim | cell | beside | of it, at most | this run | |\n|---|---|---|---|---|---|\n")
	row := func(what, cell, peer string, limit, got float64, ok bool) {
		verdict := map[bool]string{true: "met", false: "missed"}[got <= limit]
		if !ok {
			verdict = "missing"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %.2f | %.2f | %s |\n", what, cell, peer, limit, got, verdict)
	}
	for _, a := range aims {
		got, ok := r.ratio(key{a.work, a.place, ours}, key{a.work, a.place, a.peer}, a.figure)
		row(a.what, a.work+"/"+a.place, a.peer, a.limit, got, ok)
	}
	for _, place := range []string{same, other} {
		got, ok := r.ratio(key{"h1-c512", place, ours}, key{"h1-c512", place, base(place)}, rss)
		row("RSS", "h1-c512/"+place, base(place), 1, got, ok)
	}
	for _, k := range works {
		for _, place := range []string{same, other} {
			got, ok := r.ratio(key{k.name, place, ours}, key{k.name, place, base(place)}, p99)
			row("p99", k.name+"/"+place, base(place), 1, got, ok)
		}
	}
	return b.String()
}

// table is the section of all cells.
func (r results) table() string {
	var b strings.Builder
	b.WriteString("| cell | node | side | CPU us/request | of Envoy | client's proxy | of Envoy's | req/s | p50 us | p99 us | RSS MiB | log lines a request | rounds |\n")
	b.WriteString("|---|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, w := range works {
		for _, place := range []string{same, other} {
			for _, side := range []string{noMesh, envoy1, envoy2, envoyM, ours} {
				b.WriteString(r.row(key{w.name, place, side}))
			}
		}
	}
	return b.String()
}

func (r results) row(k key) string {
	cpu, low, high, n := r.median(k, sum)
	if n == 0 {
		if why := r.why(k); why != "" {
			return fmt.Sprintf("| %s | %s | %s | %s | | | | | | | | | 0 |\n", k.work, k.place, k.side, why)
		}
		return ""
	}
	mid := func(f func(*cell) float64) float64 {
		v, _, _, _ := r.median(k, f)
		return v
	}
	share := func(f func(*cell) float64) string {
		if got, ok := r.ratio(k, key{k.work, k.place, base(k.place)}, f); ok {
			return fmt.Sprintf("%.2f", got)
		}
		return ""
	}
	return fmt.Sprintf("| %s | %s | %s | %.1f [%.1f-%.1f] | %s | %.1f | %s | %.0f | %.0f | %.0f | %.0f | %.2f | %d |\n", k.work, k.place, k.side,
		cpu, low, high, share(sum), mid(source), share(source), mid(func(c *cell) float64 { return c.rate }),
		mid(func(c *cell) float64 { return c.p50 }), mid(p99), mid(rss), mid(func(c *cell) float64 { return c.lines }), n)
}

const reading = `The real binaries on two nodes that are network namespaces of one machine. Both sides have %d routes and %d rules of RBAC
(the last ones match), timeouts, retries, metrics and an access log. Ours on the same node is one pass of the node's proxy that does
the caller's part and the callee's; "envoy" is one Envoy with the routes and RBAC, "two envoys" are a caller's and a callee's in
plain text. Across nodes ours are both nodes' ztunnel with HBONE between them, and "envoy + mTLS" are two Envoys with HTTP over mutual
TLS 1.3; "client's proxy" is the leg that encrypts. Proxies have CPU 0 and one thread each, load and servers CPU 1, of %d.
Envoy's clients dial it on 127.0.0.1, ours are captured. CPU is user and system of the proxies, for each request; medians of
%d rounds of %v cells in random order. RSS counts all processes, of ours the supervisor as well, and what they
share for each. Log lines are those of our ztunnels; across nodes a request has two; what is missing was dropped or not yet written.

`

func head(title string) string {
	commit, err := exec.Command("git", "rev-parse", "--short=12", "HEAD").Output()
	if err != nil {
		commit = []byte("unknown")
	}
	return fmt.Sprintf("# %s, %s, commit %s, %s\n\n", title, time.Now().UTC().Format(time.DateOnly), strings.TrimSpace(string(commit)), runtime.Version())
}

func (r results) report(rounds int, length time.Duration, neighbours []beside) string {
	return head("HTTP through nodes") + fmt.Sprintf(reading, routes, policies, cpus, rounds, length) +
		"## Aims\n\n" + r.aims() + "\n## Hot neighbour\n\n" + besideTable(neighbours) + "\n## Cells\n\n" + r.table()
}
