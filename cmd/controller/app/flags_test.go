package app

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

func TestFlagsRefuseWhatCannotWork(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.Mkdir("d", 0o700); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"--config=missing":          "-config missing: is not a directory",
		"--confg=d":                 "-confg (-help lists the flags)",
		"-help":                     "Usage of test:",
		"--config=d":                "-config needs -token-file and -cert-dir",
		"--token-file=x":            "need -config",
		"--config=d --kubeconfig=k": "exclude each other",
		"--cert-ttl=1s":             "-cert-ttl must be a minute or more",
		"--config=d --webhook-addr=:1 --xds-addr=": "need an API server",
		"--root-spread=0s":                         "-root-spread must be more than 0",
		"surplus":                                  "takes no arguments",
		"--config=d --xds-addr=":                   "",
		"--config=d --token-file=t --cert-dir=c --identity=me": "",
		"--root-namespace=istio-system --cluster-id=Kubernetes --cluster-domain=cluster.local --xds-addr=:15012 --monitor-addr=:15014 --ready-addr=:8080 --log-level=info": "",
	} {
		var out strings.Builder
		_, err := Parse("test", strings.Fields(args), &out)
		if (err != nil) != (want != "") || !strings.Contains(out.String()+fmt.Sprint(err), want) {
			t.Errorf("%s: %v, %q; want %q", args, err, out.String(), want)
		}
	}
}

func TestServingNames(t *testing.T) {
	o := Options{rootNamespace: "istio-system", clusterDomain: "cluster.local", xdsAddr: "10.0.0.1:15012", tlsNames: "a, b,"}
	got := strings.Join(o.servingNames(), " ")
	want := "istiod.istio-system.svc istiod.istio-system.svc.cluster.local istiod.istio-system istiod localhost 127.0.0.1 ::1 10.0.0.1 a b"
	if got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

func TestExternalSigner(t *testing.T) {
	for _, tc := range []struct{ ca, signer, want, err string }{
		{"", "", "", ""},
		{"ISTIOD_RA_KUBERNETES_API", "example.com/foo", "example.com/foo", ""},
		{"ISTIOD_RA_KUBERNETES_API", "", "", "K8S_SIGNER: missing"},
		{"", "example.com/foo", "", "EXTERNAL_CA"},
		{"VAULT", "example.com/foo", "", `EXTERNAL_CA: "VAULT"`},
		{"ISTIOD_RA_KUBERNETES_API", "kubernetes.io/legacy-unknown", "", "since 1.22"},
	} {
		t.Setenv("EXTERNAL_CA", tc.ca)
		t.Setenv("K8S_SIGNER", tc.signer)
		o, err := Parse("test", nil, &strings.Builder{})
		if o.signer != tc.want || (err != nil) != (tc.err != "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%+v: %q, %v", tc, o.signer, err)
		}
	}
}
