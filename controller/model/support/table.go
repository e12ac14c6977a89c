package support

import "slices"

// The decisions about Istio's kinds. An entry reaches down to everything below its path; the longest path counts.

const (
	servesNone = "Service; a Gateway or a GatewayClass is not enforced, since the mesh serves none yet (5/5)"
	noSidecar  = "there is no sidecar to configure"
	noVM       = "nothing registers itself: workloads outside Kubernetes are declared by WorkloadEntry"
)

const (
	noFault    = "Istio has it not either: requests to the hosts are answered by 503"
	noGateway  = "mesh; a gateway is not served yet (5/5)"
	noRouteLog = "statistics are not kept by route yet"
)

var virtualService = []entry{
	{"hosts[]", Enforced, "", "SR-03 SR-04 SR-11 TR-12", ""},
	{"gateways[]", Enforced, "", "SR-15 IG-02 TR-08", noGateway},
	{"exportTo[]", Enforced, "", "SR-16", ""},
	{"http[].name", Enforced, "", "TR-01", "names the route in logs"},
	{"http[].match[]: name ignoreUriCase uri.exact uri.prefix uri.regex queryParams{}.exact queryParams{}.prefix queryParams{}.regex " +
		"withoutHeaders{}.exact withoutHeaders{}.prefix withoutHeaders{}.regex sourceNamespace", Enforced, "", "TR-01 TR-04 TR-09", ""},
	{"http[].match[].headers{}: exact prefix regex", Enforced, "", "TR-02 TR-03", ""},
	{"http[].match[].scheme: exact prefix regex", Enforced, "", "TR-05", ""},
	{"http[].match[].method: exact prefix regex", Enforced, "", "TR-05", ""},
	{"http[].match[].authority: exact prefix regex", Enforced, "", "TR-05", ""},
	{"http[].match[].port", Enforced, "", "TR-06", ""},
	{"http[].match[].sourceLabels{}", Enforced, "", "TR-07", ""},
	{"http[].match[].gateways[]", Enforced, "", "TR-08", noGateway},
	{"http[].match[].statPrefix", Carried, Policy, "ME-09", noRouteLog},
	{"http[].route[]: destination.host destination.port.number destination.subset weight", Enforced, "", "TR-10 TR-11 TR-12 TR-17 TR-19 TR-20", ""},
	{"http[].route[].headers: " + headerChanges, Enforced, "", "TR-15", ""},
	{"http[].redirect: authority derivePort port prefixRewrite redirectCode scheme uri", Enforced, "", "TR-14", ""},
	{"http[].directResponse: body.bytes body.string status", Enforced, "", "TR-01", ""},
	{"http[].delegate: name namespace", Enforced, "", "TR-01", ""},
	{"http[].rewrite: authority uri uriRegexRewrite.match uriRegexRewrite.rewrite", Enforced, "", "TR-13", ""},
	{"http[].timeout", Enforced, "", "RS-01 EG-06", ""},
	{"http[].retries: " + retries, Enforced, "", "RS-05 RS-06", ""},
	{"http[].fault.delay: fixedDelay percentage.value", Enforced, "", "RS-14 RS-17 RS-18", ""},
	{"http[].fault.delay.percent", Enforced, "", "RS-15", ""},
	{"http[].fault.delay.exponentialDelay", Refused, L7, "RS-14", noFault},
	{"http[].fault.abort.http2Error", Refused, L7, "RS-16", noFault},
	{"http[].fault.abort: grpcStatus httpStatus percentage.value", Enforced, "", "RS-16 RS-17 RS-18", ""},
	{"http[].mirror: host port.number subset", Enforced, "", "TR-24 TR-25", ""},
	{"http[].mirrors[]: destination.host destination.port.number destination.subset percentage.value", Enforced, "", "TR-24 TR-25", ""},
	{"http[].mirrorPercent", Enforced, "", "TR-24", ""},
	{"http[].mirrorPercentage.value", Enforced, "", "TR-24", ""},
	{"http[].corsPolicy: allowCredentials allowHeaders[] allowMethods[] allowOrigin[] allowOrigins[].exact allowOrigins[].prefix " +
		"allowOrigins[].regex exposeHeaders[] maxAge unmatchedPreflights", Enforced, "", "TR-16", ""},
	{"http[].headers: " + headerChanges, Enforced, "", "TR-15", ""},
	{"tcp[].route[]: destination.host destination.port.number destination.subset weight", Enforced, "", "TC-01 TC-07", ""},
	{"tcp[].match[]: destinationSubnets[] port sourceLabels{} sourceNamespace sourceSubnet", Enforced, "", "TC-02 TC-03 TC-04", ""},
	{"tcp[].match[].gateways[]", Enforced, "", "TC-02", noGateway},
	{"tls[].route[]: destination.host destination.port.number destination.subset weight", Enforced, "", "TC-05 TC-06", ""},
	{"tls[].match[]: destinationSubnets[] port sniHosts[] sourceLabels{} sourceNamespace", Enforced, "", "TC-05 TC-06", ""},
	{"tls[].match[].gateways[]", Enforced, "", "TC-05", noGateway},
}

