package validate

import (
	"fmt"
	"math"
	"math/big"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	networking "istio.io/api/networking/v1alpha3"
	"k8s.io/apimachinery/pkg/util/validation"
)

func destinationRules(c *collector, spec *networking.DestinationRule) {
	if spec.GetHost() != "" {
		c.must("spec.host", called(spec.GetHost(), true))
	}
	c.exportTo(spec.GetExportTo())
	c.selector(spec.GetWorkloadSelector().GetMatchLabels(), "spec.workloadSelector.matchLabels")
	if to := spec.GetExportTo(); spec.GetWorkloadSelector() != nil && slices.ContainsFunc(to, func(n string) bool { return n != "." && n != c.namespace }) {
		c.add(Warning, "spec.exportTo", "has no meaning with workloadSelector, which selects clients of the own namespace")
	}
	c.trafficPolicy(spec.GetTrafficPolicy(), "spec.trafficPolicy")
	first := map[string]int{}
	for i, s := range spec.GetSubsets() {
		at := indexed("spec.subsets", i)
		if s.GetName() != "" {
			c.must(at+".name", label1123(s.GetName()))
		}
		if j, twice := first[s.GetName()]; twice {
			c.add(Error, at+".name", "%s has the name %q already", indexed("spec.subsets", j), s.GetName())
		}
		first[s.GetName()] = i
		c.selector(s.GetLabels(), at+".labels")
		c.trafficPolicy(s.GetTrafficPolicy(), at+".trafficPolicy")
	}
	if len(spec.GetWorkloadSelector().GetMatchLabels()) == 0 {
		c.withoutCredentials(spec)
	}
}

// withoutCredentials warns of Secrets in a rule that selects no workloads: a Secret goes to selected ones alone.
func (c *collector) withoutCredentials(spec *networking.DestinationRule) {
	look := func(t *networking.ClientTLSSettings, at string) {
		verified := t.GetMode() == networking.ClientTLSSettings_SIMPLE && !t.GetInsecureSkipVerify().GetValue()
		if t.GetCredentialName() != "" && (verified || t.GetMode() == networking.ClientTLSSettings_MUTUAL) {
			c.add(Warning, at+".tls.credentialName", "is for the workloads that workloadSelector selects, and there is none: connections within the mesh are refused")
		}
	}
	policy := func(p *networking.TrafficPolicy, at string) {
		look(p.GetTls(), at)
		for i, s := range p.GetPortLevelSettings() {
			look(s.GetTls(), at+indexed(".portLevelSettings", i))
		}
	}
	policy(spec.GetTrafficPolicy(), "spec.trafficPolicy")
	for i, s := range spec.GetSubsets() {
		policy(s.GetTrafficPolicy(), indexed("spec.subsets", i)+".trafficPolicy")
	}
}

func (c *collector) trafficPolicy(p *networking.TrafficPolicy, at string) {
	if p == nil {
		return
	}
	if proto.Size(p) == 0 {
		c.add(Warning, at, "is empty")
	}
	c.policy(p.GetLoadBalancer(), p.GetConnectionPool(), p.GetOutlierDetection(), p.GetTls(), at)
	seen := map[uint32]int{}
	for i, s := range p.GetPortLevelSettings() {
		at := at + indexed(".portLevelSettings", i)
		switch n := s.GetPort().GetNumber(); {
		case s.GetPort() == nil:
			c.add(Error, at+".port", "is required")
		default:
			c.port(n, at+".port.number")
			if j, twice := seen[n]; twice {
				c.add(Error, at+".port.number", "item %d is for port %d already", j, n)
			}
			seen[n] = i
		}
		if s.GetLoadBalancer() == nil && s.GetConnectionPool() == nil && s.GetOutlierDetection() == nil && s.GetTls() == nil {
			c.add(Warning, at, "says nothing about the port: what stands above it counts")
		}
		c.policy(s.GetLoadBalancer(), s.GetConnectionPool(), s.GetOutlierDetection(), s.GetTls(), at)
	}
	if t := p.GetTunnel(); t != nil {
		if proto := t.GetProtocol(); proto != "" && proto != "CONNECT" && proto != "POST" {
			c.add(Error, at+".tunnel.protocol", "%q is neither CONNECT nor POST", proto)
		}
		if t.GetTargetHost() != "" {
			c.must(at+".tunnel.targetHost", Host(t.GetTargetHost(), false))
		}
		c.port(t.GetTargetPort(), at+".tunnel.targetPort")
	}
	if b := p.GetRetryBudget(); b.GetPercent() != nil {
		between(c, b.GetPercent().GetValue(), 0, 100, at+".retryBudget.percent")
	}
}

