package bench

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/undermesh/undermesh/test/bench/dated"
	"github.com/undermesh/undermesh/test/netnstest"
)

var (
	roundsFlag = flag.Int("rounds", 5, "rounds")
	lengthFlag = flag.Duration("length", time.Second, "length of a cell")
	cellsFlag  = flag.String("cells", ".", "`expression` for the cells to run, as rr64/other/ClusterIP/STRICT")
	outFlag    = flag.String("out", "", "`directory` for the report of a complete run")
	heldFlag   = flag.Int("held", 1000, "connections to hold for the figure of memory, 0: none")
)

// BenchmarkMesh is "make bench". It is a benchmark so that no test run starts it by accident; it measures by itself.
func BenchmarkMesh(b *testing.B) {
	netnstest.Require(b)
	only, err := regexp.Compile(*cellsFlag)
	if err != nil {
		b.Fatalf("-cells: %v", err)
	}
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		b.Fatalf("find repository: %v", err)
	}
	root := filepath.Dir(strings.TrimSpace(string(out)))
	start := time.Now()
	facts := machine(root, start)
	w := newWorld(b, buildLoadgen(b, root))
	w.warm()
	rep := &report{facts: facts, rounds: *roundsFlag, length: *lengthFlag, expr: *cellsFlag, seed: uint64(start.UnixNano())}
	for _, s := range w.sides {
		if *heldFlag > 0 && s.addr == byPod && s.place == otherNode && s.mesh != noMesh && s.mesh != strict {
			rep.held = append(rep.held, w.hold(s, *heldFlag))
		}
	}
	fmt.Println(rep.head())
	rep.results.cells = w.measure(plan{rounds: *roundsFlag, length: *lengthFlag, only: only, rand: rand.New(rand.NewPCG(rep.seed, 0))}, show)
	rep.took = time.Since(start)
	text := rep.String()
	fmt.Println(text)
	if len(rep.results.cells) == 0 {
		b.Fatalf("no cell matches %q", *cellsFlag)
	}
	if *outFlag != "" && rep.complete() {
		path, err := dated.Write(*outFlag, "", start, text)
		if err != nil {
			b.Fatal(err)
		}
		fmt.Println("written:", path)
	}
}

// show prints a cell as soon as it is measured.
func show(c *cell) {
	if c.side.peer() && c.round > 1 {
		return // its absence was said once
	}
	if c.missing != "" {
		fmt.Printf("round %d  %-36s missing: %s\n", c.round, c.name(), oneLine(c.missing))
		return
	}
	fmt.Printf("round %d  %-36s %8s %-7s p50 %6s us  p99 %6s us  proxies %6s %-8s %s\n", c.round, c.name(), short(c.rate), c.work.unit,
		latency(c, p50), latency(c, p99), short(c.cpu), c.work.cpuUnit, evidence(c))
}