// Fields that several kinds, or several places of one, have.
const (
	headerChanges = "request.add{} request.remove[] request.set{} response.add{} response.remove[] response.set{}"
	retries       = "attempts backoff perTryTimeout retryIgnorePreviousHosts retryOn retryRemoteLocalities"
	failover      = "failoverPriority[] failover[].from failover[].to"
	byLocality    = "enabled distribute[].from distribute[].to{} " + failover
	tcpPool       = "maxConnections connectTimeout idleTimeout maxConnectionDuration"
	keepalive     = "interval probes time"
	httpPool      = "h2UpgradePolicy http1MaxPendingRequests http2KeepAlive.interval http2KeepAlive.timeout http2MaxRequests idleTimeout " +
		"maxConcurrentStreams maxRequestsPerConnection maxRetries useClientProtocol"
	ejection = "baseEjectionTime consecutive5xxErrors consecutiveGatewayErrors consecutiveLocalOriginFailures interval maxEjectionPercent " +
		"minHealthPercent splitExternalLocalOriginErrors"
)

const (
	notInIstio = "Istio does not act on it either"
	noInterval = "the budget is of the requests at the moment"
	ownPings   = "of connections outside tunnels, which have pings of their own"
	byTunnel   = "of connections that are not HTTP; requests to the host are refused"
	byConnect  = "by the HTTP that the port of the proxy declares; a proxy of the same node must declare TCP"
	announced  = "requests to workloads of the mesh that are reached by the tunnel or on the same node are refused"
)

const (
	noFiles  = "nodes read no files of workloads: connections by these are refused; use credentialName"
	selected = "for the workloads that workloadSelector selects; without one their connections are refused"
)

var destinationRule = slices.Concat([]entry{
	{"host", Enforced, "", "SR-17 TR-10", ""},
	{"exportTo[]", Enforced, "", "SR-17", ""},
	{"workloadSelector.matchLabels{}", Enforced, "", "SR-17", ""},
	{"subsets[]: name labels{}", Enforced, "", "TR-10", ""},
}, trafficPolicy("trafficPolicy", ""), trafficPolicy("subsets[].trafficPolicy", "LB-05 RS-10 "))

// trafficPolicy decides what stands below a trafficPolicy, which rows besides prove.
func trafficPolicy(at, rows string) []entry {
	port := at + ".portLevelSettings[]"
	return slices.Concat(callPolicy(at, rows), callPolicy(port, rows+"LB-06 "), []entry{
		{port + ".port.number", Enforced, "", rows + "LB-06 MT-07", ""},
		{at + ".tunnel: targetHost targetPort", Enforced, "", rows + "EG-22", byTunnel},
		{at + ".tunnel.protocol", Enforced, "", rows + "EG-22", byConnect},
		{at + ".proxyProtocol.version", Enforced, "", rows + "IG-22", announced},
		{at + ".retryBudget: percent minRetryConcurrency", Enforced, "", rows + "RS-05", ""},
		{at + ".retryBudget.budgetInterval", Accepted, L7, rows + "RS-05", noInterval},
	})
}

