package credential

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/undermesh/undermesh/controller/api/credential"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

var ref = credential.Ref{Namespace: "foo", Name: "db", Roots: true}

// roots is a credential of new roots.
func roots(t *testing.T) *settings.Credential {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &settings.Credential{Ref: ref.Message(), Roots: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// controller is the other end of the calls.
type controller struct {
	mu    sync.Mutex
	open  *fakeCall
	calls int
	fails error
}

type fakeCall struct {
	grpc.ClientStream
	ctx   context.Context
	asked chan *settings.CredentialRequest
	out   chan *settings.Credential
	end   chan error
}

func (c *controller) call(ctx context.Context) (credential.ClientStream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	if c.fails != nil {
		return nil, c.fails
	}
	c.open = &fakeCall{ctx: ctx, asked: make(chan *settings.CredentialRequest, 100), out: make(chan *settings.Credential), end: make(chan error)}
	return c.open, nil
}

func (c *controller) now() *fakeCall {
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open
}

func (f *fakeCall) Send(r *settings.CredentialRequest) error { f.asked <- r; return nil }

func (f *fakeCall) Recv() (*settings.Credential, error) {
	select {
	case c := <-f.out:
		return c, nil
	case err := <-f.end:
		return nil, err
	case <-f.ctx.Done():
		return nil, f.ctx.Err()
	}
}

func with(t *testing.T, f func(t *testing.T, m *Manager, c *controller)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := &controller{}
		m, err := New(Config{Open: c.call, Clock: clock.System(), Most: 2})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = m.Run(ctx) })
		f(t, m, c)
		cancel()
		wg.Wait()
	})
}

func get(t *testing.T, m *Manager, ref credential.Ref) (*Credential, error) {
	ctx, cancel := clock.WithTimeout(t.Context(), clock.System(), time.Second, nil)
	defer cancel()
	return m.Get(ctx, ref)
}

func later(d time.Duration) {
	timer := time.NewTimer(d)
	<-timer.C
	synctest.Wait()
}

// TestFollows: nobody is called before a credential is needed; what is told last counts, over an outage too, and what was taken back
// does not.
func TestFollows(t *testing.T) {
	with(t, func(t *testing.T, m *Manager, c *controller) {
		later(time.Hour)
		if c.calls != 0 {
			t.Fatal("the controller was called for nothing")
		}
		if _, err := get(t, m, ref); err == nil || !strings.Contains(err.Error(), "Secret foo/db") {
			t.Fatalf("without an answer: %v", err)
		}
		call := c.now()
		if r := <-call.asked; r.GetDrop() || r.GetRef().GetName() != "db" {
			t.Fatalf("asked for %v", r)
		}
		call.out <- roots(t)
		synctest.Wait()
		first, err := get(t, m, ref)
		if err != nil || first.Roots == nil || first.Superseded() {
			t.Fatalf("%+v, %v", first, err)
		}
		call.out <- roots(t)
		synctest.Wait()
		second, err := get(t, m, ref)
		if err != nil || second == first || !first.Superseded() || second.Superseded() {
			t.Errorf("after a rotation: %v", err)
		}
		call.end <- errors.New("away")
		later(5 * time.Second)
		if now, err := get(t, m, ref); err != nil || now != second || second.Superseded() {
			t.Errorf("after an outage: %v", err)
		}
		call = c.now()
		if len(call.asked) != 1 {
			t.Errorf("the new call was told of %d credentials", len(call.asked))
		}
		call.out <- &settings.Credential{Ref: ref.Message(), Problem: "Secret foo/db is not there"}
		synctest.Wait()
		if _, err := get(t, m, ref); err == nil || !second.Superseded() {
			t.Errorf("after it was taken back: %v", err)
		}
		call.out <- &settings.Credential{Ref: ref.Message(), Roots: []byte("x")}
		synctest.Wait()
		if _, err := get(t, m, ref); err == nil || !strings.Contains(err.Error(), "PEM") {
			t.Errorf("garbled: %v", err)
		}
	})
}

// TestForgets: what nobody used is dropped, and the call with the last one; there is a bound; another kind of controller is told apart.
func TestForgets(t *testing.T) {
	with(t, func(t *testing.T, m *Manager, c *controller) {
		other := credential.Ref{Namespace: "foo", Name: "other", Roots: true}
		for _, r := range []credential.Ref{ref, other} {
			if _, err := get(t, m, r); err == nil {
				t.Error("a credential from nowhere")
			}
		}
		if _, err := get(t, m, credential.Ref{Namespace: "foo", Name: "third", Roots: true}); err == nil || !strings.Contains(err.Error(), "the node has 2") {
			t.Errorf("one too many: %v", err)
		}
		call := c.now()
		for range 4 {
			later(10 * time.Minute)
			_, _ = get(t, m, ref)
		}
		var dropped []string
		for len(call.asked) > 0 {
			if r := <-call.asked; r.GetDrop() {
				dropped = append(dropped, r.GetRef().GetName())
			}
		}
		if len(dropped) != 1 || dropped[0] != "other" {
			t.Errorf("dropped %q", dropped)
		}
		later(time.Hour)
		select {
		case <-call.ctx.Done():
		default:
			t.Error("the call goes on for nothing")
		}
		c.mu.Lock()
		c.fails = status.Error(codes.Unimplemented, "unknown service")
		c.mu.Unlock()
		if _, err := get(t, m, ref); err == nil || !strings.Contains(err.Error(), "gives no credentials") {
			t.Errorf("Istio's controller: %v", err)
		}
	})
}
