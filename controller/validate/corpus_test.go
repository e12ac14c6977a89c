package validate

import (
	"maps"
	"os"
	"slices"
	"testing"

	"github.com/undermesh/undermesh/test/corpus"
)

// notYet are the damaged forms that the engine still accepts. The list may only become shorter.
var notYet = map[string]bool{}

// obsoleteNotYet are the obsolete files whose message is still missing. The list may only become shorter.
var obsoleteNotYet = map[string]bool{}

// alone are obsolete only beside a cluster: standing alone they get an Info.
var alone = map[string]bool{"248-dr-details-kiali-editor.yaml": true} // labels that no pod has

// completed were incomplete in the documents; the files have what was missing.
var completed = map[string]bool{"084-gateway-selector-only.yaml": true}

// TestCorpus runs the engine over every document that users will bring: the good ones have no error, the obsolete ones get a
// message, and the damaged ones are refused or warned about with file, line and, where one can be read, object and field.
func TestCorpus(t *testing.T) {
	c, err := NewCatalogue()
	if err != nil {
		t.Fatal(err)
	}
	files := corpus.Files(t)
	good, damaged, accepted := 0, 0, map[string]bool{}
	for _, f := range files {
		name := f.Name
		report := checkFile(t, c, f.Path)
		switch {
		case !f.Obsolete || completed[name]:
			good++
			if report.Worst() == Error {
				t.Errorf("%s is good, and got %v", name, worst(report))
			}
		case obsoleteNotYet[name] != (report.Worst() < Warning && (!alone[name] || len(report.Findings) == 0)):
			t.Errorf("%s is obsolete (message still missing: %t), and got %v", name, obsoleteNotYet[name], worst(report))
		}
		if f.Printed == "" {
			continue
		}
		damaged++
		report = checkFile(t, c, f.Printed)
		if report.Worst() < Warning {
			accepted[name] = true
		}
		helped(t, name, report)
	}
	if good < 200 || damaged < 100 {
		t.Errorf("only %d good and %d damaged files were read", good, damaged)
	}
	for _, name := range slices.Sorted(maps.Keys(accepted)) {
		if !notYet[name] {
			t.Errorf("as-printed/%s is damaged, and was accepted", name)
		}
	}
	for name := range notYet {
		if !accepted[name] {
			t.Errorf("%s is found now: remove it from notYet", name)
		}
	}
	t.Logf("%d good, %d obsolete, %d damaged files; %d damaged ones still accepted, %d obsolete ones still without message", good, len(files)-good, damaged, len(accepted), len(obsoleteNotYet))
}

// helped checks that a damaged file is told where to look, and what to write instead.
func helped(t *testing.T, name string, r *Report) {
	t.Helper()
	for _, f := range r.Findings {
		if f.Severity >= Warning && f.Line > 0 && (f.Field != "" || f.Kind == "YAML") && f.Hint != "" {
			return
		}
	}
	t.Errorf("as-printed/%s: no finding has both a place and a hint: %v", name, worst(r))
}

func worst(r *Report) []string {
	var out []string
	for _, f := range r.Findings {
		if f.Severity == r.Worst() {
			out = append(out, f.String())
		}
	}
	return out
}

// checkFile runs the engine over a file, and checks that each finding says where it is.
func checkFile(t *testing.T, c *Catalogue, path string) *Report {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	set := c.NewSet(SetConfig{})
	report := set.File(t.Context(), path, data)
	found, err := set.Together(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	report.Findings = append(report.Findings, found...)
	for _, f := range report.Findings {
		if f.File != path || f.Line < 1 || f.Kind == "" || f.Message == "" {
			t.Errorf("finding without its place: %+v", f)
		}
	}
	if len(report.Findings) == 0 && report.Objects == 0 {
		t.Errorf("%s: neither objects nor findings", path)
	}
	return report
}
