package cluster_test

import (
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/undermesh/undermesh/ztunnel/cluster"
)

// FuzzCompile: no cluster message makes Compile or what it gives fail otherwise than by an error that names the cluster.
func FuzzCompile(f *testing.F) {
	for _, text := range specs {
		c := &clusterv3.Cluster{}
		if err := protojson.Unmarshal([]byte(text), c); err != nil {
			f.Fatal(err)
		}
		c.Name = "a"
		b, err := proto.Marshal(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	hosts := endpoints(7, func(i int, e *cluster.Endpoint) {
		e.Weight, e.Priority, e.LocalityWeight = uint32(i), uint32(i%2), uint32(i%3)
		e.Locality.Zone = string(rune('a' + i%3))
	})
	f.Fuzz(func(t *testing.T, b []byte) {
		c := &clusterv3.Cluster{}
		if proto.Unmarshal(b, c) != nil {
			return
		}
		s, err := cluster.Compile(c)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "compile cluster") || c.Name != "" && !strings.Contains(err.Error(), ": ") {
				t.Fatalf("the error does not say where: %v", err)
			}
			return
		}
		w := newWorld(t, `{}`)
		w.Update(s, cluster.NewHostsFrom(from("aab"), append([]cluster.Endpoint{}, hosts...)))
		h, why := w.Pick(cluster.PickInput{Hash: w.rand(), HasHash: true, Original: hosts[0].Addr})
		if why != cluster.Picked {
			t.Fatalf("no host: %v", why)
		}
		h.Report(cluster.Answered, 503)
		w.clock.advance(s.ConnectTimeout)
		if s.Kind != cluster.OriginalDestination && !h.Endpoint().Healthy {
			t.Fatal("an unhealthy host was picked")
		}
		for range w.Stats {
		}
	})
}
