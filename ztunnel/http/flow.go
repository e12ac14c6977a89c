package http

import (
	"context"
	"net"
	"net/netip"

	"github.com/undermesh/undermesh/ztunnel/cluster"
	"github.com/undermesh/undermesh/ztunnel/http/head"
	"github.com/undermesh/undermesh/ztunnel/http/route"
)

// Direction tells which side of the mesh a flow is served for.
type Direction uint8

// The directions.
const (
	Outbound Direction = iota // for the workload that called: its routes, retries, balancing
	Inbound                   // for the workload that is called: who called is told to it
)

// Flow is one downstream connection as the engine needs to know it. It must not change while it is served.
type Flow struct {
	Source, Destination netip.AddrPort // the client, and what it dialled
	Direction           Direction
	Secure              bool   // the client's side is TLS or HBONE: x-forwarded-proto: https
	SNI                 string // of the client's side; "" none
	Paths               Paths  // how paths are made canonical
	Peer                *Peer  // Inbound: who the mesh proved the client to be; nil: nobody
	Upstreams           Upstreams
	Workload            *Tenant         // whose connection it is
	Listener            *Listener       // where it is counted; nil: that of Workload for the direction and the port of Destination
	Trace               func() Trace    // asked for each request; nil: trace contexts go on as they come
	Headers             func() *Headers // asked for each request, which fields it gets; nil, or returning nil: as the zero Headers say
	Record              func(*Entry)    // at the end of each request, on its goroutine; the Entry is valid during the call only; nil: nobody listens

	worker int // Serve's: whose connections it may use where a limit of them makes requests wait
}

// Peer is a client as the mesh proved it. It fills X-Forwarded-Client-Cert.
type Peer struct {
	URI  string // its SPIFFE id
	By   string // the SPIFFE id of the workload that is called
	Hash string // SHA-256 of its certificate, 64 hexadecimal digits
}

// Upstreams answers the questions of one flow. Its methods are called from many goroutines.
type Upstreams interface {
	// Routes returns the virtual host for the request; it does not block. Nil: none is for that authority (404, NR).
	Routes(req *head.Request) *route.VirtualHost
	// Cluster returns nil for a name that nothing stands for (503, NC).
	Cluster(name string) *cluster.Cluster
	// Dial opens a connection to h as the flow's source. An error that is a *Refused says what a policy decided.
	Dial(ctx context.Context, c *cluster.Cluster, h *cluster.Host) (*Conn, error)
}

// Conn is a connection to a host, made by Upstreams.Dial. The engine owns it and closes Net.
type Conn struct {
	Net      net.Conn
	Protocol string // that ALPN chose: "h2", "http/1.1"; "": not negotiated
	// Leg is not nil where the connection leads to a workload of this node without a proxy of its own: the engine then does the
	// destination's part too and tells it who calls. Leg.URI may be "": a client that nobody has proved.
	Leg *Peer
	// Callee is the workload at the other end, where its node's part is done here; nil: nothing is counted for anybody else.
	Callee *Callee
	// Engine reports that an engine does the destination's part at the other end: it is believed when it says that the workload has
	// not answered.
	Engine bool
	// Stale reports that the connection would be made otherwise by now: no further request is sent over it, and those under way go
	// on. It does not block. Nil: it never is.
	Stale func() bool
	Value any // the dialer's own; it finds it in Entry.Conn
}

func (c *Conn) stale() bool { return c.Stale != nil && c.Stale() }

// Refused is a decision against a connection.
type Refused struct {
	Status int    // for the client; 0: 503, UF
	Body   string // for the client; "": Envoy's text
	Detail string // response code detail; "": Envoy's
	Err    error
}

func (r *Refused) Error() string { return "refuse connection: " + r.Err.Error() }

// Unwrap returns the reason.
func (r *Refused) Unwrap() error { return r.Err }
