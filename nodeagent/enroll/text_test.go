package enroll

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"

	"github.com/undermesh/undermesh/controller/api"
)

func TestShortenKeepsHeadAndCause(t *testing.T) {
	for _, filler := range []string{"x", "\x01", "€", "\xff"} {
		got := shorten("pod foo/a: " + strings.Repeat(filler, 1<<18) + ": cause")
		if len(got) > maxText || !strings.HasPrefix(got, "pod foo/a: ") || !strings.HasSuffix(got, ": cause") || !utf8.ValidString(got) {
			t.Errorf("%d bytes of %q: %s", len(got), filler, got)
		}
	}
	if got := shorten("short"); got != "short" {
		t.Error(got)
	}
}

// output is a log that may be written to by several goroutines.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}
func (o *output) len() int { o.mu.Lock(); defer o.mu.Unlock(); return o.buf.Len() }

// TestBadPodCostsLittle gives a pod an annotation and probes that are wrong at length and changes it over and over: log,
// events and memory stay small.
func TestBadPodCostsLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.label("istio-injection=enabled")
		bad := running("a")
		bad.Annotations = map[string]string{api.AnnotationExcludeOutboundPorts: strings.Repeat("\x01", 200<<10)}
		bad.Spec.Containers = make([]corev1.Container, 100)
		for i := range bad.Spec.Containers {
			c := &bad.Spec.Containers[i]
			c.Name = "c" + strings.Repeat("c", i)
			c.ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Host: strings.Repeat("h", 4<<10)}}}
		}
		w.setPods(bad)
		log := &output{}
		m, stop := w.manageLogged("", slog.New(slog.NewJSONHandler(log, nil)))
		defer stop()
		for range 50 {
			time.Sleep(time.Second)
			w.setPods(bad.DeepCopy()) // converges again
		}
		synctest.Wait()
		w.mu.Lock()
		events, bytes := len(w.events), len(strings.Join(w.events, ""))
		w.mu.Unlock()
		if events < 3 || events > 25 || bytes > 32<<10 {
			t.Errorf("%d events of %d bytes", events, bytes)
		}
		if log.len() > 64<<10 {
			t.Errorf("%d bytes are logged", log.len())
		}
		if !w.hasEvent("MeshExclusionIgnored a") || !w.hasEvent("and 84 more") {
			t.Error("the pod's owner is not told")
		}
		for _, s := range m.Status() {
			if len(s.Err) > maxText {
				t.Errorf("%d bytes of status", len(s.Err))
			}
		}
	})
}
