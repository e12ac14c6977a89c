package datapath

import (
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"

	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/nodeagent/netns"
	"github.com/undermesh/undermesh/test/netnstest"
)

// heard listens in the pod and gives what each connection sent until it ended.
func (l *lab) heard(p *labPod, port uint16) <-chan string {
	l.t.Helper()
	f, err := netns.Listen(p.ns, port, 128, netns.Options{ReuseAddr: true})
	if err != nil {
		l.t.Fatal(err)
	}
	ln, err := net.FileListener(f)
	_ = f.Close() // ln has its own
	if err != nil {
		l.t.Fatal(err)
	}
	out, done := make(chan string, 16), make(chan struct{})
	l.t.Cleanup(func() { _ = ln.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_ = c.SetReadDeadline(time.Now().Add(350 * time.Millisecond)) // beyond a repetition
			b, _ := io.ReadAll(c)
			_ = c.Close()
			out <- string(b)
		}
	}()
	return out
}

// kubeletGroup makes the lab's group of that name kubelet's.
func (l *lab) kubeletGroup() {
	l.t.Helper()
	host, err := l.node.Cookie()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := l.d.SetKubelet(netnstest.CgroupID(l.t, l.groups["kubelet"]), host); err != nil {
		l.t.Fatal(err)
	}
}

// A pod's own probe can name any other pod as its host, so kubelet carries whatever the pod's author wrote to a port that
// passes. There only that arrives which the port's declared probe sends.
func TestKubeletIsNoMessenger(t *testing.T) {
	l := newLab(t)
	b := l.pod("b", 3)
	ports := map[string]uint16{"tcp": 8081, "grpc": 8082, "tls": 8083, "tcp and grpc": 8084, "undeclared": 8085}
	heard := map[string]<-chan string{}
	for kind, port := range ports {
		heard[kind] = l.heard(b, port)
	}
	l.enrol(b, func(p *Pod) {
		p.Probes = []Probe{{Port: 8081}, {Port: 8082, GRPC: true}, {Port: 8083, TLS: true}, {Port: 8084}, {Port: 8084, GRPC: true}}
	})
	l.kubeletGroup()
	if err := l.d.Close(); err != nil { // the next agent finds it
		t.Fatal(err)
	}
	l.d = l.open()
	l.join("kubelet")
	const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	const attack = "POST /admin HTTP/1.1\r\nHost: victim\r\n\r\n"
	hello := "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("r", 500)
	long := "GET /" + strings.Repeat("x", 1<<17)
	refused := uint64(0)
	for i, c := range []struct {
		kind    string
		send    []string
		arrives bool
	}{
		{"tcp", nil, true}, {"tcp", []string{attack}, false}, {"tcp", []string{"x"}, false}, {"tcp", []string{preface}, false},
		{"tcp", []string{hello}, false}, {"tcp", []string{long}, false},
		{"grpc", nil, true}, {"grpc", []string{preface, "\x00\x00\x00\x04", long}, true}, {"grpc", []string{attack}, false},
		{"grpc", []string{attack, preface}, false}, {"grpc", []string{long, preface}, false}, {"grpc", []string{"PRI"}, false},
		{"grpc", []string{"PRI * HTTP/1.1"}, false}, {"grpc", []string{hello}, false},
		{"tls", nil, true}, {"tls", []string{hello}, true}, {"tls", []string{attack}, false}, {"tls", []string{preface}, false},
		{"tcp and grpc", nil, true}, {"tcp and grpc", []string{preface}, true}, {"tcp and grpc", []string{attack}, false},
	} {
		ip := []netip.Addr{b.v4, b.v6}[i%2]
		conn, err := netns.Dial(t.Context(), l.node, netip.AddrPortFrom(ip, ports[c.kind]), netns.Options{})
		if err != nil {
			t.Fatalf("%s: probe by connect: %v", c.kind, err)
		}
		want := strings.Join(c.send, "")
		for _, s := range c.send {
			_ = conn.SetWriteDeadline(time.Now().Add(300 * time.Millisecond)) // what is dropped fills the buffer
			_, _ = io.WriteString(conn, s)
		}
		if c.arrives {
			_ = conn.CloseWrite()
		} else {
			want, refused = "", refused+1
		}
		if got := <-heard[c.kind]; got != want {
			t.Errorf("%s, %s, %.20q…: %d bytes arrived, want %d", c.kind, ip, c.send, len(got), len(want))
		}
		_ = conn.Close()
	}
	if n := l.reason(reason.ProbePayload); n != refused {
		t.Errorf("probe_payload counted %d times, want %d", n, refused)
	}
	// Elsewhere kubelet says what it likes.
	l.want("not declared", l.dial(l.node, "10.95.0.3:8085", netns.Options{}), "INBOUND", "10.95.0.3:8085")
	other := l.pod("other", 4)
	free := l.heard(other, 8081)
	conn, err := netns.Dial(t.Context(), l.node, netip.AddrPortFrom(other.v4, 8081), netns.Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(conn, attack)
	_ = conn.Close()
	if got := <-free; got != attack {
		t.Errorf("a pod outside the mesh heard %q", got)
	}
}

// The guard of kubelet's cgroup follows it, comes before its probes pass, and goes with it.
func TestKubeletGuardFollowsTheGroup(t *testing.T) {
	l := newLab(t)
	host, err := l.node.Cookie()
	if err != nil {
		t.Fatal(err)
	}
	pin := filepath.Join(l.cfg.withDefaults().PinDir, "links", hookKubelet)
	group := func() uint64 {
		t.Helper()
		pinned, err := link.LoadPinnedLink(pin, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer pinned.Close()
		info, err := pinned.Info()
		if err != nil {
			t.Fatal(err)
		}
		return info.Cgroup().CgroupId
	}
	for _, name := range []string{"kubelet", "app", "kubelet"} {
		id := netnstest.CgroupID(t, l.groups[name])
		if err := l.d.SetKubelet(id, host); err != nil {
			t.Fatal(err)
		}
		if group() != id {
			t.Errorf("guard is on group %d, want %d", group(), id)
		}
	}
	if err := l.d.SetKubelet(1<<40, host); err == nil {
		t.Error("a group that does not exist is taken")
	}
	if n, _, err := l.d.nodeTableLocked().Lookup(0); err != nil || n.KubeletCgroup != 0 {
		t.Errorf("kubelet's group is %d after an error: %v", n.KubeletCgroup, err)
	}
	if err := l.d.SetKubelet(0, host); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(pin); !os.IsNotExist(err) {
		t.Errorf("the pin is there without kubelet: %v", err)
	}
	l.kubeletGroup()
	if _, err := os.Stat(pin); err != nil {
		t.Error(err)
	}
	if err := l.d.Uninstall(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(pin); !os.IsNotExist(err) {
		t.Errorf("the pin outlives uninstall: %v", err)
	}
}