// policy checks what a whole destination and one port of it have in common.
func (c *collector) policy(lb *networking.LoadBalancerSettings, pool *networking.ConnectionPoolSettings, out *networking.OutlierDetection,
	tls *networking.ClientTLSSettings, at string,
) {
	c.balancer(lb, out != nil, at+".loadBalancer")
	c.pool(pool, at+".connectionPool")
	if out != nil {
		at := at + ".outlierDetection"
		between(c, out.GetMaxEjectionPercent(), 0, 100, at+".maxEjectionPercent")
		between(c, out.GetMinHealthPercent(), 0, 100, at+".minHealthPercent")
		c.atLeast(out.GetInterval(), time.Millisecond, at+".interval")
		c.atLeast(out.GetBaseEjectionTime(), time.Millisecond, at+".baseEjectionTime")
		if n := out.GetConsecutiveErrors(); n < 0 { //nolint:staticcheck // still read
			c.add(Error, at+".consecutiveErrors", "%d is negative", n)
		}
		if out.GetConsecutiveLocalOriginFailures() != nil && !out.GetSplitExternalLocalOriginErrors() {
			c.add(Warning, at+".consecutiveLocalOriginFailures", "has no meaning without splitExternalLocalOriginErrors: true")
		}
	}
	c.clientTLS(tls, at+".tls")
}

func (c *collector) pool(p *networking.ConnectionPoolSettings, at string) {
	if p == nil {
		return
	}
	if p.GetTcp() == nil && p.GetHttp() == nil {
		c.add(Error, at, "tcp or http is required")
	}
	negative := func(n int32, field string) {
		if n < 0 {
			c.add(Error, at+field, "%d is negative", n)
		}
	}
	t, h := p.GetTcp(), p.GetHttp()
	negative(t.GetMaxConnections(), ".tcp.maxConnections")
	negative(h.GetHttp1MaxPendingRequests(), ".http.http1MaxPendingRequests")
	negative(h.GetHttp2MaxRequests(), ".http.http2MaxRequests")
	negative(h.GetMaxRequestsPerConnection(), ".http.maxRequestsPerConnection")
	negative(h.GetMaxRetries(), ".http.maxRetries")
	negative(h.GetMaxConcurrentStreams(), ".http.maxConcurrentStreams")
	c.atLeast(t.GetConnectTimeout(), time.Millisecond, at+".tcp.connectTimeout")
	c.atLeast(t.GetMaxConnectionDuration(), time.Millisecond, at+".tcp.maxConnectionDuration")
	c.orZero(t.GetIdleTimeout(), at+".tcp.idleTimeout")
	c.atLeast(t.GetTcpKeepalive().GetTime(), time.Second, at+".tcp.tcpKeepalive.time")
	c.atLeast(t.GetTcpKeepalive().GetInterval(), time.Second, at+".tcp.tcpKeepalive.interval")
	c.orZero(h.GetIdleTimeout(), at+".http.idleTimeout")
	if k := h.GetHttp2KeepAlive(); k != nil {
		for name, d := range map[string]*durationpb.Duration{"interval": k.GetInterval(), "timeout": k.GetTimeout()} {
			if d == nil {
				c.add(Error, at+".http.http2KeepAlive."+name, "is required")
			}
			c.atLeast(d, time.Millisecond, at+".http.http2KeepAlive."+name)
		}
	}
	if h.GetUseClientProtocol() && h.GetH2UpgradePolicy() == networking.ConnectionPoolSettings_HTTPSettings_UPGRADE {
		c.add(Error, at+".http.useClientProtocol", "excludes h2UpgradePolicy: UPGRADE")
	}
}

