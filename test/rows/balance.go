package rows

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/undermesh/undermesh/test/e2e"
)

// policy is a DestinationRule of recommendation with a traffic policy.
func policy(text string) string {
	return "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: recommendation, namespace: tutorial}\nspec:\n  host: recommendation\n  trafficPolicy: " + text + "\n"
}

// pods of the fixture's echo.
const echoPods = 5

// not wants the opposite.
func not(what string, w want) want {
	return func(all []e2e.Answer) error {
		if w(all) == nil {
			return errors.New("it is " + what)
		}
		return nil
	}
}

// slowLess wants the slow version to get less than a quarter of the requests, though it has two of five pods.
func slowLess(all []e2e.Answer) error {
	got, err := versions(all)
	if err != nil {
		return err
	}
	if 4*got["v1"] >= len(all) {
		return fmt.Errorf("the slow version got %d of %d", got["v1"], len(all))
	}
	return nil
}

// sticky asks 10 times for each of some users, by a header, cookie or query that make says; each user must have a pod of their own,
// and all of them several.
func sticky(make func(user string) e2e.Question) func(context.Context, place) error {
	return func(ctx context.Context, p place) error {
		const users, each = 12, 10
		questions := []e2e.Question{}
		for i := range users {
			q := make(fmt.Sprintf("user-%d", i))
			q.N = each
			questions = append(questions, q)
		}
		answers, err := p.Ask(ctx, p.namespace, p.deployment, questions...)
		if err != nil {
			return err
		}
		var all []e2e.Answer
		for i, a := range answers {
			if err := onePod(a); err != nil {
				return fmt.Errorf("%w: user %d: %w", e2e.ErrOther, i, err)
			}
			all = append(all, a...)
		}
		if err := spread(2)(all); err != nil {
			return fmt.Errorf("%w: %w", e2e.ErrOther, err)
		}
		return nil
	}
}

func BalanceRows(t *testing.T, w World) {
	simple := func(s string) string { return policy("{loadBalancer: {simple: " + s + "}}") }
	hash := func(s string) string { return policy("{loadBalancer: {consistentHash: " + s + "}}") }
	slow := get("/?only=v1&delay=300ms", slowLess).many(60)
	slow.C = 8
	header := func(user string) e2e.Question {
		return e2e.Question{URL: base, Headers: map[string]string{"x-user": user}}
	}
	session := func(w want) expect { return get("/", w) }
	observeAll(t, w, []row{
		{ids: "LB-01", title: "in turn", resource: simple("ROUND_ROBIN"), look: asks(get("/", inTurn(echoPods)).many(30)), changed: simple("RANDOM")},
		{ids: "LB-02", title: "at random", resource: simple("RANDOM"), look: asks(get("/", both(not("in turn", inTurn(echoPods)), spread(echoPods))).many(100)),
			unmeshed: "there chance decides as well"},
		{ids: "LB-03", title: "the endpoint with the fewest requests", resource: simple("LEAST_REQUEST"), look: asks(slow)},
		{ids: "LB-06", title: "a policy for one port", resource: policy("{portLevelSettings: [{port: {number: 8081}, loadBalancer: {consistentHash: {httpHeaderName: x-user}}}]}"),
			look: asks(get("/", onePod, "x-user: a").on("8081").many(20), get("/", spread(echoPods), "x-user: a").many(20))},
		{ids: "LB-06", title: "a policy for one port of a subset", resource: routes("  - "+to("v2")+"\n") + `---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: recommendation, namespace: tutorial}
spec:
  host: recommendation
  trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}
  subsets:
  - name: version-v2
    labels: {version: v2}
    trafficPolicy: {portLevelSettings: [{port: {number: 8081}, loadBalancer: {consistentHash: {httpHeaderName: x-user}}}]}
`, look: asks(get("/", onePod, "x-user: a").on("8081").many(20), get("/", both(v("v2"), inTurn(2)), "x-user: a").many(20))},
		{ids: "LB-07", title: "a session cookie of the mesh, if the client has none", resource: hash("{httpCookie: {name: session, ttl: 0s}}"), look: asks(
			session(every(func(a e2e.Answer) error {
				if c := a.Headers["set-cookie"]; !strings.HasPrefix(c, "session=") || strings.Contains(strings.ToLower(c), "max-age") {
					return fmt.Errorf("the cookie is %q", c)
				}
				return nil
			})))},
		{ids: "LB-07", title: "the same cookie, the same pod", resource: hash("{httpCookie: {name: session, ttl: 0s}}"),
			look: sticky(func(user string) e2e.Question {
				return e2e.Question{URL: base, Headers: map[string]string{"Cookie": "a=b; session=" + user}}
			})},
		{ids: "LB-07", title: "the same header, the same pod, by a table", resource: hash("{httpHeaderName: x-user, maglev: {tableSize: 1009}}"), look: sticky(header)},
		{ids: "LB-07", title: "the same query, the same pod, by a ring", resource: hash("{httpQueryParameterName: user, ringHash: {minimumRingSize: 128}}"), look: sticky(func(user string) e2e.Question {
			return e2e.Question{URL: base + "/?user=" + user}
		})},
		{ids: "LB-07", title: "the same address, the same pod", resource: hash("{useSourceIp: true}"), look: asks(get("/", onePod).many(30))},
	})
}

