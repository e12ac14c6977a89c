package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/undermesh/undermesh/cni/wire"
	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/nodeagent/enroll"
	"github.com/undermesh/undermesh/nodeagent/zds"
)

// fakePods answers as told and records the last attachment.
type fakePods struct {
	decision enroll.Decision
	err      error
	last     enroll.Attachment
	valid    []string
	canceled bool // the context of Del
}

func (f *fakePods) Add(_ context.Context, a enroll.Attachment) (enroll.Decision, error) {
	f.last = a
	return f.decision, f.err
}
func (f *fakePods) Del(ctx context.Context, a enroll.Attachment) {
	f.last, f.canceled = a, ctx.Err() != nil
}
func (f *fakePods) Check(context.Context, enroll.Attachment) error { return f.err }
func (f *fakePods) GC(_ context.Context, valid []string)           { f.valid = valid }

func post(t *testing.T, s *Server, path, body string) (int, wire.Response) {
	t.Helper()
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, strings.NewReader(body)))
	var r wire.Response
	if w.Header().Get("Content-Type") == "application/json" {
		if err := json.Unmarshal(w.Body.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
	}
	return w.Code, r
}

func newServer(p *fakePods) *Server {
	return New(Config{Pods: p, Log: slog.New(slog.DiscardHandler), Ready: func() error { return p.err }})
}

const addBody = `{"containerID":"c","netns":"/run/netns/a","podNamespace":"foo","podName":"a","podUID":"u","ips":["10.0.0.5"]}`

func TestAdd(t *testing.T) {
	p := &fakePods{decision: enroll.Decision{Enrolled: true, Why: "label"}}
	code, r := post(t, newServer(p), wire.PathAdd, addBody)
	want := enroll.Attachment{Namespace: "foo", Name: "a", UID: "u", ContainerID: "c", Netns: "/run/netns/a", IPs: []netip.Addr{netip.MustParseAddr("10.0.0.5")}}
	if code != http.StatusOK || !r.Enrolled || r.Why != "label" || fmt.Sprint(p.last) != fmt.Sprint(want) {
		t.Errorf("%d %+v %+v", code, r, p.last)
	}
}

func TestErrorsNameThePodAndTheCause(t *testing.T) {
	for _, tc := range []struct {
		path, body string
		err        error
		code       int
		text       string
	}{
		{wire.PathAdd, addBody, fmt.Errorf("enrol pod foo/a: %w", zds.ErrNoZtunnel), 503, "foo/a: no ztunnel connection"},
		{wire.PathAdd, addBody, fmt.Errorf("enrol pod foo/a: %w", enroll.ErrPodGone), 404, "foo/a: pod does not exist"},
		{wire.PathAdd, addBody, errors.New("enrol pod foo/a: prepare: boom"), 500, "foo/a: prepare: boom"},
		{wire.PathAdd, `{"podName":"a"}`, nil, 500, "netns"},
		{wire.PathAdd, `{"podName":`, nil, 400, "JSON"},
		{wire.PathAdd, `{"unknown":1}`, nil, 400, "unknown"},
		{wire.PathAdd, `{"podName":"` + strings.Repeat("a", wire.MaxBody) + `"}`, nil, 400, "JSON"},
		{wire.PathCheck, addBody, fmt.Errorf("check pod foo/a: %w", enroll.ErrNotEnrolled), 500, "foo/a"},
		{wire.PathStatus, `{}`, errors.New("not yet"), 500, "not yet"},
		{wire.PathDel, addBody, errors.New("whatever"), 200, ""},
	} {
		code, r := post(t, newServer(&fakePods{err: tc.err}), tc.path, tc.body)
		if code != tc.code || !strings.Contains(r.Error, tc.text) || (tc.text == "") != (r.Error == "") || r.Enrolled {
			t.Errorf("%s %.60s: %d %+v, want %d %q", tc.path, tc.body, code, r, tc.code, tc.text)
		}
	}
	if code, _ := post(t, newServer(&fakePods{}), "/v1/other", `{}`); code != http.StatusNotFound {
		t.Errorf("unknown path: %d", code)
	}
}