func (c *collector) balancer(lb *networking.LoadBalancerSettings, outlier bool, at string) {
	if lb == nil {
		return
	}
	if h := lb.GetConsistentHash(); h != nil {
		at := at + ".consistentHash"
		if m, ok := h.GetHashAlgorithm().(*networking.LoadBalancerSettings_ConsistentHashLB_Maglev); ok {
			c.maglev(m.Maglev.GetTableSize(), at+".maglev.tableSize")
		}
		between(c, h.GetRingHash().GetMinimumRingSize(), 0, MostRing, at+".ringHash.minimumRingSize")
		between(c, h.GetMinimumRingSize(), 0, MostRing, at+".minimumRingSize") //nolint:staticcheck // still read
		switch k := h.GetHashKey().(type) {
		case nil:
			c.add(Error, at, "httpHeaderName, httpCookie, useSourceIp or httpQueryParameterName is required")
		case *networking.LoadBalancerSettings_ConsistentHashLB_HttpQueryParameterName:
			c.must(at+".httpQueryParameterName", filled(k.HttpQueryParameterName))
		case *networking.LoadBalancerSettings_ConsistentHashLB_HttpHeaderName:
			c.must(at+".httpHeaderName", matchedName(k.HttpHeaderName, true))
		case *networking.LoadBalancerSettings_ConsistentHashLB_HttpCookie:
			c.cookie(k.HttpCookie, at+".httpCookie")
		}
	}
	if a := lb.GetWarmup().GetAggression(); a != nil && !Aggression(a.GetValue()) {
		c.add(Error, at+".warmup.aggression", "%v is not a number from 1", a.GetValue())
	}
	if p := lb.GetWarmup().GetMinimumPercent(); p != nil {
		between(c, p.GetValue(), 0, 100, at+".warmup.minimumPercent")
	}
	if lb.GetWarmup() != nil && lb.GetWarmupDurationSecs() != nil { //nolint:staticcheck // still read
		c.add(Error, at+".warmup", "excludes warmupDurationSecs")
	}
	if lb.GetLocalityLbSetting() != nil && lb.GetZoneAwareLbSetting() != nil {
		c.add(Error, at+".zoneAwareLbSetting", "excludes localityLbSetting")
	}
	c.locality(lb.GetLocalityLbSetting(), outlier, at+".localityLbSetting")
}

// Aggression reports whether the weight of who is new can grow so.
func Aggression(v float64) bool { return v >= 1 && v <= math.MaxFloat64 }

// MostRing is Envoy's bound of a ring's entries.
const MostRing = 8 << 20

// cookie checks what a cookie that is made is written of.
func (c *collector) cookie(k *networking.LoadBalancerSettings_ConsistentHashLB_HTTPCookie, at string) {
	if k.GetName() != "" { // that there is one the walker has checked
		c.must(at+".name", cookieName(k.GetName()))
	}
	c.atLeast(k.GetTtl(), 0, at+".ttl")
	c.must(at+".path", cookiePart(k.GetPath()))
	for i, a := range k.GetAttributes() {
		at := at + indexed(".attributes", i)
		c.must(at+".name", filled(a.GetName()))
		c.must(at+".name", cookiePart(a.GetName()))
		c.must(at+".value", cookiePart(a.GetValue()))
	}
}

func cookieName(text string) error {
	if !httpguts.ValidHeaderFieldName(text) {
		return fmt.Errorf("%q is not the name of a cookie", text)
	}
	return nil
}

func cookiePart(text string) error {
	if strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r == 0x7f || r == ';' || r == ',' }) {
		return fmt.Errorf("%q has a character that ends a part of a cookie", text)
	}
	return nil
}

