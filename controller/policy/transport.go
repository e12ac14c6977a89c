package policy

import (
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	introv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/proxy_protocol/v3"
	rawv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/client"
)

const (
	tlsSocket   = "envoy.transport_sockets.tls"
	plainSocket = "envoy.transport_sockets.raw_buffer"
	introSocket = "envoy.transport_sockets.upstream_proxy_protocol"
)

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
	packed := pack(&tlsv3.UpstreamTlsContext{CommonTlsContext: common, Sni: tls.GetSni(), AutoHostSni: tls.GetSni() == ""})
	return &corev3.TransportSocket{Name: tlsSocket, ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: packed}}
}

// introduced begins connections with the header of a version of the PROXY protocol, 0 for none, before what socket does.
func introduced(version uint32, socket *corev3.TransportSocket) *corev3.TransportSocket {
	if version == 0 {
		return socket
	}
	if socket == nil {
		socket = &corev3.TransportSocket{Name: plainSocket, ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(&rawv3.RawBuffer{})}}
	}
	return &corev3.TransportSocket{Name: introSocket, ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(&introv3.ProxyProtocolUpstreamTransport{
		Config: &corev3.ProxyProtocolConfig{Version: corev3.ProxyProtocolConfig_Version(version - 1)}, TransportSocket: socket})}}
}

// pack packs what is made here, of valid texts.
func pack(m proto.Message) *anypb.Any {
	out, err := anypb.New(m)
	if err != nil {
		panic("pack transport socket: " + err.Error())
	}
	return out
}

func file(name string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: name}}
}

func secret(name string) *tlsv3.SdsSecretConfig {
	return &tlsv3.SdsSecretConfig{Name: name, SdsConfig: &corev3.ConfigSource{ResourceApiVersion: corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}}}
}
