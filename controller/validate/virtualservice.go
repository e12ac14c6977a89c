package validate

import (
	"errors"
	"fmt"
	"math"
	"regexp/syntax"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
)

const meshGateway = "mesh"

func virtualServiceRules(c *collector, spec *networking.VirtualService) {
	hosts, gateways := spec.GetHosts(), spec.GetGateways()
	onMesh := len(gateways) == 0 || slices.Contains(gateways, meshGateway)
	named, bound := newNames[bool](), map[string]bool{}
	for _, g := range gateways {
		bound[g] = true
	}
	for i, h := range hosts {
		named.add(h, true)
		c.must(indexed("spec.hosts", i), Host(h, true))
		if h == "*" && onMesh {
			c.add(Error, indexed("spec.hosts", i), "\"*\" would take every host of the mesh: name the hosts, or bind it to gateways only")
		}
	}
	c.unique(hosts, "spec.hosts", "host")
	c.unique(gateways, "spec.gateways", "gateway")
	for i, g := range gateways {
		if g != meshGateway {
			c.must(indexed("spec.gateways", i), reference(g))
		}
	}
	if len(hosts) == 0 {
		if len(gateways) > 0 || len(spec.GetTls())+len(spec.GetTcp()) > 0 {
			c.add(Error, "spec.hosts", "is required: only a delegate has none, and it has neither gateways nor tls nor tcp")
		} else {
			c.add(Info, "spec.hosts", "there are none: it works only as the delegate of another VirtualService")
		}
	}
	if len(spec.GetHttp())+len(spec.GetTls())+len(spec.GetTcp()) == 0 {
		c.add(Error, "spec", "http, tls or tcp is required: without a route it does nothing")
	}
	c.exportTo(spec.GetExportTo())
	last := -1
	for i, r := range spec.GetHttp() {
		at := indexed("spec.http", i)
		c.httpRoute(r, bound, at)
		if last >= 0 {
			c.add(Warning, at, "is never reached: %s has no condition", indexed("spec.http", last))
			c.code(CodeUnreachable)
		} else if len(r.GetMatch()) == 0 {
			last = i
		}
	}
	for i, r := range spec.GetTls() {
		c.tlsRoute(r, named, bound, indexed("spec.tls", i))
	}
	sameMatches(c, "spec.http", spec.GetHttp(), (*networking.HTTPRoute).GetMatch)
	sameMatches(c, "spec.tls", spec.GetTls(), (*networking.TLSRoute).GetMatch)
	sameMatches(c, "spec.tcp", spec.GetTcp(), (*networking.TCPRoute).GetMatch)
	for i, r := range spec.GetTcp() {
		at := indexed("spec.tcp", i)
		for j, m := range r.GetMatch() {
			c.layer4(m.GetPort(), m.GetDestinationSubnets(), m.GetSourceLabels(), m.GetGateways(), bound, at+indexed(".match", j))
			if m.GetSourceSubnet() != "" {
				c.must(at+indexed(".match", j)+".sourceSubnet", blockError(m.GetSourceSubnet()))
			}
		}
		c.destinations(r.GetRoute(), at+".route")
	}
}

// Consequence is what becomes of a VirtualService that has an error.
func Consequence(spec *networking.VirtualService) string {
	gateways := spec.GetGateways()
	switch {
	case len(spec.GetHosts()) == 0 && len(gateways) == 0:
		return "it is not carried out: what is delegated to it is answered by 503"
	case len(gateways) > 0 && !slices.Contains(gateways, meshGateway):
		return "it is not carried out: gateways are not served yet"
	case !slices.ContainsFunc(spec.GetHosts(), func(h string) bool { return h != "" && h != "*" }):
		return "it is not carried out, and has no effect: it names no host that it could count for"
	}
	return "it is not carried out: requests to its hosts, services of other namespaces apart, are answered by 503, and other connections to them are refused"
}

// Unserved names the gateways that a VirtualService is bound to, with the fields that name them: none is served yet.
func Unserved(spec *networking.VirtualService) []string {
	var out []string
	for i, g := range spec.GetGateways() {
		if g != meshGateway {
			out = append(out, fmt.Sprintf("%s %q", indexed("spec.gateways", i), g))
		}
	}
	return out
}

