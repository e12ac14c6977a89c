// Command report reads the output of "go test -json", keeps it in a file, shows packages as they end and what failed, and
// closes with a line of counts. It ends with status 1 when a test failed, when there was none, or, with -noskip, when one
// was skipped: where privileges are promised a skipped test is a failure.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
)

type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64
}

type key struct{ pkg, test string }

type report struct {
	out                     io.Writer
	output                  map[key][]string
	passed, failed, skipped int
	broken                  []string // packages that did not build or crashed
}

func main() {
	keep := flag.String("keep", "", "`file` for the events")
	noskip := flag.Bool("noskip", false, "a skipped test is a failure")
	flag.Parse()
	ok, err := run(os.Stdin, os.Stdout, *keep, *noskip)
	if err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer, keep string, noskip bool) (bool, error) {
	kept := io.Discard
	if keep != "" {
		f, err := os.Create(keep)
		if err != nil {
			return false, err
		}
		defer f.Close()
		kept = f
	}
	r := &report{out: out, output: map[key][]string{}}
	s := bufio.NewScanner(in)
	s.Buffer(nil, 1<<24)
	for s.Scan() {
		fmt.Fprintln(kept, s.Text())
		var e event
		if json.Unmarshal(s.Bytes(), &e) != nil {
			fmt.Fprintln(out, s.Text())
			continue
		}
		r.take(e, noskip)
	}
	if err := s.Err(); err != nil {
		return false, fmt.Errorf("read events: %w", err)
	}
	for _, p := range r.broken {
		fmt.Fprintln(out, "broken:", p)
	}
	failed := r.failed
	if noskip {
		failed += r.skipped
	}
	fmt.Fprintf(out, "%d passed, %d failed, %d skipped\n", r.passed, r.failed+len(r.broken), r.skipped)
	return failed == 0 && len(r.broken) == 0 && r.passed > 0, nil
}

// take counts top-level tests and sub-tests alike.
func (r *report) take(e event, noskip bool) {
	k := key{e.Package, e.Test}
	switch e.Action {
	case "output":
		r.output[k] = append(r.output[k], e.Output)
	case "build-output":
		fmt.Fprint(r.out, e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			r.endPackage(e)
			return
		}
		switch e.Action {
		case "pass":
			r.passed++
		case "skip":
			r.skipped++
			if noskip {
				fmt.Fprintf(r.out, "skipped: %s %s\n%s", e.Package, e.Test, strings.Join(r.output[k], ""))
			}
		case "fail":
			r.failed++
			fmt.Fprintf(r.out, "%s", strings.Join(r.output[k], ""))
		}
		delete(r.output, k)
	}
}

func (r *report) endPackage(e event) {
	k := key{e.Package, ""}
	var last string
	for _, line := range r.output[k] {
		if strings.HasPrefix(line, "ok ") || strings.HasPrefix(line, "FAIL") || strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "---") {
			last = line
		}
	}
	if e.Action == "fail" && last != "" || e.Action == "pass" {
		if last == "" {
			last = fmt.Sprintf("ok  \t%s\t%.3fs\n", e.Package, e.Elapsed)
		}
		fmt.Fprint(r.out, last)
	}
	if e.Action == "fail" && !r.hadFailure(e.Package) {
		r.broken = append(r.broken, e.Package)
		fmt.Fprint(r.out, strings.Join(r.output[k], ""))
	}
	delete(r.output, k)
}

// hadFailure shows the output of tests that never ended, as in a crash, and reports whether a failure was counted.
func (r *report) hadFailure(pkg string) bool {
	for k, lines := range r.output {
		if k.pkg == pkg && k.test != "" {
			fmt.Fprint(r.out, strings.Join(lines, ""))
			delete(r.output, k)
			r.failed++
		}
	}
	return r.failed > 0
}
