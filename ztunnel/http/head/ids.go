package head

// ID tells the names that the engine itself asks for; every field is tagged with one. Other is any other name.
type ID uint8

// The known names.
const (
	Other ID = iota
	Host
	Connection
	ContentLength
	TransferEncoding
	TE
	Trailer
	Upgrade
	KeepAlive
	ProxyConnection
	Expect
	HTTP2Settings
	Cookie
	SetCookie
	ContentType
	Date
	Server
	Via
	Location
	Origin
	UserAgent
	Authorization
	Traceparent
	Tracestate
	GRPCStatus
	GRPCMessage
	GRPCTimeout
	AccessControlRequestMethod
	B3
	XB3TraceID
	XB3SpanID
	XB3ParentSpanID
	XB3Sampled
	XRequestID
	XForwardedFor
	XForwardedProto
	XForwardedHost
	XForwardedClientCert
	XEnvoyAttemptCount
	XEnvoyDecoratorOperation
	XEnvoyExpectedRqTimeoutMS
	XEnvoyExternalAddress
	XEnvoyForceTrace
	XEnvoyInternal
	XEnvoyMaxRetries
	XEnvoyOriginalPath
	XEnvoyOverloaded
	XEnvoyRetriableStatusCodes
	XEnvoyRetryGRPCOn
	XEnvoyRetryOn
	XEnvoyUpstreamAltStatName
	XEnvoyUpstreamRqPerTryTimeoutMS
	XEnvoyUpstreamRqTimeoutAltResponse
	XEnvoyUpstreamRqTimeoutMS
	XEnvoyUpstreamServiceTime
	XEnvoyUpstreamStreamDurationMS
	XUndermeshUnanswered
	NumIDs
)

// Names are the known names in lower case, by ID; that of Other is "".
var Names = [NumIDs]string{
	Host: "host", Connection: "connection", ContentLength: "content-length", TransferEncoding: "transfer-encoding", TE: "te",
	Trailer: "trailer", Upgrade: "upgrade", KeepAlive: "keep-alive", ProxyConnection: "proxy-connection", Expect: "expect",
	HTTP2Settings: "http2-settings", Cookie: "cookie", SetCookie: "set-cookie", ContentType: "content-type", Date: "date",
	Server: "server", Via: "via", Location: "location", Origin: "origin", UserAgent: "user-agent",
	Authorization: "authorization", Traceparent: "traceparent", Tracestate: "tracestate", GRPCStatus: "grpc-status",
	GRPCMessage: "grpc-message", GRPCTimeout: "grpc-timeout", AccessControlRequestMethod: "access-control-request-method",
	B3: "b3", XB3TraceID: "x-b3-traceid", XB3SpanID: "x-b3-spanid", XB3ParentSpanID: "x-b3-parentspanid", XB3Sampled: "x-b3-sampled",
	XRequestID: "x-request-id", XForwardedFor: "x-forwarded-for", XForwardedProto: "x-forwarded-proto",
	XForwardedHost: "x-forwarded-host", XForwardedClientCert: "x-forwarded-client-cert",
	XEnvoyAttemptCount: "x-envoy-attempt-count", XEnvoyDecoratorOperation: "x-envoy-decorator-operation",
	XEnvoyExpectedRqTimeoutMS: "x-envoy-expected-rq-timeout-ms", XEnvoyExternalAddress: "x-envoy-external-address",
	XEnvoyForceTrace: "x-envoy-force-trace", XEnvoyInternal: "x-envoy-internal", XEnvoyMaxRetries: "x-envoy-max-retries", XEnvoyOriginalPath: "x-envoy-original-path",
	XEnvoyOverloaded: "x-envoy-overloaded", XEnvoyRetriableStatusCodes: "x-envoy-retriable-status-codes",
	XEnvoyRetryGRPCOn: "x-envoy-retry-grpc-on", XEnvoyRetryOn: "x-envoy-retry-on",
	XEnvoyUpstreamAltStatName:          "x-envoy-upstream-alt-stat-name",
	XEnvoyUpstreamRqPerTryTimeoutMS:    "x-envoy-upstream-rq-per-try-timeout-ms",
	XEnvoyUpstreamRqTimeoutAltResponse: "x-envoy-upstream-rq-timeout-alt-response",
	XEnvoyUpstreamRqTimeoutMS:          "x-envoy-upstream-rq-timeout-ms", XEnvoyUpstreamServiceTime: "x-envoy-upstream-service-time",
	XEnvoyUpstreamStreamDurationMS: "x-envoy-upstream-stream-duration-ms",
	XUndermeshUnanswered:           "x-undermesh-unanswered",
}

// byLength lists the known names by their length, so that one that is not known is told by few comparisons.
var byLength = func() (out [longest + 1][]ID) {
	for id := Other + 1; id < NumIDs; id++ {
		n := len(Names[id])
		out[n] = append(out[n], id)
	}
	return out
}()

const longest = 40 // bytes of the longest known name

// Lower maps each byte to lower case.
var Lower = func() (t [256]byte) {
	for i := range t {
		t[i] = byte(i)
		if i >= 'A' && i <= 'Z' {
			t[i] += 'a' - 'A'
		}
	}
	return t
}()

// Unhex returns the value of a hexadecimal digit of either case.
func Unhex(c byte) (value byte, ok bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

// EqualFold reports whether name is lower, which is in lower case, whatever the case of name.
func EqualFold(name []byte, lower string) bool {
	if len(name) != len(lower) {
		return false
	}
	for i, c := range name {
		if Lower[c] != lower[i] {
			return false
		}
	}
	return true
}

// IDOf tells a name of any case.
func IDOf(name []byte) ID {
	if len(name) > longest || len(name) == 0 {
		return Other
	}
	for _, id := range byLength[len(name)] {
		known := Names[id]
		if Lower[name[len(name)-1]] == known[len(known)-1] && EqualFold(name, known) {
			return id
		}
	}
	return Other
}
