package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/ca"
	"github.com/undermesh/undermesh/ztunnel/identity"
)

func certPart(t *testing.T, serial int64) identity.Part {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return identity.Part{PEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), SerialNumber: fmt.Sprint(serial),
		ValidFrom: tmpl.NotBefore, ExpirationTime: tmpl.NotAfter}
}

func TestMT25SecretHasTheDocumentsShape(t *testing.T) {
	leaf, between, root := certPart(t, 11), certPart(t, 12), certPart(t, 13)
	info := identity.Info{State: identity.StateAvailable, CertChain: []identity.Part{leaf, between}, RootCerts: []identity.Part{root}}
	text, err := json.Marshal(secretDump(info))
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		DynamicActiveSecrets []struct {
			Name   string
			Secret struct {
				TLSCertificate    struct{ CertificateChain struct{ InlineBytes string } }
				ValidationContext struct{ TrustedCA struct{ InlineBytes string } }
			}
		}
	}
	if err := json.Unmarshal(text, &got); err != nil || len(got.DynamicActiveSecrets) != 2 {
		t.Fatalf("%v: %s", err, text)
	}
	decode := func(s string) []byte {
		raw, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			t.Error(err)
		}
		return raw
	}
	chain := decode(got.DynamicActiveSecrets[0].Secret.TLSCertificate.CertificateChain.InlineBytes)
	if !bytes.Equal(chain, append(append(bytes.Clone(leaf.PEM), between.PEM...), root.PEM...)) || got.DynamicActiveSecrets[0].Name != "default" {
		t.Errorf("the chain is not leaf, intermediate, root: %s", chain)
	}
	if trusted := decode(got.DynamicActiveSecrets[1].Secret.ValidationContext.TrustedCA.InlineBytes); !bytes.Equal(trusted, root.PEM) || got.DynamicActiveSecrets[1].Name != "ROOTCA" {
		t.Errorf("trusted is %s", trusted)
	}
	rows := secretRows(info, time.Now())
	if len(rows) != 3 || strings.Join(rows[1][:5], " ") != "default Cert Chain ACTIVE true 11" || rows[2][0] != "ROOTCA" {
		t.Errorf("rows %q", rows)
	}
	if rows = secretRows(info, time.Now().Add(2*time.Hour)); rows[1][3] != "false" {
		t.Error("an expired certificate is called valid")
	}
	if rows = secretRows(identity.Info{}, time.Now()); rows[1][2] != "WARMING" || len(secretDump(identity.Info{}).DynamicActiveSecrets) > 0 {
		t.Errorf("without a certificate: %q", rows)
	}
	key := identity.Part{PEM: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("k")})}
	if out := joined([]identity.Part{key, leaf}); !bytes.Equal(out, leaf.PEM) {
		t.Errorf("something else than a certificate is printed: %s", out)
	}
}

func TestCertificateOfThePodsAccount(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "foo"}, Spec: corev1.PodSpec{ServiceAccountName: "sleep"}}
	list := []identity.Info{
		{Identity: "spiffe://old-td/ns/foo/sa/sleep", Holds: 0}, {Identity: "spiffe://new-td/ns/foo/sa/sleep", Holds: 2},
		{Identity: "spiffe://new-td/ns/bar/sa/sleep", Holds: 9}, {Identity: "garbage", Holds: 9},
	}
	if got := certificateOf(list, pod); got == nil || got.Identity != list[1].Identity {
		t.Errorf("got %+v", got)
	}
	pod.Spec.ServiceAccountName = ""
	if got := certificateOf(list, pod); got != nil {
		t.Errorf("another account's: %+v", got)
	}
	for arg, want := range map[string]string{"a": "a/default", "a.b": "a/b", "a.1.b": "a.1/b", "pod/a": "a/default"} {
		if name, ns := podArgument(arg, ""); name+"/"+ns != want {
			t.Errorf("%s is %s/%s", arg, name, ns)
		}
	}
	for arg, want := range map[string]string{"a": "a/foo", "a.b-7f": "a.b-7f/foo", "a.b.foo": "a.b/foo"} {
		if name, ns := podArgument(arg, "foo"); name+"/"+ns != want {
			t.Errorf("%s in foo: %s/%s, want %s", arg, name, ns, want)
		}
	}
}

// TestRootsInUse: what "ca rotate" and "ca withdraw" decide by.
func TestRootsInUse(t *testing.T) {
	old, next := certPart(t, 1), certPart(t, 2)
	s := &caState{Roots: []rootState{{Root: ca.Fingerprint(old.PEM), Role: "signs"}, {Root: ca.Fingerprint(next.PEM), Role: "next"}}}
	if s.lacking(next.PEM) == "" {
		t.Error("no node was asked, and all trust it")
	}
	of := func(root identity.Part) []identity.Info { return []identity.Info{{RootCerts: []identity.Part{root}}} }
	s.count(&held{Roots: []identity.Part{old, next}, Certificates: of(old)})
	if s.lacking(next.PEM) != "" || s.using(old.PEM) == "" || s.using(next.PEM) != "" {
		t.Errorf("%+v", s)
	}
	s.count(&held{Roots: []identity.Part{old}, Certificates: of(next)})
	if s.lacking(next.PEM) == "" || s.Roots[0].Nodes != 2 || s.Roots[1].Certificates != 1 {
		t.Errorf("%+v", s)
	}
	s.count(&held{Roots: []identity.Part{certPart(t, 3)}})
	if len(s.Roots) != 3 || !strings.Contains(s.Roots[2].Role, "unknown") {
		t.Errorf("%+v", s.Roots)
	}
	blind := &caState{Roots: s.Roots[1:2], Nodes: 1, Unknown: []string{"node b"}}
	blind.Roots[0].Nodes = 1
	if blind.lacking(next.PEM) == "" || blind.using(old.PEM) == "" {
		t.Error("a node that could not be asked counts as one that agrees")
	}
}