// Hashes reports whether requests can be hashed by what a rule names.
func Hashes(h *networking.LoadBalancerSettings_ConsistentHashLB) bool {
	switch k := h.GetHashKey().(type) {
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpHeaderName:
		return matchedName(k.HttpHeaderName, true) == nil
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpQueryParameterName:
		return k.HttpQueryParameterName != ""
	case *networking.LoadBalancerSettings_ConsistentHashLB_UseSourceIp:
		return k.UseSourceIp
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpCookie:
		wrong := func(a *networking.LoadBalancerSettings_ConsistentHashLB_HTTPCookie_Attribute) bool {
			return a.GetName() == "" || cookiePart(a.GetName()+a.GetValue()) != nil
		}
		c := k.HttpCookie
		return cookieName(c.GetName()) == nil && cookiePart(c.GetPath()) == nil && !slices.ContainsFunc(c.GetAttributes(), wrong)
	}
	return false
}

// maglev checks the size of the table: 0 is the default, 65537.
func (c *collector) maglev(size uint64, at string) {
	if size != 0 {
		c.must(at, TableSize(size))
	}
}

// TableSize is why no table of Maglev can have the size.
func TableSize(n uint64) error {
	const least, most = 3, 5_000_011
	switch {
	case n < least:
		return fmt.Errorf("%d is less than %d", n, least)
	case n > most:
		return fmt.Errorf("%d is more than %d", n, most)
	case !new(big.Int).SetUint64(n).ProbablyPrime(0):
		return fmt.Errorf("%d is not a prime number", n)
	}
	return nil
}

func (c *collector) locality(l *networking.LocalityLoadBalancerSetting, outlier bool, at string) {
	if l == nil {
		return
	}
	if len(l.GetDistribute()) > 0 && (len(l.GetFailover()) > 0 || len(l.GetFailoverPriority()) > 0) {
		c.add(Error, at+".distribute", "excludes failover and failoverPriority")
	}
	var from []string
	for i, d := range l.GetDistribute() {
		at := at + indexed(".distribute", i)
		c.localityName(d.GetFrom(), at+".from")
		from = append(from, d.GetFrom())
		var sum uint64
		shares := sortedKeys(d.GetTo())
		for _, to := range shares {
			c.localityName(to, at+".to."+to)
			sum += uint64(d.GetTo()[to])
		}
		c.partsOf(shares, func(i int) string { return at + ".to." + shares[i] })
		if sum != 100 {
			c.add(Error, at+".to", "the sum of the weights is %d, and must be 100", sum)
		}
	}
	c.unique(from, at+".distribute", "locality")
	c.partsOf(from, func(i int) string { return at + indexed(".distribute", i) + ".from" })
	for i, f := range l.GetFailover() {
		at := at + indexed(".failover", i)
		for name, v := range map[string]string{"from": f.GetFrom(), "to": f.GetTo()} {
			if v == "" || strings.ContainsAny(v, "/*") {
				c.add(Error, at+"."+name, "%q is not a region", v)
			}
		}
		if f.GetFrom() == f.GetTo() {
			c.add(Error, at+".to", "is the region that failed")
		}
	}
	for i, key := range l.GetFailoverPriority() {
		name, _, _ := strings.Cut(key, "=")
		if m := validation.IsQualifiedName(name); len(m) > 0 {
			c.add(Error, at+indexed(".failoverPriority", i), "%q is not the name of a label: %s", name, m[0])
		}
		if strings.HasPrefix(name, "topology.") && len(l.GetFailover()) > 0 {
			c.add(Error, at+indexed(".failoverPriority", i), "%q excludes failover, which says the same of localities", name)
		}
	}
	if (len(l.GetFailover()) > 0 || len(l.GetFailoverPriority()) > 0) && !outlier {
		c.add(Warning, at, "failover needs outlierDetection beside loadBalancer: nothing else finds out that endpoints fail")
	}
}

