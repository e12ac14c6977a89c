package enroll

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/cni/wire"
	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/nodeagent/netns"
	"github.com/undermesh/undermesh/nodeagent/zds"
	"github.com/undermesh/undermesh/nodeagent/zds/zdsapi"
)

// world is the fake of everything that a manager touches. It records what is done, in order.
type world struct {
	t *testing.T

	mu         sync.Mutex
	done       []string
	fail       map[string]int // step to how often it fails from now on
	kernel     map[string]*fakePod
	connected  bool
	live       int
	unended    int // one less at each look
	pods       []*corev1.Pod
	unlisted   []*corev1.Pod // Get knows them, List does not
	namespaces map[string]*corev1.Namespace
	events     []string
	changes    notifier
}

type fakePod struct {
	w       *world
	uid     string
	in, out bool
	gone    bool // its namespace
}

func newWorld(t *testing.T) *world {
	return &world{t: t, connected: true, fail: map[string]int{}, kernel: map[string]*fakePod{}, namespaces: map[string]*corev1.Namespace{}}
}

// do records a step, or fails it.
func (w *world) do(step string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail[step] > 0 {
		w.fail[step]--
		w.done = append(w.done, step+"!")
		return errors.New(step + " does not work")
	}
	w.done = append(w.done, step)
	return nil
}

// took returns what was done since the last call.
func (w *world) took() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := strings.Join(w.done, " ")
	w.done = nil
	return s
}

func (w *world) peek() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.done, " ")
}

func (w *world) Prepare(_ context.Context, p PodNet) (Handle, error) {
	w.mu.Lock()
	f, known := w.kernel[p.UID]
	w.mu.Unlock()
	if known {
		return f, nil
	}
	if err := w.do("prepare"); err != nil {
		return nil, err
	}
	f = &fakePod{w: w, uid: p.UID}
	w.mu.Lock()
	w.kernel[p.UID] = f
	w.mu.Unlock()
	return f, nil
}

func (w *world) Known() (map[string]Handle, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[string]Handle{}
	for uid, f := range w.kernel {
		out[uid] = f
	}
	return out, nil
}

func (f *fakePod) turn(what string, on bool, at *bool) error {
	f.w.mu.Lock()
	same := *at == on
	f.w.mu.Unlock()
	if same {
		return nil
	}
	if err := f.w.do(fmt.Sprintf("%s:%t", what, on)); err != nil {
		return err
	}
	f.w.mu.Lock()
	*at = on
	f.w.mu.Unlock()
	return nil
}

func (f *fakePod) Inbound(on bool) error  { return f.turn("inbound", on, &f.in) }
func (f *fakePod) Outbound(on bool) error { return f.turn("outbound", on, &f.out) }
func (f *fakePod) State() (bool, bool, error) {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	return f.in, f.out, nil
}
func (f *fakePod) Netns() (*netns.NetNS, error) {
	f.w.mu.Lock()
	gone := f.gone
	f.w.mu.Unlock()
	if gone {
		return nil, nil
	}
	return netns.Current()
}
func (f *fakePod) Ensure() error                                { return nil }
func (f *fakePod) Adopt(map[zdsapi.ListenerKind]*os.File) error { return f.w.do("adopt") }
func (f *fakePod) Files() map[zdsapi.ListenerKind]*os.File      { return nil }
func (f *fakePod) Live() (int, error)                           { f.w.mu.Lock(); defer f.w.mu.Unlock(); return f.w.live, nil }
func (f *fakePod) Unended() (int, error) {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	n := f.w.unended
	f.w.unended = max(0, n-1)
	if n > 0 {
		f.w.done = append(f.w.done, fmt.Sprintf("unended:%d", n))
	}
	return n, nil
}
func (f *fakePod) Cleanup(context.Context) error {
	if err := f.w.do("cleanup"); err != nil {
		return err
	}
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	delete(f.w.kernel, f.uid)
	return nil
}

