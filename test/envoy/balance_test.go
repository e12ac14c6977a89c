package envoy

import (
	"context"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"testing"

	"github.com/cespare/xxhash/v2"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/xds"
	"github.com/undermesh/undermesh/ztunnel/clock"
	ours "github.com/undermesh/undermesh/ztunnel/cluster"
)

// balanced are clusters of endpoints 127.1.0.1, 127.1.0.2 …: what their messages say beside the endpoints.
var balanced = []struct {
	name, spec string
	hashed     bool
	endpoints  []ours.Endpoint
}{
	{"ring", `{"lbPolicy": "RING_HASH"}`, true, []ours.Endpoint{{}, {}, {}, {}, {}}},
	{"ring by weight", `{"lbPolicy": "RING_HASH", "ringHashLbConfig": {"minimumRingSize": 100}}`, true, []ours.Endpoint{{Weight: 1}, {Weight: 7}, {Weight: 30}}},
	{"ring with a maximum", `{"lbPolicy": "RING_HASH", "ringHashLbConfig": {"minimumRingSize": 10, "maximumRingSize": 50}}`, true,
		[]ours.Endpoint{{Weight: 1}, {Weight: 7}, {Weight: 30}}},
	{"ring of murmur", `{"lbPolicy": "RING_HASH", "ringHashLbConfig": {"hashFunction": "MURMUR_HASH_2"}}`, true, []ours.Endpoint{{}, {}, {}}},
	{"ring by hostname", `{"type": "STRICT_DNS", "lbPolicy": "RING_HASH", "commonLbConfig": {"consistentHashingLbConfig": {"useHostnameForHashing": true}}}`, true,
		[]ours.Endpoint{{Hostname: "a"}, {Hostname: "b"}, {Hostname: "c"}}},
	{"ring of localities", `{"lbPolicy": "RING_HASH", "commonLbConfig": {"localityWeightedLbConfig": {}}}`, true, []ours.Endpoint{
		{Locality: ours.Locality{Zone: "a"}, LocalityWeight: 5}, {Locality: ours.Locality{Zone: "b"}, LocalityWeight: 60, Weight: 3},
		{Locality: ours.Locality{Zone: "b"}, LocalityWeight: 60}}},
	{"ring of priorities", `{"lbPolicy": "RING_HASH"}`, true, []ours.Endpoint{
		{Draining: true}, {Draining: true}, {}, {}, {Priority: 1}, {Priority: 1}, {Priority: 1}}},
	{"maglev", `{"lbPolicy": "MAGLEV"}`, true, []ours.Endpoint{{}, {}, {}, {}, {}}},
	{"maglev by weight", `{"lbPolicy": "MAGLEV", "maglevLbConfig": {"tableSize": 251}}`, true, []ours.Endpoint{{Weight: 1}, {Weight: 7}, {Weight: 30}, {Weight: 2}}},
	{"maglev by hostname", `{"type": "STRICT_DNS", "lbPolicy": "MAGLEV", "commonLbConfig": {"consistentHashingLbConfig": {"useHostnameForHashing": true}}}`, true,
		[]ours.Endpoint{{Hostname: "a"}, {Hostname: "b"}, {Hostname: "c"}}},
	{"maglev of localities", `{"lbPolicy": "MAGLEV", "commonLbConfig": {"localityWeightedLbConfig": {}}, "maglevLbConfig": {"tableSize": 1009}}`, true, []ours.Endpoint{
		{Locality: ours.Locality{Zone: "a"}, LocalityWeight: 5}, {Locality: ours.Locality{Zone: "b"}, LocalityWeight: 60, Weight: 3},
		{Locality: ours.Locality{Zone: "b"}, LocalityWeight: 60}}},
	{"round robin by weight", `{}`, false, []ours.Endpoint{{Weight: 1}, {Weight: 2}, {Weight: 7}}},
	{"random", `{"lbPolicy": "RANDOM"}`, false, []ours.Endpoint{{Weight: 1}, {Weight: 2}, {Weight: 7}}},
	{"least request by weight", `{"lbPolicy": "LEAST_REQUEST"}`, false, []ours.Endpoint{{Weight: 1}, {Weight: 2}, {Weight: 7}}},
	{"half of the first priority is down", `{}`, false, []ours.Endpoint{{Draining: true}, {}, {Priority: 1}}},
	{"two thirds are down", `{"commonLbConfig": {"healthyPanicThreshold": {"value": 0}}}`, false,
		[]ours.Endpoint{{Draining: true}, {Draining: true}, {}, {Priority: 1}, {Priority: 1, Draining: true}, {Priority: 2}}},
	{"panic", `{}`, false, []ours.Endpoint{{Draining: true}, {Draining: true}, {Draining: true}, {}}},
	{"panic of one priority", `{}`, false, []ours.Endpoint{{Draining: true}, {Draining: true}, {}, {Priority: 1}, {Priority: 1, Draining: true},
		{Priority: 1, Draining: true}}},
	{"localities", `{"commonLbConfig": {"localityWeightedLbConfig": {}}}`, false, []ours.Endpoint{
		{Locality: ours.Locality{Zone: "a"}, LocalityWeight: 70, Draining: true}, {Locality: ours.Locality{Zone: "a"}, LocalityWeight: 70},
		{Locality: ours.Locality{Zone: "b"}, LocalityWeight: 20}, {Locality: ours.Locality{Zone: "c"}, LocalityWeight: 0},
		{Locality: ours.Locality{Zone: "d"}, LocalityWeight: 10, Weight: 3}, {Locality: ours.Locality{Zone: "d"}, LocalityWeight: 10}}},
	{"zones with enough here", zoneAware, false, inZones("aaaaabc")},
	{"zones with too little here", zoneAware, false, inZones("aabbbccc")},
	{"zones with nothing here", zoneAware, false, inZones("bbbccc")},
	{"zones with one endpoint down", zoneAware, false, append(inZones("aaabbbb"), ours.Endpoint{Draining: true, Locality: ours.Locality{Zone: "c"}})},
	{"zones of a small cluster", zoneAware, false, inZones("aabbb")},
	{"zones of a small cluster that is large enough", `{"commonLbConfig": {"zoneAwareLbConfig": {"minClusterSize": 3}}}`, false, inZones("aabbb")},
	{"zones and a panic", zoneAware, false, append([]ours.Endpoint{{Draining: true, Locality: ours.Locality{Zone: "a"}}, {Draining: true, Locality: ours.Locality{Zone: "a"}},
		{Draining: true, Locality: ours.Locality{Zone: "a"}}, {Draining: true, Locality: ours.Locality{Zone: "a"}}}, inZones("aab")...)},
}

