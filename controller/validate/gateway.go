package validate

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	"k8s.io/apimachinery/pkg/util/validation"
)

// protocols are the words that a port of Gateway, ServiceEntry and Sidecar may have. Case does not count.
var protocols = []string{"HTTP", "HTTPS", "HTTP2", "GRPC", "GRPC-WEB", "TCP", "TLS", "MONGO", "MYSQL", "REDIS", "UDP"}

func (c *collector) protocol(text, field string) {
	if text == "" || slices.Contains(protocols, strings.ToUpper(text)) {
		return // required is said elsewhere
	}
	c.oneOf(Error, text, protocols, field)
}

func gatewayRules(c *collector, spec *networking.Gateway) {
	if len(spec.GetServers()) == 0 {
		c.add(Error, "spec.servers", "is required: without servers nothing is listened to")
	}
	if len(spec.GetSelector()) == 0 {
		c.add(Warning, "spec.selector", "is empty: every gateway would serve it")
	}
	c.selector(spec.GetSelector(), "spec.selector")
	type socket struct {
		number uint32
		bind   string
	}
	type site struct {
		socket
		host string
	}
	first, names, sites := map[socket]int{}, map[string]int{}, map[site]int{}
	for i, s := range spec.GetServers() {
		at := indexed("spec.servers", i)
		for j, h := range s.GetHosts() {
			c.must(at+indexed(".hosts", j), scopedHost(h))
		}
		c.unique(s.GetHosts(), at+".hosts", "host")
		c.bound(s.GetBind(), at+".bind")
		p := s.GetPort()
		if p == nil {
			continue // the walker has said that it is required
		}
		c.serverPort(p, at+".port")
		c.serverTLS(s, at)
		here := socket{p.GetNumber(), s.GetBind()}
		for k, h := range s.GetHosts() {
			if j, ok := sites[site{here, strings.ToLower(h)}]; ok && j != i {
				c.add(Error, at+indexed(".hosts", k), "%s has %q on port %d already", indexed("spec.servers", j), h, here.number)
			}
			sites[site{here, strings.ToLower(h)}] = i
		}
		if j, ok := first[here]; ok {
			if a := spec.GetServers()[j]; secured(a) != secured(s) {
				c.add(Error, at+".port.protocol", "%s listens on port %d with %s, which cannot share it with %s",
					indexed("spec.servers", j), here.number, a.GetPort().GetProtocol(), p.GetProtocol())
			}
		} else {
			first[here] = i
		}
		if j, ok := names[p.GetName()]; ok && p.GetName() != "" {
			c.add(Error, at+".port.name", "%s has the port name %q already", indexed("spec.servers", j), p.GetName())
		}
		names[p.GetName()] = i
	}
}

func (c *collector) serverPort(p *networking.Port, at string) {
	c.port(p.GetNumber(), at+".number")
	c.protocol(p.GetProtocol(), at+".protocol")
	if p.GetName() == "" {
		c.add(Error, at+".name", "is required")
	}
}

// address checks one IP address.
func address(text string) error {
	if a, err := netip.ParseAddr(text); err != nil || a.Zone() != "" {
		return fmt.Errorf("%q is not an IP address", text)
	}
	return nil
}

// secured says whether clients of the server speak TLS.
func secured(s *networking.Server) bool {
	p := strings.ToUpper(s.GetPort().GetProtocol())
	return p == "HTTPS" || p == "TLS" || (s.GetTls() != nil && !s.GetTls().GetHttpsRedirect())
}

// certified says whether certificates are named.
func certified(t *networking.ServerTLSSettings) bool {
	return len(t.GetCredentialNames())+len(t.GetTlsCertificates()) > 0 ||
		t.GetCredentialName()+t.GetServerCertificate()+t.GetPrivateKey()+t.GetCaCertificates()+t.GetCaCertCredentialName()+t.GetCaCrl() != ""
}

// suites are the names of the suites of TLS 1.2 that Envoy has. Those of TLS 1.3 are not chosen.
var suites = []string{"ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384",
	"ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-RSA-CHACHA20-POLY1305", "ECDHE-PSK-CHACHA20-POLY1305", "ECDHE-ECDSA-AES128-SHA", "ECDHE-RSA-AES128-SHA",
	"ECDHE-PSK-AES128-CBC-SHA", "ECDHE-ECDSA-AES256-SHA", "ECDHE-RSA-AES256-SHA", "ECDHE-PSK-AES256-CBC-SHA", "AES128-GCM-SHA256", "AES256-GCM-SHA384",
	"AES128-SHA", "AES256-SHA", "PSK-AES128-CBC-SHA", "PSK-AES256-CBC-SHA", "DES-CBC3-SHA"}

// cipherSuites warns of suites that nobody has. Several of equal rank may stand as [A|B].
func (c *collector) cipherSuites(list []string, at string) {
	seen := map[string]bool{}
	for i, s := range list {
		for name := range strings.SplitSeq(strings.Trim(s, "[]"), "|") {
			if !slices.Contains(suites, name) {
				c.add(Warning, indexed(at, i), "%q is not a cipher suite: it is left out", name)
				c.suggest(name, suites)
			}
		}
		if seen[s] {
			c.add(Warning, indexed(at, i), "%q stands there already", s)
		}
		seen[s] = true
	}
}

