package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"testing"
	"testing/synctest"
	"time"

	"github.com/undermesh/undermesh/controller/api"
)

// Once another root is first in the file, certificates of the old one are renewed in minutes, so that it can be withdrawn.
func TestRenewalsHurryWhenAnotherRootSigns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		older, newer := newFakeCA(t, "older"), newFakeCA(t, "newer")
		issuer := &switchIssuer{to: older}
		file := bundle(older)
		m, stop := start(t, issuer, file, nil)
		defer stop()
		defer m.Watch(alice, bob)()
		_, err := m.Certificate(t.Context(), alice)
		must(t, err)
		file.set(older.pem(), newer.pem())
		time.Sleep(10 * time.Minute)
		if n := older.requests(); n != 2 {
			t.Errorf("%d requests while the next root only is published", n)
		}
		issuer.set(newer)
		file.set(newer.pem(), older.pem())
		time.Sleep(20 * time.Second)
		if n := newer.requests(); n != 0 {
			t.Errorf("%d renewals before every replica of the CA signs with the new root", n)
		}
		time.Sleep(3 * time.Minute)
		for _, id := range []api.Identity{alice, bob} {
			if c, err := m.Certificate(t.Context(), id); err != nil || !c.Root.Equal(newer.root) {
				t.Errorf("%s is not renewed: %v", id, err)
			}
		}
		time.Sleep(time.Hour)
		if n := newer.requests(); n != 2 {
			t.Errorf("%d renewals, want 2", n)
		}
		file.set(older.pem(), newer.pem()) // and the CA does not do what the file says
		time.Sleep(6 * time.Hour)
		if n := newer.requests(); n != 2+2*maxHurried {
			t.Errorf("%d requests to a CA that goes on with its root", n)
		}
	})
}

// While a trust domain changes, a server's name in an accepted one is as good as in another; a foreign one is not.
func TestMT23AliasesOfServers(t *testing.T) {
	ca := newFakeCA(t, "one")
	in := func(domain string) api.Identity {
		return api.Identity{TrustDomain: domain, Namespace: bob.Namespace, ServiceAccount: bob.ServiceAccount}
	}
	trust := Trust{Domain: "new.local", Aliases: []string{"old.local"}}
	m, _ := start(t, ca, bundle(ca), func(c *Config) { c.Trust = func() Trust { return trust } })
	other := in("new.local")
	other.ServiceAccount = "other"
	for _, tc := range []struct {
		server, want api.Identity
		ok           bool
	}{
		{in("new.local"), in("new.local"), true}, {in("old.local"), in("new.local"), true}, {in("new.local"), in("old.local"), true},
		{in("evil.local"), in("new.local"), false}, {in("new.local"), in("evil.local"), false}, {other, in("new.local"), false},
		{in("evil.local"), in("evil.local"), true}, // who asks for it by name gets it: another mesh, federated
	} {
		client, err := m.ClientTLS(t.Context(), api.Identity{TrustDomain: "new.local", Namespace: "foo", ServiceAccount: "alice"}, []api.Identity{tc.want})
		must(t, err)
		o := handshake(t, client, m.ServerTLS(tc.server))
		if (o.client == nil) != tc.ok || !tc.ok && !errors.Is(o.client, ErrPeerUnexpected) {
			t.Errorf("server %s, expected %s: %v", tc.server, tc.want, o.client)
		}
	}
	client, err := m.ClientTLS(t.Context(), in("new.local"), []api.Identity{in("new.local")})
	must(t, err)
	trust = Trust{Domain: "new.local"} // the alias is taken away while connections are made
	if o := handshake(t, client, m.ServerTLS(in("old.local"))); !errors.Is(o.client, ErrPeerUnexpected) {
		t.Errorf("without the alias: %v", o.client)
	}
}

// intermediateCA answers with leaf, intermediate and root.
type intermediateCA struct {
	*fakeCA
	root []byte
}

func (ca intermediateCA) Issue(ctx context.Context, r Request) ([]string, error) {
	answer, err := ca.fakeCA.Issue(ctx, r)
	return append(answer, string(ca.root)), err
}

// The documents' openssl s_client -showcerts prints leaf, intermediate and root of a plugged-in CA.
func TestMT18WholeChainOnTheWire(t *testing.T) {
	root := newFakeCA(t, "root")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "Intermediate CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}, root.root, key.Public(), root.key)
	must(t, err)
	between, err := x509.ParseCertificate(der)
	must(t, err)
	ca := &fakeCA{t: t, key: key, root: between, life: time.Minute}
	m, _ := start(t, intermediateCA{ca, root.pem()}, bundle(root), nil)
	client, err := m.ClientTLS(t.Context(), alice, []api.Identity{bob})
	must(t, err)
	o := handshake(t, client, m.ServerTLS(bob))
	if o.client != nil || o.server != nil {
		t.Fatal(o.client, o.server)
	}
	for side, s := range map[string]tls.ConnectionState{"client": o.clientState, "server": o.srvState} {
		if got := s.PeerCertificates; len(got) != 3 || !got[1].Equal(between) || !got[2].Equal(root.root) {
			t.Errorf("the %s sees a chain of %d", side, len(got))
		}
	}
	list := m.Certificates()[0]
	if len(list.CertChain) != 2 || len(list.RootCerts) != 1 {
		t.Errorf("listed are %d of the chain and %d roots", len(list.CertChain), len(list.RootCerts))
	}
	if block, _ := pem.Decode(list.RootCerts[0].PEM); string(block.Bytes) != string(root.root.Raw) {
		t.Error("the listed root is another one")
	}
}
