package ca

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// shared is what replicas share: a Store, cacerts and a RotationStore.
type shared struct {
	memory
	mu     sync.Mutex
	files  map[string][]byte // cacerts
	record *Record
	saves  int
	fail   error // of the next Save
}

func (s *shared) plugIn(context.Context) (map[string][]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.files, nil
}

// rotations is its RotationStore.
type rotations struct{ *shared }

func (r rotations) Load(context.Context) (*Record, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.record == nil {
		return nil, nil
	}
	return r.record.clone(), nil
}

func (r rotations) Save(_ context.Context, rec *Record) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.fail; err != nil {
		r.fail = nil
		return err
	}
	if was := r.record.clone().Version; was != rec.Version {
		return ErrConflict
	}
	r.saves++
	r.record = rec.clone()
	r.record.Version = strconv.Itoa(r.saves)
	return nil
}

func (r rotations) ReplaceRoot(_ context.Context, files map[string][]byte) error {
	r.memory.mu.Lock()
	defer r.memory.mu.Unlock()
	r.data = files
	return nil
}

func (s *shared) request(step string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.record = s.record.clone()
	s.record.Request = &Request{Step: step, By: "jane"}
	s.saves++
	s.record.Version = strconv.Itoa(s.saves)
}

func (s *shared) set(files map[string][]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files = files
}

// replica is an authority of several.
func (s *shared) replica(t testing.TB, clk *manual, logs *bytes.Buffer) *Authority {
	t.Helper()
	a := s.newReplica(t, clk, logs)
	must(t, a.Load(t.Context()))
	return a
}

