package calls

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/undermesh/undermesh/ztunnel/cluster"
)

// zoned is a service client of two Deployments and a service web, over the nodes n1, n2 and n3 of the zones a, b and c: N-APP is a pod of
// APP at node nN. more is written behind it.
func zoned(pods, more string) string {
	var text strings.Builder
	for i, zone := range []string{"a", "b", "c"} {
		fmt.Fprintf(&text, "\napiVersion: v1\nkind: Node\nmetadata: {name: n%d, labels: {topology.kubernetes.io/region: r, topology.kubernetes.io/zone: %s}}\n---", i+1, zone)
	}
	text.WriteString(fmt.Sprintf(service, "web", 0, 1) + fmt.Sprintf(service, "client", 0, 2))
	for i, p := range strings.Fields(pods) {
		node, app, _ := strings.Cut(p, "-")
		one := strings.Replace(fmt.Sprintf(pod, strings.TrimPrefix(app, "other"), i+1, 0), "nodeName: n1", "nodeName: n"+node, 1)
		if app == "idle" { // of the client's Deployment, not ready
			one = strings.NewReplacer(`"True"`, `"False"`, "app: idle", "app: client").Replace(one)
			app = "client"
		}
		owner := "ownerReferences: [{apiVersion: apps/v1, kind: StatefulSet, name: " + app + ", uid: x, controller: true}], namespace: shop"
		text.WriteString(strings.Replace(one, "namespace: shop", owner, 1))
	}
	return text.String() + more
}

// toZones is which part of the pod's calls of a cluster each zone gets, in percent.
func (b *bed) toZones(pod, name string) string {
	b.t.Helper()
	e := b.Cluster(b.caller(pod), name)
	if e == nil {
		b.t.Fatalf("no cluster %s", name)
	}
	const n = 2000
	got := map[string]float64{}
	for range n {
		h, why := e.Pick(cluster.PickInput{})
		if why != cluster.Picked {
			b.t.Fatal(why)
		}
		got[h.Endpoint().Locality.Zone] += 100. / n
	}
	return fmt.Sprintf("a %.0f b %.0f c %.0f", math.Round(got["a"]), math.Round(got["b"]), math.Round(got["c"]))
}

// TestZoneAware: zoneAwareLbSetting wherever it can be said. Of the clients two are in zone a and one in b; the first calls.
func TestZoneAware(t *testing.T) {
	const pods, v1 = "1-client 1-client 2-client 1-web 1-web 1-web 2-web 2-web 2-web", "outbound|80|s|web.shop.svc.cluster.local"
	const all, half = "a 75 b 25 c 0", "a 50 b 50 c 0"
	dr := func(text string) string {
		return "\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web, namespace: shop}\nspec: {host: web, " + text + "}\n---"
	}
	mesh := func(text string) string {
		return "\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: \"" + text + "\"}\n---"
	}
	lb := func(text string) string {
		return dr("trafficPolicy: {loadBalancer: {zoneAwareLbSetting: {" + text + "}}}")
	}
	for _, tc := range []struct{ name, pods, more, cluster, want string }{
		{name: "of the host", more: lb("enabled: true"), want: all},
		{name: "of the port", more: dr("trafficPolicy: {portLevelSettings: [{port: {number: 80}, loadBalancer: {zoneAwareLbSetting: {enabled: true}}}]}"), want: all},
		{name: "of a subset", cluster: v1, more: dr("subsets: [{name: s, labels: {app: web}, trafficPolicy: {loadBalancer: {zoneAwareLbSetting: {enabled: true}}}}]"), want: all},
		{name: "of a port of a subset", cluster: v1, more: dr("subsets: [{name: s, labels: {app: web}, trafficPolicy: {portLevelSettings: [{port: {number: 80}, loadBalancer: {zoneAwareLbSetting: {enabled: true}}}]}}]"), want: all},
		{name: "of the mesh", more: mesh("zoneAwareLbSetting: {enabled: true}"), want: all},
		{name: "of the mesh, and not of the host", more: mesh("zoneAwareLbSetting: {enabled: true}") + lb("enabled: false"), want: half},
		{name: "enough endpoints here", pods: pods + " 1-web 1-web 1-web", more: lb("enabled: true"), want: "a 100 b 0 c 0"},
		{name: "fewer than minClusterSize", more: lb("enabled: true, minClusterSize: 7"), want: half},
		{name: "fewer than the default minClusterSize", pods: "1-client 1-client 2-client 1-web 2-web 2-web 2-web", more: lb("enabled: true"), want: "a 25 b 75 c 0"},
		{name: "as many as minClusterSize", pods: "1-client 1-client 2-client 1-web 2-web", more: lb("enabled: true, minClusterSize: 2"), want: all},
		{name: "clients of another Deployment", pods: strings.Replace(pods, "2-client", "2-otherclient 3-otherclient", 1), more: lb("enabled: true"), want: half},
		{name: "a client that is not ready", pods: strings.Replace(pods, "1-client 1-client", "1-client 1-idle", 1), more: lb("enabled: true"), want: "a 100 b 0 c 0"},
		{name: "control: without the setting", want: half},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.pods == "" {
				tc.pods = pods
			}
			if tc.cluster == "" {
				tc.cluster = webCluster
			}
			b := newBed(t, zoned(tc.pods, tc.more))
			if got := b.toZones("client-1", tc.cluster); got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

// TestZoneAwareFollows: a client more changes where the calls of the others go, though nothing of what they call has changed.
func TestZoneAwareFollows(t *testing.T) {
	const rule = "\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web, namespace: shop}\nspec: {host: web, trafficPolicy: {loadBalancer: {zoneAwareLbSetting: {enabled: true}}}}\n"
	const pods = "1-client 2-client 1-web 1-web 1-web 2-web 2-web 2-web"
	b := newBed(t, zoned(pods, rule))
	for _, step := range []struct{ more, want string }{
		{"", "a 100 b 0 c 0"}, {" 1-client", "a 75 b 25 c 0"}, {" 1-client 1-client", "a 67 b 33 c 0"}, {" 3-web 3-web 3-web", "a 67 b 0 c 33"}, {"", "a 100 b 0 c 0"},
	} {
		b.write(zoned(pods+step.more, rule))
		if got := b.toZones("client-1", webCluster); got != step.want {
			t.Errorf("with%s: got %s, want %s", step.more, got, step.want)
		}
	}
}
