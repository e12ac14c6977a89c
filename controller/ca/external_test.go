package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	certificatesv1 "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/undermesh/undermesh/ztunnel/clock"
)

// signerAPI is the certificates API with a signer behind it, which answers what approve leaves in an approved request.
type signerAPI struct {
	approve func(*certificatesv1.CertificateSigningRequest)

	mu      sync.Mutex
	objects map[string]*certificatesv1.CertificateSigningRequest
	made    []*certificatesv1.CertificateSigningRequest
	most    int // at a time
}

func (s *signerAPI) Create(_ context.Context, r *certificatesv1.CertificateSigningRequest, _ metav1.CreateOptions) (*certificatesv1.CertificateSigningRequest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.objects == nil {
		s.objects = map[string]*certificatesv1.CertificateSigningRequest{}
	}
	s.objects[r.Name] = r.DeepCopy()
	s.made = append(s.made, r.DeepCopy())
	s.most = max(s.most, len(s.objects))
	return r.DeepCopy(), nil
}

func (s *signerAPI) UpdateApproval(_ context.Context, name string, r *certificatesv1.CertificateSigningRequest, _ metav1.UpdateOptions) (*certificatesv1.CertificateSigningRequest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects[name] = r.DeepCopy()
	if c := r.Status.Conditions; len(c) == 1 && c[0].Type == certificatesv1.CertificateApproved {
		s.approve(s.objects[name])
	}
	return r, nil
}

func (s *signerAPI) Get(_ context.Context, name string, _ metav1.GetOptions) (*certificatesv1.CertificateSigningRequest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.objects[name]; o != nil {
		return o.DeepCopy(), nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "certificatesigningrequests"}, name)
}

func (s *signerAPI) Delete(_ context.Context, name string, _ metav1.DeleteOptions) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.objects, name)
	return nil
}

