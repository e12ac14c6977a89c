package e2e

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/ca"
)

// slowly is meshed for what takes longer: kubelets bring a changed ConfigMap into pods within two minutes.
func slowly(t *testing.T) (context.Context, *World) {
	t.Helper()
	_, w := meshed(t)
	ctx, cancel := context.WithTimeout(context.Background(), 14*time.Minute)
	t.Cleanup(cancel)
	return ctx, w
}

// TestCertificatesOfPods: each mesh pod has a certificate with its own name from the mesh's root, which the CLI shows.
func TestCertificatesOfPods(t *testing.T) {
	ctx, w := meshed(t)
	root, err := w.meshRoot(ctx)
	check(t, err)
	check(t, w.renewZtunnel(ctx, "node1")) // keys end with it, so that this controller signs
	check(t, w.ExpectPairs(ctx, time.Minute))
	var s *Shown
	t.Run("MT-16 MT-25 leaf, chain and root of a pod", func(t *testing.T) {
		s, err = w.Secret(ctx, "foo", "sleep")
		check(t, err)
		leaf := s.Chain[0]
		if len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://cluster.local/ns/foo/sa/sleep" {
			t.Errorf("the leaf names %v", leaf.URIs)
		}
		if !s.Trusted[0].Equal(root.cert) || leaf.CheckSignatureFrom(root.cert) != nil {
			t.Error("it is not signed by the root in the Secret")
		}
		if strings.Contains(s.Text, "PRIVATE") || strings.Contains(strings.ToLower(s.Text), "privatekey") {
			t.Error("a key is shown")
		}
	})
	t.Run("MT-19 nobody brought a CA: the root is self-signed", func(t *testing.T) {
		out, err := w.Kubectl(ctx, "get", "secret", "-n", api.DefaultRootNamespace, "cacerts", "--ignore-not-found")
		check(t, err)
		if out != "" {
			t.Errorf("there is one: %s", out)
		}
		if err := root.cert.CheckSignatureFrom(root.cert); err != nil || !root.cert.IsCA {
			t.Errorf("root %s, CA %t: %v", root.cert.Subject, root.cert.IsCA, err)
		}
	})
	t.Run("MT-16 the signature is one line of the controller's log", func(t *testing.T) {
		out, err := w.Kubectl(ctx, "logs", "-n", api.DefaultRootNamespace, "deploy/"+api.ControllerName)
		check(t, err)
		want := []string{`"msg":"certificate signed"`, `"identity":"spiffe://cluster.local/ns/foo/sa/sleep"`, `"serial":"` + s.Chain[0].SerialNumber.Text(16) + `"`, `"node":"node`, `"not_after"`}
		found := false
		for line := range strings.Lines(out) {
			all := true
			for _, part := range want {
				all = all && strings.Contains(line, part)
			}
			found = found || all
		}
		if !found {
			t.Errorf("no line has all of %v", want)
		}
	})
	t.Run("MT-16 MT-25 control: outside the mesh there is none", func(t *testing.T) {
		if _, err := w.Secret(ctx, "legacy", "sleep"); !errors.Is(err, ErrOther) || !strings.Contains(err.Error(), "is not in the mesh") {
			t.Errorf("got %v", err)
		}
	})
}

// TestMT14ControllersPort meets TLS 1.2 where it is served, with openssl. The output may hold bytes of HTTP/2, hence grep -a.
func TestMT14ControllersPort(t *testing.T) {
	ctx, w := meshed(t)
	meet := func(args string) string {
		r, err := w.Exec(ctx, "legacy", "sleep", "echo | timeout 10 openssl s_client -connect istiod.istio-system:15012 -alpn h2 "+args+" 2>&1 | grep -aE '^CONNECTED|^ *(Protocol|Cipher) *:|^New, '")
		check(t, err)
		return r.Out
	}
	for _, suite := range []string{"ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256"} {
		t.Run("MT-14 "+suite, func(t *testing.T) {
			if out := meet("-tls1_2 -cipher " + suite); !strings.Contains(out, "TLSv1.2") || !strings.Contains(out, suite) {
				t.Errorf("got %q", out)
			}
		})
	}
	t.Run("MT-14 control: other suites and versions are refused", func(t *testing.T) {
		for _, args := range []string{"-tls1_2 -cipher ECDHE-ECDSA-AES128-SHA", "-tls1_2 -cipher ECDHE-ECDSA-CHACHA20-POLY1305", "-tls1_1 -cipher DEFAULT@SECLEVEL=0"} {
			if out := meet(args); !strings.Contains(out, "CONNECTED") || strings.Contains(out, "ECDHE") {
				t.Errorf("%s: got %q", args, out)
			}
		}
	})
}

