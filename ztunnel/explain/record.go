package explain

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/policy"
)

// Version is that of the files that this build writes, the only one that it reads.
const Version = 1

// Record is a decision with all that it was made of. It is written to a file, and replayed.
type Record struct {
	Version   int                 `json:"version"`
	Resources []Resource          `json:"resources"`         // of the snapshot, those that count
	Ejected   map[string][]string `json:"ejected,omitempty"` // World.Ejected
	Decision  *Decision           `json:"decision"`          // with the question
}

// Resource is one resource of a snapshot.
type Resource struct {
	Type     string          `json:"type"`
	Name     string          `json:"name,omitempty"`
	Resource json.RawMessage `json:"resource"` // JSON of protobuf
}

// NewRecord decides and keeps what the decision was made of.
func NewRecord(w World, q Question) (*Record, error) {
	d, err := Decide(w, q)
	if err != nil {
		return nil, err
	}
	want, err := json.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("encode decision: %w", err)
	}
	for _, rules := range []bool{false, true} { // first with those rules only that name what the request is for
		r := &Record{Version: Version, Ejected: w.Ejected, Decision: d}
		all, err := excerpt(w.Snapshot, q, d, rules)
		if err != nil {
			return nil, err
		}
		if r.Resources, err = encode(all); err != nil {
			return nil, err
		}
		again, err := r.Decide()
		if err != nil {
			return nil, err
		}
		got, err := json.Marshal(again)
		if err != nil {
			return nil, fmt.Errorf("encode decision: %w", err)
		}
		if bytes.Equal(got, want) {
			return r, nil
		}
	}
	return nil, errors.New("record decision: what was taken out of the snapshot decides otherwise")
}

// ReadRecord reads a file that was written as JSON of a Record.
func ReadRecord(raw []byte) (*Record, error) {
	r := &Record{}
	switch err := json.Unmarshal(raw, r); {
	case err != nil:
		return nil, fmt.Errorf("read record: %w", err)
	case r.Version != Version:
		return nil, fmt.Errorf("read record: version %d is not %d", r.Version, Version)
	case r.Decision == nil:
		return nil, errors.New("read record: no decision")
	}
	return r, nil
}

// Decide decides the recorded question again, by what was recorded.
func (r *Record) Decide() (*Decision, error) {
	snap, err := snapshotOf(r.Decision.Generation, r.Resources)
	if err != nil {
		return nil, err
	}
	return Decide(World{Snapshot: snap, Ejected: r.Ejected}, r.Decision.Question)
}

// Differs says what a decision has otherwise than the recorded one, by field; "" when they are equal.
func (r *Record) Differs(now *Decision) (string, error) {
	a, err := fields(r.Decision)
	if err != nil {
		return "", err
	}
	b, err := fields(now)
	if err != nil {
		return "", err
	}
	var out []string
	for _, k := range slices.Sorted(maps.Keys(a)) {
		if !bytes.Equal(a[k], b[k]) {
			out = append(out, fmt.Sprintf("%s was %s and is %s", k, a[k], b[k]))
		}
		delete(b, k)
	}
	for _, k := range slices.Sorted(maps.Keys(b)) {
		out = append(out, fmt.Sprintf("%s was not there and is %s", k, b[k]))
	}
	return strings.Join(out, "\n"), nil
}

func fields(d *Decision) (map[string]json.RawMessage, error) {
	raw, err := json.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("encode decision: %w", err)
	}
	out := map[string]json.RawMessage{}
	return out, json.Unmarshal(raw, &out)
}

func encode(all []client.Resource) ([]Resource, error) {
	out := make([]Resource, 0, len(all))
	for _, r := range all {
		one, err := encodeOne(r)
		if err != nil {
			return nil, err
		}
		out = append(out, one)
	}
	return out, nil
}

func encodeOne(r client.Resource) (Resource, error) {
	text, err := protojson.Marshal(r.Message)
	if err != nil {
		return Resource{}, fmt.Errorf("encode resource %s: %w", r.Name, err)
	}
	typ := "type.googleapis.com/" + string(r.Message.ProtoReflect().Descriptor().FullName())
	return Resource{Type: typ, Name: r.Name, Resource: compacted(text)}, nil
}

// extract collects resources of a snapshot, each once.
type extract struct {
	snap *client.Snapshot
	seen map[any]bool
	out  []client.Resource
}

