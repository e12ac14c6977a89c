package telemetry

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

var example = Labels{
	Reporter: Source, Security: MutualTLS,
	Source:      Peer{Workload: "sleep", Namespace: "foo", Principal: "spiffe://cluster.local/ns/foo/sa/sleep", CanonicalService: "sleep", Cluster: "Kubernetes"},
	Destination: Peer{Workload: "httpbin", Namespace: "bar", App: "httpbin", Version: "v1"},
	Service:     Service{Host: "httpbin.bar.svc.cluster.local", Name: "httpbin", Namespace: "bar"},
}

// value sums the samples of a metric that have all of the label pairs (name, value, …).
func value(t *testing.T, r *Registry, metric string, pairs ...string) float64 {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(r)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != metric {
			continue
		}
		for _, m := range f.GetMetric() {
			have := map[string]string{}
			for _, l := range m.GetLabel() {
				have[l.GetName()] = l.GetValue()
			}
			match := true
			for i := 0; i < len(pairs); i += 2 {
				match = match && have[pairs[i]] == pairs[i+1]
			}
			if match {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func TestBytesOfLiveConnectionsAreCounted(t *testing.T) {
	r := New(Config{Clock: clock.System()})
	var received, sent atomic.Uint64
	both := example
	both.Reporter = Destination
	f := r.Open(func() (uint64, uint64) { return received.Load(), sent.Load() }, example, both)
	for _, reporter := range []string{"source", "destination"} {
		want := func(metric string, n float64) {
			t.Helper()
			if got := value(t, r, metric, "reporter", reporter, "source_workload", "sleep", "destination_service", "httpbin.bar.svc.cluster.local",
				"connection_security_policy", "mutual_tls", "response_flags", "-", "request_protocol", "tcp", "destination_principal", "unknown"); got != n {
				t.Errorf("%s of %s: %v, want %v", metric, reporter, got, n)
			}
		}
		want("istio_tcp_connections_opened_total", 1)
		want("istio_tcp_connections_closed_total", 0)
	}
	received.Store(100)
	sent.Store(7)
	if got := value(t, r, "istio_tcp_received_bytes_total", "reporter", "source"); got != 100 {
		t.Errorf("received while open: %v, want 100", got)
	}
	received.Store(150)
	f.Close()
	if got := value(t, r, "istio_tcp_received_bytes_total", "reporter", "destination"); got != 150 {
		t.Errorf("received: %v, want 150", got)
	}
	if got := value(t, r, "istio_tcp_sent_bytes_total", "reporter", "source"); got != 7 {
		t.Errorf("sent: %v, want 7", got)
	}
	if got := value(t, r, "istio_tcp_connections_closed_total"); got != 2 {
		t.Errorf("closed: %v, want 2", got)
	}
}

func TestFailuresCarryTheirFlagAndReason(t *testing.T) {
	r := New(Config{Clock: clock.System()})
	r.Failed(reason.StrictMTLS, example)
	r.Refused(reason.StrictMTLS)
	if got := value(t, r, "istio_tcp_connections_failed", "response_flags", "DENY", "source_workload", "sleep"); got != 1 {
		t.Errorf("failed: %v, want 1", got)
	}
	if got := value(t, r, "istio_tcp_connections_opened_total"); got != 0 {
		t.Errorf("opened: %v, want 0", got)
	}
	if got := value(t, r, "undermesh_connections_refused_total", "reason", "strict_mtls", "layer", "proxy"); got != 1 {
		t.Errorf("refused: %v, want 1", got)
	}
}

// TestTenantsCannotBreakScraping: what shows the same is one series, and text that is not UTF-8 is shown.
func TestTenantsCannotBreakScraping(t *testing.T) {
	r := New(Config{Clock: clock.System()})
	none := func() (uint64, uint64) { return 0, 0 }
	for _, app := range []string{"", "unknown", "a\xffb", "a\xfeb", "{}\"\n="} {
		l := example
		l.Source.App = app
		r.Open(none, l).Close()
	}
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(r)
	if _, err := reg.Gather(); err != nil {
		t.Fatal(err)
	}
	for app, want := range map[string]float64{"unknown": 2, "a\uFFFDb": 2, "{}\"\n=": 1} {
		if got := value(t, r, "istio_tcp_connections_opened_total", "source_app", app); got != want {
			t.Errorf("source_app %q: %v connections, want %v", app, got, want)
		}
	}
}

func TestSeriesAreBoundedAndExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Config{Clock: clock.System(), MaxSeries: 3, ExpireAfter: time.Minute})
		none := func() (uint64, uint64) { return 0, 0 }
		named := func(i int) Labels {
			l := example
			l.Source.Workload = strings.Repeat("x", i+1)
			return l
		}
		live := r.Open(none, named(0))
		for i := 1; i < 20; i++ {
			r.Open(none, named(i)).Close()
		}
		if n := len(r.series); n != 4 { // three, and the one for what does not fit
			t.Errorf("%d series, want 4", n)
		}
		if got := value(t, r, "istio_tcp_connections_opened_total"); got != 20 {
			t.Errorf("opened: %v, want 20: none is lost", got)
		}
		if got := value(t, r, "undermesh_telemetry_merged_total"); got != 17 {
			t.Errorf("merged: %v, want 17", got)
		}
		time.Sleep(2 * time.Minute)
		if got := value(t, r, "istio_tcp_connections_opened_total"); got != 1 {
			t.Errorf("opened after the time of expiry: %v, want the live one", got)
		}
		r.Open(none, named(30)).Close()
		if got := value(t, r, "istio_tcp_connections_opened_total", "source_workload", strings.Repeat("x", 31)); got != 1 {
			t.Errorf("a new series did not take the place of an expired one: %v", got)
		}
		live.Close()
	})
}