// TestMT14Tunnel meets the port of a pod's tunnel with openssl.
func TestMT14Tunnel(t *testing.T) {
	ctx, w := meshed(t)
	meet := func(t *testing.T, to, args string) string {
		t.Helper()
		pod, err := w.OnePod(ctx, to, "httpbin")
		check(t, err)
		r, err := w.Exec(ctx, "legacy", "sleep", "echo | timeout 10 openssl s_client -connect "+pod.Status.PodIP+":15008 -alpn h2 "+args+" 2>&1 | grep -aE '^CONNECTED|^New, '")
		check(t, err)
		return r.Out
	}
	t.Run("MT-14 the tunnel is TLS 1.3", func(t *testing.T) {
		if out := meet(t, "foo", "-tls1_3"); !strings.Contains(out, "New, TLSv1.3, Cipher is TLS_") {
			t.Errorf("got %q", out)
		}
	})
	t.Run("MT-14 control: an older version is refused", func(t *testing.T) {
		if out := meet(t, "foo", "-tls1_2"); !strings.Contains(out, "CONNECTED") || strings.Contains(out, "TLSv1") {
			t.Errorf("got %q", out)
		}
	})
	t.Run("MT-14 control: outside the mesh there is no TLS", func(t *testing.T) {
		if out := meet(t, "legacy", "-tls1_3"); strings.Contains(out, "CONNECTED") {
			t.Errorf("got %q", out)
		}
	})
}

// TestPlugInUnderLoad replaces the self-signed root by cacerts and shows the documents' commands, while connections are made
// all the time.
func TestPlugInUnderLoad(t *testing.T) {
	underLoad(t, true)
	ctx, w := slowly(t)
	root, err := newCA("Root CA", nil)
	check(t, err)
	secret, between, err := cacerts(root)
	check(t, err)
	t.Run("MT-18 control: without the Secret the root is another one", func(t *testing.T) {
		s, err := w.Secret(ctx, "foo", "httpbin")
		check(t, err)
		if s.Trusted[0].Equal(root.cert) || len(s.Chain) == 3 {
			t.Error("it is the one of the Secret")
		}
	})
	serial := func(t *testing.T) string {
		t.Helper()
		s, err := w.Secret(ctx, "foo", "httpbin")
		check(t, err)
		return s.Chain[0].SerialNumber.Text(16)
	}
	first := serial(t)
	t.Run("MT-17 control: without a reason the certificate stays", func(t *testing.T) {
		check(t, Hold(ctx, 3*time.Second))
		if now := serial(t); now != first {
			t.Errorf("it was %s and is %s", first, now)
		}
	})
	restarts, err := w.controlPlane(ctx)
	check(t, err)
	check(t, w.Apply(ctx, secret))
	t.Cleanup(func() { check(t, w.selfSignedAgain(context.Background())) })
	out, err := w.Undermesh(ctx, "ca", "rotate")
	check(t, err)
	t.Log(out)
	reports, err := w.Reports(ctx)
	check(t, err)
	t.Run("MT-17 MT-18 no connection failed while roots and certificates were replaced", func(t *testing.T) { check(t, Unharmed(reports)) })
	t.Run("MT-17 the pod has another certificate, and nothing was restarted", func(t *testing.T) {
		if now := serial(t); now == first {
			t.Errorf("it is %s still", now)
		}
		if now, err := w.controlPlane(ctx); err != nil || now != restarts {
			t.Errorf("the pods were %s and are %s, %v", restarts, now, err)
		}
	})
	t.Run("MT-18 the chain is leaf, intermediate, root", func(t *testing.T) {
		s, err := w.Secret(ctx, "foo", "httpbin")
		check(t, err)
		if len(s.Chain) != 3 || !s.Chain[1].Equal(between.cert) || !s.Chain[2].Equal(root.cert) || !s.Trusted[0].Equal(root.cert) {
			t.Errorf("a chain of %d", len(s.Chain))
		}
	})
	t.Run("MT-18 the documents' openssl and diff", func(t *testing.T) { check(t, w.documentsCommands(ctx, t.TempDir(), between, root)) })
	t.Run("MT-18 control: another root", func(t *testing.T) {
		other, err := newCA("Root CA", nil)
		check(t, err)
		if err := w.documentsCommands(ctx, t.TempDir(), between, other); err == nil {
			t.Error("any root is identical")
		}
	})
}

