package nodes

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// held is one of the figures of a sample, and what it may grow over a run and still be called flat: a share of its mean, or so
// much, whatever is more.
type held struct {
	name  string
	unit  string
	of    func(sample) float64
	share float64
	slack float64
}

var figures = []held{
	{"RSS", "KiB", func(s sample) float64 { return s.rss }, 0.05, 4096},
	{"heap after a collection", "KiB", func(s sample) float64 { return s.heap }, 0.05, 2048},
	{"goroutines", "", func(s sample) float64 { return s.goroutines }, 0.05, 20},
	{"descriptors", "", func(s sample) float64 { return s.descript }, 0.05, 20},
}

// trend is the straight line through a figure's samples.
type trend struct {
	mean, low, high float64
	slope           float64 // an hour
	growth          float64 // over the time of the samples
	n               int
}

// settled are the samples after the warming of a run.
func settled(all []sample, length time.Duration) []sample {
	from := time.Duration(warming * float64(length))
	return slices.DeleteFunc(slices.Clone(all), func(s sample) bool { return s.at < from })
}

// trendOf fits by least squares.
func trendOf(all []sample, of func(sample) float64) trend {
	t := trend{n: len(all)}
	if t.n < 2 {
		return t
	}
	var meanX float64
	t.low, t.high = of(all[0]), of(all[0])
	for _, s := range all {
		v := of(s)
		meanX += s.at.Hours() / float64(t.n)
		t.mean += v / float64(t.n)
		t.low, t.high = min(t.low, v), max(t.high, v)
	}
	var xy, xx float64
	for _, s := range all {
		dx := s.at.Hours() - meanX
		xy, xx = xy+dx*(of(s)-t.mean), xx+dx*dx
	}
	if xx > 0 {
		t.slope = xy / xx
		t.growth = t.slope * (all[t.n-1].at - all[0].at).Hours()
	}
	return t
}

// flat reports whether a figure does not grow. Too few samples prove nothing.
func (t trend) flat(h held) bool { return t.n >= 10 && t.growth <= max(h.share*t.mean, h.slack) }

// report says what a soak saw and whether all was well.
func (s *soak) report(length time.Duration) (text string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	ok = s.failed == 0
	b.WriteString(head("Soak"))
	fmt.Fprintf(&b, "%v of mixed load against both nodes' ztunnel, on the same node and across nodes at once; %d changes of configuration (routes, a rule, a service).\n", length, s.changes)
	fmt.Fprintf(&b, "Each load opens its connections anew %d times. The first %.0f%% of the samples are left out. Flat is what grows by the slope of its samples\n", segments, warming*100)
	b.WriteString("less than 5% of its mean over the rest of the run, or less than 4 MiB of RSS, 2 MiB of heap, 20 goroutines or 20 descriptors.\n\n")
	b.WriteString("| node | figure | mean | least | greatest | an hour | over the run | samples | |\n|---|---|---|---|---|---|---|---|---|\n")
	for _, node := range slices.Sorted(maps.Keys(s.samples)) {
		all := settled(s.samples[node], length)
		for _, h := range figures {
			t := trendOf(all, h.of)
			verdict := "flat"
			if !t.flat(h) {
				verdict, ok = "**grows**", false
				if t.n < 10 {
					verdict = "**too few samples**"
				}
			}
			fmt.Fprintf(&b, "| %s | %s %s | %.0f | %.0f | %.0f | %+.0f | %+.0f | %d | %s |\n", node, h.name, h.unit, t.mean, t.low, t.high, t.slope, t.growth, t.n, verdict)
		}
	}
	b.WriteString("\n| load | requests | first failure |\n|---|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(s.requests)) {
		fmt.Fprintf(&b, "| %s | %d | %s |\n", name, s.requests[name], strings.NewReplacer("\n", " ", "|", "/").Replace(s.failures[name]))
	}
	for _, n := range s.lab.Nodes {
		if why := s.failures["sample of "+n.Name]; why != "" {
			fmt.Fprintf(&b, "| sample of %s | | %s |\n", n.Name, why)
		}
	}
	fmt.Fprintf(&b, "\nSegments with failures: %d. %s\n", s.failed, map[bool]string{true: "All is flat and nothing failed.", false: "**Not all is well.**"}[ok])
	return b.String(), ok
}
