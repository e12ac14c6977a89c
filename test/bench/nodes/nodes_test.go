package nodes

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/undermesh/undermesh/test/bench/dated"
	"github.com/undermesh/undermesh/test/netnstest"
)

var (
	roundsFlag = flag.Int("rounds", 5, "rounds")
	lengthFlag = flag.Duration("length", time.Second, "length of a cell, or of the soak")
	cellsFlag  = flag.String("cells", ".", "`expression` for the cells to run, as h1-c64/other/ours; a part is printed, not written")
	outFlag    = flag.String("out", "", "`directory` for the report")
)

// BenchmarkHTTP is "make bench RUN=http". It is a benchmark so that no test run starts it by accident; it measures by itself.
func BenchmarkHTTP(b *testing.B) {
	netnstest.Require(b)
	only, err := regexp.Compile(*cellsFlag)
	if err != nil {
		b.Fatalf("-cells: %v", err)
	}
	tool := build(b)
	w := newWorld(b, tool, os.Getenv("ENVOY"))
	w.warm()
	cells := w.measure(*roundsFlag, *lengthFlag, only)
	var beside []beside
	if only.MatchString("neighbour") {
		beside = neighbours(b, tool, *roundsFlag, 3**lengthFlag)
	}
	text := results(cells).report(*roundsFlag, *lengthFlag, beside)
	fmt.Println(text)
	if *outFlag == "" || *cellsFlag != "." {
		return
	}
	for _, c := range cells {
		if c.missing != "" {
			b.Fatalf("not written, for %s/%s/%s is missing: %s", c.work, c.place, c.side, c.missing)
		}
	}
	write(b, "http-", text)
}

// BenchmarkSoak is "make bench RUN=soak".
func BenchmarkSoak(b *testing.B) {
	netnstest.Require(b)
	text, ok := runSoak(b, build(b), *lengthFlag).report(*lengthFlag)
	fmt.Println(text)
	if *outFlag != "" {
		write(b, "soak-", text)
	}
	if !ok {
		b.Fatal("not flat, or something failed")
	}
}

func write(b *testing.B, prefix, text string) {
	b.Helper()
	path, err := dated.Write(*outFlag, prefix, time.Now(), text)
	if err != nil {
		b.Fatal(err)
	}
	fmt.Println("written:", path)
}

func TestTrend(t *testing.T) {
	rss := figures[0]
	line := func(n int, from, step float64) (all []sample) {
		for i := range n {
			all = append(all, sample{at: time.Duration(i) * time.Minute, rss: from + step*float64(i)})
		}
		return all
	}
	for name, c := range map[string]struct {
		all  []sample
		flat bool
	}{
		"level":           {line(61, 100_000, 0), true},
		"shrinks":         {line(61, 100_000, -500), true},
		"grows a little":  {line(61, 100_000, 80), true},
		"grows":           {line(61, 100_000, 100), false},
		"small and grows": {line(61, 1000, 60), true},
		"too few":         {line(5, 100_000, 0), false},
	} {
		if got := trendOf(c.all, rss.of); got.flat(rss) != c.flat {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if got := trendOf(line(61, 100, 2), rss.of); got.slope < 119.9 || got.slope > 120.1 || got.growth < 119.9 || got.mean < 159.9 || got.mean > 160.1 {
		t.Errorf("%+v", got)
	}
	if got := settled(line(61, 0, 0), time.Hour); len(got) != 46 || got[0].at != 15*time.Minute {
		t.Errorf("%d from %v", len(got), got[0].at)
	}
}

func TestReport(t *testing.T) {
	one := func(side string, a, b, p99 float64) *cell {
		return &cell{work: "h1-c64", place: other, side: side, cpu: []float64{a, b}, rate: 10, p50: 1, p99: p99}
	}
	r := results{one(ours, 10, 20, 5), one(ours, 12, 22, 7), one(ours, 11, 21, 6), one(envoyM, 40, 40, 6), {work: "h1-c64", place: same, side: ours, missing: "why\nthen"}}
	text := r.report(3, time.Second, []beside{
		{side: noMesh, got: answers{P99: time.Millisecond}, hot: answers{Elapsed: time.Second}},
		{side: ours, got: answers{P99: 1300 * time.Microsecond}, hot: answers{Elapsed: time.Second}},
	})
	for _, want := range []string{
		"| h1-c64 | other | ours | 32.0 [30.0-34.0] | 0.40 | 11.0 | 0.28 | 10 | 1 | 6 | 0 | 0.00 | 3 |\n",
		"| h1-c64 | same | ours | why then | | | | | | | | | 0 |\n",
		"| pair across nodes | h1-c64/other | envoy + mTLS | 0.50 | 0.40 | met |\n",
		"| mTLS leg: the client's proxy | h1-c64/other | envoy + mTLS | 0.50 | 0.28 | met |\n",
		"| single pass, full pipeline | h1-c64/same | envoy | 0.45 | 0.00 | missing |\n",
		"| p99 | h1-c64/other | envoy + mTLS | 1.00 | 1.00 | met |\n",
		"is 1.30 of that without a mesh (aim: at most 1.20): missed",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

func TestParse(t *testing.T) {
	if a, err := parse(`{"Requests":3,"Errors":1,"Elapsed":1000,"First":"x"}`, 0); err != nil || a.Requests != 3 || a.First != "x" {
		t.Errorf("%+v, %v", a, err)
	}
	for out, code := range map[string]int{"no": 0, `{"Requests":1}`: 1, `{"Requests":0,"Errors":2,"First":"x"}`: 0} {
		if _, err := parse(out, code); err == nil {
			t.Errorf("%q with %d is taken", out, code)
		}
	}
	if v, err := after("a\n# HeapAlloc = 12\nb", "# HeapAlloc = "); err != nil || v != 12 {
		t.Errorf("%v, %v", v, err)
	}
	if _, err := after("a", "b"); err == nil {
		t.Error("nothing is a number")
	}
}
