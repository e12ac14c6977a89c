package credentials

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
	"log/slog"
	"math/big"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	networking "istio.io/api/networking/v1alpha3"
	typev1beta1 "istio.io/api/type/v1beta1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api/credential"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// pair is a certificate that is its own root, with its key.
func pair(t *testing.T) credential.Data {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return credential.Data{"tls.crt": cert, "ca.crt": cert, "tls.key": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: secret})}
}

// vault is the Secrets of a test, the pods of its nodes, and a Keeper.
type vault struct {
	*Keeper
	t *testing.T

	mu      sync.Mutex
	secrets map[model.Name]credential.Data
	failing error
	reads   map[model.Name]int
	pods    map[string]bool // "node namespace app"
	told    map[string]string
	log     strings.Builder
}

func inVault(t *testing.T, f func(t *testing.T, v *vault)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		v := &vault{t: t, secrets: map[model.Name]credential.Data{}, reads: map[model.Name]int{}, pods: map[string]bool{}, told: map[string]string{}}
		var err error
		v.Keeper, err = New(Config{Clock: clock.System(), Get: v.get, Log: slog.New(slog.NewTextHandler(&v.log, nil)),
			Selects: func(node, namespace string, labels map[string]string) bool {
				v.mu.Lock()
				defer v.mu.Unlock()
				return v.pods[node+" "+namespace+" "+labels["app"]]
			},
			Caller: func(ctx context.Context) (Caller, error) { return ctx.Value(callerKey{}).(Caller), nil },
			Tell: func(ref credential.Ref, problem string, known bool) {
				v.told[ref.String()] = fmt.Sprintf("%q %t", problem, known)
			}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = v.Run(ctx) })
		f(t, v)
		cancel()
		wg.Wait()
		if strings.Contains(v.log.String(), "PRIVATE KEY") {
			t.Error("the log has a private key")
		}
	})
}

type callerKey struct{}

func (v *vault) get(_ context.Context, n model.Name) (credential.Data, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.reads[n]++
	return v.secrets[n], v.failing
}

func (v *vault) put(namespace, name string, d credential.Data, failing error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.secrets[model.Name{Namespace: namespace, Name: name}], v.failing = d, failing
}

func (v *vault) runs(node, namespace, app string, now bool) {
	v.mu.Lock()
	v.pods[node+" "+namespace+" "+app] = now
	v.mu.Unlock()
	v.Apply([]model.Event{{Kind: model.KindPod, Name: model.Name{Namespace: namespace, Name: app}}})
}

// rule names a Secret for app=sleep, or for nobody.
func rule(namespace, name, secret string, mode networking.ClientTLSSettings_TLSmode, selects bool) model.Event {
	r := &networkingv1.DestinationRule{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	r.Spec.Host = "db"
	r.Spec.TrafficPolicy = &networking.TrafficPolicy{Tls: &networking.ClientTLSSettings{Mode: mode, CredentialName: secret}}
	if selects {
		r.Spec.WorkloadSelector = &typev1beta1.WorkloadSelector{MatchLabels: map[string]string{"app": "sleep"}}
	}
	return model.Event{Kind: model.KindDestinationRule, Name: model.Name{Namespace: namespace, Name: name}, Object: r}
}

// fakeStream is one call.
type fakeStream struct {
	grpc.ServerStream
	ctx  context.Context
	in   chan *settings.CredentialRequest
	mu   sync.Mutex
	last map[credential.Ref]*settings.Credential
	err  error
}

func (s *fakeStream) Context() context.Context { return s.ctx }

func (s *fakeStream) Recv() (*settings.CredentialRequest, error) {
	select {
	case r, ok := <-s.in:
		if !ok {
			return nil, io.EOF
		}
		return r, nil
	case <-s.ctx.Done():
		return nil, s.ctx.Err()
	}
}

func (s *fakeStream) Send(c *settings.Credential) error {
	ref, err := credential.Parse(c.GetRef())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last[ref] = c
	return err
}

// has is the newest word on a credential: "", "good", or the problem.
func (s *fakeStream) has(ref credential.Ref) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.last[ref]
	switch {
	case c == nil:
		return ""
	case c.GetProblem() == "":
		if (len(c.GetPrivateKey()) > 0) != ref.Pair {
			return "a key where none was asked for, or none"
		}
		return "good"
	case len(c.GetPrivateKey())+len(c.GetCertificates())+len(c.GetRoots()) > 0:
		return "a problem with a credential"
	}
	return c.GetProblem()
}