func (c *collector) tlsRoute(r *networking.TLSRoute, hosts *names[bool], gateways map[string]bool, at string) {
	for j, m := range r.GetMatch() { // that there is one the walker has checked
		at := at + indexed(".match", j)
		c.layer4(m.GetPort(), m.GetDestinationSubnets(), m.GetSourceLabels(), m.GetGateways(), gateways, at)
		for k, sni := range m.GetSniHosts() {
			c.must(at+indexed(".sniHosts", k), Host(sni, true))
			if !hosts.covers(sni) {
				c.add(Error, at+indexed(".sniHosts", k), "%q is not among the hosts of the VirtualService", sni)
			}
		}
	}
	c.destinations(r.GetRoute(), at+".route")
}

// covers says whether the host pattern includes the name.
func covers(pattern, name string) bool {
	pattern, name = strings.ToLower(pattern), strings.ToLower(name)
	if pattern == "*" || pattern == name {
		return true
	}
	suffix, ok := strings.CutPrefix(pattern, "*")
	return ok && strings.HasSuffix(name, suffix)
}

func (c *collector) layer4(port uint32, subnets []string, labels map[string]string, own []string, gateways map[string]bool, at string) {
	if port != 0 {
		c.port(port, at+".port")
	}
	c.each(subnets, at+".destinationSubnets", blockError)
	c.selector(labels, at+".sourceLabels")
	c.matchGateways(own, gateways, at)
}

// matchGateways warns of a condition on a gateway to which the VirtualService is not bound.
func (c *collector) matchGateways(own []string, gateways map[string]bool, at string) {
	for i, g := range own {
		if gateways[g] || (g == meshGateway && len(gateways) == 0) {
			continue
		}
		c.add(Warning, at+indexed(".gateways", i), "never matches: spec.gateways does not have %q", g)
	}
}

// destinations checks the weighted destinations of TLS and TCP.
func (c *collector) destinations(list []*networking.RouteDestination, at string) {
	if len(list) == 0 {
		c.add(Error, at, "is required")
	}
	var sum int64
	for i, d := range list {
		c.destination(d.GetDestination(), indexed(at, i)+".destination")
		c.weight(d.GetWeight(), indexed(at, i))
		sum += int64(d.GetWeight())
	}
	c.weights(sum, len(list), at)
}

func (c *collector) weight(w int32, at string) {
	if w < 0 {
		c.add(Error, at+".weight", "%d is negative", w)
	}
}

func (c *collector) weights(sum int64, n int, at string) {
	switch {
	case n > 1 && sum == 0:
		c.add(Error, at, "the sum of the weights is 0: nothing would be sent anywhere")
	case n > 1 && sum > math.MaxUint32:
		c.add(Error, at, "the sum of the weights is %d, and must be at most %d", sum, uint32(math.MaxUint32))
	case n > 1 && sum != 100:
		c.add(Info, at, "the sum of the weights is %d: they are shares of it, not percent", sum)
	}
}

func (c *collector) destination(d *networking.Destination, at string) {
	if d == nil {
		return // the walker has said that it is required
	}
	if d.GetHost() != "" {
		c.must(at+".host", called(d.GetHost(), false))
	}
	if d.GetSubset() != "" {
		c.must(at+".subset", label1123(d.GetSubset()))
	}
	if d.GetPort() != nil {
		c.port(d.GetPort().GetNumber(), at+".port.number")
	}
}

