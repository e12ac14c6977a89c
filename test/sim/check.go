package sim

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/test/sim/memnet"
)

// Violation is a broken invariant.
type Violation struct {
	Invariant string        // as the package comment lists them
	At        time.Duration // of virtual time since the history began
	Text      string
}

// String is one line.
func (v Violation) String() string { return fmt.Sprintf("%s at %s: %s", v.Invariant, v.At, v.Text) }

// version is what was published at one moment: the policies, one change after the other.
type version struct {
	facts *facts
	hbone map[string]bool // pods, by uid
	// marks are what a node's snapshot of a pod looks like that has this version; nil for one in the midst of a batch.
	marks               map[string]mark
	routeMark, ruleMark mark // of the VirtualServices and DestinationRules, where marks is not nil
}

// mark digests what a snapshot says about a pod.
type mark [sha256.Size]byte

// violate notes a broken invariant. Safe for concurrent use.
func (w *world) violate(invariant, format string, args ...any) {
	w.vmu.Lock()
	defer w.vmu.Unlock()
	if len(w.violations) < 20 {
		w.violations = append(w.violations, Violation{invariant, time.Since(w.start), fmt.Sprintf(format, args...)})
	}
}

// publish follows the informers: each change makes a version.
func (w *world) publish(batch []change) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range batch {
		k := key{c.event.Kind, c.event.Name}
		if c.event.Object == nil {
			delete(w.published, k)
		} else {
			w.published[k] = c.event
		}
		now := *w.versions[len(w.versions)-1].facts
		if c.edit != nil {
			now = facts{authz: maps.Clone(now.authz), peers: maps.Clone(now.peers), routes: maps.Clone(now.routes), rules: maps.Clone(now.rules)}
			c.edit(&now)
		}
		hbone := w.versions[len(w.versions)-1].hbone
		if c.event.Kind == model.KindPod {
			hbone = maps.Clone(hbone)
			for _, p := range w.pods {
				if p.model() == c.event.Name {
					hbone[p.uid] = p.isDeclared(c.event)
				}
			}
		}
		w.versions = append(w.versions, version{facts: &now, hbone: hbone})
	}
	last := len(w.versions) - 1
	comp := compile.New(compile.Config{})
	comp.Apply(slices.Collect(maps.Values(w.published)))
	var list []client.Resource
	for _, r := range comp.Resources() {
		if client.Understands(r.Type) {
			list = append(list, client.Resource{Name: r.Name, Message: r.Message})
		}
	}
	snap, err := client.NewSnapshot(list...)
	if err != nil {
		w.violate("recovery", "compiled resources are not accepted: %v", err)
		return
	}
	marks := map[string]mark{}
	for _, p := range w.pods {
		if m, ok := markOf(snap, p); ok {
			marks[p.uid] = m
		}
	}
	w.versions[last].marks = marks
	w.versions[last].routeMark, w.versions[last].ruleMark = marksOfCalls(snap)
}

// markOf digests what decides about connections to p; false when the snapshot does not know p, or not all of it.
func markOf(snap *client.Snapshot, p *pod) (mark, bool) {
	wl := snap.WorkloadByName(p.ns, p.name)
	if wl == nil || !slices.Contains(wl.Addrs, p.ip) || wl.Identity.ServiceAccount != p.who.name || !snap.PoliciesComplete(wl) {
		return mark{}, false
	}
	h := sha256.New()
	fmt.Fprint(h, wl.GetTunnelProtocol(), wl.Settings.GetMtls())
	var parts []string
	for _, pol := range snap.Policies(wl) {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(pol)
		if err != nil {
			return mark{}, false
		}
		parts = append(parts, string(b))
	}
	slices.Sort(parts)
	fmt.Fprintf(h, "%q", parts)
	return mark(h.Sum(nil)), true
}

// confirm notes which version each pod of the node has, whenever its snapshot changes. It looks before the proxy may act on it,
// or at the same instant.
func (zt *ztunnel) confirm(ctx context.Context) error {
	changed, stop := zt.mesh.Watch()
	defer stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
		if snap := zt.mesh.Snapshot(); snap != nil {
			zt.n.w.confirm(zt.n, snap)
		}
	}
}

