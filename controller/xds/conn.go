package xds

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/quota"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// conn is one stream. Everything but status belongs to the goroutine of serve.
type conn struct {
	srv    *Server
	stream stream
	caller Caller
	cursor *cursor
	subs   map[string]*subscription
	nonces uint64
	open   bool // the last response promised that more follows
	parts  bool // the client takes an answer in several responses
	short  bool // the client takes short contents
	gives  bool // the client gives back what it has seen
	woken  bool // something changed, and was not pushed because a response is unacknowledged

	charged int       // what its names count for, see charge
	unknown int       // requests of types that are not served
	sent    bool      // something was, since changed
	changed time.Time // when the first change came that was sent and is not acknowledged; zero: none

	stalled chan struct{} // closed when the client made no progress for too long
	guard   clock.Timer   // closes it; runs while a response is unacknowledged; nil before the first one

	mu     sync.Mutex // protects status.ID, NodeName, ClusterID, Types
	status ClientStatus
}

// request takes one message of the client: a subscription, a change of one, an acknowledgement, or several of these.
func (c *conn) request(req *discovery.DeltaDiscoveryRequest) error {
	err := c.take(req)
	if status.Code(err) == codes.InvalidArgument || status.Code(err) == codes.PermissionDenied {
		c.srv.metrics.refused.WithLabelValues(refusedRequest).Inc()
	}
	return err
}

func (c *conn) take(req *discovery.DeltaDiscoveryRequest) error {
	if err := c.identify(req.GetNode()); err != nil {
		return err
	}
	typ := req.GetTypeUrl()
	if !slices.Contains(c.srv.cfg.Types, typ) {
		return c.checkType(typ)
	}
	if err := checkRequest(req); err != nil {
		return err
	}
	sub := c.subs[typ]
	if sub == nil {
		sub = newSubscription(req)
		sub.short, sub.parts = c.short, c.parts
		c.subs[typ] = sub
	}
	c.acknowledge(sub, req)
	if err := sub.change(req); err != nil {
		return err
	}
	c.srv.cfg.Store.drop(sub)
	total := 0
	for _, s := range c.subs {
		total += s.nameBytes + s.knownBytes
	}
	if total > maxNameBytes {
		return namesError(typ, "bytes of the names of all types", total, maxNameBytes)
	}
	if err := c.charge(typ); err != nil {
		return err
	}
	if sub.due() {
		// What was asked for is answered at once, whatever else the client has not acknowledged yet.
		if err := c.send([]*subscription{sub}); err != nil {
			return err
		}
	}
	if !c.waits() {
		return nil // what changed since is announced by the store, at its pace
	}
	return c.push()
}

// waits reports whether something is to be sent that no further wake-up announces.
func (c *conn) waits() bool {
	if c.woken || c.open {
		return true
	}
	for _, sub := range c.subs {
		if len(sub.held) > 0 {
			return true
		}
	}
	return false
}

func (c *conn) identify(n *core.Node) error {
	if n == nil {
		return nil
	}
	id, name := n.GetId(), n.GetMetadata().GetFields()["NODE_NAME"].GetStringValue()
	cluster := n.GetMetadata().GetFields()["CLUSTER_ID"].GetStringValue()
	if len(id) > maxName || len(name) > maxName || len(cluster) > maxName {
		return status.Errorf(codes.InvalidArgument, "node: id of %d bytes, metadata.NODE_NAME of %d, CLUSTER_ID of %d, want at most %d",
			len(id), len(name), len(cluster), maxName)
	}
	if at := c.caller.Node; at != "" && name != "" && at != name {
		return status.Errorf(codes.PermissionDenied, "node: metadata.NODE_NAME is %q, and the token is of node %q", name, at)
	}
	c.parts = slices.Contains(n.GetClientFeatures(), api.DiscoveryParts)
	c.short = slices.Contains(n.GetClientFeatures(), api.DiscoveryShort)
	c.gives = slices.Contains(n.GetClientFeatures(), api.DiscoverySeen)
	seen := n.GetMetadata().GetFields()[api.SeenMetadata].GetStringValue()
	if len(seen) > maxName {
		return namesError("any type", "node.metadata."+api.SeenMetadata+": bytes of a text", len(seen), maxName)
	}
	if err := c.reach(seen); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.ID, c.status.NodeName, c.status.ClusterID = strings.Clone(id), strings.Clone(cmp.Or(c.caller.Node, name)), strings.Clone(cluster)
	return nil
}

