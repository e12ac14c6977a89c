package server

import (
	"log/slog"
	"strings"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/jwks"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/validate"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// engine is the one user of the compiler: batches of events in, resources and statuses out.
type engine struct {
	log     *slog.Logger
	clock   clock.Clock
	out     publisher
	status  func([]model.Event, []validate.Status)
	entries func([]model.EntryAddresses)
	keys    func(wanted []jwks.Wanted, unwanted []jwks.Record) // nil: nobody fetches keys
	index   interface{ Apply([]model.Event) }
	secrets interface{ Apply([]model.Event) } // nil: nobody reads any; after index
	metrics *metrics

	synced atomic.Bool            // the first batch was published
	held   atomic.Pointer[string] // why nothing is published; nil: nothing keeps from it
	mesh   atomic.Pointer[model.Mesh]

	// Of the source's goroutine alone.
	compiler *compile.Compiler
	logged   map[string]string // object -> the errors that were logged of it
}

// apply compiles one batch and publishes what it changed.
func (e *engine) apply(events []model.Event) {
	start := e.clock.Now()
	e.index.Apply(events)
	if e.secrets != nil {
		e.secrets.Apply(events)
	}
	e.metrics.objects.take(events)
	delta := e.compiler.Apply(events)
	mesh, bad := e.compiler.Mesh(), e.compiler.MeshFindings()
	for s := validate.Info; s <= validate.Error; s++ {
		e.metrics.findings.WithLabelValues(s.String()).Set(float64(e.compiler.CountFindings(s)))
	}
	e.metrics.meshBad.Set(0)
	if validate.Worst(bad) == validate.Error {
		e.metrics.meshBad.Set(1)
	}
	if e.compiler.Held() {
		var why []string
		for _, f := range bad {
			why = append(why, f.Error())
		}
		text := "the mesh configuration is not known: " + strings.Join(why, "; ")
		e.held.Store(&text)
		e.logFindings(nil, bad)
		return
	}
	e.held.Store(nil)
	e.mesh.Store(&mesh)
	if !delta.Empty() {
		e.out.apply(delta)
	}
	e.status(events, delta.Status)
	if len(delta.Entries) > 0 {
		e.entries(delta.Entries)
	}
	if delta.Keys && e.keys != nil {
		e.keys(e.compiler.KeySources())
	}
	e.logFindings(delta.Status, bad)
	e.synced.Store(true)
	took := e.clock.Now().Sub(start)
	e.metrics.compiled(delta, took.Seconds())
	e.log.Debug("snapshot published", "generation", delta.Generation, "events", len(events),
		"changed", len(delta.Upserts), "removed", len(delta.Removed), "dur", took)
}

// logFindings names each policy that cannot be enforced as written, and a mesh configuration that is not taken over; each
// once, until it says something else.
func (e *engine) logFindings(statuses []validate.Status, mesh []validate.Finding) {
	for _, s := range statuses {
		now := ""
		for _, f := range s.Findings {
			if f.Severity == validate.Error {
				now += f.Error() + "\n"
			}
		}
		if !e.changed(s.Key(), now) {
			continue
		}
		for _, f := range s.Findings {
			if f.Severity == validate.Error {
				e.log.Error("policy cannot be enforced as written", "kind", f.Kind, "policy", s.Namespace+"/"+s.Name,
					"field", f.Field, "err", f.Message)
			}
		}
	}
	now := ""
	for _, f := range mesh {
		now += f.Error() + "\n"
	}
	if !e.changed(string(model.KindConfigMap), now) {
		return
	}
	for _, f := range mesh {
		object := f.Namespace + "/" + f.Name
		if f.Severity == validate.Error {
			e.log.Error("mesh configuration is not taken over", "object", object, "field", f.Field, "err", f.Message)
		} else {
			e.log.Warn("mesh configuration is taken over in part", "object", object, "field", f.Field, "err", f.Message)
		}
	}
}

// changed remembers what was said about an object and reports whether it is something new.
func (e *engine) changed(object, said string) bool {
	if e.logged[object] == said {
		return false
	}
	if said == "" {
		delete(e.logged, object)
		return false
	}
	e.logged[object] = said
	return true
}

// metrics of the controller, under the names that Istio's dashboards read where they exist.
type metrics struct {
	objects   *objects
	pushes    *prometheus.CounterVec
	snapshot  prometheus.Gauge
	findings  *prometheus.GaugeVec
	meshBad   prometheus.Gauge
	converged prometheus.Histogram
	refused   *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	seen, err := newObjects(reg)
	if err != nil {
		return nil, err
	}
	m := &metrics{
		objects: seen,
		pushes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "undermesh_controller_resources_total",
			Help: "Resources changed by compilation."}, []string{"change"}),
		snapshot: prometheus.NewGauge(prometheus.GaugeOpts{Name: "undermesh_controller_generation",
			Help: "Generation of the last compiled snapshot."}),
		findings: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "undermesh_controller_findings",
			Help: "What is wrong with objects now, by severity."}, []string{"severity"}),
		meshBad: prometheus.NewGauge(prometheus.GaugeOpts{Name: "undermesh_mesh_config_held",
			Help: "1 while the mesh configuration is bad, or gone: the last good one counts, if there was one."}),
		converged: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "undermesh_controller_compile_seconds",
			Help: "Time from a batch of events to its publication.", Buckets: prometheus.ExponentialBuckets(0.0001, 4, 9)}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "undermesh_controller_connections_refused_total",
			Help: "Connections that were closed because the door has too many, of their address or of all."}, []string{"door", "reason"}),
	}
	for _, c := range []prometheus.Collector{m.pushes, m.snapshot, m.findings, m.meshBad, m.converged, m.refused} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) compiled(d compile.Delta, seconds float64) {
	m.pushes.WithLabelValues("upsert").Add(float64(len(d.Upserts)))
	m.pushes.WithLabelValues("remove").Add(float64(len(d.Removed)))
	m.snapshot.Set(float64(d.Generation))
	m.converged.Observe(seconds)
}
