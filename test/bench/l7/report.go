package main

import (
	"fmt"
	"maps"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

// median of the figures that a func takes from cells with figures; n is how many those are.
func median(cells []*cell, figure func(*cell) float64) (mid, low, high float64, n int) {
	var all []float64
	for _, c := range cells {
		if c.missing == "" {
			all = append(all, figure(c))
		}
	}
	if len(all) == 0 {
		return 0, 0, 0, 0
	}
	slices.Sort(all)
	return all[len(all)/2], all[0], all[len(all)-1], len(all)
}

func (b *bench) report(all []*cell, rounds int, length time.Duration) string {
	var s strings.Builder
	commit, err := exec.Command("git", "rev-parse", "--short=12", "HEAD").Output()
	if err != nil {
		commit = []byte("unknown")
	}
	fmt.Fprintf(&s, "# L7 engine beside Envoy, %s, commit %s\n\n", time.Now().UTC().Format(time.DateOnly), strings.TrimSpace(string(commit)))
	fmt.Fprintf(&s, "%d rounds of %v cells, the proxies one after the other in each cell in random order; medians. The proxy has CPU 0 and one\n", rounds, length)
	fmt.Fprintf(&s, "thread, load and server CPU 1, of %d. 50 routes where the cell says nothing else (the last matches), timeout and retry policy, fault and CORS filters, an\n", runtime.NumCPU())
	s.WriteString("access log of Istio's fields on every side (haproxy: its own); no policies. CPU is the proxy's, user and system, for each request.\n\n")
	s.WriteString("| cell | proxy | CPU us/request | of Envoy | of nginx | req/s | p50 us | p99 us | RSS MiB | rounds |\n|---|---|---|---|---|---|---|---|---|---|\n")
	for _, w := range works {
		byPeer := map[string][]*cell{}
		for _, c := range all {
			if c.work == w.name {
				byPeer[c.peer] = append(byPeer[c.peer], c)
			}
		}
		cpu := func(c *cell) float64 { return c.cpu }
		envoy, _, _, _ := median(byPeer["envoy"], cpu)
		nginx, _, _, _ := median(byPeer["nginx"], cpu)
		for _, name := range slices.Sorted(maps.Keys(byPeer)) {
			s.WriteString(row(w.name, name, byPeer[name], envoy, nginx))
		}
	}
	if len(b.idle) > 0 {
		s.WriteString("\n| proxy | KiB for each idle connection of HTTP/1.1 |\n|---|---|\n")
		for _, name := range slices.Sorted(maps.Keys(b.idle)) {
			fmt.Fprintf(&s, "| %s | %.1f |\n", name, b.idle[name])
		}
	}
	return s.String()
}

func row(work, peer string, cells []*cell, envoy, nginx float64) string {
	cpu, low, high, n := median(cells, func(c *cell) float64 { return c.cpu })
	if n == 0 {
		return fmt.Sprintf("| %s | %s | %s | | | | | | | 0 |\n", work, peer, cells[0].missing)
	}
	rate, _, _, _ := median(cells, func(c *cell) float64 { return c.rate })
	p50, _, _, _ := median(cells, func(c *cell) float64 { return c.p50 })
	p99, _, _, _ := median(cells, func(c *cell) float64 { return c.p99 })
	rss, _, _, _ := median(cells, func(c *cell) float64 { return c.rss })
	share := func(base float64) string {
		if base == 0 {
			return ""
		}
		return fmt.Sprintf("%.2f", cpu/base)
	}
	return fmt.Sprintf("| %s | %s | %.1f [%.1f-%.1f] | %s | %s | %.0f | %.0f | %.0f | %.0f | %d |\n", work, peer, cpu, low, high, share(envoy), share(nginx), rate, p50, p99, rss, n)
}
