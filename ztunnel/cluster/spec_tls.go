package cluster

import (
	"encoding/hex"
	"fmt"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	introv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/proxy_protocol/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// TLS is how TLS is originated to the endpoints of a cluster.
type TLS struct {
	SNI      string
	AutoSNI  bool // without an SNI: the endpoint's host name
	ALPN     []string
	Min, Max uint16 // versions as in crypto/tls; 0: the default
	Ciphers  []string

	// Secret names the client's certificate where it is kept elsewhere (SDS); else Certificate and Key say where it is.
	Secret           string
	Certificate, Key Data

	// RootsSecret names the roots where they are kept elsewhere (SDS); else Roots is where they are, or SystemRoots. Without
	// any of them the server's certificate is not verified, as in Envoy.
	RootsSecret   string
	Roots         Data
	SystemRoots   bool
	Names         []NameMatch // the server's certificate must have one of them; none: any name
	SPKI          []string    // base64 of SHA-256; one of them or of Hashes, when there are any
	Hashes        [][]byte    // SHA-256 of the certificate
	CRL           Data
	AcceptAnyRoot bool // trust_chain_verification ACCEPT_UNTRUSTED
}

// Data is a file's name, or what it would hold; zero: nothing.
type Data struct {
	File   string
	Inline []byte
}

// IsZero reports whether there is nothing.
func (d Data) IsZero() bool { return d.File == "" && d.Inline == nil }

// NameMatch matches a subject alternative name.
type NameMatch struct {
	Kind   NameKind
	String *matcherv3.StringMatcher
}

// NameKind is the kind of a subject alternative name.
type NameKind uint8

// The kinds of names; AnyName matches in every kind.
const (
	AnyName NameKind = iota
	DNSName
	URIName
	EmailName
	IPName
)

const maxTLSVersion = 0x0304

// socket reads what goes before the bytes of a connection: TLS, nil for none, and the version of the PROXY protocol, 0 for none.
func (p *parser) socket(s *corev3.TransportSocket) (*TLS, uint32) {
	if s.GetName() != "envoy.transport_sockets.upstream_proxy_protocol" {
		return p.tls(s), 0
	}
	const field = "transport_socket"
	u := &introv3.ProxyProtocolUpstreamTransport{}
	if s.GetTypedConfig() == nil {
		p.fail(field, "%q has no typed_config", s.GetName())
	} else if err := s.GetTypedConfig().UnmarshalTo(u); err != nil {
		p.fail(field, "%v", err)
	}
	p.supported(field+".", u, map[protoreflect.Name]bool{"allow_unspecified_address": true, "tlv_as_pool_key": true})
	if c := u.GetConfig(); c != nil {
		p.supported(field+".config.", c, map[protoreflect.Name]bool{"pass_through_tlvs": true, "added_tlvs": true})
	}
	version := u.GetConfig().GetVersion()
	if _, known := corev3.ProxyProtocolConfig_Version_name[int32(version)]; !known {
		p.fail(field+".config.version", "is not known: %d", version)
		return nil, 0
	}
	return p.tls(u.GetTransportSocket()), uint32(version) + 1 // V1 is 0
}

func (p *parser) tls(s *corev3.TransportSocket) *TLS {
	if s == nil || s.GetName() == "envoy.transport_sockets.raw_buffer" {
		return nil
	}
	const field = "transport_socket"
	u := &tlsv3.UpstreamTlsContext{}
	if s.GetTypedConfig() == nil {
		p.fail(field, "%q has no typed_config", s.GetName())
		return nil
	}
	if err := s.GetTypedConfig().UnmarshalTo(u); err != nil {
		p.fail(field, "%v", err)
		return nil
	}
	p.supported(field+".", u, map[protoreflect.Name]bool{"allow_renegotiation": true, "enforce_rsa_key_usage": true})
	c := u.GetCommonTlsContext()
	t := &TLS{SNI: u.GetSni(), AutoSNI: u.GetAutoHostSni(), ALPN: c.GetAlpnProtocols()}
	const common = field + ".common_tls_context."
	if c != nil {
		p.supported(common, c, map[protoreflect.Name]bool{
			"tls_certificate_provider_instance": true, "custom_tls_certificate_selector": true, "custom_handshaker": true,
			"tls_certificate_certificate_provider": true, "tls_certificate_certificate_provider_instance": true, "key_log": true,
			"validation_context_certificate_provider": true, "validation_context_certificate_provider_instance": true,
		})
	}
	p.tlsParams(common+"tls_params", c.GetTlsParams(), t)
	p.tlsCertificate(common, c, t)
	switch v := c.GetValidationContextType().(type) {
	case *tlsv3.CommonTlsContext_ValidationContext:
		p.validation(common+"validation_context", v.ValidationContext, t, false)
	case *tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig:
		t.RootsSecret = v.ValidationContextSdsSecretConfig.GetName()
	case *tlsv3.CommonTlsContext_CombinedValidationContext:
		p.validation(common+"combined_validation_context.default_validation_context", v.CombinedValidationContext.GetDefaultValidationContext(), t, true)
		t.RootsSecret = v.CombinedValidationContext.GetValidationContextSdsSecretConfig().GetName()
	}
	if u.GetAutoSniSanValidation() {
		p.fail(field+".auto_sni_san_validation", "is not supported")
	}
	return t
}

func (p *parser) tlsParams(field string, o *tlsv3.TlsParameters, t *TLS) {
	if o == nil {
		return
	}
	p.supported(field+".", o, map[protoreflect.Name]bool{"signature_algorithms": true, "compliance_policies": true})
	version := func(v tlsv3.TlsParameters_TlsProtocol) uint16 {
		if v == tlsv3.TlsParameters_TLS_AUTO {
			return 0
		}
		return maxTLSVersion - 4 + uint16(v) // TLSv1_0 is 1
	}
	t.Min, t.Max, t.Ciphers = version(o.GetTlsMinimumProtocolVersion()), version(o.GetTlsMaximumProtocolVersion()), o.GetCipherSuites()
	if t.Min > maxTLSVersion || t.Max > maxTLSVersion || t.Max != 0 && t.Min > t.Max {
		p.fail(field, "the range of versions is empty or not known")
	}
}

func (p *parser) tlsCertificate(field string, c *tlsv3.CommonTlsContext, t *TLS) {
	switch {
	case len(c.GetTlsCertificates())+len(c.GetTlsCertificateSdsSecretConfigs()) > 1:
		p.fail(field+"tls_certificates", "more than one certificate is not supported")
	case len(c.GetTlsCertificateSdsSecretConfigs()) == 1:
		if t.Secret = c.GetTlsCertificateSdsSecretConfigs()[0].GetName(); t.Secret == "" {
			p.fail(field+"tls_certificate_sds_secret_configs", "has no name")
		}
	case len(c.GetTlsCertificates()) == 1:
		f, x := field+"tls_certificates[0]", c.GetTlsCertificates()[0]
		p.supported(f+".", x, map[protoreflect.Name]bool{
			"pkcs12": true, "private_key_provider": true, "password": true, "ocsp_staple": true, "signed_certificate_timestamp": true,
		})
		t.Certificate, t.Key = p.data(f+".certificate_chain", x.GetCertificateChain()), p.data(f+".private_key", x.GetPrivateKey())
		if t.Certificate.IsZero() || t.Key.IsZero() {
			p.fail(f, "needs certificate_chain and private_key")
		}
	}
}

func (p *parser) validation(field string, v *tlsv3.CertificateValidationContext, t *TLS, combined bool) {
	if v == nil {
		return
	}
	p.supported(field+".", v, map[protoreflect.Name]bool{
		"ca_certificate_provider_instance": true, "require_signed_certificate_timestamp": true, "allow_expired_certificate": true,
		"custom_validator_config": true, "only_verify_leaf_cert_crl": true, "max_verify_depth": true,
	})
	t.Roots, t.CRL = p.data(field+".trusted_ca", v.GetTrustedCa()), p.data(field+".crl", v.GetCrl())
	t.SystemRoots = v.GetSystemRootCerts() != nil
	t.SPKI = v.GetVerifyCertificateSpki()
	t.AcceptAnyRoot = v.GetTrustChainVerification() == tlsv3.CertificateValidationContext_ACCEPT_UNTRUSTED
	for _, s := range v.GetVerifyCertificateHash() {
		h, err := hex.DecodeString(strings.ReplaceAll(s, ":", ""))
		if err != nil || len(h) != 32 {
			p.fail(field+".verify_certificate_hash", "%q is not a SHA-256", s)
		}
		t.Hashes = append(t.Hashes, h)
	}
	for i, m := range v.GetMatchTypedSubjectAltNames() {
		kind, ok := map[tlsv3.SubjectAltNameMatcher_SanType]NameKind{
			tlsv3.SubjectAltNameMatcher_DNS: DNSName, tlsv3.SubjectAltNameMatcher_URI: URIName,
			tlsv3.SubjectAltNameMatcher_EMAIL: EmailName, tlsv3.SubjectAltNameMatcher_IP_ADDRESS: IPName,
		}[m.GetSanType()]
		if !ok || m.GetMatcher().GetMatchPattern() == nil {
			p.fail(fmt.Sprintf("%s.match_typed_subject_alt_names[%d]", field, i), "its san_type or matcher is not supported")
		}
		t.Names = append(t.Names, NameMatch{kind, m.GetMatcher()})
	}
	for i, m := range v.GetMatchSubjectAltNames() {
		if m.GetMatchPattern() == nil {
			p.fail(fmt.Sprintf("%s.match_subject_alt_names[%d]", field, i), "has no pattern")
		}
		t.Names = append(t.Names, NameMatch{AnyName, m})
	}
	if len(t.Names) > 0 && t.Roots.IsZero() && !t.SystemRoots && !combined {
		p.fail(field, "names are checked only in a certificate that is verified: trusted_ca or system_root_certs is needed")
	}
}

func (p *parser) data(field string, d *corev3.DataSource) Data {
	switch s := d.GetSpecifier().(type) {
	case nil:
		return Data{}
	case *corev3.DataSource_Filename:
		return Data{File: s.Filename}
	case *corev3.DataSource_InlineBytes:
		return Data{Inline: append([]byte{}, s.InlineBytes...)}
	case *corev3.DataSource_InlineString:
		return Data{Inline: []byte(s.InlineString)}
	}
	p.fail(field, "is neither a file nor inline")
	return Data{}
}