func (s *shared) newReplica(t testing.TB, clk *manual, logs *bytes.Buffer) *Authority {
	t.Helper()
	st, err := ParseStaticTokens(strings.NewReader(tokens))
	if err != nil {
		t.Fatal(err)
	}
	return New(Config{Store: &s.memory, PlugIn: s.plugIn, Rotation: rotations{s}, Authenticator: st,
		NodeAuthorizer: onNode{"foo/sleep", "foo/httpbin"}, Clock: clk, MaxTTL: 48 * time.Hour, Log: slog.New(slog.NewTextHandler(logs, nil))})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func leafOf(t testing.TB, a *Authority) []*x509.Certificate {
	t.Helper()
	chain, err := ask(t, a, "app", "", csrFor(t, newKey(t), &x509.CertificateRequest{}, sleepID), 0)
	must(t, err)
	return chain
}

func signerOf(t testing.TB, a *Authority) string {
	chain := leafOf(t, a)
	return Fingerprint(encodeCert(chain[len(chain)-1].Raw))
}

func rootsOf(t testing.TB, a *Authority) []string {
	t.Helper()
	raw, err := a.RootPEM()
	must(t, err)
	certs, err := parseCerts(raw)
	must(t, err)
	var out []string
	for _, c := range certs {
		out = append(out, Fingerprint(encodeCert(c.Raw)))
	}
	return out
}

// TestRootRotation walks the steps of a self-signed root: published, signs, the old one withdrawn.
func TestRootRotation(t *testing.T) {
	s, clk, logs := &shared{}, &manual{now: start}, &bytes.Buffer{}
	a := s.replica(t, clk, logs)
	must(t, a.Sync(t.Context(), true))
	old := rootsOf(t, a)
	if len(old) != 1 || signerOf(t, a) != old[0] {
		t.Fatalf("roots %v", old)
	}
	s.request(RequestRotate)
	must(t, a.Sync(t.Context(), true))
	both := rootsOf(t, a)
	if len(both) != 2 || both[0] != old[0] || signerOf(t, a) != old[0] {
		t.Fatalf("a root is to come: trusted are %v, %s signs", both, signerOf(t, a))
	}
	clk.add(time.Hour)
	must(t, a.Sync(t.Context(), true))
	if signerOf(t, a) != old[0] {
		t.Error("the next root signs although nobody was told of it")
	}
	raw, _ := a.RootPEM()
	a.Distributed(raw)
	clk.add(4 * time.Minute)
	restarted := s.replica(t, clk, logs)
	must(t, restarted.Sync(t.Context(), true))
	must(t, a.Sync(t.Context(), true))
	if signerOf(t, a) != old[0] || signerOf(t, restarted) != old[0] {
		t.Error("the next root signs before its time")
	}
	s.fail = errors.New("the API server is away")
	clk.add(2 * time.Minute)
	if err := a.Sync(t.Context(), true); err == nil || signerOf(t, a) != old[0] {
		t.Errorf("the switch is not stored and counts: %v", err)
	}
	must(t, a.Sync(t.Context(), true))
	must(t, restarted.Sync(t.Context(), false))
	for _, x := range []*Authority{a, restarted, s.replica(t, clk, logs)} {
		if got := rootsOf(t, x); len(got) != 2 || got[0] != both[1] || got[1] != old[0] || signerOf(t, x) != both[1] {
			t.Errorf("after the switch: trusted are %v, %s signs", got, signerOf(t, x))
		}
	}
	if len(s.record.Signer)+len(s.record.Made) > 0 {
		t.Error("keys are left in the record")
	}
	clk.add(48*time.Hour - time.Minute)
	must(t, a.Sync(t.Context(), true))
	if got := rootsOf(t, a); len(got) != 2 {
		t.Errorf("the old root is withdrawn while its certificates may be valid: %v", got)
	}
	clk.add(2 * time.Minute)
	must(t, a.Sync(t.Context(), true))
	if got := rootsOf(t, a); len(got) != 1 || got[0] != both[1] {
		t.Errorf("the old root is not withdrawn: %v", got)
	}
	if n := strings.Count(logs.String(), `msg="root rotation"`); n != 4 || len(s.record.Steps) != 4 {
		t.Errorf("%d lines, steps %+v", n, s.record.Steps)
	}
	if s.record.Steps[1].By != "jane" {
		t.Errorf("who asked is not recorded: %+v", s.record.Steps[1])
	}
}

// TestOperatorsSteps: switch and withdraw are done when they are possible, refused otherwise, and recorded.
func TestOperatorsSteps(t *testing.T) {
	s, clk, logs := &shared{}, &manual{now: start}, &bytes.Buffer{}
	a := s.replica(t, clk, logs)
	must(t, a.Sync(t.Context(), true))
	last := func() string { return s.record.Steps[len(s.record.Steps)-1].What }
	for _, step := range []string{RequestSwitch, RequestWithdraw, "burn"} {
		s.request(step)
		must(t, a.Sync(t.Context(), true))
		if !strings.Contains(last(), step) || !strings.Contains(last(), "refused") || s.record.Request != nil {
			t.Errorf("%s: %q, %v is left", step, last(), s.record.Request)
		}
	}
	s.request(RequestRotate)
	must(t, a.Sync(t.Context(), true))
	clk.add(time.Second)
	s.request(RequestRotate)
	must(t, a.Sync(t.Context(), true))
	if !strings.Contains(last(), "under way") || s.record.Request != nil {
		t.Errorf("a second rotation: %q", last())
	}
	s.request(RequestSwitch)
	must(t, a.Sync(t.Context(), true))
	if s.record.Request == nil || len(s.record.Next) == 0 {
		t.Error("it switched although the nodes were not told")
	}
	raw, _ := a.RootPEM()
	a.Distributed(raw)
	must(t, a.Sync(t.Context(), true))
	if len(s.record.Next) > 0 || s.record.Request != nil || len(rootsOf(t, a)) != 2 {
		t.Errorf("it did not switch: %q", last())
	}
	s.request(RequestWithdraw)
	must(t, a.Sync(t.Context(), true))
	if len(rootsOf(t, a)) != 1 || !strings.Contains(last(), "by an operator") {
		t.Errorf("not withdrawn: %q", last())
	}
	s.record = nil // somebody deletes the Secret
	must(t, a.Sync(t.Context(), true))
	if s.record == nil || len(s.record.Steps) < 5 {
		t.Error("the record is not stored again")
	}
}

// TestMT18BackToSelfSigned: cacerts are taken away; nothing changes until an operator says so, and then both are trusted.
func TestMT18BackToSelfSigned(t *testing.T) {
	for _, stored := range []bool{true, false} { // whether there ever was a self-signed root
		s, clk, logs := &shared{}, &manual{now: start}, &bytes.Buffer{}
		if stored {
			must(t, s.replica(t, clk, logs).Sync(t.Context(), true))
			s.record = nil
		}
		files, _ := hierarchy(t, start, 48*time.Hour)
		s.set(files)
		a, b := s.replica(t, clk, logs), s.replica(t, clk, logs)
		must(t, a.Sync(t.Context(), true))
		old := signerOf(t, a)
		s.set(nil)
		tell := func(d time.Duration) {
			raw, _ := a.RootPEM()
			a.Distributed(raw)
			clk.add(d)
			_ = a.Sync(t.Context(), true)
			_ = b.Sync(t.Context(), false)
		}
		for range 3 {
			tell(time.Hour)
		}
		if signerOf(t, a) != old || signerOf(t, b) != old || len(rootsOf(t, a)) != 1 {
			t.Errorf("it changed by itself: trusted are %v", rootsOf(t, a))
		}
		s.set(files) // back again: the root is the operator's to replace
		tell(time.Second)
		s.request(RequestRotate)
		tell(time.Second)
		if len(s.record.Next) > 0 || !strings.Contains(s.record.Steps[len(s.record.Steps)-1].What, "refused") {
			t.Errorf("cacerts are there: %+v", s.record.Steps)
		}
		s.set(nil)
		tell(time.Second)
		s.request(RequestRotate)
		tell(time.Second)
		if signerOf(t, a) != old || signerOf(t, b) != old || len(rootsOf(t, a)) != 2 {
			t.Errorf("asked for: trusted are %v, steps %+v", rootsOf(t, a), s.record.Steps)
		}
		tell(time.Second)
		tell(6 * time.Minute)
		if signerOf(t, a) == old || signerOf(t, b) == old || len(rootsOf(t, a)) != 2 {
			t.Errorf("not done: trusted are %v, steps %+v", rootsOf(t, a), s.record.Steps)
		}
		if err := a.Sync(t.Context(), true); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	}
}

// TestMT18LiveReload: cacerts appear, change their intermediate, go bad, change their root, and vanish.
func TestMT18LiveReload(t *testing.T) {
	s, clk, logs := &shared{}, &manual{now: start}, &bytes.Buffer{}
	a := s.replica(t, clk, logs)
	must(t, a.Sync(t.Context(), true))
	self := signerOf(t, a)
	first, root := hierarchy(t, start, 48*time.Hour)
	s.set(first)
	must(t, a.Sync(t.Context(), true))
	if got := rootsOf(t, a); len(got) != 2 || signerOf(t, a) != self {
		t.Fatalf("a new root signs at once: %v", got)
	}
	raw, _ := a.RootPEM()
	a.Distributed(raw)
	clk.add(5 * time.Minute)
	must(t, a.Sync(t.Context(), true))
	chain := leafOf(t, a)
	if len(chain) != 3 || !bytes.Equal(encodeCert(chain[2].Raw), first[FileRootCert]) {
		t.Fatalf("chain of %d", len(chain))
	}
	s.set(below(t, root, start, 48*time.Hour))
	must(t, a.Sync(t.Context(), true))
	if now := leafOf(t, a); now[1].Equal(chain[1]) || !now[2].Equal(chain[2]) {
		t.Error("a new intermediate below the same root does not sign at once")
	}
	good := leafOf(t, a)[1]
	for file, data := range map[string][]byte{FileCAKey: cacerts(t)[FileCAKey], FileRootCert: nil, FileCertChain: []byte("x"), FileCACert: first[FileCAKey]} {
		bad := maps.Clone(first)
		bad[file] = data
		s.set(bad)
		if err := a.Sync(t.Context(), true); err == nil || !strings.HasPrefix(err.Error(), "check cacerts: "+file) {
			t.Errorf("%s is bad: %v", file, err)
		}
		if !leafOf(t, a)[1].Equal(good) {
			t.Errorf("%s is bad: the last good certificate is not in force", file)
		}
	}
	s.set(nil)
	if err := a.Sync(t.Context(), true); !errors.Is(err, ErrPlugInGone) || !leafOf(t, a)[1].Equal(good) {
		t.Errorf("gone: %v", err)
	}
	s.set(cacerts(t))
	must(t, a.Sync(t.Context(), true))
	if !leafOf(t, a)[1].Equal(good) || len(rootsOf(t, a)) != 3 {
		t.Errorf("another root signs at once, trusted are %v", rootsOf(t, a))
	}
	early := cacerts(t)
	s.set(early)
	if err := s.newReplica(t, clk, logs).Load(t.Context()); err != nil {
		t.Errorf("a replica that starts with another one to come: %v", err)
	}
	must(t, a.Sync(t.Context(), true))
	again := s.replica(t, clk, logs)
	if !leafOf(t, again)[1].Equal(good) {
		t.Error("a replica that starts meanwhile signs with the new root")
	}
	s.request(RequestRotate)
	must(t, a.Sync(t.Context(), true))
	if what := s.record.Steps[len(s.record.Steps)-1].What; !strings.Contains(what, "plugged in") {
		t.Errorf("rotate: %q", what)
	}
}

// TestRotationsNeverBreakTheMesh plays histories: roots are changed by every way there is while replicas come and go and nodes
// learn late; at each moment each node accepts each node's certificate.
func TestRotationsNeverBreakTheMesh(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { history(t, rand.New(rand.NewPCG(seed, 1))) })
	}
}

