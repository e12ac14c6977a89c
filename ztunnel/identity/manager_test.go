package identity

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/reason"
)

func bundle(cas ...*fakeCA) *rootFile {
	f := &rootFile{}
	var parts [][]byte
	for _, ca := range cas {
		parts = append(parts, ca.pem())
	}
	f.set(parts...)
	return f
}

func TestRequestNamesIdentityCriticallyAndAlone(t *testing.T) {
	_, text, err := newRequest(alice)
	must(t, err)
	block, _ := pem.Decode(text)
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	must(t, err)
	if len(csr.URIs) != 1 || csr.URIs[0].String() != "spiffe://cluster.local/ns/foo/sa/alice" {
		t.Errorf("URIs are %v", csr.URIs)
	}
	if len(csr.Extensions) != 1 || !csr.Extensions[0].Critical || csr.Subject.String() != "" {
		t.Errorf("extensions %v, subject %q; want one critical extension and no subject", csr.Extensions, csr.Subject)
	}
}

// Many callers at once share one request, and each gets the same certificate.
func TestCallersShareOneRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newFakeCA(t, "one")
		ca.block = make(chan struct{})
		m, stop := start(t, ca, bundle(ca), nil)
		var wg sync.WaitGroup
		got := make([]*Certificate, 50)
		for i := range got {
			wg.Go(func() {
				c, err := m.Certificate(t.Context(), alice)
				if err != nil {
					t.Error(err)
				}
				got[i] = c
			})
		}
		synctest.Wait()
		close(ca.block)
		wg.Wait()
		for _, c := range got {
			if c != got[0] {
				t.Error("callers got different certificates")
			}
		}
		if n := ca.requests(); n != 1 {
			t.Errorf("%d requests, want 1", n)
		}
		stop()
	})
}

func TestFirstRequestWaitsTenSecondsThenSaysWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newFakeCA(t, "one")
		ca.setFail(errors.New("the pod is not on this node"))
		m, stop := start(t, ca, bundle(ca), nil)
		began := time.Now()
		_, err := m.Certificate(t.Context(), alice)
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("waited %s, want 10s", took)
		}
		if !errors.Is(err, ErrNoIdentity) || ReasonOf(err) != reason.NoIdentity || !strings.Contains(err.Error(), "the pod is not on this node") {
			t.Errorf("error is %v", err)
		}
		if n := ca.requests(); n < 5 || n > 12 {
			t.Errorf("%d requests in 10 s: want a back-off", n)
		}
		// A caller that gives up earlier learns both: that it gave up, and why there was nothing.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := m.Certificate(ctx, alice); !errors.Is(err, ErrNoIdentity) || !errors.Is(err, context.DeadlineExceeded) ||
			!strings.Contains(err.Error(), "the pod is not on this node") {
			t.Errorf("with an earlier deadline: %v", err)
		}
		if _, err := m.Certificate(t.Context(), api.Identity{}); !errors.Is(err, ErrNoIdentity) {
			t.Errorf("zero identity: %v", err)
		}
		// A caller that waits is served as soon as the CA answers.
		ca.setFail(nil)
		began = time.Now()
		if _, err := m.Certificate(t.Context(), alice); err != nil || time.Since(began) > 10*time.Second {
			t.Errorf("after recovery: %v, waited %s", err, time.Since(began))
		}
		stop()
	})
}

func TestRotationAtHalfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newFakeCA(t, "one")
		m, stop := start(t, ca, bundle(ca), nil)
		defer stop()
		release := m.Watch(alice)
		defer release()
		synctest.Wait()
		first, err := m.Certificate(t.Context(), alice)
		must(t, err)
		time.Sleep(10*time.Hour + 45*time.Minute) // 44.8 % of 24 h
		synctest.Wait()
		if c, _ := m.Certificate(t.Context(), alice); c != first {
			t.Error("rotated before 45 % of its life")
		}
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		second, err := m.Certificate(t.Context(), alice)
		must(t, err)
		if second == first || bytes.Equal(second.Leaf.RawSubjectPublicKeyInfo, first.Leaf.RawSubjectPublicKeyInfo) {
			t.Error("not rotated to a new key at 57 % of its life")
		}
	})
}

func TestFailedRenewalKeepsCertificateUntilItExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newFakeCA(t, "one")
		m, stop := start(t, ca, bundle(ca), nil)
		defer stop()
		defer m.Watch(alice)()
		first, err := m.Certificate(t.Context(), alice)
		must(t, err)
		ca.setFail(errors.New("away"))
		time.Sleep(23*time.Hour + 59*time.Minute)
		if c, err := m.Certificate(t.Context(), alice); err != nil || c != first {
			t.Errorf("the certificate held is not served: %v", err)
		}
		if l := m.Certificates(); len(l) != 1 || l[0].State != StateAvailable || !strings.Contains(l[0].LastError, "away") {
			t.Errorf("listing is %+v", l)
		}
		time.Sleep(time.Minute)
		if _, err := m.Certificate(t.Context(), alice); !errors.Is(err, ErrNoIdentity) {
			t.Errorf("an expired certificate was served, or another error: %v", err)
		}
		if l := m.Certificates(); l[0].State != StateUnavailable {
			t.Errorf("state is %s", l[0].State)
		}
		ca.setFail(nil)
		if c, err := m.Certificate(t.Context(), alice); err != nil || c == first {
			t.Errorf("not recovered: %v", err)
		}
	})
}

func TestUnusedIdentityIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newFakeCA(t, "one")
		m, stop := start(t, ca, bundle(ca), nil)
		defer stop()
		first, second := m.Watch(alice, bob), m.Watch(alice)
		time.Sleep(time.Hour)
		if n := len(m.Certificates()); n != 2 {
			t.Fatalf("%d identities, want 2", n)
		}
		first()
		first() // a second call changes nothing
		time.Sleep(29 * time.Second)
		if n := len(m.Certificates()); n != 2 {
			t.Errorf("%d identities within the time of grace, want 2", n)
		}
		time.Sleep(2 * time.Second)
		if l := m.Certificates(); len(l) != 1 || l[0].Identity != alice.String() {
			t.Errorf("left are %+v, want alice's alone", l)
		}
		second()
		time.Sleep(time.Minute)
		if n := len(m.Certificates()); n != 0 {
			t.Errorf("%d identities at the end", n)
		}
		asked := ca.requests()
		time.Sleep(48 * time.Hour)
		if ca.requests() != asked {
			t.Error("a dropped identity was renewed")
		}
	})
}

// A root that replaces another: while both are in the file both count; the one taken out does not, and what it signed is renewed.
func TestRootRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		older, newer := newFakeCA(t, "older"), newFakeCA(t, "newer")
		issuer := &switchIssuer{to: older}
		file := bundle(older)
		m, stop := start(t, issuer, file, nil)
		defer stop()
		defer m.Watch(alice)()
		first, err := m.Certificate(t.Context(), alice)
		must(t, err)
		if trusts(m, newer) {
			t.Fatal("a root is trusted that nobody named")
		}
		file.set(older.pem(), newer.pem())
		time.Sleep(10 * time.Second)
		if !trusts(m, newer) || !trusts(m, older) {
			t.Error("both roots must be trusted while both are in the file")
		}
		if c, _ := m.Certificate(t.Context(), alice); c != first {
			t.Error("renewed although its root is still in the file")
		}
		issuer.set(newer)
		file.set(newer.pem())
		time.Sleep(10 * time.Second)
		c, err := m.Certificate(t.Context(), alice)
		must(t, err)
		if !c.Root.Equal(newer.root) {
			t.Error("not renewed after its root was taken out")
		}
		if trusts(m, older) || !trusts(m, newer) {
			t.Error("the root taken out must not be trusted, the new one must")
		}
		// A CA that still signs with the old root is not listened to.
		issuer.set(older)
		time.Sleep(13 * time.Hour)
		if got, err := m.Certificate(t.Context(), alice); err != nil || got != c || trusts(m, older) {
			t.Errorf("after an answer with the old root: %v", err)
		}
	})
}

// A root that is new in the CA's answer counts before the file names it: the file reaches nodes late.
func TestRootOfAnswerIsTrusted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		older, newer := newFakeCA(t, "older"), newFakeCA(t, "newer")
		m, stop := start(t, newer, bundle(older), nil)
		defer stop()
		_, err := m.Certificate(t.Context(), alice)
		must(t, err)
		if !trusts(m, older) || !trusts(m, newer) {
			t.Error("want the roots of the file and of the answer")
		}
	})
}

func TestAnswersThatAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		alter func(*x509.Certificate)
		after func([]string) []string
		want  string
	}{
		"another name":  {alter: func(c *x509.Certificate) { c.URIs = append(c.URIs[:0:0], bob.URI()) }, want: "it names spiffe://cluster.local/ns/bar/sa/bob"},
		"two names":     {alter: func(c *x509.Certificate) { c.URIs = append(c.URIs[:1:1], bob.URI()) }, want: "2 URIs"},
		"expired":       {alter: func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }, want: "outside its validity"},
		"no client use": {alter: func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[1:] }, want: "key usage"},
		"leaf alone":    {after: func(a []string) []string { return a[:1] }, want: "want a leaf and its root"},
		"empty":         {after: func([]string) []string { return nil }, want: "want a leaf and its root"},
		"garbage":       {after: func([]string) []string { return []string{"garbage", "more"} }, want: "not PEM"},
		"foreign root": {after: func(a []string) []string {
			return []string{a[0], string(newFakeCA(t, "foreign").pem())}
		}, want: "not signed by a root"},
		"another key": {after: func([]string) []string {
			ca := newFakeCA(t, "third")
			_, csr, _ := newRequest(alice)
			chain, _ := ca.Issue(t.Context(), Request{CSR: csr})
			return chain
		}, want: "another key"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ca := newFakeCA(t, "one")
				ca.alter = c.alter
				m, stop := start(t, &alteredIssuer{ca, c.after}, bundle(ca), nil)
				defer stop()
				_, err := m.Certificate(t.Context(), alice)
				if !errors.Is(err, ErrNoIdentity) || !strings.Contains(err.Error(), c.want) {
					t.Errorf("error is %v, want %q", err, c.want)
				}
			})
		})
	}
}

func TestConfigNamesMissingField(t *testing.T) {
	_, err := New(Config{})
	if err == nil || !strings.Contains(err.Error(), "Issuer") {
		t.Errorf("error is %v", err)
	}
}
