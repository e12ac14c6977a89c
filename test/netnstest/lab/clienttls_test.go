package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/undermesh/undermesh/controller/configdir"
)

// authority signs the certificates of a test.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	last int64
}

func newAuthority(t testing.TB, name string) *authority {
	a := &authority{t: t}
	a.cert, a.key = a.sign(&x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, NotAfter: time.Now().Add(time.Hour)})
	return a
}

// sign makes a certificate, of a by itself where it has none yet.
func (a *authority) sign(c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	a.last++
	c.SerialNumber, c.NotBefore = big.NewInt(a.last), time.Now().Add(-2*time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return out, key
}

// pair is a certificate of a name and its key, as PEM, good for so long.
func (a *authority) pair(name string, good time.Duration) (cert, key string) {
	c, k := a.sign(&x509.Certificate{Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotAfter: time.Now().Add(good),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}})
	der, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		a.t.Fatal(err)
	}
	return text("CERTIFICATE", c.Raw), text("EC PRIVATE KEY", der)
}

func (a *authority) root() string { return text("CERTIFICATE", a.cert.Raw) }

// revokes is a list with the certificates in it.
func (a *authority) revokes(certs ...string) string {
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour)}
	for _, c := range certs {
		b, _ := pem.Decode([]byte(c))
		parsed, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			a.t.Fatal(err)
		}
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: parsed.SerialNumber, RevocationTime: time.Now().Add(-time.Hour)})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, a.cert, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return text("X509 CRL", der)
}

func text(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

const secureHost = "secure.legacy.svc.cluster.local"

// vault is a lab with a server outside the mesh that asks each client for a certificate of its authority, and says whose it got; with a
// client in the mesh, one outside it, one of another tenant, and a server in the mesh.
type vault struct {
	*Lab
	client, legacy, other *Pod
	servers, clients      *authority
	cert                  atomic.Pointer[tls.Certificate] // the server's
	serverAddr            string
	conns                 sync.Map    // the server's
	asks                  atomic.Bool // it asks for a certificate, and takes nobody without one
}

func newVault(t *testing.T) *vault {
	v := &vault{Lab: New(t, Config{}), servers: newAuthority(t, "servers"), clients: newAuthority(t, "clients")}
	one, two := v.Nodes[0], v.Nodes[1]
	v.Namespace("foo", true)
	v.Namespace("bar", true)
	v.Namespace("legacy", false)
	v.client, v.other, v.legacy = one.Pod("foo", "sleep"), two.Pod("bar", "sleep"), one.Pod("legacy", "sleep")
	web, server := two.Pod("foo", "web"), two.Pod("legacy", "secure")
	web.StartWith([]string{"SERVICE_VERSION=v1", "SERVICE_NAME=web"}, "samples", "echo", "8080")
	v.serve(secureHost, time.Hour)
	v.asks.Store(true)
	v.listen(server)
	v.Apply("services", `apiVersion: v1
kind: Service
metadata: {name: web, namespace: foo}
spec: {clusterIP: 10.97.0.10, clusterIPs: [10.97.0.10], selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: secure, namespace: legacy}
spec: {clusterIP: None, selector: {app: secure}, ports: [{name: http, port: 8443, targetPort: 8443}, {name: tcp, port: 9443, targetPort: 9443}]}
`)
	for _, p := range []*Pod{v.client, v.other, web} {
		p.Enrolled(true)
	}
	return v
}

// serve has the server show a certificate of the name.
func (v *vault) serve(name string, good time.Duration) string {
	cert, key := v.servers.pair(name, good)
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	v.must(err)
	v.cert.Store(&pair)
	return cert
}

// listen serves both ports of the pod over TLS.
func (v *vault) listen(p *Pod) {
	pool := x509.NewCertPool()
	pool.AddCert(v.clients.cert)
	config := &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		c := &tls.Config{Certificates: []tls.Certificate{*v.cert.Load()}, ClientCAs: pool}
		if v.asks.Load() {
			c.ClientAuth = tls.RequireAndVerifyClientCert
		}
		return c, nil
	}}
	for _, port := range []string{"8443", "9443"} {
		var l net.Listener
		v.must(p.NS.Do(func() (err error) { l, err = net.Listen("tcp", ":"+port); return err }))
		srv := &http.Server{TLSConfig: config, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			who := "nobody"
			if len(r.TLS.PeerCertificates) > 0 {
				who = r.TLS.PeerCertificates[0].Subject.CommonName
			}
			fmt.Fprintf(w, "hello %s", who)
		}), ErrorLog: log.New(io.Discard, "", 0), ConnState: func(c net.Conn, now http.ConnState) {
			if now == http.StateClosed {
				v.conns.Delete(c)
			} else {
				v.conns.Store(c, true)
			}
		}}
		done := make(chan struct{})
		go func() { defer close(done); _ = srv.ServeTLS(l, "", "") }()
		v.T.Cleanup(func() { _ = srv.Close(); <-done })
	}
	v.serverAddr = p.Addr.String()
}

