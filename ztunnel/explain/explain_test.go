package explain_test

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/configdir"
	"github.com/undermesh/undermesh/controller/watch"
	"github.com/undermesh/undermesh/ztunnel/explain"
)

var update = flag.Bool("update", false, "write the golden files")

// world is what a node knows of the objects in testdata/world.yaml, as change has edited their text.
func world(t testing.TB, change ...string) explain.World {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "world.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	edited := strings.NewReplacer(change...).Replace(string(text))
	if len(change) > 0 && edited == string(text) {
		t.Fatalf("nothing to change for %q", change)
	}
	return explain.World{Snapshot: snapshotOf(t, []byte(edited))}
}

// snapshotOf is what a node holds when a control plane serves the documents.
func snapshotOf(t testing.TB, text []byte) *client.Snapshot {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f.yaml"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	view, err := configdir.New(configdir.Config{Dir: dir}).Load()
	if err != nil {
		t.Fatal(err)
	}
	c := compile.New(compile.Config{})
	c.Apply(watch.Events(nil, view))
	var all []client.Resource
	for _, r := range c.Resources() {
		if client.Understands(r.Type) {
			all = append(all, client.Resource{Name: r.Name, Message: r.Message})
		}
	}
	snap, err := client.NewSnapshot(all...)
	if err != nil {
		t.Fatal(err)
	}
	return snap
}

// get is a question of the pod productpage.
func get(url string, headers ...string) explain.Question {
	return explain.Question{Namespace: "default", Pod: "productpage", Method: "GET", URL: url, Headers: headers}
}

func TestDecide(t *testing.T) {
	w := world(t)
	for name, q := range map[string]explain.Question{
		"header":      get("http://reviews:9080/reviews/0", "end-user: jason"),
		"weights":     get("http://reviews.default:9080/reviews/0?a=b"),
		"redirect":    get("http://reviews:9080/old/x"),
		"fault":       get("http://reviews:9080/broken"),
		"no-subset":   get("http://reviews:9080/missing"),
		"hash":        get("http://ratings:9080/ratings/0", "x-user: jason"),
		"tcp-denied":  get("http://mongo:27017/"),
		"not-seen":    get("http://secret.other/"),
		"outside":     get("https://www.example.com/"),
		"pod-address": get("http://10.0.0.12:9080/"),
		"other-host":  {Namespace: "default", Pod: "productpage", URL: "http://whatever/", Address: "10.96.0.10:9080"},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := explain.Decide(w, q)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name, d.Text())
		})
	}
}

// TestOwnAddress: what is not captured is not said to be forwarded.
func TestOwnAddress(t *testing.T) {
	for _, url := range []string{"http://127.0.0.1:9080/", "http://[::1]/", "https://10.0.0.1/"} {
		d, err := explain.Decide(world(t), get(url))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(d.Outcome, "not the mesh's") || d.Route != nil {
			t.Errorf("%s: outcome %q, route %v", url, d.Outcome, d.Route)
		}
	}
}

