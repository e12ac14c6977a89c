package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// teapot is what /status/418 answers: 135 bytes.
const teapot = "\n    -=[ teapot ]=-\n\n       _...._\n     .'  _ _ `.\n    | .\"` ^ `\". _,\n    \\_;`\"---\"`|//\n      |       ;/\n" +
	"      \\_     _/\n        `\"\"\"`\n"

// Bounds of what a request may ask for.
const (
	maxDelay = 10 * time.Second
	maxBytes = 100 << 10
	maxBody  = 16 << 20
)

// httpbin answers like the image kennethreitz/httpbin behind gunicorn. It takes gunicorn's arguments, as manifests give them:
// only -b (--bind) counts.
func httpbin(ctx context.Context, args []string) error {
	addr := ":80"
	for i, a := range args {
		if v, ok := strings.CutPrefix(a, "--bind="); ok {
			addr = v
		}
		if (a == "-b" || a == "--bind") && i+1 < len(args) {
			addr = args[i+1]
		}
	}
	if host, port, err := net.SplitHostPort(addr); err == nil && host == "0.0.0.0" {
		addr = ":" + port
	}
	return serve(ctx, addr, accessLog(os.Stdout, httpbinHandler()))
}

// serve runs an HTTP server, of HTTP/1.1 and of HTTP/2 with prior knowledge, until ctx ends; requests under way have a moment to end.
func serve(ctx context.Context, addr string, h http.Handler) error {
	s := &http.Server{Addr: addr, Handler: h, ReadHeaderTimeout: 30 * time.Second, Protocols: &http.Protocols{}}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	return run(ctx, s, addr, s.ListenAndServe)
}

// run runs what serves s until ctx ends.
func run(ctx context.Context, s *http.Server, addr string, listen func() error) error {
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if s.Shutdown(grace) != nil {
			s.Close()
		}
	}()
	err := listen()
	if errors.Is(err, http.ErrServerClosed) {
		<-stopped
		return nil
	}
	return fmt.Errorf("serve HTTP on %s: %w", addr, err)
}

func httpbinHandler() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, h http.HandlerFunc) { mux.HandleFunc(pattern, h) }
	handle("GET /headers", func(w http.ResponseWriter, r *http.Request) { reply(w, map[string]any{"headers": headers(r)}) })
	handle("GET /ip", func(w http.ResponseWriter, r *http.Request) { reply(w, map[string]any{"origin": origin(r)}) })
	handle("GET /user-agent", func(w http.ResponseWriter, r *http.Request) {
		reply(w, map[string]any{"user-agent": r.UserAgent()})
	})
	handle("GET /get", func(w http.ResponseWriter, r *http.Request) {
		reply(w, describe(r, "args", "headers", "origin", "url"))
	})
	body := []string{"args", "data", "files", "form", "headers", "json", "origin", "url"}
	for _, m := range []string{"POST", "PUT", "PATCH", "DELETE"} {
		handle(m+" /"+strings.ToLower(m), func(w http.ResponseWriter, r *http.Request) { reply(w, describe(r, body...)) })
	}
	anything := append([]string{"method"}, body...)
	handle("/anything", func(w http.ResponseWriter, r *http.Request) { reply(w, describe(r, anything...)) })
	handle("/anything/", func(w http.ResponseWriter, r *http.Request) { reply(w, describe(r, anything...)) })
	handle("/status/{codes}", status)
	handle("/delay/{seconds}", func(w http.ResponseWriter, r *http.Request) {
		if delay(w, r) {
			reply(w, describe(r, "args", "data", "files", "form", "headers", "origin", "url"))
		}
	})
	handle("GET /bytes/{n}", randomBytes)
	handle("GET /stream/{n}", stream)
	handle("GET /redirect/{n}", redirect)
	handle("GET /response-headers", responseHeaders)
	handle("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprint(w, "<!DOCTYPE html>\n<html lang=\"en\"><head><title>httpbin.org</title></head><body><h1>httpbin.org</h1></body></html>\n")
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Server", "gunicorn/19.9.0")
		h.Set("Access-Control-Allow-Origin", "*")
		h.Set("Access-Control-Allow-Credentials", "true")
		if o := r.Header.Get("Origin"); o != "" {
			h.Set("Access-Control-Allow-Origin", o)
		}
		mux.ServeHTTP(w, r)
	})
}

