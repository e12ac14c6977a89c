package compile_test

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/policy"
)

// callWorld is what callers find in testdata/calls/world.yaml with the objects, which are YAML.
func callWorld(t *testing.T, objects string) *client.Snapshot {
	t.Helper()
	dir := copyFile(t, "testdata/calls/world.yaml")
	if err := os.WriteFile(filepath.Join(dir, "rules.yaml"), []byte(objects), 0o600); err != nil {
		t.Fatal(err)
	}
	return snapshotOf(t, read(t, dir))
}

func snapshotOf(t *testing.T, events []model.Event) *client.Snapshot {
	t.Helper()
	c := compile.New(compile.Config{})
	c.Apply(events)
	var all []client.Resource
	for _, r := range c.Resources() {
		if client.Understands(r.Type) {
			all = append(all, client.Resource{Name: r.Name, Message: r.Message})
		}
	}
	s, err := client.NewSnapshot(all...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func callerIn(t *testing.T, s *client.Snapshot, pod string) policy.Caller {
	t.Helper()
	namespace, name, _ := strings.Cut(pod, "/")
	w := s.WorkloadByName(namespace, name)
	c, ok := policy.NewCaller(s, w)
	if w == nil || !ok {
		t.Fatal("no caller ", pod)
	}
	return c
}

// asked says what becomes of a request that no rule looks into, by the first route that takes every request: CLUSTER, several with
// their weights, or a status.
func asked(c policy.Caller, port uint16, authority, dialled string) string {
	var svc *client.Service
	if dialled != "" {
		svc = c.View.ServiceAt(c.Snapshot, "", netip.AddrPortFrom(netip.MustParseAddr(dialled), port))
	}
	vh, _ := c.VirtualHost(c.Target(port, authority, svc))
	for _, r := range vh.GetRoutes() {
		if r.GetMatch().GetPrefix() == "/" && len(r.GetMatch().GetHeaders()) == 0 {
			return became(r)
		}
	}
	return "404"
}

func became(r *routev3.Route) string {
	if d := r.GetDirectResponse(); d != nil {
		return fmt.Sprint(d.GetStatus())
	}
	var out []string
	for _, w := range r.GetRoute().GetWeightedClusters().GetClusters() {
		out = append(out, fmt.Sprintf("%s:%d", w.GetName(), w.GetWeight().GetValue()))
	}
	return cmp.Or(strings.Join(out, " "), r.GetRoute().GetCluster())
}

// virtual writes a VirtualService; made is its age.
func virtual(namespace, name, hosts, made, rest string) string {
	return fmt.Sprintf(`
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: %s, namespace: %s, creationTimestamp: "2024-01-%sT00:00:00Z"}
spec: {hosts: [%s], %s}
`, name, namespace, made, hosts, rest)
}

func to(cluster string) string { return "http: [{route: [{destination: {" + cluster + "}}]}]" }

const (
	plainReviews = "outbound|9080||reviews.shop.svc.cluster.local"
	plainRatings = "outbound|80||ratings.shop.svc.cluster.local"
	registryOnly = "\n---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: default, namespace: shop}\nspec: {outboundTrafficPolicy: {mode: REGISTRY_ONLY}}\n"
)

// TestWhoIsCalled: (scope, port, authority), else the service that was dialled, else the outbound policy; and which VirtualService
// counts for it.
func TestWhoIsCalled(t *testing.T) {
	toRatings := to("host: ratings.shop.svc.cluster.local, port: {number: 80}")
	onlyOwn := "\n---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: default, namespace: other}\nspec: {egress: [{hosts: [\"./*\"]}]}\n"
	for _, tc := range []struct {
		name, rules, pod string // pod: shop/web
		port             uint16 // 9080
		authority        string
		dialled          string
		want             string
	}{
		{name: "full name", authority: "reviews.shop.svc.cluster.local", want: plainReviews},
		{name: "short name", authority: "reviews:9080", want: plainReviews},
		{name: "short name of another namespace", pod: "other/web", authority: "reviews", want: "PassthroughCluster"},
		{name: "namespace and name, any case", pod: "other/web", authority: "Reviews.SHOP.", want: plainReviews},
		{name: "address", authority: "10.96.0.20", want: plainReviews},
		{name: "a port that the service does not have", port: 1234, authority: "reviews", want: "PassthroughCluster"},
		{name: "a port that carries TCP", port: 5432, authority: "ratings", want: "PassthroughCluster"},
		{name: "unknown host, service dialled", authority: "unknown.example", dialled: "10.96.0.20", want: plainReviews},
		{name: "unknown host, REGISTRY_ONLY", rules: registryOnly, authority: "unknown.example", want: "502"},
		{name: "undeclared port: the service that was dialled", port: 7000, authority: "reviews", dialled: "10.96.0.21", want: "outbound|7000||ratings.shop.svc.cluster.local"},
		{name: "wildcard host of an entry", port: 80, authority: "de.wikipedia.org", want: "outbound|80||*.wikipedia.org"},
		{name: "a rule for the host", rules: virtual("shop", "r", "reviews", "02", toRatings), authority: "reviews", want: plainRatings},
		{name: "a rule for others' hosts by short name is for its own namespace", rules: virtual("other", "r", "reviews", "02", toRatings), authority: "reviews", want: plainReviews},
		{name: "a rule for gateways alone", rules: virtual("shop", "r", "reviews", "02", "gateways: [g], "+toRatings), authority: "reviews", want: plainReviews},
		{name: "a rule for gateways and the mesh", rules: virtual("shop", "r", "reviews", "02", "gateways: [g, mesh], "+toRatings), authority: "reviews", want: plainRatings},
		{name: "a rule that is not exported", rules: virtual("shop", "r", "reviews", "02", "exportTo: [\".\"], "+toRatings), pod: "other/web", authority: "reviews.shop", want: plainReviews},
		{name: "a rule that the Sidecar leaves out", rules: virtual("shop", "r", "nowhere.example", "02", toRatings) + onlyOwn, pod: "other/web", authority: "nowhere.example", want: "PassthroughCluster"},
		{name: "the oldest counts", rules: virtual("shop", "a", "reviews", "03", to("host: nobody")) + virtual("shop", "z", "reviews", "02", toRatings), authority: "reviews", want: plainRatings},
		{name: "the name before the pattern", rules: virtual("shop", "a", "\"*.shop.svc.cluster.local\"", "02", to("host: nobody")) + virtual("shop", "z", "reviews", "03", toRatings), authority: "reviews", want: plainRatings},
		{name: "the longer pattern", rules: virtual("shop", "a", "\"*.cluster.local\"", "02", to("host: nobody")) + virtual("shop", "z", "\"*.shop.svc.cluster.local\"", "03", toRatings), authority: "reviews", want: plainRatings},
		{name: "a destination that is nowhere", rules: virtual("shop", "r", "reviews", "02", to("host: nobody.example")), authority: "reviews", want: "outbound|9080||nobody.example"},
		{name: "a host in no registry", rules: virtual("shop", "r", "books.example", "02", to("host: reviews")), port: 80, authority: "books.example", want: plainReviews},
		{name: "a pattern in no registry", rules: virtual("shop", "r", "\"*.books.example\"", "02", to("host: reviews")), port: 80, authority: "a.books.example:80", want: plainReviews},
		{name: "a short host in no registry", rules: virtual("shop", "r", "books", "02", to("host: reviews")), port: 80, authority: "books", want: plainReviews},
		{name: "an address as host", rules: virtual("shop", "r", "192.0.2.77", "02", to("host: reviews")), port: 80, authority: "192.0.2.77", want: plainReviews},
		{name: "the port that is called, of several", rules: virtual("shop", "r", "reviews", "02", to("host: ratings")), authority: "reviews", want: "outbound|9080||ratings.shop.svc.cluster.local"},
		{name: "weights", rules: virtual("shop", "r", "reviews", "02", "http: [{route: [{destination: {host: reviews, subset: v1}, weight: 75}, {destination: {host: reviews, subset: v2}, weight: 25}, {destination: {host: reviews, subset: v3}}]}]"),
			authority: "reviews", want: "outbound|9080|v1|reviews.shop.svc.cluster.local:75 outbound|9080|v2|reviews.shop.svc.cluster.local:25"},
		{name: "no rule matches", rules: virtual("shop", "r", "reviews", "02", "http: [{match: [{uri: {prefix: /a}}], route: [{destination: {host: reviews}}]}]"), authority: "reviews", want: "404"},
		{name: "a rule that is wrong", rules: virtual("shop", "r", "reviews", "02", "http: [{match: [{uri: {regex: \"(\"}}], route: [{destination: {host: reviews}}]}]"), authority: "reviews", want: "503"},
		{name: "a rule for TCP alone", rules: virtual("shop", "r", "reviews", "02", "tcp: [{route: [{destination: {host: nobody}}]}]"), authority: "reviews", want: plainReviews},
		{name: "callers by label", rules: virtual("shop", "r", "reviews", "02", "http: [{match: [{sourceLabels: {tier: front}}], route: [{destination: {host: nobody, port: {number: 1}}}]}, {route: [{destination: {host: ratings, port: {number: 80}}}]}]"), authority: "reviews", want: "outbound|1||nobody.shop.svc.cluster.local"},
		{name: "control: callers without the label", pod: "other/web", rules: virtual("shop", "r", "reviews", "02", "http: [{match: [{sourceLabels: {tier: front}}], route: [{destination: {host: nobody, port: {number: 1}}}]}, {route: [{destination: {host: ratings, port: {number: 80}}}]}]"), authority: "reviews.shop", want: plainRatings},
		{name: "callers by namespace", pod: "other/web", rules: virtual("shop", "r", "reviews", "02", "http: [{match: [{sourceNamespace: shop}], route: [{destination: {host: nobody}}]}, {route: [{destination: {host: ratings, port: {number: 80}}}]}]"), authority: "reviews.shop", want: plainRatings},
		{name: "a rule for others alone says nothing", pod: "other/web", rules: virtual("shop", "r", "reviews", "02", "http: [{match: [{sourceNamespace: shop}], route: [{destination: {host: nobody}}]}]"), authority: "reviews.shop", want: plainReviews},
		{name: "ports", port: 81, rules: virtual("shop", "r", "ratings", "02", "http: [{match: [{port: 80}], route: [{destination: {host: nobody}}]}, {match: [{port: 81}], route: [{destination: {host: reviews}}]}]"), authority: "ratings", want: plainReviews},
		{name: "delegates", rules: virtual("shop", "r", "reviews", "02", "http: [{match: [{uri: {prefix: /}}], delegate: {name: d, namespace: other}}]") +
			strings.Replace(virtual("other", "d", "x", "02", to("host: own, port: {number: 3}")), "hosts: [x], ", "", 1), authority: "reviews", want: "outbound|3||own.other.svc.cluster.local"},
		{name: "a delegate that is not there", rules: virtual("shop", "r", "reviews", "02", "http: [{delegate: {name: d}}, {route: [{destination: {host: ratings}}]}]"), authority: "reviews", want: "503"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := callerIn(t, callWorld(t, tc.rules), cmp.Or(tc.pod, "shop/web"))
			if got := asked(c, cmp.Or(tc.port, 9080), tc.authority, tc.dialled); got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

// TestRoutesAreFinished: what depends on the caller and on DestinationRules is filled in.
func TestRoutesAreFinished(t *testing.T) {
	const hashed = `
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: shop}
spec: {host: reviews, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}, subsets: [{name: v1, labels: {version: v1}, trafficPolicy: {loadBalancer: {simple: RANDOM}}}]}
`
	s := callWorld(t, hashed+virtual("shop", "r", "ratings", "02", "http: [{match: [{uri: {exact: /a}}], route: [{destination: {host: reviews}}], mirror: {host: reviews, subset: v1}},"+
		"{match: [{uri: {prefix: /b}}], redirect: {authority: x, derivePort: FROM_REQUEST_PORT}}, {match: [{uri: {prefix: /c}}], route: [{destination: {host: reviews, subset: v1}}]},"+
		"{match: [{uri: {prefix: /d}}], route: [{destination: {host: reviews}}], retries: {attempts: 1, retryIgnorePreviousHosts: true}}, {name: two, route: [{destination: {host: reviews}, weight: 1}, {destination: {host: ratings}, weight: 1}]}]"))
	c := callerIn(t, s, "shop/web")
	vh, inputs := c.VirtualHost(c.Target(81, "ratings", nil))
	if !inputs.Hold(c) || len(vh.GetRoutes()) != 5 || vh.GetName() != "ratings.shop.svc.cluster.local:81" {
		t.Fatal(vh)
	}
	a, b, sub, own, two := vh.GetRoutes()[0], vh.GetRoutes()[1], vh.GetRoutes()[2], vh.GetRoutes()[3], vh.GetRoutes()[4]
	if a.GetRoute().GetHashPolicy()[0].GetHeader().GetHeaderName() != "x-user" || len(a.GetRoute().GetRetryPolicy().GetRetryHostPredicate()) != 0 {
		t.Error("no hash policy, or retries elsewhere:", a)
	}
	if got := a.GetDecorator().GetOperation(); got != "reviews.shop.svc.cluster.local:9080/a" {
		t.Error("operation", got)
	}
	if m := a.GetRoute().GetRequestMirrorPolicies(); len(m) != 1 || m[0].GetCluster() != "outbound|9080|v1|reviews.shop.svc.cluster.local" {
		t.Error("mirror", m)
	}
	if b.GetRedirect().GetPortRedirect() != 81 {
		t.Error("redirect", b)
	}
	if len(sub.GetRoute().GetHashPolicy()) != 0 || len(sub.GetRoute().GetRetryPolicy().GetRetryHostPredicate()) != 1 {
		t.Error("the subset has a policy of its own:", sub)
	}
	if len(own.GetRoute().GetRetryPolicy().GetRetryHostPredicate()) != 1 {
		t.Error("the rule wants other hosts:", own)
	}
	if got := two.GetDecorator().GetOperation(); got != "r:81/*" {
		t.Error("operation", got)
	}
	if vh, _ := c.VirtualHost(c.Target(80, "sticky", nil)); !vh.GetRoutes()[0].GetRoute().GetHashPolicy()[0].GetConnectionProperties().GetSourceIp() {
		t.Error("sessionAffinity is lost:", vh)
	}
	names := vh.GetDomains()
	if want := []string{"ratings.shop.svc.cluster.local", "ratings", "ratings.shop.svc", "ratings.shop", "10.96.0.21"}; !slices.Equal(names, want) {
		t.Error("domains", names)
	}
}
