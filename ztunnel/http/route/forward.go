package route

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"strings"
	"time"

	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// weighted is one of several clusters.
type weighted struct {
	cluster      string
	header       name // names the cluster when cluster is ""
	authority    string
	weight       uint64
	request, say ops
}

// upgrade says whether a protocol may be turned to.
type upgrade struct {
	protocol string // in lower case
	allowed  bool
}

func newForward(a *route.RouteAction, r *Route, d *defaults) (*Forward, error) {
	err := only(a, "cluster", "cluster_header", "weighted_clusters", "cluster_not_found_response_code", "prefix_rewrite",
		"regex_rewrite", "host_rewrite_literal", "auto_host_rewrite", "host_rewrite_header", "host_rewrite_path_regex",
		"append_x_forwarded_host", "timeout", "idle_timeout", "retry_policy", "request_mirror_policies", "hash_policy", "cors",
		"max_grpc_timeout", "grpc_timeout_offset", "upgrade_configs", "max_stream_duration")
	if err != nil {
		return nil, err
	}
	f := &Forward{Mirrors: d.mirrors, Policy: d.retries}
	if f.NotFound, err = notFound(a.GetClusterNotFoundResponseCode()); err != nil {
		return nil, err
	}
	if err := f.setClusters(a); err != nil {
		return nil, err
	}
	if f.rewrite, err = newRewrite(a, &r.match); err != nil {
		return nil, err
	}
	if err := f.setAuthority(a); err != nil {
		return nil, err
	}
	if err := f.setTimes(a); err != nil {
		return nil, err
	}
	if a.GetRetryPolicy() != nil {
		if f.Policy, err = newRetryPolicy(a.GetRetryPolicy()); err != nil {
			return nil, fmt.Errorf("retry_policy: %w", err)
		}
	}
	own, err := newMirrors(a.GetRequestMirrorPolicies())
	if err != nil {
		return nil, err
	}
	if len(own) > 0 {
		f.Mirrors = own
	}
	for i, h := range a.GetHashPolicy() {
		p, err := newHashPolicy(h)
		if err != nil {
			return nil, fmt.Errorf("hash_policy[%d]: %w", i, err)
		}
		f.hash = append(f.hash, p)
	}
	return f, f.setUpgrades(a)
}

func notFound(c route.RouteAction_ClusterNotFoundResponseCode) (int, error) {
	switch c {
	case route.RouteAction_SERVICE_UNAVAILABLE:
		return http.StatusServiceUnavailable, nil
	case route.RouteAction_NOT_FOUND:
		return http.StatusNotFound, nil
	case route.RouteAction_INTERNAL_SERVER_ERROR:
		return http.StatusInternalServerError, nil
	}
	return 0, fmt.Errorf("cluster_not_found_response_code: %d is not known", c)
}

func (f *Forward) setClusters(a *route.RouteAction) error {
	switch c := a.GetClusterSpecifier().(type) {
	case *route.RouteAction_Cluster:
		if f.cluster = c.Cluster; f.cluster == "" {
			return errors.New("cluster: must not be empty")
		}
	case *route.RouteAction_ClusterHeader:
		var err error
		if f.clusterHeader, err = newName(c.ClusterHeader, true); err != nil {
			return fmt.Errorf("cluster_header: %w", err)
		}
	case *route.RouteAction_WeightedClusters:
		return within("weighted_clusters", f.setWeighted(c.WeightedClusters))
	default:
		return errors.New("cluster_specifier: must be cluster, cluster_header or weighted_clusters")
	}
	return nil
}

func (f *Forward) setWeighted(m *route.WeightedCluster) error {
	if err := only(m, "clusters", "total_weight", "runtime_key_prefix"); err != nil {
		return err
	}
	for i, c := range m.GetClusters() {
		w, err := newWeighted(c)
		if err != nil {
			return fmt.Errorf("clusters[%d]: %w", i, err)
		}
		f.weighted = append(f.weighted, w)
		f.total += w.weight
	}
	if f.total == 0 {
		return errors.New("clusters: the sum of the weights must be more than 0")
	}
	if f.total > math.MaxUint32 {
		return fmt.Errorf("clusters: the sum of the weights must be at most %d", uint32(math.MaxUint32))
	}
	if t := m.GetTotalWeight(); t != nil && uint64(t.GetValue()) != f.total {
		return fmt.Errorf("total_weight: %d is not the sum of the weights, %d", t.GetValue(), f.total)
	}
	return nil
}

