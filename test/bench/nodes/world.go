package nodes

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/undermesh/undermesh/test/bench/load"
	"github.com/undermesh/undermesh/test/bench/peer"
	"github.com/undermesh/undermesh/test/bench/process"
	"github.com/undermesh/undermesh/test/netnstest/lab"
)

// The sides of the comparison.
const (
	noMesh = "no mesh"
	ours   = "ours"
	envoy1 = "envoy"        // one beside the client, with everything that both sides do
	envoy2 = "two envoys"   // beside the client and beside the server, plain text between them
	envoyM = "envoy + mTLS" // as two envoys, mutual TLS between them

	same  = "same"
	other = "other"

	namespace = "bench"
	host      = "web.bench.svc.cluster.local"
	virtualIP = "10.96.1."
	h1Port    = 8080 // of the server
	h2Port    = 8081
	policies  = 10 // of which the last matches
	routes    = 50 // so too
)

// side is one way from the client to a server.
type side struct {
	name, place string
	client      *lab.Pod
	h1, h2      string         // what the client dials, host:port
	proxies     [][]int        // processes, the client's side first
	nodes       []*lab.Process // ztunnels whose log proves the path; none: no mesh of ours
}

// world is a lab with the mesh and one without.
type world struct {
	tb     testing.TB
	tool   string // test/bench/l7, for load and servers
	sides  []*side
	pinned bool
}

// build compiles the load tool.
func build(tb testing.TB) string {
	tb.Helper()
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		tb.Fatalf("find repository: %v", err)
	}
	root := filepath.Dir(strings.TrimSpace(string(out)))
	bin := filepath.Join(root, ".cache", "bench", "l7")
	cmd := exec.Command("go", "build", "-o", bin, "./test/bench/l7")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("build load tool: %v: %s", err, out)
	}
	return bin
}

// newWorld starts all sides. envoy is the binary; "": without it.
func newWorld(tb testing.TB, tool, envoy string) *world {
	tb.Helper()
	w := &world{tb: tb, tool: tool, pinned: true}
	bare := lab.New(tb, lab.Config{Bare: true})
	bare.Namespace(namespace, false)
	client, servers := w.pods(bare)
	for place, s := range servers {
		w.sides = append(w.sides, &side{name: noMesh, place: place, client: client, h1: addr(s, h1Port), h2: addr(s, h2Port)})
	}
	if envoy != "" {
		w.envoys(envoy, client, servers)
	}
	w.mesh(lab.New(tb, lab.Config{Ztunnel: []string{"--cpus", "1"}}))
	return w
}

func addr(p *lab.Pod, port uint16) string { return netip.AddrPortFrom(p.Addr, port).String() }

// pods are a client on the first node and a server on each.
func (w *world) pods(l *lab.Lab) (*lab.Pod, map[string]*lab.Pod) {
	w.tb.Helper()
	client := l.Nodes[0].Pod(namespace, "client")
	servers := map[string]*lab.Pod{}
	for i, place := range []string{same, other} {
		s := l.Nodes[i].Pod(namespace, "web-"+place)
		w.serve(s)
		servers[place] = s
	}
	return client, servers
}

// serve starts the servers of a pod.
func (w *world) serve(p *lab.Pod) {
	w.tb.Helper()
	s := p.Start(w.tool, "server", "-h1", fmt.Sprintf(":%d", h1Port), "-h2", fmt.Sprintf(":%d", h2Port))
	w.pin(s, 1)
}

// pin leaves a process one CPU, where the world is pinned and there are several, and returns it and its children.
func (w *world) pin(p *lab.Process, cpu int) []int {
	w.tb.Helper()
	pids := process.Family(p.PID())
	if w.pinned && cpus > 1 {
		if err := process.Pin(pids, cpu); err != nil {
			w.tb.Fatal(err)
		}
	}
	return pids
}

