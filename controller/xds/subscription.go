package xds

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// errLagging ends a stream whose client missed removals that are forgotten by now; it resumes by its versions.
var errLagging = errors.New("the client lags behind the change log")

// subscription is what one client follows of one type. Its stream's goroutine owns it.
type subscription struct {
	typ        string
	wildcard   bool
	short      bool                // the client takes short contents
	parts      bool                // and an answer in several responses
	names      nameSet             // asked for: names and aliases
	sent       map[string]struct{} // on demand only: resources that the client holds
	asked      map[string]struct{} // names whose answer is due, whatever the client holds
	known      map[string]string   // initial_resource_versions, until the first answer
	dropped    []string            // names that the last request ended
	answered   bool                // the first response was sent, maybe empty
	turned     bool                // to wildcard or to on demand, and nothing was sent since
	held       []string            // removals that wait until the first response is acknowledged
	nonce      string              // of the response that is not acknowledged yet, else ""
	last       uint64              // number in the nonce of the last response
	acked      uint64              // and of the last one that was answered
	nameBytes  int                 // of names
	knownBytes int                 // of known
}

func newSubscription(req *discovery.DeltaDiscoveryRequest) *subscription {
	sub := &subscription{
		typ: req.GetTypeUrl(), names: nameSet{}, sent: map[string]struct{}{}, asked: map[string]struct{}{},
		known: req.GetInitialResourceVersions(),
	}
	sub.wildcard = len(req.GetResourceNamesSubscribe()) == 0
	for name, version := range sub.known {
		sub.knownBytes += len(name) + len(version)
	}
	return sub
}

// forget drops what the client said that it holds, once that was compared.
func (sub *subscription) forget() {
	sub.known, sub.knownBytes = nil, 0
}

// change takes the subscribe and unsubscribe lists of a request that checkRequest accepted.
func (sub *subscription) change(req *discovery.DeltaDiscoveryRequest) error {
	// Counted before any work: a name that it has already counts twice, and one that this request drops still counts.
	if n := len(sub.names) + len(req.GetResourceNamesSubscribe()); n > maxNames {
		return namesError(sub.typ, "subscribed names", n, maxNames)
	}
	before := sub.wildcard
	sub.dropped = nil
	for _, n := range req.GetResourceNamesSubscribe() {
		if n == "*" {
			sub.wildcard = true
			continue
		}
		if _, known := sub.names[n]; !known {
			sub.nameBytes += len(n)
		}
		sub.names[n] = struct{}{}
		sub.asked[n] = struct{}{}
	}
	for _, n := range req.GetResourceNamesUnsubscribe() {
		if n == "*" {
			sub.wildcard = false // with "*" subscribed in the same request: on demand from now on
		}
		if _, known := sub.names[n]; known {
			sub.nameBytes -= len(n)
			sub.dropped = append(sub.dropped, n)
		}
		delete(sub.names, n)
		delete(sub.sent, n)
		delete(sub.asked, n)
	}
	sub.turned = sub.answered && sub.wildcard != before // answered at once, so the next request finds it false
	return nil
}

// due reports whether the client waits for an answer that no change triggers.
func (sub *subscription) due() bool { return !sub.answered || sub.turned || len(sub.asked) > 0 }

// delta is what one type has for a client.
type delta struct {
	sub     *subscription
	whole   *whole // comes first; nil for none
	raw     []byte // encoded upserts, of a piece
	upserts []*discovery.Resource
	removed []string
	first   bool
	short   bool // which form upserts have
}

// How much of a type one response holds, in bytes: what is encoded and not sent yet is memory of each client, and clients
// whose gRPC is as it comes take 4 MiB. They are few all the same: none is acknowledged before it was read.
const (
	pieceSize = 56 << 10 // of resources; with what is around them it fits 64 KiB
	maxPieces = 256
)

// split makes responses of a bounded size; removals come with the last one.
func (d delta) split() ([]delta, error) {
	var out []delta
	if d.whole != nil {
		pieces, err := d.whole.encoded()
		if err != nil {
			return nil, err
		}
		for _, p := range pieces {
			out = append(out, delta{sub: d.sub, raw: p})
		}
		if d.whole = nil; len(out) > 0 && len(d.upserts)+len(d.removed) == 0 {
			return out, nil
		}
	}
	limit := pieceLimit(d.upserts)
	from, size := 0, 0
	for i, r := range d.upserts {
		if size += weight(r); size >= limit && i+1 < len(d.upserts) {
			out = append(out, delta{sub: d.sub, upserts: d.upserts[from : i+1]})
			from, size = i+1, 0
		}
	}
	d.upserts = d.upserts[from:]
	return append(out, d), nil
}

// pieceLimit is how long a piece of the list is, in bytes.
func pieceLimit(list []*discovery.Resource) int {
	total := 0
	for _, r := range list {
		total += weight(r)
	}
	return max(pieceSize, total/maxPieces)
}

// weight is about how long a resource is on the wire, in bytes.
func weight(r *discovery.Resource) int {
	n := len(r.GetName()) + len(r.GetVersion()) + len(r.GetResource().GetTypeUrl()) + len(r.GetResource().GetValue())
	for _, a := range r.GetAliases() {
		n += len(a)
	}
	return n
}

func (d delta) empty() bool { return len(d.upserts)+len(d.removed) == 0 && !d.first }

// collected is one consistent state of what was asked for.
type collected struct {
	deltas  []delta
	version string
	ready   bool      // false before the first Apply
	behind  bool      // other types that the cursor follows changed since they were handed out
	since   time.Time // when the first change came that clients were told of and this is the answer to; zero: none
}

