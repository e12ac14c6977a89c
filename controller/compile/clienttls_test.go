package compile_test

import (
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
	"sigs.k8s.io/yaml"

	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/compile"
)

// TestMT07MT13ClientTLS compiles the documents' rules.
func TestMT07MT13ClientTLS(t *testing.T) {
	type tls = settings.ClientTls
	for spec, want := range map[string]*settings.ClientTlsPolicy{
		"{host: a, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}}}": nil,
		"{host: a, subsets: [{name: v1, labels: {version: v1}}]}":                nil,
		"{host: a, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}":                  {Host: &tls{Mode: settings.ClientTls_MODE_ISTIO_MUTUAL}},
		"{host: a, trafficPolicy: {tls: {}}}":                                    {Host: &tls{Mode: settings.ClientTls_MODE_DISABLE}}, // the zero of the enumeration, as Istio reads it
		"{host: a, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}, portLevelSettings: [{port: {number: 8000}, tls: {mode: DISABLE}}]}}": {
			Host: &tls{Mode: settings.ClientTls_MODE_ISTIO_MUTUAL}, Ports: map[uint32]*tls{8000: {Mode: settings.ClientTls_MODE_DISABLE}}},
		"{host: a, trafficPolicy: {tls: {mode: SIMPLE, sni: x, insecureSkipVerify: true}, portLevelSettings: [{port: {number: 8000}, loadBalancer: {simple: RANDOM}}]}}": {
			Host: &tls{Mode: settings.ClientTls_MODE_SIMPLE, Sni: "x", InsecureSkipVerify: true}, Ports: map[uint32]*tls{8000: {}}},
		"{host: a, trafficPolicy: {tls: {mode: MUTUAL, clientCertificate: /c, privateKey: /k, caCertificates: /r, subjectAltNames: [s]}}, subsets: [{name: v1, trafficPolicy: {tls: {mode: MUTUAL, credentialName: secret}}}, {name: v2}]}": {
			Host:    &tls{Mode: settings.ClientTls_MODE_MUTUAL, ClientCertificate: "/c", PrivateKey: "/k", CaCertificates: "/r", SubjectAltNames: []string{"s"}},
			Subsets: map[string]*settings.ClientTlsPolicy{"v1": {Host: &tls{Mode: settings.ClientTls_MODE_MUTUAL, CredentialName: "secret"}}}},
	} {
		data, err := yaml.YAMLToJSON([]byte(spec))
		if err != nil {
			t.Fatal(err)
		}
		rule := &networking.DestinationRule{}
		if err := protojson.Unmarshal(data, rule); err != nil {
			t.Fatal(err)
		}
		if got := compile.ClientTLS(rule); !proto.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", spec, got, want)
		}
	}
}
