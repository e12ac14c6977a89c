package server

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// batches is a Source whose batches a test sends.
type batches chan []model.Event

func (b batches) Run(ctx context.Context, emit func([]model.Event)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case events := <-b:
			emit(events)
		}
	}
}

// TestNotReadyWithoutTheMesh: without a good mesh configuration nothing is published and readiness says why.
func TestNotReadyWithoutTheMesh(t *testing.T) {
	source := make(batches)
	s, err := New(Config{Source: source, Clock: clock.System(), Listen: net.Listen, Compile: compile.Config{RequireMesh: true}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	send := func(events []model.Event) { // the second is taken when the first was applied
		for _, batch := range [][]model.Event{events, nil} {
			select {
			case source <- batch:
			case <-time.After(20 * time.Second):
				t.Fatal("a batch is not taken")
			}
		}
	}
	mesh := func(text string) []model.Event {
		return []model.Event{{Kind: model.KindConfigMap, Name: model.Name{Namespace: api.DefaultRootNamespace, Name: api.MeshConfigMap},
			Object: &corev1.ConfigMap{Data: map[string]string{"mesh": text}}}}
	}
	send(nil)
	if got := s.Missing(); !strings.Contains(got, "ConfigMap istio-system/istio: is missing") {
		t.Error(got)
	}
	send(mesh("rootNamespace: A_B"))
	if got := s.Missing(); !strings.Contains(got, "ConfigMap istio-system/istio data.mesh.rootNamespace: ") || s.engine.synced.Load() {
		t.Error(got)
	}
	send(mesh("rootNamespace: ok"))
	if got := s.Missing(); got != "" {
		t.Error(got)
	}
	send(mesh("rootNamespace: A_B"))
	if got := s.Missing(); got != "" || s.engine.mesh.Load().RootNamespace != "ok" {
		t.Error("a live bad edit ends readiness or counts:", got)
	}
}