// collect takes what the cursor has not handed out of the given subscriptions, and moves the cursor there. Returns
// errLagging if removals were forgotten.
func (s *Store) collect(c *cursor, subs []*subscription) (out collected, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.synced {
		return collected{}, nil
	}
	for _, sub := range subs {
		l := s.logLocked(sub.typ)
		d := delta{sub: sub, first: !sub.answered, short: sub.short && sub.wildcard}
		pos, seen := c.pos[sub.typ]
		switch {
		case !sub.answered:
			l.initial(&d, s.seq)
		case seen && pos < l.floor:
			return collected{}, errLagging
		case sub.turned && sub.wildcard:
			l.joinAll(pos, &d)
		case sub.turned:
			l.leaveAll(pos, sub)
			l.since(pos, &d)
		default:
			l.since(pos, &d)
		}
		l.answerAsked(&d)
		sub.answered, sub.turned = true, false
		c.pos[sub.typ] = s.seq
		if !d.empty() {
			out.deltas = append(out.deltas, d)
		}
	}
	for typ, pos := range c.pos {
		l := s.logLocked(typ)
		out.behind = out.behind || max(l.live.prev.seq, l.gone.prev.seq) > pos
	}
	out.version, out.ready, out.since = s.versionLocked(), true, c.since
	c.since = time.Time{}
	return out, nil
}

// initial compares all that the subscription covers with the versions that the client already has.
func (l *log) initial(d *delta, now uint64) {
	sub := d.sub
	switch {
	case sub.wildcard && len(sub.known)+len(sub.asked) == 0 && sub.parts:
		d.whole = l.wholeNow(d.short, now)
		l.since(d.whole.seq, d)
	case sub.wildcard && len(sub.known) == 0:
		d.upserts = l.all(d.short)
	case sub.wildcard:
		for e := l.live.next; e != &l.live; e = e.next {
			if sub.known[e.name] != e.short.GetVersion() {
				d.upserts = append(d.upserts, e.form(d.short))
			}
		}
	}
	for n := range sub.known {
		switch e := l.entries[n]; {
		case e == nil || e.short == nil:
			d.removed = append(d.removed, n)
		case !sub.wildcard:
			sub.hold(e)
			if e.short.GetVersion() != sub.known[n] {
				d.upserts = append(d.upserts, e.form(d.short))
			}
		}
	}
	slices.Sort(d.removed)
}

// form is the index of the full or the short one.
func form(shortened bool) int {
	if shortened {
		return 1
	}
	return 0
}

// all is everything that exists, oldest change first. Clients that start together share the list, which nobody may modify.
func (l *log) all(shortened bool) []*discovery.Resource {
	i := form(shortened)
	if newest := max(l.live.prev.seq, l.gone.prev.seq, l.floor); l.lists[i] == nil || l.listSeq[i] != newest {
		l.lists[i], l.listSeq[i] = make([]*discovery.Resource, 0, len(l.entries)-l.dead), newest
		for e := l.live.next; e != &l.live; e = e.next {
			l.lists[i] = append(l.lists[i], e.form(shortened))
		}
	}
	return slices.Clip(l.lists[i])
}

// since walks back from the newest change. What the client asked for by an alias that it has lost is gone for that client.
func (l *log) since(pos uint64, d *delta) {
	for e := l.live.prev; e != &l.live && e.seq > pos; e = e.prev {
		_, sent := d.sub.sent[e.name]
		switch {
		case d.sub.wildcard:
			d.upserts = append(d.upserts, e.form(d.short))
		case d.sub.names.cover(e):
			d.upserts = append(d.upserts, e.form(d.short))
			d.sub.sent[e.name] = struct{}{}
		case sent:
			d.removed = append(d.removed, e.name)
			delete(d.sub.sent, e.name)
		}
	}
	for e := l.gone.prev; e != &l.gone && e.seq > pos; e = e.prev {
		if d.sub.holds(e.name) {
			d.removed = append(d.removed, e.name)
			delete(d.sub.sent, e.name)
		}
	}
	slices.Reverse(d.upserts) // oldest change first
	slices.Reverse(d.removed)
}

// answerAsked adds what was subscribed by name since the last answer; what does not exist is reported as removed.
func (l *log) answerAsked(d *delta) {
	sub := d.sub
	if len(sub.asked) == 0 {
		sub.forget()
		return
	}
	asked := slices.Sorted(maps.Keys(sub.asked))
	sub.asked = map[string]struct{}{} // a cleared one keeps its size
	have, gone := names(d.upserts), map[string]bool{}
	for _, n := range d.removed {
		gone[n] = true
	}
	add := func(e *entry) {
		if !sub.wildcard {
			sub.sent[e.name] = struct{}{}
		}
		if known, ok := sub.known[e.name]; !have[e.name] && !(ok && known == e.short.GetVersion()) {
			have[e.name] = true
			d.upserts = append(d.upserts, e.form(d.short))
		}
	}
	for _, n := range asked {
		found := false
		if e := l.entries[n]; e != nil && e.short != nil {
			add(e)
			found = true
		}
		for _, e := range l.aliases[n].sorted() {
			add(e)
			found = true
		}
		if !found && !gone[n] {
			d.removed = append(d.removed, n)
		}
	}
	sub.forget()
}

func (sub *subscription) holds(n string) bool {
	if sub.wildcard {
		return true
	}
	_, sent := sub.sent[n]
	_, asked := sub.names[n]
	return sent || asked
}

// names is the set of the resources' names.
func names(list []*discovery.Resource) map[string]bool {
	out := make(map[string]bool, len(list))
	for _, r := range list {
		out[r.GetName()] = true
	}
	return out
}

func byName(a, b *entry) int { return strings.Compare(a.name, b.name) }
