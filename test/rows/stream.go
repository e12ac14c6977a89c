package rows

import (
	"fmt"
	"strings"
	"testing"

	"github.com/undermesh/undermesh/test/e2e"
)

// line sends a line to a service of the fixture over TCP.
func line(service string, n int, w want) expect {
	return expect{e2e.Question{URL: "tcp://" + service, Body: "hi", N: n, C: 10}, w}
}

// begins wants each answer to begin with a word.
func begins(word string) want {
	return every(func(a e2e.Answer) error { return equal("answer", strings.Fields(a.Body + " -")[0], word) })
}

// share wants a percentage of the answers to begin with a word, and the others with another.
func share(word, other string, percent int) want {
	return func(all []e2e.Answer) error {
		n := 0
		for _, a := range all {
			switch first, _, _ := strings.Cut(a.Body, " "); first {
			case word:
				n++
			case other:
			default:
				return fmt.Errorf("answer %q %s", a.Body, a.Error)
			}
		}
		if !near(n, len(all), float64(percent)/100) {
			return fmt.Errorf("%d of %d begin with %s, want %d %%", n, len(all), word, percent)
		}
		return nil
	}
}

// echoSubsets are the versions of tcp-echo.
const echoSubsets = `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: tcp-echo}
spec: {host: tcp-echo, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
---
`

// tcpRule is a VirtualService of tcp-echo; tcp is a YAML list, indented by two.
func tcpRule(tcp string) string {
	return echoSubsets + "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: tcp-echo}\nspec:\n  hosts: [tcp-echo]\n  tcp:\n" + tcp
}

func tcpTo(version string, weight int) string {
	return fmt.Sprintf("{destination: {host: tcp-echo, port: {number: 9000}, subset: %s}, weight: %d}", version, weight)
}

// quiet is a DestinationRule of tcp-echo whose connections may carry nothing for so long.
func quiet(after string) string {
	return strings.Replace(echoSubsets, "host: tcp-echo,", "host: tcp-echo, trafficPolicy: {connectionPool: {tcp: {idleTimeout: "+after+"}}},", 1)
}

// later sends a line twice, with a pause.
func later(service string, pause int, w want) expect {
	return expect{e2e.Question{URL: "tcp://" + service, Body: "hi", N: 2, C: 2, Again: pause}, w}
}

// ends wants each connection to be over when the second line is sent.
func ends(all []e2e.Answer) error {
	for i, a := range all {
		if !strings.Contains(a.Error, "EOF") && !strings.Contains(a.Error, "broken pipe") && !strings.Contains(a.Error, "reset") {
			return fmt.Errorf("answer %d: %q %s", i, a.Body, a.Error)
		}
	}
	return nil
}

func TCPRows(t *testing.T, w World) {
	ctx := within(t)
	caller, err := podOf(ctx, w, inside, "sleep")
	check(t, err)
	network := strings.Join(strings.Split(caller.Status.PodIP, ".")[:2], ".") + ".0.0/16"
	const echo, other = "tcp-echo.tutorial:9000", "tcp-echo.tutorial:9001"
	of := func(ids, title, tcp string, all ...expect) row {
		return row{ids: ids, title: title, resource: tcpRule(tcp), look: asks(all...)}
	}
	all, fifth := "["+tcpTo("v1", 100)+"]", "["+tcpTo("v1", 80)+", "+tcpTo("v2", 20)+"]"
	one, two := "["+tcpTo("v1", 100)+"]", "["+tcpTo("v2", 100)+"]"
	labels := of("TC-04", "connections of callers with labels", "  - match: [{sourceLabels: {app: preference, version: v2}}]\n    route: "+two+"\n  - route: "+one+"\n", line(echo, 20, begins("two")))
	labels.from = "preference-v2"
	subnet := func(cidr string) string {
		return "  - match: [{destinationSubnets: [" + cidr + "]}]\n    route: " + two + "\n  - route: " + one + "\n"
	}
	destination := of("TC-03", "connections to a network", subnet("10.0.0.0/8"), line(echo, 20, begins("two")))
	destination.changed = tcpRule(subnet("192.0.2.0/24"))
	posted := seed(t, "027")
	observeAll(t, w, []row{
		of("TC-01", "all connections to the first version", "  - route: "+all+"\n", line(echo, 40, begins("one"))),
		of("TC-01", "a fifth to the second", "  - route: "+fifth+"\n", line(echo, 200, share("two", "one", 20))),
		of("TC-02", "connections to a port", "  - match: [{port: 9001}]\n    route: "+two+"\n  - match: [{port: 9000}]\n    route: "+one+"\n",
			line(echo, 20, begins("one")), line(other, 20, begins("two"))),
		{ids: "TC-03 TC-07", title: "connections from a network lead to another port", resource: strings.ReplaceAll(posted, "172.17.0.0/16", network),
			look: asks(line("postgresql.tutorial:5432", 10, begins("moved"))), changed: posted},
		{ids: "TC-07", title: "connections lead to another port", resource: strings.Replace(posted, "        sourceSubnet: \"172.17.0.0/16\"\n", "", 1),
			look: asks(line("postgresql.tutorial:5432", 10, begins("moved")), line("postgresql.tutorial:5555", 10, begins("moved")))},
		destination, labels,
		{ids: "RS-07", title: "a connection that carries nothing ends", resource: quiet("1s"), look: asks(later(echo, 4000, ends)), changed: quiet("0s")},
		of("TC-04", "connections of other callers", "  - match: [{sourceLabels: {app: preference, version: v2}}]\n    route: "+two+"\n  - route: "+one+"\n", line(echo, 20, begins("one"))),
		of("TC-04", "rules for gateways are not for the mesh", "  - match: [{gateways: [some-gateway]}]\n    route: "+two+"\n  - match: [{gateways: [mesh]}]\n    route: "+one+"\n", line(echo, 20, begins("one"))),
	})
}

// TLSRows: by the name in the handshake, which nobody ends on the way: the server's certificate is the client's to see.
func TLSRows(t *testing.T, w World) {
	by := func(sni, version string) expect {
		return expect{e2e.Question{URL: "https://recommendation.tutorial:8443/", SNI: sni, N: 10},
			both(v(version), every(func(a e2e.Answer) error { return equal("certificate", a.Peer, version) }))}
	}
	tls := func(first, second string) string {
		return subsets + `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: recommendation, namespace: tutorial}
spec:
  hosts: [recommendation, "*.example.com", "*.example.org"]
  tls:
  - match: [{port: 8443, sniHosts: ["` + first + `"]}]
    route: [{destination: {host: recommendation, subset: version-v1, port: {number: 8443}}}]
  - match: [{port: 8443, sniHosts: ["` + second + `"]}]
    route: [{destination: {host: recommendation, subset: version-v2, port: {number: 8443}}}]
`
	}
	observeAll(t, w, []row{
		{ids: "TC-05", title: "by name", resource: tls("one.example.com", "two.example.com"), look: asks(by("one.example.com", "v1"), by("two.example.com", "v2"))},
		{ids: "TC-06", title: "by wildcard", resource: tls("*.example.com", "*.example.org"), look: asks(by("any.example.com", "v1"), by("a.b.example.com", "v1"), by("any.example.org", "v2"))},
	})
}
