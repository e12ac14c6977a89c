package validate

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// bookinfo is a small application whose objects fit each other.
const bookinfo = `
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec:
  selector: {app: reviews}
  ports: [{name: http, port: 9080, targetPort: 9080}]
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec:
  selector: {app: db}
  ports: [{name: tcp-sql, port: 3306, targetPort: sql}, {name: http-stats, port: 8080}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: reviews-v1, namespace: shop}
spec:
  selector: {matchLabels: {app: reviews}}
  template:
    metadata: {labels: {app: reviews, version: v1}}
    spec: {containers: [{name: c, image: i, ports: [{containerPort: 9080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db-0, namespace: shop, labels: {app: db}}
spec: {containers: [{name: c, image: i, ports: [{name: sql, containerPort: 33060}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: gw, namespace: istio-system, labels: {istio: ingressgateway}}
spec: {containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: Service
metadata: {name: istio-ingressgateway, namespace: istio-system}
spec:
  selector: {istio: ingressgateway}
  ports: [{name: http2, port: 80, targetPort: 8080}, {name: https, port: 443, targetPort: 8443}]
---
apiVersion: v1
kind: Secret
metadata: {name: cert, namespace: istio-system}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: shop}
spec:
  host: reviews
  subsets: [{name: v1, labels: {version: v1}}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: front, namespace: shop}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 80, name: http, protocol: HTTP}, hosts: [shop.example]}
  - {port: {number: 443, name: https, protocol: HTTPS}, tls: {mode: SIMPLE, credentialName: cert}, hosts: [shop.example]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: shop}
spec:
  hosts: [reviews]
  http: [{route: [{destination: {host: reviews, subset: v1}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: front, namespace: shop}
spec:
  hosts: [shop.example]
  gateways: [front]
  http: [{route: [{destination: {host: reviews, port: {number: 9080}}}]}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: db, namespace: shop}
spec:
  selector: {matchLabels: {app: db}}
  mtls: {mode: STRICT}
  portLevelMtls: {33060: {mode: PERMISSIVE}, 8080: {mode: STRICT}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: out, namespace: shop}
spec: {hosts: [api.example], ports: [{number: 443, name: tls, protocol: TLS}], resolution: DNS}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: istio}
spec: {controllerName: istio.io/gateway-controller}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: kube, namespace: shop}
spec:
  gatewayClassName: istio
  listeners:
  - {name: web, port: 80, protocol: HTTP, hostname: "*.shop.example"}
  - {name: sql, port: 3306, protocol: TCP}
  - {name: sec, port: 443, protocol: TLS, tls: {mode: Passthrough}}
`

// object writes one object of the namespace shop.
func write(kind, name, spec string) string {
	version, kind, _ := strings.Cut(kind, " ")
	ns := "shop"
	if before, after, found := strings.Cut(name, "/"); found {
		ns, name = before, after
	}
	return "---\napiVersion: " + version + "\nkind: " + kind + "\nmetadata: {name: " + name + ", namespace: " + ns + "}\nspec: " + spec + "\n"
}

