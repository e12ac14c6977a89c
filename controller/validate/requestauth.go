package validate

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	extensions "istio.io/api/extensions/v1alpha1"
	networkingbeta "istio.io/api/networking/v1beta1"
	securitybeta "istio.io/api/security/v1beta1"
	telemetry "istio.io/api/telemetry/v1alpha1"
	typebeta "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
)

// web checks an absolute URL.
func web(text string, schemes ...string) error {
	if err := noBlank(text); err != nil {
		return err
	}
	u, err := url.Parse(text)
	if err != nil || !slices.Contains(schemes, u.Scheme) || u.Host == "" {
		return fmt.Errorf("%q is not a URL that begins with %s://", text, strings.Join(schemes, ":// or "))
	}
	if u.Port() != "" {
		if _, err := Port(u.Port()); err != nil {
			return err
		}
	}
	return Host(u.Hostname(), false)
}

// emptySelector warns of a selector without labels, which every workload has.
func (c *collector) emptySelector(set bool, labels map[string]string, at string) {
	if set && len(labels) == 0 {
		c.add(Warning, at, "has no labels: it selects every workload")
		c.hint("leave it out, or write labels")
	}
}

// attached checks to what a policy belongs.
func (c *collector) attached(selector *typebeta.WorkloadSelector, one *typebeta.PolicyTargetReference, many []*typebeta.PolicyTargetReference) {
	c.selector(selector.GetMatchLabels(), "spec.selector.matchLabels")
	c.emptySelector(selector != nil, selector.GetMatchLabels(), "spec.selector")
	if selector != nil && (one != nil || len(many) > 0) {
		c.add(Error, "spec.selector", "excludes targetRefs")
	}
	if one != nil && len(many) > 0 {
		c.add(Error, "spec.targetRef", "excludes targetRefs")
	}
	check := func(t *typebeta.PolicyTargetReference, at string) {
		if t.GetNamespace() != "" && t.GetNamespace() != c.namespace {
			c.add(Error, at+".namespace", "must be the policy's own namespace")
		}
	}
	if one != nil {
		check(one, "spec.targetRef")
	}
	for i, t := range many {
		check(t, indexed("spec.targetRefs", i))
	}
}

// RequestAuthentication checks one.
func RequestAuthentication(p *securityv1.RequestAuthentication) []Finding {
	c := &collector{kind: "RequestAuthentication", namespace: p.Namespace, name: p.Name}
	requestAuthenticationRules(c, &p.Spec)
	return c.found
}

func requestAuthenticationRules(c *collector, spec *securitybeta.RequestAuthentication) {
	c.attached(spec.GetSelector(), spec.GetTargetRef(), spec.GetTargetRefs())
	if len(spec.GetJwtRules()) == 0 {
		c.add(Info, "spec.jwtRules", "is empty: no token is looked at")
	}
	for i, r := range spec.GetJwtRules() {
		c.jwtRule(r, indexed("spec.jwtRules", i))
	}
}

func (c *collector) jwtRule(r *securitybeta.JWTRule, at string) {
	c.each(r.GetAudiences(), at+".audiences", filled)
	for i, a := range r.GetAudiences() {
		if err := noBlank(a); err != nil && a != "" { // a token may say so, and none does
			c.add(Warning, indexed(at+".audiences", i), "%s", err)
		}
	}
	if r.GetJwksUri() != "" {
		c.must(at+".jwksUri", web(r.GetJwksUri(), "http", "https"))
		c.fetched(r.GetJwksUri(), at+".jwksUri")
	}
	switch {
	case r.GetJwks() != "" && r.GetJwksUri() != "":
		c.add(Error, at+".jwks", "excludes jwksUri")
	case r.GetJwks() == "" && r.GetJwksUri() == "":
		if err := web(r.GetIssuer(), "http", "https"); err != nil && r.GetIssuer() != "" {
			c.add(Warning, at+".jwksUri", "is not set, and the issuer %q is no URL at which the keys could be found", r.GetIssuer())
		}
	case r.GetJwks() != "":
		var set struct {
			Keys []json.RawMessage `json:"keys"`
		}
		if err := json.Unmarshal([]byte(r.GetJwks()), &set); err != nil || len(set.Keys) == 0 {
			c.add(Error, at+".jwks", "is not a JSON Web Key Set with at least one key")
		}
	}
	for i, h := range r.GetFromHeaders() {
		c.header(h.GetName(), at+indexed(".fromHeaders", i)+".name")
	}
	c.each(r.GetFromParams(), at+".fromParams", filled)
	c.each(r.GetFromCookies(), at+".fromCookies", headerName)
	if h := r.GetOutputPayloadToHeader(); h != "" {
		c.header(h, at+".outputPayloadToHeader")
	}
	for i, o := range r.GetOutputClaimToHeaders() {
		c.header(o.GetHeader(), at+indexed(".outputClaimToHeaders", i)+".header")
		c.must(at+indexed(".outputClaimToHeaders", i)+".claim", filled(o.GetClaim()))
	}
	c.atLeast(r.GetTimeout(), time.Millisecond, at+".timeout")
}

// fetched warns of addresses from which the control plane fetches nothing, whatever is allowed to it (JW-09).
func (c *collector) fetched(text, at string) {
	u, err := url.Parse(text)
	if err != nil {
		return
	}
	a, err := netip.ParseAddr(u.Hostname())
	if (err == nil && (a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsUnspecified() || a.IsMulticast())) || strings.EqualFold(u.Hostname(), "localhost") {
		c.add(Warning, at, "the control plane fetches nothing from %q: tokens of this issuer are refused", u.Hostname())
	}
}