// TestFaultAnswersAll: nothing is forwarded where a fault answers every request.
func TestFaultAnswersAll(t *testing.T) {
	d, err := explain.Decide(world(t, "httpStatus: 555, percentage: {value: 10}", "httpStatus: 555, percentage: {value: 100}"), get("http://reviews:9080/broken"))
	if err != nil {
		t.Fatal(err)
	}
	if want := "555: a fault answers every request"; d.Outcome != want {
		t.Errorf("outcome %q, want %q", d.Outcome, want)
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestRecord: what a file holds decides as the whole did, and a change of it is told.
func TestRecord(t *testing.T) {
	w := world(t)
	w.Ejected = map[string][]string{}
	for _, q := range []explain.Question{
		get("http://reviews:9080/reviews/0", "end-user: jason"), get("http://ratings:9080/ratings/0", "x-user: jason"), get("http://mongo:27017/"),
		get("https://www.example.com/"), get("http://10.0.0.12:9080/"),
	} {
		r, err := explain.NewRecord(w, q)
		if err != nil {
			t.Fatal(q.URL, err)
		}
		raw, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		again, err := explain.ReadRecord(raw)
		if err != nil {
			t.Fatal(err)
		}
		d, err := again.Decide()
		if err != nil {
			t.Fatal(err)
		}
		if diff, err := again.Differs(d); err != nil || diff != "" {
			t.Errorf("%s: %v, %s", q.URL, err, diff)
		}
		if strings.Contains(string(raw), "secret") {
			t.Errorf("%s: the record has what it has nothing to do with", q.URL)
		}
	}
}

// TestRecordTellsChanges: a decision that comes out otherwise is told by field.
func TestRecordTellsChanges(t *testing.T) {
	r, err := explain.NewRecord(world(t), get("http://reviews:9080/", "end-user: jason"))
	if err != nil {
		t.Fatal(err)
	}
	now, err := explain.Decide(world(t, "{exact: jason}", "{exact: jack}"), get("http://reviews:9080/", "end-user: jason"))
	if err != nil {
		t.Fatal(err)
	}
	diff, err := r.Differs(now)
	if err != nil || !strings.Contains(diff, "route was ") || !strings.Contains(diff, "clusters was ") || strings.Contains(diff, "source was") {
		t.Errorf("%v: %s", err, diff)
	}
}

// TestReplay decides again what is committed: the file was written by "undermesh record".
func TestReplay(t *testing.T) {
	path := filepath.Join("testdata", "record.json")
	if *update {
		r, err := explain.NewRecord(world(t), get("http://reviews:9080/reviews/0", "end-user: jason"))
		if err != nil {
			t.Fatal(err)
		}
		raw, err := json.MarshalIndent(r, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, append(raw, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r, err := explain.ReadRecord(raw)
	if err != nil {
		t.Fatal(err)
	}
	d, err := r.Decide()
	if err != nil {
		t.Fatal(err)
	}
	if diff, err := r.Differs(d); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

func TestReadRecord(t *testing.T) {
	for text, want := range map[string]string{
		"": "read record", "{}": "version 0", `{"version":1}`: "no decision", `{"version":1,"decision":{},"resources":[{"type":"x"}]}`: `type "x"`,
		`{"version":1,"decision":{},"resources":[{"type":"type.googleapis.com/undermesh.v1.MeshSettings","resource":7}]}`: "resources[0]",
	} {
		r, err := explain.ReadRecord([]byte(text))
		if err == nil {
			_, err = r.Decide()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

func FuzzRecord(f *testing.F) {
	raw, err := os.ReadFile(filepath.Join("testdata", "record.json"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"version":1,"decision":{"request":{"url":"http://a/"}}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := explain.ReadRecord(raw)
		if err != nil {
			return
		}
		d, err := r.Decide()
		if err != nil {
			return
		}
		again, err := r.Decide()
		if err != nil {
			t.Fatal(err)
		}
		a, _ := json.Marshal(d)
		b, _ := json.Marshal(again)
		if string(a) != string(b) || d.Text() == "" {
			t.Errorf("one record decides in two ways:\n%s\n%s", a, b)
		}
	})
}

func TestBadQuestions(t *testing.T) {
	w := world(t)
	for _, c := range []struct {
		change func(*explain.Question)
		want   string
	}{
		{func(q *explain.Question) { q.URL = "ftp://a" }, "neither http nor https"}, {func(q *explain.Question) { q.URL = "http:///x" }, "no host"},
		{func(q *explain.Question) { q.URL = "http://a:0/" }, "not a port"}, {func(q *explain.Question) { q.URL = "http://a/" + strings.Repeat("x", 9000) }, "longer"},
		{func(q *explain.Question) { q.Method = "G T" }, "method"}, {func(q *explain.Question) { q.Headers = []string{"a"} }, "NAME: VALUE"},
		{func(q *explain.Question) { q.Headers = []string{"a b: c"} }, "name is none"}, {func(q *explain.Question) { q.Headers = []string{"a: b\x00"} }, "value is none"},
		{func(q *explain.Question) { q.Address = "a" }, "address"}, {func(q *explain.Question) { q.Pod = "nobody" }, "default/nobody"},
		{func(q *explain.Question) { q.URL = "http://a/%00" }, "refuses its path"},
	} {
		q := get("http://reviews/")
		c.change(&q)
		if _, err := explain.Decide(w, q); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %s", q, err, c.want)
		}
	}
	if _, err := explain.Decide(explain.World{}, get("http://a/")); err == nil {
		t.Error("decided without a snapshot")
	}
}

// TestEjected: what outlier detection has taken out is not picked, and is said to be.
func TestEjected(t *testing.T) {
	w := world(t, "app: reviews, version: v2", "app: reviews, version: v1")
	q := get("http://reviews:9080/broken")
	before, err := explain.Decide(w, q)
	if err != nil || len(before.Clusters) != 1 || len(before.Clusters[0].Endpoints) != 2 {
		t.Fatal(err, before)
	}
	const name = "outbound|9080|v1|reviews.default.svc.cluster.local"
	w.Ejected = map[string][]string{name: {"Kubernetes//Pod/default/reviews-v1:9080"}}
	after, err := explain.Decide(w, q)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range after.Clusters[0].Endpoints {
		if want := map[string]string{"default/reviews-v1": "ejected", "default/reviews-v2": "healthy"}[e.Workload]; e.Health != want || (e.Share == 0) != (want == "ejected") {
			t.Errorf("%+v, want %s", e, want)
		}
	}
}

// TestWorldAsText: what a node writes of all that it knows decides as the node does.
func TestWorldAsText(t *testing.T) {
	w := world(t)
	w.Ejected = map[string][]string{"a": {"b"}}
	var text strings.Builder
	if err := w.Write(&text); err != nil {
		t.Fatal(err)
	}
	again, err := explain.ReadWorld([]byte(text.String()))
	if err != nil {
		t.Fatal(err)
	}
	q := get("http://reviews:9080/reviews/0", "end-user: jason")
	want, err := explain.Decide(w, q)
	if err != nil {
		t.Fatal(err)
	}
	got, err := explain.Decide(again, q)
	if err != nil || got.Text() != want.Text() || got.Generation != want.Generation || again.Ejected["a"][0] != "b" {
		t.Errorf("%v, %+v: %s", err, again.Ejected, got.Text())
	}
	for _, bad := range []string{"", `{"resources":7}`, `{"resources":[{"type":"type.googleapis.com/undermesh.v1.MeshSettings","resource":7}]}`} {
		if _, err := explain.ReadWorld([]byte(bad)); err == nil {
			t.Errorf("%q is read", bad)
		}
	}
	other := `{"resources":[{"type":"type.googleapis.com/envoy.config.cluster.v3.Cluster","resource":{}}]}`
	if _, err := explain.ReadWorld([]byte(other)); err != nil {
		t.Error("of a control plane that serves more:", err)
	}
}