// reach waits until no less is served than the client has seen. Nothing was answered on the stream before.
func (c *conn) reach(seen string) error {
	if h := c.srv.cfg.History; seen != "" && h != nil && len(c.subs) == 0 {
		if err := h.Reach(c.stream.Context(), seen); err != nil {
			c.srv.metrics.refused.WithLabelValues(refusedBehind).Inc()
			return status.Error(codes.Unavailable, err.Error())
		}
	}
	return nil
}

// converged counts how long the changes took that the client has by now.
func (c *conn) converged() {
	if c.changed.IsZero() || c.open {
		return
	}
	for _, sub := range c.subs {
		if sub.nonce != "" {
			return
		}
	}
	if c.sent {
		c.srv.metrics.converged.Observe(c.srv.cfg.Clock.Now().Sub(c.changed).Seconds())
	}
	c.changed, c.sent = time.Time{}, false
}

func (c *conn) acknowledge(sub *subscription, req *discovery.DeltaDiscoveryRequest) {
	detail := req.GetErrorDetail()
	if !c.answers(sub, req.GetResponseNonce()) || req.GetResponseNonce() != sub.nonce && detail == nil {
		return // not an answer, or the acknowledgement of a response that a newer one follows
	}
	latest := req.GetResponseNonce() == sub.nonce
	if latest {
		sub.nonce = ""
		c.progress()
		c.converged()
	}
	said := quota.Cut(detail.GetMessage(), maxDetail)
	c.mu.Lock()
	t := c.status.Types[sub.typ]
	if detail == nil {
		t.AckedGeneration, t.AckedAt = t.SentGeneration, c.srv.cfg.Clock.Now()
	} else {
		t.Rejected++
		t.LastError = said
	}
	if latest {
		t.Pending, t.Refused = false, detail != nil
	}
	c.status.Types[sub.typ] = t
	c.mu.Unlock()
	if detail != nil {
		c.srv.metrics.rejects.WithLabelValues(sub.typ).Inc()
		c.srv.cfg.Log.Error("client refused a resource", "client", c.status.ID, "type", sub.typ, "err", said)
	}
}

// push sends what changed, unless a response is unacknowledged: then the acknowledgement triggers it, and what changes
// until then is sent once, in its newest form.
func (c *conn) push() error {
	subs := make([]*subscription, 0, len(c.subs))
	for _, sub := range c.subs {
		if sub.nonce != "" {
			return nil
		}
		subs = append(subs, sub)
	}
	slices.SortFunc(subs, byOrder)
	c.woken = false
	return c.send(subs)
}

// send collects and sends what the subscriptions have not got: upserts of what others refer to, then the last type
// whole, then the other removals. Each response says whether it completes a state that was one: a policy and the workloads
// that name it come in two, and a client that decides by the first alone decides by a state that never was.
func (c *conn) send(subs []*subscription) error {
	if slices.ContainsFunc(subs, func(sub *subscription) bool { return sub.wildcard && (!sub.answered || sub.turned) }) {
		c.unguard() // who waits for others, and whose acknowledgements wait with it, is not stalled
		select {    // everything of a type: not to all that join at the same time
		case c.srv.joins <- struct{}{}:
			defer func() { <-c.srv.joins }()
			c.progress()
		case <-c.stream.Context().Done():
			return status.FromContextError(c.stream.Context().Err()).Err()
		}
	}
	got, err := c.srv.cfg.Store.collect(c.cursor, subs)
	if err != nil {
		return status.Error(codes.Aborted, err.Error())
	}
	if !got.ready {
		return nil // the first Apply wakes us
	}
	if c.changed.IsZero() {
		c.changed = got.since
	}
	out := c.sequence(c.withHeld(got.deltas, subs))
	defer c.converged() // of what changed nothing may have been for this client
	part := got.behind
	for _, sub := range c.subs {
		part = part || len(sub.held) > 0
	}
	if len(out) == 0 && c.open && !part && len(subs) > 0 {
		out = append(out, delta{sub: subs[len(subs)-1]}) // what was promised came to nothing
	}
	for i, d := range out {
		pieces := []delta{d}
		if c.parts {
			if pieces, err = d.split(); err != nil {
				return err
			}
		}
		for j, p := range pieces {
			if err := c.respond(p, got.version, part || i+1 < len(out) || j+1 < len(pieces)); err != nil {
				return err
			}
		}
	}
	return nil
}

// sequence splits the removals off that must come after everything else.
func (c *conn) sequence(deltas []delta) []delta {
	var out, late []delta
	for _, d := range deltas {
		if order(d.sub.typ) < lastOrder {
			if d.first {
				d.sub.held, d.removed = d.removed, nil // until the answers to the other types are out
			} else if len(d.removed) > 0 {
				late = append(late, delta{sub: d.sub, removed: d.removed})
				d.removed = nil
			}
		}
		if !d.empty() {
			out = append(out, d)
		}
	}
	slices.Reverse(late)
	return append(out, late...)
}

