package ca

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"
)

var (
	oidExtensionRequest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}
	oidSAN              = asn1.ObjectIdentifier{2, 5, 29, 17}
)

// harmless are the extensions that a signer may add: they say how to use and to check the certificate, not whose it is.
var harmless = []asn1.ObjectIdentifier{
	oidSAN,
	{2, 5, 29, 15}, {2, 5, 29, 19}, {2, 5, 29, 37}, // key usage, basic constraints, extended key usage: looked at below
	{2, 5, 29, 14}, {2, 5, 29, 35}, // key identifiers
	{2, 5, 29, 31}, {2, 5, 29, 32}, {1, 3, 6, 1, 5, 5, 7, 1, 1}, // revocation lists, policies, access to the issuer
	{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2}, // certificate transparency
}

// checkBare returns an error unless the request holds its key and its one URI and nothing else. A signer gets it as it is, with
// our approval, and may put into the certificate all that it asks for: a subject that Kubernetes takes for an administrator,
// extensions, attributes. So it is compared with the one that we would make.
func checkBare(csr *x509.CertificateRequest) error {
	san, err := onlyURI(csr.URIs[0].String())
	if err != nil {
		return err
	}
	for _, critical := range []bool{true, false} {
		bare, err := asn1.Marshal(struct {
			Version    int
			Subject    pkix.RDNSequence
			Public     asn1.RawValue
			Attributes []extensionRequest `asn1:"tag:0"`
		}{0, nil, asn1.RawValue{FullBytes: csr.RawSubjectPublicKeyInfo},
			[]extensionRequest{{oidExtensionRequest, [][]pkix.Extension{{{Id: oidSAN, Critical: critical, Value: san}}}}}})
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		if bytes.Equal(bare, csr.RawTBSCertificateRequest) {
			return nil
		}
	}
	return errors.New("it asks for more than its key and its one URI: an external signer gets no subject, other extension or attribute to sign")
}

// extensionRequest is the attribute of RFC 2985, section 5.4.2.
type extensionRequest struct {
	ID     asn1.ObjectIdentifier
	Values [][]pkix.Extension `asn1:"set"`
}

// onlyURI is the value of a subject alternative name that is one URI (RFC 5280, section 4.2.1.6).
func onlyURI(uri string) ([]byte, error) {
	out, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(uri)}})
	if err != nil {
		return nil, fmt.Errorf("encode subject alternative name: %w", err)
	}
	return out, nil
}

// checkAnswer returns the verified chain: the leaf has the key of the request, names id and nothing else, lasts no longer than
// the mesh's certificates may, and leads to a root.
func checkAnswer(answer []byte, id string, public crypto.PublicKey, roots []*x509.Certificate, now time.Time, longest time.Duration) ([]*x509.Certificate, error) {
	certs, err := parseCerts(answer)
	if err != nil {
		return nil, err
	}
	leaf := certs[0]
	if err := checkLeaf(leaf, id, public); err != nil {
		return nil, err
	}
	if end := now.Add(longest + backdate); leaf.NotAfter.After(end) {
		return nil, fmt.Errorf("the certificate is valid until %s, longer than the %s that roots are trusted on for", leaf.NotAfter, longest)
	}
	opts := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: now}
	for _, c := range roots {
		opts.Roots.AddCert(c)
	}
	for _, c := range certs[1:] {
		opts.Intermediates.AddCert(c)
	}
	var chain []*x509.Certificate
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		opts.KeyUsages = []x509.ExtKeyUsage{usage}
		chains, err := leaf.Verify(opts)
		if err != nil {
			return nil, err
		}
		chain = shortest(chains)
	}
	return chain, nil
}

// checkLeaf looks at what the leaf says of its owner.
func checkLeaf(leaf *x509.Certificate, id string, public crypto.PublicKey) error {
	san, err := onlyURI(id)
	if err != nil {
		return err
	}
	key, ok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	switch {
	case !ok || !key.Equal(public):
		return errors.New("the certificate is for another key")
	case leaf.IsCA || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return errors.New("the certificate is a CA's")
	case len(leaf.Subject.Names) > 0:
		return fmt.Errorf("the certificate has the subject %.200q, want none", leaf.Subject)
	case len(leaf.UnknownExtKeyUsage) > 0 || slices.ContainsFunc(leaf.ExtKeyUsage, func(u x509.ExtKeyUsage) bool {
		return u != x509.ExtKeyUsageServerAuth && u != x509.ExtKeyUsageClientAuth
	}):
		return errors.New("the certificate is for other uses than servers and clients")
	}
	named := false
	for _, e := range leaf.Extensions {
		if !slices.ContainsFunc(harmless, e.Id.Equal) {
			return fmt.Errorf("the certificate has the extension %s, which nobody asked for", e.Id)
		}
		named = named || e.Id.Equal(oidSAN) && bytes.Equal(e.Value, san)
	}
	if !named {
		return fmt.Errorf("the certificate names %v %v %v %v, want the one URI %s",
			leaf.URIs, leaf.DNSNames, leaf.IPAddresses, leaf.EmailAddresses, id)
	}
	return nil
}