// documentsCommands is what "Plug in CA Certificates" has its readers type, with the tunnel's port, where TLS is met.
func (w *World) documentsCommands(ctx context.Context, dir string, between, root *authority) error {
	pod, err := w.OnePod(ctx, "foo", "httpbin")
	if err != nil {
		return err
	}
	r, err := w.Exec(ctx, "legacy", "sleep", "(sleep 2) | openssl s_client -showcerts -alpn h2 -connect "+pod.Status.PodIP+":15008 2>&1")
	if err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "httpbin-proxy-cert.txt"), []byte(r.Out), 0o600),
		os.WriteFile(filepath.Join(dir, "ca-cert.pem"), between.pem, 0o600), os.WriteFile(filepath.Join(dir, "root-cert.pem"), root.pem, 0o600)); err != nil {
		return err
	}
	r, err = run(ctx, nil, nil, "bash", "-c", `cd `+dir+` && rm -f proxy-cert-*
grep -o 'verify error:num=19' httpbin-proxy-cert.txt | head -1
sed -n '/-----BEGIN CERTIFICATE-----/{:start /-----END CERTIFICATE-----/!{N;b start};/.*/p}' httpbin-proxy-cert.txt > certs.pem
awk 'BEGIN {counter=0;} /BEGIN CERT/{counter++} { print > "proxy-cert-" counter ".pem"}' < certs.pem
openssl x509 -in root-cert.pem -text -noout > root-cert.crt.txt
openssl x509 -in ./proxy-cert-3.pem -text -noout > pod-root-cert.crt.txt
diff -s root-cert.crt.txt pod-root-cert.crt.txt
openssl x509 -in ca-cert.pem -text -noout > ca-cert.crt.txt
openssl x509 -in ./proxy-cert-2.pem -text -noout > pod-cert-chain-ca.crt.txt
diff -s ca-cert.crt.txt pod-cert-chain-ca.crt.txt
openssl verify -CAfile <(cat ca-cert.pem root-cert.pem) ./proxy-cert-1.pem`)
	if err != nil {
		return err
	}
	for _, want := range []string{"verify error:num=19", "Files root-cert.crt.txt and pod-root-cert.crt.txt are identical",
		"Files ca-cert.crt.txt and pod-cert-chain-ca.crt.txt are identical", "./proxy-cert-1.pem: OK"} {
		if !strings.Contains(r.Out, want) {
			return fmt.Errorf("%w: no %q in %q %q", ErrOther, want, r.Out, r.Err)
		}
	}
	return nil
}

// selfSignedAgain takes cacerts away and has an operator ask for a self-signed root. It signs as soon as a controller starts,
// since none is left that knows the other key; the old root is trusted on.
func (w *World) selfSignedAgain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for _, args := range [][]string{
		{"delete", "secret", "-n", api.DefaultRootNamespace, "cacerts"},
		{"scale", "deployment", "-n", api.DefaultRootNamespace, api.ControllerName, "--replicas=0"},
		{"wait", "pod", "-n", api.DefaultRootNamespace, "-l", "app=" + api.ControllerName, "--for=delete", "--timeout=60s"},
		{"annotate", "secret", "-n", api.DefaultRootNamespace, ca.RotationSecretName, ca.RequestAnnotation + `={"step":"rotate","by":"test"}`, "--overwrite"},
		{"scale", "deployment", "-n", api.DefaultRootNamespace, api.ControllerName, "--replicas=1"},
	} {
		if _, err := w.Kubectl(ctx, args...); err != nil {
			return err
		}
	}
	return w.AwaitReady(ctx, api.DefaultRootNamespace)
}

