package bench

import (
	"maps"
	"os"
	"strings"
	"testing"
	"time"
)

// made is a run of two rounds: no mesh 10 and 20, ours 5 and 16, of which one cell of STRICT is missing.
func made() *results {
	r := &results{}
	add := func(round int, mesh string, rate float64, missing string) {
		r.cells = append(r.cells, &cell{round: round, work: &works[3], side: &side{mesh: mesh, place: otherNode, addr: byPod}, rate: rate, p50: 1, p99: 2, missing: missing,
			opened: map[string]int64{"source mutual_tls": 64}})
	}
	add(1, permissive, 5, "")
	add(1, noMesh, 10, "")
	add(2, noMesh, 20, "")
	add(2, permissive, 16, "")
	add(1, strict, 7, "")
	add(2, strict, 0, "connect: refused|\nby the server")
	add(1, peerEnvoy, 0, "not given")
	return r
}

func TestRatiosAreWithinRounds(t *testing.T) {
	r := made()
	k := func(mesh string) key { return key{"rr64", otherNode, byPod, mesh} }
	if got := r.ratios(k(permissive), k(noMesh), rate); len(got) != 2 || median(got) != (0.5+0.8)/2 {
		t.Errorf("ratios %v", got)
	}
	if got := r.ratios(k(strict), k(noMesh), rate); len(got) != 1 || got[0] != 0.7 {
		t.Errorf("with a missing cell: %v", got)
	}
	if got := r.ratios(k(tlsPerConn), k(noMesh), rate); len(got) != 0 {
		t.Errorf("without cells: %v", got)
	}
}

func TestMissingIsShown(t *testing.T) {
	r := &report{expr: ".", results: *made()}
	if r.missing() != 1 || r.complete() {
		t.Errorf("missing %d, complete %v", r.missing(), r.complete())
	}
	text := r.String()
	for _, want := range []string{"missing: connect: refused/ by the server", "Envoy | missing: not given", "not complete", "source mutual_tls 64; **none**", "TLS/conn | ≥ 1.29 | missing | missing"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	r.results.cells = r.results.cells[:5]
	if !r.complete() {
		t.Error("a run without missing cells is not complete")
	}
	if r.expr = "rr1"; r.complete() {
		t.Error("a part is complete")
	}
}

func TestAims(t *testing.T) {
	more := aim{"rr64", otherNode, rate, 1.4, 100, 200, noMesh, "tunnel"} // 0.7
	if got, word := more.verdict(made()); got != 0.65 || word != "missed" {
		t.Errorf("%v %s", got, word)
	}
	more.ratio = 1.2
	if _, word := more.verdict(made()); word != "met" {
		t.Error(word)
	}
	less := aim{"rr64", otherNode, p50, 1, 1, 2, noMesh, "tunnel"}
	if got, word := less.verdict(made()); got != 1 || word != "missed" {
		t.Errorf("%v %s", got, word)
	}
	less.base = 1
	if _, word := less.verdict(made()); word != "met" {
		t.Error(word)
	}
}

func TestMedian(t *testing.T) {
	if median([]float64{3, 1, 2}) != 2 || median([]float64{4, 1, 2, 3}) != 2.5 {
		t.Error("median is wrong")
	}
}

func TestParseStat(t *testing.T) {
	u, err := parseStat("7 (a) b) c) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 9 0 1 1000 25 18446744073709551615 1 1")
	if err != nil || u.cpu != 2*time.Second || u.rss != 25*int64(os.Getpagesize()) {
		t.Errorf("%+v, %v", u, err)
	}
	for _, bad := range []string{"", "7 (a) S 1", "7 (a) S 1 7 7 0 -1 4194560 1 0 0 0 x 50 0 0 20 0 9 0 1 1000 25 0"} {
		if _, err := parseStat(bad); err == nil {
			t.Errorf("%q is read", bad)
		}
	}
}

func TestUsageOfSelf(t *testing.T) {
	if u, err := usageOf([]int{os.Getpid()}); err != nil || u.rss == 0 {
		t.Errorf("%+v, %v", u, err)
	}
	if _, err := usageOf([]int{-1}); err == nil {
		t.Error("no process, no error")
	}
}

func TestCounters(t *testing.T) {
	got := opened(`# TYPE istio_tcp_connections_opened_total counter
istio_tcp_connections_opened_total{reporter="source",source_app="a",connection_security_policy="mutual_tls"} 3
istio_tcp_connections_opened_total{connection_security_policy="mutual_tls",reporter="source"} 1e+01
istio_tcp_connections_closed_total{reporter="source",connection_security_policy="none"} 9
`)
	if !maps.Equal(got, map[string]int64{"source mutual_tls": 13}) {
		t.Errorf("opened: %v", got)
	}
	got = paths(`{"msg":"x","direction":"outbound","path":"tunnel"}
{"scope":"access","direction":"outbound","path":"tunnel"}
{"scope":"access","direction":"inbound"}
`)
	if !maps.Equal(got, map[string]int64{"outbound tunnel": 1, "inbound ?": 1}) {
		t.Errorf("paths: %v", got)
	}
}
