package compile_test

import (
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/configdir"
	"github.com/undermesh/undermesh/controller/watch"
)

// FuzzObjects: whatever users write, the compiler neither panics nor makes a service or a workload that nodes refuse, and what
// it makes can be encoded.
func FuzzObjects(f *testing.F) {
	seeds, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(seeds) == 0 {
		f.Fatal("no seeds", err)
	}
	for _, name := range seeds {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "f.yaml"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		view, err := configdir.New(configdir.Config{Dir: dir}).Load()
		if err != nil {
			return
		}
		c := compile.New(compile.Config{})
		c.Apply(watch.Events(nil, view))
		acceptable(t, c)
	})
}

// acceptable checks that everything can be encoded, and that nodes take the services and workloads.
func acceptable(t *testing.T, c *compile.Compiler) {
	t.Helper()
	var addresses []client.Resource
	for _, r := range c.Resources() {
		if _, err := proto.Marshal(r.Message); err != nil {
			t.Errorf("%s: %v", r.Name, err)
		}
		if _, ok := r.Message.(*workloadapi.Address); ok {
			addresses = append(addresses, client.Resource{Name: r.Name, Message: r.Message})
		}
	}
	if _, err := client.NewSnapshot(addresses...); err != nil {
		t.Error(err)
	}
}
