package compile_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/validate"
)

// multiplied is an entry whose lists are so long.
func multiplied(hosts, ports, endpoints int, selects bool) func(*networking.ServiceEntry) {
	return func(s *networking.ServiceEntry) {
		s.Hosts, s.Ports, s.Endpoints = nil, nil, nil
		for i := range hosts {
			s.Hosts = append(s.Hosts, fmt.Sprintf("h%d.example.com", i))
		}
		for i := range ports {
			s.Ports = append(s.Ports, &networking.ServicePort{Number: uint32(i + 1), Name: fmt.Sprint("p", i), Protocol: "TCP"})
		}
		for i := range endpoints {
			s.Endpoints = append(s.Endpoints, &networking.WorkloadEntry{Address: fmt.Sprintf("203.0.%d.%d", i/256, i%256)})
		}
		if selects {
			s.WorkloadSelector = &networking.WorkloadSelector{Labels: map[string]string{"app": "x"}}
		}
	}
}

// TestEntrySize: a small file that means gigabytes is refused whole, with an Error that says why, and costs nothing; the
// largest that is taken costs what it should.
func TestEntrySize(t *testing.T) {
	for _, x := range []struct {
		hosts, ports, endpoints int
		selects, refused        bool
	}{
		{256, 256, 4096, false, true},
		{64, 64, 512, false, true},
		{33, 32, 32, false, true},
		{32, 32, 32, false, false},
		{1, 8, 4096, false, false},
		{64, 64, 0, true, true},
		{64, 32, 0, true, false},
	} {
		t.Run(fmt.Sprint(x), func(t *testing.T) {
			c := compile.New(compile.Config{ClusterID: "Kubernetes"})
			e := entry("foo", "a", 1, multiplied(x.hosts, x.ports, x.endpoints, x.selects))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			c.Apply([]model.Event{e})
			runtime.ReadMemStats(&after)
			if mb := (after.TotalAlloc - before.TotalAlloc) >> 20; mb > 64 {
				t.Errorf("compiling it allocates %d MB", mb)
			}
			named, refused := 0, false
			for _, r := range c.Resources() {
				if strings.Contains(r.Name, "example.com") || strings.Contains(r.Name, "/ServiceEntry/") {
					named++
				}
			}
			for _, f := range c.Findings() {
				refused = refused || f.Severity == validate.Error && f.Field == "spec" && strings.Contains(f.Message, "too large")
			}
			if refused != x.refused || (named == 0) != x.refused {
				t.Errorf("refused %v, want %v; %d resources; findings %v", refused, x.refused, named, c.Findings())
			}
		})
	}
}