// envoys puts Envoy into the client's pod and the servers'.
func (w *world) envoys(bin string, client *lab.Pod, servers map[string]*lab.Pod) {
	w.tb.Helper()
	certs := w.tb.TempDir()
	if err := load.WriteCertificate(certs, time.Now()); err != nil {
		w.tb.Fatal(err)
	}
	near := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port) }
	at := func(p *lab.Pod, port uint16) netip.AddrPort { return netip.AddrPortFrom(p.Addr, port) }
	start := func(p *lab.Pod, hop1, hop2 peer.Hop) []int {
		hop2.HTTP2 = true
		dir := w.tb.TempDir()
		text, err := peer.Envoy(dir, hop1, hop2)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "envoy.json"), text, 0o600)
		}
		if err != nil {
			w.tb.Fatal(err)
		}
		return w.pin(p.Start(bin, "-c", filepath.Join(dir, "envoy.json"), "--concurrency", "1", "--use-dynamic-base-id", "-l", "error"), 0)
	}
	for _, s := range []struct {
		name, place, certs string
		port               uint16
		hops               int
	}{{envoy1, same, "", 15100, 1}, {envoy2, same, "", 15200, 2}, {envoyM, other, certs, 15300, 2}} {
		server, port := servers[s.place], s.port
		out := &side{name: s.name, place: s.place, client: client, h1: near(port).String(), h2: near(port + 1).String()}
		first := func(p uint16, up netip.AddrPort) peer.Hop {
			return peer.Hop{Listen: near(p), Up: up, Routes: routes, TLSTo: s.certs}
		}
		if s.hops == 1 {
			a, b := first(port, at(server, h1Port)), first(port+1, at(server, h2Port))
			a.Policies, b.Policies = policies, policies
			out.proxies = [][]int{start(client, a, b)}
		} else {
			second := func(p uint16, up netip.AddrPort) peer.Hop {
				return peer.Hop{Listen: at(server, p), Up: up, Routes: 1, Policies: policies, TLSFrom: s.certs}
			}
			out.proxies = [][]int{
				start(client, first(port, at(server, port+2)), first(port+1, at(server, port+3))),
				start(server, second(port+2, near(h1Port)), second(port+3, near(h2Port))),
			}
		}
		w.sides = append(w.sides, out)
	}
}

// mesh is our side.
func (w *world) mesh(l *lab.Lab) {
	w.tb.Helper()
	l.Namespace(namespace, true)
	client, servers := w.pods(l)
	l.Apply("policy", policy())
	var ztunnels [][]int
	var processes []*lab.Process
	for _, n := range l.Nodes {
		ztunnels, processes = append(ztunnels, w.pin(n.Ztunnel, 0)), append(processes, n.Ztunnel)
	}
	for i, place := range []string{same, other} {
		ip := fmt.Sprintf("%s%d", virtualIP, i+1)
		l.Apply("svc-"+place, service("web-"+place, ip))
		l.Apply("vs-"+place, virtualService("web-"+place, routes, 0))
		servers[place].Enrolled(true)
		w.sides = append(w.sides, &side{name: ours, place: place, client: client, h1: ip + ":80", h2: ip + ":81",
			proxies: ztunnels[:i+1], nodes: processes[:i+1]})
	}
	client.Enrolled(true)
}

func service(name, ip string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {name: %s, namespace: %s}
spec:
  clusterIP: %[3]s
  clusterIPs: [%[3]s]
  selector: {app: %[1]s}
  ports: [{name: http, port: 80, targetPort: %[4]d}, {name: http2-grpc, port: 81, targetPort: %[5]d}]
`, name, namespace, ip, h1Port, h2Port)
}

// policy lets the client in by the last of its rules.
func policy() string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: callers, namespace: %s}\nspec:\n  action: ALLOW\n  rules:\n", namespace)
	for i := range policies {
		account := fmt.Sprintf("other%d", i)
		if i == policies-1 {
			account = "client"
		}
		fmt.Fprintf(&b, "  - from: [{source: {principals: [\"cluster.local/ns/%s/sa/%s\"]}}]\n", namespace, account)
	}
	return b.String()
}

// virtualService has n routes as peer.Routes has; generation makes it another one each time.
func virtualService(name string, n, generation int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: %s, namespace: %s}\nspec:\n  hosts: [%[1]s]\n  http:\n", name, namespace)
	for i := range n - 1 {
		match := fmt.Sprintf("uri: {prefix: /svc%d/}", i)
		if i%2 == 0 {
			match = fmt.Sprintf("headers: {x-route: {exact: v%d}}", i)
		}
		fmt.Fprintf(&b, "  - {name: r%d, match: [{%s}], timeout: 15s, route: [{destination: {host: %s}, headers: {request: {set: {x-generation: \"%d\"}}}}]}\n", i, match, name, generation)
	}
	fmt.Fprintf(&b, "  - {name: default-%d, timeout: 15s, route: [{destination: {host: %s}}]}\n", generation, name)
	return b.String()
}