// answer signs a request with iss; edit spoils the leaf, public replaces its key.
func answer(t *testing.T, r *certificatesv1.CertificateSigningRequest, iss *issuer, edit func(*x509.Certificate), public crypto.PublicKey) []byte {
	t.Helper()
	block, _ := pem.Decode(r.Spec.Request)
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	must(t, err)
	tmpl := &x509.Certificate{URIs: csr.URIs, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	if edit != nil {
		edit(tmpl)
	}
	if public == nil {
		public = csr.PublicKey
	}
	if tmpl.IsCA {
		tmpl.SerialNumber, _ = newSerial()
		tmpl.NotBefore, tmpl.NotAfter, tmpl.BasicConstraintsValid = start, start.Add(time.Hour), true
		der, err := x509.CreateCertificate(rand.Reader, tmpl, iss.cert, public, iss.key)
		must(t, err)
		return encodeCert(der)
	}
	leaf, err := iss.sign(tmpl, public, start, time.Duration(*r.Spec.ExpirationSeconds)*time.Second)
	must(t, err)
	return encodeCert(leaf.Raw)
}

func withSigner(t *testing.T, api *signerAPI, roots func() []byte) (*Authority, *bytes.Buffer) {
	t.Helper()
	clk := &manual{Clock: clock.System(), now: start}
	ext, err := NewExternal(ExternalConfig{Client: api, Signer: "example.com/foo", Clock: clk,
		Roots: func(context.Context) ([]byte, error) { return roots(), nil }})
	must(t, err)
	logs := &bytes.Buffer{}
	a, _, _ := newAuthority(t, func(c *Config) {
		c.External, c.Clock, c.Log = ext, clk, slog.New(slog.NewTextHandler(logs, nil))
	})
	return a, logs
}

func TestMT20ExternalSigner(t *testing.T) {
	made, err := selfSigned("signer", start)
	must(t, err)
	root, err := parseRoot(made, start)
	must(t, err)
	foreign, err := selfSigned("foreign", start)
	must(t, err)
	other, err := parseRoot(foreign, start)
	must(t, err)
	between, err := parsePlugIn(below(t, root, start, 24*time.Hour), start)
	must(t, err)
	api := &signerAPI{approve: func(r *certificatesv1.CertificateSigningRequest) {
		r.Status.Certificate = append(answer(t, r, between, nil, nil), encodeCert(between.cert.Raw)...)
	}}
	a, logs := withSigner(t, api, func() []byte { return root.roots })
	chain, err := ask(t, a, "zt", httpbinID, csrFor(t, newKey(t), &x509.CertificateRequest{}, httpbinID), 3600)
	must(t, err)
	if len(chain) != 3 || !chain[2].Equal(root.cert) || chain[0].URIs[0].String() != httpbinID {
		t.Errorf("chain of %d", len(chain))
	}
	verify(t, a, chain, start)
	spec := api.made[0].Spec
	if len(api.objects) != 0 || spec.SignerName != "example.com/foo" || *spec.ExpirationSeconds != 3600 || len(spec.Usages) != 4 {
		t.Errorf("%d requests are left, spec %+v", len(api.objects), spec)
	}
	if !strings.Contains(logs.String(), "certificate signed") || !strings.Contains(logs.String(), "root="+Fingerprint(root.roots)) {
		t.Errorf("no audit line:\n%s", logs)
	}
	if got := rootsOf(t, a); len(got) != 2 || got[0] != Fingerprint(root.roots) {
		t.Errorf("trusted are %v", got) // the second serves the controller itself
	}
	if _, err := ask(t, a, "zt", "spiffe://cluster.local/ns/bar/sa/x", csrFor(t, newKey(t), &x509.CertificateRequest{}, "spiffe://cluster.local/ns/bar/sa/x"), 0); err == nil || len(api.made) != 1 {
		t.Errorf("what the authority refuses is asked for all the same: %v", err)
	}
	for name, tc := range map[string]struct {
		approve func(*certificatesv1.CertificateSigningRequest)
		want    string
	}{
		"another key": {func(r *certificatesv1.CertificateSigningRequest) {
			r.Status.Certificate = answer(t, r, root, nil, newKey(t).Public())
		}, "another key"},
		"another identity": {func(r *certificatesv1.CertificateSigningRequest) {
			r.Status.Certificate = answer(t, r, root, func(c *x509.Certificate) {
				c.URIs = []*url.URL{{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/istio-system/sa/istiod"}}
			}, nil)
		}, "want the one URI"},
		"a DNS name beside it": {func(r *certificatesv1.CertificateSigningRequest) {
			r.Status.Certificate = answer(t, r, root, func(c *x509.Certificate) { c.DNSNames = []string{"istiod.istio-system.svc"} }, nil)
		}, "want the one URI"},
		"a CA": {func(r *certificatesv1.CertificateSigningRequest) {
			r.Status.Certificate = answer(t, r, root, func(c *x509.Certificate) { c.IsCA = true }, nil)
		}, "is a CA's"},
		"a foreign root": {func(r *certificatesv1.CertificateSigningRequest) {
			r.Status.Certificate = answer(t, r, other, nil, nil)
		}, "unknown authority"},
		"clients only": {func(r *certificatesv1.CertificateSigningRequest) {
			r.Status.Certificate = answer(t, r, root, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[1:] }, nil)
		}, "incompatible key usage"},
		"a name of another kind beside it": {func(r *certificatesv1.CertificateSigningRequest) {
			r.Status.Certificate = answer(t, r, root, func(c *x509.Certificate) {
				uri, other := asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(sleepID)}, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 8, Bytes: []byte{0x2a, 3}}
				c.ExtraExtensions = []pkix.Extension{extensionOf(t, oidSAN, []asn1.RawValue{uri, other})}
			}, nil)
		}, "want the one URI"},
		"a subject": {func(r *certificatesv1.CertificateSigningRequest) {
			r.Status.Certificate = answer(t, r, root, func(c *x509.Certificate) {
				c.Subject = pkix.Name{CommonName: "kubernetes-admin", Organization: []string{"system:masters"}}
			}, nil)
		}, "has the subject"},
		"an extension": {func(r *certificatesv1.CertificateSigningRequest) {
			r.Status.Certificate = answer(t, r, root, func(c *x509.Certificate) {
				c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Value: []byte("evil")}}
			}, nil)
		}, "has the extension 1.2.3.4"},
		"another use": {func(r *certificatesv1.CertificateSigningRequest) {
			r.Status.Certificate = answer(t, r, root, func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageCodeSigning) }, nil)
		}, "other uses"},
		"a longer life than roots are trusted for": {func(r *certificatesv1.CertificateSigningRequest) {
			*r.Spec.ExpirationSeconds = 91 * 24 * 3600
			r.Status.Certificate = answer(t, r, root, nil, nil)
		}, "is valid until"},
		"garbage": {func(r *certificatesv1.CertificateSigningRequest) { r.Status.Certificate = []byte("x") }, "no PEM"},
		"denied": {func(r *certificatesv1.CertificateSigningRequest) {
			r.Status.Conditions = append(r.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
				Type: certificatesv1.CertificateFailed, Reason: "Policy", Message: "not here"})
		}, `Failed: Policy: "not here"`},
	} {
		t.Run(name, func(t *testing.T) {
			api.approve = tc.approve
			_, err := ask(t, a, "app", "", csrFor(t, newKey(t), &x509.CertificateRequest{}, sleepID), 3600)
			if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), tc.want) || len(api.objects) != 0 {
				t.Errorf("%v, %d requests are left; want %q", err, len(api.objects), tc.want)
			}
		})
	}
}

