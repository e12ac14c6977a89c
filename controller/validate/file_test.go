package validate

import (
	"fmt"
	"strings"
	"sync"
	"testing"
)

func checkText(t *testing.T, text string) *Report {
	t.Helper()
	c, err := NewCatalogue()
	if err != nil {
		t.Fatal(err)
	}
	return c.File("f", []byte(text))
}

const head = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\n"

// TestForms checks that each way to write an object is read, and that what is wrong is found at its line.
func TestForms(t *testing.T) {
	bomb := "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c <= 'k'; c++ {
		bomb += fmt.Sprintf("%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c]\n", c, c, c-1, c-1, c-1, c-1, c-1, c-1, c-1, c-1, c-1, c-1)
	}
	for name, c := range map[string]struct{ text, want string }{
		"CRLF":                {strings.ReplaceAll(head+"spec: {hostz: [a]}\n", "\n", "\r\n"), `f:4: error VirtualService a spec.hostz: unknown field (did you mean "hosts"?)`},
		"BOM":                 {"\ufeff" + head + "spec: {hostz: [a]}\n", "f:4: error VirtualService a spec.hostz: unknown field"},
		"second":              {"# none\n---\n---\n" + head + "spec: {hostz: [a]}\n", "f:7: error VirtualService a spec.hostz: unknown field"},
		"JSON":                {"{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Pod\",\n\t\"metadata\": {\"name\": \"a\"},\n\t\"spek\": {}}", `f:5: error Pod a spek: unknown field (did you mean "spec"?)`},
		"list":                {"apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: a}\n  spek: {}\n", "f:7: error Pod a items[0].spek: unknown field"},
		"duplicate":           {head + "spec:\n  hosts: [a]\n  hosts: [b]\n", "f:6: error VirtualService a spec.hosts: is written twice (the first is in line 5)"},
		"no kind":             {"spec:\n  hosts: [a]\n  http: []\n", "f:1: error YAML : has no apiVersion and no kind (it looks like a fragment of VirtualService"},
		"scalar":              {"hello\n", "f:1: error YAML : is not an object"},
		"tab":                 {"a:\n\tb: 1\n", "(line 2 is indented with a tab: use spaces)"},
		"indentation":         {head + "spec:\n  hosts: [a]\n http: []\n", "f:6: error YAML : did not find expected key"},
		"dots":                {head + "spec:\n  http:\n...\n  hosts: [a]\n", `"...", which ends a document`},
		"bomb":                {head + "spec:\n  hosts: [a]\n" + bomb + "z: *k\n", "unknown field"},
		"bomb in map":         {"apiVersion: x/v1\nkind: X\nmetadata: {name: a}\n" + bomb, "is too large or too deep"},
		"deep":                {"apiVersion: x/v1\nkind: X\nmetadata: {name: a}\na: " + strings.Repeat("[", 300) + strings.Repeat("]", 300), "is too large or too deep"},
		"type":                {head + "spec:\n  hosts: a\n", "f:5: error VirtualService a spec.hosts: must be a list, and is the string \"a\""},
		"number":              {head + "spec:\n  hosts: [80]\n", `must be a string, and is the number "80" (write it in quotes: "80")`},
		"yes":                 {head + "spec:\n  hosts: [yes]\n", `must be a string, and is the boolean "yes"`},
		"y":                   {"apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {a: y}}\n", `must be a string, and is the boolean "y"`},
		"duration":            {head + "spec:\n  hosts: [a]\n  http: [{timeout: 5, route: [{destination: {host: a}}]}]\n", "is not a duration like 10s or 1.5s (the unit is missing: 5s?)"},
		"enum":                {"apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec: {mtls: {mode: STRIKT}}\n", "did you mean STRICT?"},
		"kind":                {"apiVersion: networking.istio.io/v1\nkind: VirtualServise\nmetadata: {name: a}\n", "did you mean VirtualService?"},
		"version":             {"apiVersion: networking.istio.io/v9\nkind: Gateway\nmetadata: {name: a}\n", `Gateway has no version "v9" (it is in networking.istio.io/v1 or networking.istio.io/v1alpha3 or networking.istio.io/v1beta1)`},
		"group":               {"apiVersion: networking.istio.oi/v1\nkind: VirtualService\nmetadata: {name: a}\n", `f:1: error VirtualService a apiVersion: there is no API group "networking.istio.oi" (VirtualService is in networking.istio.io/v1 or`},
		"group of nobody":     {"apiVersion: network.istio.io/v1\nkind: VirtualServise\nmetadata: {name: a}\n", `there is no API group "network.istio.io" (did you mean networking.istio.io?)`},
		"group of Kubernetes": {"apiVersion: app/v1\nkind: Deployment\nmetadata: {name: a}\n", `there is no API group "app" (Deployment is in apps/v1)`},
		"group of others":     {"apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: a}\n", "info Service a: not checked"},
		"once":                {"apiVersion: v1\nkind: Pod\nmetadata: {name: 5}\n", `f:3: error Pod 5 metadata.name: must be a string, and is the number "5" (write it in quotes: "5")`},
		"dry run":             {"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, annotations: {istio.io/dry-run: maybe}}\n", `warning AuthorizationPolicy a metadata.annotations.istio.io/dry-run: "maybe" is neither true nor false: the policy is enforced`},
		"no spec":             {"apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a}\n", "error DestinationRule a spec.host: is required"},
		"removed":             {"apiVersion: rbac.istio.io/v1alpha1\nkind: ServiceRole\nmetadata: {name: a}\n", "was removed in Istio 1.6"},
		"no name":             {"apiVersion: v1\nkind: Pod\n", "metadata.name: is required"},
		"bad namespace":       {"apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: $NS}\n", "is not a DNS label"},
		"base64":              {"apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndata: {k: \"!\"}\n", "data.k: is not base64"},
		"annotation":          {"apiVersion: v1\nkind: Pod\nmetadata: {name: a, annotations: {sidecar.istio.io/extrastatTags: x}}\n", "did you mean sidecar.istio.io/extraStatTags?"},
		"misplaced":           {"apiVersion: v1\nkind: Service\nmetadata: {name: a, annotations: {traffic.sidecar.istio.io/excludeOutboundPorts: \"80\"}}\n", "warning Service a metadata.annotations.traffic.sidecar.istio.io/excludeOutboundPorts: Misplaced annotation: traffic.sidecar.istio.io/excludeOutboundPorts can only be applied to Pod"},
		"annotation's value":  {"apiVersion: v1\nkind: Pod\nmetadata: {name: a, annotations: {traffic.sidecar.istio.io/excludeOutboundPorts: \"80,http\"}}\n", `Invalid annotation traffic.sidecar.istio.io/excludeOutboundPorts: "http" is not a port number`},
		"annotation's CIDR":   {"apiVersion: v1\nkind: Pod\nmetadata: {name: a, annotations: {traffic.sidecar.istio.io/excludeOutboundIPRanges: 10.0.0.1/8}}\n", `"10.0.0.1/8" is not a network in CIDR notation`},
		"proxy":               {"apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  annotations:\n    proxy.istio.io/config: |\n      tracing:\n        samplig: 10\n", `f:8: warning Pod a metadata.annotations.proxy.istio.io/config.tracing.samplig: unknown field: it is ignored (did you mean "sampling"?)`},
		"proxy in a template": {"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec:\n  template:\n    metadata:\n      annotations:\n        proxy.istio.io/config: '{tracing: {sampling: 101}}'\n", "f:8: error Deployment a spec.template.metadata.annotations.proxy.istio.io/config.tracing.sampling: 101 is not from 0 to 100"},
		"twice":               {head + "---\n" + head, "the last one counts (the first begins in line 1)"},
		"blank":               {"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec: {rules: [{from: [{source: {principals: [\"a b\"]}}]}]}\n", "white space"},
		"merge":               {"x: &x {hostz: [a]}\n", "has no apiVersion"},
		"empty above":         {"apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a}\nspec:\n  host: a\n  subsets:\n  - name: a\n    labels:\n    version: v1\n", "f:9: error DestinationRule a spec.subsets[0].version: unknown field (labels above it is empty: indent it below that)"},
		"operator's revision": {"apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nmetadata: {name: a}\nspec: {revision: 1.11.2}\n", `error IstioOperator a spec.revision: "1.11.2" is not the name of a revision, which has lower case letters, digits and "-" only (write 1-11-2)`},
		"revision":            {"apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {istio.io/rev: A_b}}\n", `warning Namespace a metadata.labels.istio.io/rev: "A_b" is not the name of a revision, which has lower case letters, digits and "-" only (write a-b)`},
		"injection":           {"apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {istio-injection: enable}}\n", `warning Namespace a metadata.labels.istio-injection: "enable" is neither enabled nor disabled: the label says nothing (did you mean enabled?)`},
		"Service's exportTo":  {"apiVersion: v1\nkind: Service\nmetadata: {name: a, annotations: {networking.istio.io/exportTo: \"a b,,%\"}}\nspec: {ports: [{port: 80}]}\n", `Invalid annotation networking.istio.io/exportTo: "a b" is neither a namespace nor`},
		"name":                {head + "spec: {hosts: [a], http: [{route: [{destination: {host: a, port: {name: http}}}]}]}\n", "destination.port.name: unknown field (the fields here are number)"},
		"key":                 {head + "spec: {? [a] : b}\n", "has a key that is not a string"},
	} {
		t.Run(name, func(t *testing.T) {
			r := checkText(t, c.text)
			var all []string
			for _, f := range r.Findings {
				all = append(all, strings.ReplaceAll(f.String(), "  ", " "))
			}
			if got := strings.Join(all, "\n"); !strings.Contains(got, c.want) {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

// FuzzFile feeds the entry of files with anything: nothing may panic, and each finding says where it is.
func FuzzFile(f *testing.F) {
	c, err := NewCatalogue()
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{head, head + "spec: {hosts: [a]}", "{}", "[]", "a: &a [*a]", "<<: {a: b}", "kind: List\nitems: [{}]", "\xff\xfe", "%YAML 1.1\n---\n",
		"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a, ports: [{containerPort: 1}]}]}",
		"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec: {rules: [{from: [{source: {principals: [x]}}]}]}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, x := range c.File("f", data).Findings {
			if x.Line < 1 || x.Message == "" {
				t.Fatalf("%+v", x)
			}
		}
	})
}

// TestConcurrent lets many callers share a catalogue that has made no schema yet. It proves something under -race only.
func TestConcurrent(t *testing.T) {
	c, err := NewCatalogue()
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			x := ruleCases[i*5]
			version, kind, _ := strings.Cut(x.kind, " ")
			c.File("f", []byte("apiVersion: "+version+"\nkind: "+kind+"\nmetadata: {name: a}\nspec: "+x.spec+"\n"))
			c.File("f", []byte("spec: {hosts: [a]}"))
			c.File("f", []byte("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio}\ndata: {mesh: 'trustDomain: a'}\n"))
		})
	}
	all.Wait()
}
