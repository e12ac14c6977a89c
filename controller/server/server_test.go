package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	cav1 "istio.io/api/security/v1alpha1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/ca"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/configdir"
	"github.com/undermesh/undermesh/controller/status"
	"github.com/undermesh/undermesh/controller/watch"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

const world = `
{apiVersion: v1, kind: Pod, metadata: {name: sleep, namespace: foo, labels: {app: sleep}}, spec: {nodeName: n1, serviceAccountName: sleep, containers: []}, status: {podIP: 10.0.1.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: httpbin, namespace: foo, labels: {app: httpbin}}, spec: {nodeName: n2, serviceAccountName: httpbin, containers: []}, status: {podIP: 10.0.2.1}}
---
{apiVersion: v1, kind: Service, metadata: {name: httpbin, namespace: foo}, spec: {clusterIP: 10.96.0.1, selector: {app: httpbin}, ports: [{name: http, port: 8000, targetPort: 80}]}}
`

const strictYAML = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: foo}
spec: {mtls: {mode: STRICT}}
`

const tokens = "ztunnel-1,system:serviceaccount:istio-system:ztunnel,n1\nztunnel-2,system:serviceaccount:istio-system:ztunnel,n2\nsleep,system:serviceaccount:foo:sleep,n1\n"

// controller is a Server on the loopback over a directory.
type controller struct {
	t    *testing.T
	dir  string
	stop func() error

	registry *prometheus.Registry

	mu    sync.Mutex
	addrs map[string]string // configured address -> the one in use
}

func start(t *testing.T, dir, caDir string, secondStart *controller) *controller {
	t.Helper()
	auth, err := ca.ParseStaticTokens(strings.NewReader(tokens))
	if err != nil {
		t.Fatal(err)
	}
	return startFor(t, dir, caDir, secondStart, auth)
}

func startFor(t *testing.T, dir, caDir string, secondStart *controller, auth ca.Authenticator) *controller {
	t.Helper()
	c := &controller{t: t, dir: dir, addrs: map[string]string{}}
	s, err := New(Config{
		Source: watch.NewDirectory(configdir.New(configdir.Config{Dir: dir})), Clock: clock.System(),
		Listen: func(network, addr string) (net.Listener, error) {
			at := "127.0.0.1:0"
			if secondStart != nil {
				at = secondStart.addr(addr)
			}
			l, err := net.Listen(network, at)
			if err == nil {
				c.mu.Lock()
				c.addrs[addr] = l.Addr().String()
				c.mu.Unlock()
			}
			return l, err
		},
		XDSAddr: "xds", MonitorAddr: "monitor", ReadyAddr: "ready", Status: status.Directory{Dir: dir},
		Authority: &AuthorityConfig{Store: ca.DirStore{Path: caDir}, Authenticator: auth, ServingNames: []string{"istiod.istio-system.svc"}},
		Publish: func(_ context.Context, roots []byte) error {
			return os.WriteFile(filepath.Join(filepath.Dir(caDir), "root.pem"), roots, 0o644)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	c.registry = s.registry
	if missing := s.Missing(); !strings.Contains(missing, "not synchronised") || !strings.Contains(missing, "authority") {
		t.Errorf("before the start it misses %q", missing)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	c.stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() {
		if err := c.stop(); err != nil {
			t.Error(err)
		}
	})
	c.eventually("ready", func() bool { return s.Missing() == "" && len(c.addr("xds")) > 0 })
	return c
}

func (c *controller) addr(name string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.addrs[name]
}

func (c *controller) eventually(what string, ok func() bool) {
	c.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if <-tick.C; time.Now().After(deadline) {
			c.t.Fatalf("never: %s", what)
		}
	}
}

func (c *controller) write(name, text string) {
	c.t.Helper()
	if err := os.WriteFile(filepath.Join(c.dir, name), []byte(text), 0o644); err != nil {
		c.t.Fatal(err)
	}
}

func (c *controller) get(door, path string) (int, string) {
	c.t.Helper()
	resp, err := http.Get("http://" + c.addr(door) + path)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func (c *controller) dial(root string) (*grpc.ClientConn, error) {
	pool := x509.NewCertPool()
	data, err := os.ReadFile(root)
	if err != nil {
		return nil, err
	}
	if !pool.AppendCertsFromPEM(data) {
		return nil, errors.New("the roots are not written yet")
	}
	return grpc.NewClient("passthrough:///"+c.addr("xds"), grpc.WithTransportCredentials(
		credentials.NewTLS(&tls.Config{RootCAs: pool, ServerName: "istiod.istio-system.svc"})))
}

func (c *controller) node(root, token string) *client.Client {
	c.t.Helper()
	cl := client.New(client.Config{
		Dial:   func(context.Context) (*grpc.ClientConn, error) { return c.dial(root) },
		Token:  func(context.Context) (string, error) { return token, nil },
		NodeID: "ztunnel~10.0.0.1~z.istio-system~istio-system.svc.cluster.local", NodeName: "n1", Clock: clock.System(),
		Rand: mathrand.New(mathrand.NewPCG(1, 2)),
	})
	ctx, cancel := context.WithCancel(c.t.Context())
	done := make(chan error, 1)
	go func() { done <- cl.Run(ctx) }()
	c.t.Cleanup(func() { cancel(); <-done })
	return cl
}

func sign(t *testing.T, c *controller, root, token, id string) ([]*x509.Certificate, error) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	uri, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{uri}}, key)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := c.dial(root)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	md, err := structpb.NewStruct(map[string]any{"ImpersonatedIdentity": id})
	if err != nil {
		t.Fatal(err)
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token)
	resp, err := cav1.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx, &cav1.IstioCertificateRequest{
		Csr: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})), Metadata: md})
	if err != nil {
		return nil, err
	}
	var chain []*x509.Certificate
	for _, text := range resp.GetCertChain() {
		block, _ := pem.Decode([]byte(text))
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, cert)
	}
	return chain, nil
}

func TestDirectoryEndToEnd(t *testing.T) {
	dir, base := t.TempDir(), t.TempDir()
	caDir, root := filepath.Join(base, "ca"), filepath.Join(base, "root.pem")
	if err := os.WriteFile(filepath.Join(dir, "world.yaml"), []byte(world), 0o644); err != nil {
		t.Fatal(err)
	}
	c := start(t, dir, caDir, nil)
	c.eventually("root certificates are published", func() bool { _, err := os.Stat(root); return err == nil })
	node := c.node(root, "ztunnel-1")
	c.eventually("a snapshot with both pods", func() bool { return node.Snapshot() != nil && node.Snapshot().WorkloadByName("foo", "httpbin") != nil })
	s := node.Snapshot()
	svc := s.ServiceByIP("", netip.MustParseAddr("10.96.0.1"))
	if svc == nil || len(s.Endpoints(svc)) != 1 || s.Endpoints(svc)[0].GetName() != "httpbin" {
		t.Fatalf("service %v", svc)
	}
	if w := s.WorkloadByIP("", netip.MustParseAddr("10.0.1.1")); w.Identity.String() != "spiffe://cluster.local/ns/foo/sa/sleep" ||
		w.GetTunnelProtocol() != workloadapi.TunnelProtocol_NONE {
		t.Errorf("got %v", w)
	}

	// The agent's annotation makes it HBONE; a policy makes it strict, and says so.
	on := api.RedirectionEnabled
	if err := configdir.WriteOverlay(dir, "agent-n1", configdir.Overlay{APIVersion: "v1", Annotations: map[string]*string{api.AnnotationRedirection: &on},
		Key: configdir.Key{Kind: "Pod", Namespace: "foo", Name: "sleep"}}); err != nil {
		t.Fatal(err)
	}
	c.write("strict.yaml", strictYAML)
	c.eventually("HBONE and STRICT", func() bool {
		w := node.Snapshot().WorkloadByName("foo", "sleep")
		return w.GetTunnelProtocol() == workloadapi.TunnelProtocol_HBONE && w.Settings.GetMtls() == settings.MtlsMode_MTLS_STRICT
	})
	s = node.Snapshot()
	w := s.WorkloadByName("foo", "sleep")
	if p := s.Policies(w); !s.PoliciesComplete(w) || len(p) != 1 || p[0].GetName() != api.StrictPolicyName {
		t.Errorf("policies %v, complete %v", p, s.PoliciesComplete(w))
	}
	c.eventually("status", func() bool {
		data, err := os.ReadFile(filepath.Join(dir, ".status", "peerauthentication_security.istio.io_foo_default_controller.yaml"))
		return err == nil && strings.Contains(string(data), "Enforced")
	})
	if code, body := c.get("ready", "/ready"); code != http.StatusOK {
		t.Error(code, body)
	}
	if _, body := c.get("monitor", "/metrics"); !strings.Contains(body, "undermesh_controller_generation") {
		t.Error("no metrics")
	}

	// Certificates: for the pods on the caller's node, and for nobody else's.
	chain, err := sign(t, c, root, "ztunnel-1", "spiffe://cluster.local/ns/foo/sa/sleep")
	if err != nil || chain[0].URIs[0].String() != "spiffe://cluster.local/ns/foo/sa/sleep" {
		t.Fatal(chain, err)
	}
	for name, x := range map[string]struct {
		token, id string
		code      codes.Code
	}{
		"pod of another node": {"ztunnel-1", "spiffe://cluster.local/ns/foo/sa/httpbin", codes.PermissionDenied},
		"no proxy":            {"sleep", "spiffe://cluster.local/ns/foo/sa/httpbin", codes.PermissionDenied},
		"no such account":     {"ztunnel-1", "spiffe://cluster.local/ns/foo/sa/nobody", codes.PermissionDenied},
		"bad token":           {"guess", "spiffe://cluster.local/ns/foo/sa/sleep", codes.Unauthenticated},
	} {
		if _, err := sign(t, c, root, x.token, x.id); grpcstatus.Code(err) != x.code {
			t.Errorf("%s: %v, want %s", name, err, x.code)
		}
	}
	stranger := c.node(root, "guess")
	c.restart(t, dir, caDir, root, node)
	if stranger.Snapshot() != nil {
		t.Error("a caller with a bad token got a snapshot")
	}
}

// restart: the node keeps its snapshot while no controller is there, and follows the new one, whose root is the old one's.
func (c *controller) restart(t *testing.T, dir, caDir, root string, node *client.Client) {
	before, err := os.ReadFile(root)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.stop(); err != nil {
		t.Fatal(err)
	}
	if node.Snapshot().WorkloadByName("foo", "sleep") == nil {
		t.Error("the node forgot the mesh with its controller")
	}
	if err := os.Remove(filepath.Join(dir, "strict.yaml")); err != nil {
		t.Fatal(err)
	}
	next := start(t, dir, caDir, c)
	next.eventually("the policy's end arrives from the new controller", func() bool {
		return node.Snapshot().WorkloadByName("foo", "sleep").Settings.GetMtls() == settings.MtlsMode_MTLS_PERMISSIVE
	})
	if after, err := os.ReadFile(root); err != nil || string(after) != string(before) {
		t.Error("the root changed", err)
	}
}

func TestConfigNamesWhatIsMissing(t *testing.T) {
	_, err := New(Config{Clock: clock.System(), Source: watch.NewDirectory(configdir.New(configdir.Config{})), Listen: net.Listen, XDSAddr: ":1"})
	if err == nil || !strings.Contains(err.Error(), "Authority: missing") {
		t.Error(err)
	}
}
