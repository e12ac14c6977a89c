package credential

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/undermesh/undermesh/controller/api/settings"
)

type signer struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	last int64
}

func newSigner(t testing.TB) *signer {
	s := &signer{t: t}
	s.cert, s.key = s.sign(&x509.Certificate{Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign})
	return s
}

func (s *signer) sign(c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	s.last++
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(s.last), time.Unix(0, 0), time.Unix(1<<33, 0)
	parent, by := s.cert, s.key
	if parent == nil {
		parent, by = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), by)
	if err != nil {
		s.t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		s.t.Fatal(err)
	}
	return c, key
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func (s *signer) pair() (cert *x509.Certificate, certPEM, keyPEM []byte) {
	c, k := s.sign(&x509.Certificate{Subject: pkix.Name{CommonName: "leaf"}})
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		s.t.Fatal(err)
	}
	return c, encode("CERTIFICATE", c.Raw), encode("PRIVATE KEY", der)
}

func (s *signer) list(until time.Time, revoked ...*x509.Certificate) []byte {
	l := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Unix(1000, 0), NextUpdate: until}
	for _, c := range revoked {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: time.Unix(1000, 0)})
	}
	der, err := x509.CreateRevocationList(rand.Reader, l, s.cert, s.key)
	if err != nil {
		s.t.Fatal(err)
	}
	return encode("X509 CRL", der)
}

// TestRead: the keys of Secrets as the documents name them, and nothing of what is not asked for.
func TestRead(t *testing.T) {
	s := newSigner(t)
	_, cert, key := s.pair()
	_, _, strange := s.pair()
	root := encode("CERTIFICATE", s.cert.Raw)
	both, pair, roots := Ref{"foo", "s", true, true}, Ref{"foo", "s", true, false}, Ref{"foo", "s", false, true}
	tls := Data{"tls.crt": cert, "tls.key": key, "ca.crt": root, "ca.crl": s.list(time.Unix(1<<33, 0))}
	generic := Data{"cert": cert, "key": key, "cacert": root}
	for name, tc := range map[string]struct {
		ref         Ref
		own, cacert Data
		want        string // error
	}{
		"both, TLS":               {both, tls, nil, ""},
		"both, generic":           {both, generic, nil, ""},
		"roots of their own":      {both, Data{"tls.crt": cert, "tls.key": key}, Data{"cacert": root}, ""},
		"roots alone":             {roots, nil, Data{"ca.crt": root}, ""},
		"pair alone":              {pair, Data{"tls.crt": cert, "tls.key": key}, nil, ""},
		"nothing":                 {both, nil, nil, "Secret foo/s is not there"},
		"no pair, roots":          {both, nil, Data{"ca.crt": root}, "Secret foo/s is not there"},
		"no roots":                {both, Data{"tls.crt": cert, "tls.key": key}, nil, "Secret foo/s has neither ca.crt nor cacert"},
		"empty roots":             {both, tls, Data{"cacert": nil}, "Secret foo/s-cacert has neither ca.crt nor cacert"},
		"no key":                  {pair, Data{"tls.crt": cert}, nil, "Secret foo/s has neither tls.crt and tls.key nor cert and key"},
		"another key":             {pair, Data{"tls.crt": cert, "tls.key": strange}, nil, "the private key does not belong to the certificate"},
		"garbled key":             {pair, Data{"tls.crt": cert, "tls.key": []byte("hunter2")}, nil, "not PEM of one"},
		"garbled roots":           {roots, Data{"ca.crt": []byte("hunter2")}, nil, "roots: it is not PEM"},
		"a key among the roots":   {roots, Data{"ca.crt": append(root, key...)}, nil, `roots: PEM block 2 is of type "PRIVATE KEY"`},
		"garbage after roots":     {roots, Data{"ca.crt": append(root[:len(root):len(root)], "x"...)}, nil, "roots: it is not PEM"},
		"garbled list":            {roots, Data{"ca.crt": root, "ca.crl": root}, nil, "list of revoked certificates"},
		"more than anybody needs": {roots, Data{"ca.crt": make([]byte, MaxPEM+1)}, nil, "want at most"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := Read(tc.ref, tc.own, tc.cacert)
			if (err == nil) != (tc.want == "") || err != nil && (!strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "hunter2")) {
				t.Fatalf("%v, want %q", err, tc.want)
			}
			if err != nil {
				return
			}
			if (len(c.GetPrivateKey())+len(c.GetCertificates()) > 0) != tc.ref.Pair || (len(c.GetRoots()) > 0) != tc.ref.Roots {
				t.Error("it has more or less than was asked for")
			}
			m, err := Build(c)
			if err != nil || (m.Certificate != nil) != tc.ref.Pair || (m.Roots != nil) != tc.ref.Roots {
				t.Errorf("%+v, %v", m, err)
			}
		})
	}
}