// TestAL01AL07AL09Access: what the mesh says of the access log counts from the next line on, and refusals are always logged.
func TestAL01AL07AL09Access(t *testing.T) {
	var out bytes.Buffer
	now := Access{}
	r := New(Config{Clock: clock.System(), Out: &out, Access: func() Access { return now }})
	flush := func() {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := r.Run(ctx); err != nil {
			t.Fatal(err)
		}
	}
	good, refused := Line{SrcWorkload: "good"}, Line{SrcWorkload: "refused", Reason: reason.PolicyDenied}
	for _, step := range []struct {
		access     Access
		json, text int
	}{
		{Access{}, 4, 0}, {Access{Quiet: true}, 3, 0}, {Access{Text: true}, 0, 4}, {Access{Quiet: true, Text: true}, 0, 3}, {Access{}, 4, 0},
	} {
		now = step.access
		out.Reset()
		for _, l := range []Line{good, refused, {Err: errors.New("x")}, {DryRun: []string{"a/b"}}} {
			r.Log(l)
		}
		flush()
		if j, x := strings.Count(out.String(), `"msg":"connection complete"`), strings.Count(out.String(), `msg="connection complete"`); j != step.json || x != step.text {
			t.Errorf("%+v: %d lines of JSON and %d of text, want %d and %d", step.access, j, x, step.json, step.text)
		}
		if strings.Contains(out.String(), "good") == step.access.Quiet || !strings.Contains(out.String(), "refused") {
			t.Errorf("%+v: %s", step.access, out.String())
		}
	}
}

func TestLinesAreWrittenOrDroppedNeverWaitedFor(t *testing.T) {
	var out bytes.Buffer
	r := New(Config{Clock: clock.System(), LogBuffer: 2, Out: &out, Access: func() Access { return Access{Text: true} }})
	line := Line{
		Direction: "inbound", Src: netip.MustParseAddrPort("10.0.0.1:5"), Dst: netip.MustParseAddrPort("10.0.1.1:15008"),
		HBONE: netip.MustParseAddrPort("10.0.1.1:80"), SrcWorkload: "sleep", SrcNamespace: "foo", SrcID: "spiffe://cluster.local/ns/foo/sa/sleep",
		DstService: "httpbin.bar.svc.cluster.local", DstWorkload: "httpbin", DstNamespace: "bar", Sent: 5, Received: 6, Duration: 1500 * time.Microsecond,
		Reason: reason.PolicyDenied, Policy: "bar/deny", Rule: 2, Path: "tunnel", Generation: 9, Err: errors.New("policy_denied by bar/deny"),
	}
	for range 5 {
		r.Log(line)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "\n"); n != 2 {
		t.Errorf("%d lines, want 2", n)
	}
	if got := value(t, r, "undermesh_access_log_dropped_total"); got != 3 {
		t.Errorf("dropped: %v, want 3", got)
	}
	for _, part := range []string{
		`msg="connection complete"`, "scope=access", "src.addr=10.0.0.1:5", "src.workload=sleep", "src.namespace=foo",
		"src.identity=spiffe://cluster.local/ns/foo/sa/sleep", "dst.addr=10.0.1.1:15008", "dst.hbone_addr=10.0.1.1:80",
		"dst.service=httpbin.bar.svc.cluster.local", "dst.workload=httpbin", "dst.namespace=bar", "direction=inbound", "bytes_sent=5",
		"bytes_recv=6", "duration=1.5ms", `error="policy_denied by bar/deny"`, "reason=policy_denied", "policy=bar/deny", "rule=2", "path=tunnel",
		"generation=9",
	} {
		if !strings.Contains(out.String(), part) {
			t.Errorf("no %s in %s", part, out.String())
		}
	}
}