// named refuses a key of a map that is no name.
func named(text string) error {
	if text == "" {
		return errors.New("has no name")
	}
	return nil
}

func filled(text string) error {
	if text == "" {
		return fmt.Errorf("is empty")
	}
	return nil
}

func telemetryRules(c *collector, spec *telemetry.Telemetry) {
	c.attached(spec.GetSelector(), spec.GetTargetRef(), spec.GetTargetRefs())
	providers := func(list []*telemetry.ProviderRef, at string) {
		for i, p := range list {
			if p.GetName() == "" {
				c.add(Error, at+indexed(".providers", i)+".name", "is required")
			}
		}
	}
	if len(spec.GetTracing()) > 1 {
		c.add(Warning, "spec.tracing", "has several items: the first one counts")
	}
	for i, t := range spec.GetTracing() {
		at := indexed("spec.tracing", i)
		providers(t.GetProviders(), at)
		if len(t.GetProviders()) > 1 {
			c.add(Error, at+".providers", "may have one item: spans go to one provider")
		}
		if p := t.GetRandomSamplingPercentage(); p != nil {
			between(c, p.GetValue(), 0, 100, at+".randomSamplingPercentage")
		}
		for _, name := range sortedKeys(t.GetCustomTags()) {
			tag, at := t.GetCustomTags()[name], at+".customTags."+name
			c.must(at, named(name))
			switch v := tag.GetType().(type) {
			case nil:
				c.add(Error, at, "literal, environment, header or formatter is required")
			case *telemetry.Tracing_CustomTag_Header:
				c.header(v.Header.GetName(), at+".header.name")
			case *telemetry.Tracing_CustomTag_Environment:
				c.must(at+".environment.name", filled(v.Environment.GetName()))
			case *telemetry.Tracing_CustomTag_Literal:
				c.must(at+".literal.value", filled(v.Literal.GetValue()))
			}
		}
	}
	for i, m := range spec.GetMetrics() {
		at := indexed("spec.metrics", i)
		providers(m.GetProviders(), at)
		c.atLeast(m.GetReportingInterval(), time.Millisecond, at+".reportingInterval")
		for j, o := range m.GetOverrides() {
			for _, name := range sortedKeys(o.GetTagOverrides()) {
				c.must(at+indexed(".overrides", j)+".tagOverrides.", named(name))
				c.tagOverride(o.GetTagOverrides()[name], at+indexed(".overrides", j)+".tagOverrides."+name)
			}
		}
	}
	for i, l := range spec.GetAccessLogging() {
		providers(l.GetProviders(), indexed("spec.accessLogging", i))
		if e := l.GetFilter(); e != nil {
			c.expression(e.GetExpression(), indexed("spec.accessLogging", i)+".filter.expression")
		}
	}
}

func (c *collector) tagOverride(o *telemetry.MetricsOverrides_TagOverride, at string) {
	remove := o.GetOperation() == telemetry.MetricsOverrides_TagOverride_REMOVE
	switch {
	case remove && o.GetValue() != "":
		c.add(Error, at+".value", "has no meaning with operation REMOVE")
	case !remove && o.GetValue() == "":
		c.add(Error, at+".value", "is required with operation UPSERT")
	case !remove:
		c.expression(o.GetValue(), at+".value")
	}
}

func proxyConfigRules(c *collector, spec *networkingbeta.ProxyConfig) {
	c.selector(spec.GetSelector().GetMatchLabels(), "spec.selector.matchLabels")
	if n := spec.GetConcurrency(); n != nil && n.GetValue() < 0 {
		c.add(Error, "spec.concurrency", "%d is negative", n.GetValue())
	}
	c.add(Warning, "spec", "is accepted and has no effect: pods have no proxy of their own here")
}

func wasmRules(c *collector, spec *extensions.WasmPlugin) {
	c.attached(spec.GetSelector(), spec.GetTargetRef(), spec.GetTargetRefs())
	if text := spec.GetUrl(); text != "" {
		c.must("spec.url", noBlank(text))
		u, err := url.Parse(text)
		if err != nil || !slices.Contains([]string{"", "oci", "http", "https", "file"}, u.Scheme) {
			c.add(Error, "spec.url", "%q is not an oci://, http://, https:// or file:// URL", text)
		}
	}
	if sum := spec.GetSha256(); sum != "" && (len(sum) != 64 || strings.Trim(sum, "0123456789abcdef") != "") {
		c.add(Error, "spec.sha256", "%q is not 64 hexadecimal digits", sum)
	}
	for i, e := range spec.GetVmConfig().GetEnv() {
		at := indexed("spec.vmConfig.env", i)
		c.must(at+".name", filled(e.GetName()))
		if e.GetValueFrom() == extensions.EnvValueSource_HOST && e.GetValue() != "" {
			c.add(Error, at+".value", "has no meaning with valueFrom HOST")
		}
	}
	for i, m := range spec.GetMatch() {
		for j, p := range m.GetPorts() {
			c.port(p.GetNumber(), indexed("spec.match", i)+indexed(".ports", j)+".number")
		}
	}
	c.add(Warning, "spec", "is accepted and has no effect: there is no Envoy here that could load WebAssembly")
}
