package route

import (
	"net/netip"
	"time"

	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// Input is what is known of a request beside its head. One is for one request at a time; it may be used again for the next,
// and keeps memory that matching needs.
type Input struct {
	Random              uint64         // of this request: runtime fractions and the choice by weight
	Source, Destination netip.AddrPort // of the downstream connection; Source is what x-forwarded-for says where that is trusted
	Direct              netip.AddrPort // the downstream peer's own address
	Upstream            netip.AddrPort // the chosen host; zero before
	UpstreamLocal       netip.AddrPort
	Hostname            string         // of the chosen host, for auto_host_rewrite; "" none
	Cluster             string         // of the chosen host; "" before
	Start               time.Time      // the request's arrival
	PeerURI, LocalURI   string         // SPIFFE identities of the downstream connection; "" none
	SNI                 string         // of the downstream connection; "" none
	Request             *head.Request  // for operators in response headers
	Response            *head.Response // for operators in response headers; Route.Response sets it
	Flags, Details      string         // response flags and code details so far; "" none
	Attempts            int            // tries so far
	Quiet               bool           // the fields that only tell what was done to the request (x-envoy-original-path, -host) are left out
	Local               bool           // the response is the proxy's own: %RESPONSE_CODE% has no value yet, as in Envoy
	// Excess says why rules cost more than one request may: nothing after that is to be relied upon. "" is no excess. Who writes
	// rules is not who pays for them: the node does.
	Excess string
	// Toils is asked before rules that cost the request more than easySteps in all; false: the request has come to its end. Nil: nobody is.
	Toils func() bool

	steps   int    // of regular expressions so far
	route   string // name of the route that is applied
	scratch []byte // values that are being made
	lines   []byte // lines of a field that are joined
	path    []byte // without parameters
}

// Bounds of what rules may cost for one request.
const (
	maxSteps  = 1 << 25  // of regular expressions: instructions, each once for each byte; a fraction of a second
	easySteps = 1 << 14  // of them, which any request may cost at any time; a tenth of a millisecond
	maxMade   = 64 << 10 // bytes that the operations of one level make, or a rewrite does
)

// Texts of Excess.
const (
	tooCostly = "route_match_too_costly"
	tooLong   = "route_made_head_too_large"

	Interrupted = "route_interrupted" // the request has come to its end
)

// pay accounts for matching v with a pattern. False: there is nothing left to pay with, and it is not to be done.
func (in *Input) pay(p *pattern, v []byte) bool {
	switch in.steps += p.size * (len(v) + 1); {
	case in.Excess != "":
	case in.steps > maxSteps:
		in.Excess = tooCostly
	case in.steps > easySteps && in.Toils != nil && !in.Toils():
		in.Excess = Interrupted
	}
	return in.Excess == ""
}

// Reset makes it ready for another request; memory is kept.
func (in *Input) Reset() { *in = Input{scratch: in.scratch, lines: in.lines, path: in.path} }

// VirtualHost is a compiled route.v3.VirtualHost.
type VirtualHost struct {
	Name                   string
	AttemptCount           bool // tell x-envoy-attempt-count upstream
	AttemptCountOnResponse bool // and downstream
	Routes                 []*Route

	config       *shared
	index        index
	request, say ops
}

// Route is one compiled route. Exactly one of Forward, Redirect and Direct is set.
type Route struct {
	Name      string
	Object    string // filter_metadata.istio.config: the object that it comes from; "" unknown
	Operation string // of the decorator; "" none
	Propagate bool   // tell Operation in x-envoy-decorator-operation
	Host      *VirtualHost

	Fault    *Fault // nil: none
	CORS     *CORS  // nil: none
	Forward  *Forward
	Redirect *Redirect
	Direct   *Direct

	match        match
	request, say ops
}

// Forward is what a route to clusters has beside them.
type Forward struct {
	NotFound    int           // status when the cluster is not known: 503 (Envoy's default), 404 or 500
	IdleTimeout time.Duration // of a stream; 0 none, -1 not said: that of the connection manager
	Mirrors     []Mirror
	BufferLimit int64        // bytes of a body that may be kept for another try; -1 not said
	Policy      *RetryPolicy // nil: none; Route.Retry applies it
	AutoHost    bool         // the authority becomes the chosen host's name: Route.HostPicked

	cluster       string
	clusterHeader name
	weighted      []weighted
	total         uint64
	times         times
	rewrite       rewrite
	authority     hostRewrite
	hash          []hashPolicy
	upgrades      []upgrade
}

// Target is the cluster that a request goes to.
type Target struct {
	Cluster string // "": cluster_header names none
	chosen  *weighted
}

// Direct is an answer that the route gives itself.
type Direct struct {
	Status int
	Body   []byte // of type text/plain; not to be changed
}
