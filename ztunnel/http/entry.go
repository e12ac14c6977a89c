package http

import (
	"net/netip"
	"time"

	"github.com/undermesh/undermesh/ztunnel/cluster"
	"github.com/undermesh/undermesh/ztunnel/http/head"
	"github.com/undermesh/undermesh/ztunnel/http/route"
)

// Entry is what is known of a request at its end: all that Envoy's access log can name, and what statistics count. It and all
// that it refers to are valid during Flow.Record only.
type Entry struct {
	Flow     *Flow
	Request  *head.Request  // with the changes that were made to it; x-envoy-original-path is the path before a rewrite
	Response *head.Response // as it went to the client; Status 0 when none did
	Protocol Protocol       // of the client
	Upstream Protocol       // of the host; 0: it went to none

	Start       time.Time     // the request's first byte
	Duration    time.Duration // to the answer's last byte
	ServiceTime time.Duration // %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%; -1: none

	Flags                    Flags
	Details                  string // %RESPONSE_CODE_DETAILS%; "" none
	TransportFailure         string // %UPSTREAM_TRANSPORT_FAILURE_REASON%; "" none
	GRPCStatus               int    // of a gRPC answer; -1: no such answer
	BytesReceived, BytesSent int64  // of bodies, as the client sent and got them
	Attempts                 int    // to hosts; 1 without a retry
	Mirror                   bool   // it is a copy, and its answer went to nobody

	VirtualHost   *route.VirtualHost // nil: none was found
	Route         *route.Route       // nil: none was found
	Cluster       *cluster.Cluster   // of the last attempt; nil: none
	Host          *cluster.Host      // of the last attempt; nil: none
	UpstreamLocal netip.AddrPort     // of the connection of the last attempt
	Conn          *Conn              // that carried the last attempt; nil: none
}

// Status is the status that the client got, 0 when it got none.
func (e *Entry) Status() int {
	if e.Response == nil {
		return 0
	}
	return e.Response.Status
}

// Protocol is a version of HTTP.
type Protocol uint8

// The protocols.
const (
	HTTP1 Protocol = iota + 1 // 1.1
	HTTP2
)

// String returns the text of Envoy's %PROTOCOL%.
func (p Protocol) String() string {
	switch p {
	case HTTP1:
		return "HTTP/1.1"
	case HTTP2:
		return "HTTP/2"
	}
	return ""
}

// Flag is a response flag of Envoy.
type Flag uint8

// The flags.
const (
	NoHealthyUpstream Flag = iota + 1
	UpstreamTimeout
	LocalReset
	UpstreamRemoteReset
	UpstreamConnectionFailure
	UpstreamConnectionTermination
	UpstreamOverflow
	NoRoute
	DelayInjected
	FaultInjected
	RateLimited
	Unauthorized
	DownstreamConnectionTermination
	RetryLimitExceeded
	StreamIdleTimeout
	DownstreamProtocolError
	UpstreamProtocolError
	NoClusterFound
	OverloadManager
	DownstreamRemoteReset
	UpstreamMaxStreamDuration
)

var flagTexts = [...]string{
	NoHealthyUpstream: "UH", UpstreamTimeout: "UT", LocalReset: "LR", UpstreamRemoteReset: "UR", UpstreamConnectionFailure: "UF",
	UpstreamConnectionTermination: "UC", UpstreamOverflow: "UO", NoRoute: "NR", DelayInjected: "DI", FaultInjected: "FI",
	RateLimited: "RL", Unauthorized: "UAEX", DownstreamConnectionTermination: "DC", RetryLimitExceeded: "URX",
	StreamIdleTimeout: "SI", DownstreamProtocolError: "DPE", UpstreamProtocolError: "UPE", NoClusterFound: "NC",
	OverloadManager: "OM", DownstreamRemoteReset: "DR", UpstreamMaxStreamDuration: "UMSDR",
}

func (f Flag) String() string {
	if int(f) < len(flagTexts) {
		return flagTexts[f]
	}
	return ""
}

// Flags are response flags in the order in which they were set.
type Flags struct {
	n    uint8
	list [7]Flag
}

// Add sets a flag.
func (f *Flags) Add(x Flag) {
	if !f.Has(x) && int(f.n) < len(f.list) {
		f.list[f.n] = x
		f.n++
	}
}

// Has reports whether the flag is set.
func (f *Flags) Has(x Flag) bool {
	for _, y := range f.list[:f.n] {
		if x == y {
			return true
		}
	}
	return false
}

// last is the flag that was set last; 0: none.
func (f *Flags) last() Flag {
	if f.n == 0 {
		return 0
	}
	return f.list[f.n-1]
}

// Append appends Envoy's text, such as "URX,UF"; "-" for none.
func (f *Flags) Append(dst []byte) []byte {
	if f.n == 0 {
		return append(dst, '-')
	}
	for i, x := range f.list[:f.n] {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, x.String()...)
	}
	return dst
}

func (f Flags) String() string { return string(f.Append(nil)) }