// call opens one of a node; the returned function ends it.
func (v *vault) call(who Caller) (*fakeStream, func() error) {
	ctx, cancel := context.WithCancel(context.WithValue(v.t.Context(), callerKey{}, who))
	s := &fakeStream{ctx: ctx, in: make(chan *settings.CredentialRequest), last: map[credential.Ref]*settings.Credential{}}
	done := make(chan struct{})
	go func() { defer close(done); s.err = v.WatchCredentials(s); cancel() }()
	return s, func() error {
		close(s.in)
		<-done
		return s.err
	}
}

func (s *fakeStream) want(ref credential.Ref, drop bool) {
	s.in <- &settings.CredentialRequest{Ref: ref.Message(), Drop: drop}
}

func later(d time.Duration) {
	timer := time.NewTimer(d)
	<-timer.C
	synctest.Wait()
}

var (
	wantsBoth  = credential.Ref{Namespace: "foo", Name: "db", Pair: true, Roots: true}
	wantsRoots = credential.Ref{Namespace: "foo", Name: "db", Roots: true}
)

// TestWhoHasIt: a Secret goes to nodes where a pod runs that a rule of its namespace gives it to, as much of it as the rule needs, and to
// nobody else, whether or not there is one.
func TestWhoHasIt(t *testing.T) {
	inVault(t, func(t *testing.T, v *vault) {
		v.put("foo", "db", pair(t), nil)
		v.put("foo", "other", pair(t), nil)
		v.runs("n1", "foo", "sleep", true)
		v.runs("n2", "foo", "httpbin", true)
		v.runs("n2", "bar", "sleep", true)
		v.Apply([]model.Event{rule("foo", "r", "db", networking.ClientTLSSettings_MUTUAL, true), rule("bar", "r", "db", networking.ClientTLSSettings_MUTUAL, true),
			rule("foo", "nobody", "other", networking.ClientTLSSettings_MUTUAL, false)})
		one, end1 := v.call(Caller{Node: "n1"})
		two, end2 := v.call(Caller{Node: "n2"})
		other := credential.Ref{Namespace: "foo", Name: "other", Pair: true, Roots: true}
		for _, s := range []*fakeStream{one, two} {
			for _, ref := range []credential.Ref{wantsBoth, wantsRoots, other, {Namespace: "foo", Name: "absent", Pair: true}} {
				s.want(ref, false)
			}
		}
		later(time.Second)
		for _, tc := range []struct {
			what string
			got  string
			want string
		}{
			{"the node of the pod", one.has(wantsBoth), "good"},
			{"less than the rule gives, which no rule gives", one.has(wantsRoots), notGiven},
			{"a Secret of a rule that selects nobody", one.has(other), notGiven},
			{"a Secret that is not there", one.has(credential.Ref{Namespace: "foo", Name: "absent", Pair: true}), notGiven},
			{"another node", two.has(wantsBoth), notGiven},
		} {
			if tc.got != tc.want {
				t.Errorf("%s: %q, want %q", tc.what, tc.got, tc.want)
			}
		}
		if n := v.reads[model.Name{Namespace: "foo", Name: "other"}]; n > 0 {
			t.Errorf("a Secret that is given to nobody was read %d times", n)
		}
		v.runs("n2", "foo", "sleep", true)
		v.runs("n1", "foo", "sleep", false)
		later(time.Second)
		if a, b := one.has(wantsBoth), two.has(wantsBoth); a != notGiven || b != "good" {
			t.Errorf("the pod moved: its old node has %q, its new one %q", a, b)
		}
		two.want(wantsBoth, true)
		later(time.Millisecond)
		v.Apply([]model.Event{{Kind: model.KindDestinationRule, Name: model.Name{Namespace: "foo", Name: "r"}}})
		later(time.Second)
		if got := two.has(wantsBoth); got != "good" || v.told[wantsBoth.String()] != `"" false` {
			t.Errorf("of what a node dropped it hears %q, and the rule's status %q", got, v.told[wantsBoth.String()])
		}
		if err := errors.Join(end1(), end2()); err != nil {
			t.Error(err)
		}
	})
}