// callPolicy decides what a whole destination and one port of it have in common.
func callPolicy(at, rows string) []entry {
	lb, tls := at+".loadBalancer", at+".tls"
	return slices.Concat([]entry{
		{lb + ": simple warmup.aggression warmup.duration warmup.minimumPercent warmupDurationSecs", Enforced, "", rows + "LB-01 LB-02 LB-03 LB-04", ""},
		{lb + ".consistentHash: httpCookie.attributes[].name httpCookie.attributes[].value httpCookie.name httpCookie.path httpCookie.ttl httpHeaderName " +
			"httpQueryParameterName maglev.tableSize minimumRingSize ringHash.minimumRingSize useSourceIp", Enforced, "", rows + "LB-07", ""},
		{tls + ".mode", Enforced, "", rows + "MT-07 MT-13", ""},
		{tls + ".subjectAltNames[]", Enforced, "", rows + "MT-15", ""},
		{tls + ": sni insecureSkipVerify", Enforced, "", rows + "EG-09", ""},
		{tls + ".credentialName", Enforced, "", rows + "MT-13", selected},
		{tls, Refused, L7, rows + "MT-13 EG-09 EG-23", noFiles},
	}, localities(lb+".", rows), pool(at, rows), outliers(at, rows))
}

func localities(at, rows string) []entry {
	return []entry{
		{at + "localityLbSetting: " + byLocality, Enforced, "", rows + "LB-08 LB-10 LB-11", ""},
		{at + "zoneAwareLbSetting: " + failover + " enabled minClusterSize", Enforced, "", rows + "LB-08", ""},
	}
}

func pool(at, rows string) []entry {
	return []entry{
		{at + ".connectionPool.tcp: " + tcpPool, Enforced, "", rows + "RS-07 RS-08 RS-21", ""},
		{at + ".connectionPool.http: " + httpPool, Enforced, "", rows + "RS-07 RS-08 RS-09 RS-21", ""},
		{at + ".connectionPool.tcp.tcpKeepalive: " + keepalive, Enforced, "", rows + "RS-07", ownPings},
	}
}

func outliers(at, rows string) []entry {
	return []entry{
		{at + ".outlierDetection: " + ejection, Enforced, "", rows + "LB-08 LB-09 RS-11 RS-13", ""},
		{at + ".outlierDetection.consecutiveErrors", Enforced, "", rows + "RS-12", ""},
		{at + ".outlierDetection.outlierDetectionHttpErrorCodes", Accepted, L7, rows + "RS-11", notInIstio},
	}
}

var gateway = []entry{
	{"selector", Accepted, Gateways, "IG-08", ""},
	{"servers", Accepted, Gateways, "IG-01 IG-18 IG-26", ""},
	{"servers[].port", Accepted, Gateways, "IG-01 IG-19 TC-08", ""},
	{"servers[].hosts", Accepted, Gateways, "IG-01 IG-05 IG-06 IG-15", ""},
	{"servers[].tls", Accepted, Gateways, "IG-09 IG-10 IG-11 IG-12 IG-13 IG-14 IG-17", ""},
	{"servers[].tls.httpsRedirect", Accepted, Gateways, "IG-16", ""},
}

var serviceEntry = []entry{
	{"hosts[]", Enforced, "", "SR-05 SR-09", ""},
	{"addresses[]", Enforced, "", "SR-08", ""},
	{"ports[].number", Enforced, "", "SR-05", ""},
	{"ports[].protocol", Enforced, "", "SR-05 SR-12", ""},
	{"ports[].targetPort", Enforced, "", "SR-10", ""},
	{"ports[].name", Enforced, "", "SR-05", "what endpoints[].ports refers to"},
	{"location", Enforced, "", "SR-05", ""},
	{"resolution", Enforced, "", "SR-05 SR-06 SR-07", ""},
	{"endpoints[].address", Enforced, "", "SR-07", ""},
	{"endpoints[].ports{}", Enforced, "", "SR-07", ""},
	{"endpoints[].labels{}", Enforced, "", "TR-10", ""},
	{"endpoints[].locality", Enforced, "", "SR-07", ""},
	{"endpoints[].network", Carried, Gateways, "SR-07", ""},
	{"endpoints[].serviceAccount", Enforced, "", "MT-15", ""},
	{"endpoints[].weight", Enforced, "", "LB-04", ""},
	{"workloadSelector.labels{}", Enforced, "", "SR-07", ""},
	{"exportTo[]", Enforced, "", "SR-16", ""},
	{"subjectAltNames[]", Enforced, "", "MT-15", "of servers that mutual TLS of the mesh reaches"},
}