// TestSignerGetsBareRequests: a pod chooses nothing of its certificate but the key. The signer would get the request as it is,
// approved by us.
func TestSignerGetsBareRequests(t *testing.T) {
	made, err := selfSigned("signer", start)
	must(t, err)
	root, err := parseRoot(made, start)
	must(t, err)
	api := &signerAPI{approve: func(r *certificatesv1.CertificateSigningRequest) {
		r.Status.Certificate = answer(t, r, root, nil, nil)
	}}
	a, _ := withSigner(t, api, func() []byte { return root.roots })
	uri := asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(sleepID)}
	other := asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 8, Bytes: []byte{0x2a, 3}} // registeredID
	san := func(names ...asn1.RawValue) pkix.Extension { return extensionOf(t, oidSAN, names) }
	evil := pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Value: []byte("evil")}
	for name, tc := range map[string]struct {
		tmpl x509.CertificateRequest
		good bool
	}{
		"a critical name":  {x509.CertificateRequest{ExtraExtensions: []pkix.Extension{san(uri)}}, true},
		"a name":           {x509.CertificateRequest{ExtraExtensions: []pkix.Extension{{Id: oidSAN, Value: san(uri).Value}}}, true},
		"a subject":        {x509.CertificateRequest{Subject: pkix.Name{CommonName: "kubernetes-admin", Organization: []string{"system:masters"}}, ExtraExtensions: []pkix.Extension{san(uri)}}, false},
		"an empty subject": {x509.CertificateRequest{Subject: pkix.Name{Organization: []string{""}}, ExtraExtensions: []pkix.Extension{san(uri)}}, false},
		"an extension":     {x509.CertificateRequest{ExtraExtensions: []pkix.Extension{san(uri), evil}}, false},
		"another name":     {x509.CertificateRequest{ExtraExtensions: []pkix.Extension{san(uri, other)}}, false},
		"an attribute": {x509.CertificateRequest{ExtraExtensions: []pkix.Extension{san(uri)}, Attributes: []pkix.AttributeTypeAndValueSET{
			{Type: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}, Value: [][]pkix.AttributeTypeAndValue{{{Type: evil.Id, Value: "secret"}}}}}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(api.made)
			_, err := ask(t, a, "app", "", csrFor(t, newKey(t), &tc.tmpl), 3600)
			if tc.good && err != nil || !tc.good && (status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "asks for more") || len(api.made) != before) {
				t.Errorf("%v, %d requests", err, len(api.made)-before)
			}
		})
	}
}

// TestMT20SignerIsSilent: the request ends in time, is removed, and its place is free again.
func TestMT20SignerIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		files, err := selfSigned("signer", start)
		must(t, err)
		api := &signerAPI{approve: func(*certificatesv1.CertificateSigningRequest) {}}
		a, _ := withSigner(t, api, func() []byte { return files[FileCACert] })
		var wg sync.WaitGroup
		for range externalNow + 3 {
			wg.Go(func() {
				began := time.Now()
				_, err := ask(t, a, "app", "", csrFor(t, newKey(t), &x509.CertificateRequest{}, sleepID), 3600)
				if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "no certificate within 8s") || time.Since(began) > 9*time.Second {
					t.Errorf("after %s: %v", time.Since(began), err)
				}
			})
		}
		wg.Wait()
		if len(api.objects) != 0 || api.most != externalNow {
			t.Errorf("%d requests are left, %d were there at a time", len(api.objects), api.most)
		}
	})
}