func (w *world) Add(_ context.Context, p zds.Workload) error {
	if p.Netns == nil || p.Info.GetServiceAccount() == "" {
		w.t.Errorf("pod %s is handed over without namespace or account", p.UID)
	}
	if !w.Connected() {
		return zds.ErrNoZtunnel
	}
	return w.do("ztunnel")
}
func (w *world) Del(_ context.Context, _ string, deleted bool) error {
	if deleted {
		return w.do("delete")
	}
	return w.do("forget")
}
func (w *world) Connected() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.connected }

func (w *world) List() ([]*corev1.Pod, map[string]*corev1.Namespace, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.pods), maps.Clone(w.namespaces), true
}
func (w *world) Watch() (<-chan struct{}, func()) { return w.changes.watch() }
func (w *world) Get(_ context.Context, ns, name string) (*corev1.Pod, *corev1.Namespace, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range append(slices.Clone(w.pods), w.unlisted...) {
		if p.Namespace == ns && p.Name == name {
			return p, w.namespaces[ns], nil
		}
	}
	return nil, nil, ErrPodGone
}

func (w *world) Annotate(_ context.Context, pod *corev1.Pod, on bool) error {
	if err := w.do(fmt.Sprintf("annotate:%t", on)); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, p := range w.pods {
		if p.UID == pod.UID {
			p = p.DeepCopy()
			p.Annotations = map[string]string{}
			if on {
				p.Annotations[api.AnnotationRedirection] = api.RedirectionEnabled
			}
			w.pods[i] = p
			w.changes.notify()
		}
	}
	return nil
}

func (w *world) Event(pod *corev1.Pod, kind, reason, message string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, kind+" "+reason+" "+pod.Name+": "+message)
}

func (w *world) hasEvent(part string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.events, func(e string) bool { return strings.Contains(e, part) })
}

// label sets the labels of namespace foo.
func (w *world) label(s string) {
	w.mu.Lock()
	w.namespaces["foo"] = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "foo", Labels: labels(s)}}
	w.mu.Unlock()
	w.changes.notify()
}

func (w *world) setPods(pods ...*corev1.Pod) {
	w.mu.Lock()
	w.pods = pods
	w.mu.Unlock()
	w.changes.notify()
}

func running(name string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: name, UID: directoryUID("foo", name)},
		Spec:   corev1.PodSpec{NodeName: "n1"},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: "10.0.0.5"}}}}
}

// manage starts a manager over the world; stop ends it.
func (w *world) manage(digest string) (m *Manager, stop func()) {
	return w.manageLogged(digest, slog.New(slog.DiscardHandler))
}

func (w *world) manageLogged(digest string, log *slog.Logger) (m *Manager, stop func()) {
	m = New(Config{Datapath: w, Proxy: w, Cluster: w, Events: w, Log: log, Digest: digest,
		FindNetns: func(string, []netip.Addr) (*netns.NetNS, error) {
			if err := w.do("find"); err != nil {
				return nil, err
			}
			return netns.Current()
		}})
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	return m, sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
}

// expect lets d pass and compares what was done in it.
func (w *world) expect(d time.Duration, want string) {
	w.t.Helper()
	time.Sleep(d) // in a bubble: no time passes outside
	synctest.Wait()
	if got := w.took(); got != want {
		w.t.Errorf("done in %s:\n got %s\nwant %s", d, got, want)
	}
}

const enrolment = "find prepare inbound:true ztunnel annotate:true outbound:true"

func TestLiveEnrolmentAndBack_SI01_SI02(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.label("")
		w.setPods(running("a"))
		m, stop := w.manage("")
		defer stop()
		w.expect(time.Second, "")
		w.label("istio-injection=enabled")
		w.expect(time.Second, enrolment)
		if s := m.Status(); len(s) != 1 || s[0].Step != StepEnrolled || s[0].Name != "a" {
			t.Errorf("status: %+v", s)
		}
		w.mu.Lock()
		w.live = 2
		w.mu.Unlock()
		w.label("")
		w.expect(4*time.Second, "annotate:false")
		w.expect(2*time.Second, "outbound:false inbound:false")
		w.expect(time.Minute, "") // connections that were captured go on
		w.mu.Lock()
		w.live = 0
		w.mu.Unlock()
		w.expect(2*time.Second, "forget cleanup")
		if !w.hasEvent("MeshEnrolled a") || !w.hasEvent("MeshUnenrolled a") {
			t.Errorf("events: %q", w.events)
		}
	})
}

func TestLingeringConnectionsAreCutAtTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.label("istio-injection=enabled")
		w.setPods(running("a"))
		w.live = 1
		_, stop := w.manage("")
		defer stop()
		w.expect(time.Second, enrolment)
		w.label("istio-injection=disabled")
		w.expect(10*time.Second, "annotate:false outbound:false inbound:false")
		w.expect(50*time.Minute, "")
		w.expect(15*time.Minute, "forget cleanup")
	})
}

func TestChangeOfMindWhileLeaving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.label("istio-injection=enabled")
		w.setPods(running("a"))
		w.live = 1
		_, stop := w.manage("")
		defer stop()
		w.expect(time.Second, enrolment)
		w.label("")
		w.expect(10*time.Second, "annotate:false outbound:false inbound:false")
		w.label("istio-injection=enabled")
		w.expect(2*time.Second, "inbound:true annotate:true outbound:true")
	})
}

// TestEveryStepIsTriedAgain fails each step once; the pod is enrolled all the same and nothing is done out of order.
func TestEveryStepIsTriedAgain(t *testing.T) {
	for step, want := range map[string]string{
		"find":          "find! " + enrolment,
		"prepare":       "find prepare! prepare inbound:true ztunnel annotate:true outbound:true",
		"inbound:true":  "find prepare inbound:true! inbound:true ztunnel annotate:true outbound:true",
		"ztunnel":       "find prepare inbound:true ztunnel! inbound:false inbound:true ztunnel annotate:true outbound:true",
		"annotate:true": "find prepare inbound:true ztunnel annotate:true! annotate:true outbound:true",
		"outbound:true": "find prepare inbound:true ztunnel annotate:true outbound:true! outbound:true",
	} {
		t.Run(step, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.fail[step] = 1
				w.label("istio-injection=enabled")
				w.setPods(running("a"))
				m, stop := w.manage("")
				defer stop()
				w.expect(10*time.Second, want)
				if s := m.Status(); len(s) != 1 || s[0].Step != StepEnrolled || s[0].Err != "" {
					t.Errorf("status: %+v", s)
				}
				if !w.hasEvent("Warning MeshEnrollmentFailed a") {
					t.Errorf("no event names the failure: %q", w.events)
				}
			})
		})
	}
}

func TestLeavingStepsAreTriedAgain(t *testing.T) {
	for step, want := range map[string]string{
		"annotate:false": "annotate:false! annotate:false outbound:false inbound:false forget cleanup",
		"outbound:false": "annotate:false outbound:false! outbound:false inbound:false forget cleanup",
		"inbound:false":  "annotate:false outbound:false inbound:false! inbound:false forget cleanup",
		"cleanup":        "annotate:false outbound:false inbound:false forget cleanup! forget cleanup",
		"forget":         "annotate:false outbound:false inbound:false forget! cleanup",
	} {
		t.Run(step, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.label("istio-injection=enabled")
				w.setPods(running("a"))
				_, stop := w.manage("")
				defer stop()
				w.expect(time.Second, enrolment)
				w.mu.Lock()
				w.fail[step] = 1
				w.mu.Unlock()
				w.label("")
				w.expect(20*time.Second, want)
			})
		})
	}
}

