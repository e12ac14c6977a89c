package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/undermesh/undermesh/cni/plugin"
	"github.com/undermesh/undermesh/cni/wire"
	"github.com/undermesh/undermesh/nodeagent/netns"
	"github.com/undermesh/undermesh/nodeagent/zds"
	"github.com/undermesh/undermesh/test/netnstest"
)

const bound = 20 * time.Second // of every wait

// TestMain lets the test binary be the CNI plugins of the chain, by the name under which it is run.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "static-primary":
		skel.PluginMainFuncs(skel.CNIFuncs{Add: primaryAdd, Del: nothing, Check: nothing, GC: nothing, Status: nothing},
			version.All, "gives the pod the address that is configured")
	case wire.PluginType:
		skel.PluginMainFuncs(plugin.Funcs(context.Background()), plugin.Versions(), "under test")
	default:
		os.Exit(m.Run())
	}
}

func nothing(*skel.CmdArgs) error { return nil }

// primaryAdd is a primary plugin for pods whose link the test has made: K8S_POD_NAME ends in the last byte of the address.
func primaryAdd(args *skel.CmdArgs) error {
	name := ""
	for _, kv := range strings.Split(args.Args, ";") {
		if v, ok := strings.CutPrefix(kv, "K8S_POD_NAME="); ok {
			name = v
		}
	}
	_, last, _ := strings.Cut(name, "-")
	one := 1
	r := &current.Result{CNIVersion: "1.0.0",
		Interfaces: []*current.Interface{{Name: "host0"}, {Name: "eth0", Sandbox: args.Netns}},
		IPs:        []*current.IPConfig{{Interface: &one, Address: net.IPNet{IP: net.ParseIP("10.94.0." + last), Mask: net.CIDRMask(24, 32)}}}}
	return types.PrintResult(r, "1.0.0")
}

// proxy is a ztunnel that answers each connection with the kind of the listener that took it.
type proxy struct {
	t    *testing.T
	mu   sync.Mutex
	pods map[string]zds.Workload
	serv map[string][]net.Listener
	adds map[string]int
}

func (p *proxy) Add(_ context.Context, w zds.Workload) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.adds[w.UID]++
	if old, ok := p.pods[w.UID]; ok {
		if len(w.Listeners) == 0 {
			w.Listeners = old.Listeners
			old.Listeners = nil
		}
		old.Close()
	}
	p.stopLocked(w.UID)
	p.pods[w.UID] = w
	for kind, f := range w.Listeners {
		ln, err := net.FileListener(f)
		if err != nil {
			return err
		}
		p.serv[w.UID] = append(p.serv[w.UID], ln)
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				_, _ = c.Write([]byte(kind.String()))
				_ = c.Close()
			}
		}()
	}
	return nil
}

func (p *proxy) stopLocked(uid string) {
	for _, ln := range p.serv[uid] {
		_ = ln.Close()
	}
	delete(p.serv, uid)
}

func (p *proxy) Del(_ context.Context, uid string, _ bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopLocked(uid)
	if w, ok := p.pods[uid]; ok {
		w.Close()
		delete(p.pods, uid)
	}
	return nil
}

func (p *proxy) Keep(string)                        {}
func (p *proxy) SnapshotSent(context.Context) error { return nil }
func (p *proxy) Held() []zds.Workload {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []zds.Workload
	for _, w := range p.pods {
		out = append(out, w)
	}
	return out
}

func (p *proxy) has(uid string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	w, ok := p.pods[uid]
	return ok && len(w.Listeners) == 4
}

func (p *proxy) count(uid string) int { p.mu.Lock(); defer p.mu.Unlock(); return p.adds[uid] }

// node is one machine with pods in directory mode.
type node struct {
	t      *testing.T
	o      options
	dir    string // of YAML
	host   *netns.NetNS
	bridge string
	proxy  *proxy
	log    *slog.Logger
	cache  string // of CNI results
	stop   func()
	kill   func() // of the proxy: nothing of it stays
}

const primary = "{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"lab\",\n  \"plugins\": [ {\"type\": \"static-primary\"} ]\n}\n"

