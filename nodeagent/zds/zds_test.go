package zds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/undermesh/undermesh/nodeagent/zds/zdsapi"
)

const allow = 5 * time.Second // generous bound of every wait

// openFDs counts this process's descriptors.
func openFDs(t *testing.T) int {
	t.Helper()
	ents, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(ents)
}

// eventually polls until ok holds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(allow)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within %s: %s", allow, what)
		}
	}
}

// noLeak fails the test when it ends with other descriptors than it began with. Register it first.
func noLeak(t *testing.T) {
	t.Helper()
	// The poller and its wake-up descriptor appear with the first pollable file.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = r.Close(), w.Close()
	before := openFDs(t)
	t.Cleanup(func() {
		eventually(t, fmt.Sprintf("descriptors back to %d", before), func() bool { return openFDs(t) == before })
	})
}

// recorder is a Handler that keeps what it is given.
type recorder struct {
	mu        sync.Mutex
	pods      map[string]Workload
	deleted   []string
	kept      []string
	snapshots int
	refuse    map[string]error
	block     chan struct{} // when set, Add waits for it
}

func newRecorder() *recorder {
	return &recorder{pods: map[string]Workload{}, refuse: map[string]error{}}
}

func (r *recorder) Add(ctx context.Context, w Workload) error {
	if r.block != nil {
		select {
		case <-r.block:
		case <-ctx.Done():
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.refuse[w.UID]; err != nil {
		w.Close()
		return err
	}
	if old, ok := r.pods[w.UID]; ok {
		old.Close()
	}
	r.pods[w.UID] = w
	return nil
}

func (r *recorder) Del(_ context.Context, uid string, deleted bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if deleted {
		uid += " for good"
	}
	r.deleted = append(r.deleted, uid)
	uid = strings.TrimSuffix(uid, " for good")
	if w, ok := r.pods[uid]; ok {
		w.Close()
		delete(r.pods, uid)
	}
	return nil
}

func (r *recorder) Keep(uid string) { r.mu.Lock(); defer r.mu.Unlock(); r.kept = append(r.kept, uid) }

func (r *recorder) SnapshotSent(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.snapshots++
	return nil
}

func (r *recorder) Held() []Workload {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []Workload
	for _, w := range r.pods {
		out = append(out, w)
	}
	return out
}

func (r *recorder) synced(n int) func() bool {
	return func() bool { r.mu.Lock(); defer r.mu.Unlock(); return r.snapshots >= n }
}

func (r *recorder) get(uid string) (Workload, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w, ok := r.pods[uid]
	return w, ok
}

func (r *recorder) deletions() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.deleted)
}

// idle reports that nothing was ever handed over.
func (r *recorder) idle() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.pods)+len(r.deleted)+len(r.kept) == 0
}

func (r *recorder) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range r.pods {
		w.Close()
	}
	r.pods = map[string]Workload{}
}

// running starts a server and stops it with the test.
func running(t *testing.T, cfg ServerConfig) *Server {
	t.Helper()
	cfg.Log = slog.New(slog.DiscardHandler)
	if cfg.Snapshot == nil {
		cfg.Snapshot = func() []Workload { return nil }
	}
	s := NewServer(cfg)
	run(t, s.Run)
	eventually(t, "socket is there", func() bool { _, err := os.Stat(cfg.Path); return err == nil })
	return s
}

