package bench

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/undermesh/undermesh/nodeagent/netns"
	"github.com/undermesh/undermesh/test/bench/load"
	"github.com/undermesh/undermesh/test/netnstest/lab"
)

// The sides of the comparison.
const (
	noMesh     = "no mesh"
	permissive = "PERMISSIVE"
	strict     = "STRICT"
	tlsPerConn = "TLS/conn"
	peerEnvoy  = "Envoy"
	peerRust   = "Istio ztunnel"

	sameNode  = "same"
	otherNode = "other"
	byPod     = "pod IP"
	byService = "ClusterIP"

	echoPort, sinkPort         = 9000, 9001
	tlsInEcho, tlsInSink       = 19000, 19001 // in the server's pod
	tlsOutEcho, tlsOutSink     = 18000, 18001 // in the client's pod, for the server on the same node
	tlsOtherEcho, tlsOtherSink = 17000, 17001 // ... on the other node
)

// side is one way from the client to a server.
type side struct {
	mesh, place, addr string

	client  *lab.Pod
	host    string // where to connect
	echo    int    // port
	sink    int
	proxies []*lab.Process // whose CPU and memory count
	nodes   []*lab.Node    // whose counters prove the path; none: no mesh
	missing string         // why it cannot be measured
}

func (s *side) name() string { return s.place + "/" + s.addr + "/" + s.mesh }

// world is two labs beside each other, one with the mesh.
type world struct {
	tb      testing.TB
	loadgen string
	labs    []*lab.Lab
	sides   []*side
}

// newWorld starts everything and checks nothing.
func newWorld(tb testing.TB, loadgen string) *world {
	tb.Helper()
	w := &world{tb: tb, loadgen: loadgen}
	w.plain()
	w.mesh()
	for _, peer := range []struct{ name, env string }{{peerEnvoy, "ENVOY"}, {peerRust, "ZTUNNEL"}} {
		why := "not given (" + peer.env + "=path)"
		if os.Getenv(peer.env) != "" {
			why = peer.env + " is given, but this bench cannot run it yet: not implemented"
		}
		for _, place := range []string{sameNode, otherNode} {
			w.sides = append(w.sides, &side{mesh: peer.name, place: place, addr: byPod, missing: why})
		}
	}
	return w
}

// servers are a client on the first node and a server on each, in one namespace.
type servers struct {
	client *lab.Pod
	at     map[string]*lab.Pod // by place
}

func (w *world) servers(l *lab.Lab, client *lab.Pod, namespace string) servers {
	w.tb.Helper()
	s := servers{client: client, at: map[string]*lab.Pod{sameNode: l.Nodes[0].Pod(namespace, "server-same"), otherNode: l.Nodes[1].Pod(namespace, "server-other")}}
	for _, p := range s.at {
		p.Start(w.loadgen, "serve", "-echo", fmt.Sprintf(":%d", echoPort), "-sink", fmt.Sprintf(":%d", sinkPort))
	}
	return s
}

// serviceIP is the ClusterIP of a side's server.
func serviceIP(mesh, place string) string {
	n := map[string]int{noMesh: 10, permissive: 20, strict: 30}[mesh]
	if place == otherNode {
		n++
	}
	return fmt.Sprintf("10.96.0.%d", n)
}

// plain is the side without a mesh, and with TLS per connection. A rule of the node stands for kube-proxy.
func (w *world) plain() {
	w.tb.Helper()
	l := lab.New(w.tb, lab.Config{Bare: true})
	w.labs = append(w.labs, l)
	l.Namespace("plain", false)
	s := w.servers(l, l.Nodes[0].Pod("plain", "client"), "plain")
	rules := "table ip bench { chain pre { type nat hook prerouting priority -100; policy accept;\n"
	for place, p := range s.at {
		w.sides = append(w.sides,
			&side{mesh: noMesh, place: place, addr: byPod, client: s.client, host: p.Addr.String(), echo: echoPort, sink: sinkPort},
			&side{mesh: noMesh, place: place, addr: byService, client: s.client, host: serviceIP(noMesh, place), echo: echoPort, sink: sinkPort})
		rules += fmt.Sprintf("ip daddr %s dnat to %s\n", serviceIP(noMesh, place), p.Addr)
	}
	// Both pods of a node are on one link: without a change of source the answer would not pass the node's NAT.
	rules += fmt.Sprintf("}\nchain post { type nat hook postrouting priority 100; policy accept;\nip saddr %s ip daddr %s masquerade\n}\n}\n",
		s.client.Addr, s.at[sameNode].Addr)
	if err := nft(l.Nodes[0].NS, rules); err != nil {
		for _, side := range w.sides {
			if side.addr == byService {
				side.missing = err.Error()
			}
		}
	}
	w.tls(l, s)
}