func newNode(t *testing.T) *node {
	netnstest.Require(t)
	group := netnstest.Cgroup(t, netnstest.Cgroup2(t), "agt")
	home := ownCgroup(t)
	app := netnstest.Cgroup(t, group, "app")
	netnstest.Cgroup(t, group, "proxy")
	proxies, err := os.ReadDir(group)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, dir: t.TempDir(), cache: t.TempDir(), host: netnstest.Netns(t), log: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	run := t.TempDir()
	n.o = options{nodeName: "n1", configDir: n.dir, zds: filepath.Join(run, "zds.sock"), cniSocket: filepath.Join(run, "cni.sock"),
		cniDigest: filepath.Join(run, "digest.json"), cniBinary: executable(t), cniBinDir: filepath.Join(run, "bin"),
		cniConfDir: filepath.Join(run, "net.d"), bpfPinDir: filepath.Join(netnstest.BPFFS(t), "undermesh"), runDir: filepath.Join(run, "run"),
		cgroupRoot: group, kubeletPort: 10250, procRoot: "/proc", netnsDir: filepath.Join(run, "netns"), excluded: []string{"kube-system"},
		propagation: 50 * time.Millisecond}
	for _, e := range proxies {
		if strings.HasPrefix(e.Name(), "proxy") {
			n.o.ztunnelCgroup = strings.TrimPrefix(filepath.Join(group, e.Name()), netnstest.Cgroup2(t))
		}
	}
	for _, d := range []string{n.o.cniBinDir, n.o.cniConfDir} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(executable(t), filepath.Join(n.o.cniBinDir, "static-primary")); err != nil {
		t.Fatal(err)
	}
	n.write(filepath.Join(n.o.cniConfDir, "10-lab.conflist"), primary)
	n.bridge = netnstest.Bridge(t, n.host, "agt", netip.MustParsePrefix("10.94.0.1/24"))
	n.write(n.dir+"/foo.yaml", namespace("foo", "istio-injection: enabled"))
	n.write(n.dir+"/legacy.yaml", namespace("legacy", ""))
	join(t, app)
	t.Cleanup(func() { join(t, filepath.Join(netnstest.Cgroup2(t), home)) })
	t.Cleanup(func() {
		if err := uninstall(context.Background(), n.o, n.log); err != nil {
			t.Errorf("uninstall: %v", err)
		}
	})
	return n
}

func executable(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

func ownCgroup(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "0::"); ok {
			return strings.TrimSpace(rest)
		}
	}
	t.Fatal("process is in no cgroup2")
	return ""
}

func join(t *testing.T, dir string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0); err != nil {
		t.Fatalf("join %s: %v", dir, err)
	}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func namespace(name, label string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: %s, labels: {%s}}\n", name, label)
}

func (n *node) write(path, data string) {
	n.t.Helper()
	if err := os.WriteFile(path+".tmp", []byte(data), 0o644); err != nil {
		n.t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		n.t.Fatal(err)
	}
}

// start runs the agent until stop or the end of the test.
func (n *node) start() {
	n.t.Helper()
	ctx, cancel := context.WithCancel(n.t.Context())
	done := make(chan error, 1)
	go func() { done <- run(ctx, n.o, n.log) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			n.t.Errorf("agent: %v", err)
		}
	})
	n.t.Cleanup(n.stop)
	n.await("plugin is chained", func() bool {
		data, err := os.ReadFile(filepath.Join(n.o.cniConfDir, "10-lab.conflist"))
		return err == nil && strings.Contains(string(data), wire.PluginType)
	})
}

func (n *node) startProxy() {
	n.proxy = &proxy{t: n.t, pods: map[string]zds.Workload{}, serv: map[string][]net.Listener{}, adds: map[string]int{}}
	c := zds.NewClient(zds.ClientConfig{Path: n.o.zds, Log: n.log, Handler: n.proxy})
	ctx, cancel := context.WithCancel(n.t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	h := n.proxy
	n.kill = sync.OnceFunc(func() {
		cancel()
		<-done
		for _, w := range h.Held() {
			_ = h.Del(context.Background(), w.UID, true)
		}
	})
	n.t.Cleanup(n.kill)
}

func (n *node) await(what string, ok func() bool) {
	n.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(bound)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			n.t.Fatalf("not within %s: %s", bound, what)
		}
	}
}

// pod is a sandbox with its attachment.
type pod struct {
	ns   *netns.NetNS
	rt   *libcni.RuntimeConf
	addr netip.Addr
}

// sandbox makes a pod's file, namespace and link; ADD is the test's. name is LETTER-LASTBYTE.
func (n *node) sandbox(ns, name string) *pod {
	n.t.Helper()
	_, last, _ := strings.Cut(name, "-")
	p := &pod{ns: netnstest.Netns(n.t), addr: netip.MustParseAddr("10.94.0." + last)}
	netnstest.Veth(n.t, n.host, n.bridge, "agt", p.ns, []netip.Prefix{netip.PrefixFrom(p.addr, 24)}, netip.MustParseAddr("10.94.0.1"))
	n.write(n.dir+"/"+ns+"-"+name+".yaml", fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: %s}\nspec: {nodeName: n1, containers: [{name: c, image: i}]}\nstatus: {podIP: %s}\n", name, ns, p.addr))
	if err := os.MkdirAll(n.o.netnsDir, 0o755); err != nil {
		n.t.Fatal(err)
	}
	path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), p.ns.FD())
	if err := os.Symlink(path, filepath.Join(n.o.netnsDir, "cni-"+ns+name)); err != nil {
		n.t.Fatal(err)
	}
	n.pause(p.ns, ns+"_"+name)
	p.rt = &libcni.RuntimeConf{ContainerID: "c-" + ns + name, NetNS: path, IfName: "eth0", Args: [][2]string{{"IgnoreUnknown", "1"},
		{"K8S_POD_NAMESPACE", ns}, {"K8S_POD_NAME", name}, {"K8S_POD_INFRA_CONTAINER_ID", "c-" + ns + name}}}
	return p
}

