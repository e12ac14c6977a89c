package compile_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/policy"
)

// meshOf compiles the texts, one after the other, and returns what a node then has.
func meshOf(t *testing.T, texts ...string) (*compile.Compiler, *client.Snapshot) {
	t.Helper()
	c := compile.New(compile.Config{})
	dir := t.TempDir()
	for i, text := range texts {
		if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(i)+".yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c.Apply(read(t, dir))
	}
	return c, nodeView(t, c)
}

// nodeView is what a node has of everything.
func nodeView(t *testing.T, c *compile.Compiler) *client.Snapshot {
	t.Helper()
	var all []client.Resource
	for _, r := range c.Resources() {
		switch r.Type {
		case api.AddressType, api.CallRuleType, api.AuthorizationType, api.WorkloadSettingsType, api.ScopeType, api.MeshSettingsType:
			all = append(all, client.Resource{Name: r.Name, Message: r.Message})
		}
	}
	s, err := client.NewSnapshot(all...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// victims are a database behind a headless service, STRICT but for a port that nothing leads to, and a client in another
// namespace.
const victims = `apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: None, selector: {app: db}, ports: [{name: tcp, port: 5432}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db-0, namespace: shop, labels: {app: db}, annotations: {ambient.istio.io/redirection: enabled}}
spec: {nodeName: n1, serviceAccountName: db, containers: [{name: c, image: x}]}
status: {phase: Running, podIP: 10.1.0.1, podIPs: [{ip: 10.1.0.1}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: third, labels: {app: client}, annotations: {ambient.istio.io/redirection: enabled}}
spec: {nodeName: n2, serviceAccountName: client, containers: [{name: c, image: x}]}
status: {phase: Running, podIP: 10.1.1.1, podIPs: [{ip: 10.1.1.1}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: db, namespace: shop}
spec: {selector: {matchLabels: {app: db}}, mtls: {mode: STRICT}, portLevelMtls: {9002: {mode: DISABLE}}}
`

// listings are the ways in which a namespace may list the address of a pod.
func listings(namespace string) map[string]string {
	return map[string]string{
		"ServiceEntry": `apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: a, namespace: ` + namespace + `, labels: {networking.istio.io/enable-autoallocate-ip: "false"}}
spec:
  hosts: [a.listing.example]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 5432, name: tcp, protocol: TCP}, {number: 9002, name: tcp-9002, protocol: TCP}]
  endpoints: [{address: 10.1.0.1}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: a, namespace: ` + namespace + `}
spec: {host: a.listing.example, trafficPolicy: {tls: {mode: DISABLE}}}
`,
		"EndpointSlice": `apiVersion: v1
kind: Service
metadata: {name: a, namespace: ` + namespace + `}
spec: {clusterIP: None, ports: [{name: tcp, port: 5432}, {name: more, port: 9002}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: a, namespace: ` + namespace + `, labels: {kubernetes.io/service-name: a}}
addressType: IPv4
endpoints: [{addresses: [10.1.0.1]}]
ports: [{name: tcp, port: 5432}, {name: more, port: 9002}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: a, namespace: ` + namespace + `}
spec: {host: a.` + namespace + `.svc.cluster.local, trafficPolicy: {tls: {mode: DISABLE}}}
`}
}

// TestListedPodsStayProtected: who lists the address of another namespace's pod changes nothing of how the pod is protected, how
// third parties reach it, or who sees it. Control: the pod's own namespace does, by the same objects.
func TestListedPodsStayProtected(t *testing.T) {
	view := policy.View{Namespace: "third", Scope: &settings.Scope{Egress: []*settings.Egress{{Hosts: []string{"shop/*"}}}}}
	observe := func(texts ...string) (kind policy.Kind, policies []string, sees bool) {
		_, s := meshOf(t, texts...)
		db := s.WorkloadByName("shop", "db-0")
		p := policy.PathFor(policy.PathQuery{Snapshot: s, Source: s.WorkloadByName("third", "client"), Destination: db, Captured: true,
			Address: netip.MustParseAddrPort("10.1.0.1:5432")})
		return p.Kind, db.GetAuthorizationPolicies(), view.SeesWorkload(s, db, 9002)
	}
	kind, policies, sees := observe(victims)
	if kind != policy.Tunnel || !slices.Equal(policies, []string{"istio-system/istio_converted_static_strict"}) || !sees {
		t.Fatal("alone:", kind, policies, sees)
	}
	for how, text := range listings("evil") {
		if k, p, v := observe(victims, text); k != kind || !slices.Equal(p, policies) || v != sees {
			t.Errorf("%s of a stranger: path %v, policies %v, seen %t", how, k, p, v)
		}
	}
	for how, text := range listings("shop") {
		if _, p, _ := observe(victims, text); slices.Equal(p, policies) {
			t.Errorf("control: %s of the pod's namespace: policies %v", how, p)
		}
	}
}
