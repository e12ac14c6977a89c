package xds

import (
	"strconv"
	"strings"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/undermesh/undermesh/controller/quota"
)

// Bounds of what one client may say. A text that it chose is logged or kept.
const (
	maxNames     = 1 << 18  // names of one type: subscribed to, or held as it says in one request
	maxRequest   = 1 << 16  // names of one type in one request
	maxName      = 1 << 10  // bytes of a name, a version, a nonce: an id holds an address, a pod's name, a namespace twice and a domain
	maxNameBytes = 32 << 20 // bytes of all names, over all types, that it is subscribed to or waits for
	// maxHeld is what the names take that one caller is subscribed to, over all types and all of its streams, in bytes: 64 each, for
	// the tables that they stand in, and their length.
	maxHeld      = 16 << 20
	nameOverhead = 64
	maxDetail    = 4 << 10 // bytes of why it refused a response
	maxUnknown   = 64      // requests of types that are not served, on one stream
)

// place is what streams are counted by.
type place struct{ account, at string }

func placeOf(c Caller) place { return place{c.Account, c.Place} }

func (p place) String() string { return strings.TrimSuffix(p.account+" at "+p.at, " at ") }

// Why a stream or a request is refused: the label "reason".
const (
	refusedStreams = "streams" // its caller has too many
	refusedExpired = "expired" // its token ended
	refusedRequest = "request" // it said too much, or what cannot be
	refusedBehind  = "behind"  // it has seen what this replica has not
)

func namesError(typ, field string, n, limit int) error {
	return status.Errorf(codes.InvalidArgument, "subscribe to %s: %s: %d, want at most %d", typ, field, n, limit)
}

// checkRequest refuses a request that says too much, before any work is done for it.
func checkRequest(req *discovery.DeltaDiscoveryRequest) error {
	typ := req.GetTypeUrl()
	if n := len(req.GetResourceNamesSubscribe()) + len(req.GetResourceNamesUnsubscribe()); n > maxRequest {
		return namesError(typ, "resource_names_subscribe and resource_names_unsubscribe", n, maxRequest)
	}
	if n := len(req.GetInitialResourceVersions()); n > maxNames {
		return namesError(typ, "initial_resource_versions", n, maxNames)
	}
	long := func(field, text string) error {
		if len(text) <= maxName {
			return nil
		}
		return namesError(typ, field+": bytes of a text", len(text), maxName)
	}
	if err := long("response_nonce", req.GetResponseNonce()); err != nil {
		return err
	}
	for field, list := range map[string][]string{"resource_names_subscribe": req.GetResourceNamesSubscribe(),
		"resource_names_unsubscribe": req.GetResourceNamesUnsubscribe()} {
		for _, n := range list {
			if err := long(field, n); err != nil {
				return err
			}
		}
	}
	for n, v := range req.GetInitialResourceVersions() {
		if len(n) > maxName || len(v) > maxName {
			return namesError(typ, "initial_resource_versions: bytes of a text", max(len(n), len(v)), maxName)
		}
	}
	return nil
}

// charge counts the names that the stream holds with those of its caller's other streams.
func (c *conn) charge(typ string) error {
	at := placeOf(c.caller)
	if at == (place{}) {
		return nil
	}
	now := 0
	for _, sub := range c.subs {
		now += nameOverhead*len(sub.names) + sub.nameBytes
	}
	switch more := now - c.charged; {
	case more < 0:
		c.srv.names.Give(at, -more)
	case more > 0 && !c.srv.names.Take(at, more):
		return status.Errorf(codes.InvalidArgument, "subscribe to %s: %s holds more than %d bytes of names, over all types and streams",
			typ, at, maxHeld)
	}
	c.charged = now
	return nil
}

// checkType tells, once, of a type that is not served; who goes on asking for such is refused.
func (c *conn) checkType(typ string) error {
	if c.unknown++; c.unknown == 1 {
		c.srv.cfg.Log.Warn("subscription to an unknown type", "client", c.status.ID, "type", quota.Cut(typ, maxName))
	}
	if c.unknown > maxUnknown {
		return status.Errorf(codes.InvalidArgument, "subscribe to %s: the type is not served, nor were %d before", quota.Cut(typ, maxName), maxUnknown)
	}
	return nil
}

// answers reports whether a nonce is of a response that was sent on this stream and not answered yet, nor a later one: who
// answers one twice, or answers what was not sent, is not heard.
func (c *conn) answers(sub *subscription, nonce string) bool {
	text, ok := strings.CutPrefix(nonce, c.status.Connection+"-")
	n, err := strconv.ParseUint(text, 10, 64)
	if !ok || err != nil || n <= sub.acked || n > sub.last {
		return false
	}
	sub.acked = n
	return true
}
