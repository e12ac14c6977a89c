package server

import (
	"context"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"

	"github.com/undermesh/undermesh/controller/api/version"
	"github.com/undermesh/undermesh/controller/jwks/keeper"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/watch"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// TestME12Objects: the controller's metrics say what there is and what happened, under the names of Istio's dashboards.
func TestME12Objects(t *testing.T) {
	reg := prometheus.NewRegistry()
	o, err := newObjects(reg)
	if err != nil {
		t.Fatal(err)
	}
	event := func(kind model.Kind, name string, object any) model.Event {
		return model.Event{Kind: kind, Name: model.Name{Namespace: "foo", Name: name}, Object: object}
	}
	o.take([]model.Event{event(model.KindService, "a", 1), event(model.KindService, "b", 1), event(model.KindPod, "p", 1),
		event(model.KindVirtualService, "v", 1)})
	o.take([]model.Event{event(model.KindService, "a", nil), event(model.KindService, "b", 1)})
	got := gathered(t, reg)
	for series, want := range map[string]float64{
		"pilot_k8s_cfg_events add VirtualService": 1, "pilot_k8s_reg_events add Service": 2, "pilot_k8s_reg_events delete Service": 1,
		"pilot_k8s_reg_events update Pod": 1, "pilot_k8s_reg_events update Service": 1, "pilot_services": 1, "pilot_virt_services": 1,
		"pilot_info " + version.Version: 1, "istio_build pilot " + version.Version: 1,
	} {
		if got[series] != want {
			t.Errorf("%s is %v, want %v", series, got[series], want)
		}
	}
	if got["go_goroutines"] == 0 || got["process_resident_memory_bytes"] == 0 {
		t.Error("nothing is said of the process")
	}
	t.Run("ME-12 control: nothing was taken in", func(t *testing.T) {
		none := prometheus.NewRegistry()
		if _, err := newObjects(none); err != nil {
			t.Fatal(err)
		}
		for series, n := range gathered(t, none) {
			if strings.HasPrefix(series, "pilot_k8s") || (strings.HasSuffix(series, "services") && n != 0) {
				t.Errorf("%s is %v before any event", series, n)
			}
		}
	})
}

// gathered is the value of each counter and gauge, by its name and the values of its labels.
func gathered(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, family := range all {
		for _, m := range family.GetMetric() {
			name := family.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			out[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return out
}

var (
	describedName  = regexp.MustCompile(`fqName: "([a-z0-9_]+)"`)
	documentedName = regexp.MustCompile("`((?:pilot|citadel|galley|istio|undermesh)_[a-z0-9_]+)")
)

// TestMetricsAreDocumented: the table says what the door of metrics shows, no more and no less.
func TestMetricsAreDocumented(t *testing.T) {
	c, _ := startEmpty(t)
	keys, err := keeper.New(keeper.Config{Store: keeper.NewLocalStore(func(*corev1.ConfigMap) {}), Clock: clock.System(),
		Fetch: func(context.Context, string) (string, error) { return "", nil }})
	if err != nil {
		t.Fatal(err)
	}
	more := prometheus.NewRegistry()
	more.MustRegister(keys, watch.NewKubernetes(watch.KubeConfig{}).History())
	if _, err := newStaleness(clock.System(), slog.New(slog.DiscardHandler), nil, more); err != nil {
		t.Fatal(err)
	}
	described := map[string]bool{"galley_validation_total": true} // of package webhook
	ch := make(chan *prometheus.Desc)
	go func() {
		c.registry.Describe(ch)
		more.Describe(ch)
		close(ch)
	}()
	for d := range ch {
		if m := describedName.FindStringSubmatch(d.String()); m != nil && !strings.HasPrefix(m[1], "go_") && !strings.HasPrefix(m[1], "process_") {
			described[m[1]] = true
		}
	}
	text, err := os.ReadFile("../../docs/control-plane.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for _, m := range documentedName.FindAllStringSubmatch(string(text), -1) {
		documented[m[1]] = true
	}
	for n := range described {
		if !documented[n] {
			t.Errorf("%s is not documented", n)
		}
	}
	for n := range documented {
		if !described[n] {
			t.Errorf("%s is documented and there is none", n)
		}
	}
	if len(described) < 25 {
		t.Errorf("only %d are found", len(described))
	}
}
