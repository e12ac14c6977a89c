package client

import (
	"cmp"
	"errors"
	"fmt"
	"strconv"
	"strings"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/securityapi"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/short"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
)

// maxNack bounds the text of a refusal.
const maxNack = 4 << 10

// maxSeen bounds, in bytes, what is kept for a controller and given back to it.
const maxSeen = 1 << 10

// state is what one subscriber knows: the snapshot under way and the versions to resume from. One goroutine uses it.
type state struct {
	types    []string
	arrived  map[string]bool              // types that were answered once, on any stream
	versions map[string]map[string]string // type -> resource name -> version
	answered map[string]bool              // types that were answered on this stream
	current  *Snapshot                    // as of the last response that completed a state
	pending  []batch                      // the responses since, which are not a state yet
	fresh    bool                         // nothing was published yet
	seen     string                       // what the controller wants to be told of this state when a stream begins; "" for nothing
}

// batch is what one response brought.
type batch struct {
	good    []parsed
	removed []Key
}

func newState(types []string) state {
	s := state{types: types, arrived: map[string]bool{}, answered: map[string]bool{}, versions: map[string]map[string]string{}, current: empty(), fresh: true}
	for _, t := range types {
		s.versions[t] = map[string]string{}
	}
	return s
}

// begin starts a new stream: what the last one left in the middle is completed by the answers of this one.
func (s *state) begin() { clear(s.answered) }

// apply takes one response. It returns the snapshot to publish (nil while a type has not arrived, or more follows that
// belongs to it), whether there is one to publish, and an error that names each resource that was refused.
//
// A policy and the workloads that name it come in two responses. One that is narrowed from a namespace to a selector would
// hold for nobody between the two, however long that is when the stream breaks there: so nothing is published then. Nor is
// anything derived before: the first answers come in hundreds of responses.
func (s *state) apply(resp *discovery.DeltaDiscoveryResponse) (*Snapshot, bool, error) {
	typ := resp.GetTypeUrl()
	versions, ok := s.versions[typ]
	if !ok {
		return nil, false, fmt.Errorf("apply response: type %q was not asked for", typ)
	}
	var bad []error
	var good []parsed
	for _, r := range resp.GetResources() {
		p, err := decode(typ, r)
		if err != nil {
			bad = append(bad, err)
			continue
		}
		good = append(good, p)
		versions[r.GetName()] = r.GetVersion()
	}
	removed := make([]Key, 0, len(resp.GetRemovedResources()))
	for _, n := range resp.GetRemovedResources() {
		removed = append(removed, Key{Type: typ, Name: n})
		delete(versions, n)
	}
	s.arrived[typ], s.answered[typ] = true, true
	said, seen, _ := strings.Cut(resp.GetControlPlane().GetIdentifier(), " ")
	if seen != "" && len(seen) <= maxSeen && (said == api.DiscoveryPart || said == api.DiscoveryWhole) {
		s.seen = seen
	}
	if len(good)+len(removed) > 0 {
		s.pending = append(s.pending, batch{good, removed})
	}
	if !s.whole(said) {
		return nil, false, errors.Join(bad...)
	}
	generation, stamped := stamp(resp)
	if len(s.pending) == 0 && !s.fresh && (!stamped || generation == s.current.generation) {
		return nil, false, errors.Join(bad...)
	}
	s.current = s.current.withBatches(s.current.generation, s.pending...) // none: another controller's count of the same state
	if !stamped {
		generation = cmp.Or(s.current.mesh.GetGeneration(), s.current.generation+1)
	}
	s.current.generation = generation
	s.pending, s.fresh = nil, false
	return s.current, true, errors.Join(bad...)
}

// whole reports whether the response completes a state. A foreign controller does not say so, and may leave a type
// unanswered on a stream that resumes: then every response counts once all types have arrived.
func (s *state) whole(said string) bool {
	seen := s.arrived
	switch said {
	case api.DiscoveryPart:
		return false
	case api.DiscoveryWhole:
		seen = s.answered
	}
	for _, t := range s.types {
		if !seen[t] {
			return false
		}
	}
	return true
}

// stamp is the controller's generation; a foreign one stamps none, then the mesh settings may have one, or changes count.
func stamp(resp *discovery.DeltaDiscoveryResponse) (uint64, bool) {
	g, err := strconv.ParseUint(resp.GetSystemVersionInfo(), 10, 64)
	return g, err == nil
}

// newMessage returns an empty message of a resource type, nil for an unknown one.
func newMessage(typ string) proto.Message {
	switch typ {
	case api.AddressType:
		return &workloadapi.Address{}
	case api.AuthorizationType:
		return &securityapi.Authorization{}
	case api.MeshSettingsType:
		return &settings.MeshSettings{}
	case api.WorkloadSettingsType:
		return &settings.WorkloadSettings{}
	case api.ScopeType:
		return &settings.Scope{}
	case api.CallRuleType:
		return &settings.CallRule{}
	case api.RouteRuleType:
		return &settings.RouteRule{}
	}
	return nil
}

func decode(typ string, r *discovery.Resource) (parsed, error) {
	msg := newMessage(typ)
	if r.GetResource() == nil || r.GetName() == "" {
		return parsed{}, fmt.Errorf("decode resource %q: no name or no content", r.GetName())
	}
	if got := r.GetResource().GetTypeUrl(); got != typ && got != "" { // short contents need none
		return parsed{}, fmt.Errorf("decode resource %q: type %q in a response of %q", r.GetName(), got, typ)
	}
	if err := proto.Unmarshal(r.GetResource().GetValue(), msg); err != nil {
		return parsed{}, fmt.Errorf("decode resource %q: %w", r.GetName(), err)
	}
	short.Restore(r.GetName(), msg)
	return parse(Resource{Name: r.GetName(), Message: msg})
}

func nack(err error) *rpcstatus.Status {
	text := err.Error()
	if len(text) > maxNack {
		text = text[:maxNack]
	}
	return &rpcstatus.Status{Code: int32(codes.InvalidArgument), Message: strings.ToValidUTF8(text, "")}
}

type metrics struct {
	terminations prometheus.Counter
	messages     *prometheus.CounterVec
	rejected     *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) metrics {
	m := metrics{
		terminations: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "istio_xds_connection_terminations_total", Help: "Streams to the controller that ended.",
		}),
		messages: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "istio_xds_message_total", Help: "Responses received from the controller.",
		}, []string{"url"}),
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "undermesh_xds_message_rejected_total", Help: "Responses with a resource that was refused.",
		}, []string{"url"}),
	}
	if reg != nil {
		reg.MustRegister(m.terminations, m.messages, m.rejected)
	}
	return m
}
