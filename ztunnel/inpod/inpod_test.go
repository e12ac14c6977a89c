package inpod

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/nodeagent/netns"
	"github.com/undermesh/undermesh/nodeagent/zds"
	"github.com/undermesh/undermesh/nodeagent/zds/zdsapi"
	"github.com/undermesh/undermesh/test/netnstest"
	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/proxy"
	"github.com/undermesh/undermesh/ztunnel/telemetry"
)

var podV4, podV6 = netip.MustParseAddr("10.97.0.2"), netip.MustParseAddr("fd97::2")

// enrolled makes a pod's namespace with what the agent sets up there for captured traffic: rule, route, sysctls.
func enrolled(t *testing.T) *netns.NetNS {
	t.Helper()
	netnstest.Require(t)
	node, pod := netnstest.Netns(t), netnstest.Netns(t)
	br := netnstest.Bridge(t, node, "inp", netip.MustParsePrefix("10.97.0.1/24"), netip.MustParsePrefix("fd97::1/64"))
	netnstest.Veth(t, node, br, "inp", pod, []netip.Prefix{netip.PrefixFrom(podV4, 24), netip.PrefixFrom(podV6, 64)},
		netip.MustParseAddr("10.97.0.1"), netip.MustParseAddr("fd97::1"))
	h := netnstest.Handle(t, pod)
	lo, err := h.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	mask := uint32(0xfff)
	for family, all := range map[int]string{netlink.FAMILY_V4: "0.0.0.0/0", netlink.FAMILY_V6: "::/0"} {
		rule := netlink.NewRule()
		rule.Family, rule.Mark, rule.Mask, rule.Table, rule.Priority = family, captureMark, &mask, 100, 100
		if err := h.RuleAdd(rule); err != nil {
			t.Fatalf("add rule: %v", err)
		}
		_, dst, _ := net.ParseCIDR(all)
		if err := h.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: dst, Table: 100, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST}); err != nil {
			t.Fatalf("add route: %v", err)
		}
	}
	if err := pod.Do(func() error {
		return errors.Join(os.WriteFile("/proc/sys/net/ipv4/tcp_fwmark_accept", []byte("1"), 0),
			os.WriteFile("/proc/sys/net/ipv4/fwmark_reflect", []byte("1"), 0), os.WriteFile("/proc/sys/net/ipv6/fwmark_reflect", []byte("1"), 0))
	}); err != nil {
		t.Fatal(err)
	}
	return pod
}

// app answers with the peer's address, then echoes.
func app(t *testing.T, ns *netns.NetNS, port uint16) {
	t.Helper()
	f, err := netns.Listen(ns, port, 512, netns.Options{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.FileListener(f)
	_ = f.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				peer := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
				_, _ = io.WriteString(c, peer.String()+"\n")
				_, _ = io.Copy(c, c)
			}()
		}
	}()
}

func TestDeliverShowsTheClientsAddress(t *testing.T) {
	ns := enrolled(t)
	app(t, ns, 8080)
	s := NewSockets(ns)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, c := range []struct{ client, pod netip.Addr }{
		{netip.MustParseAddr("10.97.0.77"), podV4}, {netip.MustParseAddr("203.0.113.9"), podV4}, {netip.MustParseAddr("fd97::77"), podV6},
	} {
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				conn, err := s.Deliver(ctx, c.client, netip.AddrPortFrom(c.pod, 8080))
				if err != nil {
					t.Errorf("deliver from %s: %v", c.client, err)
					return
				}
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
				_, _ = io.WriteString(conn, "hello")
				_ = conn.(*net.TCPConn).CloseWrite()
				if got, err := io.ReadAll(conn); err != nil || string(got) != c.client.String()+"\nhello" {
					t.Errorf("from %s: got %q, %v", c.client, got, err)
				}
				port := conn.LocalAddr().(*net.TCPAddr).Port
				if port < firstPort || port > lastPort {
					t.Errorf("source port %d is outside %d-%d", port, firstPort, lastPort)
				}
			})
		}
		wg.Wait()
		if _, err := s.Deliver(ctx, c.client, netip.AddrPortFrom(c.pod, 8081)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("closed port from %s: %v, want connection refused", c.client, err)
		}
	}
}

