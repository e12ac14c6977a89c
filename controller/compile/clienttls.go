package compile

import (
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/undermesh/undermesh/controller/api/credential"
	"github.com/undermesh/undermesh/controller/api/settings"
)

// ClientTLS compiles what a DestinationRule that counts for a client says of TLS to its host: nil when it says nothing, so
// that mutual TLS stays automatic (MT-07, MT-13, MT-28). A port's settings replace those of its level as a whole, and a
// subset's those of the host.
func ClientTLS(rule *networking.DestinationRule) *settings.ClientTlsPolicy {
	out := clientLevel(rule.GetTrafficPolicy())
	for _, s := range rule.GetSubsets() {
		level := clientLevel(s.GetTrafficPolicy())
		if _, twice := out.GetSubsets()[s.GetName()]; level == nil || twice {
			continue
		}
		if out == nil {
			out = &settings.ClientTlsPolicy{}
		}
		if out.Subsets == nil {
			out.Subsets = map[string]*settings.ClientTlsPolicy{}
		}
		out.Subsets[s.GetName()] = level
	}
	return out
}

func clientLevel(p *networking.TrafficPolicy) *settings.ClientTlsPolicy {
	out := &settings.ClientTlsPolicy{Host: clientTLS(p.GetTls())}
	for _, port := range p.GetPortLevelSettings() {
		if out.Ports == nil {
			out.Ports = map[uint32]*settings.ClientTls{}
		}
		tls := clientTLS(port.GetTls())
		if tls == nil { // the port's settings count whole: what they do not say is the default, not the level's
			tls = &settings.ClientTls{}
		}
		if n := port.GetPort().GetNumber(); n != 0 {
			out.Ports[n] = tls
		}
	}
	if out.Host == nil && len(out.Ports) == 0 {
		return nil
	}
	return out
}

func clientTLS(in *networking.ClientTLSSettings) *settings.ClientTls {
	if in == nil {
		return nil
	}
	out := &settings.ClientTls{ClientCertificate: in.GetClientCertificate(), PrivateKey: in.GetPrivateKey(),
		CaCertificates: in.GetCaCertificates(), CaCrl: in.GetCaCrl(), CredentialName: in.GetCredentialName(),
		SubjectAltNames: in.GetSubjectAltNames(), Sni: in.GetSni(), InsecureSkipVerify: in.GetInsecureSkipVerify().GetValue()}
	switch in.GetMode() {
	case networking.ClientTLSSettings_DISABLE:
		out.Mode = settings.ClientTls_MODE_DISABLE
	case networking.ClientTLSSettings_SIMPLE:
		out.Mode = settings.ClientTls_MODE_SIMPLE
	case networking.ClientTLSSettings_MUTUAL:
		out.Mode = settings.ClientTls_MODE_MUTUAL
	case networking.ClientTLSSettings_ISTIO_MUTUAL:
		out.Mode = settings.ClientTls_MODE_ISTIO_MUTUAL
	}
	return out
}

// Credentials returns the Secrets that a rule gives to the workloads that it selects, each once; none for a rule without a
// workloadSelector, which gives them to nobody.
func Credentials(rule *networkingv1.DestinationRule) []credential.Ref {
	if len(rule.Spec.GetWorkloadSelector().GetMatchLabels()) == 0 {
		return nil
	}
	var out []credential.Ref
	note := func(t *settings.ClientTls) {
		if ref, ok, err := credential.Of(rule.Namespace, t); ok && err == nil && !slices.Contains(out, ref) {
			out = append(out, ref)
		}
	}
	level := func(p *settings.ClientTlsPolicy) {
		note(p.GetHost())
		for _, t := range p.GetPorts() {
			note(t)
		}
	}
	all := ClientTLS(&rule.Spec)
	level(all)
	for _, p := range all.GetSubsets() {
		level(p)
	}
	slices.SortFunc(out, func(a, b credential.Ref) int { return strings.Compare(a.String(), b.String()) })
	return out
}
