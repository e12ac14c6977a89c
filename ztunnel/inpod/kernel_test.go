package inpod

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/securityapi"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/nodeagent/datapath"
	"github.com/undermesh/undermesh/nodeagent/netns"
	"github.com/undermesh/undermesh/nodeagent/zds"
	"github.com/undermesh/undermesh/nodeagent/zds/zdsapi"
	"github.com/undermesh/undermesh/test/netnstest"
	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/identity"
	"github.com/undermesh/undermesh/ztunnel/proxy"
	"github.com/undermesh/undermesh/ztunnel/telemetry"
)

// clientEnv makes the test binary an application: it connects to the address, says hello, and prints what it gets.
const clientEnv = "UNDERMESH_TEST_CLIENT"

func TestMain(m *testing.M) {
	if dst := os.Getenv(clientEnv); dst != "" {
		if n, err := strconv.Atoi(os.Getenv(countEnv)); err == nil {
			fmt.Print(runClients(dst, n))
			return
		}
		fmt.Print(runClient(dst))
		return
	}
	os.Exit(m.Run())
}

// countEnv makes that many connections, 16 at a time, and prints what the answers were.
const countEnv = "UNDERMESH_TEST_COUNT"

func runClients(dst string, n int) string {
	var mu sync.Mutex
	answers := map[string]int{}
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for range (n + 15 - i) / 16 {
				got := runClient(dst)
				mu.Lock()
				answers[got]++
				mu.Unlock()
			}
		})
	}
	begin := time.Now()
	wg.Wait()
	return fmt.Sprintf("%v in %v", answers, time.Since(begin).Round(time.Millisecond))
}

func runClient(dst string) string {
	c, err := net.DialTimeout("tcp", dst, 5*time.Second)
	if err != nil {
		return "connect: " + err.Error()
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c, "hello"); err != nil {
		return "write: " + err.Error()
	}
	_ = c.(*net.TCPConn).CloseWrite()
	b, err := io.ReadAll(c)
	switch {
	case errors.Is(err, syscall.ECONNRESET):
		return "reset"
	case err != nil:
		return "read: " + err.Error()
	}
	return strings.ReplaceAll(string(b), "\n", " ")
}

type kernelCA struct {
	key  *ecdsa.PrivateKey
	root *x509.Certificate
}

func newKernelCA(t *testing.T) *kernelCA {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &kernelCA{key, root}
}

func (ca *kernelCA) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.root.Raw})
}

func (ca *kernelCA) Issue(_ context.Context, r identity.Request) ([]string, error) {
	b, _ := pem.Decode(r.CSR)
	csr, err := x509.ParseCertificateRequest(b.Bytes)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), URIs: csr.URIs, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, ca.root, csr.PublicKey, ca.key)
	if err != nil {
		return nil, err
	}
	return []string{string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(ca.pem())}, nil
}

// mesh is two nodes' ztunnels over the real datapath; the nodes share one bridge.
type mesh struct {
	t        *testing.T
	appGroup *os.File
	bridge   string
	node     *netns.NetNS
	dp       *datapath.Datapath
	nodes    map[string]*Manager
	log      *syncBuffer

	mu   sync.Mutex
	snap *client.Snapshot
	subs []chan struct{}
}

func newMesh(t *testing.T) *mesh {
	netnstest.Require(t)
	m := &mesh{t: t, nodes: map[string]*Manager{}, log: &syncBuffer{}}
	root := netnstest.Cgroup2(t)
	top := netnstest.Cgroup(t, root, "inp")
	app, proxies := netnstest.Cgroup(t, top, "app"), netnstest.Cgroup(t, top, "prx")
	enter := func(dir string) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0); err != nil {
			t.Fatal(err)
		}
	}
	home := root
	if b, err := os.ReadFile("/proc/self/cgroup"); err == nil {
		for line := range strings.Lines(string(b)) {
			if rest, ok := strings.CutPrefix(line, "0::"); ok {
				home = filepath.Join(root, strings.TrimSpace(rest))
			}
		}
	}
	enter(proxies)
	t.Cleanup(func() { enter(home) })
	var err error
	if m.appGroup, err = os.Open(app); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.appGroup.Close() })
	m.node = netnstest.Netns(t)
	m.bridge = netnstest.Bridge(t, m.node, "inp", netip.MustParsePrefix("10.97.0.1/24"), netip.MustParsePrefix("fd97::1/64"))
	m.dp = datapath.New(datapath.Config{BPFFS: netnstest.BPFFS(t), RunDir: t.TempDir(), CgroupRoot: top, Build: "test"})
	if err := m.dp.Open(t.Context()); err != nil {
		t.Fatalf("open datapath: %+v", err)
	}
	t.Cleanup(func() {
		if err := m.dp.Uninstall(context.Background()); err != nil {
			t.Errorf("uninstall: %v", err)
		}
	})
	if err := m.dp.Exempt(netnstest.CgroupID(t, proxies)); err != nil {
		t.Fatal(err)
	}
	m.run()
	return m
}

