package proxy

import (
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"

	"github.com/undermesh/undermesh/ztunnel/http"
)

// spoken is what a mesh says of the fields that requests get.
type spoken struct {
	from    *meshv1alpha1.ProxyConfig
	headers http.Headers
}

// headers are the fields that requests get by now; nil: those that are set where nobody says anything.
func (p *Proxy) headers() *http.Headers {
	snap := p.cfg.Snapshot()
	if snap == nil {
		return nil
	}
	from := snap.DefaultConfig()
	if t := p.spoken.Load(); t != nil && t.from == from {
		return &t.headers
	}
	t := &spoken{from, headersOf(from.GetProxyHeaders())}
	p.spoken.Store(t)
	return &t.headers
}

func headersOf(in *meshv1alpha1.ProxyConfig_ProxyHeaders) http.Headers {
	out := http.Headers{
		NoRequestID: in.GetRequestId().GetDisabled().GetValue(), NoDebug: in.GetEnvoyDebugHeaders().GetDisabled().GetValue(),
		NoServer: in.GetServer().GetDisabled().GetValue(), Server: in.GetServer().GetValue(),
		ForwardedPort: in.GetXForwardedPort().GetEnabled().GetValue(),
	}
	switch in.GetForwardedClientCert() {
	case meshv1alpha1.ForwardClientCertDetails_SANITIZE:
		out.ClientCert = http.CertNone
	case meshv1alpha1.ForwardClientCertDetails_FORWARD_ONLY:
		out.ClientCert = http.CertForward
	case meshv1alpha1.ForwardClientCertDetails_APPEND_FORWARD:
		out.ClientCert = http.CertAppend
	case meshv1alpha1.ForwardClientCertDetails_ALWAYS_FORWARD_ONLY:
		out.ClientCert = http.CertAlways
	}
	details := in.GetSetCurrentClientCertDetails()
	if v := details.GetSubject(); v != nil && !v.GetValue() {
		out.Without |= http.CertSubject
	}
	if v := details.GetUri(); v != nil && !v.GetValue() {
		out.Without |= http.CertURI
	}
	return out
}
