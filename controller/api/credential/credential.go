// Package credential is the contract about the Secrets that DestinationRules name in tls.credentialName: which one a rule means, how
// one is read, and the call by which nodes have it.
//
// Invariants: a Secret is its own namespace's alone; of a private key nothing gets into an error or a text; what cannot be read
// whole cannot be used.
package credential

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"github.com/undermesh/undermesh/controller/api/settings"
)

// Suffix ends the name of a Secret that has the roots for the one without it.
const Suffix = "-cacert"

// MaxPEM bounds one value of a Secret, in bytes. The API server's own bound of a Secret is 1 MiB.
const MaxPEM = 256 << 10

// Ref is a Secret as a rule uses it; comparable.
type Ref struct {
	Namespace, Name string
	Pair, Roots     bool // what is needed of it
}

// String is namespace/name, and what is needed.
func (r Ref) String() string {
	text := r.Namespace + "/" + r.Name
	if r.Pair {
		text += " pair"
	}
	if r.Roots {
		text += " roots"
	}
	return text
}

// Message is the wire's form.
func (r Ref) Message() *settings.CredentialRef {
	return &settings.CredentialRef{Namespace: r.Namespace, Name: r.Name, Pair: r.Pair, Roots: r.Roots}
}

// Parse reads the wire's form. Returns an error unless it names a Secret and something of it.
func Parse(m *settings.CredentialRef) (Ref, error) {
	r := Ref{m.GetNamespace(), m.GetName(), m.GetPair(), m.GetRoots()}
	switch {
	case !isName(r.Namespace) || strings.Contains(r.Namespace, "."):
		return r, fmt.Errorf("parse credential: namespace %.80q is none", r.Namespace)
	case !isName(r.Name):
		return r, fmt.Errorf("parse credential: name %.80q is not the name of a Secret", r.Name)
	case !r.Pair && !r.Roots:
		return r, errors.New("parse credential: nothing of it is asked for")
	}
	return r, nil
}

// isName reports whether an object of Kubernetes may have the name.
func isName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for i, b := range []byte(s) {
		edge := i == 0 || i == len(s)-1
		if letter := b >= 'a' && b <= 'z' || b >= '0' && b <= '9'; !letter && (edge || b != '-' && b != '.') {
			return false
		}
	}
	return true
}

// Of is the Secret that workloads of the namespace need for t; ok is false when they need none. Returns an error for a name that no
// Secret can have, such as one with a scheme or a namespace.
func Of(namespace string, t *settings.ClientTls) (r Ref, ok bool, err error) {
	mutual := t.GetMode() == settings.ClientTls_MODE_MUTUAL
	r = Ref{Namespace: namespace, Name: t.GetCredentialName(), Pair: mutual, Roots: !t.GetInsecureSkipVerify()}
	if r.Name == "" || !mutual && t.GetMode() != settings.ClientTls_MODE_SIMPLE || !r.Pair && !r.Roots {
		return Ref{}, false, nil
	}
	_, err = Parse(r.Message())
	return r, true, err
}

// systemRoots is what caCertificates calls the roots of the system.
const systemRoots = "system"

// File is the field of t that names a file of the workload, which no node reads, and that cannot be done without; "" for none.
func File(t *settings.ClientTls) string {
	mutual := t.GetMode() == settings.ClientTls_MODE_MUTUAL
	switch {
	case !mutual && t.GetMode() != settings.ClientTls_MODE_SIMPLE:
		return ""
	case mutual && t.GetCredentialName() == "":
		return "clientCertificate"
	case t.GetInsecureSkipVerify():
		return ""
	case t.GetCaCertificates() != "" && t.GetCaCertificates() != systemRoots:
		return "caCertificates"
	case t.GetCaCrl() != "":
		return "caCrl"
	}
	return ""
}

// Data is what a Secret holds; nil: there is none.
type Data map[string][]byte