const zoneAware = `{"commonLbConfig": {"zoneAwareLbConfig": {}}}`

// inZones has an endpoint in each of the zones.
func inZones(zones string) []ours.Endpoint {
	var out []ours.Endpoint
	for _, z := range zones {
		out = append(out, ours.Endpoint{Locality: ours.Locality{Zone: string(z)}})
	}
	return out
}

// clients is what the bootstrap says of the local cluster.
func clients() ours.Origin {
	a, b := ours.Locality{Zone: "a"}, ours.Locality{Zone: "b"}
	return ours.NewOrigin(a, []ours.Locality{a, a, a, b})
}

// message is the cluster as Envoy is served it: its endpoints in groups of priority and locality. Draining stands for unhealthy
// in the table, so that its zero value is the usual endpoint.
func message(t *testing.T, name, spec string, list []ours.Endpoint) *cluster.Cluster {
	t.Helper()
	c := &cluster.Cluster{}
	if err := protojson.Unmarshal([]byte(spec), c); err != nil {
		t.Fatal(err)
	}
	c.Name = name
	groups := ""
	for i := 0; i < len(list); {
		first, members := list[i], ""
		for ; i < len(list) && list[i].Priority == first.Priority && list[i].Locality == first.Locality; i++ {
			e := list[i]
			health := "HEALTHY"
			if e.Draining {
				health = "UNHEALTHY"
			}
			members += fmt.Sprintf(`,{"healthStatus": %q, "loadBalancingWeight": %d, "endpoint": {"hostname": %q,
				"address": {"socketAddress": {"address": %q, "portValue": %d}}}}`, health, max(1, e.Weight), e.Hostname, e.Addr.Addr(), e.Addr.Port())
		}
		weight := ""
		if first.LocalityWeight > 0 {
			weight = fmt.Sprintf(`"loadBalancingWeight": %d,`, first.LocalityWeight)
		}
		groups += fmt.Sprintf(`,{"priority": %d, "locality": {"zone": %q}, %s "lbEndpoints": [%s]}`, first.Priority, first.Locality.Zone, weight, members[1:])
	}
	x := &cluster.Cluster{}
	text := fmt.Sprintf(`{"loadAssignment": {"clusterName": %q, "endpoints": [%s]}}`, name, groups[1:])
	if err := protojson.Unmarshal([]byte(text), x); err != nil {
		t.Fatal(err)
	}
	c.LoadAssignment = x.LoadAssignment
	return c
}

