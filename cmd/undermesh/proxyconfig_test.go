package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"sigs.k8s.io/yaml"

	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/configdir"
	"github.com/undermesh/undermesh/controller/server"
	"github.com/undermesh/undermesh/controller/watch"
)

const proxyInput = `
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  selector: {app: reviews}
  ports:
  - {name: http, port: 80, targetPort: 9080}
  - {name: tcp-db, port: 3306}
  - {name: x, port: 9000}
---
apiVersion: v1
kind: Service
metadata: {name: hidden, namespace: other}
spec:
  clusterIP: 10.96.0.11
  ports: [{name: http, port: 80}]
---
apiVersion: v1
kind: Pod
metadata: {name: reviews-1, namespace: shop, labels: {app: reviews}, annotations: {ambient.istio.io/redirection: enabled}}
spec: {nodeName: n1, containers: [{name: c, image: x}]}
status: {phase: Running, podIP: 10.0.0.1, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: reviews-2, namespace: shop, labels: {app: reviews}}
spec: {nodeName: n2, containers: [{name: c, image: x}]}
status: {phase: Running, podIP: 10.0.0.2}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: other}
spec: {nodeName: n2, containers: [{name: c, image: x}]}
status: {phase: Running, podIP: 10.0.0.3}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: shop}
spec:
  outboundTrafficPolicy: {mode: REGISTRY_ONLY}
  egress: [{hosts: ["./*"]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: shop}
spec: {}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: shop}
spec:
  host: reviews
  workloadSelector: {matchLabels: {app: reviews}}
  trafficPolicy: {tls: {mode: ISTIO_MUTUAL}, portLevelSettings: [{port: {number: 3306}, tls: {mode: DISABLE}}]}
`

// servedOf is what the debug door of a controller says of the input.
func servedOf(t *testing.T, input string) *servedMesh {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f.yaml"), []byte(input), 0o600); err != nil {
		t.Fatal(err)
	}
	view, err := configdir.New(configdir.Config{Dir: dir}).Load()
	if err != nil || len(view.Problems) > 0 {
		t.Fatal(err, view.Problems)
	}
	c := compile.New(compile.Config{})
	c.Apply(watch.Events(nil, view))
	var all server.Served
	for _, r := range c.Resources() {
		text, err := protojson.Marshal(r.Message)
		if err != nil {
			t.Fatal(err)
		}
		all.Resources = append(all.Resources, server.ServedResource{Type: r.Type, Name: r.Name, Resource: text})
	}
	raw, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	m, err := readServed(raw)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func everything(string, string) bool { return true }

func printed(t *testing.T, s shown, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := (&frame{out: &out}).print(s.object, s.rows); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"json", "yaml"} { // both hold one object
		var text bytes.Buffer
		if err := (&frame{out: &text, output: format}).print(s.object, s.rows); err != nil {
			t.Fatal(err)
		}
		var v any
		if err := yaml.Unmarshal(text.Bytes(), &v); err != nil || v == nil {
			t.Errorf("-o %s: %v: %s", format, err, &text)
		}
	}
	var lines []string
	for line := range strings.Lines(out.String()) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return strings.Join(lines, "\n")
}