// LB04Weights: the endpoints of a ServiceEntry get what their weights say.
func LB04Weights(t *testing.T, w World) {
	ctx := within(t)
	const places = "abroad"
	text := "apiVersion: v1\nkind: Namespace\nmetadata: {name: " + places + "}\n"
	for version, node := range map[string]string{"v1": "node1", "v3": "node2"} {
		text += fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata: {name: echo-%[1]s, namespace: %[2]s, labels: {app: echo-%[1]s}}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 0
  nodeSelector: {kubernetes.io/hostname: %[3]s}
  containers: [{name: echo, image: localhost/undermesh/samples, imagePullPolicy: Never, args: [echo, "18090"], env: [{name: SERVICE_VERSION, value: %[1]s}]}]
`, version, places, node)
	}
	check(t, w.ApplyIn(ctx, "", text))
	t.Cleanup(func() { check(t, w.DeleteIn(context.Background(), "", text)) })
	check(t, w.AwaitReady(ctx, places))
	pods := map[string]string{}
	for _, version := range []string{"v1", "v3"} {
		pod, err := podOf(ctx, w, places, "echo-"+version)
		check(t, err)
		pods[version] = pod.Status.PodIP
	}
	weighted := func(first, second int) string {
		return fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: weighted, namespace: tutorial}
spec:
  hosts: [weighted.example.org]
  addresses: [198.51.100.88]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 8080, name: http, protocol: HTTP, targetPort: 18090}]
  endpoints: [{address: %s, weight: %d}, {address: %s, weight: %d}]
`, pods["v1"], first, pods["v3"], second)
	}
	ask := expect{e2e.Question{URL: "http://weighted.example.org:8080/", Dial: "198.51.100.88:8080", N: 200, C: 20, Timeout: 1000}, split(map[string]int{"v1": 75, "v3": 25})}
	observeAll(t, w, []row{{ids: "LB-04", title: "three to one", resource: weighted(3, 1), look: asks(ask), changed: weighted(1, 3)}})
}

// LB05SubsetPolicy is the documents' rule, unchanged: the policy of a subset counts and not that of the service.
func LB05SubsetPolicy(t *testing.T, w World) {
	by := strings.ReplaceAll(rule("my-svc", "my-svc", "  - match: [{headers: {want: {exact: v2}}}]\n    route: [{destination: {host: my-svc, subset: v2}}]\n  - route: [{destination: {host: my-svc, subset: v1}}]\n"), "namespace: tutorial", "namespace: "+inside) + "---\n"
	at := func(e expect) expect { e.URL = strings.Replace(e.URL, "recommendation", "my-svc", 1); return e }
	dr := seed(t, "051")
	observeAll(t, w, []row{{ids: "LB-05", title: "in turn for v2, at random for v1", resource: by + dr,
		look:    asks(at(get("/", both(v("v2"), inTurn(2)), "want: v2").many(30)), at(get("/", both(v("v1"), not("in turn", inTurn(2)))).many(40))),
		changed: by + strings.ReplaceAll(dr, "ROUND_ROBIN", "RANDOM")}})
}

// LB11Exclusive: failover and distribute together are refused.
func LB11Exclusive(t *testing.T, w World) {
	ctx := within(t)
	const failover, distribute = "failover: [{from: region1, to: region2}]", `distribute: [{from: "region1/*", to: {"region1/*": 100}}]`
	rule := func(setting string) string {
		return policy("{loadBalancer: {localityLbSetting: {enabled: true, " + setting + "}}, outlierDetection: {consecutive5xxErrors: 1}}")
	}
	refused := func(text string) error {
		why, is, err := w.DryRun(ctx, text)
		if err == nil && (!is || !strings.Contains(why, "distribute")) {
			err = fmt.Errorf("%s is not refused for that: %q", text, why)
		}
		if err != nil {
			return err
		}
		return nil
	}
	t.Run("LB-11 failover and distribute together are refused", func(t *testing.T) { check(t, refused(rule(failover+", "+distribute))) })
	for name, setting := range map[string]string{"failover": failover, "distribute": distribute} {
		t.Run("LB-11 control: with "+name+" alone", func(t *testing.T) {
			if refused(rule(setting)) == nil {
				t.Error("it is refused")
			}
		})
	}
}