func reply(w http.ResponseWriter, v any) {
	var buf bytes.Buffer
	e := json.NewEncoder(&buf)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(buf.Len()))
	_, _ = w.Write(buf.Bytes()) // the client may be gone
}

func headers(r *http.Request) map[string]string {
	out := map[string]string{"Host": r.Host}
	for k, v := range r.Header {
		out[k] = strings.Join(v, ",")
	}
	return out
}

func origin(r *http.Request) string {
	if f := r.Header.Get("X-Forwarded-For"); f != "" {
		return f
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return strings.TrimPrefix(host, "::ffff:")
}

// flat gives single values as strings and several as lists, as httpbin does.
func flat(m map[string][]string) map[string]any {
	out := map[string]any{}
	for k, v := range m {
		if len(v) == 1 {
			out[k] = v[0]
			continue
		}
		out[k] = v
	}
	return out
}

// describe returns those of httpbin's fields about the request that are asked for.
func describe(r *http.Request, fields ...string) map[string]any {
	all := map[string]any{"args": flat(r.URL.Query()), "headers": headers(r), "origin": origin(r), "method": r.Method,
		"data": "", "files": map[string]any{}, "form": map[string]any{}, "json": nil}
	scheme := "http"
	if p := r.Header.Get("X-Forwarded-Proto"); p != "" {
		scheme = p
	}
	all["url"] = scheme + "://" + r.Host + r.URL.RequestURI()
	r.Body = http.MaxBytesReader(nil, r.Body, maxBody)
	kind := r.Header.Get("Content-Type")
	switch {
	case strings.HasPrefix(kind, "application/x-www-form-urlencoded"):
		if r.ParseForm() == nil {
			all["form"] = flat(r.PostForm)
		}
	case strings.HasPrefix(kind, "multipart/form-data"):
		if r.ParseMultipartForm(maxBody) == nil {
			all["form"] = flat(r.MultipartForm.Value)
			all["files"] = uploads(r)
		}
	default:
		if b, err := io.ReadAll(r.Body); err == nil {
			all["data"] = text(b)
			var v any
			if json.Unmarshal(b, &v) == nil {
				all["json"] = v
			}
		}
	}
	out := map[string]any{}
	for _, f := range fields {
		out[f] = all[f]
	}
	return out
}

func uploads(r *http.Request) map[string]any {
	out := map[string]any{}
	for name, files := range r.MultipartForm.File {
		f, err := files[0].Open()
		if err != nil {
			continue
		}
		if b, err := io.ReadAll(f); err == nil {
			out[name] = text(b)
		}
		f.Close()
	}
	return out
}

// text keeps what is not text readable, as httpbin does.
func text(b []byte) string {
	if strings.ToValidUTF8(string(b), "") == string(b) {
		return string(b)
	}
	return "data:application/octet-stream;base64," + base64.StdEncoding.EncodeToString(b)
}

// status answers /status/CODE or one of /status/CODE:WEIGHT,CODE:WEIGHT.
func status(w http.ResponseWriter, r *http.Request) {
	code, ok := choose(r.PathValue("codes"))
	if !ok {
		http.Error(w, "Invalid status code", http.StatusBadRequest)
		return
	}
	h := w.Header()
	body := ""
	switch code {
	case 301, 302, 303, 305, 307:
		h.Set("Location", "/redirect/1")
	case 401:
		h.Set("WWW-Authenticate", `Basic realm="Fake Realm"`)
	case 407:
		h.Set("Proxy-Authenticate", `Basic realm="Fake Realm"`)
	case 418:
		h.Set("X-More-Info", "http://tools.ietf.org/html/rfc2324")
		body = teapot
	}
	if body == "" {
		h.Set("Content-Type", "text/html; charset=utf-8")
	}
	if code >= 200 && code != 204 && code != 304 {
		h.Set("Content-Length", strconv.Itoa(len(body)))
	}
	w.WriteHeader(code)
	if r.Method != http.MethodHead {
		_, _ = io.WriteString(w, body) // the client may be gone
	}
}

func choose(list string) (int, bool) {
	var codes []int
	var weights []float64
	var sum float64
	for _, item := range strings.Split(list, ",") {
		c, wt, weighted := strings.Cut(item, ":")
		code, err := strconv.Atoi(c)
		if err != nil || code < 200 || code > 599 {
			return 0, false
		}
		weight := 1.0
		if weighted {
			if weight, err = strconv.ParseFloat(wt, 64); err != nil || weight < 0 {
				return 0, false
			}
		}
		codes, weights, sum = append(codes, code), append(weights, weight), sum+weight
	}
	at := rand.Float64() * sum
	for i, wt := range weights {
		if at -= wt; at < 0 {
			return codes[i], true
		}
	}
	return codes[len(codes)-1], true
}

// delay waits as the path says, at most 10 s, and tells whether the client is still there.
func delay(w http.ResponseWriter, r *http.Request) bool {
	seconds, err := strconv.ParseFloat(r.PathValue("seconds"), 64)
	if err != nil || seconds < 0 {
		http.NotFound(w, r)
		return false
	}
	t := time.NewTimer(min(maxDelay, time.Duration(seconds*float64(time.Second))))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-r.Context().Done():
		return false
	}
}

