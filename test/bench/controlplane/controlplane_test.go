package main

import (
	"hash/maphash"
	"os"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"github.com/undermesh/undermesh/controller/api"
)

// TestMain lets the test's program be the controller that a test starts.
func TestMain(m *testing.M) {
	if os.Getenv(serveEnv) != "" || os.Getenv(swarmEnv) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestMeasure runs the whole bench on a small cluster: every figure is there, and the report says them.
func TestMeasure(t *testing.T) {
	cells, err := measure(t.Context(), 1, side{}, size{60, 3}, []int{2, 4}, load{syncs: 1, changes: 3, least: 3, storm: 200, limit: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if len(cells) != 2 {
		t.Fatalf("%d cells, want 2", len(cells))
	}
	for _, c := range cells {
		if c.missing != "" {
			t.Fatalf("%d clients: %s", c.clients, c.missing)
		}
		for _, f := range figures {
			if v := f.of(c); v <= 0 {
				t.Errorf("%d clients: %s is %v", c.clients, f.name, v)
			}
		}
		if c.stormResponses < c.stormStates {
			t.Errorf("%d responses make %d states", c.stormResponses, c.stormStates)
		}
	}
	like := *cells[0]
	like.size = size{2000, 20}
	text := (&report{rounds: 1, cells: append(cells, &like)}).String()
	for _, want := range []string{"|  | 60 | 3 | 72 | 2 |", "| 1 |  | 60 | 3 | 72 | 4 |", "|  | 60 | 2 | 2,000 pods | 1.00 | 1.00 |", "|  | 2000 | 2 | istiod |"} {
		if !strings.Contains(text, want) {
			t.Errorf("the report lacks %q:\n%s", want, text)
		}
	}
}

func TestParseResponse(t *testing.T) {
	msg, err := proto.Marshal(&discovery.DeltaDiscoveryResponse{SystemVersionInfo: "7", TypeUrl: api.AddressType, Nonce: "n",
		Resources:    []*discovery.Resource{{Name: "a"}, {Name: "b"}},
		ControlPlane: &core.ControlPlane{Identifier: api.DiscoveryWhole}})
	if err != nil {
		t.Fatal(err)
	}
	seed := maphash.MakeSeed()
	got, err := parseResponse(msg, seed)
	want := response{typ: api.AddressType, nonce: "n", size: len(msg), resources: 2, digest: got.digest, generation: 7, whole: true}
	if err != nil || got != want || got.digest == 0 {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	if _, err := parseResponse(msg[:len(msg)-1], seed); err == nil {
		t.Error("a response that is cut off is accepted")
	}
}
