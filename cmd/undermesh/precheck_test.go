package main

import (
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"
)

func TestBlocksTunnel(t *testing.T) {
	for name, tc := range map[string]struct {
		spec string
		want bool
	}{
		"default deny":               {`{podSelector: {}, policyTypes: [Ingress]}`, true},
		"types unset mean ingress":   {`{podSelector: {}}`, true},
		"egress only":                {`{podSelector: {}, policyTypes: [Egress]}`, false},
		"allow all":                  {`{podSelector: {}, ingress: [{}]}`, false},
		"one port":                   {`{podSelector: {}, ingress: [{ports: [{port: 80}]}]}`, true},
		"tunnel port":                {`{podSelector: {}, ingress: [{ports: [{port: 80}]}, {ports: [{port: 15008}]}]}`, false},
		"range around it":            {`{podSelector: {}, ingress: [{ports: [{port: 15000, endPort: 15010}]}]}`, false},
		"range below it":             {`{podSelector: {}, ingress: [{ports: [{port: 15000, endPort: 15007}]}]}`, true},
		"udp":                        {`{podSelector: {}, ingress: [{ports: [{port: 15008, protocol: UDP}]}]}`, true},
		"named port":                 {`{podSelector: {}, ingress: [{ports: [{port: http}]}]}`, true},
		"every port of one protocol": {`{podSelector: {}, ingress: [{ports: [{protocol: TCP}]}]}`, false},
	} {
		p := &networkingv1.NetworkPolicy{}
		if err := yaml.Unmarshal([]byte(tc.spec), &p.Spec); err != nil {
			t.Fatal(err)
		}
		if got := blocksTunnel(p); got != tc.want {
			t.Errorf("%s: got %v, want %v", name, got, tc.want)
		}
	}
}

func TestKernelBelow(t *testing.T) {
	for v, want := range map[string]bool{"5.16.9": true, "5.17.0-1-amd64": false, "6.1.0": false, "4.19": true, "weird": true} {
		if got := kernelBelow(v, 5, 17); got != want {
			t.Errorf("%s: got %v, want %v", v, got, want)
		}
	}
}

func TestInstallRefuses(t *testing.T) {
	for _, tc := range []struct{ args, want string }{
		{"manifest generate --set profile=nosuch", "nosuch"},
		{"manifest generate --set values.pilot.nosuch=1", "pilot.nosuch"},
		{"manifest generate --set nosuch=1", "nosuch"},
		{"manifest generate -f testdata/not-operator.yaml", "IstioOperator"},
		{"uninstall", "--purge"},
	} {
		var out, errw strings.Builder
		root := newRoot("undermesh", strings.NewReader(""), &out, &errw)
		root.SetArgs(strings.Fields(tc.args))
		if err := root.Execute(); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want an error that names %s", tc.args, err, tc.want)
		}
	}
}
