package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// fortioServer serves /echo and /debug on port 8080.
func fortioServer(ctx context.Context) error {
	return serve(ctx, ":8080", fortioHandler(rand.Float64))
}

func fortioHandler(chance func() float64) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug", debugPage)
	mux.HandleFunc("/debug/", debugPage)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fortioEcho(w, r, chance) })
	return mux
}

// fortioEcho sends the body back. The query may ask for status=CODE[:PERCENT,…], delay=DURATION[:PERCENT,…], size=BYTES,
// header=NAME:VALUE and close=true.
func fortioEcho(w http.ResponseWriter, r *http.Request, chance func() float64) {
	q := r.URL.Query()
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if d, err := time.ParseDuration(drawn(q.Get("delay"), "0s", chance())); err == nil && d > 0 {
		t := time.NewTimer(min(d, maxDelay))
		defer t.Stop()
		select {
		case <-t.C:
		case <-r.Context().Done():
			return
		}
	}
	for _, h := range q["header"] {
		if name, value, ok := strings.Cut(h, ":"); ok {
			w.Header().Add(name, strings.TrimSpace(value))
		}
	}
	if q.Get("close") == "true" {
		w.Header().Set("Connection", "close")
	}
	if n, err := strconv.Atoi(q.Get("size")); err == nil && n >= 0 {
		body = []byte(strings.Repeat("x", min(n, maxBody)))
	}
	status, err := strconv.Atoi(drawn(q.Get("status"), "200", chance()))
	if err != nil || status < 200 || status > 599 {
		status = http.StatusBadRequest
	}
	if kind := r.Header.Get("Content-Type"); kind != "" {
		w.Header().Set("Content-Type", kind)
	}
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client may be gone
}

// drawn picks from "VALUE" or "VALUE:PERCENT,VALUE:PERCENT"; what the percentages leave is fallback.
func drawn(list, fallback string, at float64) string {
	if list == "" {
		return fallback
	}
	for _, item := range strings.Split(list, ",") {
		value, percent, weighted := strings.Cut(item, ":")
		if !weighted {
			return value
		}
		p, err := strconv.ParseFloat(percent, 64)
		if err != nil {
			return value
		}
		if at -= p / 100; at < 0 {
			return value
		}
	}
	return fallback
}

// debugPage tells what was asked.
func debugPage(w http.ResponseWriter, r *http.Request) {
	pod, err := os.Hostname()
	if err != nil {
		pod = "?"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Φορτίο version 1.3.1 echo debug server on %s - request from %s\n\n%s %s %s\n\nheaders:\n\nHost: %s\n",
		pod, r.RemoteAddr, r.Method, r.URL.RequestURI(), r.Proto, r.Host)
	var names []string
	for name := range r.Header {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(&b, "%s: %s\n", name, strings.Join(r.Header[name], ","))
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	fmt.Fprintf(&b, "\nbody:\n\n%s\n", body)
	w.Header().Set("Content-Type", "text/plain; charset=UTF-8")
	_, _ = io.WriteString(w, b.String()) // the client may be gone
}