// fleetNode is a node of a history: what it trusts, what it will learn, and its certificate.
type fleetNode struct {
	roots, coming []byte
	learns        time.Time
	chain         []*x509.Certificate
	renews        time.Time
}

func history(t *testing.T, r *rand.Rand) {
	s, clk, logs := &shared{}, &manual{now: start}, &bytes.Buffer{}
	replicas := []*Authority{s.replica(t, clk, logs), s.replica(t, clk, logs)}
	leader := 0
	must(t, replicas[leader].Sync(t.Context(), true))
	published, _ := replicas[leader].RootPEM()
	nodes := make([]*fleetNode, 4)
	for i := range nodes {
		nodes[i] = &fleetNode{roots: published, coming: published, chain: leafOf(t, replicas[i%2])}
		nodes[i].renews = clk.Now().Add(time.Duration(r.IntN(720)) * time.Minute)
	}
	switches := 0
	for range 300 { // steps of 20 s to 30 min
		clk.add(time.Duration(20+r.IntN(100)) * time.Second)
		if r.IntN(4) == 0 {
			clk.add(time.Duration(r.IntN(30)) * time.Minute)
		}
		switch r.IntN(40) {
		case 0:
			s.request(RequestRotate)
		case 1:
			files, _ := hierarchy(t, clk.Now(), 365*24*time.Hour)
			s.set(files)
		case 2:
			leader = 1 - leader
		case 3:
			i := r.IntN(2) // the old one serves until the new one is ready, and does not lead any more
			leader = 1 - i
			if next := s.newReplica(t, clk, logs); next.Load(t.Context()) == nil {
				replicas[i] = next
			}
		case 4:
			s.fail = errors.New("conflict")
		}
		for i, a := range replicas {
			if r.IntN(3) > 0 || i == leader {
				_ = a.Sync(t.Context(), i == leader) // an outage changes nothing
			}
		}
		if roots, _ := replicas[leader].RootPEM(); r.IntN(3) > 0 {
			if !bytes.Equal(roots, published) {
				switches++
			}
			published = roots
			replicas[leader].Distributed(roots)
		}
		for i, n := range nodes {
			n.step(t, clk.Now(), published, replicas[r.IntN(2)], r)
			for j, peer := range nodes {
				if err := n.accepts(peer.chain, clk.Now()); err != nil {
					t.Fatalf("at %s node %d refuses node %d: %v\n%s", clk.Now(), i, j, err, logs)
				}
			}
		}
	}
	if switches < 4 {
		t.Errorf("only %d changes of the roots", switches)
	}
}