// pause runs a process in the pod's namespace and cgroup until the test ends, as a container runtime does.
func (n *node) pause(ns *netns.NetNS, uid string) {
	n.t.Helper()
	all := filepath.Join(n.o.cgroupRoot, "kubepods")
	dir := filepath.Join(all, "pod"+uid)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		n.t.Fatal(err)
	}
	group, err := os.Open(dir)
	if err != nil {
		n.t.Fatal(err)
	}
	defer group.Close()
	cmd := exec.Command("sleep", "infinity")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd())}
	if err := ns.Do(cmd.Start); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		_ = errors.Join(cmd.Process.Kill(), cmd.Wait())
		n.await("cgroup of "+uid+" is removed", func() bool { return os.Remove(dir) == nil })
		_ = os.Remove(all) // the last pod's does it
	})
}

func (n *node) chain() (*libcni.CNIConfig, *libcni.NetworkConfigList) {
	n.t.Helper()
	list, err := libcni.ConfListFromFile(filepath.Join(n.o.cniConfDir, "10-lab.conflist"))
	if err != nil {
		n.t.Fatal(err)
	}
	return libcni.NewCNIConfigWithCacheDir([]string{n.o.cniBinDir}, n.cache, nil), list
}

func (n *node) add(p *pod) error {
	n.t.Helper()
	cni, list := n.chain()
	res, err := cni.AddNetworkList(n.t.Context(), list, p.rt)
	if err != nil {
		return err
	}
	r, err := current.NewResultFromResult(res)
	if err != nil || len(r.IPs) != 1 || r.IPs[0].Address.IP.String() != p.addr.String() || len(r.Interfaces) != 2 {
		n.t.Errorf("prevResult was changed: %v %v", res, err)
	}
	return nil
}

// ask connects from ns and returns what the other side says, or the error's text.
func ask(ns *netns.NetNS, to string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	c, err := netns.Dial(ctx, ns, netip.MustParseAddrPort(to), netns.Options{})
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	b, err := io.ReadAll(c)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// app serves port 80 in a namespace and says "APP".
func (n *node) app(ns *netns.NetNS) {
	n.t.Helper()
	f, err := netns.Listen(ns, 80, 16, netns.Options{ReuseAddr: true})
	if err != nil {
		n.t.Fatal(err)
	}
	ln, err := net.FileListener(f)
	if err != nil {
		n.t.Fatal(err)
	}
	_ = f.Close()
	n.t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("APP"))
			_ = c.Close()
		}
	}()
}

func (n *node) want(ns *netns.NetNS, to, answer string) {
	n.t.Helper()
	if got := ask(ns, to); got != answer {
		n.t.Errorf("%s answered %q, want %q", to, got, answer)
	}
}

