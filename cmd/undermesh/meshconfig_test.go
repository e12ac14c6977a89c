package main

import (
	"strings"
	"testing"
)

// TestMeshConfigIsChecked before a cluster is asked for anything.
func TestMeshConfigIsChecked(t *testing.T) {
	for set, want := range map[string]string{
		"meshConfig.outboundTrafficPolicy.mode=FOO":               `meshConfig.outboundTrafficPolicy.mode: "FOO" is not one of `,
		"values.meshConfig.outboundTrafficPolicy.mode=FOO":        `meshConfig.outboundTrafficPolicy.mode: "FOO" is not one of `,
		"meshConfig.nosuch=1":                                     "meshConfig.nosuch: unknown field",
		"meshConfig.outboundTrafficPolicy.mod=ALLOW_ANY":          "meshConfig.outboundTrafficPolicy.mod: unknown field",
		"meshConfig.defaultConfig.tracing.nosuch=1":               "meshConfig.defaultConfig.tracing.nosuch: unknown field",
		"meshConfig.trustDomain=a b":                              `meshConfig.trustDomain: "a b" is not a trust domain`,
		"meshConfig.trustDomain=7":                                "meshConfig.trustDomain: ",
		"meshConfig.rootNamespace=A":                              "meshConfig.rootNamespace: ",
		"meshConfig.outboundTrafficPolicy=REGISTRY_ONLY":          "meshConfig.outboundTrafficPolicy: ",
		"meshConfig.outboundTrafficPolicy.mode=REGISTRY_ONLY":     "",
		"meshConfig.defaultConfig.proxyMetadata.ANY_NAME=a":       "",
		"meshConfig.defaultConfig.drainDuration=10s":              "",
		"meshConfig.extensionProviders[0].name=a":                 "meshConfig.extensionProviders[0]: says nothing",
		"meshConfig.enablePrometheusMerge=false":                  "",
		"meshConfig.defaultConfig.terminationDrainDuration=5s":    "",
		"meshConfig.accessLogFile=/dev/stdout":                    "",
		"meshConfig.trustDomainAliases={one.example,two.example}": "",
	} {
		for _, verb := range [][]string{{"manifest", "generate"}, {"install", "-y", "--kubeconfig", "/nonexistent"}} {
			var out, errw strings.Builder
			root := newRoot("undermesh", strings.NewReader(""), &out, &errw)
			root.SetArgs(append(verb, "--set", set))
			err := root.Execute()
			if want != "" && (err == nil || !strings.HasPrefix(err.Error(), want)) {
				t.Errorf("%v --set %s: got %v, want %q", verb, set, err, want)
			}
			if want == "" && err != nil && (verb[0] == "manifest" || strings.Contains(err.Error(), "meshConfig")) {
				t.Errorf("%v --set %s: got %v", verb, set, err)
			}
			if want != "" && out.String() != "" {
				t.Errorf("%v --set %s printed %q", verb, set, out.String())
			}
		}
	}
}
