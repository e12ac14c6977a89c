package explain_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/policy"
	"github.com/undermesh/undermesh/test/corpus"
	"github.com/undermesh/undermesh/ztunnel/cluster"
	"github.com/undermesh/undermesh/ztunnel/http/route"
)

// TestWhatIsComposedIsServed: the proxy compiles everything that the control plane makes of the documents in the tree and in the
// corpus, for every workload in them and for every host that a rule names.
func TestWhatIsComposedIsServed(t *testing.T) {
	t.Run("tree", func(t *testing.T) {
		var files []string
		for _, pattern := range []string{"../../deploy/samples/*/*/*.yaml", "../../deploy/samples/*/*.yaml", "../../controller/compile/testdata/*.yaml", "testdata/*.yaml"} {
			found, err := filepath.Glob(pattern)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, found...)
		}
		servesAll(t, files, 250)
	})
	t.Run("corpus", func(t *testing.T) {
		var files []string
		for _, f := range corpus.Files(t) {
			files = append(files, f.Path)
		}
		servesAll(t, files, 50)
	})
}

func servesAll(t *testing.T, files []string, least int) {
	t.Helper()
	routes, clusters := 0, 0
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		snap := snapshotOf(t, text)
		for _, w := range snap.Workloads() {
			r, k := compiles(t, path, snap, w)
			routes, clusters = routes+r, clusters+k
		}
		for _, rule := range snap.AllRouteRules() {
			caller := policy.Caller{Snapshot: snap, View: policy.View{Namespace: rule.GetNamespace()}}
			for _, host := range rule.GetHosts() {
				vh, _ := caller.VirtualHost(policy.Target{Kind: policy.TargetHost, Port: 80, Host: host})
				if _, err := route.Compile(vh); err != nil {
					t.Errorf("%s: %v", path, err)
				}
				routes += len(vh.GetRoutes())
			}
		}
	}
	t.Logf("%d files, %d routes, %d clusters", len(files), routes, clusters)
	if routes < least {
		t.Errorf("%d files have %d routes: too few to mean anything", len(files), routes)
	}
}

// compiles reports what the proxy would not serve of the caller's configuration, and counts routes and clusters.
func compiles(t *testing.T, path string, snap *client.Snapshot, w *client.Workload) (routes, clusters int) {
	t.Helper()
	caller, ok := policy.NewCaller(snap, w)
	if !ok {
		return 0, 0
	}
	for _, rc := range caller.RouteConfigs() {
		for _, vh := range rc.GetVirtualHosts() {
			if _, err := route.Compile(vh); err != nil {
				t.Errorf("%s: %s: %v", path, w.GetName(), err)
			}
			routes += len(vh.GetRoutes())
		}
	}
	for _, spec := range caller.Clusters() {
		if _, err := cluster.Compile(spec.Cluster); err != nil {
			t.Errorf("%s: %s: %v", path, w.GetName(), err)
		}
		clusters++
	}
	return routes, clusters
}
