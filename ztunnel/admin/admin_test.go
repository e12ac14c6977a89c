package admin

import (
	"encoding/json"
	"errors"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/undermesh/undermesh/controller/api/workloadapi"
)

func fixture(t *testing.T, change func(*Config)) (*Admin, *Config) {
	t.Helper()
	cfg := Config{Gatherer: prometheus.NewRegistry(), Level: new(slog.LevelVar), Quit: func() {}}
	if change != nil {
		change(&cfg)
	}
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return a, &cfg
}

func ask(h http.Handler, method, target, host string) (int, string) {
	r := httptest.NewRequest(method, target, nil)
	r.Host = host
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	body, _ := io.ReadAll(w.Result().Body)
	return w.Code, string(body)
}

func TestDumpIsOneDocument(t *testing.T) {
	a, _ := fixture(t, func(c *Config) {
		c.Sections = []Section{
			{"workloads", func() iter.Seq[any] {
				return slices.Values([]any{&workloadapi.Workload{Uid: "a", Name: "x"}, &workloadapi.Workload{Uid: "b"}})
			}},
			{"pods", func() iter.Seq[any] { return slices.Values([]any{map[string]int{"connections": 3}, make(chan int)}) }},
			{"none", func() iter.Seq[any] { return slices.Values([]any(nil)) }},
		}
	})
	code, body := ask(a.Handler(), "GET", "/config_dump", "localhost:15000")
	var got struct {
		Workloads []struct{ UID, Name string }
		Pods      []map[string]any
		None      []any
	}
	if err := json.Unmarshal([]byte(body), &got); err != nil || code != 200 {
		t.Fatalf("%d, %v: %s", code, err, body)
	}
	if len(got.Workloads) != 2 || got.Workloads[0].Name != "x" || got.Pods[0]["connections"] != 3.0 || got.None == nil {
		t.Errorf("dump is %s", body)
	}
	if text, _ := got.Pods[1]["error"].(string); !strings.Contains(text, "unsupported type") {
		t.Errorf("what cannot be written is %v", got.Pods[1])
	}
}

func TestReadyNamesWhatIsMissing(t *testing.T) {
	var missing error
	a, _ := fixture(t, func(c *Config) {
		c.Checks = []Check{{"mesh", func() error { return missing }}, {"pods", func() error { return nil }}}
	})
	missing = errors.New("no snapshot yet")
	if code, body := ask(a.ReadyHandler(), "GET", "/healthz/ready", "10.0.0.1:15021"); code != 503 || body != "mesh: no snapshot yet\n\n" {
		t.Errorf("%d %q", code, body)
	}
	missing = nil
	if code, _ := ask(a.ReadyHandler(), "GET", "/healthz/ready", "10.0.0.1:15021"); code != 200 {
		t.Errorf("%d", code)
	}
}

func TestBrowsersAreKeptOut(t *testing.T) {
	quit := 0
	a, _ := fixture(t, func(c *Config) { c.Quit = func() { quit++ } })
	for host, want := range map[string]int{
		"localhost:15000": 200, "localhost": 200, "127.0.0.1:15000": 200, "127.0.0.1": 200, "[::1]:15000": 200, "LOCALHOST:1": 200,
		"evil.example:15000": 403, "localhost.evil.example": 403, "10.0.0.1:15000": 403, "": 403, "127.0.0.1.evil.example": 403,
	} {
		if code, _ := ask(a.Handler(), "POST", "/quitquitquit", host); code != want {
			t.Errorf("host %q: %d, want %d", host, code, want)
		}
	}
	if quit != 6 {
		t.Errorf("quit %d times", quit)
	}
	r := httptest.NewRequest("POST", "/quitquitquit", nil)
	r.Host = "localhost:15000"
	r.Header.Set("Origin", "https://evil.example")
	w := httptest.NewRecorder()
	a.Handler().ServeHTTP(w, r)
	if w.Code != 403 {
		t.Errorf("a page of another origin: %d", w.Code)
	}
	if code, _ := ask(a.Handler(), "GET", "/quitquitquit", "localhost"); code != 405 || quit != 6 {
		t.Errorf("GET: %d, quit %d times", code, quit)
	}
}

func TestLogLevel(t *testing.T) {
	a, cfg := fixture(t, nil)
	if code, body := ask(a.Handler(), "GET", "/logging", "localhost"); code != 200 || body != "level: info\n" {
		t.Errorf("%d %q", code, body)
	}
	if code, _ := ask(a.Handler(), "POST", "/logging?level=debug", "localhost"); code != 200 || cfg.Level.Level() != slog.LevelDebug {
		t.Errorf("%d, level %s", code, cfg.Level.Level())
	}
	for _, bad := range []string{"", "loud", "xdebug"} {
		if code, body := ask(a.Handler(), "POST", "/logging?level="+bad, "localhost"); code != 400 || !strings.Contains(body, "debug, info") {
			t.Errorf("%q: %d %q", bad, code, body)
		}
	}
	if code, _ := ask(a.Handler(), "GET", "/logging?level=error", "localhost"); code != 405 || cfg.Level.Level() != slog.LevelDebug {
		t.Errorf("GET changed it: %d", code)
	}
}

func TestStatsNamesBothPaths(t *testing.T) {
	reg := prometheus.NewRegistry()
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "seen_total", Help: "x"})
	reg.MustRegister(c)
	c.Add(3)
	a, _ := fixture(t, func(cfg *Config) { cfg.Gatherer = reg })
	for _, path := range []string{"/metrics", "/stats/prometheus"} {
		if code, body := ask(a.StatsHandler(), "GET", path, "10.0.0.1:15020"); code != 200 || !strings.Contains(body, "seen_total 3") {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	if code, _ := ask(a.StatsHandler(), "GET", "/config_dump", "localhost"); code != 404 {
		t.Errorf("the dump is on the public port: %d", code)
	}
}