func TestProxyConfigOfPod(t *testing.T) {
	m := servedOf(t, proxyInput)
	for _, tt := range []struct {
		name, namespace, pod string
		show                 podPage
		want                 string
	}{
		{"cluster in a scope", "shop", "reviews-1", clusterPage, `SERVICE FQDN PORT SUBSET DIRECTION TYPE DESTINATION RULE
BlackHoleCluster - - - STATIC
PassthroughCluster - - - ORIGINAL_DST
reviews.shop.svc.cluster.local 80 - outbound EDS reviews.shop
reviews.shop.svc.cluster.local 3306 - outbound EDS reviews.shop
reviews.shop.svc.cluster.local 9000 - outbound EDS reviews.shop`},
		{"tls", "shop", "reviews-1", tlsPage, `SERVICE FQDN PORT MODE DESTINATION RULE
reviews.shop.svc.cluster.local 80 ISTIO_MUTUAL shop/reviews
reviews.shop.svc.cluster.local 3306 DISABLE shop/reviews
reviews.shop.svc.cluster.local 9000 ISTIO_MUTUAL shop/reviews`},
		{"tls of who is not selected", "other", "client", tlsPage, `SERVICE FQDN PORT MODE DESTINATION RULE
hidden.other.svc.cluster.local 80 AUTO -
reviews.shop.svc.cluster.local 80 AUTO -
reviews.shop.svc.cluster.local 3306 AUTO -
reviews.shop.svc.cluster.local 9000 AUTO -`},
		{"route in a scope", "shop", "reviews-1", routePage, `NAME VHOST NAME DOMAINS MATCH VIRTUAL SERVICE
80 reviews.shop.svc.cluster.local:80 reviews.shop.svc.cluster.local, reviews + 3 more... /*
80 block_all * /*
reviews.shop.svc.cluster.local:9000 reviews.shop.svc.cluster.local:9000 * /*`},
		{"route without one", "other", "client", routePage, `NAME VHOST NAME DOMAINS MATCH VIRTUAL SERVICE
80 hidden.other.svc.cluster.local:80 hidden.other.svc.cluster.local, hidden + 3 more... /*
80 reviews.shop.svc.cluster.local:80 reviews.shop.svc.cluster.local, reviews.shop.svc + 2 more... /*
80 allow_any * /*
reviews.shop.svc.cluster.local:9000 reviews.shop.svc.cluster.local:9000 * /*`},
		{"listener", "shop", "reviews-1", listenerPage, `ADDRESSES PORT MATCH DESTINATION
0.0.0.0 15001 ALL Cluster: BlackHoleCluster
0.0.0.0 15006 ALL Inbound Passthrough
0.0.0.0 15008 HBONE Inbound Tunnel
10.96.0.10 80 App: HTTP Route: 80
10.96.0.10 3306 ALL Cluster: outbound|3306||reviews.shop.svc.cluster.local
10.96.0.10 9000 App: HTTP or TCP Route: reviews.shop.svc.cluster.local:9000`},
		{"endpoint", "shop", "reviews-1", endpointPage, `ENDPOINT STATUS OUTLIER CHECK CLUSTER
10.0.0.1:3306 HEALTHY OK outbound|3306||reviews.shop.svc.cluster.local
10.0.0.1:9000 HEALTHY OK outbound|9000||reviews.shop.svc.cluster.local
10.0.0.1:9080 HEALTHY OK outbound|80||reviews.shop.svc.cluster.local
10.0.0.2:3306 UNHEALTHY OK outbound|3306||reviews.shop.svc.cluster.local
10.0.0.2:9000 UNHEALTHY OK outbound|9000||reviews.shop.svc.cluster.local
10.0.0.2:9080 UNHEALTHY OK outbound|80||reviews.shop.svc.cluster.local`},
		{"scope", "shop", "reviews-1", scopePage, "PORT HOSTS OUTBOUND POLICY\nALL ./* REGISTRY_ONLY"},
		{"scope without one", "other", "client", scopePage, "PORT HOSTS OUTBOUND POLICY\nALL */* ALLOW_ANY"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v, err := m.sightOf(tt.namespace, tt.pod)
			if err != nil {
				t.Fatal(err)
			}
			s, err := tt.show(m, v, everything)
			if got := printed(t, s, err); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
	v, err := m.sightOf("shop", "reviews-1")
	if err != nil {
		t.Fatal(err)
	}
	all, err := allPage(m, v, everything)
	if got := printed(t, all, err); strings.Count(got, "\n\n") != 5 {
		t.Errorf("all: %s", got)
	}
	one, err := clusterPage(m, v, func(field, value string) bool { return field != "port" || value == "3306" })
	if got := printed(t, one, err); strings.Count(got, "\n") != 1 {
		t.Errorf("with --port: %s", got)
	}
	if _, err := m.sightOf("shop", "nobody"); err == nil || !strings.Contains(err.Error(), "shop/nobody") {
		t.Error("of a pod that is not served:", err)
	}
}

func TestProxyConfigOfNode(t *testing.T) {
	m := servedOf(t, proxyInput)
	for _, tt := range []struct {
		name, namespace string
		show            func(*servedMesh, string) (shown, error)
		want            string
	}{
		{"workload", "", workloadPage, `NAMESPACE POD NAME ADDRESS NODE WAYPOINT PROTOCOL
other client 10.0.0.3 n2 None TCP
shop reviews-1 10.0.0.1 n1 None HBONE
shop reviews-2 10.0.0.2 n2 None TCP`},
		{"workload of a namespace", "other", workloadPage, "NAMESPACE POD NAME ADDRESS NODE WAYPOINT PROTOCOL\nother client 10.0.0.3 n2 None TCP"},
		{"service", "", servicePage, `NAMESPACE SERVICE NAME SERVICE VIP WAYPOINT ENDPOINTS
other hidden 10.96.0.11 None 0/0
shop reviews 10.96.0.10 None 1/2`},
		{"policy", "shop", policyPage, "NAMESPACE POLICY NAME ACTION SCOPE RULES\nshop nobody ALLOW NAMESPACE 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := tt.show(m, tt.namespace)
			if got := printed(t, s, err); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

// TestReadHeld: a ztunnel's dump has the same objects in sections.
func TestReadHeld(t *testing.T) {
	w, err := protojson.Marshal(&workloadapi.Workload{Uid: "u", Name: "a", Namespace: "b"})
	if err != nil {
		t.Fatal(err)
	}
	m, err := readHeld([]byte(`{"mesh":[{"trustDomain":"td"}],"workloads":[` + string(w) + `],"services":[{"name":"s","new":1}],"policies":[{"name":"p"}]}`))
	if err != nil || m.mesh.GetTrustDomain() != "td" || len(m.workloads) != 1 || m.workloads[0].GetName() != "a" || len(m.services) != 1 || len(m.policies) != 1 {
		t.Fatal(m, err)
	}
	for _, bad := range []string{"", "[]", `{"workloads":[7]}`, `{"mesh":[[]]}`} {
		if _, err := readHeld([]byte(bad)); err == nil {
			t.Errorf("%q is taken for a dump", bad)
		}
	}
	if _, err := readServed([]byte(`{"resources":[{"type":"t","name":"n","error":"broken"}]}`)); err == nil || !strings.Contains(err.Error(), "n: broken") {
		t.Error(err)
	}
}
