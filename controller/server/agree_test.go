package server

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	syaml "sigs.k8s.io/yaml"

	"github.com/undermesh/undermesh/controller/validate"
	"github.com/undermesh/undermesh/controller/webhook"
	"github.com/undermesh/undermesh/test/corpus"
)

// wrongSpecs are of the right form, so that an API server stores them without admission.
var wrongSpecs = []struct{ kind, spec string }{
	{"networking.istio.io/v1 VirtualService", "{hosts: ['a.*.b'], http: [{route: [{destination: {host: a}}]}]}"},
	{"networking.istio.io/v1 VirtualService", "{hosts: [a], http: [{match: [{uri: {regex: '('}}], route: [{destination: {host: a}}]}]}"},
	{"networking.istio.io/v1 DestinationRule", "{host: a, subsets: [{name: v1}, {name: v1}]}"},
	{"networking.istio.io/v1 DestinationRule", "{host: 1.2.3.4}"},
	{"networking.istio.io/v1 Gateway", "{selector: {a: b}, servers: [{port: {number: 80, name: a, protocol: HTPP}, hosts: ['*']}]}"},
	{"networking.istio.io/v1 ServiceEntry", "{hosts: ['*'], ports: [{number: 80, name: http, protocol: HTTP}]}"},
	{"networking.istio.io/v1 ServiceEntry", "{hosts: [a.example], ports: [{number: 80, name: 'p p', protocol: HTTP}], resolution: DNS}"},
	{"networking.istio.io/v1 WorkloadEntry", "{address: 999.1.1.1}"},
	{"networking.istio.io/v1 WorkloadEntry", "{address: 192.0.2.1, serviceAccount: cluster.local/ns/x/sa/y}"},
	{"networking.istio.io/v1 WorkloadGroup", "{template: {address: 1.2.3.4}}"},
	{"networking.istio.io/v1 Sidecar", "{egress: [{hosts: [a]}]}"},
	{"networking.istio.io/v1beta1 ProxyConfig", "{concurrency: -1}"},
	{"security.istio.io/v1 PeerAuthentication", "{portLevelMtls: {80: {mode: STRICT}}}"},
	{"security.istio.io/v1 AuthorizationPolicy", "{rules: [{from: [{source: {principals: ['a b']}}]}]}"},
	{"security.istio.io/v1 AuthorizationPolicy", "{action: DENY, rules: [{from: [{source: {serviceAccounts: ['foo/b ar']}}]}]}"},
	{"security.istio.io/v1 AuthorizationPolicy", "{rules: [{to: [{operation: {paths: ['/a/{**}/{*}']}}]}]}"},
	{"security.istio.io/v1 AuthorizationPolicy", "{rules: [{to: [{operation: {methods: ['G T']}}]}]}"},
	{"security.istio.io/v1 AuthorizationPolicy", "{rules: [{when: [{key: 'request.header[a]', values: [b]}]}]}"},
	{"security.istio.io/v1 RequestAuthentication", "{jwtRules: [{issuer: a, jwksUri: 'ftp://a.example'}]}"},
	{"security.istio.io/v1 RequestAuthentication", "{jwtRules: [{issuer: a, jwksUri: 'https://a.example', fromHeaders: [{name: 'a b'}]}]}"},
	{"telemetry.istio.io/v1 Telemetry", "{tracing: [{randomSamplingPercentage: 101}]}"},
	{"telemetry.istio.io/v1 Telemetry", "{accessLogging: [{filter: {expression: 'a b'}}]}"},
	{"extensions.istio.io/v1alpha1 WasmPlugin", "{url: 'ftp://a.example'}"},
	{"extensions.istio.io/v1alpha1 TrafficExtension", "{}"},
	{"gateway.networking.k8s.io/v1 HTTPRoute", "{parentRefs: [{group: '', kind: Service, name: a}], rules: [{matches: [{path: {type: RegularExpression, value: '('}}]}]}"},
	{"gateway.networking.k8s.io/v1 GRPCRoute", "{parentRefs: [{group: '', kind: Service, name: a}], rules: [{backendRefs: [{name: a}]}]}"},
	{"gateway.networking.k8s.io/v1 TCPRoute", "{parentRefs: [{group: '', kind: Service, name: a}], rules: [{backendRefs: [{name: a}]}]}"},
	{"gateway.networking.k8s.io/v1 TLSRoute", "{parentRefs: [{group: '', kind: Service, name: a}], hostnames: [a.example], rules: [{backendRefs: [{name: a}]}]}"},
}

// judged is what one object gets from the three that users ask.
type judged struct {
	refused  bool // by admission
	warned   bool // by admission
	accepted bool // in its status; true when it has none
	stated   bool // it has a status
}