// ask gives the status and the answer of the server's port for HTTP, and, of its port for TCP, the answer or "refused".
func (v *vault) ask(p *Pod, port int) string {
	out, code := p.Run(15*time.Second, "curl", "-s", "-m", "10", "-w", "\n%{http_code}", "-H", "Host: "+secureHost, fmt.Sprintf("http://%s:%d/", v.serverAddr, port))
	i := strings.LastIndexByte(out, '\n')
	switch {
	case code != 0 || i < 0:
		return fmt.Sprintf("curl ended with %d", code)
	case out[i+1:] != "200":
		return out[i+1:]
	}
	return out[:i]
}

// expect waits until both ports answer so.
func (v *vault) expect(p *Pod, http, tcp string) {
	v.T.Helper()
	v.Until(20*time.Second, fmt.Sprintf("answers %q and %q", http, tcp), func() error {
		if a, b := v.ask(p, 8443), v.ask(p, 9443); a != http || b != tcp {
			return fmt.Errorf("%q and %q", a, b)
		}
		return nil
	})
}

const (
	refusedHTTP = "503"
	refusedTCP  = "curl ended with 56" // reset
	plainHTTP   = "400"                // what the server says of a request without TLS
)

// rule writes a DestinationRule of a namespace for its workload sleep.
func (v *vault) rule(namespace, host, tls string) {
	v.Apply("rule-"+namespace, `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: secure, namespace: `+namespace+`}
spec: {host: `+host+`, workloadSelector: {matchLabels: {app: sleep}}, trafficPolicy: {tls: `+tls+`}}
`)
}

// secret writes a Secret; of its values each second one is the value of the one before.
func (v *vault) secret(namespace, name string, data ...string) {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: v1\nkind: Secret\nmetadata: {name: %s, namespace: %s}\ndata:\n", name, namespace)
	for i := 0; i < len(data); i += 2 {
		fmt.Fprintf(&b, "  %s: %s\n", data[i], base64.StdEncoding.EncodeToString([]byte(data[i+1])))
	}
	v.Apply("secret-"+namespace+"-"+name, b.String())
}

const mutual = "{mode: MUTUAL, credentialName: client}"