func newWeighted(c *route.WeightedCluster_ClusterWeight) (weighted, error) {
	w := weighted{cluster: c.GetName(), authority: c.GetHostRewriteLiteral(), weight: uint64(c.GetWeight().GetValue())}
	err := only(c, "name", "cluster_header", "weight", "request_headers_to_add", "request_headers_to_remove",
		"response_headers_to_add", "response_headers_to_remove", "host_rewrite_literal")
	if err != nil {
		return w, err
	}
	if (w.cluster == "") == (c.GetClusterHeader() == "") {
		return w, errors.New("one of name and cluster_header must be set")
	}
	if w.cluster == "" {
		if w.header, err = newName(c.GetClusterHeader(), true); err != nil {
			return w, fmt.Errorf("cluster_header: %w", err)
		}
	}
	w.request, w.say, err = newHeaderOps(c)
	return w, err
}

func (f *Forward) setUpgrades(a *route.RouteAction) error {
	for i, u := range a.GetUpgradeConfigs() {
		if err := only(u, "upgrade_type", "enabled"); err != nil {
			return fmt.Errorf("upgrade_configs[%d]: %w", i, err)
		}
		one := upgrade{protocol: strings.ToLower(u.GetUpgradeType()), allowed: u.GetEnabled() == nil || u.GetEnabled().GetValue()}
		if one.protocol == "" {
			return fmt.Errorf("upgrade_configs[%d]: upgrade_type: must not be empty", i)
		}
		for _, o := range f.upgrades {
			if o.protocol == one.protocol {
				return fmt.Errorf("upgrade_configs[%d]: upgrade_type: %q is there twice", i, u.GetUpgradeType())
			}
		}
		f.upgrades = append(f.upgrades, one)
	}
	return nil
}

// Upgrade tells whether the route allows or forbids turning to a protocol ("websocket", "CONNECT"); said is false when it
// leaves that to the connection manager.
func (f *Forward) Upgrade(protocol []byte) (allowed, said bool) {
	for i := range f.upgrades {
		if head.EqualFold(protocol, f.upgrades[i].protocol) {
			return f.upgrades[i].allowed, true
		}
	}
	return false, false
}

// Pick chooses the cluster. The route must be a Forward. It allocates only when a header names the cluster.
func (r *Route) Pick(req *head.Request, in *Input) Target {
	f := r.Forward
	if f.cluster != "" {
		return Target{Cluster: f.cluster}
	}
	if f.total == 0 {
		v, _ := f.clusterHeader.first(req, &req.Fields, in)
		return Target{Cluster: string(v)}
	}
	at := in.Random % f.total
	for i := range f.weighted {
		w := &f.weighted[i]
		if at >= w.weight {
			at -= w.weight
			continue
		}
		if w.cluster != "" {
			return Target{Cluster: w.cluster, chosen: w}
		}
		v, _ := w.header.first(req, &req.Fields, in)
		return Target{Cluster: string(v), chosen: w}
	}
	return Target{} // not reached: at is below the sum
}

// Clusters lists the clusters that the route names itself, in order.
func (f *Forward) Clusters() []string {
	if f.cluster != "" {
		return []string{f.cluster}
	}
	var out []string
	for i := range f.weighted {
		if c := f.weighted[i].cluster; c != "" {
			out = append(out, c)
		}
	}
	return out
}

// Request applies to the head what the route asks for before it is sent: header operations, then the rewriting of authority and
// path. It is called once, not for each try. The route must be a Forward. When in.Excess is set then, the head is not to be sent.
func (r *Route) Request(req *head.Request, t Target, in *Input) {
	in.Request, in.route = req, r.Name
	var list [4]*ops
	for i, o := range levels(r, t.chosen, false, &list) {
		if !o.none() {
			o.apply(&req.Fields, in)
		}
		if i == 0 && t.chosen != nil && t.chosen.authority != "" { // the levels above see it already
			req.Authority = []byte(t.chosen.authority)
		}
	}
	f := r.Forward
	f.authority.apply(req, in)
	f.rewrite.apply(req, in)
}