// excerpt takes out of the snapshot what a decision looked at. With rules it takes all rules, else those of the hosts.
func excerpt(s *client.Snapshot, q Question, d *Decision, rules bool) ([]client.Resource, error) {
	caller, err := callerOf(s, q)
	if err != nil {
		return nil, err
	}
	x := &extract{snap: s, seen: map[any]bool{}}
	x.add(api.MeshSettingsName, s.Mesh())
	source := caller.Workload
	x.workload(source)
	if name := source.Settings.GetScope(); name != "" {
		x.add(name, caller.View.Scope)
	}
	for _, host := range x.hosts(caller, q, d) {
		for _, svc := range s.ServicesByHost(host) {
			x.service(caller, svc)
		}
	}
	for _, k := range d.Clusters {
		spec, _ := caller.Cluster(k.Name)
		for _, w := range caller.Clients(spec) {
			x.workload(w)
		}
	}
	if at, err := netip.ParseAddrPort(d.Connection.Address); err == nil {
		x.address(caller, at.Addr())
	}
	for _, r := range s.AllRouteRules() {
		if rules || slices.ContainsFunc(r.GetHosts(), func(h string) bool { return x.names(h) }) {
			x.add(r.GetNamespace()+"/"+r.GetName(), r.RouteRule)
		}
	}
	slices.SortStableFunc(x.out, func(a, b client.Resource) int {
		return strings.Compare(a.Name, b.Name)
	})
	return x.out, nil
}

func (x *extract) add(name string, m proto.Message) {
	if m == nil || x.seen[m] {
		return
	}
	x.seen[m] = true
	x.out = append(x.out, client.Resource{Name: name, Message: m})
}

// hosts are the names that the request may be for, and those of its clusters.
func (x *extract) hosts(c policy.Caller, q Question, d *Decision) []string {
	var out []string
	if a, err := q.read(); err == nil {
		out = append(c.View.Hosts(string(a.req.Authority)), c.View.Hosts(a.host)...)
	}
	for _, k := range d.Clusters {
		if parts := strings.SplitN(k.Name, "|", 4); len(parts) == 4 {
			out = append(out, parts[3])
		}
	}
	if _, host, ok := strings.Cut(d.Connection.Service, "/"); ok {
		out = append(out, host)
	}
	for _, h := range out {
		x.seen[name(h)] = true
	}
	return out
}

// name is a host that the request may be for.
type name string

// names reports whether a rule with the host may count for one of them.
func (x *extract) names(host string) bool {
	if x.seen[name(host)] {
		return true
	}
	suffix, wild := strings.CutPrefix(host, "*")
	if !wild {
		return false
	}
	for k := range x.seen {
		if n, ok := k.(name); ok && strings.HasSuffix(string(n), suffix) {
			return true
		}
	}
	return false
}

// address takes what is at an address that is dialled.
func (x *extract) address(c policy.Caller, at netip.Addr) {
	network := c.Workload.GetNetwork()
	for _, svc := range x.snap.ServicesByIP(network, at) {
		x.service(c, svc)
	}
	w := x.snap.WorkloadFor(c.Workload.GetNamespace(), network, at)
	if w == nil {
		return
	}
	x.workload(w)
	for key := range w.GetServices() { // one of these may say how it is reached
		namespace, host, _ := strings.Cut(key, "/")
		if svc := x.snap.ServiceByHost(namespace, host); svc != nil {
			x.called(c, svc)
		}
	}
}

// service takes one with its endpoints.
func (x *extract) service(c policy.Caller, svc *client.Service) {
	x.called(c, svc)
	for _, w := range x.snap.Endpoints(svc) {
		x.workload(w)
	}
}

// called takes a service with the rules by which the caller calls it.
func (x *extract) called(c policy.Caller, svc *client.Service) {
	if x.seen[svc] {
		return
	}
	x.seen[svc] = true
	x.add(svc.GetNamespace()+"/"+svc.GetHostname(), &workloadapi.Address{Type: &workloadapi.Address_Service{Service: svc.Service}})
	for _, r := range x.snap.CallRules(c.Workload, svc.GetNamespace(), svc.GetHostname()) {
		x.add(r.GetNamespace()+"/"+r.GetName(), r.CallRule)
	}
}

// workload takes one with its settings and policies.
func (x *extract) workload(w *client.Workload) {
	if x.seen[w] {
		return
	}
	x.seen[w] = true
	x.add(w.GetUid(), &workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: w.Workload}})
	if n := w.SettingsName(); n != "" {
		x.add(n, w.Settings)
	}
	for _, p := range x.snap.Policies(w) {
		x.add(p.GetNamespace()+"/"+p.GetName(), p)
	}
}