// partsOf reports localities that are a part of another one of the list; at is where the i-th stands.
func (c *collector) partsOf(list []string, at func(i int) string) {
	known := map[string]map[string]bool{} // without "*" → as they are written: "a" and "a/*" are one
	for _, wide := range list {
		key := strings.TrimSuffix(strings.TrimSuffix(wide, "*"), "/")
		if known[key] == nil {
			known[key] = map[string]bool{}
		}
		known[key][wide] = true
	}
	for j, narrow := range list {
		for _, part := range wider(narrow) {
			for _, wide := range sortedKeys(known[part]) {
				if wide != narrow {
					c.add(Error, at(j), "%q is a part of %q, which stands beside it", narrow, wide)
				}
			}
		}
	}
}

// wider lists what a locality is a part of: everything, "a", "a/b" and "a/b/c" for "a/b/c" and for "a/b/c/*".
func wider(locality string) []string {
	out, end := []string{""}, 0
	for range 3 { // there are no more parts
		i := strings.IndexByte(locality[end:], '/')
		if i < 0 {
			break
		}
		out = append(out, locality[:end+i])
		end += i + 1
	}
	if locality = strings.TrimSuffix(locality, "/*"); locality != out[len(out)-1] {
		out = append(out, locality)
	}
	return out
}

func (c *collector) localityName(text, field string) {
	parts := strings.Split(text, "/")
	star := slices.IndexFunc(parts, func(p string) bool { return strings.Contains(p, "*") })
	if text == "" || len(parts) > 3 || slices.Contains(parts, "") || (star >= 0 && (parts[star] != "*" || star != len(parts)-1)) {
		c.add(Error, field, "%q is not REGION, REGION/ZONE or REGION/ZONE/SUBZONE, where the last may be *", text)
	}
}

func (c *collector) clientTLS(t *networking.ClientTLSSettings, at string) {
	if t == nil {
		return
	}
	c.must(at+".credentialName", noBlank(t.GetCredentialName()))
	files := map[string]string{"clientCertificate": t.GetClientCertificate(), "privateKey": t.GetPrivateKey(), "caCertificates": t.GetCaCertificates()}
	switch t.GetMode() {
	case networking.ClientTLSSettings_MUTUAL:
		if t.GetCredentialName() == "" {
			for _, f := range []string{"clientCertificate", "privateKey"} {
				if files[f] == "" {
					c.add(Error, at+"."+f, "is required with mode MUTUAL, or credentialName")
				}
			}
		}
	case networking.ClientTLSSettings_ISTIO_MUTUAL:
		for _, f := range sortedKeys(files) {
			if files[f] != "" {
				c.add(Error, at+"."+f, "has no meaning with mode ISTIO_MUTUAL, which uses the certificates of the mesh")
			}
		}
		if t.GetCredentialName() != "" {
			c.add(Error, at+".credentialName", "has no meaning with mode ISTIO_MUTUAL, which uses the certificates of the mesh")
		}
	case networking.ClientTLSSettings_SIMPLE:
		if t.GetCaCertificates() == "" && t.GetCredentialName() == "" && !t.GetInsecureSkipVerify().GetValue() {
			c.add(Info, at+".caCertificates", "is not set: the server is verified with the roots of the system")
			c.code(CodeUnverified)
			if strings.Contains(at, "portLevelSettings") {
				c.code(CodeUnverifiedPort)
			}
		}
		for _, f := range []string{"clientCertificate", "privateKey"} {
			if files[f] != "" {
				c.add(Warning, at+"."+f, "has no meaning with mode SIMPLE, in which clients show no certificate")
				c.hint("did you mean MUTUAL?")
			}
		}
	}
	if t.GetCredentialName() != "" && (files["clientCertificate"] != "" || files["privateKey"] != "" || files["caCertificates"] != "") {
		c.add(Error, at+".credentialName", "excludes clientCertificate, privateKey and caCertificates")
	}
	c.must(at+".sni", noBlank(t.GetSni()))
	if t.GetSni() != "" && t.GetMode() == networking.ClientTLSSettings_DISABLE {
		c.add(Warning, at+".sni", "has no meaning with mode DISABLE")
	}
	for i, s := range t.GetSubjectAltNames() {
		c.must(at+indexed(".subjectAltNames", i), noBlank(s))
	}
}