// TestMT13ClientTLS: a DestinationRule says how its workloads speak TLS, to a server that is not of the mesh and asks for a certificate
// of the client, and to one that is.
func TestMT13ClientTLS(t *testing.T) {
	v := newVault(t)
	cert, key := v.clients.pair("alice", time.Hour)
	v.secret("foo", "client", "tls.crt", cert, "tls.key", key, "ca.crt", v.servers.root())
	t.Run("MT-13 control: without the DestinationRule", func(t *testing.T) { v.at(t).expect(v.client, plainHTTP, plainHTTP) })
	v.rule("foo", secureHost, mutual)
	t.Run("MT-13 MUTUAL by credentialName", func(t *testing.T) { v.at(t).expect(v.client, "hello alice", "hello alice") })
	t.Run("MT-13 control: outside the mesh", func(t *testing.T) { v.at(t).expect(v.legacy, plainHTTP, plainHTTP) })
	t.Run("MT-13 a Secret that changes counts at once", func(t *testing.T) {
		cert, key := v.clients.pair("bob", time.Hour)
		v.secret("foo", "client", "cert", cert, "key", key)
		v.secret("foo", "client-cacert", "cacert", v.servers.root())
		v.at(t).expect(v.client, "hello bob", "hello bob")
	})
	t.Run("MT-13 the key does not belong to the certificate", func(t *testing.T) {
		_, strange := v.clients.pair("eve", time.Hour)
		v.secret("foo", "client", "tls.crt", cert, "tls.key", strange)
		v.at(t).expect(v.client, refusedHTTP, refusedTCP)
		v.at(t).says("the private key does not belong to the certificate")
	})
	t.Run("MT-13 there is no Secret", func(t *testing.T) {
		v.Delete("secret-foo-client")
		v.at(t).expect(v.client, refusedHTTP, refusedTCP)
		v.at(t).says("DestinationRule foo/secure", "tls.credentialName", "Secret foo/client is not there")
		v.at(t).stated("connections are refused: spec.trafficPolicy.tls.credentialName: Secret foo/client is not there")
	})
	v.secret("foo", "client", "tls.crt", cert, "tls.key", key)
	t.Run("MT-13 the server's name, time and authority count", func(t *testing.T) {
		v := v.at(t)
		v.expect(v.client, "hello alice", "hello alice")
		v.serve("another.example", time.Hour)
		v.expectNew(refusedHTTP, refusedTCP)
		v.says("and none of [\\\"" + secureHost)
		v.serve(secureHost, -time.Hour)
		v.expectNew(refusedHTTP, refusedTCP)
		v.says("certificate has expired")
		good := v.serve(secureHost, time.Hour)
		v.expectNew("hello alice", "hello alice")
		v.secret("foo", "client-cacert", "cacert", newAuthority(t, "strangers").root())
		v.expect(v.client, refusedHTTP, refusedTCP)
		v.says("signed by unknown authority")
		v.secret("foo", "client-cacert", "ca.crt", v.servers.root(), "ca.crl", v.servers.revokes())
		v.expect(v.client, "hello alice", "hello alice")
		v.secret("foo", "client-cacert", "ca.crt", v.servers.root(), "ca.crl", v.servers.revokes(good))
		v.expect(v.client, refusedHTTP, refusedTCP)
		v.says("is revoked")
	})
	t.Run("MT-13 another tenant has not the Secret", func(t *testing.T) {
		v.secret("foo", "client-cacert", "ca.crt", v.servers.root())
		v.rule("bar", secureHost, mutual)
		v.at(t).expect(v.other, refusedHTTP, refusedTCP)
		v.at(t).expect(v.client, "hello alice", "hello alice")
	})
	t.Run("MT-13 SIMPLE by credentialName", func(t *testing.T) {
		v.rule("foo", secureHost, "{mode: SIMPLE, credentialName: client}")
		v.at(t).expect(v.client, refusedHTTP, refusedTCP) // the server wants to know who calls
		v.asks.Store(false)
		v.at(t).expect(v.client, "hello nobody", "hello nobody")
		v.at(t).expect(v.legacy, plainHTTP, plainHTTP)
	})
	t.Run("MT-13 SIMPLE with the roots of the system", func(t *testing.T) {
		v.rule("foo", secureHost, "{mode: SIMPLE}")
		v.at(t).expect(v.client, refusedHTTP, refusedTCP)
		v.rule("foo", secureHost, "{mode: SIMPLE, insecureSkipVerify: true}")
		v.at(t).expect(v.client, "hello nobody", "hello nobody")
	})
	t.Run("MT-13 a subset has a credential of its own", func(t *testing.T) {
		v := v.at(t)
		v.asks.Store(true)
		defer v.asks.Store(false)
		cert, key := v.clients.pair("carol", time.Hour)
		v.secret("foo", "subset", "tls.crt", cert, "tls.key", key, "ca.crt", v.servers.root())
		rule := func(subset string) {
			v.Apply("rule-foo", `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: secure, namespace: foo}
spec:
  host: `+secureHost+`
  workloadSelector: {matchLabels: {app: sleep}}
  trafficPolicy: {tls: `+mutual+`}
  subsets: [{name: all, labels: {app: secure}`+subset+`}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: secure, namespace: foo}
spec:
  hosts: [`+secureHost+`]
  http: [{route: [{destination: {host: `+secureHost+`, subset: all}}]}]
`)
		}
		rule("")
		v.expect(v.client, "hello alice", "hello alice") // control: without a tls of its own
		rule(", trafficPolicy: {tls: {mode: MUTUAL, credentialName: subset}}")
		v.expect(v.client, "hello carol", "hello alice") // which no route leads to the subset
		v.expect(v.legacy, plainHTTP, plainHTTP)         // control: outside the mesh
	})
	t.Run("MT-13 files are refused", func(t *testing.T) {
		v.rule("foo", secureHost, "{mode: MUTUAL, clientCertificate: /etc/certs/cert.pem, privateKey: /etc/certs/key.pem}")
		v.at(t).expect(v.client, refusedHTTP, refusedTCP)
		v.at(t).says("tls.clientCertificate is a file of the workload")
	})
	t.Run("MT-13 ISTIO_MUTUAL", func(t *testing.T) {
		v.rule("foo", secureHost, "{mode: ISTIO_MUTUAL}")
		v.at(t).expect(v.client, refusedHTTP, refusedTCP) // the server is not of the mesh
		v.rule("foo", "web.foo.svc.cluster.local", "{mode: ISTIO_MUTUAL}")
		v.at(t).identity(true)
	})
	t.Run("MT-13 DISABLE", func(t *testing.T) {
		v.rule("foo", "web.foo.svc.cluster.local", "{mode: DISABLE}")
		v.at(t).identity(false)
		v.rule("foo", "elsewhere.foo.svc.cluster.local", "{mode: DISABLE}")
		v.at(t).identity(true) // without the rule
	})
	t.Run("no private key is in a log or a view", v.secretive)
}

