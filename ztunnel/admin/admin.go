package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// Section is one top-level field of the dump. Items are proto messages or what encoding/json can write.
type Section struct {
	Name  string
	Items func() iter.Seq[any]
}

// Check is one condition of readiness; Ready returns nil or what is missing.
type Check struct {
	Name  string
	Ready func() error
}

// Config is what the endpoints show. All functions are called concurrently.
type Config struct {
	Sections []Section
	Checks   []Check
	Gatherer prometheus.Gatherer // required
	Level    *slog.LevelVar      // required: what /logging reads and sets
	// Quit ends the process gracefully; required. It must not block.
	Quit func()
	// Pod returns a pod that the process serves, nil for others; nil: there are no views of pods.
	Pod func(namespace, name string) Pod
	Log *slog.Logger // default: discard
}

// Admin serves the endpoints of one process.
type Admin struct {
	cfg Config
}

// New makes an Admin; Serve runs its handlers.
func New(cfg Config) (*Admin, error) {
	switch {
	case cfg.Gatherer == nil:
		return nil, errors.New("admin config: Gatherer is not set")
	case cfg.Level == nil:
		return nil, errors.New("admin config: Level is not set")
	case cfg.Quit == nil:
		return nil, errors.New("admin config: Quit is not set")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Admin{cfg: cfg}, nil
}

// Handler answers on the localhost address: /config_dump, /logging, /quitquitquit, /debug/pprof/, metrics, and what there is per
// pod below /pods/NAMESPACE/POD/.
func (a *Admin) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /config_dump", a.dump)
	mux.HandleFunc("GET /logging", a.showLevel)
	mux.HandleFunc("POST /logging", a.setLevel)
	mux.HandleFunc("POST /quitquitquit", a.quit)
	a.addMetrics(mux)
	a.addPods(mux)
	mux.HandleFunc("GET /healthz/ready", a.ready)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return localOnly(mux)
}

// StatsHandler answers /metrics and /stats/prometheus.
func (a *Admin) StatsHandler() http.Handler {
	mux := http.NewServeMux()
	a.addMetrics(mux)
	return mux
}

// ReadyHandler answers /healthz/ready: 200 when every check holds, else 503 with what is missing, one a line.
func (a *Admin) ReadyHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz/ready", a.ready)
	return mux
}

// addMetrics serves the metrics under both names, to two readers at a time; others get 503. Every answer under way holds all
// the series, however slowly it is read.
func (a *Admin) addMetrics(mux *http.ServeMux) {
	h := promhttp.HandlerFor(a.cfg.Gatherer, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(a.cfg.Log.Handler(), slog.LevelWarn), EnableOpenMetrics: true,
		MaxRequestsInFlight: maxGathered,
	})
	mux.Handle("GET /metrics", h)
	mux.Handle("GET /stats/prometheus", h)
}

func (a *Admin) ready(w http.ResponseWriter, _ *http.Request) {
	var missing strings.Builder
	for _, c := range a.cfg.Checks {
		if err := c.Ready(); err != nil {
			fmt.Fprintf(&missing, "%s: %v\n", c.Name, err)
		}
	}
	if missing.Len() > 0 {
		http.Error(w, missing.String(), http.StatusServiceUnavailable)
		return
	}
	_, _ = io.WriteString(w, "ready\n")
}

// dump writes one section after the other, element by element: a large mesh is never in memory a second time.
func (a *Admin) dump(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, "{")
	only, written := r.URL.Query()["section"], 0 // all, unless some are named
	for _, s := range a.cfg.Sections {
		if len(only) > 0 && !slices.Contains(only, s.Name) {
			continue
		}
		if written++; written > 1 {
			_, _ = io.WriteString(w, ",")
		}
		fmt.Fprintf(w, "\n%q: [", s.Name)
		separator := "\n"
		for item := range s.Items() {
			text, err := encode(item)
			if err != nil {
				// The status is sent: an error in the place of the element keeps the document valid.
				text, _ = json.Marshal(map[string]string{"error": err.Error()})
			}
			if _, err := fmt.Fprintf(w, "%s%s", separator, text); err != nil {
				return
			}
			separator = ",\n"
		}
		_, _ = io.WriteString(w, "]")
	}
	_, _ = io.WriteString(w, "\n}\n")
}

func encode(item any) ([]byte, error) {
	if m, ok := item.(proto.Message); ok {
		return protojson.Marshal(m)
	}
	return json.Marshal(item)
}

func (a *Admin) showLevel(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Has("level") {
		http.Error(w, "change the level with POST", http.StatusMethodNotAllowed)
		return
	}
	fmt.Fprintf(w, "level: %s\n", strings.ToLower(a.cfg.Level.Level().String()))
}

func (a *Admin) setLevel(w http.ResponseWriter, r *http.Request) {
	var level slog.Level
	asked := r.URL.Query().Get("level")
	if err := level.UnmarshalText([]byte(asked)); err != nil {
		http.Error(w, fmt.Sprintf("level %q is none of debug, info, warn, error", asked), http.StatusBadRequest)
		return
	}
	a.cfg.Level.Set(level)
	a.cfg.Log.Info("log level changed", "level", level.String())
	fmt.Fprintf(w, "level: %s\n", strings.ToLower(level.String()))
}

func (a *Admin) quit(w http.ResponseWriter, _ *http.Request) {
	a.cfg.Log.Info("told to quit by the admin endpoint")
	_, _ = io.WriteString(w, "shutting down\n")
	a.cfg.Quit()
}

// localOnly refuses requests that a web page could have caused.
func localOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !localName(r.Host) {
			http.Error(w, fmt.Sprintf("host %q is not this machine", r.Host), http.StatusForbidden)
			return
		}
		if origin := r.Header.Get("Origin"); origin != "" {
			u, err := url.Parse(origin)
			if err != nil || !localName(u.Host) {
				http.Error(w, fmt.Sprintf("origin %q is not this machine", origin), http.StatusForbidden)
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// localName reports whether a Host header names the loopback, with or without a port.
func localName(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	a, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && a.IsLoopback()
}