// TestRestartAtEveryStep stops the agent after each step of both ways; the next agent goes on from there.
func TestRestartAtEveryStep(t *testing.T) {
	for _, step := range []string{"inbound:true", "ztunnel", "annotate:true", "outbound:true"} {
		t.Run("after failing "+step, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.fail[step] = 1000
				w.label("istio-injection=enabled")
				w.setPods(running("a"))
				_, stop := w.manage("")
				time.Sleep(2 * time.Second)
				stop()
				if !strings.Contains(w.peek(), step+"!") {
					t.Fatalf("the step was not reached: %s", w.peek())
				}
				w.took()
				w.mu.Lock()
				w.fail = map[string]int{}
				w.mu.Unlock()
				m, stop := w.manage("")
				defer stop()
				time.Sleep(2 * time.Second)
				synctest.Wait()
				if f := w.kernel["foo_a"]; f == nil || !f.in || !f.out || m.Status()[0].Step != StepEnrolled {
					t.Errorf("kernel %+v, status %+v", f, m.Status())
				}
				if strings.Contains(w.took(), ":false") {
					t.Error("a step was undone")
				}
			})
		})
	}
}

func TestRestartRecoversPrunesAndKeepsCapture(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.label("istio-injection=enabled")
		w.setPods(running("a"), running("b"))
		_, stop := w.manage("")
		time.Sleep(time.Second)
		stop()
		w.took()
		w.mu.Lock()
		w.connected = false // ztunnel comes later
		w.mu.Unlock()
		w.setPods(w.pods[0]) // b was deleted meanwhile
		m, stop := w.manage("")
		defer stop()
		w.expect(5*time.Second, "forget cleanup") // the pod's processes have no say in where it is captured
		<-m.Recovered()
		if snap := m.Snapshot(); len(snap) != 1 || snap[0].UID != "foo_a" || snap[0].Netns == nil {
			t.Errorf("snapshot: %+v", snap)
		}
		if f := w.kernel["foo_a"]; f == nil || !f.in || !f.out {
			t.Errorf("capture was lost: %+v", f)
		}
	})
}

// TestRestartFindsANewSandbox: only when the namespace of the kernel's state is gone the pod is looked for.
func TestRestartFindsANewSandbox(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.label("istio-injection=enabled")
		w.setPods(running("a"))
		_, stop := w.manage("")
		time.Sleep(time.Second)
		stop()
		w.took()
		w.kernel["foo_a"].gone = true
		_, stop = w.manage("")
		defer stop()
		w.expect(time.Second, "find ztunnel")
	})
}

func TestNoZtunnelLeavesRunningPodsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.connected = false
		w.label("istio-injection=enabled")
		w.setPods(running("a"))
		m, stop := w.manage("")
		defer stop()
		w.expect(5*time.Second, "find prepare")
		w.mu.Lock()
		w.connected = true
		w.mu.Unlock()
		w.expect(time.Minute, "inbound:true ztunnel annotate:true outbound:true")
		m.OnDisconnect(zds.Peer{}) // another ztunnel is left: it is given the pod
		w.expect(time.Second, "ztunnel")
	})
}

func attachment(name string) Attachment {
	return Attachment{Namespace: "foo", Name: name, UID: "foo_" + name, ContainerID: "c-" + name, Netns: "/proc/self/ns/net",
		IPs: []netip.Addr{netip.MustParseAddr("10.0.0.5")}}
}

// starting is a pod whose sandbox is being made: no address yet.
func starting(name string) *corev1.Pod {
	p := running(name)
	p.Status = corev1.PodStatus{Phase: corev1.PodPending}
	return p
}

func TestAddCapturesBeforeItReturns_CN08(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.label("istio-injection=enabled")
		m, stop := w.manage("")
		defer stop()
		w.unlisted = []*corev1.Pod{starting("a")} // the list lags behind
		if _, err := m.Add(t.Context(), attachment("a")); err != nil {
			t.Fatal(err)
		}
		if f := w.kernel["foo_a"]; f == nil || !f.in || !f.out {
			t.Fatalf("ADD returned without capture: %+v", f)
		}
		if err := m.Check(t.Context(), attachment("a")); err != nil {
			t.Error(err)
		}
		w.expect(time.Second, "prepare inbound:true ztunnel outbound:true annotate:true")
		w.expect(time.Minute, "") // a list that lags does not remove it
		other := attachment("a")
		other.ContainerID = "an older sandbox"
		m.Del(t.Context(), other)
		w.expect(time.Second, "")
		m.Del(t.Context(), attachment("a"))
		w.expect(time.Minute, "inbound:false delete cleanup")
	})
}