// at is v for a subtest.
func (v *vault) at(t testing.TB) *vault {
	t.Helper()
	parent := v.T
	if parent != t {
		v.T = t
		t.Cleanup(func() { v.T = parent })
	}
	return v
}

// expectNew is expect for the in-mesh client, after its connections were closed.
func (v *vault) expectNew(http, tcp string) {
	v.T.Helper()
	v.conns.Range(func(c, _ any) bool { _ = c.(net.Conn).Close(); return true })
	v.expect(v.client, http, tcp)
}

// says waits until the client's node has written the texts in one line.
func (v *vault) says(texts ...string) {
	v.T.Helper()
	v.Until(20*time.Second, fmt.Sprintf("the log to say %q", texts), func() error {
		v.ask(v.client, 8443)
		for line := range strings.Lines(v.Nodes[0].Ztunnel.Output()) {
			found := 0
			for _, text := range texts {
				if strings.Contains(line, text) {
					found++
				}
			}
			if found == len(texts) {
				return nil
			}
		}
		return errors.New("it does not")
	})
}

// stated waits until the status of the rule says the text.
func (v *vault) stated(text string) {
	v.T.Helper()
	v.Until(10*time.Second, "the status to say "+text, func() error {
		var all strings.Builder
		err := filepath.WalkDir(filepath.Join(v.Dir, configdir.StatusDir), func(path string, e os.DirEntry, err error) error {
			if err != nil || e.IsDir() || !strings.Contains(path, "secure") {
				return err
			}
			data, err := os.ReadFile(path)
			all.Write(data)
			return err
		})
		if said := strings.Join(strings.Fields(all.String()), " "); err != nil || !strings.Contains(said, text) {
			return fmt.Errorf("%w: %s", errors.Join(err, errors.New("it does not")), said)
		}
		return nil
	})
}

// identity waits until the server of the mesh sees who calls, or does not.
func (v *vault) identity(seen bool) {
	v.T.Helper()
	v.Until(20*time.Second, fmt.Sprintf("the server to see who calls: %v", seen), func() error {
		out, code := v.client.Run(15*time.Second, "curl", "-s", "-m", "10", "http://10.97.0.10/")
		if code != 0 || !strings.Contains(out, `"web"`) || strings.Contains(out, "spiffe://cluster.local/ns/foo/sa/sleep") != seen {
			return fmt.Errorf("exit code %d: %s", code, out)
		}
		return nil
	})
}

// secretive looks for private keys where people look.
func (v *vault) secretive(t *testing.T) {
	v.at(t)
	for _, n := range v.Nodes {
		dump, code := v.run(n.NS, "", 10*time.Second, "curl", "-s", "-m", "8", "http://127.0.0.1:15000/config_dump")
		if code != 0 || !strings.Contains(dump, "secure") {
			t.Errorf("exit code %d, and nothing of the rule in the dump", code)
		}
		for what, text := range map[string]string{"dump": dump, "log": n.Ztunnel.Output()} {
			if strings.Contains(text, "PRIVATE KEY") {
				t.Errorf("%s of %s has a private key", what, n.Name)
			}
		}
	}
	if strings.Contains(v.mesh.Output(), "PRIVATE KEY") {
		t.Error("log of the controller has a private key")
	}
}
