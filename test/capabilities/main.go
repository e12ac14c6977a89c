// Command capabilities makes the scoreboard: docs/capabilities.md and docs/capabilities.tsv, one line a row of the catalogue,
// from the "go test -json" output of a real run. Only what ran counts.
//
// A test proves a row when its name carries the row's id: TestMT04StrictMesh, or a subtest "MT-04 …". A subtest whose name
// begins with the word "control", after row ids of its own if it has some ("MT-04 control: …"), shows that the test fails
// without the capability. A row needs two: one whose name says "outside the mesh", and one without its resource or with its
// input changed; where only one can be, the table lone says why. Without its controls a row is vacuous.
package main

import (
	"bufio"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/undermesh/undermesh/controller/model/support"
)

//go:embed rows.tsv
var rowsTSV string

// deviations are rows that we decided to answer differently; the text says how.
var deviations = map[string]string{
	"IN-01": "gateways are not there yet: install prints the components that it installed",
	"IN-02": "gateways are not there yet: install prints the components that it installed",
	"MT-28": "mutual TLS is automatic, as the documents' newer text has it: a DestinationRule without tls changes nothing for the clients of a STRICT server",
	"TR-23": "stored as v1beta1; kubectl shows v1, which is served too",
}

// lone are the rows with one control only, and why there is no other.
var lone = map[*regexp.Regexp]string{
	regexp.MustCompile(`^SI-0[1-6]$`):           "without the label a pod is outside the mesh",
	regexp.MustCompile(`^(MT-26|CN-08)$`):       "there is no resource but the enrolment",
	regexp.MustCompile(`^CN-07$`):               "outside the mesh all ports are excluded",
	regexp.MustCompile(`^IN-`):                  "it concerns the whole mesh",
	regexp.MustCompile(`^EG-08$`):               "it concerns the whole mesh",
	regexp.MustCompile(`^LB-11$`):               "what is refused is refused where it is written, whoever calls",
	regexp.MustCompile(`^SR-12$`):               "what a port declares is judged where it is written, whoever calls it",
	regexp.MustCompile(`^JW-09$`):               "the control plane fetches, whoever is in the mesh",
	regexp.MustCompile(`^AL-09$`):               "outside the mesh there are no lines in any case",
	regexp.MustCompile(`^MT-(1[6-9]|2[0125])$`): "nobody outside the mesh has a certificate",
}

type row struct{ id, title string }

type proof struct {
	tests, controls map[string]bool // name → passed
}

type event struct{ Action, Package, Test string }

func main() {
	out := flag.String("out", "docs", "directory of capabilities.md and capabilities.tsv")
	flag.Parse()
	if err := run(*out, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "capabilities:", err)
		os.Exit(1)
	}
}

func run(out string, files []string) error {
	if len(files) == 0 {
		return errors.New("name the files of go test -json output")
	}
	rows, known := catalogue()
	proofs := map[string]*proof{}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		err = read(f, known, proofs)
		f.Close()
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
	}
	return write(out, rows, proofs)
}

func catalogue() ([]row, map[string]bool) {
	var rows []row
	known := map[string]bool{}
	for _, line := range strings.Split(strings.TrimSpace(rowsTSV), "\n") {
		id, title, _ := strings.Cut(line, "\t")
		rows = append(rows, row{id, title})
		known[id] = true
	}
	return rows, known
}

var idPattern = regexp.MustCompile(`(?:^|[/_,(]|Test)([A-Z]{2})-?([0-9]{2})(?:[^0-9]|$)`)

// controlPattern finds a subtest whose name begins with the whole word "control", row ids before it apart.
var controlPattern = regexp.MustCompile(`/(?:\(?[A-Z]{2}-?[0-9]{2}\)?[_,]+)*control(?:[^A-Za-z0-9]|$)`)

