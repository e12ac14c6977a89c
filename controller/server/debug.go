package server

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"

	"github.com/undermesh/undermesh/controller/api/version"
	"github.com/undermesh/undermesh/controller/xds"
)

// SyncPath is where the debug door answers with a SyncStatus.
const SyncPath = "/debug/syncz"

// SyncStatus is what one replica says of its discovery clients.
type SyncStatus struct {
	Replica    string             `json:"replica"` // the pod's name
	Version    string             `json:"version"`
	Generation uint64             `json:"generation"` // of the newest state; each replica counts its own
	Clients    []xds.ClientStatus `json:"clients"`
}

// checkDebugAddr refuses an address that others than this network namespace could reach: what the door shows is the whole
// mesh, and its guard is who may forward ports to this pod.
func checkDebugAddr(addr string) error {
	if addr == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("check server config: DebugAddr: %w", err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("check server config: DebugAddr: %q is not a loopback address", addr)
	}
	return nil
}

// debugHandler is the debug door: who is connected, what is served, and the process's profiles.
func debugHandler(replica string, store *xds.Store, clients func() []xds.ClientStatus) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+SyncPath, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(SyncStatus{Replica: replica, Version: version.Version, Generation: store.Generation(), Clients: clients()})
	})
	mux.HandleFunc("GET "+ServedPath, servedHandler(store))
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return localOnly(mux)
}

// localOnly refuses requests that a browser was led to send: they name another host than this one.
func localOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			http.Error(w, "the debug door answers to localhost only", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}
