package client

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/undermesh/undermesh/controller/api/settings"
)

// RouteRule is one VirtualService of a snapshot. It never changes.
type RouteRule struct {
	*settings.RouteRule
	HTTP     []HTTPRule
	TCP, TLS []StreamRule
}

// HTTPRule is one condition of one rule for HTTP.
type HTTPRule struct {
	Caller             *settings.CallerMatch // nil: any caller
	Route              *routev3.Route
	OwnRetryHosts      bool // the rule itself says whether a retry may go to a host that failed
	RedirectCalledPort bool // the redirect goes to the port that is called
}

// StreamRule is one rule for TCP or TLS.
type StreamRule struct {
	Matches      []StreamMatch // of which one must be met; none: every connection
	Destinations []*settings.StreamDestination
}

// StreamMatch is one condition of a StreamRule.
type StreamMatch struct {
	Caller       *settings.CallerMatch // nil: any caller
	SNI          []string              // none: any
	Destinations []netip.Prefix        // none: any
	Source       netip.Prefix          // invalid: any
}

// RouteRules returns the rules that name the host, which may be a pattern and then is looked for as it is written, the oldest
// first. The slice is shared.
func (s *Snapshot) RouteRules(host string) []*RouteRule { return s.routesFor.at(host) }

// AllRouteRules returns every rule in no order: O(n), for the CLI.
func (s *Snapshot) AllRouteRules() []*RouteRule {
	out := make([]*RouteRule, 0, s.routes.size)
	for _, r := range s.routes.all() {
		out = append(out, r)
	}
	return out
}

func parseRoutes(resource string, m *settings.RouteRule) (parsed, error) {
	own := m.GetNamespace() + "/" + m.GetName()
	fail := func(format string, args ...any) (parsed, error) {
		return parsed{}, fmt.Errorf("parse route rule %q: %w", own, fmt.Errorf(format, args...))
	}
	switch {
	case m.GetNamespace() == "" || m.GetName() == "":
		return fail("namespace or name: empty")
	case resource != "" && resource != own:
		return fail("name: differs from the resource name %q", resource)
	case len(m.GetHosts()) == 0:
		return fail("hosts: empty")
	}
	out := &RouteRule{RouteRule: m}
	for i, in := range m.GetHttp() {
		rule := HTTPRule{Caller: in.GetCaller(), Route: &routev3.Route{}, OwnRetryHosts: in.GetOwnRetryHosts(),
			RedirectCalledPort: in.GetRedirectCalledPort()}
		switch err := in.GetRoute().UnmarshalTo(rule.Route); {
		case err != nil:
			return fail("http[%d].route: %w", i, err)
		case rule.Route.GetMatch() == nil || rule.Route.GetAction() == nil:
			return fail("http[%d].route: no match or no action", i)
		case in.GetCaller().GetPort() > math.MaxUint16:
			return fail("http[%d].caller.port: %d is not a port", i, in.GetCaller().GetPort())
		}
		out.HTTP = append(out.HTTP, rule)
	}
	var err error
	if out.TCP, err = parseStreams(m.GetTcp()); err != nil {
		return fail("tcp%w", err)
	}
	if out.TLS, err = parseStreams(m.GetTls()); err != nil {
		return fail("tls%w", err)
	}
	return parsed{routes: out, name: own}, nil
}

// parseStreams returns errors that begin with the place in the list.
func parseStreams(in []*settings.StreamRule) ([]StreamRule, error) {
	var out []StreamRule
	for i, r := range in {
		rule := StreamRule{Destinations: r.GetDestinations()}
		for j, m := range r.GetMatches() {
			match := StreamMatch{Caller: m.GetCaller(), SNI: m.GetSniHosts()}
			if m.GetCaller().GetPort() > math.MaxUint16 {
				return nil, fmt.Errorf("[%d].matches[%d].caller.port: %d is not a port", i, j, m.GetCaller().GetPort())
			}
			for _, text := range m.GetDestinationSubnets() {
				p, err := netip.ParsePrefix(text)
				if err != nil {
					return nil, fmt.Errorf("[%d].matches[%d].destination_subnets: %w", i, j, err)
				}
				match.Destinations = append(match.Destinations, p)
			}
			if text := m.GetSourceSubnet(); text != "" {
				p, err := netip.ParsePrefix(text)
				if err != nil {
					return nil, fmt.Errorf("[%d].matches[%d].source_subnet: %w", i, j, err)
				}
				match.Source = p
			}
			rule.Matches = append(rule.Matches, match)
		}
		out = append(out, rule)
	}
	return out, nil
}

func (b *builder) putRoutes(r *RouteRule) {
	s := b.s
	key := r.GetNamespace() + "/" + r.GetName()
	b.removeRoutes(key)
	s.routes = s.routes.set(b.edit, key, r)
	for _, h := range uniqueHosts(r) {
		s.routesFor = s.routesFor.set(b.edit, h, insert(s.routesFor.at(h), r, routesByAge))
	}
}

func (b *builder) removeRoutes(key string) {
	s := b.s
	r := s.routes.at(key)
	if r == nil {
		return
	}
	s.routes = s.routes.delete(b.edit, key)
	for _, h := range uniqueHosts(r) {
		s.routesFor = put(s.routesFor, b.edit, h, drop(s.routesFor.at(h), r))
	}
}

func uniqueHosts(r *RouteRule) []string {
	seen := make(map[string]bool, len(r.GetHosts()))
	out := make([]string, 0, len(r.GetHosts()))
	for _, h := range r.GetHosts() {
		if !seen[h] {
			seen[h] = true
			out = append(out, h)
		}
	}
	return out
}

// routesByAge orders the rules of one host.
func routesByAge(a, b *RouteRule) int {
	return cmp.Or(a.GetCreated().AsTime().Compare(b.GetCreated().AsTime()), strings.Compare(a.GetNamespace(), b.GetNamespace()),
		strings.Compare(a.GetName(), b.GetName()))
}