// TestNode_SI01_SI02_CN08 goes through a node's life with the real kernel, the real CNI chain and a ztunnel that says
// which listener took a connection.
func TestNode_SI01_SI02_CN08(t *testing.T) {
	n := newNode(t)
	n.start()
	n.startProxy()
	mesh, legacy := n.sandbox("foo", "a-5"), n.sandbox("legacy", "l-7")
	n.app(mesh.ns)
	n.app(legacy.ns)
	for _, p := range []*pod{mesh, legacy} {
		if err := n.add(p); err != nil {
			t.Fatal(err)
		}
	}
	// ADD returned: captured in both directions, the pod outside not.
	n.want(mesh.ns, "10.94.0.7:80", "OUTBOUND")
	n.want(legacy.ns, "10.94.0.5:80", "INBOUND")
	n.want(legacy.ns, "10.94.0.5:15008", "TUNNEL")
	n.want(n.host, "10.94.0.7:80", "APP")
	cni, list := n.chain()
	for _, p := range []*pod{mesh, legacy} {
		if err := cni.CheckNetworkList(t.Context(), list, p.rt); err != nil {
			t.Errorf("CHECK: %v", err)
		}
	}
	annotation := filepath.Join(n.dir, ".status")
	n.await("annotation", func() bool { return anyFile(annotation, "ambient.istio.io/redirection: enabled") })

	late := n.sandbox("legacy", "o-6")
	n.app(late.ns)
	label := func(inject string) {
		n.write(n.dir+"/legacy-o-6.yaml", fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: o-6, namespace: legacy, labels: {sidecar.istio.io/inject: %q}}\n"+
			"spec: {nodeName: n1, containers: [{name: c, image: i}]}\nstatus: {podIP: 10.94.0.6}\n", inject))
	}
	t.Run("agent away", func(t *testing.T) {
		n.stop()
		label("true")
		if err := n.add(late); err != nil {
			t.Errorf("a pod of a namespace outside the mesh did not start: %v", err)
		}
		n.want(mesh.ns, "10.94.0.7:80", "OUTBOUND")
		n.want(legacy.ns, "10.94.0.5:80", "INBOUND")
		if err := n.add(n.sandbox("legacy", "m-8")); err != nil {
			t.Errorf("a pod outside the mesh did not start: %v", err)
		}
		err := n.add(n.sandbox("foo", "x-9"))
		if err == nil || !strings.Contains(err.Error(), "foo/x-9") {
			t.Errorf("a mesh pod started without the agent, or the error does not name it: %v", err)
		}
	})
	t.Run("agent back", func(t *testing.T) {
		before := n.proxy.count("foo_a-5")
		n.start()
		n.await("ztunnel has the pod again", func() bool { return n.proxy.count("foo_a-5") > before && n.proxy.has("foo_a-5") })
		n.want(mesh.ns, "10.94.0.7:80", "OUTBOUND")
		n.want(legacy.ns, "10.94.0.5:80", "INBOUND")
		n.await("a pod that its own label enrols is captured, late", func() bool {
			return ask(legacy.ns, "10.94.0.6:80") == "INBOUND" && ask(late.ns, "10.94.0.7:80") == "OUTBOUND"
		})
		label("false")
	})
	t.Run("agent and ztunnel away", func(t *testing.T) {
		n.stop()
		n.kill()
		// Nobody holds a listener: fails closed, in both directions.
		for from, to := range map[*netns.NetNS]string{mesh.ns: "10.94.0.7:80", legacy.ns: "10.94.0.5:80"} {
			if got := ask(from, to); got == "APP" {
				t.Errorf("%s was reached round the mesh", to)
			}
		}
		n.start()
		n.startProxy()
		n.await("ztunnel has the pod", func() bool { return n.proxy.has("foo_a-5") })
		n.want(mesh.ns, "10.94.0.7:80", "OUTBOUND")
		n.want(legacy.ns, "10.94.0.5:80", "INBOUND")
	})
	t.Run("SI-02 live un-enrolment", func(t *testing.T) {
		n.write(n.dir+"/foo.yaml", namespace("foo", ""))
		n.await("application answers itself", func() bool { return ask(legacy.ns, "10.94.0.5:80") == "APP" })
		n.await("outbound is free", func() bool { return ask(mesh.ns, "10.94.0.7:80") == "APP" })
		n.await("no pins of the pod", func() bool { ents, _ := os.ReadDir(filepath.Join(n.o.bpfPinDir, "pods")); return len(ents) == 0 })
		if anyFile(annotation, "redirection") {
			t.Error("the annotation is left")
		}
	})
	t.Run("SI-01 live enrolment", func(t *testing.T) {
		n.write(n.dir+"/foo.yaml", namespace("foo", "istio-injection: enabled"))
		n.await("inbound is captured", func() bool { return ask(legacy.ns, "10.94.0.5:80") == "INBOUND" })
		n.await("outbound is captured", func() bool { return ask(mesh.ns, "10.94.0.7:80") == "OUTBOUND" })
	})
	t.Run("DEL", func(t *testing.T) {
		cni, list := n.chain()
		if err := errors.Join(cni.DelNetworkList(t.Context(), list, mesh.rt), cni.DelNetworkList(t.Context(), list, mesh.rt)); err != nil {
			t.Error(err)
		}
	})
	t.Run("uninstall", func(t *testing.T) {
		n.stop()
		for range 2 {
			if err := uninstall(t.Context(), n.o, n.log); err != nil {
				t.Fatal(err)
			}
		}
		data, err := os.ReadFile(filepath.Join(n.o.cniConfDir, "10-lab.conflist"))
		if err != nil || string(data) != primary {
			t.Errorf("conflist: %v\n%s", err, data)
		}
		ents, err := os.ReadDir(filepath.Dir(n.o.zds))
		if err != nil || slices.ContainsFunc(ents, func(e os.DirEntry) bool { return !e.IsDir() }) {
			t.Errorf("left beside the socket: %v %v", ents, err)
		}
		n.want(legacy.ns, "10.94.0.5:80", "APP")
		n.want(mesh.ns, "10.94.0.7:80", "APP")
	})
}

func anyFile(dir, text string) bool {
	ents, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(ents, func(e os.DirEntry) bool {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		return err == nil && strings.Contains(string(data), text)
	})
}