// TestMT20SignerOfKubernetes has workloads' certificates signed by a signer of the certificates API: those of new accounts are
// looked at, since what is held is renewed later.
func TestMT20SignerOfKubernetes(t *testing.T) {
	ctx, w := slowly(t)
	foo, err := newCA("foo", nil)
	check(t, err)
	fresh := func(name string) {
		t.Helper()
		text := "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: " + name + ", namespace: foo}\n---\n" +
			strings.NewReplacer("name: late", "name: "+name, "app: late", "app: "+name, "serviceAccountName: sleep", "serviceAccountName: "+name).Replace(late("foo", "node1"))
		check(t, w.Apply(ctx, text))
		t.Cleanup(func() { check(t, w.Delete(context.Background(), text)) })
		check(t, w.awaitPod(ctx, "foo", name))
	}
	signed := func(app string) func(context.Context) error {
		return func(ctx context.Context) error {
			s, err := w.Secret(ctx, "foo", app)
			if err == nil && !s.Trusted[0].Equal(foo.cert) {
				err = fmt.Errorf("the root is %s", s.Trusted[0].Subject)
			}
			return err
		}
	}
	t.Run("MT-20 control: without the variables", func(t *testing.T) {
		fresh("before")
		check(t, Until(ctx, time.Minute, "a certificate", func(ctx context.Context) error {
			_, err := w.Secret(ctx, "foo", "before")
			return err
		}))
		if signed("before")(ctx) == nil {
			t.Error("signed by the signer")
		}
	})
	external := fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: external-ca-cert, namespace: %s}\ndata: {root-cert.pem: %s}\n",
		api.DefaultRootNamespace, base64.StdEncoding.EncodeToString(foo.pem))
	check(t, w.Apply(ctx, external))
	signing, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		n, err := w.Signer(signing, "example.com/foo", foo)
		if err == nil && n == 0 {
			err = errors.New("nothing was signed")
		}
		done <- err
	}()
	t.Cleanup(func() {
		_, err := w.Undermesh(context.Background(), "install", "--set", "profile=demo", "-y")
		check(t, err)
		check(t, w.Delete(context.Background(), external))
	})
	file := filepath.Join(t.TempDir(), "istio.yaml")
	check(t, os.WriteFile(file, []byte(`apiVersion: install.istio.io/v1alpha1
kind: IstioOperator
spec:
  components:
    pilot:
      k8s:
        env:
        - {name: EXTERNAL_CA, value: ISTIOD_RA_KUBERNETES_API}
        - {name: K8S_SIGNER, value: example.com/foo}
`), 0o600))
	_, err = w.Undermesh(ctx, "install", "--set", "profile=demo", "--set", "values.pilot.rootSpread=1s", "-f", file, "-y")
	check(t, err)
	check(t, w.AwaitReady(ctx, api.DefaultRootNamespace))
	// The replica that was there before may have led until its Lease ended, and the nodes are told of the root first.
	check(t, Until(ctx, 2*time.Minute, "the signer to sign", func(ctx context.Context) error {
		out, err := w.Undermesh(ctx, "ca", "status")
		if err == nil && !strings.Contains(out, "signs workloads, externally") {
			err = fmt.Errorf("%w: %s", ErrOther, out)
		}
		return err
	}))
	t.Run("MT-20 trustedCA is the signer's CA", func(t *testing.T) {
		fresh("after")
		check(t, Until(ctx, time.Minute, "the signer's certificate", signed("after")))
	})
	stop()
	check(t, <-done)
	out, err := w.Kubectl(ctx, "get", "certificatesigningrequests", "-o", "name")
	check(t, err)
	if strings.Contains(out, "csr-workload-") {
		t.Errorf("requests are left: %s", out)
	}
}

// TestMT21DNSCertificates makes the documents' Secret, deletes it, and takes the configuration away.
func TestMT21DNSCertificates(t *testing.T) {
	ctx, w := slowly(t)
	const secret = "dns.example1-service-account"
	names := func(ctx context.Context) error {
		r, err := run(ctx, nil, []string{"KUBECONFIG=" + w.Kubeconfig()}, "bash", "-c", filepath.Join(w.Root, "bin/cluster")+" --name "+w.Name+
			` kubectl get secret `+secret+` -n istio-system -o jsonpath='{.data.cert-chain\.pem}' | base64 --decode | openssl x509 -in /dev/stdin -text -noout`)
		if err != nil {
			return err
		}
		if !strings.Contains(r.Out, "DNS:example1.istio-system.svc, DNS:example1.istio-system") {
			return fmt.Errorf("%w: %q %q", ErrOther, r.Out, r.Err)
		}
		return nil
	}
	t.Run("MT-21 control: without the configuration", func(t *testing.T) {
		if err := names(ctx); !errors.Is(err, ErrOther) {
			t.Errorf("got %v", err)
		}
	})
	file := filepath.Join(t.TempDir(), "istio.yaml")
	check(t, os.WriteFile(file, []byte(`apiVersion: install.istio.io/v1alpha1
kind: IstioOperator
spec:
  meshConfig:
    certificates:
    - secretName: dns.example1-service-account
      dnsNames: [example1.istio-system.svc, example1.istio-system]
`), 0o600))
	t.Cleanup(func() {
		_, err := w.Undermesh(context.Background(), "install", "--set", "profile=demo", "-y")
		check(t, err)
		_, err = w.Kubectl(context.Background(), "delete", "secret", "-n", api.DefaultRootNamespace, secret, "--ignore-not-found")
		check(t, err)
	})
	_, err := w.Undermesh(ctx, "install", "--set", "profile=demo", "-f", file, "-y")
	check(t, err)
	t.Run("MT-21 the Secret names both", func(t *testing.T) { check(t, Until(ctx, time.Minute, "the Secret", names)) })
	_, err = w.Kubectl(ctx, "delete", "secret", secret, "-n", api.DefaultRootNamespace)
	check(t, err)
	t.Run("MT-21 it is there again 10 s after its deletion", func(t *testing.T) {
		check(t, Hold(ctx, 10*time.Second))
		check(t, names(ctx))
	})
}