// run starts the two ztunnels; they share identities and configuration.
func (m *mesh) run() {
	t := m.t
	ca := newKernelCA(t)
	ids, err := identity.New(identity.Config{
		Issuer: ca, Roots: identity.NewRoots(func() ([]byte, error) { return ca.pem(), nil }), Clock: clock.System(),
		Trust: func() identity.Trust { return identity.Trust{Domain: "cluster.local"} },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	start := func(run func(context.Context) error) {
		wg.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	start(ids.Run)
	for _, node := range []string{"a", "b"} {
		tel := telemetry.New(telemetry.Config{Clock: clock.System(), Out: m.log, Gather: -1, Access: func() telemetry.Access { return telemetry.Access{Text: true} }})
		p := proxy.New(proxy.Config{Snapshot: m.snapshot, Changed: m.subscribe, Identity: ids, Clock: clock.System(), Telemetry: tel})
		if m.nodes[node], err = New(Config{Proxy: p}); err != nil {
			t.Fatal(err)
		}
		start(tel.Run)
		start(p.Run)
		start(m.nodes[node].Run)
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
}

func (m *mesh) snapshot() *client.Snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.snap
}

func (m *mesh) subscribe() (<-chan struct{}, func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	ch := make(chan struct{}, 1)
	m.subs = append(m.subs, ch)
	return ch, func() {}
}

func (m *mesh) apply(list ...client.Resource) {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	var err error
	if m.snap == nil {
		m.snap, err = client.NewSnapshot(list...)
	} else {
		m.snap, err = m.snap.With(m.snap.Generation()+1, list, nil)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	for _, ch := range m.subs {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

type meshPod struct {
	ns     *netns.NetNS
	name   string
	v4, v6 netip.Addr
}

// pod makes a pod with an application on port 8080, and enrols it on the node unless that is "".
func (m *mesh) pod(node, name string, n int) *meshPod {
	t := m.t
	t.Helper()
	p := &meshPod{ns: netnstest.Netns(t), name: name, v4: netip.AddrFrom4([4]byte{10, 97, 0, byte(n)}), v6: netip.MustParseAddr(fmt.Sprintf("fd97::%x", n))}
	netnstest.Veth(t, m.node, m.bridge, "inp", p.ns, []netip.Prefix{netip.PrefixFrom(p.v4, 24), netip.PrefixFrom(p.v6, 64)},
		netip.MustParseAddr("10.97.0.1"), netip.MustParseAddr("fd97::1"))
	app(t, p.ns, 8080)
	if node == "" {
		return p
	}
	h, err := m.dp.PreparePod(t.Context(), datapath.Pod{UID: "uid-" + name, Netns: p.ns, IPs: []netip.Addr{p.v4, p.v6}})
	if err != nil {
		t.Fatalf("prepare: %+v", err)
	}
	w := zds.Workload{
		UID: "uid-" + name, Info: &zdsapi.WorkloadInfo{Name: name, Namespace: "foo", ServiceAccount: name},
		Addrs: []netip.Addr{p.v4, p.v6}, Listeners: zds.Listeners{},
	}
	if w.Netns, err = p.ns.File(); err != nil {
		t.Fatal(err)
	}
	kinds := map[datapath.Kind]zdsapi.ListenerKind{
		datapath.KindOutbound: zdsapi.ListenerKind_OUTBOUND, datapath.KindInbound: zdsapi.ListenerKind_INBOUND,
		datapath.KindTunnel: zdsapi.ListenerKind_TUNNEL, datapath.KindProbe: zdsapi.ListenerKind_PROBE,
	}
	for kind, f := range h.Listeners() {
		raw, err := f.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if err := raw.Control(func(fd uintptr) {
			dup, derr := syscall.Dup(int(fd))
			if err = derr; err == nil {
				syscall.CloseOnExec(dup)
				w.Listeners[kinds[kind]] = os.NewFile(uintptr(dup), "listener")
			}
		}); err != nil {
			t.Fatal(err)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := h.AttachInbound(); err != nil {
		t.Fatalf("attach: %+v", err)
	}
	if err := m.nodes[node].Add(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	if err := h.CaptureOutbound(true); err != nil {
		t.Fatalf("capture: %+v", err)
	}
	return p
}

// resource is the pod's workload.
func (p *meshPod) resource(policies ...string) client.Resource {
	return client.Resource{Message: &workloadapi.Workload{
		Uid: "Kubernetes//Pod/foo/" + p.name, Name: p.name, Namespace: "foo", Addresses: [][]byte{p.v4.AsSlice(), p.v6.AsSlice()},
		ServiceAccount: p.name, TunnelProtocol: workloadapi.TunnelProtocol_HBONE, AuthorizationPolicies: policies,
	}}
}

// ask is an application of p that talks to dst, in a process of its own.
func (m *mesh) ask(p *meshPod, dst netip.Addr, env ...string) string {
	m.t.Helper()
	cmd := exec.CommandContext(m.t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), clientEnv+"="+netip.AddrPortFrom(dst, 8080).String(), "GORACE=atexit_sleep_ms=0")
	cmd.Env = append(cmd.Env, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(m.appGroup.Fd())}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := p.ns.Do(cmd.Start); err != nil {
		m.t.Fatalf("start client: %v", err)
	}
	if err := cmd.Wait(); err != nil {
		m.t.Fatalf("client: %v", err)
	}
	return out.String()
}

// want asks and checks the answer, and that a new log line has the parts.
func (m *mesh) want(what string, p *meshPod, dst netip.Addr, answer string, parts ...string) {
	m.t.Helper()
	before := len(m.log.String())
	if got := m.ask(p, dst); got != answer {
		m.t.Errorf("%s: %q, want %q", what, got, answer)
	}
	var lines string
	eventually(m.t, what+" is logged with "+strings.Join(parts, " "), func() bool {
		lines = m.log.String()[before:]
		for line := range strings.Lines(lines) {
			ok := true
			for _, part := range parts {
				ok = ok && strings.Contains(line, part)
			}
			if ok {
				return true
			}
		}
		return false
	})
	if strings.Contains(answer, "hello") && strings.Contains(strings.Join(parts, " "), "path=proxied") && strings.Contains(lines, "direction=inbound") {
		m.t.Errorf("%s: a judged leg was carried once more: %s", what, lines)
	}
}

func deny(name string, m *securityapi.Match, action securityapi.Action) client.Resource {
	return client.Resource{Message: &securityapi.Authorization{
		Namespace: "foo", Name: name, Scope: securityapi.Scope_WORKLOAD_SELECTOR, Action: action,
		Groups: []*securityapi.Group{{Rules: []*securityapi.Rules{{Matches: []*securityapi.Match{m}}}}},
	}}
}

func TestPathsOverTheRealDatapath(t *testing.T) {
	m := newMesh(t)
	sleep, other := m.pod("a", "sleep", 10), m.pod("a", "other", 11)
	near, far, legacy := m.pod("a", "near", 12), m.pod("b", "far", 13), m.pod("", "legacy", 14)
	m.apply(sleep.resource(), other.resource(), near.resource(), far.resource())

	hello := func(p *meshPod) string { return p.v4.String() + " hello" }
	m.want("other node", sleep, far.v4, hello(sleep), "path=tunnel", "direction=inbound", "src.identity=spiffe://cluster.local/ns/foo/sa/sleep")
	m.want("bytes are counted", sleep, far.v4, hello(sleep), "path=tunnel", "direction=outbound", "bytes_sent=5", "bytes_recv=16")
	m.want("other node, IPv6", sleep, far.v6, sleep.v6.String()+" hello", "path=tunnel", "direction=inbound")
	m.want("same node", sleep, near.v4, hello(sleep), "path=proxied", "direction=outbound")
	m.want("same node, IPv6", sleep, near.v6, sleep.v6.String()+" hello", "path=proxied")
	m.want("from outside the mesh", legacy, far.v4, hello(legacy), "direction=inbound", "path=passthrough")
	m.want("to outside the mesh", sleep, legacy.v4, hello(sleep), "direction=outbound", "path=passthrough")

	service := func(p *meshPod, vip string) netip.Addr {
		host := p.name + ".foo.svc.cluster.local"
		member := p.resource()
		ports := []*workloadapi.Port{{ServicePort: 8080, TargetPort: 8080}}
		member.Message.(*workloadapi.Workload).Services = map[string]*workloadapi.PortList{"foo/" + host: {Ports: ports}}
		m.apply(member, client.Resource{Message: &workloadapi.Service{
			Name: p.name, Namespace: "foo", Hostname: host, Ports: ports,
			Addresses: []*workloadapi.NetworkAddress{{Address: netip.MustParseAddr(vip).AsSlice()}},
		}})
		return netip.MustParseAddr(vip)
	}
	m.want("service", sleep, service(far, "10.96.0.1"), hello(sleep), "path=tunnel", "dst.service=far.foo.svc.cluster.local", "direction=inbound")
	m.want("service, same node", sleep, service(near, "10.96.0.2"), hello(sleep), "path=proxied", "dst.service=near.foo.svc.cluster.local")
	m.want("hairpin", sleep, service(sleep, "10.96.0.3"), hello(sleep), "path=proxied", "dst.workload=sleep")

	only := &securityapi.Match{Principals: []*securityapi.StringMatch{{MatchType: &securityapi.StringMatch_Exact{Exact: "cluster.local/ns/foo/sa/sleep"}}}}
	m.apply(deny("only-sleep", only, securityapi.Action_ALLOW), near.resource("foo/only-sleep"), far.resource("foo/only-sleep"))
	for _, dst := range []*meshPod{near, far} {
		m.want("allowed to "+dst.name, sleep, dst.v4, hello(sleep), "direction=outbound")
		m.want("denied to "+dst.name, other, dst.v4, "reset", "policy=foo/only-sleep", "reason=policy_not_allowed")
		m.want("without principal to "+dst.name, legacy, dst.v4, "reset", "policy=foo/only-sleep")
	}

	anybody := &securityapi.Match{NotPrincipals: []*securityapi.StringMatch{{MatchType: &securityapi.StringMatch_Presence{}}}}
	m.apply(deny(api.StrictPolicyName, anybody, securityapi.Action_DENY), near.resource("foo/"+api.StrictPolicyName), far.resource("foo/"+api.StrictPolicyName))
	for range 20 {
		for _, dst := range []*meshPod{near, far} {
			m.want("STRICT", legacy, dst.v4, "reset", "reason=strict_mtls")
		}
	}
	m.want("STRICT, in the mesh", other, far.v4, hello(other), "path=tunnel", "direction=inbound")
}

func TestManyConnectionsLoseNone(t *testing.T) {
	m := newMesh(t)
	sleep, near, far, legacy := m.pod("a", "sleep", 10), m.pod("a", "near", 12), m.pod("b", "far", 13), m.pod("", "legacy", 14)
	m.apply(sleep.resource(), near.resource(), far.resource())
	const n = 1000
	for _, c := range []struct {
		name     string
		from, to *meshPod
	}{{"tunnel", sleep, far}, {"proxied", sleep, near}, {"plain inbound", legacy, far}, {"passthrough", sleep, legacy}} {
		got := m.ask(c.from, c.to.v4, countEnv+"="+strconv.Itoa(n))
		t.Logf("%s: %s", c.name, got)
		if want := fmt.Sprintf("map[%s hello:%d] in", c.from.v4, n); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %s, want %d answers", c.name, got, n)
		}
	}
}
