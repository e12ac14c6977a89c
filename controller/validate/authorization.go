package validate

import (
	"fmt"
	"slices"
	"strings"

	securitybeta "istio.io/api/security/v1beta1"
	typebeta "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
)

// AnnotationDryRun makes an AuthorizationPolicy decide nothing and be recorded only (AZ-29).
const AnnotationDryRun = "istio.io/dry-run"

// ConditionKind says what a condition of `when` can be judged by on a TCP connection.
type ConditionKind int

// Kinds of condition.
const (
	ConditionUnknown ConditionKind = iota // no such key
	ConditionHTTP                         // needs an HTTP request
	ConditionSourceIP
	ConditionSourceNamespace
	ConditionSourcePrincipal
	ConditionSourceAccount
	ConditionDestinationIP
	ConditionDestinationPort
	ConditionUnsupported // known, and not supported by this mesh
)

// Condition classifies a key of `when`.
func Condition(key string) ConditionKind {
	switch key {
	case "source.ip":
		return ConditionSourceIP
	case "source.namespace":
		return ConditionSourceNamespace
	case "source.principal":
		return ConditionSourcePrincipal
	case "source.serviceAccount":
		return ConditionSourceAccount
	case "destination.ip":
		return ConditionDestinationIP
	case "destination.port":
		return ConditionDestinationPort
	case "remote.ip", "request.auth.principal", "request.auth.audiences", "request.auth.presenter":
		return ConditionHTTP
	case "connection.sni", "source.trustDomain":
		return ConditionUnsupported
	}
	name, inner, _ := strings.Cut(key, "[")
	switch {
	case (name == "request.headers" || name == "request.auth.claims") && len(inner) > 1 && strings.HasSuffix(inner, "]"):
		return ConditionHTTP
	case strings.HasPrefix(key, "experimental."):
		return ConditionUnsupported
	}
	return ConditionUnknown
}

// conditionKeys are the keys that documents name.
var conditionKeys = []string{"source.ip", "source.namespace", "source.principal", "source.serviceAccount", "remote.ip", "destination.ip",
	"destination.port", "connection.sni", "request.headers[NAME]", "request.auth.principal", "request.auth.audiences",
	"request.auth.presenter", "request.auth.claims[NAME]"}

// HTTPFields names the fields of the operation that only an HTTP request has, as paths below it.
func HTTPFields(op *securitybeta.Operation) []string {
	return nonEmpty("hosts", op.GetHosts(), "notHosts", op.GetNotHosts(), "methods", op.GetMethods(),
		"notMethods", op.GetNotMethods(), "paths", op.GetPaths(), "notPaths", op.GetNotPaths())
}

// HTTPSourceFields names the fields of the source that only an HTTP request has, as paths below it.
func HTTPSourceFields(src *securitybeta.Source) []string {
	return nonEmpty("requestPrincipals", src.GetRequestPrincipals(), "notRequestPrincipals", src.GetNotRequestPrincipals(),
		"remoteIpBlocks", src.GetRemoteIpBlocks(), "notRemoteIpBlocks", src.GetNotRemoteIpBlocks())
}

// UnsupportedSourceFields names fields of the source that this mesh does not judge, as paths below it.
func UnsupportedSourceFields(src *securitybeta.Source) []string {
	return nonEmpty("trustDomains", src.GetTrustDomains(), "notTrustDomains", src.GetNotTrustDomains())
}

func nonEmpty(pairs ...any) []string {
	var names []string
	for i := 0; i+1 < len(pairs); i += 2 {
		if values, _ := pairs[i+1].([]string); len(values) > 0 {
			name, _ := pairs[i].(string)
			names = append(names, name)
		}
	}
	return names
}

// targetGroups are the API groups of the kinds that a policy may target; "" is accepted for all.
var targetGroups = map[string][]string{"Service": {"", "core"}, "Gateway": {"", "gateway.networking.k8s.io"},
	"GatewayClass": {"gateway.networking.k8s.io"}}

// AuthorizationPolicy checks one policy; issues are fields that its decoder did not understand.
func AuthorizationPolicy(p *securityv1.AuthorizationPolicy, issues []Field) []Finding {
	c := &collector{kind: "AuthorizationPolicy", namespace: p.Namespace, name: p.Name}
	c.fields(issues)
	spec := &p.Spec
	c.attached(spec.GetSelector(), spec.GetTargetRef(), spec.GetTargetRefs())
	if t := spec.GetTargetRef(); t != nil {
		c.target(t, "spec.targetRef")
	}
	for i, t := range spec.GetTargetRefs() {
		c.target(t, indexed("spec.targetRefs", i))
	}
	switch spec.GetAction() {
	case securitybeta.AuthorizationPolicy_ALLOW, securitybeta.AuthorizationPolicy_DENY:
		if spec.GetProvider() != nil {
			c.add(Error, "spec.provider", "is for the action CUSTOM only")
		}
	case securitybeta.AuthorizationPolicy_AUDIT:
		c.add(Warning, "spec.action", "AUDIT is not supported: nothing is recorded, and nothing is refused")
	default:
		c.unsupported("spec.action", "%s is not supported", spec.GetAction())
	}
	for i, rule := range spec.GetRules() {
		c.rule(rule, p.Namespace, fmt.Sprintf("spec.rules[%d]", i))
	}
	c.policyMeaning(spec)
	c.dryRun(p.Annotations)
	return c.found
}

// NoGateways is said of a policy that targets a gateway.
const NoGateways = "this mesh serves no gateways yet, so that nothing is behind this target"

// OfGateway reports whether a target of the kind is for gateways.
func OfGateway(kind string) bool { return kind == "Gateway" || kind == "GatewayClass" }

