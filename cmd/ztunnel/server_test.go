package main

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/ca"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/configdir"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/server"
	"github.com/undermesh/undermesh/controller/watch"
	"github.com/undermesh/undermesh/test/netnstest"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

const podYAML = `
apiVersion: v1
kind: Pod
metadata:
  name: NAME
  namespace: foo
  uid: uid-NAME
  annotations: {ambient.istio.io/redirection: enabled}
spec:
  nodeName: n1
  serviceAccountName: NAME
  containers: [{name: app, image: app}]
status:
  phase: Running
  podIP: ADDR
  podIPs: [{ip: ADDR}]
  conditions: [{type: Ready, status: "True"}]
`

func writePod(t *testing.T, dir, name, addr string) {
	t.Helper()
	text := strings.NewReplacer("NAME", name, "ADDR", addr).Replace(podYAML)
	must(t, os.WriteFile(filepath.Join(dir, "config", name+".yaml"), []byte(text), 0o600))
}

// startRealController runs the controller on dir/config until stop; it writes dir/root.pem and dir/token.
func startRealController(t *testing.T, dir string) (addr string, stop func()) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Join(dir, "config"), 0o700))
	must(t, os.WriteFile(filepath.Join(dir, "token"), []byte("tok"), 0o600))
	tokens, err := ca.ParseStaticTokens(strings.NewReader("tok,system:serviceaccount:istio-system:ztunnel,node:n1\n"))
	must(t, err)
	addr = freeAddr(t)
	log := slog.New(slog.DiscardHandler)
	s, err := server.New(server.Config{
		Source: watch.NewDirectory(configdir.New(configdir.Config{Dir: filepath.Join(dir, "config"), Log: log, Clock: clock.System()})),
		Compile: compile.Config{
			Mesh:             model.Mesh{TrustDomain: api.DefaultTrustDomain, RootNamespace: api.DefaultRootNamespace},
			InstallNamespace: api.DefaultRootNamespace, ClusterDomain: api.DefaultClusterDomain, ClusterID: api.DefaultClusterID,
		},
		Index: watch.NewIndex(), Log: log, Clock: clock.System(), Listen: net.Listen, XDSAddr: addr,
		Authority: &server.AuthorityConfig{
			Store: ca.DirStore{Path: filepath.Join(dir, "ca")}, Authenticator: tokens, ServingNames: []string{"istiod.istio-system.svc"},
		},
		Publish: func(_ context.Context, roots []byte) error {
			return os.WriteFile(filepath.Join(dir, "root.pem"), roots, 0o600)
		},
	})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return addr, stop
}

// The node follows the real controller: first snapshot, a live change, and an outage that changes nothing.
func TestFollowsTheController(t *testing.T) {
	dir := t.TempDir()
	addr, stop := startRealController(t, dir)
	writePod(t, dir, "sleep", "10.0.0.1")
	serveZDS(t, dir)
	p := startZtunnel(t, dir, addr)
	p.await("readiness", p.isReady)
	knows := func(name string) func() bool {
		return func() bool {
			_, body := p.get(p.admin, "/config_dump")
			return strings.Contains(body, `"Kubernetes//Pod/foo/`+name+`"`) && strings.Contains(body, `"HBONE"`)
		}
	}
	p.await("the first pod", knows("sleep"))
	writePod(t, dir, "later", "10.0.0.2")
	p.await("a pod that came later", knows("later"))
	stop()
	p.await("the end of the stream", func() bool { return strings.Contains(p.out.String(), "controller stream ended") })
	if !p.isReady() || !knows("later")() {
		t.Error("an outage of the controller made the node forget")
	}
}

// A pod's certificate comes from the real CA, and serves on while the controller is away, also after a crash of the worker
// as far as that is possible: without a certificate nobody is answered.
func TestCertificateOfTheController(t *testing.T) {
	netnstest.Require(t)
	dir := t.TempDir()
	addr, stop := startRealController(t, dir)
	writePod(t, dir, "sleep", "10.0.0.1")
	ns := podOf(t, dir)
	p := startZtunnel(t, dir, addr)
	p.await("readiness", p.isReady)
	p.await("the pod's certificate", func() bool {
		_, body := p.get(p.admin, "/config_dump")
		return strings.Contains(body, `"state":"Available"`)
	})
	foreign := startController(t, t.TempDir())
	stranger := foreign.certFor("spiffe://cluster.local/ns/foo/sa/sleep")
	served := func() bool {
		leaf, err := tunnelTo(ns, stranger) // refused for its root, but only after the server has proved itself
		return err != nil && strings.Contains(err.Error(), "remote error: tls") && leaf != nil && len(leaf.URIs) == 1 &&
			leaf.URIs[0].String() == "spiffe://cluster.local/ns/foo/sa/sleep"
	}
	if !served() {
		t.Error("the pod does not prove its identity")
	}
	stop()
	if !served() {
		t.Error("the pod does not prove its identity while the controller is away")
	}
	first := p.worker()
	must(t, syscall.Kill(first, syscall.SIGKILL))
	p.await("another worker", func() bool { return p.worker() != first })
	if leaf, err := tunnelTo(ns, stranger); err == nil || leaf != nil {
		t.Errorf("a worker without a certificate answered: %v, %v", leaf, err)
	}
}