// Read takes what ref needs out of the Secret of its name, and of the one whose name has the Suffix, which counts for roots where it is
// there: as Istio's documents name the keys. Returns an error that names the Secret and the key when that is not there, or not good.
func Read(ref Ref, own, cacert Data) (*settings.Credential, error) {
	c := &settings.Credential{Ref: ref.Message()}
	at := "Secret " + ref.Namespace + "/" + ref.Name
	if own == nil && (ref.Pair || cacert == nil) {
		return nil, errors.New(at + " is not there")
	}
	if ref.Pair {
		switch {
		case len(own["cert"]) > 0 && len(own["key"]) > 0:
			c.Certificates, c.PrivateKey = own["cert"], own["key"]
		case len(own["tls.crt"]) > 0 && len(own["tls.key"]) > 0:
			c.Certificates, c.PrivateKey = own["tls.crt"], own["tls.key"]
		default:
			return nil, errors.New(at + " has neither tls.crt and tls.key nor cert and key")
		}
	}
	if ref.Roots {
		from := own
		if cacert != nil {
			from, at = cacert, at+Suffix
		}
		switch {
		case len(from["cacert"]) > 0:
			c.Roots, c.Crl = from["cacert"], from["crl"]
		case len(from["ca.crt"]) > 0:
			c.Roots, c.Crl = from["ca.crt"], from["ca.crl"]
		default:
			return nil, errors.New(at + " has neither ca.crt nor cacert")
		}
	}
	if _, err := Build(c); err != nil {
		return nil, fmt.Errorf("%s: %w", at, err)
	}
	return c, nil
}

// Material is a credential in the form that TLS takes. It never changes.
type Material struct {
	Certificate *tls.Certificate // nil: none was asked for
	Roots       *x509.CertPool   // nil: none were asked for
	Lists       Lists            // of revoked certificates; nil: there are none
}

// Build makes the material of a credential. Returns an error for one with a problem, and for what is not good; never with anything of
// the key in it.
func Build(c *settings.Credential) (*Material, error) {
	if c.GetProblem() != "" {
		return nil, errors.New(c.GetProblem())
	}
	for _, b := range [][]byte{c.GetCertificates(), c.GetPrivateKey(), c.GetRoots(), c.GetCrl()} {
		if len(b) > MaxPEM {
			return nil, fmt.Errorf("a value has %d bytes, want at most %d", len(b), MaxPEM)
		}
	}
	m := &Material{}
	if c.GetRef().GetPair() {
		pair, err := tls.X509KeyPair(c.GetCertificates(), c.GetPrivateKey())
		if err != nil {
			return nil, pairError(err)
		}
		m.Certificate = &pair
	}
	if c.GetRef().GetRoots() {
		roots, err := certificates(c.GetRoots())
		if err != nil {
			return nil, fmt.Errorf("roots: %w", err)
		}
		m.Roots = x509.NewCertPool()
		for _, r := range roots {
			m.Roots.AddCert(r)
		}
	}
	if len(c.GetCrl()) > 0 {
		var err error
		if m.Lists, err = readLists(c.GetCrl()); err != nil {
			return nil, fmt.Errorf("list of revoked certificates: %w", err)
		}
	}
	return m, nil
}

// pairError says what is wrong with a pair in words of ours: those of the library may quote what they read.
func pairError(err error) error {
	if strings.Contains(err.Error(), "does not match") {
		return errors.New("the private key does not belong to the certificate")
	}
	return errors.New("the certificate or the private key is not PEM of one")
}

func certificates(data []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	err := blocks(data, "CERTIFICATE", func(der []byte) error {
		c, err := x509.ParseCertificate(der)
		out = append(out, c)
		return err
	})
	return out, err
}

// blocks calls f for each PEM block, all of which are of one type. Returns an error if there is none, or something else.
func blocks(data []byte, kind string, f func(der []byte) error) error {
	n := 0
	for rest := bytes.TrimSpace(data); len(rest) > 0; n++ {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			return errors.New("it is not PEM")
		}
		if b.Type != kind {
			return fmt.Errorf("PEM block %d is of type %.40q, want %s", n+1, b.Type, kind)
		}
		if err := f(b.Bytes); err != nil {
			return fmt.Errorf("PEM block %d is no %s", n+1, strings.ToLower(kind))
		}
		rest = bytes.TrimSpace(rest)
	}
	if n == 0 {
		return errors.New("it is empty")
	}
	return nil
}