// Locality is the documents' walk through four localities; where a pod stands is said by its label.
func Locality(t *testing.T, w World) {
	ctx := within(t)
	const namespace = "sample"
	check(t, deploy(ctx, w, namespace, caller("sleep", "app: sleep, istio-locality: region1.zone1"), "helloworld/helloworld-localities"))
	t.Cleanup(func() { check(t, w.DeleteNamespace(context.Background(), namespace)) })
	check(t, w.Enrol(ctx, namespace))
	where := func(n int, w want) func(context.Context, place) error {
		return asks(expect{e2e.Question{URL: "http://helloworld.sample:5000/hello", N: n}, w})
	}
	in := func(locality string) want { return body("Hello version: " + locality + ",") }
	failover, distribute := seed(t, "118"), seed(t, "119")
	lax := failover[:strings.Index(failover, "    outlierDetection:")]
	places := []string{"region1.zone1", "region1.zone2", "region2.zone3", "region3.zone4"}
	observeAll(t, w, []row{
		{ids: "LB-10", title: "70 to 20 to 10", namespace: namespace, resource: distribute, look: where(300, shares(map[string]int{"region1.zone1": 70, "region1.zone2": 20, "region2.zone3": 0, "region3.zone4": 10}))},
		{ids: "LB-09", title: "no preference without outlier detection", namespace: namespace, resource: lax, changed: failover, unmeshed: "there is none either",
			look: where(24, not("one place", func(all []e2e.Answer) error { return in(places[0])(all) }))},
		{ids: "LB-08", title: "the nearest place", namespace: namespace, resource: failover, look: where(20, in(places[0]))},
	})
	remove := with(ctx, t, w, namespace, failover)
	check(t, (&row{title: "the nearest place", look: where(20, in(places[0]))}).expects(ctx, place{w, namespace, "sleep"}, true))
	for i, locality := range places[:3] {
		t.Run("LB-08 LB-12 after a drain of "+locality+" the next place", func(t *testing.T) {
			pods, err := w.Pods(ctx, namespace, "version="+locality)
			check(t, err)
			check(t, w.Drain(ctx, pods[0], false))
			// The first calls may fail: they find out.
			check(t, until(ctx, w, 10*time.Second, "the next place", func(ctx context.Context) error {
				return where(1, in(places[i+1]))(ctx, place{w, namespace, "sleep"})
			}))
			check(t, where(20, in(places[i+1]))(ctx, place{w, namespace, "sleep"}))
		})
	}
	t.Run("LB-08 LB-12 control: outside the mesh nobody is drained", func(t *testing.T) {
		check(t, where(40, not("one place", in(places[3])))(ctx, place{w, outside, "sleep"}))
	})
	t.Run("LB-12 control: without the drain", func(t *testing.T) {
		for _, locality := range places[:3] {
			pods, err := w.Pods(ctx, namespace, "version="+locality)
			check(t, err)
			check(t, w.Drain(ctx, pods[0], true))
		}
		remove() // and with it the ejections, which last longer than the drain: a rule that came at once would find them
		all := &row{title: "no preference", look: where(40, shares(map[string]int{places[0]: 25, places[1]: 25, places[2]: 25, places[3]: 25}))}
		check(t, all.expects(ctx, place{w, namespace, "sleep"}, true))
		defer with(ctx, t, w, namespace, failover)()
		check(t, (&row{title: "the nearest place again", look: where(20, in(places[0]))}).expects(ctx, place{w, namespace, "sleep"}, true))
	})
}

// shares wants the places to answer in percentages.
func shares(percent map[string]int) want {
	return func(all []e2e.Answer) error {
		got := map[string]int{}
		for _, a := range all {
			_, rest, _ := strings.Cut(a.Body, "version: ")
			where, _, _ := strings.Cut(rest, ",")
			got[where]++
		}
		for where := range got {
			if _, ok := percent[where]; !ok {
				return fmt.Errorf("%q answers: %v", where, got)
			}
		}
		for where, share := range percent {
			if !near(got[where], len(all), float64(share)/100) {
				return fmt.Errorf("%s answers %d of %d, want %d %%", where, got[where], len(all), share)
			}
		}
		return nil
	}
}
