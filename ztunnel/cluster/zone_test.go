package cluster_test

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/undermesh/undermesh/ztunnel/cluster"
)

// from is the origin of a workload in the first of the zones, with a client in each.
func from(zones string) cluster.Origin {
	var places []cluster.Locality
	for _, z := range zones {
		places = append(places, cluster.Locality{Region: "r", Zone: string(z)})
	}
	if len(places) == 0 {
		return cluster.Origin{}
	}
	return cluster.NewOrigin(places[0], places)
}

// inZones puts the endpoints into the zones in turn.
func inZones(zones string) func(int, *cluster.Endpoint) {
	return func(i int, e *cluster.Endpoint) {
		e.Locality = cluster.Locality{Region: "r", Zone: zones[i%len(zones) : i%len(zones)+1]}
	}
}

const zoneAware = `"commonLbConfig": {"zoneAwareLbConfig": {}}`

// shares is which part of the calls each zone gets, of a cluster with endpoints in the zones.
func shares(t *testing.T, spec, clients, zones string, change ...func(int, *cluster.Endpoint)) map[string]float64 {
	t.Helper()
	w := newWorld(t, spec)
	w.Update(w.Spec(), cluster.NewHostsFrom(from(clients), endpoints(len(zones), append([]func(int, *cluster.Endpoint){inZones(zones)}, change...)...)))
	const n = 10_000
	out := map[string]float64{}
	for range n {
		h, why := w.Pick(cluster.PickInput{})
		if why != cluster.Picked {
			t.Fatal(why)
		}
		out[h.Endpoint().Locality.Zone] += 1.0 / n
	}
	return out
}

// TestZones: the expected shares are Envoy's, counted by hand; the first zone of the clients is the caller's.
func TestZones(t *testing.T) {
	first := func(i int, e *cluster.Endpoint) { e.Priority = uint32(i % 2) } // a is first, b second
	for _, tc := range []struct {
		name, spec, clients, zones string
		change                     []func(int, *cluster.Endpoint)
		want                       map[string]float64
	}{
		{name: "as many here as of the clients", clients: "aabb", zones: "aaabbb", want: map[string]float64{"a": 1}},
		{name: "more here", clients: "abbb", zones: "aaabbb", want: map[string]float64{"a": 1}},
		{name: "fewer here", clients: "aaab", zones: "aaabbb", want: map[string]float64{"a": 2. / 3, "b": 1. / 3}},
		{name: "fewer here, two others with what is left", clients: "aabbc", zones: "aabbbbbbbbcccccccccc",
			want: map[string]float64{"a": .25, "c": .75}}, // of 40 % of the clients, 10 % fit; b has its own 40 %
		{name: "none here", clients: "ab", zones: "bbbccc", want: map[string]float64{"c": 1}}, // b has its own half
		{name: "none here, nobody there", clients: "ad", zones: "bbbccc", want: map[string]float64{"b": .5, "c": .5}},
		{name: "in turn and by least request alike", spec: `"lbPolicy": "LEAST_REQUEST"`, clients: "aaab", zones: "aaabbb", want: map[string]float64{"a": 2. / 3, "b": 1. / 3}},
		{name: "by chance too", spec: `"lbPolicy": "RANDOM"`, clients: "aaab", zones: "aaabbb", want: map[string]float64{"a": 2. / 3, "b": 1. / 3}},
		{name: "one of ours is down", clients: "ab", zones: "aaabbbb", change: []func(int, *cluster.Endpoint){unhealthy(0)},
			want: map[string]float64{"a": 2. / 3, "b": 1. / 3}},
		{name: "all of ours are down", clients: "ab", zones: "abbbbbbbb", change: []func(int, *cluster.Endpoint){unhealthy(0)}, want: map[string]float64{"b": 1}},
		{name: "panic", clients: "ab", zones: "aaabbbbb", change: []func(int, *cluster.Endpoint){unhealthy(1, 2, 3, 4, 5)}, want: map[string]float64{"a": 3. / 8, "b": 5. / 8}},
		{name: "too few", clients: "ab", zones: "aabbb", want: map[string]float64{"a": .4, "b": .6}},
		{name: "as few as it says", spec: `"commonLbConfig": {"zoneAwareLbConfig": {"minClusterSize": 2}}`, clients: "ab", zones: "ab", want: map[string]float64{"a": 1}},
		{name: "clients in one place", clients: "aa", zones: "aaabbb", want: map[string]float64{"a": .5, "b": .5}},
		{name: "endpoints in one place", clients: "ab", zones: "bbbbbb", want: map[string]float64{"b": 1}},
		{name: "nobody knows of clients", zones: "aaabbb", want: map[string]float64{"a": .5, "b": .5}},
		{name: "the second priority is not shared out", spec: `"commonLbConfig": {"zoneAwareLbConfig": {"minClusterSize": 2}}`, clients: "ab", zones: "cacbcacacb",
			change: []func(int, *cluster.Endpoint){first, unhealthy(0, 2, 4, 6, 8)}, want: map[string]float64{"a": .6, "b": .4}},
		{name: "a hash counts first", spec: `"lbPolicy": "MAGLEV"`, clients: "ab", zones: "aaabbb", want: map[string]float64{"a": .5, "b": .5}},
		{name: "control: without", spec: `"commonLbConfig": {}`, clients: "ab", zones: "aaabbb", want: map[string]float64{"a": .5, "b": .5}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			spec := "{" + tc.spec + "}"
			if !strings.Contains(spec, "commonLbConfig") {
				spec = "{" + strings.TrimPrefix(strings.TrimSuffix(tc.spec, ",")+", "+zoneAware, ", ") + "}"
			}
			got := shares(t, spec, tc.clients, tc.zones, tc.change...)
			for _, z := range []string{"a", "b", "c"} {
				if math.Abs(got[z]-tc.want[z]) > .02 {
					t.Errorf("zone %s gets %.3f, want %.3f", z, got[z], tc.want[z])
				}
			}
		})
	}
}

