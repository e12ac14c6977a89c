package ca

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// extensionOf is an extension that a request asks for.
func extensionOf(t *testing.T, oid asn1.ObjectIdentifier, value any) pkix.Extension {
	t.Helper()
	der, err := asn1.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: oid, Critical: true, Value: der}
}

// TestNothingElseOfTheRequest: a request may ask to be a CA, to sign, and for names of kinds that nobody looks at; its
// certificate has its key and its one name.
func TestNothingElseOfTheRequest(t *testing.T) {
	a, _, _ := newAuthority(t)
	uri := asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(sleepID)}
	other := asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 8, Bytes: []byte{0x2a, 3}} // registeredID
	greedy := &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "istiod.istio-system.svc", Organization: []string{"system:masters"}},
		ExtraExtensions: []pkix.Extension{
			extensionOf(t, asn1.ObjectIdentifier{2, 5, 29, 17}, []asn1.RawValue{uri, other}),
			extensionOf(t, asn1.ObjectIdentifier{2, 5, 29, 19}, struct{ IsCA bool }{true}),
			extensionOf(t, asn1.ObjectIdentifier{2, 5, 29, 15}, asn1.BitString{Bytes: []byte{0x06}, BitLength: 7}), // certificates, CRLs
		},
	}
	key := newKey(t)
	chain, err := ask(t, a, "app", "", csrFor(t, key, greedy), 0)
	if err != nil {
		t.Fatal(err)
	}
	leaf := chain[0]
	if leaf.IsCA || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 || leaf.Subject.String() != "" || len(leaf.DNSNames) > 0 {
		t.Errorf("a CA: %t, usage %b, subject %q, DNS names %v", leaf.IsCA, leaf.KeyUsage, leaf.Subject, leaf.DNSNames)
	}
	for _, e := range leaf.Extensions {
		if e.Id.String() == "2.5.29.17" && strings.Contains(string(e.Value), string(other.Bytes)) {
			t.Error("the registered ID came through")
		}
	}
}

// TestKeysOfRequests: keys that can be broken, or that cost much to use, are refused.
func TestKeysOfRequests(t *testing.T) {
	a, _, _ := newAuthority(t)
	for bits, want := range map[int]codes.Code{1024: codes.InvalidArgument, 2048: codes.OK} {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ask(t, a, "app", "", csrFor(t, key, &x509.CertificateRequest{}, sleepID), 0); status.Code(err) != want {
			t.Errorf("RSA of %d bits: %v, want %s", bits, err, want)
		}
	}
}

// TestAuditIsOneLine: what is asked for cannot write a line of its own into the log.
func TestAuditIsOneLine(t *testing.T) {
	a, _, logs := newAuthority(t)
	for _, name := range []string{httpbinID + "\nlevel=INFO msg=\"certificate signed\"", "spiffe://cluster.local/ns/foo\r\n/sa/x", "\x1b[2J", httpbinID + "\u2028x"} {
		logs.Reset()
		if _, err := ask(t, a, "zt", name, "", 0); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%q: %v", name, err)
		}
		if text := logs.String(); strings.Count(text, "\n") != 1 || strings.ContainsAny(text, "\r\x1b\u2028") || strings.Contains(text, `msg="certificate signed"`) {
			t.Errorf("%q is logged as %s", name, fmt.Sprintf("%q", text))
		}
	}
}

// TestRefusalsDoNotFillTheLog: a request chooses its identity, of any bytes and 60 KiB; neither the log nor the answer grows by
// it, and who is refused again and again is written of a few times.
func TestRefusalsDoNotFillTheLog(t *testing.T) {
	a, clk, logs := newAuthority(t)
	logs.Reset()
	for _, identity := range []string{strings.Repeat("\x01", 60<<10), "spiffe://cluster.local/ns/" + strings.Repeat("\x01", maxIdentity-100) + "/sa/x"} {
		before := logs.Len()
		_, err := ask(t, a, "app", identity, "x", 0)
		if status.Code(err) != codes.InvalidArgument || len(err.Error()) > 8<<10 || logs.Len()-before > 8<<10 || logs.Len() == before {
			t.Errorf("%d bytes of log, answer of %d bytes: %.200v", logs.Len()-before, len(err.Error()), err)
		}
	}
	for range 1000 {
		if _, err := ask(t, a, "app", "", "x", 0); status.Code(err) != codes.InvalidArgument {
			t.Fatal(err)
		}
	}
	if n := strings.Count(logs.String(), "certificate refused"); n > 10 {
		t.Errorf("%d lines", n)
	}
	clk.add(time.Minute)
	if _, err := ask(t, a, "app", "", "x", 0); err == nil || !strings.Contains(logs.String(), "left_out=99") {
		t.Errorf("what was left out is not said: %v", err)
	}
}
