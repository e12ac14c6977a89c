package support

// The decisions about the kinds of the Gateway API and about Ingress.

var gatewayAPI = []entry{
	{"", Accepted, Gateways, "KI-06", ""},
	{"rules[].filters[].requestHeaderModifier", Accepted, Gateways, "KI-07", ""},
	{"rules[].backendRefs[].filters[].requestHeaderModifier", Accepted, Gateways, "KI-07", ""},
}

var gatewayClass = []entry{
	{"", Accepted, Gateways, "KI-06", ""},
	{"description", Unused, "", "KI-06", "is for people"},
}

var udpRoute = []entry{
	{"", Unused, "", "KI-06", "UDP is not captured"},
}

var ingress = []entry{
	{"", Accepted, Gateways, "KI-01 KI-02 KI-03", ""},
	{"ingressClassName", Accepted, Gateways, "KI-04", ""},
	{"tls", Accepted, Gateways, "KI-05", ""},
}

var ingressClass = []entry{
	{"", Accepted, Gateways, "KI-04", ""},
}
