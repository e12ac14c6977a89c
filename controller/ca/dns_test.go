package ca

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/undermesh/undermesh/controller/api"
)

// vault is a namespace's Secrets.
type vault struct {
	objects map[string]*corev1.Secret
	version int
}

func (v *vault) Get(_ context.Context, name string, _ metav1.GetOptions) (*corev1.Secret, error) {
	if s := v.objects[name]; s != nil {
		return s.DeepCopy(), nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, name)
}

func (v *vault) Create(_ context.Context, s *corev1.Secret, _ metav1.CreateOptions) (*corev1.Secret, error) {
	if v.objects[s.Name] != nil {
		return nil, apierrors.NewAlreadyExists(schema.GroupResource{Resource: "secrets"}, s.Name)
	}
	return v.put(s), nil
}

func (v *vault) Update(_ context.Context, s *corev1.Secret, _ metav1.UpdateOptions) (*corev1.Secret, error) {
	was := v.objects[s.Name]
	if was == nil {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, s.Name)
	}
	if was.ResourceVersion != s.ResourceVersion {
		return nil, apierrors.NewConflict(schema.GroupResource{Resource: "secrets"}, s.Name, nil)
	}
	return v.put(s), nil
}

func (v *vault) put(s *corev1.Secret) *corev1.Secret {
	v.version++
	s = s.DeepCopy()
	s.ResourceVersion = fmt.Sprint(v.version)
	if v.objects == nil {
		v.objects = map[string]*corev1.Secret{}
	}
	v.objects[s.Name] = s
	return s
}

const dnsSecret = "dns.example1-service-account"

var example1 = DNSCertificate{SecretName: dnsSecret, DNSNames: []string{"example1.istio-system.svc", "example1.istio-system"}}

func TestMT21DNSCertificates(t *testing.T) {
	s, clk, logs := &shared{}, &manual{now: start}, &bytes.Buffer{}
	a := s.replica(t, clk, logs)
	must(t, a.Sync(t.Context(), true))
	v := &vault{}
	cfg := DNSConfig{Client: v, Namespace: "istio-system"}
	keep := func() *x509.Certificate {
		t.Helper()
		must(t, a.KeepDNS(t.Context(), cfg, []DNSCertificate{example1}))
		data := v.objects[dnsSecret].Data
		chain, err := parseCerts(data[FileCertChain])
		must(t, err)
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(data[FileRootCert])
		for _, n := range example1.DNSNames {
			if _, err := chain[0].Verify(x509.VerifyOptions{Roots: pool, DNSName: n, CurrentTime: clk.Now()}); err != nil {
				t.Error(err)
			}
		}
		if key, err := parseKey(data[FileKey]); err != nil || !slices.Equal(chain[0].DNSNames, example1.DNSNames) || len(chain[0].URIs) > 0 || key == nil {
			t.Errorf("names %v %v, key %v", chain[0].DNSNames, chain[0].URIs, err)
		}
		return chain[0]
	}
	first := keep()
	if !keep().Equal(first) || v.version != 1 {
		t.Error("made again without need")
	}
	delete(v.objects, dnsSecret)
	second := keep()
	if second.Equal(first) {
		t.Error("not made again after its deletion")
	}
	clk.add(44 * 24 * time.Hour)
	if !keep().Equal(second) {
		t.Error("renewed before half of its life")
	}
	clk.add(2 * 24 * time.Hour)
	third := keep()
	if third.Equal(second) {
		t.Error("not renewed at half of its life")
	}
	v.objects[dnsSecret].Data[FileCertChain] = []byte("x")
	if keep().Equal(third) {
		t.Error("a spoiled Secret stays")
	}
	s.request(RequestRotate)
	must(t, a.Sync(t.Context(), true))
	keep()
	if n := bytes.Count(v.objects[dnsSecret].Data[FileRootCert], []byte("BEGIN")); n != 2 {
		t.Errorf("%d roots in the Secret while another is to come", n)
	}
	if n := strings.Count(logs.String(), "DNS certificate signed"); n != v.version {
		t.Errorf("%d lines for %d certificates", n, v.version)
	}
}