var workloadEntry = []entry{
	{"address", Enforced, "", "SR-07 SR-20", ""},
	{"ports{}", Enforced, "", "SR-07", ""},
	{"labels{}", Enforced, "", "SR-07", ""},
	{"locality", Enforced, "", "SR-07", ""},
	{"network", Carried, Gateways, "SR-07", ""},
	{"serviceAccount", Enforced, "", "MT-15 SR-19", ""},
	{"weight", Enforced, "", "LB-04", ""},
}

var workloadGroup = []entry{
	{"", Unused, "", "SR-20", noVM},
}

var sidecar = []entry{
	{"egress[].hosts[]", Enforced, "", "SR-16", ""},
	{"egress[].port.number", Enforced, "", "SR-16", ""},
	{"egress[].port.protocol", Unused, "", "SR-16", "the port of the service says what is spoken"},
	{"egress[].port.name", Unused, "", "SR-16", "nothing refers to it"},
	{"egress[].port.targetPort", Unused, "", "SR-16", "Istio does not read it either"},
	{"egress[].captureMode", Unused, "", "SR-16", noSidecar},
	{"egress[].bind", Unused, "", "SR-16", noSidecar},
	{"workloadSelector.labels{}", Enforced, "", "SR-16", ""},
	{"outboundTrafficPolicy.mode", Enforced, "", "EG-01 EG-02 SR-16", ""},
	{"outboundTrafficPolicy.egressProxy: host port.number subset", Enforced, "", "EG-22", ""},
	{"ingress", Accepted, L7, "SR-16", ""},
	{"ingress[].captureMode", Unused, "", "SR-16", noSidecar},
	{"ingress[].bind", Unused, "", "SR-16", noSidecar},
	{"inboundConnectionPool", Accepted, L7, "RS-07", ""},
}

var envoyFilter = []entry{
	{"", Accepted, Gateways, "EX-02 RL-01 RL-04 IG-23", ""},
}

var proxyConfig = []entry{
	{"selector", Accepted, Policy, "IN-37", ""},
	{"concurrency", Unused, "", "IN-37", "one proxy serves all pods of a node"},
	{"environmentVariables", Accepted, Policy, "IN-37", ""},
	{"image", Unused, "", "IN-37", noSidecar},
}

const rightGroup = "decides nothing: each kind has one right value, which is checked"

var peerAuthentication = []entry{
	{"selector.matchLabels{}", Enforced, "", "MT-06", ""},
	{"mtls.mode", Enforced, "", "MT-03 MT-04 MT-05 MT-09 MT-10 MT-11 MT-12 MT-27", ""},
	{"portLevelMtls{}.mode", Enforced, "", "MT-07 MT-08", ""},
}

const noTokens = "tokens are not checked yet: everything is denied to the workloads that the policy is for"

var requestAuthentication = []entry{
	{"jwtRules", Refused, Policy, "JW-01 JW-02 JW-04 JW-05 JW-08 JW-10", noTokens},
	{"jwtRules[].jwksUri", Refused, Policy, "JW-01 JW-09", noTokens},
	{"jwtRules[].fromHeaders", Refused, Policy, "JW-03", noTokens},
	{"jwtRules[].fromParams", Refused, Policy, "JW-03", noTokens},
	{"jwtRules[].fromCookies", Refused, Policy, "JW-03", noTokens},
	{"selector.matchLabels{}", Enforced, "", "JW-06 JW-07", ""},
	{"targetRef.kind", Enforced, "", "JW-07", servesNone},
	{"targetRef.name", Enforced, "", "JW-07", ""},
	{"targetRef.group", Unused, "", "JW-07", rightGroup},
	{"targetRef.namespace", Unused, "", "JW-07", rightGroup},
	{"targetRefs[].kind", Enforced, "", "JW-07", servesNone},
	{"targetRefs[].name", Enforced, "", "JW-07", ""},
	{"targetRefs[].group", Unused, "", "JW-07", rightGroup},
	{"targetRefs[].namespace", Unused, "", "JW-07", rightGroup},
}

const tcpOnly = "judged as on TCP: in a rule of an ALLOW policy the rule matches nothing, in one of a DENY policy it matches whatever the rest does"