// run runs f until the test ends; stop ends it earlier.
func run(t *testing.T, f func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func ztunnel(t *testing.T, path string, v zdsapi.Version, h Handler) (stop func()) {
	t.Helper()
	c := NewClient(ClientConfig{Path: path, Version: v, Log: slog.New(slog.DiscardHandler), Handler: h, RetryMin: time.Millisecond})
	return run(t, c.Run)
}

// pod makes a workload with real descriptors: a file for the netns and listening sockets.
func pod(t *testing.T, uid string) Workload {
	t.Helper()
	netns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	w := Workload{UID: uid, Netns: netns, Listeners: Listeners{},
		Info:   &zdsapi.WorkloadInfo{Name: "n-" + uid, Namespace: "foo", ServiceAccount: "sleep"},
		Probes: []*zdsapi.Probe{{Port: 8080, Method: "GET", Path: "/healthz"}},
		Addrs:  []netip.Addr{netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("fd00::7")}}
	for _, k := range []zdsapi.ListenerKind{zdsapi.ListenerKind_OUTBOUND, zdsapi.ListenerKind_INBOUND, zdsapi.ListenerKind_TUNNEL} {
		ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		if w.Listeners[k], err = ln.File(); err != nil {
			t.Fatal(err)
		}
		_ = ln.Close()
	}
	t.Cleanup(w.Close)
	return w
}

func sameFile(t *testing.T, a, b *os.File) bool {
	t.Helper()
	ai, err := a.Stat()
	if err != nil {
		t.Fatal(err)
	}
	bi, err := b.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return os.SameFile(ai, bi)
}

func TestAddDelBothVersions(t *testing.T) {
	for _, v := range []zdsapi.Version{zdsapi.Version_V1, zdsapi.Version_V2} {
		t.Run(v.String(), func(t *testing.T) {
			noLeak(t)
			path := filepath.Join(t.TempDir(), "zds.sock")
			early, late := pod(t, "early"), pod(t, "late")
			s := running(t, ServerConfig{Path: path, Snapshot: func() []Workload { return []Workload{early} }})
			if err := s.Add(t.Context(), late); !errors.Is(err, ErrNoZtunnel) {
				t.Fatalf("Add without a ztunnel: %v", err)
			}
			h := newRecorder()
			t.Cleanup(h.close)
			ztunnel(t, path, v, h)
			eventually(t, "snapshot", h.synced(1))
			if err := s.Add(t.Context(), late); err != nil {
				t.Fatal(err)
			}
			for _, want := range []Workload{early, late} {
				checkReceived(t, v, h, want)
			}
			if err := errors.Join(s.Del(t.Context(), "late", false), s.Del(t.Context(), "early", true)); err != nil {
				t.Fatal(err)
			}
			if _, ok := h.get("late"); ok || !slices.Equal(h.deletions(), []string{"late", "early for good"}) {
				t.Errorf("pod still there after Del, deleted: %v", h.deletions())
			}
		})
	}
}

func checkReceived(t *testing.T, v zdsapi.Version, h *recorder, want Workload) {
	t.Helper()
	got, ok := h.get(want.UID)
	if !ok {
		t.Fatalf("pod %s did not arrive", want.UID)
	}
	if !proto.Equal(got.Info, want.Info) || !sameFile(t, got.Netns, want.Netns) {
		t.Errorf("pod %s: got %v", want.UID, got.Info)
	}
	if v == zdsapi.Version_V1 {
		if len(got.Listeners) != 0 || len(got.Probes) != 0 || len(got.Addrs) != 0 {
			t.Errorf("a version 1 peer was given version 2 fields: %+v", got)
		}
		return
	}
	if !reflect.DeepEqual(got.Addrs, want.Addrs) || len(got.Probes) != 1 || !proto.Equal(got.Probes[0], want.Probes[0]) {
		t.Errorf("pod %s: addresses %v, probes %v", want.UID, got.Addrs, got.Probes)
	}
	if len(got.Listeners) != len(want.Listeners) {
		t.Fatalf("pod %s: %d listeners, want %d", want.UID, len(got.Listeners), len(want.Listeners))
	}
	for k, f := range want.Listeners {
		if !sameFile(t, got.Listeners[k], f) {
			t.Errorf("pod %s: listener %s is another socket", want.UID, k)
		}
	}
}

func TestRefusalReachesTheCaller(t *testing.T) {
	noLeak(t)
	path := filepath.Join(t.TempDir(), "zds.sock")
	acks := make(chan error, 1)
	first := pod(t, "first")
	s := running(t, ServerConfig{Path: path, Snapshot: func() []Workload { return []Workload{first} },
		OnAck: func(_ string, err error) { acks <- err }})
	h := newRecorder()
	t.Cleanup(h.close)
	h.refuse["bad"], h.refuse["first"] = errors.New("no such port"), errors.New("not today")
	ztunnel(t, path, zdsapi.Version_V2, h)
	eventually(t, "snapshot", h.synced(1))
	var refused *AckError
	if err := <-acks; !errors.As(err, &refused) || refused.Message != "not today" {
		t.Errorf("OnAck: %v", err)
	}
	if err := s.Add(t.Context(), pod(t, "bad")); !errors.As(err, &refused) || refused.UID != "bad" || refused.Message != "no such port" {
		t.Errorf("Add: %v", err)
	}
	if err := s.Add(t.Context(), pod(t, "good")); err != nil {
		t.Errorf("connection did not survive a refusal: %v", err)
	}
}

func TestNewestConnectionGetsNewPodsAllGetDeletions(t *testing.T) {
	noLeak(t)
	path := filepath.Join(t.TempDir(), "zds.sock")
	s := running(t, ServerConfig{Path: path})
	older, newer := newRecorder(), newRecorder()
	t.Cleanup(older.close)
	t.Cleanup(newer.close)
	ztunnel(t, path, zdsapi.Version_V2, older)
	eventually(t, "older connected", older.synced(1))
	if err := s.Add(t.Context(), pod(t, "a")); err != nil {
		t.Fatal(err)
	}
	stop := ztunnel(t, path, zdsapi.Version_V2, newer)
	eventually(t, "newer connected", newer.synced(1))
	if err := s.Add(t.Context(), pod(t, "b")); err != nil {
		t.Fatal(err)
	}
	if _, ok := older.get("b"); ok {
		t.Error("the older ztunnel got a new pod")
	}
	if _, ok := newer.get("b"); !ok {
		t.Error("the newer ztunnel did not get the new pod")
	}
	if err := s.Del(t.Context(), "b", false); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(older.deletions(), "b") || !slices.Contains(newer.deletions(), "b") {
		t.Errorf("deletions: older %v, newer %v", older.deletions(), newer.deletions())
	}
	stop()
	eventually(t, "pods go to the older again", func() bool { return s.Add(t.Context(), pod(t, "c")) == nil })
	if _, ok := older.get("c"); !ok {
		t.Error("the older ztunnel is alone and did not get the pod")
	}
}

func TestHeldListenersComeBackToANewAgent(t *testing.T) {
	noLeak(t)
	path := filepath.Join(t.TempDir(), "zds.sock")
	w := pod(t, "p")
	s := NewServer(ServerConfig{Path: path, Log: slog.New(slog.DiscardHandler), Snapshot: func() []Workload { return []Workload{w} }})
	stop := run(t, s.Run)
	h := newRecorder()
	t.Cleanup(h.close)
	ztunnel(t, path, zdsapi.Version_V2, h)
	eventually(t, "snapshot", h.synced(1))
	stop()

	held := make(chan Listeners, 4)
	var mu sync.Mutex
	var adopted []Workload // what the new agent serves: only what was held
	running(t, ServerConfig{Path: path,
		OnHeld: func(uid string, l Listeners) {
			mu.Lock()
			adopted = append(adopted, Workload{UID: uid, Netns: w.Netns, Listeners: l})
			mu.Unlock()
			held <- l
		},
		Snapshot: func() []Workload { mu.Lock(); defer mu.Unlock(); return slices.Clone(adopted) }})
	l := <-held
	t.Cleanup(l.Close)
	for k, f := range w.Listeners {
		if l[k] == nil || !sameFile(t, l[k], f) {
			t.Errorf("listener %s did not come back", k)
		}
	}
	eventually(t, "second snapshot", h.synced(2))
}

func TestAdmissionDecidesBeforeAnyPodIsSent(t *testing.T) {
	noLeak(t)
	path := filepath.Join(t.TempDir(), "zds.sock")
	var mu sync.Mutex
	admit, snapshots, left := errors.New("cgroup unknown"), 0, 0
	var seen Peer
	running(t, ServerConfig{Path: path,
		Snapshot:     func() []Workload { mu.Lock(); defer mu.Unlock(); snapshots++; return nil },
		OnConnect:    func(_ context.Context, p Peer) error { mu.Lock(); defer mu.Unlock(); seen = p; return admit },
		OnDisconnect: func(Peer) { mu.Lock(); defer mu.Unlock(); left++ }})
	h := newRecorder()
	stop := ztunnel(t, path, zdsapi.Version_V2, h)
	eventually(t, "peer was seen", func() bool { mu.Lock(); defer mu.Unlock(); return seen.PID == os.Getpid() })
	mu.Lock()
	if snapshots != 0 {
		t.Error("a refused peer was sent a snapshot")
	}
	admit = nil
	mu.Unlock()
	eventually(t, "admitted peer gets its snapshot", h.synced(1))
	stop()
	eventually(t, "disconnect is reported once", func() bool { mu.Lock(); defer mu.Unlock(); return left == 1 })
}

func TestLateAcknowledgementEndsTheConnection(t *testing.T) {
	noLeak(t)
	path := filepath.Join(t.TempDir(), "zds.sock")
	s := running(t, ServerConfig{Path: path, AckTimeout: 50 * time.Millisecond})
	h := newRecorder()
	t.Cleanup(h.close)
	h.block = make(chan struct{})
	ztunnel(t, path, zdsapi.Version_V2, h)
	eventually(t, "connected", h.synced(1))
	err := s.Add(t.Context(), pod(t, "slow"))
	if !errors.Is(err, ErrNoZtunnel) {
		t.Errorf("Add: %v", err)
	}
	eventually(t, "connection is dropped", func() bool { return !s.Connected() })
	close(h.block)
}

// raw connects without Client, to misbehave.
func raw(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func mustMarshal(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestServerDropsMisbehavingPeers(t *testing.T) {
	hello := &zdsapi.ZdsHello{Version: zdsapi.Version_V2}
	held := &zdsapi.ZdsHello{Version: zdsapi.Version_V2, Held: 1}
	ack := &zdsapi.WorkloadResponse{Payload: &zdsapi.WorkloadResponse_Ack{Ack: &zdsapi.Ack{}}}
	type packet struct {
		data []byte
		fds  int
	}
	for name, packets := range map[string][]packet{
		"hello with descriptor":    {{mustMarshal(t, hello), 1}},
		"hello of unknown version": {{mustMarshal(t, &zdsapi.ZdsHello{Version: 9}), 0}},
		"hello too long":           {{make([]byte, MaxMessageV1+1), 0}},
		"garbage":                  {{[]byte{0xff, 0xff}, 3}},
		"held without descriptors": {{mustMarshal(t, held), 0}, {mustMarshal(t, &zdsapi.Held{Uid: "a", Listeners: []zdsapi.ListenerKind{1}}), 0}},
		"held with too many":       {{mustMarshal(t, held), 0}, {mustMarshal(t, &zdsapi.Held{Uid: "a", Listeners: []zdsapi.ListenerKind{1}}), 2}},
		"held control truncated":   {{mustMarshal(t, held), 0}, {mustMarshal(t, &zdsapi.Held{Uid: "a"}), maxDescriptors + 1}},
		"unasked acks":             {{mustMarshal(t, hello), 0}, {mustMarshal(t, ack), 0}, {mustMarshal(t, ack), 0}},
		"ack with descriptor":      {{mustMarshal(t, hello), 0}, {mustMarshal(t, ack), 1}},
		"ack too long":             {{mustMarshal(t, hello), 0}, {make([]byte, MaxMessageV2+1), 0}},
	} {
		t.Run(name, func(t *testing.T) {
			noLeak(t)
			path := filepath.Join(t.TempDir(), "zds.sock")
			running(t, ServerConfig{Path: path})
			c := raw(t, path)
			for _, p := range packets {
				var oob []byte
				if p.fds > 0 {
					oob = unix.UnixRights(slices.Repeat([]int{0}, p.fds)...)
				}
				if _, _, err := c.WriteMsgUnix(p.data, oob, nil); err != nil && !errors.Is(err, unix.EPIPE) {
					t.Fatal(err)
				}
			}
			if err := c.SetReadDeadline(time.Now().Add(allow)); err != nil {
				t.Fatal(err)
			}
			for { // the mark of an empty snapshot may come first
				if _, err := c.Read(make([]byte, MaxMessageV2)); errors.Is(err, os.ErrDeadlineExceeded) {
					t.Fatal("connection stayed open")
				} else if err != nil {
					return
				}
			}
		})
	}
}

func TestClientRefusesBadRequestsAndKeepsNoDescriptor(t *testing.T) {
	add := func(a *zdsapi.AddWorkload) *zdsapi.WorkloadRequest {
		return &zdsapi.WorkloadRequest{Payload: &zdsapi.WorkloadRequest_Add{Add: a}}
	}
	for name, tc := range map[string]struct {
		m   *zdsapi.WorkloadRequest
		fds int
	}{
		"add without netns":       {add(&zdsapi.AddWorkload{Uid: "a"}), 0},
		"add without uid":         {add(&zdsapi.AddWorkload{}), 1},
		"add with one too many":   {add(&zdsapi.AddWorkload{Uid: "a"}), 2},
		"add lacks a listener":    {add(&zdsapi.AddWorkload{Uid: "a", Listeners: []zdsapi.ListenerKind{1, 2}}), 2},
		"add repeats a listener":  {add(&zdsapi.AddWorkload{Uid: "a", Listeners: []zdsapi.ListenerKind{1, 1}}), 3},
		"add with bad address":    {add(&zdsapi.AddWorkload{Uid: "a", Addresses: [][]byte{{1, 2, 3}}}), 1},
		"add with bad probe port": {add(&zdsapi.AddWorkload{Uid: "a", Probes: []*zdsapi.Probe{{Port: 70000}}}), 1},
		"del with descriptor":     {&zdsapi.WorkloadRequest{Payload: &zdsapi.WorkloadRequest_Del{Del: &zdsapi.DelWorkload{Uid: "a"}}}, 1},
		"keep with descriptor":    {&zdsapi.WorkloadRequest{Payload: &zdsapi.WorkloadRequest_Keep{Keep: &zdsapi.KeepWorkload{Uid: "a"}}}, 1},
		"no payload":              {&zdsapi.WorkloadRequest{}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			noLeak(t)
			path := filepath.Join(t.TempDir(), "zds.sock")
			ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = ln.Close() })
			h := newRecorder()
			t.Cleanup(h.close)
			ztunnel(t, path, zdsapi.Version_V2, h)
			c, err := ln.AcceptUnix()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.Close() })
			p := newPacketConn(c, MaxMessageV2)
			if _, _, err := p.read(); err != nil { // hello
				t.Fatal(err)
			}
			data := mustMarshal(t, tc.m)
			if len(data) == 0 {
				data = []byte{0x7a, 0} // an unknown field: an empty packet would read as the end of the stream
			}
			if err := p.write(data, slices.Repeat([]int{0}, tc.fds)); err != nil {
				t.Fatal(err)
			}
			out, _, err := p.read()
			if err != nil {
				t.Fatal(err)
			}
			if text, err := decodeResponse(out, 0); err != nil || text == "" {
				t.Errorf("want a refusal, got %q, %v", text, err)
			}
			if !h.idle() {
				t.Error("the request reached the handler")
			}
		})
	}
}

