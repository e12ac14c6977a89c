package policy

import (
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/client"
)

const tlsSocket = "envoy.transport_sockets.tls"

// credentialPrefix begins the name of a credential of the caller's namespace.
const credentialPrefix = "kubernetes://"

// transportSocket is the TLS that the caller originates itself, by SIMPLE and MUTUAL; nil for none. What the mesh does of its own
// accord, and by ISTIO_MUTUAL, is PathFor's to say.
func transportSocket(tls *settings.ClientTls, svc *client.Service) *corev3.TransportSocket {
	if m := tls.GetMode(); m != settings.ClientTls_MODE_SIMPLE && m != settings.ClientTls_MODE_MUTUAL {
		return nil
	}
	common := &tlsv3.CommonTlsContext{}
	validation := &tlsv3.CertificateValidationContext{}
	names := tls.GetSubjectAltNames()
	if len(names) == 0 {
		names = svc.GetSubjectAltNames()
	}
	for _, n := range names {
		kind := tlsv3.SubjectAltNameMatcher_DNS
		if strings.Contains(n, "://") {
			kind = tlsv3.SubjectAltNameMatcher_URI
		}
		validation.MatchTypedSubjectAltNames = append(validation.MatchTypedSubjectAltNames, &tlsv3.SubjectAltNameMatcher{SanType: kind,
			Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: n}}})
	}
	if tls.GetCaCrl() != "" {
		validation.Crl = file(tls.GetCaCrl())
	}
	roots := ""
	switch {
	case tls.GetCredentialName() != "":
		roots = credentialPrefix + tls.GetCredentialName() + "-cacert"
	case tls.GetCaCertificates() != "":
		validation.TrustedCa = file(tls.GetCaCertificates())
	case !tls.GetInsecureSkipVerify():
		validation.SystemRootCerts = &tlsv3.CertificateValidationContext_SystemRootCerts{}
	}
	if tls.GetInsecureSkipVerify() {
		roots, validation.MatchTypedSubjectAltNames = "", nil
	}
	if roots != "" {
		common.ValidationContextType = &tlsv3.CommonTlsContext_CombinedValidationContext{CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
			DefaultValidationContext: validation, ValidationContextSdsSecretConfig: secret(roots)}}
	} else {
		common.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: validation}
	}
	if tls.GetMode() == settings.ClientTls_MODE_MUTUAL {
		if tls.GetCredentialName() != "" {
			common.TlsCertificateSdsSecretConfigs = []*tlsv3.SdsSecretConfig{secret(credentialPrefix + tls.GetCredentialName())}
		} else {
			common.TlsCertificates = []*tlsv3.TlsCertificate{{CertificateChain: file(tls.GetClientCertificate()), PrivateKey: file(tls.GetPrivateKey())}}
		}
	}
	packed, err := anypb.New(&tlsv3.UpstreamTlsContext{CommonTlsContext: common, Sni: tls.GetSni(), AutoHostSni: tls.GetSni() == ""})
	if err != nil {
		panic("pack TLS: " + err.Error()) // it is made here, of valid texts
	}
	return &corev3.TransportSocket{Name: tlsSocket, ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: packed}}
}

func file(name string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: name}}
}

func secret(name string) *tlsv3.SdsSecretConfig {
	return &tlsv3.SdsSecretConfig{Name: name, SdsConfig: &corev3.ConfigSource{ResourceApiVersion: corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}}}
}