// HostPicked applies auto_host_rewrite, when the host of a try is known (in.Hostname).
func (r *Route) HostPicked(req *head.Request, in *Input) {
	if r.Forward.AutoHost && in.Hostname != "" {
		r.Forward.authority.set(req, []byte(in.Hostname), in)
	}
}

// Response applies the header operations to a response: of the upstream, or any of the proxy's own once the route was matched
// (in.Local), but for that to a preflight. The head of the request must be in in.Request for the operators that ask for it.
func (r *Route) Response(resp *head.Response, t Target, in *Input) {
	in.Response, in.route = resp, r.Name
	var list [4]*ops
	for _, o := range levels(r, t.chosen, true, &list) {
		if !o.none() {
			o.apply(&resp.Fields, in)
		}
	}
	in.Response = nil
}

// Mirror is one copy of requests that goes out of band.
type Mirror struct {
	Cluster string // "": Header names it
	Header  string // in lower case
	Keep    bool   // the authority stays; otherwise it becomes Shadow's

	share  fraction
	header name
}

func newMirrors(list []*route.RouteAction_RequestMirrorPolicy) ([]Mirror, error) {
	var out []Mirror
	for i, m := range list {
		c, err := newMirror(m)
		if err != nil {
			return nil, fmt.Errorf("request_mirror_policies[%d]: %w", i, err)
		}
		out = append(out, c)
	}
	return out, nil
}

func newMirror(m *route.RouteAction_RequestMirrorPolicy) (Mirror, error) {
	out := Mirror{Cluster: m.GetCluster(), Keep: m.GetDisableShadowHostSuffixAppend()}
	// trace_sampled is about spans of the copy, of which there are none.
	err := only(m, "cluster", "cluster_header", "runtime_fraction", "disable_shadow_host_suffix_append", "trace_sampled")
	if err != nil {
		return out, err
	}
	if (out.Cluster == "") == (m.GetClusterHeader() == "") {
		return out, errors.New("one of cluster and cluster_header must be set")
	}
	if out.Cluster == "" {
		if out.header, err = newName(m.GetClusterHeader(), true); err != nil {
			return out, fmt.Errorf("cluster_header: %w", err)
		}
		out.Header = out.header.text
	}
	if f := m.GetRuntimeFraction(); f != nil {
		if out.share, err = newFraction(f.GetDefaultValue()); err != nil {
			return out, fmt.Errorf("runtime_fraction: %w", err)
		}
	}
	return out, nil
}

// Pick returns the cluster that a copy of this request goes to; "" for none. random is for this mirror and request alone. A
// CONNECT is never mirrored.
func (m *Mirror) Pick(req *head.Request, random uint64) string {
	if string(req.Method) == "CONNECT" || !m.share.hit(random) {
		return ""
	}
	if m.Cluster != "" {
		return m.Cluster
	}
	v, _ := m.header.first(req, &req.Fields, &Input{})
	return string(v)
}

// AppendShadow appends an authority with "-shadow" after its name, before its port.
func AppendShadow(dst, authority []byte) []byte {
	const suffix = "-shadow"
	port := portStart(authority)
	for i, c := range authority {
		if c == ':' && i < port && authority[0] != '[' { // several colons: Envoy takes it for a name without a port
			return append(append(dst, authority...), suffix...)
		}
	}
	return append(append(append(dst, authority[:port]...), suffix...), authority[port:]...)
}

// duration reads one; ok is false when it is not set.
func duration(field string, d *durationpb.Duration) (out time.Duration, ok bool, err error) {
	if d == nil {
		return 0, false, nil
	}
	if err := d.CheckValid(); err != nil {
		return 0, false, fmt.Errorf("%s: %w", field, err)
	}
	if out = d.AsDuration(); out < 0 {
		return 0, false, fmt.Errorf("%s: must not be negative", field)
	}
	return out.Truncate(time.Millisecond), true, nil
}
