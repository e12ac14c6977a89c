package model

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

var defaults = Mesh{TrustDomain: "cluster.local", RootNamespace: "istio-system"}

func TestParseMesh(t *testing.T) {
	for text, want := range map[string]string{
		"trustDomain: a b":                     "data.mesh.trustDomain: \"a b\" is not",
		"trustDomainAliases: [a/b]":            "data.mesh.trustDomainAliases: \"a/b\"",
		"trustDomain: 7":                       "data.mesh.trustDomain: ",
		"rootNamespace: Mesh_Config":           "data.mesh.rootNamespace: \"Mesh_Config\" is not the name of a namespace",
		"rootNamespace: a.b":                   "data.mesh.rootNamespace: ",
		"rootNamespace: a\nrootNamespace: b":   "data.mesh: ",
		"outboundTrafficPolicy: {mode: ALLOW}": "data.mesh.outboundTrafficPolicy.mode: unknown value \"ALLOW\"",
		"- a":                                  "data.mesh: ",
		"{":                                    "data.mesh: ",
		"rootNamespace: root\ntrustDomainAliases: [x]": "",
		"{}": "",
		"accessLogFile: /dev/stdout\nenableTracing: true": "",
	} {
		got, unknown, err := ParseMesh(&corev1.ConfigMap{Data: map[string]string{"mesh": text}}, defaults)
		if (err == nil) != (want == "") || (err != nil && !strings.HasPrefix(err.Error(), want)) || len(unknown) > 0 {
			t.Errorf("%q: %v, unknown %v, want %q", text, err, unknown, want)
		}
		if err != nil && got.RootNamespace != defaults.RootNamespace {
			t.Errorf("%q: a bad configuration changed %+v", text, got)
		}
	}
	if _, unknown, err := ParseMesh(&corev1.ConfigMap{Data: map[string]string{"mesh": "rootNamespac: x"}}, defaults); err != nil || len(unknown) != 1 {
		t.Error("a misspelt field is not named:", unknown, err)
	}
	if _, _, err := ParseMesh(&corev1.ConfigMap{Data: map[string]string{"Mesh": "{}"}}, defaults); err == nil {
		t.Error("a ConfigMap without the key is taken for one that changes nothing")
	}
}

func FuzzParseMesh(f *testing.F) {
	f.Add("rootNamespace: a\ntrustDomain: b\ntrustDomainAliases: [c]\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}\n")
	f.Add("- 1")
	f.Add("a: &a [*a]")
	f.Fuzz(func(t *testing.T, text string) {
		m, _, err := ParseMesh(&corev1.ConfigMap{Data: map[string]string{"mesh": text}}, defaults)
		if err != nil {
			return
		}
		if !isTrustDomain(m.TrustDomain) || len(validation.IsDNS1123Label(m.RootNamespace)) > 0 {
			t.Fatalf("took over %+v", m)
		}
	})
}