func (c *collector) httpRoute(r *networking.HTTPRoute, gateways map[string]bool, at string) {
	for i, m := range r.GetMatch() {
		c.httpMatch(m, gateways, at+indexed(".match", i))
	}
	var acts []string
	for name, set := range map[string]bool{"route": len(r.GetRoute()) > 0, "redirect": r.GetRedirect() != nil,
		"directResponse": r.GetDirectResponse() != nil, "delegate": r.GetDelegate() != nil} {
		if set {
			acts = append(acts, name)
		}
	}
	slices.Sort(acts)
	switch len(acts) {
	case 0:
		c.add(Error, at, "route, redirect, directResponse or delegate is required")
	case 1:
	default:
		c.add(Error, at, "%s exclude each other", strings.Join(acts, " and "))
	}
	var sum int64
	for i, d := range r.GetRoute() {
		at := at + indexed(".route", i)
		c.destination(d.GetDestination(), at+".destination")
		c.weight(d.GetWeight(), at)
		c.headerEdits(d.GetHeaders(), at+".headers")
		sum += int64(d.GetWeight())
	}
	c.weights(sum, len(r.GetRoute()), at+".route")
	c.noControls(r, at)
	c.headerEdits(r.GetHeaders(), at+".headers")
	c.orZero(r.GetTimeout(), at+".timeout")
	c.retries(r.GetRetries(), at+".retries")
	c.fault(r.GetFault(), at+".fault")
	c.mirrors(r, at)
	c.cors(r.GetCorsPolicy(), at+".corsPolicy")
	c.redirect(r, at)
}

func (c *collector) redirect(r *networking.HTTPRoute, at string) {
	if d := r.GetRedirect(); d != nil {
		if code := d.GetRedirectCode(); code != 0 && (code < 300 || code > 399) {
			c.add(Error, at+".redirect.redirectCode", "%d is not from 300 to 399", code)
		}
		if d.GetUri() == "" && d.GetAuthority() == "" && d.GetScheme() == "" && d.GetRedirectPort() == nil && d.GetPrefixRewrite() == "" {
			c.add(Error, at+".redirect", "is empty: it would lead to itself")
		}
		if d.GetUri() != "" && d.GetPrefixRewrite() != "" {
			c.add(Error, at+".redirect.prefixRewrite", "excludes uri")
		}
		c.must(at+".redirect.uri", oneWord(d.GetUri()))
		c.must(at+".redirect.prefixRewrite", oneWord(d.GetPrefixRewrite()))
		c.must(at+".redirect.authority", oneWord(d.GetAuthority()))
		if s := d.GetScheme(); s != "" && s != "http" && s != "https" {
			c.add(Error, at+".redirect.scheme", "%q is neither http nor https", s)
		}
		if p, ok := d.GetRedirectPort().(*networking.HTTPRedirect_Port); ok {
			c.port(p.Port, at+".redirect.port")
		}
	}
	if d := r.GetDirectResponse(); d != nil {
		between(c, d.GetStatus(), 200, 599, at+".directResponse.status")
	}
	if d := r.GetDelegate(); d != nil && d.GetName() == "" {
		c.add(Error, at+".delegate.name", "is required")
	}
	if w := r.GetRewrite(); w != nil {
		if w.GetUri() == "" && w.GetAuthority() == "" && w.GetUriRegexRewrite() == nil {
			c.add(Error, at+".rewrite", "is empty")
		}
		c.must(at+".rewrite.uri", oneWord(w.GetUri()))
		c.must(at+".rewrite.authority", oneWord(w.GetAuthority()))
		if x := w.GetUriRegexRewrite(); x != nil {
			c.must(at+".rewrite.uriRegexRewrite.rewrite", substitution(x.GetMatch(), x.GetRewrite()))
			if w.GetUri() != "" {
				c.add(Error, at+".rewrite.uriRegexRewrite", "excludes uri")
			}
			c.regex(x.GetMatch(), at+".rewrite.uriRegexRewrite.match")
		}
	}
}

// substitution checks what takes the place of what a regular expression matches: \0 to \9 are its groups, \\ is a backslash. What is
// wrong with the expression is said elsewhere.
func substitution(match, text string) error {
	if err := oneWord(text); err != nil {
		return err
	}
	groups := 9
	if re, err := syntax.Parse(match, syntax.Perl); err == nil {
		groups = re.MaxCap()
	}
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' {
			continue
		}
		i++
		switch {
		case i < len(text) && text[i] == '\\':
		case i == len(text) || text[i] < '0' || text[i] > '9':
			return hinted{errors.New("has a backslash before what is neither a digit nor a backslash"), `write \\ for the character itself`}
		case int(text[i]-'0') > groups:
			return fmt.Errorf("\\%c is a group that match does not have", text[i])
		}
	}
	return nil
}