func (w *world) confirm(n *node, snap *client.Snapshot) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.opt.Requests {
		w.confirmCallsLocked(n, snap)
	}
	for _, p := range w.pods {
		if p.node != n {
			continue
		}
		m, ok := markOf(snap, p)
		if !ok {
			continue
		}
		first := 0
		if len(p.confirmed) > 0 {
			first = p.confirmed[len(p.confirmed)-1].version
		}
		for i := first; i < len(w.versions); i++ {
			if got, ok := w.versions[i].marks[p.uid]; ok && got == m {
				if i != first || len(p.confirmed) == 0 {
					p.confirmed = append(p.confirmed, confirmation{time.Now(), i})
				}
				break
			}
		}
	}
}

// windowLocked are the versions that may decide about p at this moment.
func (w *world) windowLocked(p *pod) []version {
	limit := time.Now().Add(-Bound)
	first := 0
	for _, c := range p.confirmed {
		if !c.at.After(limit) {
			first = c.version
		}
	}
	return w.versions[first:]
}

// sent is a stream or a request.
type sent interface {
	fmt.Stringer
	senderLocked(to *pod) account // who to may take for the sender; protected by world.mu
}

func (s *stream) senderLocked(*pod) account {
	if !s.captured || s.plain.Load() {
		return account{}
	}
	return s.from.who
}

// delivered judges bytes of s that the application of p has read from a connection.
func (w *world) delivered(s sent, p *pod, port uint16, syn memnet.SYN) {
	w.mu.Lock()
	if f := (flow{syn.Src, syn.Dst}); w.unjudged[f] || !p.inbound.Load() {
		w.unjudged[f] = true
		w.mu.Unlock()
		return // the pod was not in the mesh, or has left it: nobody judges for it, and its connections go on
	}
	who := s.senderLocked(p)
	window := w.windowLocked(p)
	ok := slices.ContainsFunc(window, func(v version) bool { return v.facts.allows(p, port, who) })
	strict := who == account{} && !slices.ContainsFunc(window, func(v version) bool { return !v.facts.strict(p) })
	w.mu.Unlock()
	switch {
	case strict:
		w.violate("plaintext", "%v: plain text was read by %s, port %d is STRICT", s, p, port)
	case !ok:
		w.violate("forbidden", "%v: read by %s port %d, which allows %q in none of %d versions", s, p, port, who.spiffe(), len(window))
	}
}

// legBegins judges plain text that a node's ztunnel sends to a pod of the node.
func (w *world) legBegins(s sent, from, p *pod, port uint16) {
	if from == p {
		return
	}
	w.mu.Lock()
	strict := !slices.ContainsFunc(w.windowLocked(p), func(v version) bool { return !v.hbone[p.uid] || !v.facts.strict(p) })
	w.mu.Unlock()
	if strict {
		w.violate("plaintext", "%v: plain text on the wire to %s, port %d is STRICT", s, p, port)
	}
}

// record is a line of a node's connection log.
type record struct {
	node *node
	at   time.Time
	kv   map[string]string
}

// recorder takes in the connection log of one node.
type recorder struct {
	w *world
	n *node
}

// Write takes whole lines.
func (r *recorder) Write(b []byte) (int, error) {
	for line := range bytes.Lines(b) {
		var fields map[string]any
		in := json.NewDecoder(bytes.NewReader(line))
		in.UseNumber()
		if err := in.Decode(&fields); err != nil {
			r.w.violate("record", "%s wrote %q: %v", r.n.name, line, err)
			continue
		}
		kv := map[string]string{}
		for k, v := range fields {
			kv[k] = fmt.Sprint(v)
		}
		r.take(kv)
	}
	return len(b), nil
}