// asked puts one object to admission and into a mesh of its own.
func asked(t *testing.T, hook *webhook.Handler, check func(string, metav1.Object) []validate.Finding, text []byte) judged {
	t.Helper()
	var o metav1.PartialObjectMetadata
	if err := syaml.Unmarshal(text, &o); err != nil {
		t.Fatal(err)
	}
	raw, err := syaml.YAMLToJSON(text)
	if err != nil {
		t.Fatal(err)
	}
	gvk := o.GroupVersionKind()
	answer := hook.Review(&admissionv1.AdmissionRequest{UID: "u", Operation: admissionv1.Create, Name: o.Name, Namespace: o.Namespace,
		Kind: metav1.GroupVersionKind{Group: gvk.Group, Version: gvk.Version, Kind: gvk.Kind}, Object: runtime.RawExtension{Raw: raw}})
	out := judged{refused: !answer.Allowed, warned: len(answer.Warnings) > 0, accepted: true}
	for _, s := range compiled(t, text).Status {
		if s.Name != o.Name || !strings.HasPrefix(s.Kind, o.Kind) {
			continue
		}
		if s.Object != nil {
			s = s.With(check(s.Kind, s.Object))
		}
		out.stated, out.accepted = true, out.accepted && s.Accepted
	}
	return out
}

// TestOneJudgement: command line, admission and status say the same of each object of the corpus, good, obsolete and
// damaged: what "undermesh validate" calls an error admission refuses, and the status of what was stored nevertheless does not
// accept it; what has no error is neither refused nor told to be invalid.
func TestOneJudgement(t *testing.T) {
	catalogue, err := validate.NewCatalogue()
	if err != nil {
		t.Fatal(err)
	}
	hook, err := webhook.New(webhook.Config{Catalogue: catalogue})
	if err != nil {
		t.Fatal(err)
	}
	check, err := newCheck()
	if err != nil {
		t.Fatal(err)
	}
	paths, err := filepath.Glob("../validate/testdata/good/*.yaml")
	if err != nil || len(paths) == 0 {
		t.Fatal("no documents", err)
	}
	for _, f := range corpus.Files(t) {
		paths = append(paths, f.Path)
		if f.Printed != "" {
			paths = append(paths, f.Printed)
		}
	}
	dir := t.TempDir()
	for i, w := range wrongSpecs {
		version, kind, _ := strings.Cut(w.kind, " ")
		path := filepath.Join(dir, fmt.Sprintf("wrong-%d.yaml", i))
		text := "apiVersion: " + version + "\nkind: " + kind + "\nmetadata: {name: a, namespace: shop}\nspec: " + w.spec + "\n"
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	count := map[string]int{}
	for _, path := range paths {
		for i, text := range parsable(t, path) {
			var o metav1.PartialObjectMetadata
			if syaml.Unmarshal(text, &o) != nil || o.Kind == "" || o.APIVersion == "" || o.Name == "" || strings.HasSuffix(o.Kind, "List") {
				count["no object"]++
				continue
			}
			findings := catalogue.File("f", text).Findings
			worst := validate.Worst(findings)
			got, where := asked(t, hook, check, text), fmt.Sprintf("%s[%d] %s", filepath.Base(path), i, o.Kind)
			own := strings.HasSuffix(o.GroupVersionKind().Group, "istio.io")
			count[worst.String()]++
			if own && got.refused != (worst == validate.Error) {
				t.Errorf("%s: %s on the command line, refused by admission: %t: %v", where, worst, got.refused, findings)
			}
			if !own && got.refused {
				t.Errorf("%s: admission refuses what is not the mesh's", where)
			}
			if worst >= validate.Warning && !got.refused && !got.warned {
				t.Errorf("%s: %s on the command line, and admission is silent", where, worst)
			}
			if worst < validate.Warning && got.warned {
				t.Errorf("%s: nothing on the command line, and admission warns", where)
			}
			if got.stated {
				count["stated "+worst.String()]++
			}
			if got.stated && got.accepted != (worst < validate.Error) {
				t.Errorf("%s: %s on the command line, accepted in the status: %t: %v", where, worst, got.accepted, findings)
			}
		}
	}
	t.Log(count)
	if count["stated error"] < len(wrongSpecs) || count["stated info"] < 150 {
		t.Errorf("too few objects were judged: %v", count)
	}
}

// parsable lists the documents of a file that are YAML, up to the first that is not.
func parsable(t *testing.T, path string) [][]byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out [][]byte
	for dec := yaml.NewDecoder(bytes.NewReader(data)); ; {
		var n yaml.Node
		if err := dec.Decode(&n); err != nil {
			if !errors.Is(err, io.EOF) && len(out) == 0 {
				return nil
			}
			return out
		}
		if len(n.Content) != 1 || n.Content[0].Kind != yaml.MappingNode {
			continue
		}
		text, err := yaml.Marshal(&n)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := syaml.YAMLToJSONStrict(text); err != nil {
			continue // keys that stand twice: neither kubectl nor the API server takes them
		}
		out = append(out, text)
	}
}