// TestLinesAreBounded: a peer chooses part of what an error says.
func TestLinesAreBounded(t *testing.T) {
	var out bytes.Buffer
	r := New(Config{Clock: clock.System(), Out: &out, Access: func() Access { return Access{Text: true} }})
	r.Log(Line{Direction: "inbound", Err: errors.New("asked for " + strings.Repeat("ü", 60_000))})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if n := out.Len(); n < maxErrorText || n > 2*maxErrorText {
		t.Errorf("the line has %d bytes", n)
	}
}

// TestForms: a line is what log/slog's handlers make of the same values.
func TestForms(t *testing.T) {
	hostile := []string{"", "plain", "with space", `quo"te\`, "a=b", "new\nline\r\t\x00\x1f\x7f", "ü€😀", "\xff\xfe half", "\u2028\u2029\u00a0", "[::1]:80"}
	for _, v := range hostile {
		l := Line{
			Src: netip.MustParseAddrPort("[fe80::1%eth0]:5"), Dst: netip.MustParseAddrPort("10.0.0.1:80"), SrcWorkload: v, DstService: v, Direction: "outbound",
			Sent: -1, Received: 1 << 40, Duration: 1234567, Reason: reason.PolicyDenied, Policy: "a/b", Rule: 0, DryRun: []string{"x/y", v + "z"}, Path: "http",
			Generation: 1<<64 - 1, Request: &Request{Method: "GET", Authority: v, Path: "/" + v, Status: 503, Flags: "UF", Attempts: 2, Route: v},
			Err: errors.New("because " + v),
		}
		for _, text := range []bool{false, true} {
			e := encoder{text: text}
			now := time.Date(2026, 11, 22, 4, 5, 6, 7_000_000, time.UTC)
			e.begin(now, slog.LevelError, "request complete")
			l.encode(&e)
			e.end()
			var want bytes.Buffer
			h := slog.Handler(slog.NewJSONHandler(&want, nil))
			if text {
				h = slog.NewTextHandler(&want, nil)
			}
			rec := slog.NewRecord(now, slog.LevelError, "request complete", 0)
			add := func(k string, value any) {
				if value != "" {
					rec.Add(k, value)
				}
			}
			for _, kv := range []struct {
				k string
				v any
			}{
				{"scope", "access"}, {"src.addr", l.Src.String()}, {"src.workload", v}, {"dst.addr", l.Dst.String()}, {"dst.service", v}, {"direction", "outbound"},
				{"bytes_sent", l.Sent}, {"bytes_recv", l.Received}, {"duration", "1.235ms"}, {"reason", "policy_denied"}, {"policy", "a/b"}, {"rule", 0},
				{"dry_run", l.DryRun}, {"path", "http"}, {"generation", l.Generation}, {"status", 503}, {"attempts", 2}, {"method", "GET"}, {"authority", v},
				{"url", "/" + v}, {"flags", "UF"}, {"route", v}, {"error", "because " + v},
			} {
				add(kv.k, kv.v)
			}
			if err := h.Handle(t.Context(), rec); err != nil {
				t.Fatal(err)
			}
			if got := string(e.b); got != want.String() {
				t.Errorf("%q:\n%s%s", v, got, want.String())
			}
		}
	}
}

// TestBatch: what comes in quick succession is written together, and a batch is bounded.
func TestBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sizes []int
		r := New(Config{Clock: clock.System(), Out: writes(func(b []byte) { sizes = append(sizes, bytes.Count(b, []byte("\n"))) })})
		ctx, cancel := context.WithCancel(t.Context())
		over := make(chan error)
		go func() { over <- r.Run(ctx) }()
		for range 5 {
			r.Log(Line{SrcWorkload: "a"})
		}
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
		r.Log(Line{SrcWorkload: "b"})
		synctest.Wait()
		for range 3 {
			r.Log(Line{SrcWorkload: strings.Repeat("c", batch)})
		}
		cancel()
		if err := <-over; err != nil || !slices.Equal(sizes, []int{5, 2, 1, 1}) {
			t.Errorf("%v, %v", sizes, err)
		}
	})
}

type writes func([]byte)

func (w writes) Write(b []byte) (int, error) { w(b); return len(b), nil }

func TestLevel(t *testing.T) {
	var out bytes.Buffer
	r := New(Config{Clock: clock.System(), Out: &out, Level: slog.LevelWarn})
	r.Log(Line{SrcWorkload: "good"})
	r.Log(Line{Err: errors.New("bad")})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Run(ctx); err != nil || strings.Contains(out.String(), "good") || !strings.Contains(out.String(), "bad") {
		t.Errorf("%v, %s", err, out.String())
	}
}