// TestMT20RootIsNamed: without a usable root of the signer nothing starts, and a bad one changes nothing later.
func TestMT20RootIsNamed(t *testing.T) {
	files, err := selfSigned("signer", start)
	must(t, err)
	now := files[FileCACert]
	a, _ := withSigner(t, &signerAPI{}, func() []byte { return now })
	before := rootsOf(t, a)
	for _, bad := range [][]byte{nil, []byte("x"), cacerts(t)[FileCACert]} {
		now = bad
		if err := a.Sync(t.Context(), true); err == nil || !strings.Contains(err.Error(), "example.com/foo: "+FileRootCert) {
			t.Errorf("%q: %v", bad, err)
		}
		if got := rootsOf(t, a); got[0] != before[0] {
			t.Errorf("trusted are %v", got)
		}
	}
	for _, c := range []ExternalConfig{{}, {Client: &signerAPI{}, Clock: clock.System(), Roots: func(context.Context) ([]byte, error) { return nil, errors.New("x") }}} {
		if _, err := NewExternal(c); err == nil {
			t.Errorf("accepted: %+v", c)
		}
	}
}

// TestExternalSignerBeginsLater: in a mesh that runs, nodes learn of the signer's root before anything is signed with it; and
// the root is trusted on when the signer goes.
func TestExternalSignerBeginsLater(t *testing.T) {
	s, clk, logs := &shared{}, &manual{Clock: clock.System(), now: start}, &bytes.Buffer{}
	old := s.replica(t, clk, logs)
	must(t, old.Sync(t.Context(), true))
	files, err := selfSigned("signer", start)
	must(t, err)
	root, err := parseRoot(files, start)
	must(t, err)
	api := &signerAPI{approve: func(r *certificatesv1.CertificateSigningRequest) { r.Status.Certificate = answer(t, r, root, nil, nil) }}
	a := s.newReplica(t, clk, logs)
	a.cfg.External, err = NewExternal(ExternalConfig{Client: api, Signer: "example.com/foo", Clock: clk,
		Roots: func(context.Context) ([]byte, error) { return root.roots, nil }})
	must(t, err)
	must(t, a.Load(t.Context()))
	must(t, a.Sync(t.Context(), true))
	if signerOf(t, a) == Fingerprint(root.roots) || len(rootsOf(t, a)) != 2 {
		t.Errorf("the signer signs at once; trusted are %v", rootsOf(t, a))
	}
	clk.add(time.Hour)
	must(t, a.Sync(t.Context(), true))
	if signerOf(t, a) == Fingerprint(root.roots) {
		t.Error("the signer signs although nobody was told of its root")
	}
	raw, err := a.RootPEM()
	must(t, err)
	a.Distributed(raw)
	clk.add(4 * time.Minute)
	must(t, a.Sync(t.Context(), true))
	if signerOf(t, a) == Fingerprint(root.roots) {
		t.Error("the signer signs before the nodes had time to trust its root")
	}
	follower := s.newReplica(t, clk, logs)
	follower.cfg.External = a.cfg.External
	must(t, follower.Load(t.Context()))
	clk.add(2 * time.Minute)
	must(t, follower.Sync(t.Context(), false))
	if signerOf(t, follower) == Fingerprint(root.roots) {
		t.Error("a replica has the signer sign before the leader has said so")
	}
	must(t, a.Sync(t.Context(), true))
	must(t, follower.Sync(t.Context(), false))
	if signerOf(t, follower) != Fingerprint(root.roots) {
		t.Error("a replica has nothing signed by the signer")
	}
	if signerOf(t, a) != Fingerprint(root.roots) || rootsOf(t, a)[0] != Fingerprint(root.roots) {
		t.Errorf("the signer does not sign; trusted are %v", rootsOf(t, a))
	}
	first := root
	files, err = selfSigned("signer", clk.Now())
	must(t, err)
	root, err = parseRoot(files, clk.Now())
	must(t, err)
	must(t, follower.Sync(t.Context(), false))
	if got := signerOf(t, follower); got == Fingerprint(root.roots) {
		t.Error("another root of the signer signs before the leader knows of it")
	}
	root = first
	must(t, follower.Sync(t.Context(), false))
	back := s.replica(t, clk, logs)
	must(t, back.Sync(t.Context(), true))
	if signerOf(t, back) == Fingerprint(root.roots) || len(rootsOf(t, back)) != 2 {
		t.Errorf("without the signer: trusted are %v", rootsOf(t, back))
	}
}