// TestZonesBurdenAlike: whatever the clients and the endpoints are, as many calls stay in their zone as can, and the endpoints of all
// zones get the same.
func TestZonesBurdenAlike(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	spec := `{` + zoneAware + `}`
	for round := range 30 {
		clients, zones := drawn(r, "abcd", 2, 20), drawn(r, "abcd", 6, 30)
		burden, stayed := map[string]float64{}, 0.0
		for i, z := range clients {
			mine := string(z) + clients[:i] + clients[i+1:]
			for zone, part := range shares(t, spec, mine, zones) {
				burden[zone] += part
				if zone == string(z) {
					stayed += part
				}
			}
		}
		if !strings.ContainsFunc(clients, func(z rune) bool { return z != rune(clients[0]) }) {
			continue // all in one zone: endpoints are alike
		}
		most := 0.0
		for _, z := range "abcd" {
			here, endpoints := float64(strings.Count(clients, string(z))), float64(strings.Count(zones, string(z)))
			fair := endpoints / float64(len(zones)) * float64(len(clients))
			most += min(here, fair)
			if math.Abs(burden[string(z)]-fair) > .03*float64(len(clients)) {
				t.Errorf("round %d: clients %s, endpoints %s: zone %c gets %.2f, want %.2f", round, clients, zones, z, burden[string(z)], fair)
			}
		}
		if stayed < most-.03*float64(len(clients)) {
			t.Errorf("round %d: clients %s, endpoints %s: %.2f stayed in their zone, %.2f can", round, clients, zones, stayed, most)
		}
	}
}

func drawn(r *rand.Rand, of string, least, most int) string {
	out := make([]byte, least+r.IntN(most-least+1))
	for i := range out {
		out[i] = of[r.IntN(1+r.IntN(len(of)))]
	}
	return string(out)
}

// TestZonesOfMany: shares of ten thousandths, which rounding leaves nothing of.
func TestZonesOfMany(t *testing.T) {
	clients := strings.Repeat("a", 3334) + strings.Repeat("b", 3333) + strings.Repeat("c", 3333)
	got := shares(t, "{"+zoneAware+"}", clients, "aabbcc")
	if got["a"] < .99 {
		t.Errorf("got %v", got)
	}
}