// TestOf: which Secret a rule means, and names that no Secret has.
func TestOf(t *testing.T) {
	type tls = settings.ClientTls
	for name, tc := range map[string]struct {
		tls  *tls
		want Ref
		ok   bool
		bad  bool
		file string
	}{
		"nothing":               {tls: nil},
		"SIMPLE":                {tls: &tls{Mode: settings.ClientTls_MODE_SIMPLE}},
		"SIMPLE by Secret":      {tls: &tls{Mode: settings.ClientTls_MODE_SIMPLE, CredentialName: "s"}, want: Ref{"foo", "s", false, true}, ok: true},
		"SIMPLE, unverified":    {tls: &tls{Mode: settings.ClientTls_MODE_SIMPLE, CredentialName: "s", InsecureSkipVerify: true}},
		"SIMPLE by system":      {tls: &tls{Mode: settings.ClientTls_MODE_SIMPLE, CaCertificates: "system"}},
		"SIMPLE by file":        {tls: &tls{Mode: settings.ClientTls_MODE_SIMPLE, CaCertificates: "/ca"}, file: "caCertificates"},
		"SIMPLE with a list":    {tls: &tls{Mode: settings.ClientTls_MODE_SIMPLE, CredentialName: "s", CaCrl: "/crl"}, want: Ref{"foo", "s", false, true}, ok: true, file: "caCrl"},
		"MUTUAL by Secret":      {tls: &tls{Mode: settings.ClientTls_MODE_MUTUAL, CredentialName: "s.t-1"}, want: Ref{"foo", "s.t-1", true, true}, ok: true},
		"MUTUAL, unverified":    {tls: &tls{Mode: settings.ClientTls_MODE_MUTUAL, CredentialName: "s", InsecureSkipVerify: true}, want: Ref{"foo", "s", true, false}, ok: true},
		"MUTUAL by file":        {tls: &tls{Mode: settings.ClientTls_MODE_MUTUAL, ClientCertificate: "/c"}, file: "clientCertificate"},
		"another namespace's":   {tls: &tls{Mode: settings.ClientTls_MODE_MUTUAL, CredentialName: "kubernetes://bar/s"}, ok: true, bad: true},
		"a path":                {tls: &tls{Mode: settings.ClientTls_MODE_MUTUAL, CredentialName: "../bar/s"}, ok: true, bad: true},
		"DISABLE with a Secret": {tls: &tls{Mode: settings.ClientTls_MODE_DISABLE, CredentialName: "s", CaCertificates: "/ca"}},
	} {
		t.Run(name, func(t *testing.T) {
			ref, ok, err := Of("foo", tc.tls)
			if ok != tc.ok || (err != nil) != tc.bad || !tc.bad && ref != tc.want || File(tc.tls) != tc.file {
				t.Errorf("%v, %t, %v, file %q", ref, ok, err, File(tc.tls))
			}
		})
	}
}

// TestLists: each issuer has a list of its own that counts now, and the certificate is not in it.
func TestLists(t *testing.T) {
	s, other := newSigner(t), newSigner(t)
	leaf, _, _ := s.pair()
	another, _, _ := s.pair()
	chain, now := []*x509.Certificate{leaf, s.cert}, time.Unix(1<<31, 0)
	late := time.Unix(1<<33, 0)
	for name, tc := range map[string]struct {
		data []byte
		want string
	}{
		"none revoked":          {s.list(late), ""},
		"another revoked":       {s.list(late, another), ""},
		"revoked":               {s.list(late, leaf), "is revoked"},
		"revoked by the second": {append(s.list(late), s.list(late, leaf)...), "is revoked"},
		"over":                  {s.list(time.Unix(2000, 0)), "counts from"},
		"another issuer's":      {other.list(late), "there is no list"},
	} {
		lists, err := readLists(tc.data)
		if err != nil {
			t.Fatal(err)
		}
		err = lists.Check(chain, now)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

// FuzzBuild: whatever a Secret holds is good or an error, and an error holds nothing of it.
func FuzzBuild(f *testing.F) {
	s := newSigner(f)
	_, cert, key := s.pair()
	root := encode("CERTIFICATE", s.cert.Raw)
	f.Add(cert, key, root, s.list(time.Unix(1<<33, 0)))
	f.Add([]byte("x"), []byte("-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----"), []byte(""), []byte("y"))
	f.Fuzz(func(t *testing.T, cert, key, roots, crl []byte) {
		m, err := Build(&settings.Credential{Ref: Ref{"foo", "s", true, true}.Message(), Certificates: cert, PrivateKey: key, Roots: roots, Crl: crl})
		if (m == nil) != (err != nil) {
			t.Fatalf("%v, %v", m, err)
		}
		if err != nil && len(key) > 8 && strings.Contains(err.Error(), string(key)) {
			t.Fatalf("the error has the key: %v", err)
		}
	})
}
