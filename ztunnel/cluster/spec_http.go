package cluster

import (
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	upstreamsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Version is the protocol that requests are sent with.
type Version uint8

// The versions of HTTP.
const (
	HTTP1          Version = iota // HTTP/1.1, the default
	HTTP2                         // with prior knowledge, or by ALPN under TLS
	SameAsReceived                // as the client's request came
	Negotiated                    // by ALPN; without TLS HTTP/1.1
)

// HTTP is how requests are sent over the connections of a cluster. 0 is no limit where nothing else is said.
type HTTP struct {
	Version                  Version
	IdleTimeout              time.Duration // of a connection without requests; default 1 h
	MaxConnectionDuration    time.Duration
	MaxStreamDuration        time.Duration
	MaxRequestsPerConnection uint32
	MaxHeaders               uint32        // in a response; default 100
	MaxResponseHeadBytes     uint32        // default 60 KiB
	MaxConcurrentStreams     uint32        // HTTP/2; default 2³¹-1
	StreamWindow             uint32        // HTTP/2, bytes; default 256 MiB
	ConnectionWindow         uint32        // HTTP/2, bytes; default 256 MiB
	PingInterval             time.Duration // HTTP/2 keep-alive; 0: off
	PingTimeout              time.Duration
	AutoSNI                  bool // the server name of TLS is the request's authority
	AutoSANValidation        bool // and the certificate is checked for it
	SNIHeader                string
	ProperCase               bool // HTTP/1.1: names of fields are written Like-This
	BufferLimit              uint32
}

// Defaults of Envoy.
const (
	defaultIdleTimeout    = time.Hour
	defaultMaxHeaders     = 100
	defaultResponseHeadKB = 60
	defaultStreams        = 1<<31 - 1
	defaultWindow         = 256 << 20
	minWindow, maxWindow  = 65535, 1<<31 - 1
	maxHeadKB             = 8192
	defaultBufferLimit    = 1 << 20
	httpOptionsName       = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
)

// http reads the protocol options, in their present form or in the fields of the cluster that came before it.
func (p *parser) http(c *clusterv3.Cluster) HTTP {
	h := HTTP{
		IdleTimeout: defaultIdleTimeout, MaxHeaders: defaultMaxHeaders, MaxResponseHeadBytes: defaultResponseHeadKB << 10,
		MaxConcurrentStreams: defaultStreams, StreamWindow: defaultWindow, ConnectionWindow: defaultWindow,
		MaxRequestsPerConnection: c.GetMaxRequestsPerConnection().GetValue(), BufferLimit: defaultBufferLimit,
	}
	if v := c.GetPerConnectionBufferLimitBytes(); v != nil {
		h.BufferLimit = v.GetValue()
	}
	p.common("common_http_protocol_options", c.GetCommonHttpProtocolOptions(), &h)
	p.upstream("upstream_http_protocol_options", c.GetUpstreamHttpProtocolOptions(), &h)
	p.http1("http_protocol_options", c.GetHttpProtocolOptions(), &h)
	if o := c.GetHttp2ProtocolOptions(); o != nil {
		h.Version = HTTP2
		p.http2("http2_protocol_options", o, &h)
	}
	if c.GetProtocolSelection() == clusterv3.Cluster_USE_DOWNSTREAM_PROTOCOL {
		h.Version = SameAsReceived
	}
	for name, any := range c.GetTypedExtensionProtocolOptions() {
		field := "typed_extension_protocol_options[" + name + "]"
		o := &upstreamsv3.HttpProtocolOptions{}
		if name != httpOptionsName {
			p.fail(field, "is not supported")
		} else if err := any.UnmarshalTo(o); err != nil {
			p.fail(field, "%v", err)
		} else {
			p.options(field, o, &h)
		}
	}
	return h
}

func (p *parser) options(field string, o *upstreamsv3.HttpProtocolOptions, h *HTTP) {
	p.supported(field+".", o, map[protoreflect.Name]bool{
		"http_filters": true, "header_validation_config": true, "outlier_detection": true, "request_mirror_policies": true,
		"hash_policy": true, "retry_policy": true,
	})
	p.common(field+".common_http_protocol_options", o.GetCommonHttpProtocolOptions(), h)
	p.upstream(field+".upstream_http_protocol_options", o.GetUpstreamHttpProtocolOptions(), h)
	switch {
	case o.GetExplicitHttpConfig() != nil:
		e := o.GetExplicitHttpConfig()
		field += ".explicit_http_config"
		switch {
		case e.GetHttp3ProtocolOptions() != nil:
			p.fail(field+".http3_protocol_options", "is not supported")
		case e.GetHttp2ProtocolOptions() != nil:
			h.Version = HTTP2
			p.http2(field+".http2_protocol_options", e.GetHttp2ProtocolOptions(), h)
		default:
			h.Version = HTTP1
			p.http1(field+".http_protocol_options", e.GetHttpProtocolOptions(), h)
		}
	case o.GetUseDownstreamProtocolConfig() != nil:
		d := o.GetUseDownstreamProtocolConfig()
		field += ".use_downstream_protocol_config"
		h.Version = SameAsReceived
		p.supported(field+".", d, map[protoreflect.Name]bool{"http3_protocol_options": true})
		p.http1(field+".http_protocol_options", d.GetHttpProtocolOptions(), h)
		p.http2(field+".http2_protocol_options", d.GetHttp2ProtocolOptions(), h)
	case o.GetAutoConfig() != nil:
		a := o.GetAutoConfig()
		field += ".auto_config"
		h.Version = Negotiated
		p.supported(field+".", a, map[protoreflect.Name]bool{
			"http3_protocol_options": true, "alternate_protocols_cache_options": true,
		})
		p.http1(field+".http_protocol_options", a.GetHttpProtocolOptions(), h)
		p.http2(field+".http2_protocol_options", a.GetHttp2ProtocolOptions(), h)
	default:
		p.fail(field+".upstream_protocol_options", "is required")
	}
}

func (p *parser) common(field string, o *corev3.HttpProtocolOptions, h *HTTP) {
	if o == nil {
		return
	}
	p.supported(field+".", o, map[protoreflect.Name]bool{"max_connection_duration_jitter": true, "headers_with_underscores_action": true})
	h.IdleTimeout = p.duration(field+".idle_timeout", o.GetIdleTimeout(), h.IdleTimeout)
	h.MaxConnectionDuration = p.duration(field+".max_connection_duration", o.GetMaxConnectionDuration(), 0)
	h.MaxStreamDuration = p.duration(field+".max_stream_duration", o.GetMaxStreamDuration(), 0)
	if v := o.GetMaxHeadersCount(); v != nil {
		if h.MaxHeaders = v.GetValue(); h.MaxHeaders == 0 {
			p.fail(field+".max_headers_count", "must be 1 or more")
		}
	}
	if v := o.GetMaxResponseHeadersKb(); v != nil {
		if v.GetValue() == 0 || v.GetValue() > maxHeadKB {
			p.fail(field+".max_response_headers_kb", "must be in 1 to %d", maxHeadKB)
		}
		h.MaxResponseHeadBytes = min(v.GetValue(), maxHeadKB) << 10
	}
	if v := o.GetMaxRequestsPerConnection(); v != nil {
		h.MaxRequestsPerConnection = v.GetValue()
	}
}

func (p *parser) upstream(field string, o *corev3.UpstreamHttpProtocolOptions, h *HTTP) {
	if o == nil {
		return
	}
	p.supported(field+".", o, nil)
	h.AutoSNI, h.AutoSANValidation, h.SNIHeader = o.GetAutoSni(), o.GetAutoSanValidation(), o.GetOverrideAutoSniHeader()
}

func (p *parser) http1(field string, o *corev3.Http1ProtocolOptions, h *HTTP) {
	if o == nil {
		return
	}
	p.supported(field+".", o, map[protoreflect.Name]bool{
		"allow_chunked_length": true, "send_fully_qualified_url": true, "allow_custom_methods": true,
	})
	if f := o.GetHeaderKeyFormat(); f != nil {
		switch format := f.GetHeaderFormat().(type) {
		case *corev3.Http1ProtocolOptions_HeaderKeyFormat_ProperCaseWords_:
			h.ProperCase = true
		case *corev3.Http1ProtocolOptions_HeaderKeyFormat_StatefulFormatter:
			// Istio's proxies keep the case of names by this one; here it is always kept.
			if n := format.StatefulFormatter.GetName(); n != "preserve_case" && n != "envoy.http.stateful_header_formatters.preserve_case" {
				p.fail(field+".header_key_format", "is not supported: %q", n)
			}
		}
	}
}

func (p *parser) http2(field string, o *corev3.Http2ProtocolOptions, h *HTTP) {
	if o == nil {
		return
	}
	p.supported(field+".", o, map[protoreflect.Name]bool{"allow_metadata": true, "custom_settings_parameters": true})
	if v := o.GetMaxConcurrentStreams(); v != nil {
		if h.MaxConcurrentStreams = v.GetValue(); v.GetValue() == 0 || v.GetValue() > defaultStreams {
			p.fail(field+".max_concurrent_streams", "must be in 1 to %d", uint32(defaultStreams))
		}
	}
	if v := o.GetInitialStreamWindowSize(); v != nil {
		h.StreamWindow = p.window(field+".initial_stream_window_size", v.GetValue())
	}
	if v := o.GetInitialConnectionWindowSize(); v != nil {
		h.ConnectionWindow = p.window(field+".initial_connection_window_size", v.GetValue())
	}
	if k := o.GetConnectionKeepalive(); k != nil {
		field += ".connection_keepalive"
		h.PingInterval = p.duration(field+".interval", k.GetInterval(), 0)
		h.PingTimeout = p.duration(field+".timeout", k.GetTimeout(), 0)
		if k.GetConnectionIdleInterval() != nil {
			p.fail(field+".connection_idle_interval", "is not supported")
		}
	}
}

func (p *parser) window(field string, n uint32) uint32 {
	if n < minWindow || n > maxWindow {
		p.fail(field, "must be in %d to %d", minWindow, uint32(maxWindow))
	}
	return n
}
