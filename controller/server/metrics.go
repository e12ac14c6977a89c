package server

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/undermesh/undermesh/controller/api/version"
	"github.com/undermesh/undermesh/controller/model"
)

// objects counts what there is, and what happens to it, under Istio's names (ME-12). It is used by the source's goroutine.
type objects struct {
	there    map[model.Kind]map[model.Name]bool
	services prometheus.Gauge
	virtual  prometheus.Gauge
	registry *prometheus.CounterVec // what runs
	config   *prometheus.CounterVec // what users write
}

func newObjects(reg prometheus.Registerer) (*objects, error) {
	o := &objects{
		there: map[model.Kind]map[model.Name]bool{model.KindService: {}, model.KindVirtualService: {}},
		services: prometheus.NewGauge(prometheus.GaugeOpts{Name: "pilot_services",
			Help: "Kubernetes services that are known."}),
		virtual: prometheus.NewGauge(prometheus.GaugeOpts{Name: "pilot_virt_services",
			Help: "VirtualServices that are known."}),
		registry: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "pilot_k8s_reg_events",
			Help: "Events of pods, services, endpoints and nodes that were taken in."}, []string{"type", "event"}),
		config: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "pilot_k8s_cfg_events",
			Help: "Events of the mesh's kinds that were taken in."}, []string{"type", "event"}),
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{Name: "pilot_info", Help: "The build of this controller.",
		ConstLabels: prometheus.Labels{"version": version.Version}})
	build := prometheus.NewGauge(prometheus.GaugeOpts{Name: "istio_build", Help: "The build of this component.",
		ConstLabels: prometheus.Labels{"component": "pilot", "tag": version.Version}})
	info.Set(1)
	build.Set(1)
	for _, c := range []prometheus.Collector{o.services, o.virtual, o.registry, o.config, info, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// take counts a batch of events.
func (o *objects) take(events []model.Event) {
	for _, e := range events {
		vec := o.registry
		if _, ok := model.ResourceOf(e.Kind); ok || e.Kind == model.KindConfigMap {
			vec = o.config
		}
		what := "update"
		if e.Object == nil {
			what = "delete"
		}
		names := o.there[e.Kind]
		switch {
		case names == nil:
		case e.Object == nil:
			delete(names, e.Name)
		default:
			if !names[e.Name] {
				what = "add"
			}
			names[e.Name] = true
		}
		vec.WithLabelValues(string(e.Kind), what).Inc()
	}
	o.services.Set(float64(len(o.there[model.KindService])))
	o.virtual.Set(float64(len(o.there[model.KindVirtualService])))
}
