package route

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Config is a compiled route.v3.RouteConfiguration.
type Config struct {
	Name  string
	Hosts []*VirtualHost

	shared  *shared
	domains domains
}

// shared is what a configuration says for all its virtual hosts.
type shared struct {
	request, say     ops
	mirrors          []Mirror
	specificWins     bool // the route's header operations come last
	ignorePort       bool
	ignoreParameters bool // what follows a semicolon is no part of the path
	maxBody          int  // bytes of a direct response
	filters          filters
}

// The most bytes of a direct response.
const (
	defaultMaxBody = 4096    // of a configuration that does not say: Envoy's max_direct_response_body_size_bytes
	aloneMaxBody   = 1 << 20 // of a virtual host that stands alone: what Istio says in its configurations
)

// Compile compiles a virtual host that stands alone. Its domains are not looked at.
func Compile(vh *route.VirtualHost) (*VirtualHost, error) {
	return newHost(vh, &shared{maxBody: aloneMaxBody})
}

// CompileConfig compiles a whole configuration.
func CompileConfig(rc *route.RouteConfiguration) (*Config, error) {
	c, err := newConfig(rc)
	if err != nil {
		return nil, fmt.Errorf("compile route configuration %q: %w", rc.GetName(), err)
	}
	return c, nil
}

func newConfig(rc *route.RouteConfiguration) (*Config, error) {
	err := only(rc, "name", "virtual_hosts", "response_headers_to_add", "response_headers_to_remove", "request_headers_to_add",
		"request_headers_to_remove", "most_specific_header_mutations_wins", "validate_clusters",
		"max_direct_response_body_size_bytes", "request_mirror_policies", "ignore_port_in_host_matching",
		"ignore_path_parameters_in_path_matching", "typed_per_filter_config", "metadata")
	if err != nil {
		return nil, err
	}
	s := &shared{specificWins: rc.GetMostSpecificHeaderMutationsWins(), ignorePort: rc.GetIgnorePortInHostMatching(),
		ignoreParameters: rc.GetIgnorePathParametersInPathMatching(), maxBody: defaultMaxBody}
	if m := rc.GetMaxDirectResponseBodySizeBytes(); m != nil {
		s.maxBody = int(m.GetValue())
	}
	if s.request, s.say, err = newHeaderOps(rc); err != nil {
		return nil, err
	}
	if s.mirrors, err = newMirrors(rc.GetRequestMirrorPolicies()); err != nil {
		return nil, err
	}
	if s.filters, err = newFilters(rc.GetTypedPerFilterConfig(), nil); err != nil {
		return nil, err
	}
	c := &Config{Name: rc.GetName(), shared: s}
	for _, vh := range rc.GetVirtualHosts() {
		v, err := newHost(vh, s)
		if err != nil {
			return nil, err
		}
		c.Hosts = append(c.Hosts, v)
		for _, d := range vh.GetDomains() {
			if !c.domains.add(d, v) {
				return nil, fmt.Errorf("virtual host %q: domains: %q is of another virtual host, or twice", vh.GetName(), d)
			}
		}
	}
	return c, nil
}

func newHost(vh *route.VirtualHost, s *shared) (*VirtualHost, error) {
	v, err := compileHost(vh, s)
	if err != nil {
		return nil, fmt.Errorf("virtual host %q: %w", vh.GetName(), err)
	}
	return v, nil
}

func compileHost(vh *route.VirtualHost, s *shared) (*VirtualHost, error) {
	err := only(vh, "name", "domains", "routes", "request_headers_to_add", "request_headers_to_remove", "response_headers_to_add",
		"response_headers_to_remove", "cors", "typed_per_filter_config", "include_request_attempt_count",
		"include_attempt_count_in_response", "retry_policy", "per_request_buffer_limit_bytes", "request_body_buffer_limit",
		"request_mirror_policies", "metadata")
	if err != nil {
		return nil, err
	}
	v := &VirtualHost{Name: vh.GetName(), AttemptCount: vh.GetIncludeRequestAttemptCount(),
		AttemptCountOnResponse: vh.GetIncludeAttemptCountInResponse(), config: s}
	if v.request, v.say, err = newHeaderOps(vh); err != nil {
		return nil, err
	}
	d := defaults{shared: s, limit: bufferLimit(vh, -1), host: v}
	if d.mirrors, err = newMirrors(vh.GetRequestMirrorPolicies()); err != nil {
		return nil, err
	}
	if len(d.mirrors) == 0 {
		d.mirrors = s.mirrors
	}
	if d.retries, err = newRetryPolicy(vh.GetRetryPolicy()); err != nil {
		return nil, fmt.Errorf("retry_policy: %w", err)
	}
	if d.filters, err = newFilters(vh.GetTypedPerFilterConfig(), vh.GetCors()); err != nil {
		return nil, err
	}
	for i, r := range vh.GetRoutes() {
		c, err := newRoute(r, &d)
		if err != nil {
			return nil, fmt.Errorf("routes[%d] %q: %w", i, r.GetName(), err)
		}
		v.Routes = append(v.Routes, c)
	}
	v.index = newIndex(v.Routes)
	return v, nil
}