func TestUnknownListenerKindIsClosed(t *testing.T) {
	noLeak(t)
	fds, err := duplicateAll([]*os.File{os.Stdin, os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	l := takeListeners("a", []zdsapi.ListenerKind{99, zdsapi.ListenerKind_TUNNEL}, fds)
	if len(l) != 1 || l[zdsapi.ListenerKind_TUNNEL] == nil {
		t.Errorf("listeners: %v", l)
	}
	l.Close()
}

func TestVersion1MessageBound(t *testing.T) {
	w := pod(t, "a")
	w.Info.Name = string(slices.Repeat([]byte("x"), MaxMessageV1))
	if _, _, err := encodeAdd(zdsapi.Version_V1, w); err == nil {
		t.Error("a version 1 message above its bound was encoded")
	}
	if _, _, err := encodeAdd(zdsapi.Version_V2, w); err != nil {
		t.Error(err)
	}
}

func FuzzDecode(f *testing.F) {
	add := &zdsapi.WorkloadRequest{Payload: &zdsapi.WorkloadRequest_Add{Add: &zdsapi.AddWorkload{Uid: "a",
		Listeners: []zdsapi.ListenerKind{1, 2}, Addresses: [][]byte{{1, 2, 3, 4}}}}}
	b, err := proto.Marshal(add)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, 3)
	f.Add([]byte{8, 2, 16, 3}, 0)
	f.Fuzz(func(t *testing.T, data []byte, n int) {
		for _, v := range []zdsapi.Version{zdsapi.Version_V1, zdsapi.Version_V2} {
			m, err := decodeRequest(v, data, n)
			if err != nil {
				continue
			}
			if a := m.GetAdd(); a != nil {
				if n != 1+len(a.GetListeners()) || a.GetUid() == "" {
					t.Errorf("accepted %v with %d descriptors", a, n)
				}
				if v == zdsapi.Version_V1 && n != 1 {
					t.Error("a version 1 message carries listeners")
				}
			} else if n != 0 {
				t.Errorf("accepted %d descriptors with %v", n, m)
			}
		}
		if m, err := decodeHello(data, n); err == nil && m.GetHeld() > maxHeld {
			t.Error("unbounded hello")
		}
		if m, err := decodeHeld(data, n); err == nil && len(m.GetListeners()) != n {
			t.Error("held descriptors differ")
		}
		_, _ = decodeResponse(data, n) // must not panic
	})
}
