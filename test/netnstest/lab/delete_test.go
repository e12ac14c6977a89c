package lab

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/undermesh/undermesh/cni/wire"
)

// end takes the pod away as a container runtime does: its processes, CNI DEL through the real plugin, its link. Its
// object stays: the control plane does not know yet. It returns how long DEL took.
func (p *Pod) end(processes ...*Process) time.Duration {
	l := p.Node.lab
	l.T.Helper()
	for _, proc := range processes {
		proc.Kill()
	}
	start := time.Now()
	cmd := exec.Command(filepath.Join(l.bin, "undermesh-cni"))
	cmd.Env = []string{"CNI_COMMAND=DEL", "CNI_CONTAINERID=" + p.UID, "CNI_NETNS=" + p.NS.Path(), "CNI_IFNAME=eth0", "CNI_PATH=/opt/cni/bin",
		fmt.Sprintf("CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=%s;K8S_POD_NAME=%s;K8S_POD_UID=%s", p.Namespace, p.Name, p.UID)}
	cmd.Stdin = strings.NewReader(fmt.Sprintf(`{"cniVersion":"1.0.0","name":"lab","type":%q,"socket":%q,"digest":%q}`,
		wire.PluginType, filepath.Join(p.Node.dir, "cni.sock"), filepath.Join(p.Node.dir, "digest.json")))
	if out, err := cmd.CombinedOutput(); err != nil {
		l.T.Errorf("DEL of %s: %v: %s", p.Name, err, out)
	}
	took := time.Since(start)
	l.must(p.NS.Do(func() error {
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(eth)
	}))
	return took
}

const deletedService = `apiVersion: v1
kind: Service
metadata: {name: web, namespace: foo}
spec: {clusterIP: 10.97.0.30, clusterIPs: [10.97.0.30], selector: {app: web}, ports: [{name: http, port: 8080}]}
`

// TestDeletedPods: pods end one after the other, on the clients' node and on another, under load; the control plane hears of each
// much later than its network goes. No request fails, nor waits for what cannot come; DEL is quick, and does not need agent or ztunnel.
func TestDeletedPods(t *testing.T) {
	l := New(t, Config{})
	l.Namespace("foo", true)
	one, two := l.Nodes[0], l.Nodes[1]
	kept, fresh := one.Labelled("foo", "kept", "app: kept"), one.Labelled("foo", "fresh", "app: fresh")
	type server struct {
		*Pod
		web *Process
	}
	var servers []server
	for i, n := range []*Node{two, one, two, two, one} {
		p := n.Labelled("foo", fmt.Sprintf("web%d", i), "app: web")
		servers = append(servers, server{p, p.Start("samples", "echo", "8080")})
	}
	l.Apply("svc-web", deletedService)
	all := []*Pod{kept, fresh}
	for _, s := range servers {
		all = append(all, s.Pod)
	}
	for _, p := range all {
		p.Enrolled(true)
	}
	const url = "http://10.97.0.30:8080/?delay=10ms"
	for _, p := range []*Pod{kept, fresh} {
		for range 10 {
			l.Until(15*time.Second, "web to answer", func() error {
				if got := p.Curl(url, "-m", "1"); got != "200 0" {
					return fmt.Errorf("%s", got)
				}
				return nil
			})
		}
	}
	clients := []*Process{kept.Start("samples", "load", "-keep", "-rate", "60", "-url", url), fresh.Start("samples", "load", "-rate", "60", "-url", url)}
	pause := func(d time.Duration) { <-time.After(d) }
	pause(time.Second)
	for _, s := range servers[:3] {
		if d := s.end(s.web); d > 2*time.Second {
			t.Errorf("DEL of %s took %v", s.Name, d)
		}
		pause(time.Second) // the mesh goes on to call it healthy
		l.Delete("pod-foo-" + s.Name)
		pause(300 * time.Millisecond)
	}
	for i, c := range clients {
		c.End(syscall.SIGTERM)
		var report struct {
			New struct {
				Started, OK, Failed int
				MaxMS               float64
				Failures            []any
			}
		}
		lines := bytes.Split(bytes.TrimSpace([]byte(c.Output())), []byte("\n"))
		var err error
		for _, line := range lines {
			if bytes.HasPrefix(line, []byte(`{"startMS"`)) {
				err = json.Unmarshal(line, &report)
			}
		}
		if r := report.New; err != nil || r.OK < 100 || r.Failed > 0 {
			t.Errorf("client %d: %d requests, %d right, %d failed: %v, %v", i, r.Started, r.OK, r.Failed, r.Failures, err)
		}
		t.Logf("client %d: %d requests, at most %.0f ms", i, report.New.OK, report.New.MaxMS)
	}
	t.Run("without ztunnel", func(t *testing.T) {
		two.Ztunnel.Kill()
		if d := servers[3].end(servers[3].web); d > 3*time.Second {
			t.Errorf("DEL took %v", d)
		}
	})
	t.Run("without the agent", func(t *testing.T) {
		one.Agent.Kill()
		if d := servers[4].end(servers[4].web); d > time.Second {
			t.Errorf("DEL took %v", d)
		}
	})
}