func TestMT21Refusals(t *testing.T) {
	a, _, _ := newAuthority(t)
	for name, tc := range map[string]struct {
		names   []string
		allowed []string
		secret  string
		want    string // "": it is made
	}{
		"the documents' form":      {example1.DNSNames, nil, "", ""},
		"all forms":                {[]string{"a.b.svc.cluster.local", "a.b.svc", "a.b"}, nil, "", ""},
		"the internet":             {[]string{"www.example.com"}, nil, "", `dnsNames[0]: "www.example.com" is not the name of a service`},
		"a short foreign name":     {[]string{"example.com"}, nil, "", "is not the name of a service"},
		"allowed":                  {[]string{"www.example.com", "shop.test"}, []string{"*.example.com", "shop.test"}, "", ""},
		"two below":                {[]string{"a.b.example.com"}, []string{"*.example.com"}, "", "is not the name"},
		"a wildcard":               {[]string{"*.b.svc"}, nil, "", "is not the name of a service"},
		"a wildcard, allowed":      {[]string{"*.example.com"}, []string{"*.example.com"}, "", ""},
		"the control plane":        {[]string{"istiod.istio-system.svc"}, []string{"istiod.istio-system.svc"}, "", "the control plane's own name"},
		"its long form":            {[]string{"istiod.istio-system.svc.cluster.local"}, nil, "", "the control plane's own name"},
		"its short form":           {[]string{"istiod.istio-system"}, nil, "", "the control plane's own name"},
		"the API server":           {[]string{"kubernetes.default.svc"}, nil, "", "the control plane's own name"},
		"no name":                  {nil, nil, "", "dnsNames: there are none"},
		"no DNS name":              {[]string{"a b"}, nil, "", "is not a DNS name"},
		"the root's own Secret":    {example1.DNSNames, nil, api.CASecret, "belongs to the certificate authority"},
		"no name of a Secret":      {example1.DNSNames, nil, "A_B", "secretName"},
		"a Secret of another kind": {example1.DNSNames, nil, "theirs", "secret istio-system/theirs: exists and is not ours"},
		"a Secret of our kind":     {example1.DNSNames, nil, "unlabelled", "exists and is not ours"},
	} {
		t.Run(name, func(t *testing.T) {
			v := &vault{}
			v.put(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "theirs", Labels: map[string]string{dnsOwnerLabel: "true"}}, Type: corev1.SecretTypeOpaque})
			v.put(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "unlabelled"}, Type: DNSSecretType})
			if tc.secret == "" {
				tc.secret = dnsSecret
			}
			err := a.KeepDNS(t.Context(), DNSConfig{Client: v, Namespace: "istio-system", Allowed: tc.allowed},
				[]DNSCertificate{{SecretName: tc.secret, DNSNames: tc.names}, {SecretName: "good", DNSNames: []string{"good.foo.svc"}}})
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			if err != nil && v.objects[tc.secret] != nil && len(v.objects[tc.secret].Data) > 0 {
				t.Error("written all the same")
			}
			if v.objects["good"] == nil {
				t.Error("the good one beside it is not made")
			}
		})
	}
	twice := a.KeepDNS(t.Context(), DNSConfig{Client: &vault{}, Namespace: "istio-system"}, []DNSCertificate{example1, example1})
	if twice == nil || !strings.Contains(twice.Error(), "certificates[1]") {
		t.Errorf("twice: %v", twice)
	}
	if err := a.KeepDNS(t.Context(), DNSConfig{Client: &vault{}}, make([]DNSCertificate, maxDNS+1)); err == nil {
		t.Error("any number is made")
	}
}

// TestRotationSecret: a record survives the API server, and two writers do not overwrite each other.
func TestRotationSecret(t *testing.T) {
	v := &vault{}
	v.put(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: api.CASecret}, Data: map[string][]byte{FileCACert: []byte("1")}})
	st := RotationSecret{v}
	if r, err := st.Load(t.Context()); r != nil || err != nil {
		t.Fatalf("before: %v, %v", r, err)
	}
	rec := &Record{Root: []byte("r"), Next: []byte("n"), Since: start, Trusted: []Old{{Root: []byte("o"), Until: start}}, Steps: []Step{{At: start, What: "w"}},
		Signer: map[string][]byte{FileCAKey: []byte("k")}, Made: map[string][]byte{FileCACert: []byte("c")}, Request: &Request{Step: RequestRotate, By: "jane", At: start}}
	must(t, st.Save(t.Context(), rec))
	got, err := st.Load(t.Context())
	must(t, err)
	if string(got.Signer[FileCAKey]) != "k" || string(got.Made[FileCACert]) != "c" || got.Request.By != "jane" || string(got.Next) != "n" || !got.Trusted[0].Until.Equal(start) {
		t.Errorf("got %+v", got)
	}
	if text := string(v.objects[RotationSecretName].Data[recordKey]); strings.Contains(text, "k\"") {
		t.Errorf("a key is in the readable part: %s", text)
	}
	other, _ := st.Load(t.Context())
	other.Request = nil
	must(t, st.Save(t.Context(), other))
	if err := st.Save(t.Context(), got); err == nil || !strings.Contains(err.Error(), ErrConflict.Error()) {
		t.Errorf("an old record overwrites: %v", err)
	}
	if got, _ = st.Load(t.Context()); got.Request != nil {
		t.Error("the request is still there")
	}
	must(t, st.ReplaceRoot(t.Context(), map[string][]byte{FileCACert: []byte("2")}))
	if string(v.objects[api.CASecret].Data[FileCACert]) != "2" {
		t.Error("not replaced")
	}
	v.objects[RotationSecretName].Annotations = map[string]string{RequestAnnotation: "{"}
	if got, err = st.Load(t.Context()); err != nil || got.Request == nil {
		t.Errorf("a garbled request: %v", err)
	}
	v.objects[RotationSecretName].Data[recordKey] = []byte("x")
	if _, err = st.Load(t.Context()); err == nil {
		t.Error("a garbled record is taken for one")
	}
}