// ids finds the rows that a test name carries. Ids may follow each other: TestMT04MT05.
func ids(name string, known map[string]bool) []string {
	found := map[string]bool{}
	for rest := name; ; {
		m := idPattern.FindStringSubmatchIndex(rest)
		if m == nil {
			break
		}
		if id := rest[m[2]:m[3]] + "-" + rest[m[4]:m[5]]; known[id] {
			found[id] = true
		}
		rest = "_" + rest[m[5]:]
	}
	return slices.Sorted(maps.Keys(found))
}

// read takes the verdicts of tests; skipped ones do not count.
func read(r io.Reader, known map[string]bool, proofs map[string]*proof) error {
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<24)
	for s.Scan() {
		var e event
		if json.Unmarshal(s.Bytes(), &e) != nil || e.Test == "" || (e.Action != "pass" && e.Action != "fail") {
			continue
		}
		control := controlPattern.MatchString(e.Test)
		for _, id := range ids(e.Test, known) {
			p := proofs[id]
			if p == nil {
				p = &proof{map[string]bool{}, map[string]bool{}}
				proofs[id] = p
			}
			set := p.tests
			if control {
				set = p.controls
			}
			set[e.Test] = e.Action == "pass"
		}
	}
	return s.Err()
}

// status is pass, fail, open, vacuous or deviation.
func status(id string, p *proof) string {
	if _, ok := deviations[id]; ok {
		return "deviation"
	}
	if p == nil || len(p.tests) == 0 {
		return "open"
	}
	for _, set := range []map[string]bool{p.tests, p.controls} {
		for _, passed := range set {
			if !passed {
				return "fail"
			}
		}
	}
	outside, without := false, false
	for name := range p.controls {
		is := strings.Contains(name, "outside_the_mesh")
		outside, without = outside || is, without || !is
	}
	if outside && without || (outside || without) && whyLone(id) != "" {
		return "pass"
	}
	return "vacuous"
}

func whyLone(id string) string {
	for p, why := range lone {
		if p.MatchString(id) {
			return why
		}
	}
	return ""
}

// unenforced counts the fields that users may write and that do not do all they say, those without effect by design apart.
func unenforced() int {
	n := support.Count()
	return n[support.Carried] + n[support.Refused] + n[support.Accepted]
}

// remark says why a row that passes has one kind of control only.
func remark(id, status string) string {
	if why := whyLone(id); why != "" && status == "pass" {
		return "<br>(" + why + ")"
	}
	return ""
}

func write(dir string, rows []row, proofs map[string]*proof) error {
	var tsv, md strings.Builder
	count := map[string]int{}
	for _, r := range rows {
		p := proofs[r.id]
		st := status(r.id, p)
		count[st]++
		var tests, controls []string
		if p != nil {
			tests, controls = slices.Sorted(maps.Keys(p.tests)), slices.Sorted(maps.Keys(p.controls))
		}
		fmt.Fprintf(&tsv, "%s\t%s\t%s\n", r.id, st, strings.Join(slices.Concat(tests, controls), " "))
		if st != "open" {
			fmt.Fprintf(&md, "| %s | %s | %s | %s | %s |\n", r.id, r.title, st, strings.Join(tests, "<br>"), strings.Join(controls, "<br>")+deviations[r.id]+remark(r.id, st))
		}
	}
	head := fmt.Sprintf("# Capabilities\n\nMade by `make capabilities` from the tests that ran. %d rows: %d pass, %d fail, %d vacuous (a control is missing), %d deviations, %d open; %d fields are accepted and not enforced ([enforcement.md](enforcement.md)).\n"+
		"Rows that no test proves are in `capabilities.tsv` only.\n\n| row | capability | state | tests | controls |\n|---|---|---|---|---|\n",
		len(rows), count["pass"], count["fail"], count["vacuous"], count["deviation"], count["open"], unenforced())
	if err := os.WriteFile(dir+"/capabilities.tsv", []byte(tsv.String()), 0o644); err != nil {
		return err
	}
	return os.WriteFile(dir+"/capabilities.md", []byte(head+md.String()), 0o644)
}
