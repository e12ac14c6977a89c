package main

import (
	"errors"
	"fmt"
	"iter"
	"os"
	"runtime/debug"
	"slices"

	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/ztunnel/admin"
)

// checks are the conditions of readiness: the mesh is known and the pods of the node are served.
func (w *worker) checks() []admin.Check {
	return []admin.Check{
		{Name: "root file", Ready: func() error {
			if w.roots.Generation() > 0 {
				return nil
			}
			if err := w.roots.Reload(); err != nil {
				return err
			}
			return nil
		}},
		{Name: "token", Ready: func() error {
			_, err := os.Stat(w.o.tokenPath)
			return err
		}},
		{Name: "mesh", Ready: func() error {
			if w.mesh.Snapshot() == nil {
				return fmt.Errorf("no snapshot from %s yet", w.o.xdsAddr)
			}
			return nil
		}},
		{Name: "pods", Ready: func() error {
			if w.pods.draining.Load() {
				return errors.New("draining")
			}
			if !w.pods.served.Load() {
				return fmt.Errorf("the node agent has not sent its pods over %s yet", w.o.zdsPath)
			}
			return nil
		}},
	}
}

// sections are what /config_dump shows.
func (w *worker) sections() []admin.Section {
	of := func(list func(*client.Snapshot) iter.Seq[any]) func() iter.Seq[any] {
		return func() iter.Seq[any] {
			s := w.mesh.Snapshot()
			if s == nil {
				return func(func(any) bool) {}
			}
			return list(s)
		}
	}
	return []admin.Section{
		{Name: "mesh", Items: of(func(s *client.Snapshot) iter.Seq[any] {
			return slices.Values([]any{s.Mesh()})
		})},
		{Name: "workloads", Items: of(func(s *client.Snapshot) iter.Seq[any] {
			return each(s.Workloads(), func(wl *client.Workload) any { return wl.Workload })
		})},
		{Name: "services", Items: of(func(s *client.Snapshot) iter.Seq[any] {
			return each(s.Services(), func(svc *client.Service) any { return svc.Service })
		})},
		{Name: "policies", Items: of(w.policies)},
		{Name: "certificates", Items: func() iter.Seq[any] { return each(w.ids.Certificates(), asAny) }},
		{Name: "roots", Items: func() iter.Seq[any] { return each(w.roots.Parts(), asAny) }},
		{Name: "pods", Items: w.pods.list},
	}
}

// policies are those in force for the pods of this node.
func (w *worker) policies(s *client.Snapshot) iter.Seq[any] {
	return func(yield func(any) bool) {
		seen := map[string]bool{}
		for _, wl := range s.Workloads() {
			if wl.GetNode() != w.o.nodeName {
				continue
			}
			for _, p := range s.Policies(wl) {
				name := p.GetNamespace() + "/" + p.GetName()
				if seen[name] {
					continue
				}
				seen[name] = true
				if !yield(p) {
					return
				}
			}
		}
	}
}

func each[T any](list []T, show func(T) any) iter.Seq[any] {
	return func(yield func(any) bool) {
		for _, item := range list {
			if !yield(show(item)) {
				return
			}
		}
	}
}

func asAny[T any](v T) any { return v }

// version is what the binary was built from.
func version() string {
	if b, ok := debug.ReadBuildInfo(); ok && b.Main.Version != "" {
		return b.Main.Version
	}
	return "unknown"
}
