package compile

import (
	"math"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/model"
)

// meshSettings is the one resource of the mesh as a whole.
func (c *Compiler) meshSettings() Resource {
	m := c.reg.Mesh()
	s := &settings.MeshSettings{TrustDomain: m.TrustDomain, TrustDomainAliases: m.TrustDomainAliases,
		RootNamespace: m.RootNamespace, ClusterDomain: c.cfg.ClusterDomain, Generation: c.generation,
		WorkloadCertTtl: durationpb.New(c.cfg.CertTTL)}
	if m.RegistryOnly {
		s.OutboundPolicy = settings.OutboundPolicy_REGISTRY_ONLY
	}
	s.CallDefaults = callDefaultsOf(m.Config)
	s.Tracing = tracingOf(m)
	if m.Config != nil {
		configured(s, m)
	}
	return Resource{Type: api.MeshSettingsType, Name: api.MeshSettingsName, Message: s}
}

// sampling is how many of 10,000 requests are sampled where MeshConfig does not say (TT-03).
const sampling = 100

// tracingOf returns nil where nothing is traced.
func tracingOf(m model.Mesh) *settings.Tracing {
	if m.Untraced {
		return nil
	}
	if m.SamplingGiven {
		return &settings.Tracing{Sampling: uint32(math.Round(100 * m.Config.GetDefaultConfig().GetTracing().GetSampling()))}
	}
	return &settings.Tracing{Sampling: sampling}
}

// configured fills in what the mesh's ConfigMap says beyond identity and policy.
func configured(s *settings.MeshSettings, m model.Mesh) {
	in := m.Config
	s.AccessLog = &settings.AccessLog{File: in.GetAccessLogFile(), Format: in.GetAccessLogFormat()}
	switch {
	case !m.LogEncodingGiven:
	case in.GetAccessLogEncoding() == meshv1alpha1.MeshConfig_JSON:
		s.AccessLog.Encoding = settings.AccessLog_ENCODING_JSON
	default:
		s.AccessLog.Encoding = settings.AccessLog_ENCODING_TEXT
	}
	s.ProtocolDetectionTimeout = in.GetProtocolDetectionTimeout()
	if d := in.GetDefaultConfig(); d != nil {
		s.DefaultConfig = pack(d)
	}
	for _, p := range in.GetExtensionProviders() {
		s.ExtensionProviders = append(s.ExtensionProviders, pack(p))
	}
	if d := in.GetDefaultProviders(); d != nil {
		s.DefaultProviders = &settings.DefaultProviders{Tracing: d.GetTracing(), Metrics: d.GetMetrics(), AccessLogging: d.GetAccessLogging()}
	}
}

// pack wraps a message; equal ones are equal resources.
func pack(m proto.Message) *anypb.Any {
	return &anypb.Any{TypeUrl: "type.googleapis.com/" + string(m.ProtoReflect().Descriptor().FullName()), Value: encode(m)}
}
