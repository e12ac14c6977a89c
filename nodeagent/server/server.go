// Package server is the node agent's front: the socket that the CNI plugin asks, readiness, metrics, and the log of the
// kernel's decisions. It decides nothing itself.
package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/undermesh/undermesh/cni/wire"
	"github.com/undermesh/undermesh/nodeagent/enroll"
	"github.com/undermesh/undermesh/nodeagent/zds"
)

// pods is what the front needs of enroll.Manager.
type pods interface {
	Add(ctx context.Context, a enroll.Attachment) (enroll.Decision, error)
	Del(ctx context.Context, a enroll.Attachment)
	Check(ctx context.Context, a enroll.Attachment) error
	GC(ctx context.Context, valid []string)
}

// Config configures the CNI server.
type Config struct {
	Socket string       // path, mode 0600; default wire.DefaultSocket
	Pods   pods         // required
	Log    *slog.Logger // required
	// Ready returns why pods of the mesh cannot be enrolled now; nil when they can. Required.
	Ready func() error
	// AddTimeout bounds one ADD; default 25 s, below the plugin's own bound so that it gets the reason.
	AddTimeout time.Duration
	// Metrics registers the server's metrics; nil registers none.
	Metrics prometheus.Registerer
}

// Server answers the CNI plugin.
type Server struct {
	cfg      Config
	duration *prometheus.HistogramVec
}

// New returns a server; Run starts it. It panics when metrics of its names are registered already.
func New(cfg Config) *Server {
	if cfg.Socket == "" {
		cfg.Socket = wire.DefaultSocket
	}
	if cfg.AddTimeout == 0 {
		cfg.AddTimeout = 25 * time.Second
	}
	s := &Server{cfg: cfg, duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "undermesh_cni_command_seconds", Help: "Duration of CNI commands by command and result.",
		Buckets: prometheus.ExponentialBuckets(0.001, 2.5, 12)}, []string{"command", "result"})}
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(s.duration)
	}
	return s
}

// Run serves until ctx ends, lets commands under way finish for up to 5 s and returns nil. The dead socket stays: a
// plugin that finds nobody there uses the digest.
func (s *Server) Run(ctx context.Context) error {
	ln, err := listen(s.cfg.Socket)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: s.Handler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		MaxHeaderBytes: 16 << 10}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(ln) }()
	s.cfg.Log.Info("CNI plugin is served", "socket", s.cfg.Socket)
	select {
	case err := <-ended:
		return fmt.Errorf("serve CNI plugin: %w", err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := srv.Shutdown(stop); err != nil {
		_ = srv.Close() // their plugins fail and the runtime tries again
	}
	<-ended
	return nil
}

// listen makes the socket under a temporary name, so that nobody connects before its mode is set.
func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("create directory of the CNI socket: %w", err)
	}
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove stale socket: %w", err)
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen for the CNI plugin: %w", err)
	}
	ln.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(tmp, 0o600), os.Rename(tmp, path)); err != nil {
		_ = ln.Close()
		return nil, fmt.Errorf("publish CNI socket: %w", err)
	}
	return ln, nil
}

// command runs one CNI command.
type command func(ctx context.Context, r wire.Request) (wire.Response, error)

// Handler returns the HTTP side, for tests and Run.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	for path, c := range map[string]command{
		wire.PathAdd: s.add, wire.PathDel: s.del, wire.PathCheck: s.check, wire.PathStatus: s.status, wire.PathGC: s.gc,
	} {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, filepath.Base(path), c) })
	}
	return mux
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request, name string, c command) {
	start := time.Now()
	var req wire.Request
	var resp wire.Response
	code := http.StatusOK
	err := wire.ReadJSON(http.MaxBytesReader(w, r.Body, wire.MaxBody), &req)
	if err != nil {
		code = http.StatusBadRequest
	} else if resp, err = c(r.Context(), req); err != nil {
		code = status(err)
	}
	result := "ok"
	log := s.cfg.Log.With("command", name, "pod", req.Pod(), "uid", req.PodUID, "dur", time.Since(start))
	if err != nil {
		resp.Error, result = err.Error(), "error"
		log.Warn("CNI command refused", "err", err)
	} else {
		log.Debug("CNI command", "enrolled", resp.Enrolled, "why", resp.Why)
	}
	s.duration.WithLabelValues(name, result).Observe(time.Since(start).Seconds())
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if err := json.NewEncoder(w).Encode(resp); err != nil {
		log.Warn("CNI plugin did not take its answer", "err", err)
	}
}

func status(err error) int {
	switch {
	case errors.Is(err, enroll.ErrPodGone):
		return http.StatusNotFound
	case errors.Is(err, zds.ErrNoZtunnel):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

func attachment(r wire.Request) enroll.Attachment {
	return enroll.Attachment{Namespace: r.PodNamespace, Name: r.PodName, UID: r.PodUID, ContainerID: r.ContainerID,
		Netns: r.Netns, IPs: r.IPs}
}

func (s *Server) add(ctx context.Context, r wire.Request) (wire.Response, error) {
	if r.PodNamespace == "" || r.PodName == "" || r.Netns == "" {
		return wire.Response{}, fmt.Errorf("add pod %s: podNamespace, podName and netns are needed", r.Pod())
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.AddTimeout)
	defer cancel()
	d, err := s.cfg.Pods.Add(ctx, attachment(r))
	return wire.Response{Enrolled: d.Enrolled && err == nil, Why: d.Why}, err
}

func (s *Server) del(ctx context.Context, r wire.Request) (wire.Response, error) {
	// The runtime may hang up before the kernel is clean.
	s.cfg.Pods.Del(context.WithoutCancel(ctx), attachment(r))
	return wire.Response{}, nil
}

func (s *Server) check(ctx context.Context, r wire.Request) (wire.Response, error) {
	return wire.Response{}, s.cfg.Pods.Check(ctx, attachment(r))
}

func (s *Server) status(context.Context, wire.Request) (wire.Response, error) {
	return wire.Response{}, s.cfg.Ready()
}

func (s *Server) gc(ctx context.Context, r wire.Request) (wire.Response, error) {
	s.cfg.Pods.GC(ctx, r.Valid)
	return wire.Response{}, nil
}
