package admin

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/undermesh/undermesh/ztunnel/explain"
)

// Pod is what is shown of one pod that the process serves. Its methods are called concurrently.
type Pod interface {
	// Stats yields its statistics, in no order.
	Stats(yield func(Stat) bool)
	// Clusters yields lines of Envoy's /clusters, CLUSTER::…
	Clusters(yield func(line string) bool)
	// Drain has connections to the pod refused, or taken again.
	Drain(on bool)
	// World is what its calls go by now; without a snapshot while the mesh does not know it.
	World() explain.World
}

// Stat is one statistic under Envoy's name: SCOPE.OF.NAME.
type Stat struct {
	Scope Scope
	Of    string // the cluster's name, the stat prefix
	Name  string // upstream_rq_total
	Value uint64
	Gauge bool // it goes down too
}

// Scope is what statistics are of.
type Scope string

// The scopes, and by which label of Prometheus what they are of goes, as with Istio.
const (
	ScopeCluster Scope = "cluster"
	ScopeHTTP    Scope = "http"
)

var labels = map[Scope]string{ScopeCluster: "cluster_name", ScopeHTTP: "http_conn_manager_prefix"}

// text is the whole name. Istio ends prefixes by ";".
func (s Stat) text() string {
	of := s.Of
	if s.Scope == ScopeHTTP {
		of += ";"
	}
	return string(s.Scope) + "." + of + "." + s.Name
}

// family is the name of the metric in Prometheus.
func (s Stat) family() string {
	return "envoy_" + string(s.Scope) + "_" + strings.NewReplacer(".", "_", "-", "_").Replace(s.Name)
}

// addPods serves what there is per pod, below /pods/NAMESPACE/POD/: Envoy's own paths.
func (a *Admin) addPods(mux *http.ServeMux) {
	if a.cfg.Pod == nil {
		return
	}
	const at = "/pods/{namespace}/{pod}/"
	mux.HandleFunc("GET "+at+"stats", a.pod(podStats))
	mux.HandleFunc("GET "+at+"stats/prometheus", a.pod(podMetrics))
	mux.HandleFunc("GET "+at+"clusters", a.pod(podClusters))
	mux.HandleFunc("POST "+at+"drain_listeners", a.pod(a.drainPod))
	mux.HandleFunc("GET "+at+"explain", a.pod(explainPod))
	mux.HandleFunc("GET "+at+"snapshot", a.pod(snapshotOfPod))
}

// pod finds the pod of a path.
func (a *Admin) pod(show func(Pod, http.ResponseWriter, *http.Request)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		p := a.cfg.Pod(r.PathValue("namespace"), r.PathValue("pod"))
		if p == nil {
			http.Error(w, fmt.Sprintf("pod %s/%s is not served here", r.PathValue("namespace"), r.PathValue("pod")), http.StatusNotFound)
			return
		}
		show(p, w, r)
	}
}

// maxFilter bounds the regular expression of a filter, in bytes.
const maxFilter = 1 << 10

// asked are the statistics that the query asks for: filter is a regular expression that the name contains, usedonly leaves out
// those that are zero. They are sorted by name.
func asked(p Pod, r *http.Request) ([]Stat, error) {
	q := r.URL.Query()
	filter := q.Get("filter")
	if len(filter) > maxFilter {
		return nil, fmt.Errorf("filter: longer than %d bytes", maxFilter)
	}
	re, err := regexp.Compile(filter)
	if err != nil {
		return nil, fmt.Errorf("filter: %w", err)
	}
	used := q.Has("usedonly")
	var out []Stat
	for s := range p.Stats {
		if (!used || s.Value > 0) && (filter == "" || re.MatchString(s.text())) {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b Stat) int {
		return cmp.Or(cmp.Compare(a.Scope, b.Scope), cmp.Compare(a.Of, b.Of), cmp.Compare(a.Name, b.Name))
	})
	return out, nil
}

// podStats is Envoy's /stats, a line a statistic.
func podStats(p Pod, w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("format") == "prometheus" {
		podMetrics(p, w, r)
		return
	}
	list, err := asked(p, r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	out := bufio.NewWriter(w)
	defer out.Flush()
	for _, s := range list {
		fmt.Fprintf(out, "%s: %d\n", s.text(), s.Value)
	}
}

// podMetrics is Envoy's /stats/prometheus with Istio's labels.
func podMetrics(p Pod, w http.ResponseWriter, r *http.Request) {
	list, err := asked(p, r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	slices.SortStableFunc(list, func(a, b Stat) int { return cmp.Compare(a.family(), b.family()) })
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	out := bufio.NewWriter(w)
	defer out.Flush()
	last := ""
	for _, s := range list {
		if f := s.family(); f != last {
			kind := "counter"
			if s.Gauge {
				kind = "gauge"
			}
			fmt.Fprintf(out, "# TYPE %s %s\n", f, kind)
			last = f
		}
		fmt.Fprintf(out, "%s{%s=%s} %d\n", last, labels[s.Scope], quoted(s.Of), s.Value)
	}
}

// quoted is a label's value as the text format of Prometheus has it.
func quoted(v string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(v) + `"`
}

func podClusters(p Pod, w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	out := bufio.NewWriter(w)
	defer out.Flush()
	for line := range p.Clusters {
		if _, err := out.WriteString(line + "\n"); err != nil {
			return
		}
	}
}

// explainPod says what would become of a request that the query names: method, url, header (several), address. With record the
// answer is a record that can be replayed.
func explainPod(p Pod, w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	ask := explain.Question{Namespace: r.PathValue("namespace"), Pod: r.PathValue("pod"), Method: q.Get("method"), URL: q.Get("url"),
		Headers: q["header"], Address: q.Get("address")}
	var answer any
	var err error
	if q.Has("record") {
		answer, err = explain.NewRecord(p.World(), ask)
	} else {
		answer, err = explain.Decide(p.World(), ask)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer) // the client is gone
}

// snapshotOfPod writes all that the pod's calls go by, resource by resource, as explain.ReadWorld reads it.
func snapshotOfPod(p Pod, w http.ResponseWriter, _ *http.Request) {
	world := p.World()
	if world.Snapshot == nil {
		http.Error(w, "the mesh does not know the pod yet", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	out := bufio.NewWriter(w)
	defer out.Flush()
	_ = world.Write(out) // the client is gone
}

// drainPod answers as Envoy does. It says ?undo to take connections again, which Envoy has nothing for.
func (a *Admin) drainPod(p Pod, w http.ResponseWriter, r *http.Request) {
	on := !r.URL.Query().Has("undo")
	p.Drain(on)
	a.cfg.Log.Info("told to drain a pod", "pod", r.PathValue("namespace")+"/"+r.PathValue("pod"), "draining", on)
	_, _ = io.WriteString(w, "OK\n")
}