// step: a change reaches a node within two minutes; a certificate is renewed within minutes, or shortly before its end.
func (n *fleetNode) step(t *testing.T, now time.Time, published []byte, ca *Authority, r *rand.Rand) {
	if !n.learns.IsZero() && !now.Before(n.learns) {
		n.roots, n.learns = n.coming, time.Time{}
	}
	if n.learns.IsZero() && !bytes.Equal(published, n.roots) {
		n.coming, n.learns = published, now.Add(time.Duration(r.IntN(120))*time.Second)
	}
	if now.After(n.renews) {
		n.chain, n.renews = leafOf(t, ca), now.Add(time.Duration(r.IntN(4))*time.Minute)
		if r.IntN(10) == 0 {
			n.renews = now.Add(20 * time.Hour)
		}
	}
}

// accepts looks whether the chain's root is trusted: that chains lead to their roots is other tests' business.
func (n *fleetNode) accepts(chain []*x509.Certificate, now time.Time) error {
	root := chain[len(chain)-1]
	if !bytes.Contains(n.roots, encodeCert(root.Raw)) {
		return fmt.Errorf("root %s is not trusted", Fingerprint(encodeCert(root.Raw)))
	}
	for _, c := range chain {
		if !now.Before(c.NotAfter) {
			return fmt.Errorf("%s ended at %s", c.Subject, c.NotAfter)
		}
	}
	return nil
}

// TestStartWithAnotherRoot: cacerts were replaced while no controller ran, or before the leader saw it.
func TestStartWithAnotherRoot(t *testing.T) {
	s, clk, logs := &shared{}, &manual{now: start}, &bytes.Buffer{}
	s.set(cacerts(t))
	a := s.replica(t, clk, logs)
	must(t, a.Sync(t.Context(), true))
	old := signerOf(t, a)
	s.set(cacerts(t))
	next := s.newReplica(t, clk, logs)
	if err := next.Load(t.Context()); !errors.Is(err, ErrNotAgreed) {
		t.Fatalf("before the leader: %v", err)
	}
	must(t, a.Sync(t.Context(), true))
	must(t, next.Load(t.Context()))
	if signerOf(t, next) != old || signerOf(t, a) != old {
		t.Error("the new root signs before its time")
	}
	s.set(cacerts(t))
	s.record.Next, s.record.Signer = nil, nil // as if nobody had seen the second one
	alone := s.newReplica(t, clk, logs)
	must(t, alone.Sync(t.Context(), true))
	must(t, alone.Load(t.Context()))
	if got := rootsOf(t, alone); len(got) != 2 || got[1] != old {
		t.Errorf("the key of the old root is gone: trusted are %v, want the new one and %s", got, old)
	}
}