func (c *collector) target(t *typebeta.PolicyTargetReference, at string) {
	if groups, ok := targetGroups[t.GetKind()]; ok && !slices.Contains(groups, t.GetGroup()) {
		c.add(Error, at+".group", "group %q has no kind %s", t.GetGroup(), t.GetKind())
		c.hint("it is %q", groups[len(groups)-1])
	}
	if targetGroups[t.GetKind()] == nil || t.GetName() == "" {
		c.add(Error, at, "kind %q with name %q is not supported", t.GetKind(), t.GetName())
		c.hint("a policy may target a Service or a Gateway; pods are chosen by spec.selector")
	}
	if OfGateway(t.GetKind()) {
		c.add(Warning, at, "%s %q: %s", t.GetKind(), t.GetName(), NoGateways)
	}
}

const (
	tcpMeaning  = "is for HTTP and connections are judged as TCP: an ALLOW policy ignores the rule, a DENY policy ignores the field"
	unsupported = "is not supported: an ALLOW policy ignores the rule, a DENY policy ignores the field"
)

func (c *collector) rule(rule *securitybeta.Rule, namespace, path string) {
	if rule == nil { // it would match everything
		c.add(Error, path, "is missing")
		return
	}
	for i, from := range rule.GetFrom() {
		at := fmt.Sprintf("%s.from[%d].source", path, i)
		if from.GetSource() == nil {
			c.add(Error, at, "is missing")
			continue
		}
		c.source(from.GetSource(), namespace, at)
	}
	for i, to := range rule.GetTo() {
		op, at := to.GetOperation(), fmt.Sprintf("%s.to[%d].operation", path, i)
		if op == nil {
			c.add(Error, at, "is missing")
			continue
		}
		c.each(op.GetPorts(), at+".ports", portError)
		c.each(op.GetNotPorts(), at+".notPorts", portError)
		fields := HTTPFields(op)
		for _, f := range fields {
			c.add(Warning, at+"."+f, tcpMeaning)
		}
		if len(fields) == 0 && len(op.GetPorts())+len(op.GetNotPorts()) == 0 {
			c.add(Error, at, "is empty")
		}
	}
	for i, cond := range rule.GetWhen() {
		c.condition(cond, namespace, fmt.Sprintf("%s.when[%d]", path, i))
	}
}

func (c *collector) source(src *securitybeta.Source, namespace, at string) {
	account := func(v string) error { _, _, err := ServiceAccount(v, namespace); return err }
	c.each(src.GetPrincipals(), at+".principals", word)
	c.each(src.GetNotPrincipals(), at+".notPrincipals", word)
	c.each(src.GetNamespaces(), at+".namespaces", word)
	c.each(src.GetNotNamespaces(), at+".notNamespaces", word)
	c.each(src.GetRequestPrincipals(), at+".requestPrincipals", word)
	c.each(src.GetNotRequestPrincipals(), at+".notRequestPrincipals", word)
	c.each(src.GetServiceAccounts(), at+".serviceAccounts", account)
	c.each(src.GetNotServiceAccounts(), at+".notServiceAccounts", account)
	c.each(src.GetIpBlocks(), at+".ipBlocks", blockError)
	c.each(src.GetNotIpBlocks(), at+".notIpBlocks", blockError)
	c.each(src.GetRemoteIpBlocks(), at+".remoteIpBlocks", blockError)
	c.each(src.GetNotRemoteIpBlocks(), at+".notRemoteIpBlocks", blockError)
	http, other := HTTPSourceFields(src), UnsupportedSourceFields(src)
	for _, f := range http {
		c.add(Warning, at+"."+f, tcpMeaning)
	}
	for _, f := range other {
		c.add(Warning, at+"."+f, unsupported)
	}
	judged := nonEmpty("", src.GetPrincipals(), "", src.GetNotPrincipals(), "", src.GetNamespaces(), "", src.GetNotNamespaces(),
		"", src.GetServiceAccounts(), "", src.GetNotServiceAccounts(), "", src.GetIpBlocks(), "", src.GetNotIpBlocks())
	if len(judged)+len(http)+len(other) == 0 {
		c.add(Error, at, "is empty")
	}
}

func (c *collector) condition(cond *securitybeta.Condition, namespace, at string) {
	check := filled
	switch Condition(cond.GetKey()) {
	case ConditionUnknown:
		c.add(Error, at+".key", "unknown key %q", cond.GetKey())
		c.suggest(strings.TrimRight(cond.GetKey(), "[]"), conditionKeys)
	case ConditionHTTP:
		c.add(Warning, at+".key", "%q %s", cond.GetKey(), tcpMeaning)
	case ConditionUnsupported:
		c.add(Warning, at+".key", "%q %s", cond.GetKey(), unsupported)
	case ConditionSourceIP, ConditionDestinationIP:
		check = blockError
	case ConditionDestinationPort:
		check = portError
	case ConditionSourceNamespace, ConditionSourcePrincipal:
		check = word
	case ConditionSourceAccount:
		check = func(v string) error { _, _, err := ServiceAccount(v, namespace); return err }
	}
	c.each(cond.GetValues(), at+".values", check)
	c.each(cond.GetNotValues(), at+".notValues", check)
	if len(cond.GetValues())+len(cond.GetNotValues()) == 0 {
		c.add(Error, at, "has neither values nor notValues")
	}
}

// word checks a pattern of names, which have no white space.
func word(text string) error {
	if err := noBlank(text); err != nil {
		return err
	}
	return Pattern(text)
}

func portError(text string) error { _, err := Port(text); return err }

func blockError(text string) error { _, err := IPBlock(text); return err }
