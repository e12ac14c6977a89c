package bench

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// key names the cells that differ only by round.
type key struct{ work, place, addr, mesh string }

func (c *cell) key() key { return key{c.work.name, c.side.place, c.side.addr, c.side.mesh} }

// results are the cells of one run.
type results struct {
	cells []*cell
}

// of are the cells of a key that were measured, by round.
func (r *results) of(k key) []*cell {
	var out []*cell
	for _, c := range r.cells {
		if c.missing == "" && c.key() == k {
			out = append(out, c)
		}
	}
	return out
}

// ratios are mine / base of the same round, for all rounds that have both.
func (r *results) ratios(mine, base key, f figure) []float64 {
	var out []float64
	for _, m := range r.of(mine) {
		for _, b := range r.of(base) {
			if b.round == m.round && f.of(b) > 0 && f.of(m) > 0 {
				out = append(out, f.of(m)/f.of(b))
			}
		}
	}
	return out
}

// why is the first reason for which cells of a key are missing, "" when none is.
func (r *results) why(k key) string {
	for _, c := range r.cells {
		if c.missing != "" && c.key() == k {
			return c.missing
		}
	}
	return ""
}

// peer reports whether a side is somebody else's mesh: it is never required.
func (s *side) peer() bool { return s.mesh == peerEnvoy || s.mesh == peerRust }

// missing counts the cells without figures, those of peers apart.
func (r *results) missing() (n int) {
	for _, c := range r.cells {
		if c.missing != "" && !c.side.peer() {
			n++
		}
	}
	return n
}

// keys are all keys of a kind of work, in the order of the tables.
func (r *results) keys(work string) []key {
	order := []string{otherNode, sameNode, byPod, byService, noMesh, tlsPerConn, permissive, strict, peerRust, peerEnvoy}
	var out []key
	for _, c := range r.cells {
		if k := c.key(); k.work == work && !slices.Contains(out, k) {
			out = append(out, k)
		}
	}
	at := func(s string) int { return slices.Index(order, s) }
	slices.SortFunc(out, func(a, b key) int {
		return cmp.Or(cmp.Compare(at(a.place), at(b.place)), cmp.Compare(at(a.addr), at(b.addr)), cmp.Compare(at(a.mesh), at(b.mesh)))
	})
	return out
}

// median of a list that is not empty; of an even number the mean of the two in the middle.
func median(list []float64) float64 {
	s := slices.Sorted(slices.Values(list))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// spread writes "median [min-max]".
func spread(cells []*cell, f figure) string {
	var v []float64
	for _, c := range cells {
		v = append(v, f.of(c))
	}
	return fmt.Sprintf("%s [%s-%s]", short(median(v)), short(slices.Min(v)), short(slices.Max(v)))
}

// short writes a number with about three digits.
func short(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// beside writes the median ratio to a base, "–" without one.
func (r *results) beside(k, base key, f figure) string {
	ratios := r.ratios(k, base, f)
	if len(ratios) == 0 || k == base {
		return "–"
	}
	return fmt.Sprintf("%.2f", median(ratios))
}

// table is the section of one kind of work.
func (r *results) table(wk *work) string {
	var b strings.Builder
	fmt.Fprintf(&b, "| node | address | mesh | %s | / no mesh | / TLS/conn | p50 us | / no mesh | p99 us | proxies' CPU %s | / TLS/conn | RSS MiB | counters: connections opened; log lines |\n", wk.unit, wk.cpuUnit)
	b.WriteString("|---|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, k := range r.keys(wk.name) {
		fmt.Fprintf(&b, "| %s | %s | %s |", k.place, k.addr, k.mesh)
		cells := r.of(k)
		if len(cells) == 0 {
			fmt.Fprintf(&b, " missing: %s | | | | | | | | | |\n", oneLine(r.why(k)))
			continue
		}
		plain, tls := key{k.work, k.place, k.addr, noMesh}, key{k.work, k.place, byPod, tlsPerConn}
		fmt.Fprintf(&b, " %s | %s | %s |", spread(cells, rate), r.beside(k, plain, rate), r.beside(k, tls, rate))
		if wk.bulk {
			b.WriteString(" – | – | – |")
		} else {
			fmt.Fprintf(&b, " %s | %s | %s |", spread(cells, p50), r.beside(k, plain, p50), spread(cells, p99))
		}
		if cells[0].cpu == 0 && k.mesh == noMesh {
			b.WriteString(" no proxy | – | – | no proxy |\n")
			continue
		}
		last := cells[len(cells)-1]
		fmt.Fprintf(&b, " %s | %s | %s | %s |", spread(cells, cpu), r.beside(k, tls, cpu), short(last.rssMiB), evidence(last))
		if w := r.why(k); w != "" {
			fmt.Fprintf(&b, " (%d of the rounds; missing: %s)", len(cells), oneLine(w))
		}
		b.WriteString("\n")
	}
	return b.String()
}

// evidence is what proves the path of a cell.
func evidence(c *cell) string {
	switch c.side.mesh {
	case noMesh:
		return "no proxy"
	case tlsPerConn:
		return "proxies of the bench"
	}
	conns, lines := counts(c.opened), counts(c.paths)
	if conns == "" {
		conns = "**none**"
	}
	if lines == "" {
		lines = "**none**"
	}
	return conns + "; " + lines
}

// rounds lists every cell.
func (r *results) rounds() string {
	var b strings.Builder
	b.WriteString("| round | load | node | address | mesh | throughput | p50 us | p99 us | proxies' CPU | RSS MiB | errors | counters |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, c := range r.cells {
		if c.side.peer() && c.missing != "" {
			continue // said above, once
		}
		if c.missing != "" {
			fmt.Fprintf(&b, "| %d | %s | %s | %s | %s | missing: %s | | | | | | |\n", c.round, c.work.name, c.side.place, c.side.addr, c.side.mesh, oneLine(c.missing))
			continue
		}
		fmt.Fprintf(&b, "| %d | %s | %s | %s | %s | %s %s | %s | %s | %s %s | %s | %d | %s |\n", c.round, c.work.name, c.side.place, c.side.addr, c.side.mesh,
			short(c.rate), c.work.unit, latency(c, p50), latency(c, p99), short(c.cpu), c.work.cpuUnit, short(c.rssMiB), c.errors, evidence(c))
	}
	return b.String()
}

// latency writes a time, which bulk has not.
func latency(c *cell, f figure) string {
	if c.work.bulk {
		return "–"
	}
	return short(f.of(c))
}

// oneLine fits a reason into a table.
func oneLine(s string) string {
	s = strings.NewReplacer("\n", " ", "|", "/").Replace(s)
	if r := []rune(s); len(r) > 200 {
		s = string(r[:200]) + "…"
	}
	return s
}
