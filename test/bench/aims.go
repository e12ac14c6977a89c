package bench

import (
	"fmt"
	"strings"
)

// figure picks one number of a cell.
type figure struct {
	name string
	of   func(*cell) float64
	more bool // more is better
}

var (
	rate = figure{"throughput", func(c *cell) float64 { return c.rate }, true}
	p50  = figure{"p50", func(c *cell) float64 { return c.p50 }, false}
	p99  = figure{"p99", func(c *cell) float64 { return c.p99 }, false}
	cpu  = figure{"proxies' CPU", func(c *cell) float64 { return c.cpu }, false}
)

// aim is a goal beside Istio's ztunnel, which is not at hand everywhere: it is restated beside what every run measures,
// by the reference run in which all three were measured together (across nodes, access log on).
type aim struct {
	work, place string
	figure      figure
	ratio       float64 // ours / ztunnel that is wanted
	ztunnel     float64 // in the reference run, as are the next two
	base        float64
	baseMesh    string // what base is: tlsPerConn or noMesh
	path        string // the one that the aim is for
}

var aims = []aim{
	{"bulk1", otherNode, rate, 1.0, 0.638, 0.515, tlsPerConn, "tunnel"},
	{"bulk1", otherNode, rate, 1.0, 0.638, 2.66, noMesh, "tunnel"},
	{"bulk1", otherNode, cpu, 1.0, 1.67, 2.05, tlsPerConn, "tunnel"},
	{"bulk8", otherNode, rate, 1.1, 0.694, 0.535, tlsPerConn, "tunnel"},
	{"bulk8", otherNode, rate, 1.1, 0.694, 3.10, noMesh, "tunnel"},
	{"bulk8", otherNode, cpu, 1.0, 1.73, 2.14, tlsPerConn, "tunnel"},
	{"rr1", otherNode, p50, 0.8, 195, 161, tlsPerConn, "tunnel"},
	{"rr1", otherNode, p50, 0.8, 195, 58, noMesh, "tunnel"},
	{"rr1", otherNode, cpu, 1.0, 112, 121, tlsPerConn, "tunnel"},
	{"rr64", otherNode, rate, 1.4, 17942, 19409, tlsPerConn, "tunnel"},
	{"rr64", otherNode, rate, 1.4, 17942, 76620, noMesh, "tunnel"},
	{"rr64", otherNode, cpu, 0.65, 62.2, 59.7, tlsPerConn, "tunnel"},
	{"connect", otherNode, rate, 1.4, 2782, 1365, tlsPerConn, "tunnel"},
	{"connect", otherNode, rate, 1.4, 2782, 11417, noMesh, "tunnel"},
	{"connect", otherNode, cpu, 0.7, 364, 1022, tlsPerConn, "tunnel"},
	{"bulk1", sameNode, rate, 4, 0.643, 3.15, noMesh, "direct"},
	{"connect", sameNode, rate, 3.5, 3059, 12671, noMesh, "direct"},
	{"rr1", sameNode, p50, 0.2, 175, 22, noMesh, "direct"},
}

// limit is the aim as ours / base.
func (a aim) limit() float64 { return a.ratio * a.ztunnel / a.base }

// verdict compares the median of the ratios of all rounds with the limit.
func (a aim) verdict(r *results) (got float64, word string) {
	ratios := r.ratios(key{a.work, a.place, byPod, permissive}, key{a.work, a.place, byPod, a.baseMesh}, a.figure)
	if len(ratios) == 0 {
		return 0, "missing"
	}
	got = median(ratios)
	if a.figure.more == (got >= a.limit()) || got == a.limit() {
		return got, "met"
	}
	return got, "missed"
}

// aimTable is the section on the aims.
func aimTable(r *results) string {
	var b strings.Builder
	b.WriteString("| load | node | figure | aim: ours / Istio's ztunnel | beside | aim: ours / that | this run | | path: wanted, seen |\n|---|---|---|---|---|---|---|---|---|\n")
	for _, a := range aims {
		sign := "≤"
		if a.figure.more {
			sign = "≥"
		}
		got, word := a.verdict(r)
		shown := "missing"
		if word != "missing" {
			shown = fmt.Sprintf("%.2f", got)
		}
		seen := "nothing"
		if cells := r.of(key{a.work, a.place, byPod, permissive}); len(cells) > 0 {
			seen = counts(cells[len(cells)-1].paths)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s %.2f | %s | %s %.2f | %s | %s | %s, %s |\n",
			a.work, a.place, a.figure.name, sign, a.ratio, a.baseMesh, sign, a.limit(), shown, word, a.path, seen)
	}
	return b.String()
}
