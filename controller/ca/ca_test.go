package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	securityv1 "istio.io/api/security/v1alpha1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// manual is a clock that moves when told to.
type manual struct {
	clock.Clock
	mu  sync.Mutex
	now time.Time
}

func (m *manual) Now() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now
}

func (m *manual) add(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now = m.now.Add(d)
}

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// memory is a Store.
type memory struct {
	mu   sync.Mutex
	data map[string][]byte
}

func (m *memory) Load(context.Context) (map[string][]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.data, nil
}

func (m *memory) CreateOnce(_ context.Context, d map[string][]byte) (map[string][]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.data == nil {
		m.data = d
	}
	return m.data, nil
}

// onNode grants the identities of its list.
type onNode []string

func (o onNode) MayImpersonate(_ context.Context, c Caller, id api.Identity) error {
	for _, s := range o {
		if s == id.Namespace+"/"+id.ServiceAccount {
			return nil
		}
	}
	return fmt.Errorf("no pod of %s/%s runs on node %q", id.Namespace, id.ServiceAccount, c.Node)
}

const tokens = `# token,user,node
zt,system:serviceaccount:istio-system:ztunnel,node1
app,system:serviceaccount:foo:sleep,node1
`

func newAuthority(t testing.TB, edit ...func(*Config)) (*Authority, *manual, *bytes.Buffer) {
	t.Helper()
	st, err := ParseStaticTokens(strings.NewReader(tokens))
	if err != nil {
		t.Fatal(err)
	}
	clk, logs := &manual{now: start}, &bytes.Buffer{}
	cfg := Config{Store: &memory{}, Authenticator: st, NodeAuthorizer: onNode{"foo/sleep", "foo/httpbin"}, Clock: clk,
		Log: slog.New(slog.NewTextHandler(logs, nil))}
	for _, e := range edit {
		e(&cfg)
	}
	a := New(cfg)
	if err := a.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	return a, clk, logs
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func csrFor(t testing.TB, key crypto.Signer, tmpl *x509.CertificateRequest, sans ...string) string {
	t.Helper()
	for _, s := range sans {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		tmpl.URIs = append(tmpl.URIs, u)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

const (
	sleepID   = "spiffe://cluster.local/ns/foo/sa/sleep"
	httpbinID = "spiffe://cluster.local/ns/foo/sa/httpbin"
)

func ask(t testing.TB, a *Authority, token, impersonate, csr string, seconds int64) ([]*x509.Certificate, error) {
	t.Helper()
	ctx := t.Context()
	if token != "" {
		ctx = metadata.NewIncomingContext(ctx, metadata.Pairs("authorization", "Bearer "+token))
	}
	req := &securityv1.IstioCertificateRequest{Csr: csr, ValidityDuration: seconds}
	if impersonate != "" {
		req.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{impersonatedField: structpb.NewStringValue(impersonate)}}
	}
	resp, err := service{a: a}.CreateCertificate(ctx, req)
	if err != nil {
		return nil, err
	}
	certs, err := parseCerts([]byte(strings.Join(resp.GetCertChain(), "")))
	if err != nil {
		t.Fatal(err)
	}
	return certs, nil
}

func verify(t *testing.T, a *Authority, chain []*x509.Certificate, at time.Time) {
	t.Helper()
	raw, err := a.RootPEM()
	if err != nil {
		t.Fatal(err)
	}
	opts := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	opts.Roots.AppendCertsFromPEM(raw)
	for _, c := range chain[1:] {
		opts.Intermediates.AddCert(c)
	}
	if _, err := chain[0].Verify(opts); err != nil {
		t.Error(err)
	}
}

func TestMT16CertificateForTheCallersNode(t *testing.T) {
	a, _, logs := newAuthority(t)
	key := newKey(t)
	for _, tc := range []struct{ token, impersonate, san string }{
		{"app", "", sleepID}, {"app", sleepID, sleepID}, {"zt", httpbinID, httpbinID}, {"zt", "", "spiffe://cluster.local/ns/istio-system/sa/ztunnel"},
	} {
		chain, err := ask(t, a, tc.token, tc.impersonate, csrFor(t, key, &x509.CertificateRequest{}, tc.san), 3600)
		if err != nil {
			t.Fatalf("%+v: %v", tc, err)
		}
		leaf := chain[0]
		if len(chain) != 2 || len(leaf.URIs) != 1 || leaf.URIs[0].String() != tc.san || leaf.IsCA || !key.PublicKey.Equal(leaf.PublicKey) {
			t.Errorf("%+v: chain of %d, leaf %v", tc, len(chain), leaf.URIs)
		}
		if !leaf.NotAfter.Equal(start.Add(time.Hour)) || !leaf.NotBefore.Equal(start.Add(-2*time.Minute)) {
			t.Errorf("valid from %s to %s", leaf.NotBefore, leaf.NotAfter)
		}
		critical := false
		for _, e := range leaf.Extensions {
			critical = critical || e.Id.String() == "2.5.29.17" && e.Critical
		}
		if !critical {
			t.Error("the SAN is not critical")
		}
		verify(t, a, chain, start)
	}
	if n := strings.Count(logs.String(), "certificate signed"); n != 4 {
		t.Errorf("%d audit lines, want 4", n)
	}
	if !strings.Contains(logs.String(), `caller=istio-system/ztunnel pod="" node=node1 peer=unknown identity=`+httpbinID) {
		t.Errorf("the audit line lacks the caller or the identity:\n%s", logs)
	}
}

func TestRefusals(t *testing.T) {
	a, clk, logs := newAuthority(t)
	key := newKey(t)
	good := csrFor(t, key, &x509.CertificateRequest{}, sleepID)
	block, _ := pem.Decode([]byte(good))
	block.Bytes[len(block.Bytes)-1] ^= 1
	forged := string(pem.EncodeToMemory(block))
	block.Bytes[len(block.Bytes)-1] ^= 1
	small, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		token, impersonate, csr string
		ttl                     int64
		code                    codes.Code
		want                    string
	}{
		"no token":                 {"", "", good, 0, codes.Unauthenticated, "no bearer token"},
		"bad token":                {"x", "", good, 0, codes.Unauthenticated, ErrBadToken.Error()},
		"foreign SAN":              {"app", "", csrFor(t, key, &x509.CertificateRequest{}, httpbinID), 0, codes.InvalidArgument, "caller foo/sleep, requested identity " + sleepID},
		"SAN is not the requested": {"zt", httpbinID, good, 0, codes.InvalidArgument, "subject alternative name"},
		"two SANs":                 {"app", "", csrFor(t, key, &x509.CertificateRequest{}, sleepID, httpbinID), 0, codes.InvalidArgument, "2 URIs"},
		"no SAN":                   {"app", "", csrFor(t, key, &x509.CertificateRequest{}), 0, codes.InvalidArgument, "0 URIs"},
		"DNS name beside it":       {"app", "", csrFor(t, key, &x509.CertificateRequest{DNSNames: []string{"istiod.istio-system.svc"}}, sleepID), 0, codes.InvalidArgument, "1 others"},
		"SAN in another writing":   {"app", "", csrFor(t, key, &x509.CertificateRequest{}, "spiffe://cluster.local/ns/foo/sa/sleep?x"), 0, codes.InvalidArgument, "subject alternative name"},
		"forged signature":         {"app", "", forged, 0, codes.InvalidArgument, "signature"},
		"weak key":                 {"app", "", csrFor(t, small, &x509.CertificateRequest{}, sleepID), 0, codes.InvalidArgument, "public key"},
		"no PEM":                   {"app", "", "x", 0, codes.InvalidArgument, "no PEM"},
		"two requests":             {"app", "", good + good, 0, codes.InvalidArgument, "behind the PEM"},
		"too large":                {"app", "", strings.Repeat("x", maxCSR+1), 0, codes.InvalidArgument, "at most"},
		"negative validity":        {"app", "", good, -1, codes.InvalidArgument, "validity_duration"},
		"91 days":                  {"app", "", good, 91 * 86400, codes.InvalidArgument, "validity_duration"},
		"overflowing validity":     {"app", "", good, 1 << 62, codes.InvalidArgument, "validity_duration"},
		"an app impersonates":      {"app", httpbinID, csrFor(t, key, &x509.CertificateRequest{}, httpbinID), 0, codes.PermissionDenied, "not a trusted node proxy"},
		"not on the node":          {"zt", "spiffe://cluster.local/ns/bar/sa/x", good, 0, codes.PermissionDenied, `no pod of bar/x runs on node "node1"`},
		"foreign trust domain":     {"zt", "spiffe://evil/ns/foo/sa/sleep", good, 0, codes.PermissionDenied, "trust domain"},
		"no identity":              {"zt", "spiffe://cluster.local/foo", good, 0, codes.InvalidArgument, "ImpersonatedIdentity"},
	} {
		t.Run(name, func(t *testing.T) {
			logs.Reset()
			clk.add(10 * time.Second) // so that a line is written of each
			_, err := ask(t, a, tc.token, tc.impersonate, tc.csr, tc.ttl)
			if status.Code(err) != tc.code || !strings.Contains(fmt.Sprint(err), tc.want) {
				t.Errorf("got %v, want %s with %q", err, tc.code, tc.want)
			}
			if !strings.Contains(logs.String(), "certificate refused") || strings.Contains(logs.String(), "signed") {
				t.Errorf("log: %s", logs)
			}
		})
	}
	a.issuer = nil
	if _, err := ask(t, a, "app", "", good, 0); status.Code(err) != codes.Unavailable {
		t.Errorf("before Load: %v", err)
	}
}

func TestMT22IdentityFollowsTheTrustDomain(t *testing.T) {
	td := "old-td"
	a, _, _ := newAuthority(t, func(c *Config) { c.TrustDomain = func() string { return td } })
	csr := func(d string) string {
		return csrFor(t, newKey(t), &x509.CertificateRequest{}, "spiffe://"+d+"/ns/foo/sa/sleep")
	}
	if _, err := ask(t, a, "app", "", csr("old-td"), 0); err != nil {
		t.Error(err)
	}
	td = "new-td"
	if _, err := ask(t, a, "app", "", csr("old-td"), 0); status.Code(err) != codes.InvalidArgument {
		t.Errorf("the old trust domain is still signed: %v", err)
	}
	if _, err := ask(t, a, "app", "", csr("new-td"), 0); err != nil {
		t.Error(err)
	}
}

// TestMT19RootIsMadeOnce: whichever of several controllers starts first makes the root, the others take it.
func TestMT19RootIsMadeOnce(t *testing.T) {
	st := &memory{}
	roots := make([][]byte, 4)
	var wg sync.WaitGroup
	for i := range roots {
		wg.Go(func() {
			a, _, _ := newAuthority(t, func(c *Config) { c.Store = st })
			roots[i], _ = a.RootPEM()
		})
	}
	wg.Wait()
	for _, r := range roots {
		if len(r) == 0 || !bytes.Equal(r, roots[0]) {
			t.Fatal("two controllers hold different roots")
		}
	}
	c, err := parseCerts(roots[0])
	if err != nil || c[0].NotAfter.Sub(start) < 9*365*24*time.Hour {
		t.Errorf("%v, until %s", err, c[0].NotAfter)
	}
	st.data = map[string][]byte{}
	if err := New(Config{Store: st, Authenticator: &StaticTokens{}, NodeAuthorizer: onNode{}, Clock: &manual{now: start}}).Load(t.Context()); err == nil || !strings.Contains(err.Error(), FileCACert) {
		t.Errorf("an empty stored root: %v", err)
	}
	t.Run("MT-19 control: with cacerts none is made", func(t *testing.T) {
		empty := &memory{}
		a, _, _ := newAuthority(t, func(c *Config) { c.Store, c.PlugIn = empty, plugged(cacerts(t)) })
		if root, err := a.RootPEM(); err != nil || len(root) == 0 || empty.data != nil {
			t.Errorf("%d bytes of root, %v, stored %d files", len(root), err, len(empty.data))
		}
	})
}

// cacerts are valid for two days.
func cacerts(t testing.TB) map[string][]byte {
	t.Helper()
	files, _ := hierarchy(t, start, 48*time.Hour)
	return files
}

func plugged(files map[string][]byte) func(context.Context) (map[string][]byte, error) {
	return func(context.Context) (map[string][]byte, error) { return files, nil }
}

func TestMT18PlugInCA(t *testing.T) {
	files := cacerts(t)
	a, _, _ := newAuthority(t, func(c *Config) { c.PlugIn = plugged(files) })
	chain, err := ask(t, a, "app", "", csrFor(t, newKey(t), &x509.CertificateRequest{}, sleepID), 72*3600)
	if err != nil {
		t.Fatal(err)
	}
	if len(chain) != 3 || chain[1].Subject.CommonName != "Intermediate CA" || !bytes.Equal(encodeCert(chain[2].Raw), files[FileRootCert]) {
		t.Errorf("chain of %d is not leaf, intermediate, root", len(chain))
	}
	if chain[0].NotAfter.After(chain[1].NotAfter) {
		t.Error("the leaf outlives its issuer")
	}
	verify(t, a, chain, start)
	other := cacerts(t)
	for name, tc := range map[string]struct {
		file string
		data []byte
		want string
	}{
		"missing chain": {FileCertChain, nil, FileCertChain + ": missing"},
		"foreign key":   {FileCAKey, other[FileCAKey], FileCAKey + ": is not the key"},
		"foreign root":  {FileRootCert, other[FileRootCert], "does not lead to " + FileRootCert},
		"garbage cert":  {FileCACert, []byte("x"), FileCACert + ": holds no PEM"},
		"garbage chain": {FileCertChain, append(bytes.Clone(files[FileCertChain]), 'x'), FileCertChain + ": holds something behind"},
		"garbage key":   {FileCAKey, files[FileCACert], FileCAKey + ": holds a PEM block"},
	} {
		t.Run(name, func(t *testing.T) {
			bad := map[string][]byte{}
			for k, v := range files {
				bad[k] = v
			}
			bad[tc.file] = tc.data
			if _, err := parsePlugIn(bad, start); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
	if _, err := parsePlugIn(files, start.Add(49*time.Hour)); err == nil || !strings.Contains(err.Error(), FileCACert) {
		t.Errorf("expired: %v", err)
	}
}

func TestServingCertificateRenews(t *testing.T) {
	a, clk, _ := newAuthority(t)
	get := a.ServingCertificate([]string{"istiod.istio-system.svc", "127.0.0.1"})
	first, err := get(nil)
	if err != nil {
		t.Fatal(err)
	}
	if first.Leaf.VerifyHostname("istiod.istio-system.svc") != nil || first.Leaf.VerifyHostname("127.0.0.1") != nil || len(first.Certificate) != 2 {
		t.Errorf("names %v %v", first.Leaf.DNSNames, first.Leaf.IPAddresses)
	}
	clk.add(11 * time.Hour)
	if c, _ := get(nil); c != first {
		t.Error("renewed before half of its life")
	}
	clk.add(2 * time.Hour)
	if c, err := get(nil); err != nil || c == first || !c.Leaf.NotAfter.Equal(clk.Now().Add(24*time.Hour)) {
		t.Errorf("not renewed: %v", err)
	}
	if _, err := New(Config{}).ServingCertificate(nil)(nil); !errors.Is(err, ErrNotLoaded) {
		t.Errorf("before Load: %v", err)
	}
}

func FuzzCSR(f *testing.F) {
	f.Add(csrFor(f, newKey(f), &x509.CertificateRequest{}, sleepID))
	f.Add(csrFor(f, newKey(f), &x509.CertificateRequest{DNSNames: []string{"a"}}, sleepID, httpbinID))
	f.Fuzz(func(t *testing.T, text string) {
		csr, err := parseCSR(text, sleepID)
		if err == nil && (len(csr.URIs) != 1 || csr.URIs[0].String() != sleepID || csr.CheckSignature() != nil) {
			t.Errorf("accepted %q", text)
		}
	})
}

func FuzzStaticTokens(f *testing.F) {
	f.Add(tokens)
	f.Add("\"a\nb\",system:serviceaccount:x:y,z")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseStaticTokens(strings.NewReader(text))
		if err != nil {
			return
		}
		for _, c := range s.byHash {
			id := api.Identity{TrustDomain: "td", Namespace: c.Namespace, ServiceAccount: c.ServiceAccount}
			if _, err := api.ParseIdentity(id.String()); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestRootIsKept: the Secret is deleted under a running controller.
func TestRootIsKept(t *testing.T) {
	store := &memory{}
	a, _, logs := newAuthority(t, func(c *Config) { c.Store = store })
	if err := a.Sync(t.Context(), true); err != nil || strings.Contains(logs.String(), "stored again") {
		t.Errorf("nothing is missing: %v, %s", err, logs)
	}
	store.data = nil
	if err := a.Sync(t.Context(), false); err != nil || store.data != nil {
		t.Errorf("a follower stored it: %v", err)
	}
	if err := a.Sync(t.Context(), true); err != nil || !strings.Contains(logs.String(), "stored again") {
		t.Errorf("gone: %v, %s", err, logs)
	}
	next, _, _ := newAuthority(t, func(c *Config) { c.Store = store })
	old, _ := a.RootPEM()
	if now, err := next.RootPEM(); err != nil || !bytes.Equal(now, old) {
		t.Errorf("the next controller has another root, %v", err)
	}
	store.data = nil
	newAuthority(t, func(c *Config) { c.Store = store }) // it was faster
	if err := a.Sync(t.Context(), true); !errors.Is(err, ErrOtherRoot) {
		t.Errorf("another root: %v", err)
	}
	if now, err := a.RootPEM(); err != nil || !bytes.Equal(now, old) {
		t.Errorf("another root is in force: %v", err)
	}
	store.data = map[string][]byte{}
	if err := a.Sync(t.Context(), true); err == nil || !strings.Contains(err.Error(), FileCACert) {
		t.Errorf("an empty root: %v", err)
	}
	if _, err := New(Config{Store: store}).RootPEM(); !errors.Is(err, ErrNotLoaded) {
		t.Errorf("before Load: %v", err)
	}
}

// away stands for an API server that does not answer.
type away struct{}

func (away) Authenticate(context.Context, string) (Caller, error) {
	return Caller{}, errors.New("connection refused")
}

func TestWhatIsNotKnownIsUnavailable(t *testing.T) {
	a, _, _ := newAuthority(t, func(c *Config) { c.Authenticator = away{} })
	if _, err := ask(t, a, "app", "", csrFor(t, newKey(t), &x509.CertificateRequest{}, sleepID), 0); status.Code(err) != codes.Unavailable {
		t.Errorf("API server away: %v", err)
	}
	td := "cluster.local"
	a, _, _ = newAuthority(t, func(c *Config) { c.TrustDomain = func() string { return td } })
	td = ""
	for _, impersonate := range []string{"", sleepID} {
		if _, err := ask(t, a, "zt", impersonate, csrFor(t, newKey(t), &x509.CertificateRequest{}, sleepID), 0); status.Code(err) != codes.Unavailable {
			t.Errorf("trust domain, impersonating %q: %v", impersonate, err)
		}
	}
}