// digest checks a SHA-256 sum in hexadecimal digits, with colons or without.
func digest(text string) error {
	if sum, err := hex.DecodeString(strings.ReplaceAll(text, ":", "")); err != nil || len(sum) != 32 {
		return fmt.Errorf("%q is not a SHA-256 sum in hexadecimal digits", text)
	}
	return nil
}

// scopedHost checks [NAMESPACE/]HOST, where the namespace may be "." or "*".
func scopedHost(text string) error {
	ns, host, found := strings.Cut(text, "/")
	if !found {
		return Host(text, true)
	}
	if ns != "." && ns != "*" && len(validation.IsDNS1123Label(ns)) > 0 {
		return fmt.Errorf("%q: %q is not a namespace, \".\" or \"*\"", text, ns)
	}
	return Host(host, true)
}

func (c *collector) serverTLS(s *networking.Server, at string) {
	t, protocol := s.GetTls(), strings.ToUpper(s.GetPort().GetProtocol())
	tls := protocol == "HTTPS" || protocol == "TLS"
	switch {
	case t == nil && tls:
		c.add(Error, at+".tls", "is required for the protocol %s", protocol)
		return
	case t == nil:
		return
	case !tls && (protocol == "HTTP" || protocol == "HTTP2" || protocol == "GRPC") && (t.GetMode() != 0 || certified(t)):
		c.add(Error, at+".tls", "has no meaning with the protocol %s, except httpsRedirect", protocol)
		c.hint("is the protocol HTTPS?")
	case tls && t.GetHttpsRedirect():
		c.add(Error, at+".tls.httpsRedirect", "is for the protocol HTTP only: it would redirect for ever")
	}
	c.serverCertificates(t, tls, at+".tls")
	for i, n := range t.GetSubjectAltNames() {
		c.must(at+indexed(".tls.subjectAltNames", i), noBlank(n))
	}
	c.cipherSuites(t.GetCipherSuites(), at+".tls.cipherSuites")
	if v := t.GetMinProtocolVersion(); (v == networking.ServerTLSSettings_TLSV1_0 || v == networking.ServerTLSSettings_TLSV1_1) && len(t.GetCipherSuites()) == 0 {
		c.add(Warning, at+".tls.minProtocolVersion", "is below TLS 1.2, whose suites are the only ones that are offered")
		c.hint("add cipherSuites that older clients have")
	}
	c.each(t.GetVerifyCertificateHash(), at+".tls.verifyCertificateHash", digest)
	if low, high := t.GetMinProtocolVersion(), t.GetMaxProtocolVersion(); high != 0 && low > high {
		c.add(Error, at+".tls.minProtocolVersion", "%s is above maxProtocolVersion %s", low, high)
	}
}

func (c *collector) serverCertificates(t *networking.ServerTLSSettings, tls bool, at string) {
	c.must(at+".credentialName", noBlank(t.GetCredentialName()))
	c.each(t.GetCredentialNames(), at+".credentialNames", noBlank)
	secret := t.GetCredentialName() != "" || len(t.GetCredentialNames()) > 0
	files := t.GetServerCertificate() != "" || t.GetPrivateKey() != "" || len(t.GetTlsCertificates()) > 0
	switch mode := t.GetMode(); mode {
	case networking.ServerTLSSettings_SIMPLE, networking.ServerTLSSettings_MUTUAL, networking.ServerTLSSettings_OPTIONAL_MUTUAL:
		switch {
		case secret && files:
			c.add(Error, at+".credentialName", "excludes serverCertificate and privateKey")
		case secret:
		case !files:
			c.add(Error, at+".credentialName", "or serverCertificate with privateKey is required with mode %s", mode)
		case len(t.GetTlsCertificates()) == 0 && t.GetServerCertificate() == "":
			c.add(Error, at+".serverCertificate", "is required with privateKey")
		case len(t.GetTlsCertificates()) == 0 && t.GetPrivateKey() == "":
			c.add(Error, at+".privateKey", "is required with serverCertificate")
		}
		if mode == networking.ServerTLSSettings_MUTUAL && files && t.GetCaCertificates() == "" && t.GetCaCertCredentialName() == "" {
			c.add(Error, at+".caCertificates", "is required with mode MUTUAL")
		}
	case networking.ServerTLSSettings_PASSTHROUGH, networking.ServerTLSSettings_AUTO_PASSTHROUGH:
		if tls && certified(t) {
			c.add(Warning, at+".mode", "is %s: the certificates here are not used", mode)
			c.hint("did you mean SIMPLE?")
		}
	case networking.ServerTLSSettings_ISTIO_MUTUAL:
		if secret || files || t.GetCaCertificates() != "" {
			c.add(Error, at+".mode", "ISTIO_MUTUAL uses the certificates of the mesh: no other may be named")
		}
	}
}