// TestTrustDomain changes the trust domain of a running mesh: its pods get new names at once and go on talking.
func TestTrustDomain(t *testing.T) {
	ctx, w := meshed(t)
	before, err := w.Kubectl(ctx, "get", "configmap", "istio", "-n", api.DefaultRootNamespace, "-o", `jsonpath={.data.mesh}`)
	check(t, err)
	set := func(ctx context.Context, mesh string) {
		t.Helper()
		_, err := w.Kubectl(ctx, "patch", "configmap", "istio", "-n", api.DefaultRootNamespace, "--type=merge", "-p", fmt.Sprintf(`{"data":{"mesh":%q}}`, mesh))
		check(t, err)
	}
	named := func(domain string) func(context.Context) error {
		return func(ctx context.Context) error {
			for _, ns := range Meshed {
				s, err := w.Secret(ctx, ns, "sleep")
				if err != nil {
					return err
				}
				if got := s.Chain[0].URIs[0].Host; got != domain {
					return fmt.Errorf("%w: the pod of %s is named in %s", ErrOther, ns, got)
				}
			}
			return nil
		}
	}
	t.Cleanup(func() {
		set(context.Background(), before)
		check(t, Until(context.Background(), time.Minute, "the old names", named("cluster.local")))
		check(t, w.ExpectPairs(context.Background(), time.Minute))
	})
	if !strings.Contains(before, "trustDomain: cluster.local") {
		t.Fatalf("the mesh's configuration: %s", before)
	}
	changed := strings.Replace(before, "trustDomain: cluster.local", "trustDomain: new-td\ntrustDomainAliases: [cluster.local]", 1)
	t.Run("MT-22 control: before the change", func(t *testing.T) { check(t, named("cluster.local")(ctx)) })
	set(ctx, changed)
	t.Run("MT-22 the pods' certificates are named in the new trust domain", func(t *testing.T) {
		check(t, Until(ctx, 45*time.Second, "the new names", named("new-td")))
	})
	t.Run("MT-23 all pairs answer", func(t *testing.T) { check(t, w.ExpectPairs(ctx, 30*time.Second)) })
	pod, err := w.OnePod(ctx, "bar", "httpbin")
	check(t, err)
	root, err := w.meshRoot(ctx)
	check(t, err)
	alert := func(uri string) string {
		t.Helper()
		cert, err := root.issue(uri, time.Now().Add(time.Hour))
		check(t, err)
		_, alert, err := w.Handshake(ctx, pod.Status.PodIP+":15008", cert)
		check(t, err)
		return alert
	}
	t.Run("MT-23 an identity of an alias is accepted", func(t *testing.T) {
		if a := alert("spiffe://cluster.local/ns/foo/sa/sleep"); a != "" {
			t.Errorf("refused: %s", a)
		}
	})
	t.Run("MT-22 an identity of a foreign trust domain is refused", func(t *testing.T) {
		if a := alert("spiffe://evil/ns/foo/sa/sleep"); a == "" {
			t.Error("accepted")
		}
	})
	set(ctx, strings.Replace(changed, "\ntrustDomainAliases: [cluster.local]", "", 1))
	t.Run("MT-23 control: without the alias its identities are refused", func(t *testing.T) {
		check(t, Until(ctx, 30*time.Second, "the refusal", func(context.Context) error {
			if alert("spiffe://cluster.local/ns/foo/sa/sleep") == "" {
				return errors.New("accepted")
			}
			return nil
		}))
	})
}
