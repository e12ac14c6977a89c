package ca

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

type fakeReview struct {
	calls  int
	status authenticationv1.TokenReviewStatus
	err    error
}

func (f *fakeReview) Create(_ context.Context, r *authenticationv1.TokenReview, _ metav1.CreateOptions) (*authenticationv1.TokenReview, error) {
	f.calls++
	if len(r.Spec.Audiences) != 1 || r.Spec.Audiences[0] != api.TokenAudience {
		return nil, errors.New("wrong audience asked for")
	}
	return &authenticationv1.TokenReview{Status: f.status}, f.err
}

// jwt has the shape of a service account's token; nobody here checks signatures.
func jwt(id, audience string, expires time.Time) string {
	enc := base64.RawURLEncoding.EncodeToString
	claims := fmt.Sprintf(`{"aud":[%q],"exp":%d,"jti":%q}`, audience, expires.Unix(), id)
	return enc([]byte(`{"alg":"RS256"}`)) + "." + enc([]byte(claims)) + "." + enc([]byte("signature"))
}

func TestTokenReview(t *testing.T) {
	good := authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: []string{api.TokenAudience}, User: authenticationv1.UserInfo{
		Username: "system:serviceaccount:istio-system:ztunnel", Extra: map[string]authenticationv1.ExtraValue{
			extraPodName: {"zt-1"}, extraPodUID: {"u"}, extraNodeName: {"node1"}}}}
	f, clk := &fakeReview{status: good}, &manual{now: start}
	tr := NewTokenReview(f, clk, nil)
	want := Caller{"istio-system", "ztunnel", "zt-1", "u", "node1", start.Add(time.Hour)}
	a := jwt("a", api.TokenAudience, start.Add(time.Hour))
	for range 3 {
		if c, err := tr.Authenticate(t.Context(), a); err != nil || c != want {
			t.Fatalf("got %+v, %v", c, err)
		}
	}
	if f.calls != 1 {
		t.Errorf("%d reviews of one token", f.calls)
	}
	f.status.Authenticated = false
	clk.add(31 * time.Second)
	if _, err := tr.Authenticate(t.Context(), a); !errors.Is(err, ErrBadToken) {
		t.Errorf("revoked: %v", err)
	}
	for name, spoil := range map[string]func(*authenticationv1.TokenReviewStatus){
		"audience":   func(s *authenticationv1.TokenReviewStatus) { s.Audiences = nil },
		"no account": func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "admin" },
		"slashes":    func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "system:serviceaccount:a/sa/b:c" },
	} {
		f.status = good
		spoil(&f.status)
		if c, err := tr.Authenticate(t.Context(), jwt(name, api.TokenAudience, start.Add(time.Hour))); !errors.Is(err, ErrBadToken) || c != (Caller{}) {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
	f.status, f.err = good, errors.New("api server is away")
	if _, err := tr.Authenticate(t.Context(), jwt("z", api.TokenAudience, start.Add(time.Hour))); err == nil || errors.Is(err, ErrBadToken) {
		t.Errorf("an outage is not a bad token: %v", err)
	}
	f.err = nil
	for i := range reviewsMax + 10 {
		if _, err := tr.Authenticate(t.Context(), jwt(fmt.Sprint("t", i), api.TokenAudience, start.Add(time.Hour))); err != nil {
			t.Fatal(err)
		}
	}
	if len(tr.known) > reviewsMax {
		t.Errorf("%d tokens remembered", len(tr.known))
	}
}

// TestTokensThroughAnOutage: while the API server does not answer, a token that it vouched for is good as long as its pod is
// known and the token lasts, and it is not asked about each time. What was never vouched for, or was refused since, is not.
func TestTokensThroughAnOutage(t *testing.T) {
	good := authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: []string{api.TokenAudience}, User: authenticationv1.UserInfo{
		Username: "system:serviceaccount:istio-system:ztunnel", Extra: map[string]authenticationv1.ExtraValue{
			extraPodName: {"zt-1"}, extraPodUID: {"u"}}}}
	f, clk, there := &fakeReview{status: good}, &manual{now: start}, true
	tr := NewTokenReview(f, clk, func(c Caller) bool { return there && c.PodName == "zt-1" && c.PodUID == "u" })
	node, revoked := jwt("node", api.TokenAudience, start.Add(time.Hour)), jwt("revoked", api.TokenAudience, start.Add(time.Hour))
	ask := func(token string) error {
		_, err := tr.Authenticate(t.Context(), token)
		return err
	}
	if err := errors.Join(ask(node), ask(revoked)); err != nil {
		t.Fatal(err)
	}
	clk.add(10 * time.Minute)
	f.status.Authenticated = false
	if err := ask(revoked); !errors.Is(err, ErrBadToken) {
		t.Errorf("revoked: %v", err)
	}
	f.status, f.err, f.calls = good, errors.New("connection refused"), 0
	clk.add(10 * time.Minute)
	for range 5 {
		if err := ask(node); err != nil {
			t.Errorf("known: %v", err)
		}
	}
	if f.calls != 1 {
		t.Errorf("an API server that is away is asked %d times at once", f.calls)
	}
	for name, token := range map[string]string{"revoked before": revoked, "never seen": jwt("new", api.TokenAudience, start.Add(time.Hour))} {
		if err := ask(token); err == nil || errors.Is(err, ErrBadToken) {
			t.Errorf("%s: %v", name, err)
		}
	}
	t.Run("control: the pod is gone", func(t *testing.T) {
		there = false
		defer func() { there = true }()
		if err := ask(node); err == nil || errors.Is(err, ErrBadToken) {
			t.Error(err)
		}
	})
	t.Run("control: the API server says no more than that it does not want to", func(t *testing.T) {
		clk.add(time.Minute)
		f.err = apierrors.NewForbidden(schema.GroupResource{}, "", errors.New("no right"))
		defer func() { f.err = errors.New("connection refused") }()
		if err := ask(node); err == nil || errors.Is(err, ErrBadToken) {
			t.Error(err)
		}
	})
	clk.add(time.Minute)
	if err := ask(node); err != nil {
		t.Errorf("known, later: %v", err)
	}
	f.calls = 0
	clk.add(time.Minute)
	tr.Heard(false)
	if err := ask(node); err != nil || f.calls != 0 {
		t.Errorf("known, and the outage too: %v, %d questions", err, f.calls)
	}
	f.err = nil
	tr.Heard(true)
	if err := ask(node); err != nil || f.calls != 1 {
		t.Errorf("after the outage: %v, %d questions", err, f.calls)
	}
	f.err = errors.New("connection refused")
	clk.add(time.Hour)
	if err := ask(node); !errors.Is(err, ErrBadToken) {
		t.Errorf("the token has ended: %v", err)
	}
}

