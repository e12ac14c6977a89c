package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/undermesh/undermesh/cmd/memory"
	"github.com/undermesh/undermesh/controller/ca"
	"github.com/undermesh/undermesh/controller/server"
	"github.com/undermesh/undermesh/controller/watch"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// What parent and child agree on: names in the child's directory, and the name in the certificate.
const (
	rootFile    = "root.pem"
	doorsFile   = "doors.json"
	servingName = "istiod.istio-system.svc"
)

// mostClients have tokens.
const mostClients = 4096

// tokenOf is that of client i, which is the proxy of a node of its own.
func tokenOf(i int) string { return "token-" + strconv.Itoa(i) }

func tokenList() string {
	var b strings.Builder
	for i := range mostClients {
		fmt.Fprintf(&b, "%s,system:serviceaccount:istio-system:ztunnel,%s\n", tokenOf(i), nodeName(i))
	}
	return b.String()
}

// doors are the addresses of the child.
type doors struct{ XDS, Control string }

// usage is what the controller has used since its start.
type usage struct {
	CPU   time.Duration
	Heap  uint64 // bytes that the last collection found alive, and what was allocated since
	Count uint32 // of collections
}

// serve runs the controller, assembled as cmd/controller does it, until ctx ends: the informers on the API server at api,
// the CA in dir, discovery over TLS. Only the review of tokens is a list instead of the API server's.
func serve(ctx context.Context, api, dir string, log *slog.Logger) error {
	memory.Tune()
	rc := &rest.Config{Host: api, QPS: 80, Burst: 160}
	client, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	dyn, err := dynamic.NewForConfig(rc)
	if err != nil {
		return fmt.Errorf("make dynamic client: %w", err)
	}
	tokens, err := ca.ParseStaticTokens(strings.NewReader(tokenList()))
	if err != nil {
		return err
	}
	xds, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	control, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	ready := make(chan struct{})
	s, err := server.New(server.Config{
		Source: watch.NewKubernetes(watch.KubeConfig{Client: client, Dynamic: dyn, Namespace: "istio-system", Log: log}),
		Index:  watch.NewIndex(), Log: log, Clock: clock.System(), XDSAddr: "xds",
		Listen: func(string, string) (net.Listener, error) { return xds, nil },
		Authority: &server.AuthorityConfig{Store: ca.DirStore{Path: filepath.Join(dir, "ca")}, Authenticator: tokens,
			Direct: client, ServingNames: []string{servingName}},
		Publish: func(_ context.Context, roots []byte) error {
			select {
			case <-ready:
				return nil
			default:
				defer close(ready)
				return os.WriteFile(filepath.Join(dir, rootFile), roots, 0o600)
			}
		},
	})
	if err != nil {
		return err
	}
	page := &http.Server{Handler: controlHandler(s)}
	go func() { _ = page.Serve(control) }()
	defer page.Close()
	go func() {
		<-ready
		raw, err := json.Marshal(doors{xds.Addr().String(), "http://" + control.Addr().String()})
		if err == nil {
			err = writeFile(filepath.Join(dir, doorsFile), raw)
		}
		if err != nil {
			log.Error("tell the doors", "err", err)
		}
	}()
	return s.Run(ctx)
}

// writeFile is all or nothing for a reader.
func writeFile(path string, raw []byte) error {
	if err := os.WriteFile(path+".new", raw, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// controlHandler answers what the bench asks the controller's process: what it has used, whether it is ready, profiles.
func controlHandler(s interface{ Missing() string }) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/usage", func(w http.ResponseWriter, _ *http.Request) {
		var ru syscall.Rusage
		var mem runtime.MemStats
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		runtime.ReadMemStats(&mem)
		_ = json.NewEncoder(w).Encode(usage{time.Duration(ru.Utime.Nano() + ru.Stime.Nano()), mem.HeapAlloc, mem.NumGC})
	})
	mux.HandleFunc("/ready", func(w http.ResponseWriter, _ *http.Request) {
		if missing := s.Missing(); missing != "" {
			http.Error(w, missing, http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	return mux
}