// withHeld adds the removals that waited for the acknowledgement of a type's first response.
func (c *conn) withHeld(deltas []delta, subs []*subscription) []delta {
	for _, sub := range subs {
		if sub.nonce != "" || len(sub.held) == 0 {
			continue
		}
		i := slices.IndexFunc(deltas, func(d delta) bool { return d.sub == sub })
		if i < 0 {
			deltas = append(deltas, delta{sub: sub})
			i = len(deltas) - 1
		}
		back := names(deltas[i].upserts)
		for _, n := range sub.held {
			if !back[n] { // a resource that came back meanwhile must stay
				deltas[i].removed = append(deltas[i].removed, n)
			}
		}
		sub.held = nil
	}
	slices.SortStableFunc(deltas, func(a, b delta) int { return byOrder(a.sub, b.sub) })
	return deltas
}

// respond sends one response; part says that more follows which belongs to it.
func (c *conn) respond(d delta, version string, part bool) error {
	c.nonces++
	c.sent = !c.changed.IsZero()
	d.sub.last = c.nonces
	d.sub.nonce = c.status.Connection + "-" + strconv.FormatUint(c.nonces, 10)
	if len(d.sub.held) > 0 { // what came back must not be removed later
		back := names(d.upserts)
		d.sub.held = slices.DeleteFunc(d.sub.held, func(n string) bool { return back[n] })
	}
	c.open = part
	from := api.DiscoveryWhole
	if part {
		from = api.DiscoveryPart
	}
	if h := c.srv.cfg.History; c.gives && h != nil {
		from += " " + h.Seen() // read after the content: it may say more than that holds, never less
	}
	c.progress()
	r := &discovery.DeltaDiscoveryResponse{
		TypeUrl: d.sub.typ, SystemVersionInfo: version, Nonce: d.sub.nonce, ControlPlane: &core.ControlPlane{Identifier: from},
		Resources: d.upserts, RemovedResources: d.removed,
	}
	if d.raw != nil {
		raw(r, d.raw)
	}
	if err := c.stream.Send(r); err != nil {
		return fmt.Errorf("send %s: %w", d.sub.typ, err)
	}
	c.srv.metrics.pushes.WithLabelValues(d.sub.typ).Inc()
	generation, _ := strconv.ParseUint(version, 10, 64)
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.status.Types[d.sub.typ]
	t.SentGeneration, t.SentAt, t.Pending = generation, c.srv.cfg.Clock.Now(), true
	c.status.Types[d.sub.typ] = t
	return nil
}

// progress gives the client the whole time again while a response is unacknowledged.
func (c *conn) progress() {
	for _, sub := range c.subs {
		if sub.nonce == "" {
			continue
		}
		if c.guard == nil {
			c.guard = c.srv.cfg.Clock.AfterFunc(c.srv.cfg.StallTimeout, sync.OnceFunc(func() { close(c.stalled) }))
		} else {
			c.guard.Reset(c.srv.cfg.StallTimeout)
		}
		return
	}
	c.unguard()
}

func (c *conn) unguard() {
	if c.guard != nil {
		c.guard.Stop()
	}
}

func (c *conn) snapshot() ClientStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.status
	out.Types = maps.Clone(c.status.Types)
	return out
}

type metrics struct {
	clients   prometheus.Gauge
	stalls    prometheus.Counter
	converged prometheus.Histogram
	refused   *prometheus.CounterVec
	pushes    *prometheus.CounterVec
	rejects   *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) metrics {
	m := metrics{
		clients: prometheus.NewGauge(prometheus.GaugeOpts{Name: "pilot_xds", Help: "Connected discovery clients."}),
		stalls: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "pilot_xds_write_timeout", Help: "Discovery clients that were cut off because they acknowledged nothing.",
		}),
		converged: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "pilot_proxy_convergence_time", Buckets: []float64{.01, .03, .1, .3, 1, 3, 10, 30},
			Help: "Seconds from a change to its acknowledgement by a client that it is for.",
		}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "undermesh_xds_refused_total", Help: "Discovery streams that were refused, or ended because of what the client said.",
		}, []string{"reason"}),
		pushes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pilot_xds_pushes", Help: "Discovery responses sent.",
		}, []string{"type"}),
		rejects: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pilot_total_xds_rejects", Help: "Discovery responses that a client refused.",
		}, []string{"type"}),
	}
	if reg != nil {
		reg.MustRegister(m.clients, m.stalls, m.converged, m.refused, m.pushes, m.rejects)
	}
	return m
}
