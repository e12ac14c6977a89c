package webhook

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
)

// stalled is a body that does not end until it is let go.
type stalled struct {
	left int
	let  <-chan struct{}
}

func (s *stalled) Read(p []byte) (int, error) {
	if s.left == 0 {
		<-s.let
		return 0, io.ErrUnexpectedEOF
	}
	n := min(len(p), s.left)
	clear(p[:n])
	s.left -= n
	return n, nil
}

// ask sends a body from an address and returns the code of the answer.
func ask(h *Handler, from string, body io.Reader) int {
	w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, Path, body)
	r.RemoteAddr = from + ":1"
	h.ServeHTTP(w, r)
	return w.Code
}

// TestHalfSentReviews: pods that send most of a large review and no more hold a bounded memory, and who is elsewhere is served.
func TestHalfSentReviews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := handler(t)
		good, err := json.Marshal(admissionv1.AdmissionReview{Request: request(t, route("a", goodSpec), "")})
		if err != nil {
			t.Fatal(err)
		}
		let := make(chan struct{})
		var mu sync.Mutex
		codes := map[int]int{}
		var wg sync.WaitGroup
		for i := range 60 {
			wg.Go(func() {
				code := ask(h, fmt.Sprintf("10.0.0.%d", i%3), &stalled{maxBody - 64<<10, let})
				mu.Lock()
				codes[code]++
				mu.Unlock()
			})
		}
		synctest.Wait()
		mu.Lock()
		if codes[http.StatusServiceUnavailable] < 57-3 {
			t.Errorf("of 60 half-sent reviews of three addresses so many are turned away: %v", codes)
		}
		mu.Unlock()
		if code := ask(h, "10.0.0.9", strings.NewReader(string(good))); code != http.StatusOK {
			t.Errorf("another address gets %d", code)
		}
		close(let)
		wg.Wait()
		if code := ask(h, "10.0.0.0", strings.NewReader(string(good))); code != http.StatusOK {
			t.Errorf("when they are gone it gets %d", code)
		}
		if !h.bytes.Take(netip.Addr{}, bytesEach) {
			t.Error("what was taken is not given back")
		}
	})
}

// TestReviewsTakeTurns: while others hold all places a review waits, and not longer than the API server does.
func TestReviewsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := handler(t)
		var leaves []func()
		for i := range reviewsNow {
			leave, err := h.turns.Enter(t.Context(), netip.AddrFrom4([4]byte{10, byte(i / reviewsEach)}))
			if err != nil {
				t.Fatal(err)
			}
			leaves = append(leaves, leave)
		}
		before := time.Now()
		if code := ask(h, "a", strings.NewReader("{}")); code != http.StatusServiceUnavailable || time.Since(before) != reviewPeriod {
			t.Errorf("%d after %s", code, time.Since(before))
		}
		for _, leave := range leaves {
			leave()
		}
		if code := ask(h, "a", strings.NewReader("{}")); code != http.StatusBadRequest {
			t.Error(code)
		}
	})
}
