package validate

import (
	"strings"
	"testing"
)

const (
	network  = "networking.istio.io/v1 "
	gwapi    = "gateway.networking.k8s.io/v1 "
	operator = "install.istio.io/v1alpha1 IstioOperator"
	security = "security.istio.io/v1 "
)

// ruleCases are specs of one fault each, and what must be said about it; "" means no warning and no error.
var ruleCases = []struct{ kind, spec, want string }{
	{network + "VirtualService", "{hosts: [a], http: [{route: [{destination: {host: a}}]}]}", ""},
	{network + "VirtualService", "{hosts: [a]}", "error VirtualService a spec: http, tls or tcp is required"},
	{network + "VirtualService", `{hosts: ["*"], http: [{route: [{destination: {host: a}}]}]}`, "spec.hosts[0]: \"*\" would take"},
	{network + "VirtualService", `{hosts: ["a*"], http: [{route: [{destination: {host: a}}]}]}`, "spec.hosts[0]: \"a*\" may have one *"},
	{network + "VirtualService", "{hosts: [a, a], http: [{route: [{destination: {host: a}}]}]}", "spec.hosts[1]: the host \"a\" stands in spec.hosts[0]"},
	{network + "VirtualService", "{hosts: [a], gateways: [A_b], http: [{route: [{destination: {host: a}}]}]}", "spec.gateways[0]: \"A_b\" is not NAME"},
	{network + "VirtualService", "{hosts: [a], http: [{match: [{gateways: [g]}], route: [{destination: {host: a}}]}]}", "match[0].gateways[0]: never matches"},
	{network + "VirtualService", "{hosts: [a], http: [{route: [{destination: {host: a}}, {destination: {host: b}}]}]}", "the sum of the weights is 0"},
	{network + "VirtualService", "{hosts: [a], http: [{route: [{destination: {host: a}, weight: -1}]}]}", "weight: -1 is negative"},
	{network + "VirtualService", "{hosts: [a], http: [{route: [{destination: {subset: a}}]}]}", "destination.host: is required"},
	{network + "VirtualService", "{hosts: [a], http: [{route: [{destination: {host: a, port: {number: 70000}}}]}]}", "port.number: 70000 is not a port"},
	{network + "VirtualService", "{hosts: [a], http: [{route: [{destination: {host: a}}]}, {route: [{destination: {host: a}}]}]}", "spec.http[1]: is never reached: spec.http[0]"},
	{network + "VirtualService", "{hosts: [a], http: [{redirect: {uri: /}, route: [{destination: {host: a}}]}]}", "redirect and route exclude each other"},
	{network + "VirtualService", "{hosts: [a], http: [{redirect: {}}]}", "spec.http[0].redirect: is empty"},
	{network + "VirtualService", "{hosts: [a], http: [{timeout: 1s}]}", "route, redirect, directResponse or delegate is required"},
	{network + "VirtualService", "{hosts: [a], http: [{match: [{uri: {regex: '^(*?;)'}}], route: [{destination: {host: a}}]}]}", "uri.regex: is not a regular expression"},
	{network + "VirtualService", "{hosts: [a], http: [{match: [{uri: {prefix: a, exact: b}}], route: [{destination: {host: a}}]}]}", "cannot stand beside prefix"},
	{network + "VirtualService", "{hosts: [a], http: [{match: [{uri: {prefix: a}}], route: [{destination: {host: a}}]}]}", "does not begin with \"/\""},
	{network + "VirtualService", "{hosts: [a], http: [{match: [{headers: {'a b': {exact: c}}}], route: [{destination: {host: a}}]}]}", "is not the name of an HTTP header"},
	{network + "VirtualService", "{hosts: [a], http: [{match: [{method: {exact: get}}], route: [{destination: {host: a}}]}]}", "method.exact: methods are compared with case"},
	{network + "VirtualService", "{hosts: [a], http: [{retries: {attempts: 1, retryOn: 5xxx}, route: [{destination: {host: a}}]}]}", `unknown condition "5xxx" (did you mean "5xx"?)`},
	{network + "VirtualService", "{hosts: [a], http: [{retries: {perTryTimeout: 1s}, route: [{destination: {host: a}}]}]}", "attempts: is 0, which switches retries off"},
	{network + "VirtualService", "{hosts: [a], http: [{fault: {abort: {httpStatus: 700}}, route: [{destination: {host: a}}]}]}", "httpStatus: 700 is not from 200 to 599"},
	{network + "VirtualService", "{hosts: [a], http: [{fault: {delay: {fixedDelay: 1s, percentage: {value: 101}}}, route: [{destination: {host: a}}]}]}", "value: 101 is not from 0 to 100"},
	{network + "VirtualService", "{hosts: [a], http: [{mirrorPercentage: {value: 10}, route: [{destination: {host: a}}]}]}", "has no meaning without mirror"},
	{network + "VirtualService", "{hosts: [a.example], tls: [{match: [{sniHosts: [b.example]}], route: [{destination: {host: a}}]}]}", "is not among the hosts"},
	{network + "VirtualService", "{hosts: [a], tcp: [{match: [{destinationSubnets: [x]}], route: [{destination: {host: a}}]}]}", "destinationSubnets[0]: \"x\" is not an IP"},
	{network + "VirtualService", "{hosts: [a], exportTo: [A], http: [{route: [{destination: {host: a}}]}]}", "spec.exportTo[0]: \"A\" is neither"},
	{network + "DestinationRule", "{host: a, subsets: [{name: v1, labels: {version: v1}}]}", ""},
	{network + "DestinationRule", "{}", "spec.host: is required"},
	{network + "DestinationRule", "{host: 'a b'}", "contains white space"},
	{network + "DestinationRule", "{host: a, subsets: [{name: x}, {name: x}]}", "spec.subsets[1].name: spec.subsets[0] has the name"},
	{network + "DestinationRule", "{host: a, trafficPolicy: {tls: {mode: MUTUAL}}}", "clientCertificate: is required with mode MUTUAL"},
	{network + "DestinationRule", "{host: a, trafficPolicy: {tls: {mode: ISTIO_MUTUAL, privateKey: x}}}", "has no meaning with mode ISTIO_MUTUAL"},
	{network + "DestinationRule", "{host: a, trafficPolicy: {outlierDetection: {maxEjectionPercent: 101}}}", "101 is not from 0 to 100"},
	{network + "DestinationRule", "{host: a, trafficPolicy: {outlierDetection: {consecutiveErrors: 1}}}", "consecutiveErrors: is deprecated"},
	{network + "DestinationRule", "{host: a, trafficPolicy: {connectionPool: {tcp: {connectTimeout: 0s}}}}", "is shorter than 1ms"},
	{network + "DestinationRule", "{host: a, trafficPolicy: {connectionPool: {tcp: {maxConnections: -1}}}}", "-1 is negative"},
	{network + "DestinationRule", "{host: a, trafficPolicy: {loadBalancer: {simple: RANDOM, consistentHash: {useSourceIp: true}}}}", "cannot stand beside"},
	{network + "DestinationRule", "{host: a, trafficPolicy: {loadBalancer: {consistentHash: {}}}}", "useSourceIp or httpQueryParameterName is required"},
	{network + "DestinationRule", "{host: a, trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: r, to: {r: 90}}]}}}}", "the sum of the weights is 90"},
	{network + "DestinationRule", "{host: a, trafficPolicy: {loadBalancer: {localityLbSetting: {failover: [{from: r, to: s}]}}}}", "failover needs outlierDetection"},
	{network + "DestinationRule", "{host: a, trafficPolicy: {portLevelSettings: [{port: {number: 1}}, {port: {number: 1}}]}}", "is for port 1 already"},
	{network + "Gateway", "{selector: {a: b}, servers: [{port: {number: 80, name: a, protocol: HTTP}, hosts: ['*']}]}", ""},
	{network + "Gateway", "{selector: {a: b}}", "spec.servers: is required"},
	{network + "Gateway", "{selector: {a: b}, servers: [{port: {number: , name: a, protocol: HTTP}, hosts: ['*']}]}", "port.number: is required"},
	{network + "Gateway", "{selector: {a: b}, servers: [{port: {number: 80, name: a, protocol: HTPP}, hosts: ['*']}]}", "did you mean HTTP?"},
	{network + "Gateway", "{selector: {a: b}, servers: [{port: {number: 443, name: a, protocol: HTTPS}, hosts: ['*']}]}", "tls: is required for the protocol HTTPS"},
	{network + "Gateway", "{selector: {a: b}, servers: [{port: {number: 443, name: a, protocol: HTTPS}, tls: {mode: SIMPLE}, hosts: ['*']}]}", "credentialName: or serverCertificate"},
	{network + "Gateway", "{selector: {a: b}, servers: [{port: {number: 443, name: a, protocol: HTTPS}, tls: {credentialName: x}, hosts: ['*']}]}", "did you mean SIMPLE?"},
	{network + "Gateway", "{selector: {a: b}, servers: [{port: {number: 80, name: a, protocol: HTTP}, tls: {mode: SIMPLE, credentialName: x}, hosts: ['*']}]}", "is the protocol HTTPS?"},
	{network + "Gateway", "{selector: {a: b}, servers: [{port: {number: 80, name: a, protocol: HTTP}, hosts: ['*']}, {port: {number: 80, name: a, protocol: HTTP}, hosts: [b]}]}", "has the port name \"a\" already"},
	{network + "Gateway", "{selector: {a: b}, servers: [{port: {number: 80, name: a, protocol: HTTP}, hosts: ['*']}, {port: {number: 80, name: b, protocol: HTTPS}, tls: {mode: SIMPLE, credentialName: x}, hosts: [b]}]}", "cannot share it with HTTPS"},
	{"v1 Pod", "{containers: [{name: c, image: i, livenessProbe: {httpGet: {port: 80, host: other.example}}}]}", "spec.containers[0].livenessProbe.httpGet.host: kubelet asks \"other.example\" instead of the pod"},
	{"v1 Pod", "{containers: [{name: c, image: i, readinessProbe: {tcpSocket: {port: 80, host: 10.0.0.1}}}]}", "spec.containers[0].readinessProbe.tcpSocket.host: kubelet asks"},
	{"v1 Pod", "{initContainers: [{name: d, image: i, lifecycle: {preStop: {httpGet: {port: 80, host: x}}}}], containers: [{name: c, image: i}]}", "spec.initContainers[0].lifecycle.preStop.httpGet.host: kubelet asks"},
	{"v1 Pod", "{hostNetwork: true, containers: [{name: c, image: i, livenessProbe: {httpGet: {port: 80, host: 127.0.0.1}}}]}", ""},
	{"v1 Pod", "{containers: [{name: c, image: i, livenessProbe: {httpGet: {port: 80}}}]}", ""},
	{network + "ServiceEntry", "{hosts: [a.example], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}", ""},
	{network + "ServiceEntry", "{hosts: ['*.example'], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}", "cannot be resolved"},
	{network + "ServiceEntry", "{hosts: [a.example], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC}", "spec.endpoints: or workloadSelector is required"},
	{network + "ServiceEntry", "{hosts: [a.example], ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: 1.2.3.4}]}", "has no meaning with resolution NONE"},
	{network + "ServiceEntry", "{hosts: [a.example], ports: [{number: 80, name: a, protocol: HTTP}, {number: 80, name: b, protocol: HTTP}], resolution: DNS}", "has the number 80 already"},
	{network + "ServiceEntry", "{hosts: [a.example], addresses: [1.2.3.0/24], ports: [{number: 80, name: a, protocol: HTTP}], resolution: DNS}", "must be one address"},
	{network + "ServiceEntry", "{hosts: [a.example], ports: [{number: 80, name: a, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 1.2.3.4, ports: {b: 1}}]}", "has no port of this name"},
	{network + "Sidecar", "{egress: [{hosts: ['./*']}]}", ""},
	{network + "Sidecar", "{egress: [{hosts: ['*/*', '~a/*', '~/a.example', '~./b.example']}]}", ""},
	{network + "Sidecar", "{egress: [{hosts: ['~A_b/*']}]}", "\"~A_b\" is not a namespace"},
	{network + "Sidecar", "{egress: [{hosts: ['/a.example']}]}", "\"\" is not a namespace"},
	{network + "Sidecar", "{egress: [{hosts: ['a.example']}]}", "is not NAMESPACE/HOST (for the own namespace: \"./a.example\""},
	{network + "Sidecar", "{egress: [{hosts: ['./*']}, {hosts: ['a/*']}]}", "spec.egress[1].port: is required"},
	{network + "Sidecar", "{ingress: [{port: {number: 80, protocol: HTTP, name: a}, defaultEndpoint: '1.2.3.4:80'}]}", "is not 127.0.0.1:PORT"},
	{network + "WorkloadEntry", "{address: 1.2.3.4}", ""},
	{network + "WorkloadEntry", "{labels: {a: b}}", "spec.address: is required, or network"},
	{network + "WorkloadEntry", "{address: 1.2.3.4, ports: {a: 0}}", "spec.ports.a: 0 is not a port"},
	{network + "WorkloadGroup", "{template: {address: 1.2.3.4}}", "spec.template.address: has no meaning"},
	{network + "WorkloadGroup", "{template: {serviceAccount: a}, probe: {}}", "spec.probe: httpGet, tcpSocket, exec or grpc is required"},
	{"networking.istio.io/v1alpha3 EnvoyFilter", "{configPatches: [{applyTo: HTTP_FILTER, patch: {operation: ADD, value: {name: envoy.filters.http.lua}}}]}", "has no effect: there is no Envoy here whose HTTP_FILTER could be patched (it runs Lua)"},
	{security + "AuthorizationPolicy", "{action: CUSTOM, provider: {name: a}, rules: [{}]}", "warning AuthorizationPolicy a spec.action: CUSTOM is not supported"},
	{security + "AuthorizationPolicy", "{rules: [{from: [{source: {ipBlocks: [x]}}]}]}", "error AuthorizationPolicy a spec.rules[0].from[0].source.ipBlocks[0]"},
	{security + "PeerAuthentication", "{portLevelMtls: {80: {mode: STRICT}}}", "error PeerAuthentication a spec.portLevelMtls: needs a selector"},
	{security + "RequestAuthentication", "{jwtRules: [{issuer: a, jwksUri: 'https://example.com/jwks'}]}", ""},
	{security + "RequestAuthentication", "{jwtRules: [{issuer: a, jwksUri: 'https://example .com/jwks'}]}", "jwksUri: \"https://example .com/jwks\" contains white space"},
	{security + "RequestAuthentication", "{jwtRules: [{issuer: a, jwksUri: 'ftp://example.com'}]}", "is not a URL that begins with http:// or https://"},
	{security + "RequestAuthentication", "{jwtRules: [{issuer: a, jwks: '{}'}]}", "is not a JSON Web Key Set"},
	{security + "RequestAuthentication", "{jwtRules: [{issuer: a}]}", "warning RequestAuthentication a spec.jwtRules[0].jwksUri: is not set"},
	{security + "RequestAuthentication", "{selector: {matchLabels: {a: b}}, targetRefs: [{kind: Service, name: a}], jwtRules: [{issuer: a, jwksUri: 'https://a.example'}]}", "spec.selector: excludes targetRefs"},
	{"telemetry.istio.io/v1 Telemetry", "{tracing: [{randomSamplingPercentage: 10, providers: [{name: a}]}]}", ""},
	{"telemetry.istio.io/v1 Telemetry", "{tracing: [{randomSamplingPercentage: 101}]}", "101 is not from 0 to 100"},
	{"telemetry.istio.io/v1 Telemetry", "{tracing: [{customTags: {a: {header: {name: 'a b'}}}}]}", "is not the name of an HTTP header"},
	{"telemetry.istio.io/v1 Telemetry", "{metrics: [{overrides: [{tagOverrides: {a: {operation: UPSERT}}}]}]}", "value: is required with operation UPSERT"},
	{"telemetry.istio.io/v1 Telemetry", "{accessLogging: [{filter: {expression: '(a'}}]}", "is not an expression"},
	{"networking.istio.io/v1beta1 ProxyConfig", "{concurrency: -1}", "spec.concurrency: -1 is negative"},
	{"extensions.istio.io/v1alpha1 WasmPlugin", "{url: 'ftp://x'}", "is not an oci://"},
	{"extensions.istio.io/v1alpha1 WasmPlugin", "{}", "spec.url: is required"},
	{network + "VirtualService", "{hosts: [a, A], http: [{route: [{destination: {host: a}}]}]}", `spec.hosts[1]: the host "A" stands in`},
	{network + "VirtualService", "{hosts: [a], http: [{corsPolicy: {allowMethods: [GETT]}, route: [{destination: {host: a}}]}]}", `warning VirtualService a spec.http[0].corsPolicy.allowMethods[0]: "GETT" is not a method that is often used (did you mean GET?)`},
	{network + "VirtualService", "{hosts: [a], http: [{match: [{method: {exact: PROPFIND}}], route: [{destination: {host: a}}]}]}", ""},
	{network + "VirtualService", "{hosts: [a], http: [{corsPolicy: {maxAge: 1500ms}, route: [{destination: {host: a}}]}]}", "maxAge: is told to browsers in whole seconds: 1.5s is 1"},
	{network + "VirtualService", `{hosts: [a], http: [{headers: {request: {set: {":path": /}}}, route: [{destination: {host: a}}]}]}`, `set.:path: ":path" cannot be changed here (rewrite has uri and authority)`},
	{network + "VirtualService", `{hosts: [a], http: [{headers: {request: {set: {":authority": b, Host: b}}}, route: [{destination: {host: a}}]}]}`, ""},
	{network + "VirtualService", "{hosts: [a], http: [{headers: {response: {remove: [host]}}, route: [{destination: {host: a}}]}]}", `response.remove[0]: "host" cannot be changed here`},
	{network + "VirtualService", "{hosts: [a], tls: [{route: [{destination: {host: a}}]}]}", "spec.tls[0].match: is required"},
	{network + "DestinationRule", "{host: a, trafficPolicy: {tls: {mode: SIMPLE, clientCertificate: /c, privateKey: /k}}}", "clientCertificate: has no meaning with mode SIMPLE, in which clients show no certificate (did you mean MUTUAL?)"},
	{network + "DestinationRule", `{host: a, trafficPolicy: {tls: {mode: SIMPLE, sni: "a b"}}}`, `tls.sni: "a b" contains white space`},
	{network + "DestinationRule", `{host: a, trafficPolicy: {loadBalancer: {consistentHash: {httpQueryParameterName: ""}}}}`, "httpQueryParameterName: is empty"},
	{network + "DestinationRule", `{host: a, trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: "r/*", to: {r: 100}}, {from: r/z, to: {r: 100}}]}}}}`, `distribute[1].from: "r/z" is a part of "r/*" in item 0`},
	{network + "DestinationRule", "{host: a, trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: r/z, to: {r: 100}}, {from: r/z2, to: {r: 100}}]}}}}", ""},
	{network + "DestinationRule", `{host: a, trafficPolicy: {outlierDetection: {interval: 1s}, loadBalancer: {localityLbSetting: {failoverPriority: ["a b"]}}}}`, `failoverPriority[0]: "a b" is not the name of a label`},
	{network + "DestinationRule", "{host: a, trafficPolicy: {outlierDetection: {interval: 1s}, loadBalancer: {localityLbSetting: {failoverPriority: [topology.kubernetes.io/region], failover: [{from: r, to: s}]}}}}", "excludes failover, which says the same"},
	{network + "Gateway", "{selector: {a: b}, servers: [{port: {number: 0, name: a, protocol: HTTP}, hosts: ['*']}]}", "port.number: 0 is not a port number"},
	{network + "Gateway", "{selector: {a: b}, servers: [{bind: 10.0.0.0/8, port: {number: 80, name: a, protocol: HTTP}, hosts: ['*']}]}", `bind: "10.0.0.0/8" is not an IP address`},
	{network + "Gateway", "{selector: {a: b}, servers: [{port: {number: 80, name: a, protocol: HTTP}, hosts: [h]}, {port: {number: 80, name: b, protocol: HTTP}, hosts: [H]}]}", `spec.servers[1].hosts[0]: spec.servers[0] has "H" on port 80 already`},
	{network + "Gateway", "{selector: {a: b}, servers: [{port: {number: 443, name: a, protocol: HTTPS}, tls: {mode: SIMPLE, credentialName: x, verifyCertificateHash: [zz]}, hosts: [h]}]}", `verifyCertificateHash[0]: "zz" is not a SHA-256 sum`},
	{network + "Gateway", "{gatewayClassName: istio, servers: [{port: {number: 80, name: a, protocol: HTTP}, hosts: [h]}]}", "spec.gatewayClassName: unknown field (it is a field of gateway.networking.k8s.io/v1 Gateway)"},
	{gwapi + "Gateway", "{gatewayClassName: istio, listeners: [{name: a, port: 80, protocol: HTTP}], selector: {a: b}}", "spec.selector: unknown field (it is a field of networking.istio.io/v1 Gateway)"},
	{network + "ServiceEntry", "{hosts: [1.2.3.4], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}", `spec.hosts[0]: "1.2.3.4" is an address, which is no host (write a name here`},
	{network + "ServiceEntry", `{hosts: [a.example], ports: [{number: 80, name: "p p", protocol: HTTP}], resolution: DNS}`, `spec.ports[0].name: "p p" is not a DNS label`},
	{network + "ServiceEntry", "{hosts: [a.example], ports: [{number: 0, name: p, protocol: HTTP}], resolution: DNS}", "spec.ports[0].number: 0 is not a port number"},
	{security + "AuthorizationPolicy", "{action: DENY}", "warning AuthorizationPolicy a spec.rules: is empty: a policy with action DENY and no rules matches nothing (for every request write rules: [{}])"},
	{security + "AuthorizationPolicy", "{}", ""},
	{security + "AuthorizationPolicy", "{rules: [{from: []}]}", "warning AuthorizationPolicy a spec.rules[0].from: has no items"},
	{security + "AuthorizationPolicy", `{rules: [{from: [{source: {principals: ["spiffe://cluster.local/ns/a/sa/b"]}}]}]}`, `it matches nothing (write "cluster.local/ns/a/sa/b")`},
	{security + "AuthorizationPolicy", "{rules: [{from: [{source: {principals: [ns/a/sa/b]}}]}]}", `(write "cluster.local/ns/a/sa/b")`},
	{security + "AuthorizationPolicy", `{rules: [{from: [{source: {principals: [cluster.local/ns/a/sa/b, "*", "td/*", "*/sa/b"]}}]}]}`, ""},
	{security + "AuthorizationPolicy", "{rules: [{when: [{key: source.principal, values: [b]}]}]}", `spec.rules[0].when[0].values[0]: "b" is not TRUST-DOMAIN/ns`},
	{security + "AuthorizationPolicy", "{rules: [{from: [{source: {serviceAccounts: [a], namespaces: [b]}}]}]}", "stands beside principals or namespaces"},
	{security + "AuthorizationPolicy", "{rules: [{to: [{operation: {methods: [get]}}]}]}", `methods[0]: methods are compared with case: "get" is not GET (did you mean GET?)`},
	{security + "AuthorizationPolicy", "{rules: [{to: [{operation: {notMethods: [GETT]}}]}]}", `notMethods[0]: "GETT" is not a method`},
	{security + "AuthorizationPolicy", "{rules: [{to: [{operation: {paths: [admin]}}]}]}", `paths[0]: "admin" does not begin with "/": no path matches (write "/admin")`},
	{security + "AuthorizationPolicy", "{rules: [{to: [{operation: {paths: [/a/*/b]}}]}]}", "may have one * only, at its beginning or at its end: this one matches a * only"},
	{security + "AuthorizationPolicy", `{rules: [{to: [{operation: {paths: ["/a/{*}/b", "/a/{**}", /a/*, "*/b", "*"]}}]}]}`, ""},
	{security + "AuthorizationPolicy", `{rules: [{to: [{operation: {paths: ["/a/{**}/{*}"]}}]}]}`, "has a part behind {**}, which takes the rest"},
	{security + "AuthorizationPolicy", `{rules: [{to: [{operation: {hosts: ["http://a"]}}]}]}`, "is a URL, and no Host header has one"},
	{security + "AuthorizationPolicy", `{rules: [{when: [{key: "request.headers[]", values: [a]}]}]}`, `unknown key "request.headers[]" (did you mean request.headers[NAME]?)`},
	{security + "AuthorizationPolicy", `{rules: [{when: [{key: "request.header[x]", values: [a]}]}]}`, `unknown key "request.header[x]" (did you mean request.headers[NAME]?)`},
	{security + "AuthorizationPolicy", "{targetRef: {kind: Service, name: a}, targetRefs: [{kind: Service, name: a}], rules: [{}]}", "spec.targetRef: excludes targetRefs"},
	{security + "AuthorizationPolicy", "{targetRef: {kind: Deployment, group: apps, name: a}, rules: [{}]}", `spec.targetRef: kind "Deployment" with name "a" is not supported (a policy may target a Service`},
	{security + "PeerAuthentication", "{selector: {matchLabels: {a: b}}, portLevelMtls: {http: {mode: STRICT}}}", `spec.portLevelMtls.http: the key "http" is not a whole number from 0`},
	{security + "PeerAuthentication", "{selector: {matchLabels: {a: b}}, portLevelMtls: {-1: {mode: STRICT}}}", `spec.portLevelMtls.-1: the key "-1" is not a whole number`},
	{security + "RequestAuthentication", "{jwtRules: [{issuer: a, jwksUri: 'http://169.254.169.254/x'}]}", `jwksUri: the control plane fetches nothing from "169.254.169.254"`},
	{security + "RequestAuthentication", "{jwtRules: [{issuer: a, jwksUri: 'https://localhost/x'}]}", `fetches nothing from "localhost"`},
	{"v1 Service", "{ports: [{port: 80, name: http}]}", ""},
	{"v1 Service", "{ports: [{port: 80}, {port: 81, name: b}]}", "spec.ports[0].name: is required"},
	{"v1 Service", "{ports: [{port: 0, name: http}]}", "0 is not a port"},
	{"v1 Service", "{type: ExternalName, externalName: 'a b'}", "spec.externalName"},
	{"v1 Pod", "{containers: [{name: a, image: b}]}", ""},
	{"v1 Pod", "{containers: [{name: a, image: b, volumeMounts: [{name: x, mountPath: /}]}]}", "there is no volume"},
	{"v1 Pod", "{containers: [{name: istio-proxy, image: auto}]}", "is an override of an injected sidecar"},
	{"apps/v1 Deployment", "{selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: c}}, spec: {containers: [{name: a, image: b}]}}}", "does not have what spec.selector looks for: a=b"},
	{"apps/v1 Deployment", "{selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}}, spec: {containers: []}}", "spec.template.spec.containers: is required"},
	{"networking.k8s.io/v1 Ingress", "{rules: [{http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: a, port: {number: 80}}}}]}}]}", ""},
	{"networking.k8s.io/v1 Ingress", "{rules: [{http: {paths: [{path: /, backend: {service: {name: a, port: {number: 80}}}}]}}]}", "pathType: is required"},
	{"networking.k8s.io/v1 Ingress", "{rules: [{http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: a, port: {}}}}]}}]}", "a number from 1 to 65535 or a name is required"},
	{gwapi + "Gateway", "{gatewayClassName: a, listeners: [{name: a, port: 80, protocol: HTTP, hostname: '*.example'}]}", ""},
	{gwapi + "Gateway", "{gatewayClassName: a, listeners: [{name: a, port: 443, protocol: HTTPS}]}", "tls: is required for the protocol HTTPS"},
	{gwapi + "Gateway", "{gatewayClassName: a, listeners: [{name: a, port: 80, protocol: HTPP}]}", "did you mean HTTP?"},
	{gwapi + "Gateway", "{listeners: [{name: a, port: 80, protocol: HTTP}, {name: b, port: 80, protocol: HTTP}]}", "has the port, protocol and hostname of spec.listeners[0]"},
	{gwapi + "Gateway", "{gatewayClassName: a, listeners: [{name: a, port: 80, protocol: HTTP, hostname: 1.2.3.4}]}", "is an address"},
	{gwapi + "GatewayClass", "{controllerName: a}", "is not DOMAIN/PATH"},
	{gwapi + "HTTPRoute", "{parentRefs: [{name: a}], rules: [{matches: [{path: {type: PathPrefix, value: /a}}], backendRefs: [{name: a, port: 80}]}]}", ""},
	{gwapi + "HTTPRoute", "{parentRefs: [{name: a}], rules: [{matches: [{path: {type: Prefix, value: /a}}]}]}", "did you mean PathPrefix?"},
	{gwapi + "HTTPRoute", "{parentRefs: [{name: a}], rules: [{backendRefs: [{name: a}]}]}", "port: is required for a Service"},
	{gwapi + "HTTPRoute", "{parentRefs: [{name: a}], rules: [{filters: [{type: RequestRedirect}]}]}", "requestRedirect: is required with type RequestRedirect"},
	{gwapi + "HTTPRoute", "{rules: [{backendRefs: [{name: a, port: 80}]}]}", "no gateway and no service uses the route"},
	{operator, "{profile: empty, values: {any: thing}, meshConfig: {defaultConfig: {tracing: {custom_tags: {a: {header: {name: b}}}}}}}", ""},
	{operator, "{componentz: {}}", `spec.componentz: unknown field (did you mean "components"?)`},
	{operator, "{meshConfig: {acessLogFile: x}}", `warning IstioOperator a spec.meshConfig.acessLogFile: unknown field: it is ignored (did you mean "accessLogFile"?)`},
	{operator, "{meshConfig: {defaultConfig: {tracing: {sampling: 101}}}}", "tracing.sampling: 101 is not from 0 to 100"},
	{operator, "{meshConfig: {extensionProviders: [{name: a}]}}", "one provider is required"},
	{operator, "{values: {telemetry: {v2: {prometheus: {configOverride: {gateway: {metricz: []}}}}}}}", `did you mean "metrics"?`},
	{operator, "{values: {global: {tracer: {lightstep: {}}}}}", "was removed"},
	{operator, "{components: {pilot: {k8s: {env: [{name: a, value: kubernetes.io/legacy-unknown}]}}}}", "was removed in Kubernetes 1.22"},
}

func TestMeshConfigMap(t *testing.T) {
	text := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio}\ndata:\n  mesh: |-\n    # first\n    trustDomain: <TD>\n    defaultConfig: 5\n"
	r := checkText(t, text)
	if len(r.Findings) != 2 || r.Findings[0].Line != 7 || r.Findings[1].String() != `f:8: error ConfigMap istio data.mesh.defaultConfig: must be an object, and is the number "5"` {
		t.Errorf("%v", r.Findings)
	}
}

func TestRules(t *testing.T) {
	c, err := NewCatalogue()
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range ruleCases {
		version, kind, _ := strings.Cut(x.kind, " ")
		r := c.File("f", []byte("apiVersion: "+version+"\nkind: "+kind+"\nmetadata: {name: a}\nspec: "+x.spec+"\n"))
		var all []string
		for _, f := range r.Findings {
			if f.Severity > Info {
				all = append(all, f.String())
			}
		}
		if got := strings.Join(all, "\n"); !strings.Contains(got, x.want) || (x.want == "") != (got == "") {
			t.Errorf("%s %s\n got %s\nwant %s", kind, x.spec, got, x.want)
		}
	}
}
