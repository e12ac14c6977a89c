// Package envoy runs the real Envoy under the controller's own delta ADS server, so that tests can ask it whether it takes
// what was compiled and what it would do with it.
//
// Invariants: everything is on unix sockets of one directory; no Envoy outlives the test that started it.
package envoy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3" // of the bootstrap
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/xds"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// Env names the binary. When it is set, a test that cannot run it fails; otherwise tests that need it are skipped.
const Env = "MESH_TEST_ENVOY"

// Types that Envoy asks for beside those of controller/api.
const (
	ListenerType = "type.googleapis.com/envoy.config.listener.v3.Listener"
	EndpointType = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
)

// startLimit is how long Envoy may take to load its first resources. Here it takes 60 ms.
const startLimit = 30 * time.Second

// Envoy is one running process.
type Envoy struct {
	Dir    string // short: a unix socket's path has at most 107 bytes
	server *xds.Server
	store  *xds.Store
	admin  *http.Client
	log    string
	serial uint64
}

// Require returns the binary, or skips the test.
func Require(t testing.TB) string {
	t.Helper()
	path := os.Getenv(Env)
	if path == "" {
		t.Skipf("set %s to an Envoy, or run make test-envoy", Env)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s: %v", Env, err)
	}
	return path
}

// bootstrapText has three clients of Envoy's kind in its own zone a, and one in zone b.
const bootstrapText = `{
 "node": {"id": "oracle", "cluster": "oracle", "locality": {"zone": "a"}},
 "cluster_manager": {"local_cluster_name": "clients"},
 "admin": {"address": {"pipe": {"path": %q}}},
 "dynamic_resources": {
  "ads_config": {"api_type": "DELTA_GRPC", "transport_api_version": "V3", "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}]},
  "cds_config": {"ads": {}, "resource_api_version": "V3"},
  "lds_config": {"ads": {}, "resource_api_version": "V3"}},
 "static_resources": {"clusters": [{
  "name": "xds", "type": "STATIC", "connect_timeout": "1s",
  "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
   "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": {"http2_protocol_options": {}}}},
  "load_assignment": {"cluster_name": "xds", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": %q}}}}]}]}},
  {"name": "clients", "type": "STATIC", "load_assignment": {"cluster_name": "clients", "endpoints": [
   {"locality": {"zone": "a"}, "lb_endpoints": [
    {"endpoint": {"address": {"socket_address": {"address": "127.2.0.1", "port_value": 1}}}},
    {"endpoint": {"address": {"socket_address": {"address": "127.2.0.2", "port_value": 1}}}},
    {"endpoint": {"address": {"socket_address": {"address": "127.2.0.3", "port_value": 1}}}}]},
   {"locality": {"zone": "b"}, "lb_endpoints": [
    {"endpoint": {"address": {"socket_address": {"address": "127.2.0.4", "port_value": 1}}}}]}]}}]}
}`

// Start runs Envoy with the resources and waits until it serves them. What they refer to must be among them, or it waits in
// vain. It ends with the test.
func Start(t testing.TB, first []xds.Resource) *Envoy { return StartThreads(t, 1, first) }

// StartThreads is Start for an Envoy with so many worker threads.
func StartThreads(t testing.TB, threads int, first []xds.Resource) *Envoy {
	t.Helper()
	binary := Require(t)
	dir, err := os.MkdirTemp("", "envoy")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	e := &Envoy{Dir: dir, store: xds.NewStore(xds.StoreConfig{Clock: clock.System()}), log: filepath.Join(dir, "log")}
	e.server = xds.NewServer(xds.Config{Store: e.store, Clock: clock.System(),
		Types: []string{api.ClusterType, api.RouteType, ListenerType, EndpointType}})
	e.Apply(t, first, nil)
	e.serve(t)
	e.admin = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", e.Path("admin"))
	}}}
	e.run(t, binary, threads)
	return e
}

// Path is that of a socket.
func (e *Envoy) Path(name string) string { return filepath.Join(e.Dir, name) }

func (e *Envoy) serve(t testing.TB) {
	t.Helper()
	l, err := net.Listen("unix", e.Path("xds"))
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	e.server.Register(srv)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() {
		srv.Stop()
		if err := <-done; err != nil {
			t.Error("serve discovery:", err)
		}
	})
}

func (e *Envoy) run(t testing.TB, binary string, threads int) {
	t.Helper()
	text := fmt.Sprintf(bootstrapText, e.Path("admin"), e.Path("xds"))
	if err := protojson.Unmarshal([]byte(text), &bootstrap.Bootstrap{}); err != nil {
		t.Fatal("bootstrap:", err)
	}
	config := e.Path("bootstrap.json")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(e.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(binary, "-c", config, "--concurrency", strconv.Itoa(threads), "--disable-hot-restart", "-l", "warn",
		"--file-flush-interval-msec", "20")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal("start Envoy:", err)
	}
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-exited
	})
	live := func() bool {
		b, err := e.Admin("/ready")
		return err == nil && bytes.HasPrefix(b, []byte("LIVE"))
	}
	ctx, stop := context.WithTimeout(t.Context(), startLimit)
	defer stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !live() {
		select {
		case <-tick.C:
		case <-exited:
			t.Fatalf("Envoy ended: %s", e.Log())
		case <-ctx.Done():
			t.Fatalf("Envoy is not live after %s: refused %q, log %s", startLimit, e.Refused(), e.Log())
		}
	}
}

// Apply changes what Envoy is served.
func (e *Envoy) Apply(t testing.TB, upserts []xds.Resource, removed []xds.Key) {
	t.Helper()
	e.serial++
	if err := e.store.Apply(e.serial, upserts, removed); err != nil {
		t.Fatal(err)
	}
}

// Refused lists what Envoy did not take, by type.
func (e *Envoy) Refused() []string {
	var out []string
	for _, c := range e.server.Clients() {
		for typ, s := range c.Types {
			if s.Rejected > 0 {
				out = append(out, typ+": "+s.LastError)
			}
		}
	}
	slices.Sort(out)
	return out
}

// Settled waits until Envoy has answered to all that it was sent, or the limit passes.
func (e *Envoy) Settled(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	want := e.serial
	for {
		clients := e.server.Clients()
		if len(clients) == 1 && answered(clients[0], want) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.New("Envoy did not answer to all that it was sent")
		}
	}
}

func answered(c xds.ClientStatus, want uint64) bool {
	done := false
	for _, s := range c.Types {
		done = done || s.SentGeneration >= want && (s.AckedGeneration >= want || s.Rejected > 0)
	}
	return done
}

// Admin asks the admin interface.
func (e *Envoy) Admin(path string) ([]byte, error) {
	resp, err := e.admin.Get("http://admin" + path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

// Log is what Envoy wrote, warnings and worse.
func (e *Envoy) Log() string {
	b, err := os.ReadFile(e.log)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b))
}