// count reads the path's number, at most limit.
func count(w http.ResponseWriter, r *http.Request, limit int) (int, bool) {
	n, err := strconv.Atoi(r.PathValue("n"))
	if err != nil || n < 0 {
		http.NotFound(w, r)
		return 0, false
	}
	return min(n, limit), true
}

func randomBytes(w http.ResponseWriter, r *http.Request) {
	n, ok := count(w, r, maxBytes)
	if !ok {
		return
	}
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(n))
	_, _ = w.Write(b) // the client may be gone
}

func stream(w http.ResponseWriter, r *http.Request) {
	n, ok := count(w, r, 100)
	if !ok {
		return
	}
	w.Header().Set("Content-Type", "application/json")
	v := describe(r, "url", "args", "headers", "origin")
	for i := range n {
		v["id"] = i
		if json.NewEncoder(w).Encode(v) != nil || http.NewResponseController(w).Flush() != nil {
			return
		}
	}
}

func redirect(w http.ResponseWriter, r *http.Request) {
	n, ok := count(w, r, 100)
	if !ok {
		return
	}
	to := "/get"
	if n > 1 {
		to = fmt.Sprintf("/redirect/%d", n-1)
	}
	w.Header().Set("Location", to)
	w.WriteHeader(http.StatusFound)
}

func responseHeaders(w http.ResponseWriter, r *http.Request) {
	for k, vs := range r.URL.Query() {
		for _, v := range vs {
			w.Header().Add(k, v)
		}
	}
	reply(w, flat(r.URL.Query()))
}

// recorder notes what was answered.
type recorder struct {
	http.ResponseWriter
	code, bytes int
}

func (r *recorder) WriteHeader(code int) {
	if r.code == 0 {
		r.code = code
	}
	r.ResponseWriter.WriteHeader(code)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.code == 0 {
		r.code = http.StatusOK
	}
	n, err := r.ResponseWriter.Write(b)
	r.bytes += n
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// accessLog writes one line a request in gunicorn's format.
func accessLog(out io.Writer, next http.Handler) http.Handler {
	var mu sync.Mutex
	orDash := func(s string) string {
		if s == "" {
			return "-"
		}
		return s
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := &recorder{ResponseWriter: w}
		next.ServeHTTP(rec, r)
		host, _, err := net.SplitHostPort(r.RemoteAddr)
		if err != nil {
			host = r.RemoteAddr
		}
		line := fmt.Sprintf("%s - - [%s] \"%s %s %s\" %d %d \"%s\" \"%s\"\n", strings.TrimPrefix(host, "::ffff:"),
			time.Now().Format("02/Jan/2006:15:04:05 -0700"), r.Method, r.URL.RequestURI(), r.Proto, max(rec.code, http.StatusOK),
			rec.bytes, orDash(r.Referer()), orDash(r.UserAgent()))
		mu.Lock()
		defer mu.Unlock()
		_, _ = io.WriteString(out, line) // nobody to tell when the log is gone
	})
}

// helloworld says which version and pod answered; SERVICE_VERSION names the version.
func helloworld(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("helloworld", flag.ContinueOnError)
	addr := flags.String("addr", ":5000", "address to serve on")
	if err := flags.Parse(args); err != nil {
		return fmt.Errorf("parse arguments: %w", err)
	}
	instance, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("read host name: %w", err)
	}
	version := os.Getenv("SERVICE_VERSION")
	if version == "" {
		version = "unknown"
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /hello", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "Hello version: %s, instance: %s\n", version, instance)
	})
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "Helloworld is healthy") })
	return serve(ctx, *addr, accessLog(os.Stdout, mux))
}
