package model

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/validate"
)

var defaults = Mesh{TrustDomain: "cluster.local", RootNamespace: "istio-system"}

// parse reads a text and returns what is wrong with it: its errors, and all findings.
func parse(text string) (Mesh, []string, []validate.Finding) {
	m, found := ParseMesh(&corev1.ConfigMap{Data: map[string]string{"mesh": text}}, defaults)
	var errs []string
	for _, f := range found {
		if f.Severity == validate.Error {
			errs = append(errs, f.Field+": "+f.Message)
		}
	}
	return m, errs, found
}

func TestIN28ParseMesh(t *testing.T) {
	for text, want := range map[string]string{
		"trustDomain: a b":                             "data.mesh.trustDomain: \"a b\" is not",
		"trustDomainAliases: [a/b]":                    "data.mesh.trustDomainAliases[0]: \"a/b\"",
		"trustDomainAliases: [a, a]":                   "data.mesh.trustDomainAliases[1]: the trust domain \"a\" stands in",
		"trustDomain: 7":                               "data.mesh.trustDomain: must be a string",
		"rootNamespace: Mesh_Config":                   "data.mesh.rootNamespace: \"Mesh_Config\" is not a DNS label",
		"rootNamespace: a.b":                           "data.mesh.rootNamespace: ",
		"rootNamespace: a\nrootNamespace: b":           "data.mesh",
		"outboundTrafficPolicy: {mode: ALLOW}":         "data.mesh.outboundTrafficPolicy.mode: \"ALLOW\" is not one of",
		"accessLogEncoding: XML":                       "data.mesh.accessLogEncoding: ",
		"accessLogFile: [a]":                           "data.mesh.accessLogFile: ",
		"enableTracing: maybe":                         "data.mesh.enableTracing: ",
		"certificates: [{dnsNames: [a.b]}]":            "data.mesh.certificates[0].secretName: ",
		"certificates: [{secretName: a}]":              "data.mesh.certificates[0].dnsNames: is required",
		"extensionProviders: [{name: a}]":              "data.mesh.extensionProviders[0]: says nothing",
		"extensionProviders: [{prometheus: {}}]":       "data.mesh.extensionProviders[0].name: is required",
		"defaultConfig: {tracing: {sampling: 101}}":    "data.mesh.defaultConfig.tracing.sampling: ",
		"defaultConfig: {extraStatTags: a}":            "data.mesh.defaultConfig.extraStatTags: ",
		"- a":                                          "data.mesh: ",
		"{":                                            "data.mesh: ",
		"rootNamespace: root\ntrustDomainAliases: [x]": "",
		"{}":        "",
		"":          "",
		"# nothing": "",
		"accessLogFile: /dev/stdout\nenableTracing: true": "",
		"accessLogFormat: \"%BYTES_SENT%\"\naccessLogEncoding: 1\ndefaultProviders: {tracing: [a]}\nextensionProviders: [{name: a, zipkin: {service: z, port: 9411}}]": "",
	} {
		got, errs, _ := parse(text)
		if (len(errs) == 0) != (want == "") || (len(errs) > 0 && !strings.HasPrefix(errs[0], want)) {
			t.Errorf("%q: %v, want %q", text, errs, want)
		}
		if len(errs) > 0 && !got.equal(defaults) {
			t.Errorf("%q: a bad configuration changed %+v", text, got)
		}
	}
	for text, want := range map[string]validate.Severity{
		"rootNamespac: x":              validate.Warning, // named, and ignored
		"accessLogFile: /var/log/x":    validate.Warning,
		"nosuch: {metrics: [missing]}": validate.Warning,
		"ingressClass: istio":          validate.Info, // what does nothing here is named too
		"enableTracing: true":          validate.Info,
	} {
		if _, errs, found := parse(text); len(errs) > 0 || len(found) != 1 || found[0].Severity != want {
			t.Errorf("%q: %v, want one finding of severity %s", text, found, want)
		}
	}
	if _, found := ParseMesh(&corev1.ConfigMap{Data: map[string]string{"Mesh": "{}"}}, defaults); validate.Worst(found) != validate.Error {
		t.Error("a ConfigMap without the key is taken for one that changes nothing")
	}
}

// TestOutboundPolicyNotGiven: REGISTRY_ONLY is the zero of its enumeration.
func TestOutboundPolicyNotGiven(t *testing.T) {
	for text, want := range map[string]bool{
		"{}": false, "outboundTrafficPolicy: {}": false, "outboundTrafficPolicy:": false, "outboundTrafficPolicy: {mode: ALLOW_ANY}": false,
		"outboundTrafficPolicy: {mode: REGISTRY_ONLY}": true,
	} {
		if got, errs, _ := parse(text); got.RegistryOnly != want || len(errs) > 0 {
			t.Errorf("%q: registry only is %t, %v", text, got.RegistryOnly, errs)
		}
	}
	for text, want := range map[string]bool{"{}": false, "accessLogEncoding: TEXT": true, "accessLogEncoding: JSON": true} {
		if got, _, _ := parse(text); got.LogEncodingGiven != want {
			t.Errorf("%q: the encoding of the log is given: %t", text, got.LogEncodingGiven)
		}
	}
}

func FuzzParseMesh(f *testing.F) {
	f.Add("rootNamespace: a\ntrustDomain: b\ntrustDomainAliases: [c]\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}\n")
	f.Add("- 1")
	f.Add("a: &a [*a]")
	f.Fuzz(func(t *testing.T, text string) {
		m, errs, _ := parse(text)
		if _, err := api.ParseIdentity("spiffe://" + m.TrustDomain + "/ns/a/sa/a"); err != nil || len(validation.IsDNS1123Label(m.RootNamespace)) > 0 {
			t.Fatalf("took over %+v, errors %v", m, errs)
		}
	})
}
