package compile_test

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	upstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"

	"github.com/undermesh/undermesh/controller/policy"
	nodes "github.com/undermesh/undermesh/ztunnel/cluster"
)

// destination writes a DestinationRule of namespace shop for reviews; made is its age.
func destination(name, made, rest string) string {
	return fmt.Sprintf(`
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: %s, namespace: shop, creationTimestamp: "2024-01-%sT00:00:00Z"}
spec: {host: reviews, %s}
`, name, made, rest)
}

func httpOf(t *testing.T, c *clusterv3.Cluster) *upstreamv3.HttpProtocolOptions {
	t.Helper()
	out := &upstreamv3.HttpProtocolOptions{}
	for _, o := range c.GetTypedExtensionProtocolOptions() {
		if err := o.UnmarshalTo(out); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// TestGroupsOfDestinationRules: what a port says counts whole before what its level says, and the groups of a subset before those
// of the host; of several rules of one host the oldest trafficPolicy counts, and the subsets of all.
func TestGroupsOfDestinationRules(t *testing.T) {
	const host = "trafficPolicy: {loadBalancer: {simple: RANDOM}, connectionPool: {tcp: {maxConnections: 7}}, outlierDetection: {interval: 7s}, proxyProtocol: {version: V2}"
	const port = ", portLevelSettings: [{port: {number: 9080}, connectionPool: {tcp: {maxConnections: 8}}}]"
	subset := func(policy string) string { return ", subsets: [{name: s, labels: {version: v1}" + policy + "}]" }
	for _, tc := range []struct {
		name, rules, subset string
		want                string // lb, maxConnections, outlier detection's interval, PROXY version, rules
	}{
		{name: "none", want: "ROUND_ROBIN 4294967295 - 0"},
		{name: "host", rules: destination("a", "02", host+"}"), want: "RANDOM 7 7s 2 shop/a"},
		{name: "port, whole", rules: destination("a", "02", host+port+"}"), want: "ROUND_ROBIN 8 - 2 shop/a"},
		{name: "another port", rules: destination("a", "02", strings.ReplaceAll(host+port+"}", "9080", "81")), want: "RANDOM 7 7s 2 shop/a"},
		{name: "subset without policy", subset: "s", rules: destination("a", "02", host+"}"+subset("")), want: "RANDOM 7 7s 2 shop/a"},
		{name: "a group of the subset", subset: "s", rules: destination("a", "02", host+"}"+subset(", trafficPolicy: {loadBalancer: {simple: LEAST_CONN}}")), want: "LEAST_REQUEST 7 7s 2 shop/a"},
		{name: "a group of the subset over a port", subset: "s", rules: destination("a", "02", host+port+"}"+subset(", trafficPolicy: {outlierDetection: {interval: 9s}}")), want: "ROUND_ROBIN 8 9s 2 shop/a"},
		{name: "a port of the subset, whole", subset: "s", rules: destination("a", "02", host+"}"+subset(", trafficPolicy: {connectionPool: {tcp: {maxConnections: 5}}, portLevelSettings: [{port: {number: 9080}, outlierDetection: {interval: 9s}}]}")), want: "ROUND_ROBIN 4294967295 9s 2 shop/a"},
		{name: "a subset that there is not", subset: "x", rules: destination("a", "02", host+"}"+subset("")), want: "none"},
		{name: "two rules: the oldest", rules: destination("b", "03", host+"}") + destination("z", "02", "trafficPolicy: {loadBalancer: {simple: LEAST_REQUEST}}"), want: "LEAST_REQUEST 4294967295 - 0 shop/z shop/b"},
		{name: "two rules: the oldest says nothing", rules: destination("b", "03", host+"}") + destination("z", "02", "subsets: [{name: s}]"), want: "RANDOM 7 7s 2 shop/z shop/b"},
		{name: "two rules: the subset of the other", subset: "s", rules: destination("z", "03", "subsets: [{name: s, trafficPolicy: {outlierDetection: {interval: 9s}}}]") + destination("b", "02", host+"}"), want: "RANDOM 7 9s 2 shop/b shop/z"},
		{name: "the rule that selects the caller alone", rules: destination("b", "02", host+"}") + destination("z", "03", "workloadSelector: {matchLabels: {app: web}}, trafficPolicy: {loadBalancer: {simple: LEAST_REQUEST}}"), want: "LEAST_REQUEST 4294967295 - 0 shop/z"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			spec, ok := callerIn(t, callWorld(t, tc.rules), "shop/web").Cluster("outbound|9080|" + tc.subset + "|reviews.shop.svc.cluster.local")
			got := "none"
			if ok {
				c, interval := spec.Cluster, "-"
				compiled, err := nodes.Compile(c)
				if err != nil {
					t.Fatal(err)
				}
				if o := c.GetOutlierDetection(); o != nil {
					interval = o.GetInterval().AsDuration().String()
				}
				got = strings.TrimSpace(fmt.Sprint(c.GetLbPolicy(), " ", c.GetCircuitBreakers().GetThresholds()[0].GetMaxConnections().GetValue(), " ", interval, " ",
					compiled.ProxyProtocol, " ", strings.Join(spec.Rules, " ")))
			}
			if got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

// TestClusters: what a service is makes its cluster; rules change it.
func TestClusters(t *testing.T) {
	rule := destination("a", "02", `trafficPolicy: {connectionPool: {tcp: {connectTimeout: 30ms, idleTimeout: 9s, maxConnectionDuration: 1h}, http: {h2UpgradePolicy: UPGRADE, maxRequestsPerConnection: 3, maxConcurrentStreams: 4}},
  loadBalancer: {consistentHash: {maglev: {tableSize: 11}, useSourceIp: true}}, retryBudget: {percent: 30}}`)
	c := callerIn(t, callWorld(t, rule), "shop/web")
	get := func(name string) policy.ClusterSpec {
		spec, ok := c.Cluster(name)
		if !ok {
			t.Fatal("no cluster ", name)
		}
		return spec
	}
	for name, want := range map[string]string{
		"outbound|9080||reviews.shop.svc.cluster.local": "EDS MAGLEV", "outbound|80||headless.shop.svc.cluster.local": "ORIGINAL_DST CLUSTER_PROVIDED",
		"outbound|80||sticky.shop.svc.cluster.local": "EDS MAGLEV", "outbound|80||httpbin.org": "STRICT_DNS ROUND_ROBIN",
		"outbound|80||*.wikipedia.org": "ORIGINAL_DST CLUSTER_PROVIDED", "outbound|5432||db.example.com": "EDS ROUND_ROBIN",
		"PassthroughCluster": "ORIGINAL_DST CLUSTER_PROVIDED", "BlackHoleCluster": "STATIC ROUND_ROBIN",
	} {
		if got := fmt.Sprint(get(name).Cluster.GetType(), " ", get(name).Cluster.GetLbPolicy()); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	reviews := get("outbound|9080||reviews.shop.svc.cluster.local").Cluster
	http := httpOf(t, reviews)
	if reviews.GetConnectTimeout().AsDuration().String() != "30ms" || http.GetExplicitHttpConfig().GetHttp2ProtocolOptions().GetMaxConcurrentStreams().GetValue() != 4 ||
		http.GetCommonHttpProtocolOptions().GetMaxRequestsPerConnection().GetValue() != 3 || http.GetCommonHttpProtocolOptions().GetIdleTimeout().GetSeconds() != 9 ||
		http.GetCommonHttpProtocolOptions().GetMaxConnectionDuration().GetSeconds() != 3600 || reviews.GetCircuitBreakers().GetThresholds()[0].GetRetryBudget().GetBudgetPercent().GetValue() != 30 {
		t.Error(reviews, http)
	}
	if o := httpOf(t, get("outbound|90||ratings.shop.svc.cluster.local").Cluster); o.GetExplicitHttpConfig().GetHttp2ProtocolOptions() == nil {
		t.Error("gRPC is not called by HTTP/2:", o)
	}
	if o := httpOf(t, get("outbound|7000||ratings.shop.svc.cluster.local").Cluster); o.GetUseDownstreamProtocolConfig() == nil {
		t.Error("an undeclared port is not called as the caller speaks:", o)
	}
	for _, name := range []string{"", "x", "outbound|1||reviews.shop.svc.cluster.local", "outbound|80||nobody.example", "outbound|80|v1|reviews.shop.svc.cluster.local", "outbound|99999||reviews.shop.svc.cluster.local", "inbound|80||"} {
		if _, ok := c.Cluster(name); ok {
			t.Errorf("there is a cluster %q", name)
		}
	}
}

// placed lists the endpoints of reviews: NAME priority/weight of its locality, or what it is.
func placed(c policy.Caller, cluster string) string {
	spec, ok := c.Cluster(cluster)
	if !ok {
		return "none"
	}
	var out []string
	for _, e := range c.Endpoints(spec) {
		name := strings.TrimPrefix(e.Workload.GetName(), "reviews-")
		out = append(out, fmt.Sprintf("%s %d/%d", name, e.Priority, e.LocalityWeight))
	}
	return strings.Join(out, ", ")
}

// TestWhereEndpointsAre: the caller is in us/us-1; v1 as well, v2 in us/us-2, v3 in eu, v4 in asia.
func TestWhereEndpointsAre(t *testing.T) {
	outlier := ", outlierDetection: {interval: 1s}"
	lb := func(setting, rest string) string {
		return destination("a", "02", "trafficPolicy: {loadBalancer: {localityLbSetting: {"+setting+"}}"+rest+"}")
	}
	mesh := func(text string) string {
		return "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: \"" + text + "\"}\n"
	}
	for _, tc := range []struct{ name, rules, cluster, want string }{
		{name: "all alike", want: "v1 0/0, v2 0/0, v3 0/0, v4 0/0"},
		{name: "with outlier detection", rules: destination("a", "02", "trafficPolicy: {outlierDetection: {interval: 1s}}"), want: "v1 0/0, v2 1/0, v3 2/0, v4 2/0"},
		{name: "a region to fail over to", rules: lb("enabled: true, failover: [{from: us, to: asia}]", outlier), want: "v1 0/1, v2 1/1, v3 3/1, v4 2/1"},
		{name: "control: without outlier detection", rules: lb("enabled: true, failover: [{from: us, to: asia}]", ""), want: "v1 0/0, v2 0/0, v3 0/0, v4 0/0"},
		{name: "switched off", rules: lb("enabled: false", outlier), want: "v1 0/0, v2 0/0, v3 0/0, v4 0/0"},
		{name: "switched off in the mesh", rules: mesh("localityLbSetting: {enabled: false}") + destination("a", "02", "trafficPolicy: {outlierDetection: {interval: 1s}}"), want: "v1 0/0, v2 0/0, v3 0/0, v4 0/0"},
		{name: "of the mesh", rules: mesh("localityLbSetting: {failover: [{from: us, to: asia}]}") + destination("a", "02", "trafficPolicy: {outlierDetection: {interval: 1s}}"), want: "v1 0/1, v2 1/1, v3 3/1, v4 2/1"},
		{name: "distribute", rules: lb("distribute: [{from: us/us-1/*, to: {us/us-1/*: 70, us/us-2/*: 20, eu: 0, asia/asia-1: 10}}]", ""), want: "v1 0/70, v2 0/20, v4 0/10"},
		{name: "distribute: one place holds several", rules: lb("distribute: [{from: us, to: {us: 61, eu/*: 39}}]", ""), want: "v1 0/31, v2 0/31, v3 0/39"},
		{name: "control: distribute from elsewhere", rules: lb("distribute: [{from: eu, to: {us: 100}}]", ""), want: "v1 0/1, v2 0/1, v3 0/1, v4 0/1"},
		{name: "by labels", rules: lb("failoverPriority: [tier]", outlier), want: "v1 0/1, v2 1/1, v3 1/1, v4 1/1"},
		{name: "by labels and a value", rules: lb("failoverPriority: [topology.kubernetes.io/region, version=v2]", outlier), want: "v1 1/1, v2 0/1, v3 2/1, v4 2/1"},
		{name: "the service says near", cluster: "outbound|80||near.shop.svc.cluster.local", want: "v1 0/0, v2 1/0, v3 2/0, v4 2/0"},
		{name: "zones of the region alike", rules: destination("a", "02", "trafficPolicy: {loadBalancer: {zoneAwareLbSetting: {failover: [{from: us, to: eu}]}}}"), want: "v1 0/0, v2 0/0, v3 1/0, v4 2/0"},
		{name: "a subset", cluster: "outbound|9080|two|reviews.shop.svc.cluster.local", rules: destination("a", "02", "subsets: [{name: two, labels: {version: v2}}]"), want: "v2 0/0"},
		{name: "a subset without labels", cluster: "outbound|9080|all|reviews.shop.svc.cluster.local", rules: destination("a", "02", "subsets: [{name: all}]"), want: "v1 0/0, v2 0/0, v3 0/0, v4 0/0"},
		{name: "a subset of nobody", cluster: "outbound|9080|nobody|reviews.shop.svc.cluster.local", rules: destination("a", "02", "subsets: [{name: nobody, labels: {version: v9}}]"), want: ""},
		{name: "endpoints of an entry", cluster: "outbound|5432|one|db.example.com", rules: strings.Replace(destination("a", "02", "subsets: [{name: one, labels: {version: v2}}]"), "host: reviews", "host: db.example.com", 1), want: "db 0/0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := callerIn(t, callWorld(t, tc.rules), "shop/web")
			if got := placed(c, cmp.Or(tc.cluster, "outbound|9080||reviews.shop.svc.cluster.local")); got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

// TestStreams: connections that are no HTTP.
func TestStreams(t *testing.T) {
	tcp := func(match string) string {
		return virtual("shop", "v", "ratings, db.example.com, \"*.wikipedia.org\"", "02", "tcp: [{match: [{"+match+"}], route: [{destination: {host: reviews, port: {number: 5555}}, weight: 80}, {destination: {host: ratings}, weight: 20}]}]")
	}
	tls := virtual("shop", "v", "\"*.wikipedia.org\", sni.example", "02", `tls: [{match: [{sniHosts: ["*.wikipedia.org"]}], route: [{destination: {host: reviews}}]},
  {match: [{port: 443, sniHosts: [en.wikipedia.org, sni.example]}], route: [{destination: {host: ratings, port: {number: 9}}}]}]`)
	const plain, moved = "outbound|5432||ratings.shop.svc.cluster.local:1", "outbound|5555||reviews.shop.svc.cluster.local:80 outbound|5432||ratings.shop.svc.cluster.local:20"
	for _, tc := range []struct {
		name, rules, pod string
		port             uint16 // 5432
		dst              string // 10.96.0.21
		sni              string // set: TLS
		want             string
	}{
		{name: "no rule", want: plain},
		{name: "the port", rules: tcp("port: 5432"), want: moved},
		{name: "another port", rules: tcp("port: 1"), want: plain},
		{name: "from a network", rules: tcp("sourceSubnet: 10.0.0.0/24"), want: moved},
		{name: "from another network", rules: tcp("sourceSubnet: 10.9.0.0/24"), want: plain},
		{name: "to a network", rules: tcp("destinationSubnets: [10.1.0.0/16, 10.96.0.0/16]"), want: moved},
		{name: "to another network", rules: tcp("destinationSubnets: [10.1.0.0/16]"), want: plain},
		{name: "callers", rules: tcp("sourceLabels: {tier: front}"), want: moved},
		{name: "other callers", rules: tcp("sourceLabels: {tier: front}"), pod: "other/web", want: plain},
		{name: "other namespaces", rules: tcp("sourceNamespace: other"), want: plain},
		{name: "gateways", rules: tcp("gateways: [g]"), want: plain},
		{name: "nothing dialled", dst: "192.0.2.99", want: "none"},
		{name: "a rule that is wrong", rules: tcp("destinationSubnets: [x]"), want: "refused"},
		{name: "SNI of a host without an address", port: 443, dst: "192.0.2.99", sni: "httpbin.org", want: "outbound|443||httpbin.org:1"},
		{name: "SNI of a pattern", port: 443, dst: "192.0.2.99", sni: "EN.wikipedia.org", want: "outbound|443||*.wikipedia.org:1"},
		{name: "SNI of nobody", port: 443, dst: "192.0.2.99", sni: "unknown.example", want: "none"},
		{name: "a pattern", rules: tls, port: 443, dst: "192.0.2.99", sni: "de.wikipedia.org", want: "outbound|9080||reviews.shop.svc.cluster.local:1"},
		{name: "the name before the pattern", rules: tls, port: 443, dst: "192.0.2.99", sni: "en.wikipedia.org", want: "outbound|9||ratings.shop.svc.cluster.local:1"},
		{name: "a host of rules alone", rules: tls, port: 443, dst: "192.0.2.99", sni: "sni.example", want: "outbound|9||ratings.shop.svc.cluster.local:1"},
		{name: "the service that was dialled, whatever the SNI", rules: tls, port: 443, dst: "10.97.0.5", sni: "httpbin.org", want: "outbound|443||db.example.com:1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := callWorld(t, tc.rules)
			c, port := callerIn(t, s, cmp.Or(tc.pod, "shop/web")), cmp.Or(tc.port, 5432)
			dst := netip.MustParseAddr(cmp.Or(tc.dst, "10.96.0.21"))
			in := policy.StreamInput{Port: port, SNI: tc.sni, Dialled: c.View.ServiceAt(s, "", netip.AddrPortFrom(dst, port)), Source: c.Workload.Addrs[0], Destination: dst}
			route, ok := c.TCPRoute(in)
			if tc.sni != "" {
				route, ok = c.TLSRoute(in)
			}
			got := "none"
			if ok {
				got = "refused"
				if route.Refusal() == "" {
					var out []string
					for _, w := range route.Clusters {
						out = append(out, fmt.Sprintf("%s:%d", w.Name, w.Weight))
					}
					got = strings.Join(out, " ")
				}
			}
			if got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}
