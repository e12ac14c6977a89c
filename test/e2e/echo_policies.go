package e2e

// EchoPolicy is an AuthorizationPolicy on tcp-echo and what it must do.
type EchoPolicy struct {
	ID, Title string
	Policy    string
	Cases     []EchoCase
}

func echoPolicy(name, spec string) string {
	return `apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata: {name: ` + name + `, namespace: foo}
spec:
  selector: {matchLabels: {app: tcp-echo}}
` + spec
}

// EchoPolicies are written from the catalogue's rows. foo's sleep is on the server's node, bar's on the other, at address
// barIP.
func EchoPolicies(barIP string) []EchoPolicy {
	return []EchoPolicy{
		{"AZ-10", "ports: 9000 and 9001 are allowed, 9002 is not", echoPolicy("tcp-policy", `  action: ALLOW
  rules:
  - to: [{operation: {ports: ["9000", "9001"]}}]
`), []EchoCase{{"foo", 9000, "accepted"}, {"foo", 9001, "accepted"}, {"foo", 9002, "rejected"}, {"bar", 9000, "accepted"}, {"bar", 9002, "rejected"}, {"legacy", 9002, "rejected"}}},
		{"AZ-12", "principals: only bar's sleep may call", echoPolicy("tcp-policy", `  action: ALLOW
  rules:
  - from: [{source: {principals: ["cluster.local/ns/bar/sa/sleep"]}}]
`), []EchoCase{{"bar", 9000, "accepted"}, {"foo", 9000, "rejected"}, {"legacy", 9000, "rejected"}}},
		{"AZ-13", "namespaces: everybody but bar", echoPolicy("tcp-policy", `  action: DENY
  rules:
  - from: [{source: {namespaces: ["bar"]}}]
`), []EchoCase{{"bar", 9000, "rejected"}, {"foo", 9000, "accepted"}, {"legacy", 9000, "accepted"}}},
		{"AZ-14", "ipBlocks: only the address of bar's sleep may call", echoPolicy("tcp-policy", `  action: ALLOW
  rules:
  - from: [{source: {ipBlocks: ["`+barIP+`"]}}]
`), []EchoCase{{"bar", 9000, "accepted"}, {"foo", 9000, "rejected"}, {"legacy", 9000, "rejected"}}},
		{"AZ-14", "notIpBlocks: all but the address of bar's sleep are refused", echoPolicy("tcp-policy", `  action: DENY
  rules:
  - from: [{source: {notIpBlocks: ["`+barIP+`/32"]}}]
`), []EchoCase{{"bar", 9000, "accepted"}, {"foo", 9000, "rejected"}, {"legacy", 9000, "rejected"}}},
		{"AZ-22", "an HTTP field in an ALLOW rule on TCP: the rule is ignored", echoPolicy("tcp-policy", `  action: ALLOW
  rules:
  - to: [{operation: {methods: ["GET"], ports: ["9000"]}}]
`), []EchoCase{{"foo", 9000, "rejected"}, {"foo", 9001, "rejected"}, {"bar", 9000, "rejected"}}},
		{"AZ-23", "an HTTP field in a DENY rule on TCP: the field is ignored", echoPolicy("tcp-policy", `  action: DENY
  rules:
  - to: [{operation: {methods: ["GET"], ports: ["9000"]}}]
`), []EchoCase{{"foo", 9000, "rejected"}, {"foo", 9001, "accepted"}, {"bar", 9000, "rejected"}, {"bar", 9001, "accepted"}}},
	}
}