var authorizationPolicy = []entry{
	{"selector.matchLabels{}", Enforced, "", "AZ-07", ""},
	{"targetRef.kind", Enforced, "", "AZ-07", servesNone},
	{"targetRef.name", Enforced, "", "AZ-07", ""},
	{"targetRef.group", Unused, "", "AZ-07", rightGroup},
	{"targetRef.namespace", Unused, "", "AZ-07", rightGroup},
	{"targetRefs[].kind", Enforced, "", "AZ-07", servesNone},
	{"targetRefs[].name", Enforced, "", "AZ-07", ""},
	{"targetRefs[].group", Unused, "", "AZ-07", rightGroup},
	{"targetRefs[].namespace", Unused, "", "AZ-07", rightGroup},
	{"action", Enforced, "", "AZ-02 AZ-03 AZ-04 AZ-05", "CUSTOM denies, AUDIT records nothing"},
	{"provider", Refused, Policy, "AZ-25 AZ-26 AZ-28", "with the action CUSTOM the policy denies everything"},
	{"rules[].from[].source.principals[]", Enforced, "", "AZ-12 AZ-32 AZ-35", ""},
	{"rules[].from[].source.notPrincipals[]", Enforced, "", "AZ-12 AZ-18", ""},
	{"rules[].from[].source.namespaces[]", Enforced, "", "AZ-13", ""},
	{"rules[].from[].source.notNamespaces[]", Enforced, "", "AZ-13 AZ-18", ""},
	{"rules[].from[].source.serviceAccounts[]", Enforced, "", "AZ-12", ""},
	{"rules[].from[].source.notServiceAccounts[]", Enforced, "", "AZ-12 AZ-18", ""},
	{"rules[].from[].source.ipBlocks[]", Enforced, "", "AZ-14", ""},
	{"rules[].from[].source.notIpBlocks[]", Enforced, "", "AZ-14 AZ-18", ""},
	{"rules[].from[].source.remoteIpBlocks", Refused, Policy, "AZ-15", tcpOnly},
	{"rules[].from[].source.notRemoteIpBlocks", Refused, Policy, "AZ-15 AZ-18", tcpOnly},
	{"rules[].from[].source.requestPrincipals", Refused, Policy, "AZ-16", tcpOnly},
	{"rules[].from[].source.notRequestPrincipals", Refused, Policy, "AZ-16 AZ-18", tcpOnly},
	{"rules[].from[].source.trustDomains", Refused, Policy, "AZ-35", tcpOnly},
	{"rules[].from[].source.notTrustDomains", Refused, Policy, "AZ-35 AZ-18", tcpOnly},
	{"rules[].to[].operation.ports[]", Enforced, "", "AZ-10 AZ-21", ""},
	{"rules[].to[].operation.notPorts[]", Enforced, "", "AZ-10 AZ-18", ""},
	{"rules[].to[].operation.hosts", Refused, Policy, "AZ-11", tcpOnly},
	{"rules[].to[].operation.notHosts", Refused, Policy, "AZ-11 AZ-18", tcpOnly},
	{"rules[].to[].operation.methods", Refused, Policy, "AZ-08 AZ-22 AZ-23", tcpOnly},
	{"rules[].to[].operation.notMethods", Refused, Policy, "AZ-08 AZ-18", tcpOnly},
	{"rules[].to[].operation.paths", Refused, Policy, "AZ-09", tcpOnly},
	{"rules[].to[].operation.notPaths", Refused, Policy, "AZ-09 AZ-18", tcpOnly},
	{"rules[].when[].key", Enforced, "", "AZ-17 AZ-19", "keys that need an HTTP request (request.*, remote.ip) are judged as on TCP until " + Policy},
	{"rules[].when[].values[]", Enforced, "", "AZ-17 AZ-24", ""},
	{"rules[].when[].notValues[]", Enforced, "", "AZ-17 AZ-18", ""},
}

var telemetryKind = []entry{
	{"selector", Accepted, Policy, "TT-12 TT-13", ""},
	{"targetRef", Accepted, Policy, "TT-12", ""},
	{"targetRefs", Accepted, Policy, "TT-12", ""},
	{"tracing", Accepted, Policy, "TT-10 TT-11 TT-12", ""},
	{"tracing[].customTags", Accepted, Policy, "TT-08", ""},
	{"metrics", Accepted, Policy, "ME-11 ME-13", ""},
	{"accessLogging", Accepted, Policy, "AL-10", ""},
}

var wasmPlugin = []entry{
	{"", Accepted, Gateways, "EX-01", ""},
}

var trafficExtension = []entry{
	{"", Accepted, Gateways, "EX-01", ""},
}