func TestDialIsThePodItself(t *testing.T) {
	ns := enrolled(t)
	app(t, ns, 8080)
	conn, err := NewSockets(ns).Dial(t.Context(), netip.AddrPortFrom(podV4, 8080))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	line := make([]byte, len("10.97.0.2\n"))
	if _, err := io.ReadFull(conn, line); err != nil || string(line) != "10.97.0.2\n" {
		t.Errorf("peer is %q, %v", line, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if c, err := NewSockets(ns).Dial(ctx, netip.MustParseAddrPort("192.0.2.1:1")); err == nil || c != nil {
		t.Errorf("a dial whose context has ended gave %v, %v", c, err)
	}
}

// manager runs a Manager for one test; log is what it and its proxies wrote.
func manager(t *testing.T) (m *Manager, log *syncBuffer) {
	t.Helper()
	snap, err := client.NewSnapshot(client.Resource{Message: &workloadapi.Workload{
		Uid: "Kubernetes//Pod/foo/web", Name: "web", Namespace: "foo", Addresses: [][]byte{podV4.AsSlice(), podV6.AsSlice()},
	}})
	if err != nil {
		t.Fatal(err)
	}
	log = &syncBuffer{}
	tel := telemetry.New(telemetry.Config{Clock: clock.System(), Out: log, Gather: -1, Access: func() telemetry.Access { return telemetry.Access{Text: true} }})
	p := proxy.New(proxy.Config{
		Snapshot: func() *client.Snapshot { return snap }, Changed: func() (<-chan struct{}, func()) { return nil, func() {} },
		Identity: noIdentity{}, Clock: clock.System(), Telemetry: tel,
	})
	if m, err = New(Config{Proxy: p}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{tel.Run, p.Run, m.Run} {
		wg.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
	return m, log
}

type noIdentity struct{ proxy.Identity }

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// workload is the pod as the agent would hand it over, with an inbound listener on port.
func pod(t *testing.T, ns *netns.NetNS, listenerHome *netns.NetNS, port uint16) zds.Workload {
	t.Helper()
	f, err := ns.File()
	if err != nil {
		t.Fatal(err)
	}
	w := zds.Workload{
		UID: "uid-1", Info: &zdsapi.WorkloadInfo{Name: "web", Namespace: "foo", ServiceAccount: "default"},
		Addrs: []netip.Addr{podV4, podV6}, Netns: f, Listeners: zds.Listeners{},
	}
	if listenerHome != nil {
		l, err := netns.Listen(listenerHome, port, 128, netns.Options{Transparent: true, ReuseAddr: true})
		if err != nil {
			t.Fatal(err)
		}
		w.Listeners[zdsapi.ListenerKind_INBOUND] = l
	}
	return w
}

// refusedAt connects to a port of the mesh itself, which a served listener accepts and then resets.
func refusedAt(t *testing.T, ns *netns.NetNS, port uint16) error {
	t.Helper()
	c, err := netns.Dial(t.Context(), ns, netip.AddrPortFrom(podV4, port), netns.Options{})
	if err != nil {
		return err
	}
	defer c.Close()
	_, _ = io.WriteString(c, "x")
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		return errors.Join(errors.New("not reset"), err)
	}
	return nil
}

func TestAddReplaceHoldAndDelete(t *testing.T) {
	ns := enrolled(t)
	m, log := manager(t)
	if err := m.Add(t.Context(), pod(t, ns, ns, 15006)); err != nil {
		t.Fatal(err)
	}
	if err := refusedAt(t, ns, 15006); err != nil {
		t.Fatalf("first listener: %v", err)
	}
	held := m.Held()
	if len(held) != 1 || held[0].UID != "uid-1" || held[0].Listeners[zdsapi.ListenerKind_INBOUND] == nil {
		t.Fatalf("held %+v", held)
	}
	// a restarted agent makes its listener anew; a connection waits in the old one's backlog meanwhile
	next := pod(t, ns, ns, 15001)
	waiting, err := netns.Dial(t.Context(), ns, netip.AddrPortFrom(podV4, 15006), netns.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	if err := m.Add(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	_ = waiting.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, _ = io.WriteString(waiting, "x")
	if _, err := waiting.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the connection in the old backlog: %v, want a reset by the proxy", err)
	}
	if err := refusedAt(t, ns, 15001); err != nil {
		t.Errorf("new listener: %v", err)
	}
	eventually(t, "the old listener is closed", func() bool {
		return errors.Is(refusedAt(t, ns, 15006), unix.ECONNREFUSED)
	})
	if !strings.Contains(log.String(), "reason=mesh_port") {
		t.Errorf("no refusal was logged: %s", log.String())
	}
	m.Held() // a new connection of the agent, whose snapshot does not name the pod
	if err := m.SnapshotSent(t.Context()); err != nil {
		t.Fatal(err)
	}
	if list := m.Pods(); len(list) != 0 {
		t.Errorf("pods after an empty snapshot: %+v", list)
	}
	eventually(t, "the listener of the removed pod is closed", func() bool {
		return errors.Is(refusedAt(t, ns, 15001), unix.ECONNREFUSED)
	})
}

func TestListenerOfAnotherNamespaceIsRefused(t *testing.T) {
	ns := enrolled(t)
	m, _ := manager(t)
	err := m.Add(t.Context(), pod(t, ns, netnstest.Netns(t), 15006))
	if err == nil || !strings.Contains(err.Error(), "uid-1") || !strings.Contains(err.Error(), "INBOUND") {
		t.Fatalf("got %v, want an error that names pod and listener", err)
	}
	if len(m.Pods()) != 0 {
		t.Error("the pod was added")
	}
}

func TestVersion1OpensItsOwnListeners(t *testing.T) {
	ns := enrolled(t)
	m, _ := manager(t)
	if err := m.Add(t.Context(), pod(t, ns, nil, 0)); err != nil {
		t.Fatal(err)
	}
	for _, port := range []uint16{15001, 15006} {
		if err := refusedAt(t, ns, port); err != nil {
			t.Errorf("port %d: %v", port, err)
		}
	}
	if err := m.Del(t.Context(), "uid-1", false); err != nil {
		t.Fatal(err)
	}
	eventually(t, "port 15006 is closed", func() bool { return errors.Is(refusedAt(t, ns, 15006), unix.ECONNREFUSED) })
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(5 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("not within 5 s: %s", what)
		}
	}
}

func TestAddRefusesWhatNamesNoPod(t *testing.T) {
	m, err := New(Config{Proxy: proxy.New(proxy.Config{
		Snapshot: func() *client.Snapshot { return nil }, Changed: func() (<-chan struct{}, func()) { return nil, func() {} },
		Identity: noIdentity{}, Clock: clock.System(), Telemetry: telemetry.New(telemetry.Config{Clock: clock.System()}),
	})})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	file := func() *os.File {
		f, err := os.Open("/dev/null")
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	info := &zdsapi.WorkloadInfo{Name: "web", Namespace: "foo"}
	for name, w := range map[string]zds.Workload{
		"no uid":      {Info: info, Netns: file()},
		"no info":     {UID: "u", Netns: file()},
		"no netns":    {UID: "u", Info: info},
		"not a netns": {UID: "u", Info: info, Netns: file()},
	} {
		if err := m.Add(ctx, w); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := m.Add(t.Context(), zds.Workload{UID: "u", Info: info, Netns: file()}); !errors.Is(err, errStopped) {
		t.Errorf("after the end: %v, want %v", err, errStopped)
	}
}
