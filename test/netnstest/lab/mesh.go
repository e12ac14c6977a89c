package lab

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/configdir"
)

const (
	agentReady   = "127.0.0.1:8000"
	ztunnelReady = "127.0.0.1:15021"
	xdsAddr      = "10.99.0.1:15012"
)

// StartController starts the controller on the directory.
func (l *Lab) StartController() {
	l.T.Helper()
	tokens := filepath.Join(l.tmp, "tokens.csv")
	var lines strings.Builder
	for _, n := range l.Nodes {
		fmt.Fprintf(&lines, "%s,system:serviceaccount:%s:ztunnel,node:%s\n", l.token+n.Name, api.DefaultRootNamespace, n.Name)
		l.must(os.WriteFile(filepath.Join(n.dir, "token"), []byte(l.token+n.Name), 0o600))
	}
	l.must(os.WriteFile(tokens, []byte(lines.String()), 0o600))
	l.mesh = l.start("controller", l.fabric, "", nil, filepath.Join(l.bin, "undermesh"), "mesh", "--config", l.Dir,
		"--token-file", tokens, "--xds-addr", xdsAddr, "--write-root", l.rootCert(), "--cert-dir", filepath.Join(l.tmp, "ca"), "--monitor-addr", "127.0.0.1:15014", "--ready-addr", "127.0.0.1:8080")
}

func (l *Lab) rootCert() string { return filepath.Join(l.tmp, "root-cert.pem") }

// publicRoots is the file from which ztunnel takes the roots of servers outside the mesh.
func (l *Lab) publicRoots() string { return filepath.Join(l.tmp, "public-roots.pem") }

// StartAgent starts the node's agent.
func (n *Node) StartAgent() {
	n.lab.T.Helper()
	n.Agent = n.lab.start("agent-"+n.Name, n.NS, filepath.Join(n.cgroup, "system/agent"), nil, filepath.Join(n.lab.bin, "nodeagent"), n.agentArgs()...)
}

func (n *Node) agentArgs() []string {
	return []string{
		"--node-name", n.Name, "--config", n.lab.Dir, "--zds", filepath.Join(n.dir, "zds.sock"),
		"--cni-socket", filepath.Join(n.dir, "cni.sock"), "--cni-digest", filepath.Join(n.dir, "digest.json"),
		"--bpf-pin-dir", n.pins(), "--cgroup-root", n.cgroup, "--netns-dir", filepath.Join(n.dir, "netns"),
		"--metrics-addr", "127.0.0.1:15014", "--ready-addr", agentReady, "--log-level", "debug",
	}
}

// pins is the node's directory on the machine's BPF file system.
func (n *Node) pins() string { return "/sys/fs/bpf/" + filepath.Base(n.lab.tmp) + n.Name }

// StartZtunnel starts the node's proxy.
func (n *Node) StartZtunnel() {
	n.lab.T.Helper()
	n.Ztunnel = n.lab.start("ztunnel-"+n.Name, n.NS, filepath.Join(n.cgroup, "system/ztunnel"), []string{"SSL_CERT_FILE=" + n.lab.publicRoots()}, filepath.Join(n.lab.bin, "ztunnel"), append([]string{
		"--zds", filepath.Join(n.dir, "zds.sock"), "--xds-addr", xdsAddr, "--xds-root", n.lab.rootCert(), "--token", filepath.Join(n.dir, "token"),
		"--node-name", n.Name, "--instance-ip", n.Addr.String(), "--ready-addr", ztunnelReady, "--stats-addr", "127.0.0.1:15020", "--drain-timeout", "2s"}, n.lab.flags...)...)
}

// AwaitReady waits until agent and ztunnel say that they are.
func (n *Node) AwaitReady() {
	n.lab.T.Helper()
	n.lab.Until(20*time.Second, n.Name+"'s agent to be ready", func() error { return n.get("http://" + agentReady + "/readyz") })
	n.lab.Until(20*time.Second, n.Name+"'s ztunnel to be ready", func() error { return n.get("http://" + ztunnelReady + "/healthz/ready") })
}

func (n *Node) get(url string) error {
	out, code := n.lab.run(n.NS, "", 5*time.Second, "curl", "-s", "-m", "3", "-o", "/dev/null", "-w", "%{http_code}", url)
	if code != 0 || out != fmt.Sprint(http.StatusOK) {
		return fmt.Errorf("%s: %q, exit code %d", url, out, code)
	}
	return nil
}

// Metrics reads ztunnel's metrics.
func (n *Node) Metrics() string {
	n.lab.T.Helper()
	out, code := n.lab.run(n.NS, "", 5*time.Second, "curl", "-s", "-m", "3", "http://127.0.0.1:15020/metrics")
	if code != 0 {
		n.lab.T.Fatalf("read metrics of %s: exit code %d: %s", n.Name, code, out)
	}
	return out
}

// Admin asks ztunnel's admin address for a path.
func (n *Node) Admin(path string) (string, error) {
	n.lab.T.Helper()
	out, code := n.lab.run(n.NS, "", 15*time.Second, "curl", "-s", "-m", "12", "http://127.0.0.1:15000"+path)
	if code != 0 {
		return "", fmt.Errorf("ask ztunnel of %s for %s: exit code %d: %s", n.Name, path, code, out)
	}
	return out, nil
}

// Release removes the mesh from the node as "undermesh uninstall" does and fails when something is left.
func (n *Node) Release() {
	n.lab.T.Helper()
	n.Agent.End(syscall.SIGTERM)
	out, code := n.lab.run(n.NS, filepath.Join(n.cgroup, "system/agent"), time.Minute, filepath.Join(n.lab.bin, "nodeagent"), append([]string{"uninstall"}, n.agentArgs()...)...)
	if code != 0 {
		n.lab.T.Errorf("nodeagent uninstall on %s: exit code %d: %s", n.Name, code, out)
	}
}

// Enrolled waits until the agent has written a pod's annotation (or removed it).
func (p *Pod) Enrolled(want bool) {
	p.Node.lab.T.Helper()
	p.Node.lab.must(p.awaitEnrolled(want))
}

func (p *Pod) awaitEnrolled(want bool) error {
	dir := configdir.New(configdir.Config{Dir: p.Node.lab.Dir})
	err := until(20*time.Second, func() error {
		view, err := dir.Load()
		if err != nil {
			return err
		}
		got := podAnnotation(view, p.Namespace, p.Name)
		if (got == api.RedirectionEnabled) != want {
			return fmt.Errorf("annotation is %q", got)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("wait for pod %s/%s to be enrolled: %v: %w", p.Namespace, p.Name, want, err)
	}
	return nil
}