func judge(t *testing.T, c *Catalogue, cfg SetConfig, texts ...string) (found []Finding, forms []Finding) {
	t.Helper()
	s := c.NewSet(cfg)
	for i, text := range texts {
		forms = append(forms, s.File(t.Context(), "f"+string(rune('0'+i)), []byte(text)).Findings...)
	}
	found, err := s.Together(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return found, forms
}

func text(found []Finding) string {
	var all []string
	for _, f := range found {
		all = append(all, f.CodeOf()+" "+f.String())
	}
	return strings.Join(all, "\n")
}

// togetherCases are one or two objects beside bookinfo, and what must be said about them; "" means nothing.
var togetherCases = []struct{ name, text, want string }{
	{"host", write(network+"VirtualService", "a", "{hosts: [x.example], http: [{route: [{destination: {host: revjews}}]}]}"),
		`IST0101 f1:5: error VirtualService shop/a spec.http[0].route[0].destination.host: Referenced host not found: "revjews" (did you mean reviews?)`},
	{"host of another namespace", write(network+"VirtualService", "other/a", "{hosts: [x.example], http: [{route: [{destination: {host: reviews}}]}]}"), `did you mean reviews.shop.svc.cluster.local?`},
	{"wildcard entry", write(network+"ServiceEntry", "w", "{hosts: ['*.wild.example'], ports: [{number: 443, name: tls, protocol: TLS}]}") +
		write(network+"VirtualService", "a", "{hosts: [a.wild.example], http: [{route: [{destination: {host: a.wild.example}}]}]}"), ""},
	{"hidden entry", write(network+"ServiceEntry", "other/w", "{hosts: [h.example], exportTo: [.], ports: [{number: 443, name: tls, protocol: TLS}], resolution: DNS}") +
		write(network+"VirtualService", "a", "{hosts: [h.example], http: [{route: [{destination: {host: h.example}}]}]}"), `Referenced host not found: "h.example"`},
	{"subset", write(network+"VirtualService", "a", "{hosts: [x.example], http: [{route: [{destination: {host: reviews, subset: v9}}]}]}"),
		`Referenced host+subset in destinationrule not found: "reviews+v9" (DestinationRule shop/reviews has no such subset: did you mean "v1"?)`},
	{"mirror subset", write(network+"VirtualService", "a", "{hosts: [x.example], http: [{route: [{destination: {host: reviews}}], mirror: {host: reviews, subset: zz}}]}"),
		`spec.http[0].mirror.subset: Referenced mirror+subset in destinationrule not found: "reviews+zz"`},
	{"subset by full name", write(network+"VirtualService", "a", "{hosts: [x.example], http: [{route: [{destination: {host: reviews.shop.svc.cluster.local, subset: v1}}]}]}"), ""},
	{"subset, SR-17", write(network+"DestinationRule", "third/api", "{host: api.example, subsets: [{name: eu}]}") +
		write("v1 Pod", "third/p", "{containers: [{name: c, image: i}]}") +
		write(network+"VirtualService", "a", "{hosts: [api.example], http: [{route: [{destination: {host: api.example, subset: eu}}]}]}"),
		"DestinationRule third/api has it, and is not looked up from here"},
	{"rule of the root namespace", write(network+"DestinationRule", "istio-system/api", "{host: api.example, subsets: [{name: eu}]}") +
		write(network+"VirtualService", "a", "{hosts: [api.example], http: [{route: [{destination: {host: api.example, subset: eu}}]}]}"), ""},
	{"rule that nobody finds", write(network+"DestinationRule", "empty/api", "{host: api.example}"), "UM0204 f1:4: warning DestinationRule empty/api metadata.namespace: nobody looks it up"},
	{"port", write(network+"VirtualService", "a", "{hosts: [x.example], tcp: [{route: [{destination: {host: db, port: {number: 33060}}}]}]}"), `destination.port.number: Referenced port not found: "33060"`},
	{"no port", write(network+"VirtualService", "a", "{hosts: [shop.example], gateways: [front], tcp: [{route: [{destination: {host: db}}]}]}"), "exposes multiple ports [3306 8080]"},
	{"called port", write(network+"VirtualService", "a", "{hosts: [db], tcp: [{route: [{destination: {host: db}}]}]}"), ""},
	{"gateway", write(network+"VirtualService", "a", "{hosts: [shop.example], gateways: [frontt], http: [{route: [{destination: {host: reviews}}]}]}"), `IST0101 f1:5: error VirtualService shop/a spec.gateways[0]: Referenced gateway not found: "frontt"`},
	{"gateway elsewhere", write(network+"VirtualService", "b/a", "{hosts: [shop.example], gateways: [shop/front], http: [{route: [{destination: {host: api.example}}]}]}"), ""},
	{"gateway's host", write(network+"VirtualService", "a", "{hosts: [other.example], gateways: [front], http: [{route: [{destination: {host: reviews}}]}]}"),
		"IST0132 f1:5: warning VirtualService shop/a spec.hosts: one or more host [other.example] defined in VirtualService shop/a not found in Gateway shop/front"},
	{"gateway's wildcard", write(network+"Gateway", "w", "{selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['shop/*.w.example']}]}") +
		write(network+"VirtualService", "a", "{hosts: [a.w.example], gateways: [w], http: [{route: [{destination: {host: reviews}}]}]}"), ""},
	{"delegate", write(network+"VirtualService", "a", "{hosts: [x.example], http: [{delegate: {name: gone}}]}"), `Referenced delegate not found: "shop/gone"`},
	{"mesh hosts", write(network+"VirtualService", "a", "{hosts: [reviews.shop.svc.cluster.local], http: [{route: [{destination: {host: reviews}}]}]}"), "The VirtualServices shop/a,shop/reviews associated with mesh gateway define the same host reviews.shop.svc.cluster.local"},
	{"hidden mesh hosts", write(network+"VirtualService", "b/a", "{hosts: [x.example], exportTo: [.], http: [{route: [{destination: {host: api.example}}]}]}") +
		write(network+"VirtualService", "c/a", "{hosts: [x.example], exportTo: [.], http: [{route: [{destination: {host: api.example}}]}]}"), ""},
	{"rule's host", write(network+"DestinationRule", "a", "{host: reviewz}"), `warning DestinationRule shop/a spec.host: Referenced host not found: "reviewz" (did you mean reviews?)`},
	{"rule's pods", write(network+"DestinationRule", "a", "{host: db, subsets: [{name: two, labels: {version: '2'}}]}"), "IST0173 f1:5: warning DestinationRule shop/a spec.subsets[0].labels: This subset's labels are not found in any matching host"},
	{"rule's nodes", write(network+"DestinationRule", "a", "{host: db, subsets: [{name: two, labels: {topology.istio.io/cluster: c}}]}"), ""},
	{"two rules", write(network+"DestinationRule", "a", "{host: reviews.shop.svc.cluster.local}"), "UM0206 f1:5: warning DestinationRule shop/a spec.host: DestinationRule shop/reviews has the host"},
	{"client secret", write(network+"DestinationRule", "a", "{host: api.example, trafficPolicy: {tls: {mode: SIMPLE, credentialName: gone}}}"), `spec.trafficPolicy.tls.credentialName: Referenced credentialName not found: "gone"`},
	{"client secret there", write(network+"DestinationRule", "a", "{host: api.example, trafficPolicy: {portLevelSettings: [{port: {number: 443}, tls: {mode: SIMPLE, credentialName: cert}}]}}"), ""},
	{"plain text to STRICT", write(network+"DestinationRule", "a", "{host: db, trafficPolicy: {tls: {mode: DISABLE}}}"), `IST0113 f1:5: error DestinationRule shop/a spec.trafficPolicy.tls.mode`},
	{"selector", write(network+"Gateway", "a", "{selector: {istio: nobody}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [a.example]}]}"), `spec.selector: Referenced selector not found: "istio=nobody"`},
	{"secret", write(network+"Gateway", "a", "{selector: {istio: ingressgateway}, servers: [{port: {number: 443, name: https, protocol: HTTPS}, tls: {mode: SIMPLE, credentialName: gone}, hosts: [a.example]}]}"), `spec.servers[0].tls.credentialName: Referenced credentialName not found: "gone"`},
	{"secret in the wrong namespace", "apiVersion: v1\nkind: Secret\nmetadata: {name: there, namespace: third}\n" +
		write(network+"Gateway", "a", "{selector: {istio: ingressgateway}, servers: [{port: {number: 443, name: https, protocol: HTTPS}, tls: {mode: SIMPLE, credentialName: there}, hosts: [a.example]}]}"), "there is one in namespace third"},
	{"gateway's port", write(network+"Gateway", "a", "{selector: {istio: ingressgateway}, servers: [{port: {number: 31400, name: tcp, protocol: TCP}, hosts: ['*']}]}"), "IST0162 f1:5: warning Gateway shop/a spec.servers[0].port.number: The gateway is listening on a target port (port 31400)"},
	{"two gateways", write(network+"Gateway", "a", "{selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [shop.example]}]}"), "IST0145 f1:5: error Gateway shop/a spec.servers[0]: Conflict with gateways shop/front (workload selector istio=ingressgateway, port 80, hosts [shop.example])"},
	{"two meshes, MT-11", write(security+"PeerAuthentication", "istio-system/a", "{mtls: {mode: STRICT}}") + write(security+"PeerAuthentication", "istio-system/b", "{mtls: {mode: PERMISSIVE}}"), "UM0201 f1:9: warning PeerAuthentication istio-system/b metadata.name: PeerAuthentication istio-system/a is for the whole mesh too"},
	{"two of a namespace", write(security+"PeerAuthentication", "z", "{}") + write(security+"PeerAuthentication", "a", "{}"), "warning PeerAuthentication shop/z metadata.name: PeerAuthentication shop/a is for namespace shop too"},
	{"two of a workload", write(security+"PeerAuthentication", "z", "{selector: {matchLabels: {app: db}}}"), "PeerAuthentication shop/db is for workload shop/db-0 too"},
	{"all of the workloads, without any", write(security+"PeerAuthentication", "z", "{selector: {matchLabels: {app: db, x: z}}}"), "PeerAuthentication shop/db is for workload app=db,x=z too: the older one counts, and this one is ignored (keep"},
	{"some of the workloads", write(security+"PeerAuthentication", "z", "{selector: {matchLabels: {x: z}}}") + "---\napiVersion: v1\nkind: Pod\nmetadata: {name: db-1, namespace: shop, labels: {app: db, x: z}}\nspec: {containers: [{name: c, image: i, ports: [{name: sql, containerPort: 33060}]}]}\n", "PeerAuthentication shop/db is for workload shop/db-1 too: the older one counts, and this one is ignored there"},
	{"two workloads", write(security+"PeerAuthentication", "z", "{selector: {matchLabels: {app: reviews}}}"), ""},
	{"no workload", write(security+"PeerAuthentication", "z", "{selector: {matchLabels: {app: gone}}}"), "IST0127 f1:5: warning PeerAuthentication shop/z spec.selector.matchLabels: No matching workloads for this resource with the following labels: app=gone"},
	{"unbound port, MT-08", write(security+"PeerAuthentication", "a", "{selector: {matchLabels: {app: reviews}}, portLevelMtls: {9999: {mode: STRICT}}}"), "UM0203 f1:5: warning PeerAuthentication shop/a spec.portLevelMtls.9999: no service of these workloads leads to port 9999"},
	{"service's port, MT-08", write(security+"PeerAuthentication", "a", "{selector: {matchLabels: {app: db, x: z}}, portLevelMtls: {3306: {mode: STRICT}}}") + "---\napiVersion: v1\nkind: Pod\nmetadata: {name: db-1, namespace: shop, labels: {app: db, x: z}}\nspec: {containers: [{name: c, image: i, ports: [{name: sql, containerPort: 33060}]}]}\n", "(write the port of the container, to which a Service leads (targetPort): 8080 33060)"},
	{"HTTP on TCP", write(security+"AuthorizationPolicy", "a", "{selector: {matchLabels: {app: db}}, action: DENY, rules: [{to: [{operation: {methods: [GET], ports: ['33060']}}]}]}"), "UM0202 f1:5: warning AuthorizationPolicy shop/a spec.rules[0].to[0].operation.methods: needs HTTP requests, and port 3306 of service shop/db (TCP) has none: the field is ignored there"},
	{"HTTP on HTTP", write(security+"AuthorizationPolicy", "a", "{selector: {matchLabels: {app: db}}, rules: [{to: [{operation: {methods: [GET], ports: ['8080']}}]}]}"), ""},
	{"token on TCP", write(security+"AuthorizationPolicy", "a", "{selector: {matchLabels: {app: db}}, rules: [{from: [{source: {requestPrincipals: ['*']}}]}]}"), "spec.rules[0].from[0].source.requestPrincipals: needs HTTP requests"},
	{"namespace", write(security+"AuthorizationPolicy", "a", "{rules: [{from: [{source: {namespaces: [shopp]}}]}]}"), `spec.rules[0].from[0].source.namespaces[0]: Referenced namespace not found: "shopp"`},
	{"target", write(security+"AuthorizationPolicy", "a", "{targetRefs: [{kind: Service, group: '', name: gone}]}"), `spec.targetRefs[0]: Referenced Service not found: "gone"`},
	{"JWT on TCP", write(security+"RequestAuthentication", "a", "{selector: {matchLabels: {app: db}}, jwtRules: [{issuer: i.example, jwksUri: 'https://i.example/k'}]}"), "IST0119 f1:5: warning RequestAuthentication shop/a"},
	{"two telemetries, TT-13", write("telemetry.istio.io/v1 Telemetry", "a", "{}") + write("telemetry.istio.io/v1 Telemetry", "b", "{}"), `IST0160 f1:4: error Telemetry shop/a metadata.name: The Telemetries [a b] in namespace "shop" have no workload selector`},
	{"two telemetries of a pod", write("telemetry.istio.io/v1 Telemetry", "a", "{selector: {matchLabels: {app: db}}}") + write("telemetry.istio.io/v1 Telemetry", "b", "{selector: {matchLabels: {app: db}}}"), `IST0159 f1:4: error Telemetry shop/a`},
	{"two sidecars", write(network+"Sidecar", "a", "{egress: [{hosts: ['./*']}]}") + write(network+"Sidecar", "b", "{egress: [{hosts: ['./*']}]}"), `IST0111 f1:4: error Sidecar shop/a`},
	{"two sidecars of a pod", write(network+"Sidecar", "a", "{workloadSelector: {labels: {app: db}}, egress: [{hosts: ['./*']}]}") + write(network+"Sidecar", "b", "{workloadSelector: {labels: {app: db}}, egress: [{hosts: ['./*']}]}"), `select the same workload pod "shop/db-0"`},
	{"sidecar's host", write(network+"Sidecar", "a", "{egress: [{hosts: ['./reviews.shop.svc.cluster.local', './gone.shop.svc.cluster.local']}]}"), `spec.egress[0].hosts[1]: Referenced host not found: "./gone.shop.svc.cluster.local"`},
	{"port name, SR-12", write("v1 Service", "foo", "{selector: {app: db}, ports: [{name: foo, port: 1}]}"), "IST0118 f1:5: warning Service shop/foo spec.ports[0].name: Port name foo (port: 1, targetPort: 0)"},
	{"appProtocol", write("v1 Service", "foo", "{selector: {app: db}, ports: [{name: foo, port: 1, appProtocol: kubernetes.io/h2c}]}"), ""},
	{"egress loop, EG-12", write(network+"Gateway", "eg", "{selector: {istio: ingressgateway}, servers: [{port: {number: 443, name: t, protocol: TLS}, tls: {mode: PASSTHROUGH}, hosts: [loop.example]}]}") +
		write(network+"ServiceEntry", "loop", "{hosts: [loop.example], ports: [{number: 443, name: tls, protocol: TLS}], resolution: NONE}") +
		write(network+"VirtualService", "loop", "{hosts: [loop.example], gateways: [mesh, eg], tls: [{match: [{gateways: [mesh], sniHosts: [loop.example]}], route: [{destination: {host: istio-ingressgateway.istio-system.svc.cluster.local, port: {number: 443}}}]}, {match: [{gateways: [eg], sniHosts: [loop.example]}], route: [{destination: {host: loop.example, port: {number: 443}}}]}]}"),
		"UM0205 f1:10: warning ServiceEntry shop/loop spec.resolution: is NONE"},
	{"entry's pods", write(network+"ServiceEntry", "a", "{hosts: [a.example], ports: [{number: 1, name: tcp, protocol: HTTP}], resolution: STATIC, workloadSelector: {labels: {app: vm}}}"), "No matching workloads for this resource with the following labels: app=vm"},
	{"entry's machine", write(network+"ServiceEntry", "a", "{hosts: [a.example], ports: [{number: 1, name: tcp, protocol: HTTP}], resolution: STATIC, workloadSelector: {labels: {app: vm}}}") +
		write(network+"WorkloadEntry", "vm", "{address: 10.0.0.1, labels: {app: vm}}"), ""},
	{"route's gateway", write(gwapi+"HTTPRoute", "a", "{parentRefs: [{name: gone}], rules: [{backendRefs: [{name: reviews, port: 9080}]}]}"), `spec.parentRefs[0]: Referenced gateway not found: "shop/gone"`},
	{"class", write(gwapi+"Gateway", "a", "{gatewayClassName: gone, listeners: [{name: a, port: 80, protocol: HTTP}]}"), `spec.gatewayClassName: Referenced gatewayclass not found: "gone"`},
	{"route that fits", write(gwapi+"HTTPRoute", "a", "{parentRefs: [{name: kube, sectionName: web}], hostnames: [a.shop.example], rules: [{backendRefs: [{name: reviews, port: 9080}]}]}"), ``},
	{"grpc's service", write(gwapi+"GRPCRoute", "a", "{parentRefs: [{name: kube}], rules: [{backendRefs: [{name: gone, port: 1}]}]}"), `error GRPCRoute shop/a spec.rules[0].backendRefs[0].name: Referenced service not found: "shop/gone"`},
	{"grpc's port", write(gwapi+"GRPCRoute", "a", "{parentRefs: [{name: kube}], rules: [{backendRefs: [{name: reviews, port: 1}]}]}"), `spec.rules[0].backendRefs[0].port: Referenced port not found: "1"`},
	{"mirror's service", write(gwapi+"GRPCRoute", "a", "{parentRefs: [{name: kube}], rules: [{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: gone, port: 1}}}]}]}"), `spec.rules[0].filters[0].requestMirror.backendRef.name: Referenced service not found: "shop/gone"`},
	{"tcp's service", write(gwapi+"TCPRoute", "a", "{parentRefs: [{name: kube}], rules: [{backendRefs: [{name: gone, port: 1}]}]}"), `error TCPRoute shop/a spec.rules[0].backendRefs[0].name: Referenced service not found`},
	{"tcp's listener", write(gwapi+"TCPRoute", "a", "{parentRefs: [{name: kube, sectionName: web}], rules: [{backendRefs: [{name: db, port: 3306}]}]}"), `UM0208 f1:5: error TCPRoute shop/a spec.parentRefs[0]: no listener of Gateway shop/kube takes the route: listener web is HTTP, which a TCPRoute is not for`},
	{"tcp that fits", write(gwapi+"TCPRoute", "a", "{parentRefs: [{name: kube}], rules: [{backendRefs: [{name: db, port: 3306}]}]}"), ``},
	{"tls's gateway", write(gwapi+"TLSRoute", "a", "{parentRefs: [{name: gone}], hostnames: [a.example], rules: [{backendRefs: [{name: db, port: 3306}]}]}"), `error TLSRoute shop/a spec.parentRefs[0]: Referenced gateway not found: "shop/gone"`},
	{"tls that fits", write(gwapi+"TLSRoute", "a", "{parentRefs: [{name: kube}], hostnames: [a.example], rules: [{backendRefs: [{name: db, port: 3306}]}]}"), ``},
	{"udp's listener", write(gwapi+"UDPRoute", "a", "{parentRefs: [{name: kube}], rules: [{backendRefs: [{name: db, port: 3306}]}]}"), `which a UDPRoute is not for`},
	{"no such listener", write(gwapi+"HTTPRoute", "a", "{parentRefs: [{name: kube, sectionName: gone}], rules: [{backendRefs: [{name: reviews, port: 9080}]}]}"), `takes the route: there is no such listener`},
	{"listener's hostname", write(gwapi+"HTTPRoute", "a", "{parentRefs: [{name: kube}], hostnames: [a.example], rules: [{backendRefs: [{name: reviews, port: 9080}]}]}"), `takes the route: listener web is for *.shop.example, which is none of the route's hostnames`},
	{"listener's namespaces", write(gwapi+"HTTPRoute", "third/a", "{parentRefs: [{name: kube, namespace: shop}], rules: [{filters: [{type: RequestRedirect, requestRedirect: {hostname: a.example}}]}]}"), `takes the route: listener web takes no routes of namespace third (allowedRoutes)`},
	{"backend without grant", write(gwapi+"HTTPRoute", "a", "{parentRefs: [{name: kube}], rules: [{backendRefs: [{name: istio-ingressgateway, namespace: istio-system, port: 80}]}]}"), `UM0207 f1:5: error HTTPRoute shop/a spec.rules[0].backendRefs[0]: no ReferenceGrant in namespace istio-system lets a HTTPRoute of namespace shop refer to Service istio-ingressgateway`},
	{"backend with grant", write(gwapi+"HTTPRoute", "a", "{parentRefs: [{name: kube}], rules: [{backendRefs: [{name: istio-ingressgateway, namespace: istio-system, port: 80}]}]}") + write(gwapi+"ReferenceGrant", "istio-system/g", "{from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}], to: [{group: '', kind: Service}]}"), ``},
	{"grant of another kind", write(gwapi+"TCPRoute", "a", "{parentRefs: [{name: kube}], rules: [{backendRefs: [{name: istio-ingressgateway, namespace: istio-system, port: 80}]}]}") + write(gwapi+"ReferenceGrant", "istio-system/g", "{from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}], to: [{group: '', kind: Service}]}"), `lets a TCPRoute of namespace shop`},
	{"grant of another name", write(gwapi+"HTTPRoute", "a", "{parentRefs: [{name: kube}], rules: [{backendRefs: [{name: istio-ingressgateway, namespace: istio-system, port: 80}]}]}") + write(gwapi+"ReferenceGrant", "istio-system/g", "{from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}], to: [{group: '', kind: Service, name: other}]}"), `lets a HTTPRoute of namespace shop`},
	{"secret without grant", "apiVersion: v1\nkind: Secret\nmetadata: {name: there, namespace: istio-system}\n" + write(gwapi+"Gateway", "a", "{gatewayClassName: istio, listeners: [{name: a, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: there, namespace: istio-system}]}}]}"), `spec.listeners[0].tls.certificateRefs[0]: no ReferenceGrant in namespace istio-system lets a Gateway of namespace shop refer to Secret there`},
	{"grant's service", write(gwapi+"ReferenceGrant", "g", "{from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: istio-system}], to: [{group: '', kind: Service, name: gone}]}"), `warning ReferenceGrant shop/g spec.to[0].name: Referenced service not found: "shop/gone"`},
	{"backend's policy", write(gwapi+"BackendTLSPolicy", "a", "{targetRefs: [{group: '', kind: Service, name: gone}], validation: {hostname: a.example, wellKnownCACertificates: System}}"), `error BackendTLSPolicy shop/a spec.targetRefs[0].name: Referenced service not found: "shop/gone"`},
	{"backend's policy's port", write(gwapi+"BackendTLSPolicy", "a", "{targetRefs: [{group: '', kind: Service, name: reviews, sectionName: grpc}], validation: {hostname: a.example, wellKnownCACertificates: System}}"), `spec.targetRefs[0].port: Referenced port not found: "grpc"`},
	{"set of listeners", write(gwapi+"ListenerSet", "a", "{parentRef: {name: gone}, listeners: [{name: a, port: 80, protocol: HTTP}]}"), `error ListenerSet shop/a spec.parentRef: Referenced gateway not found: "shop/gone"`},
	{"one port, two protocols", "apiVersion: v1\nkind: Pod\nmetadata: {name: two, namespace: shop, labels: {app: two}}\nspec: {containers: [{name: c, image: i}]}\n" + write("v1 Service", "one", "{selector: {app: two}, ports: [{name: tcp, port: 1, targetPort: 80}]}") + write("v1 Service", "two", "{selector: {app: two}, ports: [{name: http, port: 80}]}"), `IST0116 f1:1: warning Pod shop/two: port 80 is called by several services by different protocols: shop/one (TCP), shop/two (HTTP)`},
	{"one certificate, two gateways", "apiVersion: v1\nkind: Secret\nmetadata: {name: c, namespace: istio-system}\n" + write(network+"Gateway", "a", "{selector: {istio: ingressgateway}, servers: [{port: {number: 443, name: https, protocol: HTTPS}, tls: {mode: SIMPLE, credentialName: c}, hosts: [a.example]}]}") + write(network+"Gateway", "b", "{selector: {istio: ingressgateway}, servers: [{port: {number: 443, name: https, protocol: HTTPS}, tls: {mode: SIMPLE, credentialName: c}, hosts: [b.example]}]}"), `IST0138 f1:8: warning Gateway shop/a spec.servers[0].tls.credentialName: Duplicate certificate in multiple gateways [shop/b]`},
	{"claims without tokens", write(network+"VirtualService", "a", "{hosts: [shop.example], gateways: [front], http: [{match: [{headers: {'@request.auth.claims.group': {exact: a}}}], route: [{destination: {host: reviews}}]}]}"), `IST0149 f1:5: error VirtualService shop/a spec.http[0].match[0].headers.@request.auth.claims.group: The virtual service uses the JWT claim based routing`},
	{"claims with tokens", write(network+"VirtualService", "a", "{hosts: [shop.example], gateways: [front], http: [{match: [{headers: {'@request.auth.claims.group': {exact: a}}}], route: [{destination: {host: reviews}}]}]}") + write(security+"RequestAuthentication", "istio-system/r", "{jwtRules: [{issuer: a, jwksUri: 'https://a.example'}]}"), ``},
	{"two entries, two protocols", write(network+"ServiceEntry", "a", "{hosts: [a.example], ports: [{number: 443, name: t, protocol: TLS}], resolution: DNS}") + write(network+"ServiceEntry", "b", "{hosts: [a.example], ports: [{number: 443, name: t, protocol: HTTPS}], resolution: DNS}"), `IST0177 f1:10: warning ServiceEntry shop/b spec.ports[0].protocol: ServiceEntry shop/a says that port 443 of a.example is TLS, and this one that it is HTTPS`},
	{"provider", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: 'extensionProviders: [{name: zipkin, zipkin: {service: z.example, port: 1}}]'}\n" + write("telemetry.istio.io/v1 Telemetry", "a", "{tracing: [{providers: [{name: zipkn}]}]}"), `spec.tracing[0].providers[0].name: Referenced provider not found: "zipkn" (did you mean zipkin?)`},
	{"host of a rule", write(network+"DestinationRule", "a", "{host: gone}"), `IST0174 f1:5: warning DestinationRule shop/a spec.host: Referenced host not found: "gone"`},
	{"ingress without effect", write("networking.k8s.io/v1 Ingress", "a", "{rules: [{http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: reviews, port: {number: 9080}}}}]}}]}"), `UM0209 f1:5: info Ingress shop/a spec: is accepted, and not enforced yet: spec.rules[].http.paths[].backend.service.name`},
	{"class without effect", write("networking.k8s.io/v1 IngressClass", "a", "{controller: istio.io/ingress-controller}"), `UM0209 f1:5: info IngressClass shop/a spec: is accepted, and not enforced yet: spec.controller`},
	{"grant without effect", write(gwapi+"ReferenceGrant", "a", "{from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}], to: [{group: '', kind: Service}]}"), `UM0209 f1:5: info ReferenceGrant shop/a spec: is accepted`},
	{"backend's policy without effect", write(gwapi+"BackendTLSPolicy", "a", "{targetRefs: [{group: '', kind: Service, name: reviews}], validation: {hostname: a.example, wellKnownCACertificates: System}}"), `UM0209 f1:5: info BackendTLSPolicy shop/a spec: is accepted`},
	{"rule of a gateway", write(network+"VirtualService", "a", "{hosts: [shop.example], gateways: [front], http: [{route: [{destination: {host: reviews}}]}]}"), `UM0209 f1:5: info VirtualService shop/a spec: is accepted, and not enforced yet, since gateways are not served: spec.gateways[0] "front"`},
	{"rule with an interval of a budget", write(network+"DestinationRule", "a", "{host: reviews, trafficPolicy: {retryBudget: {budgetInterval: 10s}}}"), `UM0209 f1:5: info DestinationRule shop/a spec: is accepted, and not enforced yet: spec.trafficPolicy.retryBudget.budgetInterval (the budget is of the requests at the moment)`},
	{"Sidecar with an ingress", write(network+"Sidecar", "a", "{ingress: [{port: {number: 9080, protocol: HTTP, name: a}}]}"), `UM0209 f1:5: info Sidecar shop/a spec: is accepted, and not enforced yet: spec.ingress[].port.name`},
	{"route's service", write(gwapi+"HTTPRoute", "a", "{parentRefs: [{kind: Service, group: '', name: reviews}], rules: [{backendRefs: [{name: gone, port: 1}]}]}"), `spec.rules[0].backendRefs[0].name: Referenced service not found: "shop/gone"`},
	{"route's port", write(gwapi+"HTTPRoute", "a", "{parentRefs: [{kind: Service, group: '', name: reviews}], rules: [{backendRefs: [{name: reviews, port: 1}]}]}"), `spec.rules[0].backendRefs[0].port: Referenced port not found: "1"`},
	{"listener's secret", write(gwapi+"Gateway", "a", "{gatewayClassName: istio, listeners: [{name: a, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: gone}]}}]}"), `spec.listeners[0].tls.certificateRefs[0]: Referenced secret not found: "shop/gone"`},
	{"ingress", write("networking.k8s.io/v1 Ingress", "a", "{tls: [{secretName: gone}], rules: [{http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: reviews, port: {name: htpp}}}}]}}]}"), `spec.rules[0].http.paths[0].backend.service.port: Referenced port not found: "htpp"`},
	{"ingress' secret", write("networking.k8s.io/v1 Ingress", "a", "{tls: [{secretName: gone}], rules: [{http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: reviews, port: {number: 9080}}}}]}}]}"), `spec.tls[0].secretName: Referenced secret not found: "gone"`},
}

// TestTogether judges each case beside objects that fit each other: with all objects known as a warning or an error, alone
// as an info. The objects that fit have no finding.
func TestTogether(t *testing.T) {
	c, err := NewCatalogue()
	if err != nil {
		t.Fatal(err)
	}
	if found, forms := judge(t, c, SetConfig{All: true}, bookinfo); len(wrong(found))+len(forms) > 0 {
		t.Fatalf("objects that fit: %s\n%s", text(found), text(forms))
	}
	for _, x := range togetherCases {
		t.Run(x.name, func(t *testing.T) {
			found, forms := judge(t, c, SetConfig{All: true}, bookinfo, x.text)
			if Worst(forms) == Error {
				t.Errorf("the objects are wrong alone: %s", text(forms))
			}
			var about []Finding // the objects of the case; those beside it may be told as well
			for _, f := range found {
				if f.File == "f1" && (f.Code != CodeNotEnforced || strings.Contains(x.want, f.Code)) {
					about = append(about, f)
				}
			}
			if got := text(about); !strings.Contains(got, x.want) || (x.want == "") != (got == "") {
				t.Errorf("got  %s\nwant %s", got, x.want)
			}
			alone, _ := judge(t, c, SetConfig{}, bookinfo, x.text)
			if Worst(alone) > Info || (len(alone) == 0 && x.want != "" && x.name != "rule that nobody finds" && x.name != "namespace") {
				t.Errorf("alone: %s", text(alone))
			}
		})
	}
}

// wrong leaves out what is right and not enforced yet.
func wrong(found []Finding) []Finding {
	return slices.DeleteFunc(slices.Clone(found), func(f Finding) bool { return f.Code == CodeNotEnforced })
}

// TestTogetherReplaces: an object that is read again replaces the first one, whatever version it is written in.
func TestTogetherReplaces(t *testing.T) {
	c, err := NewCatalogue()
	if err != nil {
		t.Fatal(err)
	}
	again := strings.ReplaceAll(write(network+"VirtualService", "reviews", "{hosts: [reviews], http: [{route: [{destination: {host: gone}}]}]}"), "networking.istio.io/v1\n", "networking.istio.io/v1alpha3\n")
	found, _ := judge(t, c, SetConfig{All: true}, bookinfo, again)
	if !strings.Contains(text(found), "warning VirtualService shop/reviews metadata.name: an object of this kind and name stands in f0 already") {
		t.Error(text(found))
	}
	if found, _ := judge(t, c, SetConfig{All: true}, bookinfo); len(wrong(found)) > 0 {
		t.Error(text(found))
	}
	if got := text(found); strings.Contains(got, CodeMeshHosts) || !strings.Contains(got, `Referenced host not found: "gone"`) {
		t.Error(got)
	}
}

// TestNotCarriedOut: what the error of a VirtualService leads to is told.
func TestNotCarriedOut(t *testing.T) {
	c, err := NewCatalogue()
	if err != nil {
		t.Fatal(err)
	}
	const http = "http: [{match: [{uri: {regex: '('}}], route: [{destination: {host: reviews}}]}]}"
	for spec, want := range map[string]string{
		"{hosts: [a.example], " + http:                          "requests to its hosts, services of other namespaces apart, are answered by 503, and other connections to them are refused",
		"{hosts: [a.example], gateways: [front, mesh], " + http: "services of other namespaces apart, are answered by 503",
		"{hosts: [a.example], gateways: [front], " + http:       "gateways are not served yet",
		"{" + http: "what is delegated to it is answered by 503",
		"{hosts: ['*'], http: [{route: [{destination: {host: a}}]}]}":             "it names no host that it could count for",
		"{hosts: [a.example], http: [{route: [{destination: {host: reviews}}]}]}": "",
	} {
		found, _ := judge(t, c, SetConfig{All: true}, bookinfo, write(network+"VirtualService", "x", spec))
		got := ""
		for _, f := range found {
			if f.Code == CodeNotCarriedOut && f.Name == "x" {
				got = f.Error()
			}
		}
		if !strings.Contains(got, want) || (got == "") != (want == "") {
			t.Errorf("%s: %q, want %q", spec, got, want)
		}
	}
}

// TestTogetherUnread: of kinds that could not be listed nothing is said.
func TestTogetherUnread(t *testing.T) {
	c, err := NewCatalogue()
	if err != nil {
		t.Fatal(err)
	}
	all := []string{"Service", "Pod", "Secret", "Namespace", groupNetworking + "/ServiceEntry", groupNetworking + "/DestinationRule", groupNetworking + "/Gateway"}
	alone := write(network+"VirtualService", "a", "{hosts: [x.example], gateways: [g, mesh], http: [{route: [{destination: {host: h, subset: s}}]}]}") +
		write(network+"DestinationRule", "a", "{host: h, trafficPolicy: {tls: {mode: SIMPLE, credentialName: c}}, subsets: [{name: s, labels: {a: b}}]}") +
		write(network+"Gateway", "a", "{selector: {a: b}, servers: [{port: {number: 443, name: h, protocol: HTTPS}, tls: {mode: SIMPLE, credentialName: c}, hosts: [h.example]}]}") +
		write(security+"AuthorizationPolicy", "a", "{selector: {matchLabels: {a: b}}, rules: [{from: [{source: {namespaces: [n]}}], to: [{operation: {methods: [GET]}}]}]}")
	if found, _ := judge(t, c, SetConfig{All: true, Unread: all}, alone); len(wrong(found)) > 0 {
		t.Error(text(found))
	}
	if found, _ := judge(t, c, SetConfig{All: true}, alone); len(found) < 6 {
		t.Error("the objects have no references:", text(found))
	}
}

// TestThousandObjects: a thousand objects are read and judged within a second, however they refer to each other.
func TestThousandObjects(t *testing.T) {
	c, err := NewCatalogue()
	if err != nil {
		t.Fatal(err)
	}
	judge(t, c, SetConfig{All: true}, bookinfo) // makes the schemas
	text := thousand()
	begin := cpu(t)
	s := c.NewSet(SetConfig{All: true})
	r := s.File(t.Context(), "f", []byte(text))
	found, err := s.Together(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	found = append(r.Findings, found...)
	took := cpu(t) - begin
	if r.Objects != 1000 || Worst(found) > Info {
		t.Errorf("%d objects: %v", r.Objects, found[:min(len(found), 5)])
	}
	t.Logf("%d objects, %d bytes in %s", r.Objects, len(text), took)
	if took > 2*time.Second { // 0.2 s; the race detector takes several times as long
		t.Errorf("%s is far longer than it was", took)
	}
}

// cpu is the time that this process has computed: what others do on the machine does not count.
func cpu(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkThousandObjects(b *testing.B) {
	c, err := NewCatalogue()
	if err != nil {
		b.Fatal(err)
	}
	text := []byte(thousand())
	for b.Loop() {
		s := c.NewSet(SetConfig{All: true})
		s.File(b.Context(), "f", text)
		if _, err := s.Together(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// thousand is 1,000 objects: 200 services with their pods, routes, rules and policies.
func thousand() string {
	var b strings.Builder
	for i := range 200 {
		n := fmt.Sprintf("app-%d", i)
		sel := "{matchLabels: {app: " + n + "}}"
		b.WriteString(write("v1 Service", n, "{selector: {app: "+n+"}, ports: [{name: http, port: 80, targetPort: 8080}]}"))
		b.WriteString("---\napiVersion: v1\nkind: Pod\nmetadata: {name: " + n + ", namespace: shop, labels: {app: " + n + ", version: v1}}\nspec: {containers: [{name: c, image: i, ports: [{containerPort: 8080}]}]}\n")
		b.WriteString(write(network+"VirtualService", n, "{hosts: ["+n+"], http: [{match: [{uri: {prefix: /a}, headers: {x-a: {exact: b}}}], retries: {attempts: 2}, route: [{destination: {host: "+n+", subset: v1}, weight: 100}]}, {route: [{destination: {host: "+n+"}}]}]}"))
		b.WriteString(write(network+"DestinationRule", n, "{host: "+n+", subsets: [{name: v1, labels: {version: v1}}]}"))
		b.WriteString(write(security+"AuthorizationPolicy", n, "{selector: "+sel+", rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/a]}}], to: [{operation: {methods: [GET], ports: ['8080']}}]}]}"))
	}
	return b.String()
}