func (c *collector) httpMatch(m *networking.HTTPMatchRequest, gateways map[string]bool, at string) {
	for name, s := range map[string]*networking.StringMatch{"uri": m.GetUri(), "scheme": m.GetScheme(), "method": m.GetMethod(), "authority": m.GetAuthority()} {
		c.stringMatch(s, at+"."+name, false)
	}
	if p := m.GetUri().GetPrefix() + m.GetUri().GetExact(); p != "" && !strings.HasPrefix(p, "/") && p != "*" {
		c.add(Warning, at+".uri", "%q does not begin with \"/\": no path matches", p)
	}
	if exact := m.GetMethod().GetExact(); exact != "" {
		c.method(exact, at+".method.exact")
	}
	for name, headers := range map[string]map[string]*networking.StringMatch{"headers": m.GetHeaders(), "withoutHeaders": m.GetWithoutHeaders()} {
		for _, k := range sortedKeys(headers) {
			if !claim(k) {
				c.must(fmt.Sprintf("%s.%s.%s", at, name, k), matchedName(k, true))
			}
			c.stringMatch(headers[k], fmt.Sprintf("%s.%s.%s", at, name, k), true)
		}
	}
	for _, k := range sortedKeys(m.GetQueryParams()) {
		c.must(fmt.Sprintf("%s.queryParams.%s", at, k), filled(k))
		c.stringMatch(m.GetQueryParams()[k], fmt.Sprintf("%s.queryParams.%s", at, k), true)
	}
	if m.GetPort() != 0 {
		c.port(m.GetPort(), at+".port")
	}
	if ns := m.GetSourceNamespace(); ns != "" {
		c.must(at+".sourceNamespace", label1123(ns))
	}
	c.selector(m.GetSourceLabels(), at+".sourceLabels")
	c.matchGateways(m.GetGateways(), gateways, at)
}

// claim says whether the name of a header means a claim of a token: @request.auth.claims.NAME or @request.auth.claims[NAME].
func claim(name string) bool {
	rest, ok := strings.CutPrefix(strings.ToLower(name), "@request.auth.claims")
	return ok && len(rest) > 1 && (rest[0] == '.' || (rest[0] == '[' && strings.HasSuffix(rest, "]") && len(rest) > 2))
}

// stringMatch checks a condition on a text; empty is whether {} may stand for "is there".
func (c *collector) stringMatch(s *networking.StringMatch, at string, empty bool) {
	switch m := s.GetMatchType().(type) {
	case nil:
		if s != nil && !empty {
			c.add(Error, at, "exact, prefix or regex is required")
		}
	case *networking.StringMatch_Prefix:
		if m.Prefix == "" {
			c.add(Error, at+".prefix", "is empty")
		}
	case *networking.StringMatch_Regex:
		if m.Regex == "" {
			c.add(Error, at+".regex", "is empty")
		}
		c.regex(m.Regex, at+".regex")
	}
}

// sameMatches warns of conditions that stand in front already: the first one takes the requests.
func sameMatches[R any, M proto.Message](c *collector, at string, routes []R, matches func(R) []M) {
	first := map[string]string{}
	for i, r := range routes {
		again := 0
		for j, m := range matches(r) {
			m := proto.Clone(m)
			if named, ok := m.(*networking.HTTPMatchRequest); ok {
				named.Name = ""
			}
			key, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
			if err != nil {
				continue
			}
			here := indexed(at, i) + indexed(".match", j)
			if before, ok := first[string(key)]; ok {
				c.add(Warning, here, "is the same as %s, which takes the requests", before)
				c.code(CodeSameMatch)
				again++
				continue
			}
			first[string(key)] = here
		}
		if n := len(matches(r)); n > 1 && again == n {
			c.add(Warning, indexed(at, i), "is never reached: all of its conditions stand in front of it already")
			c.code(CodeUnreachable)
		}
	}
}