// tls puts a proxy before each server and one beside the client, in their pods as the mesh's listeners are.
func (w *world) tls(l *lab.Lab, s servers) {
	w.tb.Helper()
	dir := w.tb.TempDir()
	if err := load.WriteCertificate(dir, time.Now()); err != nil {
		w.tb.Fatal(err)
	}
	out := map[string][2]int{sameNode: {tlsOutEcho, tlsOutSink}, otherNode: {tlsOtherEcho, tlsOtherSink}}
	for place, p := range s.at {
		in := p.Start(w.loadgen, "tls-in", "-dir", dir, fmt.Sprintf(":%d=127.0.0.1:%d", tlsInEcho, echoPort), fmt.Sprintf(":%d=127.0.0.1:%d", tlsInSink, sinkPort))
		from := s.client.Start(w.loadgen, "tls-out", "-dir", dir,
			fmt.Sprintf("127.0.0.1:%d=%s:%d", out[place][0], p.Addr, tlsInEcho), fmt.Sprintf("127.0.0.1:%d=%s:%d", out[place][1], p.Addr, tlsInSink))
		w.sides = append(w.sides, &side{mesh: tlsPerConn, place: place, addr: byPod, client: s.client, host: "127.0.0.1",
			echo: out[place][0], sink: out[place][1], proxies: []*lab.Process{in, from}})
	}
}

// mesh is our side: one client, servers in a PERMISSIVE and in a STRICT namespace.
func (w *world) mesh() {
	w.tb.Helper()
	l := lab.New(w.tb, lab.Config{})
	w.labs = append(w.labs, l)
	modes := map[string]string{permissive: "bench-permissive", strict: "bench-strict"}
	for mode, namespace := range modes {
		l.Namespace(namespace, true)
		l.Apply("mode-"+namespace, fmt.Sprintf("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: %s}\nspec: {mtls: {mode: %s}}\n", namespace, mode))
	}
	client := l.Nodes[0].Pod(modes[permissive], "client")
	var all []*lab.Pod
	for mode, namespace := range modes {
		s := w.servers(l, client, namespace)
		for place, p := range s.at {
			l.Apply("svc-"+namespace+"-"+place, fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {name: %s, namespace: %s}
spec:
  clusterIP: %[3]s
  clusterIPs: [%[3]s]
  selector: {app: %[1]s}
  ports: [{name: tcp-echo, port: %[4]d, targetPort: %[4]d}, {name: tcp-sink, port: %[5]d, targetPort: %[5]d}]
`, p.Name, namespace, serviceIP(mode, place), echoPort, sinkPort))
			for addr, host := range map[string]string{byPod: p.Addr.String(), byService: serviceIP(mode, place)} {
				w.sides = append(w.sides, &side{mesh: mode, place: place, addr: addr, client: client, host: host, echo: echoPort, sink: sinkPort,
					proxies: []*lab.Process{l.Nodes[0].Ztunnel, l.Nodes[1].Ztunnel}, nodes: l.Nodes})
			}
			all = append(all, p)
		}
	}
	for _, p := range append(all, client) {
		p.Enrolled(true)
	}
}

// nft loads rules in a namespace.
func nft(ns *netns.NetNS, rules string) error {
	var out bytes.Buffer
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewBufferString(rules), &out, &out
	if err := ns.Do(cmd.Start); err != nil {
		return fmt.Errorf("start nft: %w", err)
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("load rules: %w: %s", err, out.String())
	}
	return nil
}

// buildLoadgen compiles the load tool; every side runs the same one.
func buildLoadgen(tb testing.TB, root string) string {
	tb.Helper()
	bin := filepath.Join(root, ".cache", "bench", "loadgen")
	cmd := exec.Command("go", "build", "-o", bin, "./test/bench/loadgen")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("build loadgen: %v: %s", err, out)
	}
	return bin
}