func TestStaticTokens(t *testing.T) {
	s, err := ParseStaticTokens(strings.NewReader(tokens))
	if err != nil {
		t.Fatal(err)
	}
	if c, err := s.Authenticate(t.Context(), "zt"); err != nil || c.Node != "node1" || c.String() != "istio-system/ztunnel" {
		t.Errorf("got %+v, %v", c, err)
	}
	if _, err := s.Authenticate(t.Context(), ""); !errors.Is(err, ErrBadToken) {
		t.Errorf("an empty token: %v", err)
	}
	for in, want := range map[string]string{
		"\nsecret\n": "line 2: 1 fields", "secret,u": "line 1: user", "secret,system:serviceaccount:a:b\nsecret,system:serviceaccount:a:b": "line 2: token: is in",
		",system:serviceaccount:a:b": "line 1: token: empty", "secret,system:serviceaccount:a:": "line 1: user",
	} {
		if _, err := ParseStaticTokens(strings.NewReader(in)); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: got %v, want %q", in, err, want)
		}
	}
}

func TestGarbageIsNotReviewed(t *testing.T) {
	good := jwt("a", api.TokenAudience, start.Add(time.Hour))
	parts := strings.Split(good, ".")
	f, clk := &fakeReview{}, &manual{now: start}
	tr := NewTokenReview(f, clk, nil)
	for name, token := range map[string]string{
		"empty": "", "two parts": parts[0] + "." + parts[1], "no signature": parts[0] + "." + parts[1] + ".",
		"no base64": parts[0] + ".***." + parts[2], "no JSON": parts[0] + "." + parts[0][1:] + "." + parts[2],
		"other audience": jwt("a", "vault", start.Add(time.Hour)), "expired": jwt("a", api.TokenAudience, start.Add(-2*time.Minute)),
		"huge": good + strings.Repeat("A", maxToken),
	} {
		if _, err := tr.Authenticate(t.Context(), token); !errors.Is(err, ErrBadToken) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if f.calls != 0 {
		t.Errorf("%d reviews of what cannot be valid", f.calls)
	}
	f.status.Error = "no"
	for range 3 {
		if _, err := tr.Authenticate(t.Context(), good); !errors.Is(err, ErrBadToken) {
			t.Error(err)
		}
	}
	if f.calls != 1 {
		t.Errorf("%d reviews of one refused token", f.calls)
	}
	clk.add(refusalTTL)
	if _, err := tr.Authenticate(t.Context(), good); err == nil || f.calls != 2 {
		t.Errorf("the refusal is kept for more than %s: %v", refusalTTL, err)
	}
	for i := range reviewsMax + 10 {
		_, _ = tr.Authenticate(t.Context(), jwt(fmt.Sprint(i), api.TokenAudience, start.Add(time.Hour)))
	}
	if len(tr.refused) > reviewsMax {
		t.Errorf("%d refusals remembered", len(tr.refused))
	}
}

// slowReview answers when it is let go.
type slowReview struct {
	mu       sync.Mutex
	now, max int
	let      chan struct{}
}

func (s *slowReview) Create(context.Context, *authenticationv1.TokenReview, metav1.CreateOptions) (*authenticationv1.TokenReview, error) {
	s.mu.Lock()
	s.now++
	s.max = max(s.max, s.now)
	s.mu.Unlock()
	<-s.let
	s.mu.Lock()
	s.now--
	s.mu.Unlock()
	return &authenticationv1.TokenReview{}, nil
}

func TestReviewsUnderWayAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slowReview{let: make(chan struct{})}
		tr := NewTokenReview(s, clock.System(), nil)
		const callers = 3 * reviewsNow
		bad, away := 0, 0
		var mu sync.Mutex
		var wg sync.WaitGroup
		for i := range callers {
			wg.Go(func() {
				_, err := tr.Authenticate(from(t.Context(), fmt.Sprint("10.0.0.", i%3)), jwt(fmt.Sprint(i), api.TokenAudience, time.Now().Add(time.Hour)))
				mu.Lock()
				defer mu.Unlock()
				if errors.Is(err, ErrBadToken) {
					bad++
				} else if err != nil {
					away++
				}
			})
		}
		time.Sleep(2 * reviewWait) // of the bubble
		close(s.let)
		wg.Wait()
		if s.max != reviewsNow || bad != reviewsNow || away != callers-reviewsNow {
			t.Errorf("at once %d, refused %d, turned away %d", s.max, bad, away)
		}
	})
}

func FuzzCheckClaims(f *testing.F) {
	f.Add(jwt("a", api.TokenAudience, start.Add(time.Hour)))
	f.Add("e30.eyJhdWQiOiJpc3Rpby1jYSIsImV4cCI6MWU5OX0.AA")
	f.Add("..")
	f.Fuzz(func(t *testing.T, token string) {
		if _, err := checkClaims(token, start); err == nil && (strings.Count(token, ".") != 2 || len(token) > maxToken) {
			t.Errorf("accepted %q", token)
		}
	})
}