func TestDelGoesOnWhenTheRuntimeHangsUp(t *testing.T) {
	p := &fakePods{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	newServer(p).Handler().ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, http.MethodPost, wire.PathDel, strings.NewReader(addBody)))
	if p.last.Name != "a" || p.canceled {
		t.Errorf("%+v canceled %v", p.last, p.canceled)
	}
}

func TestRunServesASocketForRootOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "istio-cni", "a.sock")
	s := New(Config{Socket: path, Pods: &fakePods{}, Log: slog.New(slog.DiscardHandler), Ready: func() error { return nil }})
	for range 2 { // a socket that is left does not keep a successor from serving
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		hc := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		}}}
		deadline := time.After(5 * time.Second)
		for {
			res, err := hc.Post("http://agent"+wire.PathStatus, "application/json", strings.NewReader("{}"))
			if err == nil {
				_ = res.Body.Close()
				break
			}
			select {
			case <-deadline:
				t.Fatal(err)
			case <-time.After(2 * time.Millisecond):
			}
		}
		hc.CloseIdleConnections()
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("socket: %v %v", fi, err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestMonitor(t *testing.T) {
	var notReady error = errors.New("pods of the node are not known yet")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	_ = ln.Close()
	m := NewMonitor(MonitorConfig{MetricsAddr: addr, ReadyAddr: addr, Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry(),
		Ready:     func() error { return notReady },
		Connected: func() bool { return true },
		Pods: func() []enroll.Status {
			return []enroll.Status{{Namespace: "foo", Name: "a", Step: enroll.StepEnrolled}, {Step: enroll.StepInbound, Err: "x"}}
		},
		Counters: func() (Counters, error) {
			return Counters{Reasons: map[reason.Reason]uint64{reason.LoopPort: 7}, Events: map[string]uint64{"captured": 3}}, nil
		}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	get := func(path string) (int, string) {
		deadline := time.After(5 * time.Second)
		for {
			res, err := http.Get("http://" + addr + path)
			if err == nil {
				defer res.Body.Close()
				b, _ := io.ReadAll(res.Body)
				return res.StatusCode, string(b)
			}
			select {
			case <-deadline:
				t.Fatal(err)
			case <-time.After(2 * time.Millisecond):
			}
		}
	}
	if code, body := get("/readyz"); code != 503 || !strings.Contains(body, notReady.Error()) {
		t.Errorf("readyz: %d %s", code, body)
	}
	_, body := get("/metrics")
	for _, line := range []string{`undermesh_agent_pods{step="enrolled"} 1`, `undermesh_agent_pods_failing 1`, `undermesh_agent_ztunnel_connected 1`,
		`undermesh_kernel_refusals_total{reason="loop_port"} 7`, `undermesh_kernel_events_total{event="captured"} 3`} {
		if !strings.Contains(body, line) {
			t.Errorf("metrics lack %s", line)
		}
	}
	if _, body := get("/pods"); !strings.Contains(body, `"Name":"a"`) {
		t.Errorf("pods: %s", body)
	}
	notReady = nil
	if code, _ := get("/readyz"); code != 200 {
		t.Errorf("readyz: %d", code)
	}
}

func TestDecisionLogNamesReasonAndPodAndIsBounded(t *testing.T) {
	var out bytes.Buffer
	l := DecisionLog{Log: slog.New(slog.NewTextHandler(&out, nil)), PodName: func(string) string { return "foo/a" }}
	for range 10 * maxDecisions {
		l.Write(Decision{Layer: "sk_lookup", Verdict: "drop", Reason: reason.LoopPort, UID: "u",
			Src: netip.MustParseAddrPort("10.0.0.1:1"), Dst: netip.MustParseAddrPort("10.0.0.5:15001")})
	}
	for _, part := range []string{"reason=loop_port", "pod=foo/a", "dst=10.0.0.5:15001", "src=10.0.0.1:1", "layer=sk_lookup"} {
		if !strings.Contains(out.String(), part) {
			t.Errorf("line lacks %s: %.300s", part, out.String())
		}
	}
	if n := strings.Count(out.String(), "kernel decision"); n > 3*maxDecisions {
		t.Errorf("%d lines for one burst", n)
	}
}
