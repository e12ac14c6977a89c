package ca

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api"
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

func TestTokenReview(t *testing.T) {
	good := authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: []string{api.TokenAudience}, User: authenticationv1.UserInfo{
		Username: "system:serviceaccount:istio-system:ztunnel", Extra: map[string]authenticationv1.ExtraValue{
			extraPodName: {"zt-1"}, extraPodUID: {"u"}, extraNodeName: {"node1"}}}}
	f, clk := &fakeReview{status: good}, &manual{now: start}
	tr := NewTokenReview(f, clk)
	want := Caller{"istio-system", "ztunnel", "zt-1", "u", "node1"}
	for range 3 {
		if c, err := tr.Authenticate(t.Context(), "a"); err != nil || c != want {
			t.Fatalf("got %+v, %v", c, err)
		}
	}
	if f.calls != 1 {
		t.Errorf("%d reviews of one token", f.calls)
	}
	f.status.Authenticated = false
	clk.add(31 * time.Second)
	if _, err := tr.Authenticate(t.Context(), "a"); !errors.Is(err, ErrBadToken) {
		t.Errorf("revoked: %v", err)
	}
	for name, spoil := range map[string]func(*authenticationv1.TokenReviewStatus){
		"audience":   func(s *authenticationv1.TokenReviewStatus) { s.Audiences = nil },
		"no account": func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "admin" },
		"slashes":    func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "system:serviceaccount:a/sa/b:c" },
	} {
		f.status = good
		spoil(&f.status)
		if c, err := tr.Authenticate(t.Context(), name); !errors.Is(err, ErrBadToken) || c != (Caller{}) {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
	f.status, f.err = good, errors.New("api server is away")
	if _, err := tr.Authenticate(t.Context(), "z"); err == nil || errors.Is(err, ErrBadToken) {
		t.Errorf("an outage is not a bad token: %v", err)
	}
	f.err = nil
	for i := range reviewsMax + 10 {
		if _, err := tr.Authenticate(t.Context(), fmt.Sprint("t", i)); err != nil {
			t.Fatal(err)
		}
	}
	if len(tr.known) > reviewsMax {
		t.Errorf("%d tokens remembered", len(tr.known))
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