// serveAddresses answers on all addresses of 127.0.0.0/8 with the one that was asked.
func serveAddresses(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Context().Value(http.LocalAddrContextKey))
	})}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() {
		srv.Close()
		<-done
	})
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

// TestEnvoyBalancesAlike: a request with a hash goes to the same endpoint through Envoy and through ztunnel/cluster, and those
// without one are distributed alike.
func TestEnvoyBalancesAlike(t *testing.T) {
	Require(t)
	port := serveAddresses(t)
	routes := &route.RouteConfiguration{}
	text := `{"name": "all", "virtualHosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"},
		"route": {"clusterHeader": "x-cluster", "hashPolicy": [{"header": {"headerName": "x-key"}}]}}]}]}`
	if err := protojson.Unmarshal([]byte(text), routes); err != nil {
		t.Fatal(err)
	}
	first := []xds.Resource{{Type: api.RouteType, Name: "all", Message: routes}}
	worlds := map[string]*ours.Cluster{}
	for _, c := range balanced {
		for i := range c.endpoints {
			c.endpoints[i].Addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 1, 0, byte(i + 1)}), port)
			c.endpoints[i].Key = c.endpoints[i].Addr.String()
		}
		m := message(t, c.name, c.spec, c.endpoints)
		first = append(first, xds.Resource{Type: api.ClusterType, Name: c.name, Message: m})
		spec, err := ours.Compile(m)
		if err != nil {
			t.Fatal(err)
		}
		hosts := append([]ours.Endpoint{}, c.endpoints...)
		for i := range hosts {
			hosts[i].Healthy, hosts[i].Draining = !hosts[i].Draining, false
		}
		worlds[c.name] = ours.New(ours.Config{Clock: clock.System(), Rand: rand.Uint64}, spec, ours.NewHostsFrom(clients(), hosts))
	}
	dir := t.TempDir()
	path := dir + "/in"
	l, err := Listener("in", path, "all")
	if err != nil {
		t.Fatal(err)
	}
	if e := Start(t, append(first, l)); len(e.Refused()) > 0 {
		t.Fatal(e.Refused())
	}
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
	t.Cleanup(client.CloseIdleConnections)
	for _, c := range balanced {
		t.Run(c.name, func(t *testing.T) {
			if c.hashed {
				sameEndpoints(t, client, c.name, worlds[c.name])
			} else {
				sameShares(t, client, c.name, worlds[c.name])
			}
		})
	}
}

// answers is the endpoint that Envoy chose.
func answers(t *testing.T, client *http.Client, cluster, key string) string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://a/", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("x-cluster", cluster)
	if key != "" {
		r.Header.Set("x-key", key)
	}
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s, %q, %v", resp.Status, b, err)
	}
	return string(b)
}

func sameEndpoints(t *testing.T, client *http.Client, name string, c *ours.Cluster) {
	const keys = 300
	different, seen := 0, map[string]bool{}
	for i := range keys {
		key := fmt.Sprintf("user-%d", i)
		h, why := c.Pick(ours.PickInput{Hash: xxhash.Sum64String(key), HasHash: true})
		if why != ours.Picked {
			t.Fatal(why)
		}
		got := answers(t, client, name, key)
		if seen[got] = true; got != h.Endpoint().Addr.String() {
			different++
		}
	}
	if different > 0 || len(seen) < 2 {
		t.Errorf("%d of %d keys lead to another endpoint than through Envoy, which used %d", different, keys, len(seen))
	}
}

func sameShares(t *testing.T, client *http.Client, name string, c *ours.Cluster) {
	const n = 800
	envoys, our := map[string]float64{}, map[string]float64{}
	for range n {
		envoys[answers(t, client, name, "")] += 1.0 / n
		h, _ := c.Pick(ours.PickInput{})
		our[h.Endpoint().Addr.String()] += 1.0 / n
	}
	for i := range c.Hosts().Len() {
		a := c.Hosts().Endpoint(i).Addr.String()
		if math.Abs(envoys[a]-our[a]) > 0.08 {
			t.Errorf("%s got %.3f of the requests, %.3f through Envoy", a, our[a], envoys[a])
		}
	}
}