// defaults are what a virtual host says for its routes.
type defaults struct {
	shared  *shared
	host    *VirtualHost
	retries *RetryPolicy
	mirrors []Mirror
	limit   int64
	filters filters
}

func newRoute(r *route.Route, d *defaults) (*Route, error) {
	// stat_prefix names statistics of the route, which are not kept, and changes nothing of what becomes of a request.
	err := only(r, "name", "stat_prefix", "match", "route", "redirect", "direct_response", "metadata", "decorator", "typed_per_filter_config",
		"request_headers_to_add", "request_headers_to_remove", "response_headers_to_add", "response_headers_to_remove",
		"per_request_buffer_limit_bytes", "request_body_buffer_limit")
	if err != nil {
		return nil, err
	}
	out := &Route{Name: r.GetName(), Object: object(r.GetMetadata()), Host: d.host}
	if out.match, err = newMatch(r.GetMatch()); err != nil {
		return nil, fmt.Errorf("match: %w", err)
	}
	if out.request, out.say, err = newHeaderOps(r); err != nil {
		return nil, err
	}
	if dec := r.GetDecorator(); dec != nil {
		if err := only(dec, "operation", "propagate"); err != nil {
			return nil, fmt.Errorf("decorator: %w", err)
		}
		if hasControl(dec.GetOperation()) {
			return nil, errors.New("decorator: operation: has a control character")
		}
		out.Operation, out.Propagate = dec.GetOperation(), dec.GetPropagate() == nil || dec.GetPropagate().GetValue()
	}
	own, err := newFilters(r.GetTypedPerFilterConfig(), r.GetRoute().GetCors())
	if err != nil {
		return nil, err
	}
	out.Fault = cmp.Or(own.fault, d.filters.fault, d.shared.filters.fault)
	switch a := r.GetAction().(type) {
	case *route.Route_Route:
		out.CORS = mergeCORS(own, d.filters, d.shared.filters)
		out.Forward, err = newForward(a.Route, out, d)
		if out.Forward != nil {
			out.Forward.BufferLimit = bufferLimit(r, d.limit)
		}
		err = within("route", err)
	case *route.Route_Redirect:
		out.Redirect, err = newRedirect(a.Redirect, out)
		err = within("redirect", err)
	case *route.Route_DirectResponse:
		out.Direct, err = newDirect(a.DirectResponse, d.shared.maxBody)
		err = within("direct_response", err)
	default:
		err = errors.New("action: must be route, redirect or direct_response")
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

func within(field string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", field, err)
	}
	return nil
}

type limited interface {
	proto.Message
	GetPerRequestBufferLimitBytes() *wrapperspb.UInt32Value
	GetRequestBodyBufferLimit() *wrapperspb.UInt64Value
}

func bufferLimit(m limited, otherwise int64) int64 {
	if l := m.GetRequestBodyBufferLimit(); l != nil {
		return int64(min(l.GetValue(), 1<<62))
	}
	if l := m.GetPerRequestBufferLimitBytes(); l != nil {
		return int64(l.GetValue())
	}
	return otherwise
}

// object is where Istio says which of its objects a route comes from.
func object(m *core.Metadata) string {
	return m.GetFilterMetadata()["istio"].GetFields()["config"].GetStringValue()
}

func newDirect(m *route.DirectResponseAction, limit int) (*Direct, error) {
	if err := only(m, "status", "body"); err != nil {
		return nil, err
	}
	d := &Direct{Status: int(m.GetStatus())}
	if d.Status < 200 || d.Status > 599 {
		return nil, fmt.Errorf("status: %d is not one of 200 to 599", d.Status)
	}
	if m.GetBody() != nil {
		if err := only(m.GetBody(), "inline_string", "inline_bytes"); err != nil {
			return nil, fmt.Errorf("body: %w", err)
		}
		d.Body = slices.Concat([]byte(m.GetBody().GetInlineString()), m.GetBody().GetInlineBytes())
	}
	if len(d.Body) > limit {
		return nil, fmt.Errorf("body: %d bytes, at most %d are allowed", len(d.Body), limit)
	}
	return d, nil
}

// only returns an error that names a field which is set and is not among those that the caller does.
func only(m proto.Message, done ...string) error {
	if m == nil || !m.ProtoReflect().IsValid() {
		return nil
	}
	var bad []string
	m.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		if !slices.Contains(done, string(f.Name())) {
			bad = append(bad, string(f.Name()))
		}
		return true
	})
	if len(bad) > 0 {
		slices.Sort(bad)
		return fmt.Errorf("%s: not supported", bad[0])
	}
	if len(m.ProtoReflect().GetUnknown()) > 0 {
		return errors.New("has fields that are not known here")
	}
	return nil
}

// unpack decodes an extension into m, which must be of its type.
func unpack(a *anypb.Any, m proto.Message) error {
	if err := a.UnmarshalTo(m); err != nil {
		return fmt.Errorf("decode: %w", err)
	}
	return nil
}
