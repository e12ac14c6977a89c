package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// shutdownGrace is how long an HTTP request may go on after the stop.
const shutdownGrace = 3 * time.Second

// How long who asks may take. A scraper asks again within the idle time.
const (
	readHeader   = 5 * time.Second // and the handshake
	readRequest  = 10 * time.Second
	writeAnswer  = 30 * time.Second // from the request's header on
	writeProfile = 0                // as long as who asked for it said: the debug door is for the operator
	idleHTTP     = 2 * time.Minute
	scrapesNow   = 8
	maxHeaders   = 16 << 10 // bytes
)

// serveHTTP serves until ctx ends, then lets requests finish.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler, write time.Duration) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: readHeader, ReadTimeout: readRequest, WriteTimeout: write, IdleTimeout: idleHTTP,
		MaxHeaderBytes: maxHeaders, BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) }}
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
		defer cancel()
		stopped <- srv.Shutdown(grace)
	}()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return <-stopped
}

// readyHandler answers 200 when nothing is missing, else 503 and what is. Without the API server a replica is ready with what
// it knew last, and says since when that is.
func readyHandler(missing func() string, stale func() time.Duration) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		if what := missing(); what != "" {
			http.Error(w, what, http.StatusServiceUnavailable)
			return
		}
		if age := stale(); age > 0 {
			fmt.Fprintf(w, "ready with what was known %d s ago: the API server does not answer\n", int(age.Seconds()))
			return
		}
		fmt.Fprintln(w, "ready")
	})
	return mux
}

func monitorHandler(reg *prometheus.Registry) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{MaxRequestsInFlight: scrapesNow}))
	return mux
}