// TestRotation: what a Secret is now, is there within the period; an API server that is away takes nothing.
func TestRotation(t *testing.T) {
	inVault(t, func(t *testing.T, v *vault) {
		v.runs("n1", "foo", "sleep", true)
		v.Apply([]model.Event{rule("foo", "r", "db", networking.ClientTLSSettings_SIMPLE, true)})
		s, end := v.call(Caller{Node: "n1"})
		s.want(wantsRoots, false)
		step := func(what string, d credential.Data, failing error, want string) {
			t.Helper()
			v.put("foo", "db", d, failing)
			later(6 * time.Second)
			if got := s.has(wantsRoots); got != want {
				t.Errorf("%s: %q, want %q", what, got, want)
			}
			if want == "good" {
				want = ""
			}
			if got := v.told[wantsRoots.String()]; got != fmt.Sprintf("%q true", want) {
				t.Errorf("%s: the status says %s", what, got)
			}
		}
		step("there is none", nil, nil, "Secret foo/db is not there")
		step("there is one", pair(t), nil, "good")
		before := s.last[wantsRoots]
		step("another", pair(t), nil, "good")
		if string(before.GetRoots()) == string(s.last[wantsRoots].GetRoots()) {
			t.Error("another Secret was not told")
		}
		step("the API server is away", nil, errors.New("away"), "good")
		step("no right", nil, ErrForbidden, "read Secret foo/db: the controller has no right to read it (pilot.credentials.namespaces of the chart)")
		step("garbled", credential.Data{"ca.crt": []byte("x")}, nil, "Secret foo/db: roots: it is not PEM")
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}

// TestBounds: of calls, of what one asks for, of the Secrets of a namespace, and of a token's time.
func TestBounds(t *testing.T) {
	inVault(t, func(t *testing.T, v *vault) {
		v.runs("n1", "foo", "sleep", true)
		var events []model.Event
		for i := range maxPerNamespace + 1 {
			name := fmt.Sprintf("db-%02d", i)
			v.put("foo", name, pair(t), nil)
			events = append(events, rule("foo", name, name, networking.ClientTLSSettings_MUTUAL, true))
		}
		v.put("bar", "db", pair(t), nil)
		v.runs("n1", "bar", "sleep", true)
		v.Apply(append(events, rule("bar", "r", "db", networking.ClientTLSSettings_MUTUAL, true)))
		s, end := v.call(Caller{Node: "n1", Expires: time.Now().Add(time.Minute)})
		ref := func(ns, name string) credential.Ref {
			return credential.Ref{Namespace: ns, Name: name, Pair: true, Roots: true}
		}
		for _, r := range []credential.Ref{ref("foo", "db-00"), ref("foo", "db-64"), ref("bar", "db")} {
			s.want(r, false)
		}
		later(10 * time.Second)
		if a, b, c := s.has(ref("foo", "db-00")), s.has(ref("foo", "db-64")), s.has(ref("bar", "db")); a != "good" || !strings.Contains(b, "more than 64") || c != "good" {
			t.Errorf("%q, %q, %q", a, b, c)
		}
		var ends []func() error
		for range 3 {
			_, e := v.call(Caller{Node: "n1"})
			ends = append(ends, e)
		}
		later(time.Millisecond)
		_, over := v.call(Caller{Node: "n1"})
		later(time.Millisecond)
		if err := over(); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("a fifth call of a node: %v", err)
		}
		for _, e := range ends {
			if err := e(); err != nil {
				t.Error(err)
			}
		}
		bad, e := v.call(Caller{Node: "n2"})
		bad.want(credential.Ref{Namespace: "foo", Name: "../bar/db", Pair: true}, false)
		if err := e(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("a name that is none: %v", err)
		}
		later(time.Minute)
		if err := end(); status.Code(err) != codes.Unauthenticated {
			t.Errorf("the token ended: %v", err)
		}
	})
}
