package main

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

// report is one run as it is written down.
type report struct {
	facts  string
	rounds int
	begin  time.Time
	took   time.Duration
	cells  []*cell
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// perResource is in bytes.
func (c *cell) perResource() float64 { return float64(c.bytes) / float64(max(1, c.resources)) }

// figure picks one number of a cell.
type figure struct {
	name string
	of   func(*cell) float64
}

var figures = []figure{
	{"controller ready, ms", func(c *cell) float64 { return ms(c.start) }},
	{"full sync, ms: responses", func(c *cell) float64 { return ms(c.wire) }},
	{"snapshot", func(c *cell) float64 { return ms(c.whole) }},
	{"B a resource", (*cell).perResource},
	{"B to a client of Istio's", func(c *cell) float64 { return float64(c.foreign) / float64(max(1, c.resources)) }},
	{"clients joined at once, ms", func(c *cell) float64 { return ms(c.join) }},
	{"event to client p50, ms", func(c *cell) float64 { return ms(c.p50) }},
	{"p99", func(c *cell) float64 { return ms(c.p99) }},
	{"slowest client p99", func(c *cell) float64 { return ms(c.last) }},
	{"CPU s / 1,000 changes", func(c *cell) float64 { return c.cpu.Seconds() }},
	{"storm: lasted, s", func(c *cell) float64 { return c.stormLasted.Seconds() }},
	{"pushes a client", func(c *cell) float64 { return float64(c.stormStates) }},
	{"responses a client", func(c *cell) float64 { return float64(c.stormResponses) }},
	{"settled, ms", func(c *cell) float64 { return ms(c.stormSettled) }},
	{"CPU s", func(c *cell) float64 { return c.stormCPU.Seconds() }},
	{"RSS MB", func(c *cell) float64 { return float64(c.rss) / 1e6 }},
	{"peak RSS MB", func(c *cell) float64 { return float64(c.peak) / 1e6 }},
}

func short(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// show prints a cell as soon as it is measured.
func show(c *cell) {
	fmt.Printf("round %d, %s %d pods, %d clients:", c.round, c.side, c.size.pods, c.clients)
	for _, f := range figures {
		fmt.Printf(" %s %s;", f.name, short(f.of(c)))
	}
	fmt.Println()
}

type key struct {
	size    size
	clients int
	side    string
}

// groups are the measured cells that differ only by round, in order.
func (r *report) groups() (keys []key, by map[key][]*cell) {
	by = map[key][]*cell{}
	for _, c := range r.cells {
		k := key{c.size, c.clients, c.side}
		if c.missing != "" {
			continue
		}
		if by[k] == nil {
			keys = append(keys, k)
		}
		by[k] = append(by[k], c)
	}
	slices.SortFunc(keys, func(a, b key) int {
		return cmp.Or(cmp.Compare(a.size.pods, b.size.pods), cmp.Compare(a.clients, b.clients), cmp.Compare(b.side, a.side))
	})
	return keys, by
}

// median of cells that are not none.
func median(cells []*cell, f func(*cell) float64) float64 {
	var v []float64
	for _, c := range cells {
		v = append(v, f(c))
	}
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

const reading = `Everything shares the CPUs, in three processes: the controller, assembled as in production; the clients; and the bench, which is
the API server (HTTP and JSON, streamed lists) and one more client. Other work ran beside them when the load says so. That one
client is a node's own (controller/client, which keeps everything); the others ask for the same as it does, which is every
resource of the types of the L4 mesh, over TLS connections of their own, acknowledge the same, and keep counts only.
That they were given the same is checked by a digest when they join, that all have a change by its generation.

The controller's memory is what it keeps of pods, services, nodes and the mesh's ConfigMap through its informers, the
registry, what is served, and connections. Not in it, because there is none of it here: objects of the mesh's own kinds,
writing of statuses, admission, review of tokens at an API server.

Full sync is from the dial, TLS handshake and token included, until the last response is there, or until a node's client has
its snapshot; it is measured with no other client. An event is timed from the API server's write of a pod whose readiness
changed until the node's client publishes a snapshot with it, and until the slowest client has the whole of it; the controller
gathers events for 20 ms and then pushes after 10 ms of quiet; changes are 75 ms apart at least, and begin 15 s after a storm, when
the controller has its pace back, which keeps to a second between two pushes until then. CPU is the controller's alone,
with the fan-out to all clients. A storm is 10,000 changes in 1 s; a push is what brings a client from one whole state to the
next, in one response or several, until the storm has settled. RSS is after the storm; the peak is since the process began,
the clients having joined all at once.

`

// String is the whole report.
func (r *report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Bench of the controller\n\n%s* %d rounds; took %s\n\n%s## Aims\n\n%s\n## Medians of the rounds\n\n", r.facts, r.rounds, r.took.Round(time.Second), reading, r.aims())
	head := "| | pods | nodes | resources | clients |"
	rule := "|---|---|---|---|---|"
	for _, f := range figures {
		head += " " + f.name + " |"
		rule += "---|"
	}
	fmt.Fprintf(&b, "%s\n%s\n", head, rule)
	keys, by := r.groups()
	for _, k := range keys {
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d |", k.side, k.size.pods, k.size.nodes, k.size.resources(), k.clients)
		for _, f := range figures {
			b.WriteString(" " + short(median(by[k], f.of)) + " |")
		}
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, "\n## Beside 2,000 pods, and istiod\n\n%s", r.ratios())
	fmt.Fprintf(&b, "\n## Cost of one change\n\nThe ratio is that of the CPU to the smallest size's with as many clients.\n\n```\n%s```\n", r.cost())
	fmt.Fprintf(&b, "\n## All rounds\n\n%s\n%s\n", strings.Replace(head, "| | pods", "| round | | pods", 1), "|---"+rule)
	for _, c := range r.cells {
		fmt.Fprintf(&b, "| %d | %s | %d | %d | %d | %d |", c.round, c.side, c.size.pods, c.size.nodes, c.size.resources(), c.clients)
		if c.missing != "" {
			fmt.Fprintf(&b, " missing: %s |\n", strings.NewReplacer("\n", " ", "|", "/").Replace(c.missing))
			continue
		}
		for _, f := range figures {
			b.WriteString(" " + short(f.of(c)) + " |")
		}
		b.WriteString("\n")
	}
	return b.String()
}

// aim is one figure beside what it is wanted to be, at most.
type aim struct {
	name string
	pods int
	most float64
	of   func(*cell) float64
	note string
}

var aims = []aim{
	{"full sync of 2,206 resources, ms", 2000, 20, func(c *cell) float64 { return ms(c.wire) }, "istiod: 10.6"},
	{"B a resource", 2000, 288, (*cell).perResource, "istiod: 288"},
	{"event to client p50, ms", 2000, 98, func(c *cell) float64 { return ms(c.p50) }, "istiod: 98; no aim of its own"},
	{"RSS MB at 2,000 pods", 2000, 150, func(c *cell) float64 { return float64(c.rss) / 1e6 }, "istiod: 180"},
	{"RSS MB at 100,000 pods", 100_000, 2000, func(c *cell) float64 { return float64(c.rss) / 1e6 }, ""},
	{"peak RSS MB at 100,000 pods", 100_000, 2000, func(c *cell) float64 { return float64(c.peak) / 1e6 }, ""},
	{"pushes a client in a storm", 0, 20, func(c *cell) float64 { return float64(c.stormStates) }, "10,000 events in 1 s"},
}

// aims is a row for each aim and cell that it is for.
func (r *report) aims() string {
	var b strings.Builder
	b.WriteString("| figure | pods | clients | aim | this run: median | | |\n|---|---|---|---|---|---|---|\n")
	keys, by := r.groups()
	row := func(k key, name string, most, got float64, note string) {
		verdict := "met"
		if got > most {
			verdict = "missed"
		}
		fmt.Fprintf(&b, "| %s | %d | %d | ≤ %s | %s | %s | %s |\n", name, k.size.pods, k.clients, short(most), short(got), verdict, note)
	}
	for _, a := range aims {
		for _, k := range keys {
			if k.side == "" && (a.pods == 0 || a.pods == k.size.pods) {
				row(k, a.name, a.most, median(by[k], a.of), a.note)
			}
		}
	}
	for _, k := range keys {
		small := by[key{size{2000, 20}, k.clients, ""}]
		if k.size.pods != 100_000 || k.side != "" || len(small) == 0 {
			continue
		}
		for _, f := range []figure{{"CPU of one change", func(c *cell) float64 { return c.cpu.Seconds() }},
			{"event to client p50", func(c *cell) float64 { return ms(c.p50) }}} {
			row(k, f.name+", 100,000 / 2,000 pods", 1.5, median(by[k], f.of)/median(small, f.of), "")
		}
	}
	return b.String()
}

// istiod is what was measured of it here, at 2,000 pods.
var istiod = map[string]float64{"full sync, ms: responses": 10.6, "B a resource": 288, "event to client p50, ms": 98, "RSS MB": 180}

// ratios sets figures beside those of the smallest size with as many clients, and those at 2,000 pods beside istiod's.
func (r *report) ratios() string {
	var b strings.Builder
	chosen := slices.DeleteFunc(slices.Clone(figures), func(f figure) bool {
		return !slices.Contains([]string{"full sync, ms: responses", "B a resource", "event to client p50, ms", "p99", "slowest client p99",
			"CPU s / 1,000 changes", "pushes a client", "RSS MB"}, f.name)
	})
	b.WriteString("| | pods | clients | beside |")
	for _, f := range chosen {
		b.WriteString(" " + f.name + " |")
	}
	b.WriteString("\n|---|---|---|---|" + strings.Repeat("---|", len(chosen)) + "\n")
	keys, by := r.groups()
	row := func(k key, beside string, base func(figure) float64) {
		fmt.Fprintf(&b, "| %s | %d | %d | %s |", k.side, k.size.pods, k.clients, beside)
		for _, f := range chosen {
			if d := base(f); d > 0 {
				fmt.Fprintf(&b, " %s |", short(median(by[k], f.of)/d))
			} else {
				b.WriteString(" |")
			}
		}
		b.WriteString("\n")
	}
	for _, k := range keys {
		if k.size.pods == 2000 {
			row(k, "istiod", func(f figure) float64 { return istiod[f.name] })
		}
		if small := by[key{size{2000, 20}, k.clients, k.side}]; k.size.pods != 2000 && len(small) > 0 {
			row(k, "2,000 pods", func(f figure) float64 { return median(small, f.of) })
		}
	}
	return b.String()
}

// cost plots what one change costs at each size, beside the smallest: a bar is as long as the ratio, 1.5 is the aim.
func (r *report) cost() string {
	var b strings.Builder
	keys, by := r.groups()
	for _, k := range keys {
		base := slices.IndexFunc(keys, func(o key) bool { return o.clients == k.clients && o.side == k.side })
		cells, smallest := by[k], by[keys[base]]
		cpu := func(c *cell) float64 { return ms(c.cpu) / 1000 }
		ratio := median(cells, cpu) / median(smallest, cpu)
		fmt.Fprintf(&b, "%-6s %4d clients %6d pods  %5.2f ms CPU  %6.1f ms to a client  %4.2f |%s\n", k.side, k.clients, k.size.pods,
			median(cells, cpu), median(cells, func(c *cell) float64 { return ms(c.p50) }), ratio, strings.Repeat("#", min(60, int(ratio*20+0.5))))
	}
	return b.String()
}

// machine is what the figures depend on.
func machine(at time.Time) string {
	output := func(name string, args ...string) string {
		out, err := exec.Command(name, args...).Output()
		if err != nil {
			return "unknown"
		}
		return strings.TrimSpace(string(out))
	}
	line := func(file, field string) string {
		raw, err := os.ReadFile(file)
		if err != nil {
			return "unknown"
		}
		for l := range strings.Lines(string(raw)) {
			if name, value, ok := strings.Cut(l, ":"); field == "" || ok && strings.TrimSpace(name) == field {
				return strings.TrimSpace(cmp.Or(value, l))
			}
		}
		return "unknown"
	}
	dirty := ""
	if output("git", "status", "--porcelain", "--", "controller", "test/bench/controlplane") != "" {
		dirty = ", with changes"
	}
	return fmt.Sprintf("* %s, commit %s%s, `make bench-controller`\n* %s, %d CPUs, %s memory, Linux %s, %s, load before: %s\n",
		at.UTC().Format(time.RFC3339), output("git", "rev-parse", "--short=12", "HEAD"), dirty, line("/proc/cpuinfo", "model name"), runtime.NumCPU(),
		line("/proc/meminfo", "MemTotal"), line("/proc/sys/kernel/osrelease", ""), runtime.Version(), line("/proc/loadavg", ""))
}