// TestDeletedPodSaysFarewell: DEL returns when the peers of the pod's connections know of their end, before its network goes; it does
// not wait for those who do not answer, nor for a ztunnel that is not there.
func TestDeletedPodSaysFarewell(t *testing.T) {
	for name, c := range map[string]struct {
		unended int
		fail    string
		want    string
		least   time.Duration
		most    time.Duration
	}{
		"nothing is open":                 {0, "", "inbound:false delete cleanup", 0, 0},
		"peers are told":                  {3, "", "inbound:false delete unended:3 unended:2 unended:1 cleanup", farewellPoll, 10 * farewellPoll},
		"a peer is dead":                  {1 << 20, "", "", farewellTime, farewellTime},
		"ztunnel does not hear it":        {0, "delete", "inbound:false delete! cleanup", 0, 0},
		"inbound capture cannot be ended": {0, "inbound:false", "inbound:false! delete cleanup", 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.label("istio-injection=enabled")
				m, stop := w.manage("")
				defer stop()
				w.setPods(starting("a"))
				if _, err := m.Add(t.Context(), attachment("a")); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				w.took()
				w.mu.Lock()
				w.unended = c.unended
				if c.fail != "" {
					w.fail[c.fail] = 1
				}
				w.mu.Unlock()
				start := time.Now()
				m.Del(t.Context(), attachment("a"))
				if d := time.Since(start); d < c.least || d > c.most {
					t.Errorf("DEL took %v, want %v to %v", d, c.least, c.most)
				}
				got := w.took()
				if c.want != "" && got != c.want || !strings.HasPrefix(got, "inbound:false") || !strings.HasSuffix(got, "cleanup") {
					t.Errorf("%s, want %s", got, c.want)
				}
			})
		})
	}
}

func TestFailedAddLeavesNothing(t *testing.T) {
	for step, want := range map[string]string{
		"prepare":       "prepare!",
		"inbound:true":  "prepare inbound:true! delete cleanup",
		"ztunnel":       "prepare inbound:true ztunnel! inbound:false delete cleanup",
		"outbound:true": "prepare inbound:true ztunnel outbound:true! inbound:false delete cleanup",
	} {
		t.Run(step, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.label("istio-injection=enabled")
				w.setPods(starting("a"))
				m, stop := w.manage("")
				defer stop()
				w.fail[step] = 1
				_, err := m.Add(t.Context(), attachment("a"))
				if err == nil || !strings.Contains(err.Error(), "foo/a") || !strings.Contains(err.Error(), step) {
					t.Errorf("error: %v", err)
				}
				w.expect(time.Minute, want)
				if err := m.Check(t.Context(), attachment("a")); !errors.Is(err, ErrNotEnrolled) {
					t.Errorf("CHECK after a failed ADD: %v", err)
				}
				if _, err := m.Add(t.Context(), attachment("a")); err != nil {
					t.Errorf("second ADD: %v", err)
				}
			})
		})
	}
}

func TestAddOfADeletedPod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.label("istio-injection=enabled")
		m, stop := w.manage("")
		defer stop()
		if _, err := m.Add(t.Context(), attachment("gone")); !errors.Is(err, ErrPodGone) || !strings.Contains(err.Error(), "foo/gone") {
			t.Errorf("deleted pod: %v", err)
		}
		w.setPods(starting("a"))
		a := attachment("a")
		a.UID = "of a predecessor"
		if _, err := m.Add(t.Context(), a); !errors.Is(err, ErrPodGone) {
			t.Errorf("another pod of the name: %v", err)
		}
		w.expect(time.Second, "")
	})
}

func TestAddWaitsForZtunnelThenFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.connected = false
		w.label("istio-injection=enabled")
		w.setPods(starting("a"))
		m, stop := w.manage("")
		defer stop()
		time.AfterFunc(5*time.Second, func() { w.mu.Lock(); w.connected = true; w.mu.Unlock() })
		if _, err := m.Add(t.Context(), attachment("a")); err != nil {
			t.Errorf("a ztunnel that came back in time: %v", err)
		}
		w.mu.Lock()
		w.connected = false
		w.mu.Unlock()
		w.setPods(w.pods[0], starting("b"))
		b := attachment("b")
		b.Netns = "/proc/self/ns/net"
		if _, err := m.Add(t.Context(), b); !errors.Is(err, zds.ErrNoZtunnel) || !strings.Contains(err.Error(), "no ztunnel connection") {
			t.Errorf("no ztunnel: %v", err)
		}
	})
}

func TestPodEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.label("istio-injection=enabled")
		w.setPods(running("a"), running("b"))
		m, stop := w.manage("")
		defer stop()
		time.Sleep(time.Second)
		w.took()
		finished := running("a")
		finished.Status.Phase = corev1.PodSucceeded
		w.setPods(finished)
		w.expect(2*time.Second, "forget cleanup forget cleanup")
		if s := m.Status(); len(s) != 0 {
			t.Errorf("still known: %+v", s)
		}
	})
}

func TestUnknownLabelGivesAnEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.label("istio-injection=true")
		w.setPods(running("a"))
		_, stop := w.manage("")
		defer stop()
		w.expect(time.Minute, "")
		if !w.hasEvent(`Warning MeshLabelUnknown a: namespace foo: label istio-injection has the unknown value "true"`) || len(w.events) != 1 {
			t.Errorf("events: %q", w.events)
		}
	})
}

func TestStaleAnnotationIsRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.label("")
		p := running("a")
		p.Annotations = map[string]string{api.AnnotationRedirection: api.RedirectionEnabled}
		w.setPods(p)
		_, stop := w.manage("")
		defer stop()
		w.expect(time.Minute, "annotate:false")
	})
}

func TestDigest(t *testing.T) {
	path := t.TempDir() + "/digest.json"
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.label("istio-injection=enabled")
		w.mu.Lock()
		for _, name := range []string{"open", "mixed", "odd"} {
			w.namespaces[name] = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
		}
		w.namespaces["odd"].Labels = labels("istio-injection=yes")
		w.mu.Unlock()
		mixed := starting("m")
		mixed.Namespace, mixed.Labels = "mixed", labels("sidecar.istio.io/inject=true")
		w.setPods(mixed)
		_, stop := w.manage(path)
		defer stop()
		synctest.Wait()
		d, err := wire.ReadDigest(path)
		if err != nil || !slices.Equal(d.Open, []string{"open"}) || !slices.Equal(d.Enrolled, []string{"foo", "mixed", "odd"}) {
			t.Errorf("%+v %v", d, err)
		}
	})
}

// TestDigestThatCannotBeWritten takes the former digest away: it calls a namespace open that is in the mesh now.
func TestDigestThatCannotBeWritten(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/digest.json"
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.label("")
		m, stop := w.manage(path)
		defer stop()
		synctest.Wait()
		if d, err := wire.ReadDigest(path); err != nil || !d.IsOpen("foo") {
			t.Fatalf("%+v %v", d, err)
		}
		m.mu.Lock()
		m.cfg.Digest = path + strings.Repeat("x", 250-len("digest.json")) // no room for the name of the temporary file
		m.mu.Unlock()
		if err := os.Rename(path, m.cfg.Digest); err != nil {
			t.Fatal(err)
		}
		w.label("istio-injection=enabled")
		synctest.Wait()
		if d, err := wire.ReadDigest(m.cfg.Digest); err == nil {
			t.Errorf("a stale digest is left: %+v", d)
		}
		m.mu.Lock()
		m.cfg.Digest = path
		m.mu.Unlock()
		time.Sleep(time.Minute) // written as soon as it can be, though nothing changed
		synctest.Wait()
		if d, err := wire.ReadDigest(path); err != nil || d.IsOpen("foo") {
			t.Errorf("%+v %v", d, err)
		}
	})
}
