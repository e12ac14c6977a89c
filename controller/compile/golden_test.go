package compile_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"

	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/configdir"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/policy"
	"github.com/undermesh/undermesh/controller/watch"
	"github.com/undermesh/undermesh/test/corpus"
)

var update = flag.Bool("update", false, "write the golden files")

func read(t *testing.T, dir string) []model.Event {
	t.Helper()
	view, err := configdir.New(configdir.Config{Dir: dir}).Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range view.Problems {
		if !p.Carried {
			t.Fatal(p)
		}
	}
	return watch.Events(nil, view)
}

func copyFile(t *testing.T, from string) (dir string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f.yaml"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// render prints resources, statuses and findings in a form that people can review.
func render(t *testing.T, c *compile.Compiler, d compile.Delta) string {
	t.Helper()
	var b strings.Builder
	b.WriteString(renderResources(t, c))
	for _, s := range d.Status {
		fmt.Fprintf(&b, "# status %s accepted=%t (%s) enforced=%t (%s) %s\n", s.Key(), s.Accepted, s.AcceptedBy,
			s.Enforced, s.EnforcedBy, s.Message)
	}
	for _, f := range c.Findings() {
		fmt.Fprintf(&b, "# finding %s\n", f.Error())
	}
	return b.String()
}

func renderResources(t *testing.T, c *compile.Compiler) string {
	t.Helper()
	var b strings.Builder
	for _, r := range c.Resources() {
		fmt.Fprintf(&b, "# %s %s\n", strings.TrimPrefix(r.Type, "type.googleapis.com/"), r.Name)
		if len(r.Aliases) > 0 {
			fmt.Fprintf(&b, "# aliases %s\n", strings.Join(r.Aliases, " "))
		}
		b.WriteString(renderMessage(t, r.Message))
	}
	return b.String()
}

// renderCalls is what the first pod that is there calls by.
func renderCalls(t *testing.T, events []model.Event) string {
	t.Helper()
	s := snapshotOf(t, events)
	i := slices.IndexFunc(s.Workloads(), (*client.Workload).IsPod)
	if i < 0 {
		t.Fatal("no pod")
	}
	caller, ok := policy.NewCaller(s, s.Workloads()[i])
	if !ok {
		t.Fatal("no scope")
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# as %s/%s calls\n", caller.Workload.GetNamespace(), caller.Workload.GetName())
	for _, spec := range caller.Clusters() {
		fmt.Fprintf(&b, "# cluster\n%s", renderMessage(t, spec.Cluster))
	}
	for _, rc := range caller.RouteConfigs() {
		fmt.Fprintf(&b, "# routes\n%s", renderMessage(t, rc))
	}
	return b.String()
}

func renderMessage(t *testing.T, m proto.Message) string {
	t.Helper()
	data, err := protojson.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var compact bytes.Buffer // protojson varies its white space on purpose
	if err := json.Compact(&compact, data); err != nil {
		t.Fatal(err)
	}
	text, err := yaml.JSONToYAML(compact.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func compareGolden(t *testing.T, golden, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("differs from %s (run with -update and review):\n%s", golden, got)
	}
}

// TestGolden compiles each input. What nodes get and what a pod calls by are two files: the second is
// long, says of every port of every service the same, and is there for some inputs only.
func TestGolden(t *testing.T) {
	inputs, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(inputs) == 0 {
		t.Fatal("no inputs", err)
	}
	calls := 0
	for _, input := range inputs {
		t.Run(filepath.Base(input), func(t *testing.T) {
			events := read(t, copyFile(t, input))
			c := compile.New(compile.Config{})
			got, base := render(t, c, c.Apply(events)), strings.TrimSuffix(input, ".yaml")
			compareGolden(t, base+".golden", got)
			if _, err := os.Stat(base + ".calls.golden"); err == nil {
				compareGolden(t, base+".calls.golden", renderCalls(t, events))
				calls++
			}
			if d := c.Apply(events); !d.Empty() && (len(d.Upserts) != 1 || d.Upserts[0].Name != "mesh") || len(d.Removed) > 0 {
				t.Errorf("the second compilation changed %v %v", d.Upserts, d.Removed)
			}
		})
	}
	if calls == 0 {
		t.Error("no input has a golden file of what a pod calls by")
	}
}

// TestCorpus compiles every document of the corpus: none may panic, and each is either understood or named in a problem.
func TestCorpus(t *testing.T) {
	dir := corpus.Dir(t)
	files := 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || filepath.Ext(path) != ".yaml" {
			return err
		}
		files++
		view, err := configdir.New(configdir.Config{Dir: copyFile(t, path)}).Load()
		if err != nil {
			return err
		}
		if len(view.Entries()) == 0 && len(view.Problems) == 0 {
			t.Errorf("%s: neither objects nor problems", path)
		}
		c := compile.New(compile.Config{})
		c.Apply(watch.Events(nil, view))
		for _, p := range view.Problems {
			t.Logf("%s: %s", filepath.Base(path), p)
		}
		for _, r := range c.Resources() {
			if _, err := proto.Marshal(r.Message); err != nil {
				t.Errorf("%s: %s: %v", path, r.Name, err)
			}
		}
		return nil
	})
	if err != nil || files == 0 {
		t.Fatal(files, "files", err)
	}
	t.Log(files, "files")
}
