package pki

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestWriteMakesAChainThatVerifies(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	c := Config{Dir: dir, Server: "https://192.0.2.1:6443", ServerNames: []string{"kubernetes.default.svc"},
		ServerIPs: []net.IP{net.ParseIP("10.96.0.1")}, Nodes: []string{"node1"}, Now: now}
	if err := Write(c); err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		t.Fatal("ca.crt holds no certificate")
	}
	for _, want := range []struct {
		file, cn, org, dns string
		usage              x509.ExtKeyUsage
	}{
		{"apiserver", "kube-apiserver", "", "kubernetes.default.svc", x509.ExtKeyUsageServerAuth},
		{"apiserver", "kube-apiserver", "", "10.96.0.1", x509.ExtKeyUsageServerAuth},
		{"node1", "system:node:node1", "system:nodes", "", x509.ExtKeyUsageClientAuth},
		{"admin", "admin", "system:masters", "", x509.ExtKeyUsageClientAuth},
		{"kube-proxy", "system:kube-proxy", "", "", x509.ExtKeyUsageClientAuth},
	} {
		pair, err := tls.LoadX509KeyPair(filepath.Join(dir, want.file+".crt"), filepath.Join(dir, want.file+".key"))
		if err != nil {
			t.Fatal(err)
		}
		opts := x509.VerifyOptions{Roots: roots, DNSName: want.dns, KeyUsages: []x509.ExtKeyUsage{want.usage}, CurrentTime: now}
		if _, err := pair.Leaf.Verify(opts); err != nil {
			t.Errorf("verify %s: %v", want.file, err)
		}
		s := pair.Leaf.Subject
		if s.CommonName != want.cn || want.org != "" && (len(s.Organization) != 1 || s.Organization[0] != want.org) {
			t.Errorf("subject of %s is %s", want.file, s)
		}
	}
	for _, f := range []string{"ca.key", "sa.key", "admin.kubeconfig", "node1.kubeconfig"} {
		info, err := os.Stat(filepath.Join(dir, f))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s is readable by others: %v", f, info.Mode())
		}
	}
}