func (r *recorder) take(kv map[string]string) {
	if f := r.w.opt.Hooks.Record; f != nil {
		f(kv)
	}
	line := record{r.n, time.Now(), kv}
	r.w.checkReason(line)
	r.w.checkPrincipal(line)
	if src, err := netip.ParseAddrPort(kv["src.addr"]); err == nil {
		r.w.mu.Lock()
		r.w.records[src] = append(r.w.records[src], line)
		r.w.mu.Unlock()
	}
}

var reasons = func() map[string]bool {
	known := map[string]bool{}
	for _, r := range reason.All() {
		known[r.String()] = r != reason.None && r != reason.Internal
	}
	return known
}()

func (w *world) checkReason(l record) {
	if l.kv["error"] != "" && !reasons[l.kv["reason"]] {
		w.violate("reason", "record of %s with an error and reason %q: %v", l.node.name, l.kv["reason"], l.kv)
	}
}

// checkPrincipal compares the identity of a record with the pod that had the address while the connection lived.
func (w *world) checkPrincipal(l record) {
	id := l.kv["src.identity"]
	src, err := netip.ParseAddrPort(l.kv["src.addr"])
	if id == "" || err != nil {
		return
	}
	took, err := time.ParseDuration(l.kv["duration"])
	if err != nil {
		w.violate("principal", "record without a duration: %v", l.kv)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.pods {
		// The tunnel may be older than the connection: its client lived when it was opened, and its end takes a moment.
		if p.ip == src.Addr() && p.who.spiffe() == id && !p.born.After(l.at) && (p.died.IsZero() || p.died.After(l.at.Add(-took-w.slack()))) {
			return
		}
	}
	w.violate("principal", "record of %s names %s for %s: %v", l.node.name, id, src, l.kv)
}

// slack is how long after its end a pod may still be recorded: requests are tried again before it is noticed.
func (w *world) slack() time.Duration {
	if w.opt.Requests {
		return 2 * time.Second
	}
	return Bound
}

// checkRefusals looks for the reasons of the streams that broke.
func (w *world) checkRefusals() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.ended {
		if s.err == nil || !s.captured || !s.src.IsValid() || s.from.node.fellSince(s.begin) {
			continue
		}
		if !slices.ContainsFunc(w.records[s.src], func(l record) bool { return l.node == s.from.node && reasons[l.kv["reason"]] }) {
			w.violate("reason", "%v ended with %v after %d bytes, and its node has no reason: %v", s, s.err, s.echoed, w.records[s.src])
		}
	}
}

// checkContinuity is for calm histories: no connection was refused or cut.
func (w *world) checkContinuity() {
	if !w.opt.Calm {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.ended {
		if s.err != nil {
			w.violate("continuity", "%v ended with %v after %d of %d bytes: %v", s, s.err, s.echoed, s.total(), w.records[s.src])
		}
	}
}

// podOf is the pod of a host, nil when it is none's.
func (w *world) podOf(h *memnet.Host) *pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.hosts[h]
}

// goroutines returns the goroutines of this bubble other than the caller, by number.
func goroutines() map[string]string {
	buf := make([]byte, 64<<10)
	first, _, _ := strings.Cut(string(buf[:runtime.Stack(buf, false)]), "\n")
	_, bubble, ok := strings.Cut(first, "synctest bubble ")
	if !ok {
		return nil
	}
	list := map[string]string{}
	n := runtime.Stack(buf, true)
	for n == len(buf) {
		buf = make([]byte, 2*n)
		n = runtime.Stack(buf, true)
	}
	for _, g := range strings.Split(string(buf[:n]), "\n\n")[1:] {
		head, _, _ := strings.Cut(g, "\n")
		number, state, _ := strings.Cut(head, " [")
		if strings.HasSuffix(state, "synctest bubble "+bubble) {
			list[number] = g
		}
	}
	return list
}

// leaked returns the goroutines of this bubble that were not there before.
func leaked(before map[string]string) []string {
	var list []string
	for number, g := range goroutines() {
		if _, ok := before[number]; !ok {
			list = append(list, g)
		}
	}
	slices.Sort(list)
	return list
}
