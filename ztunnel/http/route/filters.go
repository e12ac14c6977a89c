package route

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	commonfault "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// Names of the filters that a route may configure.
const (
	FaultFilter = "envoy.filters.http.fault"
	CORSFilter  = "envoy.filters.http.cors"
)

// filters are what one level (route, virtual host, configuration) says for filters.
type filters struct {
	fault *Fault
	cors  *corsPolicy // of typed_per_filter_config
	old   *corsPolicy // of the deprecated field, which holds only when no level has a cors
}

func newFilters(typed map[string]*anypb.Any, old *route.CorsPolicy) (filters, error) {
	var f filters
	for _, name := range slices.Sorted(maps.Keys(typed)) {
		var err error
		switch name {
		case FaultFilter:
			var m faultv3.HTTPFault
			if err = unpack(typed[name], &m); err == nil {
				f.fault, err = newFault(&m)
			}
		case CORSFilter:
			var m corsv3.CorsPolicy
			if err = unpack(typed[name], &m); err == nil {
				f.cors, err = newCORS(&m, "filter_enabled", m.GetFilterEnabled())
			}
		default:
			err = errors.New("not supported")
		}
		if err != nil {
			return f, fmt.Errorf("typed_per_filter_config[%q]: %w", name, err)
		}
	}
	if old != nil {
		var err error
		if f.old, err = newCORS(old, "filter_enabled", old.GetFilterEnabled()); err != nil {
			return f, fmt.Errorf("cors: %w", err)
		}
	}
	return f, nil
}

// Fault delays or aborts requests. The methods of nil do nothing.
type Fault struct {
	headers []header
	cluster string // "": any
	delay   time.Duration
	slow    fraction
	abort   *Abort
	fail    fraction
}

// Abort is an injected answer: a body "fault filter abort" with Status, or what gRPC makes of it.
type Abort struct {
	Status int // 200 when GRPC is said
	GRPC   int // grpc-status; -1: what Status means
}

func newFault(m *faultv3.HTTPFault) (*Fault, error) {
	if err := only(m, "delay", "abort", "headers", "upstream_cluster", "disable_downstream_cluster_stats"); err != nil {
		return nil, err
	}
	f := &Fault{cluster: m.GetUpstreamCluster()}
	var err error
	if f.headers, err = newHeaders(m.GetHeaders(), true); err != nil {
		return nil, fmt.Errorf("headers%w", err)
	}
	if d := m.GetDelay(); d != nil {
		if err := f.setDelay(d); err != nil {
			return nil, fmt.Errorf("delay: %w", err)
		}
	}
	if a := m.GetAbort(); a != nil {
		if err := f.setAbort(a); err != nil {
			return nil, fmt.Errorf("abort: %w", err)
		}
	}
	return f, nil
}

func (f *Fault) setDelay(d *commonfault.FaultDelay) error {
	if err := only(d, "percentage", "fixed_delay"); err != nil {
		return err
	}
	var ok bool
	var err error
	if f.delay, ok, err = duration("fixed_delay", d.GetFixedDelay()); err != nil {
		return err
	} else if !ok {
		return errors.New("fixed_delay: must be set")
	}
	f.slow, err = newFraction(d.GetPercentage())
	return err
}

func (f *Fault) setAbort(a *faultv3.FaultAbort) error {
	if err := only(a, "percentage", "http_status", "grpc_status"); err != nil {
		return err
	}
	switch e := a.GetErrorType().(type) {
	case *faultv3.FaultAbort_HttpStatus:
		if e.HttpStatus < 200 || e.HttpStatus > 599 {
			return fmt.Errorf("http_status: %d is not one of 200 to 599", e.HttpStatus)
		}
		f.abort = &Abort{Status: int(e.HttpStatus), GRPC: -1}
	case *faultv3.FaultAbort_GrpcStatus:
		f.abort = &Abort{Status: http.StatusOK, GRPC: int(e.GrpcStatus)}
	default:
		return errors.New("error_type: must be http_status or grpc_status")
	}
	var err error
	f.fail, err = newFraction(a.GetPercentage())
	return err
}

// Applies reports whether the fault is for this request at all.
func (f *Fault) Applies(req *head.Request, t Target, in *Input) bool {
	if f == nil || f.cluster != "" && f.cluster != t.Cluster {
		return false
	}
	for i := range f.headers {
		if !f.headers[i].matches(req, &req.Fields, in) {
			return false
		}
	}
	return true
}

// Delay is how long a request that Applies is held up (flag DI); 0 for not at all.
func (f *Fault) Delay(random uint64) time.Duration {
	if f == nil || f.delay == 0 || !f.slow.hit(random) {
		return 0
	}
	return f.delay
}

// Abort is how a request that Applies is answered after the delay (flag FI, fault_filter_abort); nil: it is not.
func (f *Fault) Abort(random uint64) *Abort {
	if f == nil || f.abort == nil || !f.fail.hit(random) {
		return nil
	}
	return f.abort
}

// corsPolicy is what one level says.
type corsPolicy struct {
	enabled     fraction
	origins     []text
	methods     string
	headers     string
	expose      string
	maxAge      string
	credentials *wrapperspb.BoolValue
	private     *wrapperspb.BoolValue
	forward     *wrapperspb.BoolValue
}

type corsMessage interface {
	proto.Message
	GetAllowOriginStringMatch() []*matcher.StringMatcher
	GetAllowMethods() string
	GetAllowHeaders() string
	GetExposeHeaders() string
	GetMaxAge() string
	GetAllowCredentials() *wrapperspb.BoolValue
	GetAllowPrivateNetworkAccess() *wrapperspb.BoolValue
	GetForwardNotMatchingPreflights() *wrapperspb.BoolValue
}

type fractional interface {
	GetDefaultValue() *typev3.FractionalPercent
}

func newCORS[F interface {
	comparable
	fractional
}](m corsMessage, field string, enabled F) (*corsPolicy, error) {
	err := only(m, "allow_origin_string_match", "allow_methods", "allow_headers", "expose_headers", "max_age", "allow_credentials",
		"allow_private_network_access", "forward_not_matching_preflights", field)
	if err != nil {
		return nil, err
	}
	p := &corsPolicy{methods: m.GetAllowMethods(), headers: m.GetAllowHeaders(), expose: m.GetExposeHeaders(), maxAge: m.GetMaxAge(),
		credentials: m.GetAllowCredentials(), private: m.GetAllowPrivateNetworkAccess(), forward: m.GetForwardNotMatchingPreflights()}
	var none F
	if enabled != none {
		if p.enabled, err = newFraction(enabled.GetDefaultValue()); err != nil {
			return nil, fmt.Errorf("%s: %w", field, err)
		}
	}
	for i, o := range m.GetAllowOriginStringMatch() {
		t, err := newText(o)
		if err != nil {
			return nil, fmt.Errorf("allow_origin_string_match[%d]: %w", i, err)
		}
		p.origins = append(p.origins, t)
	}
	return p, nil
}

// CORS answers preflights and tells browsers what they may do. The methods of nil do nothing.
type CORS struct {
	corsPolicy
	credentials, private, forward bool
}

// mergeCORS takes each value from the most specific level that has it; whether it is on says the most specific of all.
func mergeCORS(levels ...filters) *CORS {
	var list []*corsPolicy
	for _, l := range levels {
		if l.cors != nil {
			list = append(list, l.cors)
		}
	}
	if len(list) == 0 {
		for _, l := range levels {
			if l.old != nil {
				list = append(list, l.old)
			}
		}
	}
	if len(list) == 0 {
		return nil
	}
	c := &CORS{corsPolicy: corsPolicy{enabled: list[0].enabled}, forward: true}
	for _, p := range slices.Backward(list) {
		if len(p.origins) > 0 {
			c.origins = p.origins
		}
		for _, s := range []struct {
			to   *string
			from string
		}{{&c.methods, p.methods}, {&c.headers, p.headers}, {&c.expose, p.expose}, {&c.maxAge, p.maxAge}} {
			if s.from != "" {
				*s.to = s.from
			}
		}
		for _, b := range []struct {
			to   *bool
			from *wrapperspb.BoolValue
		}{{&c.credentials, p.credentials}, {&c.private, p.private}, {&c.forward, p.forward}} {
			if b.from != nil {
				*b.to = b.from.GetValue()
			}
		}
	}
	return c
}

const requestHeaders, requestPrivate = "access-control-request-headers", "access-control-request-private-network"

// Request looks at a request. origin is that to hand to Response, nil when it is not allowed or none; it is valid as long as the
// request's head. When answered is set the request was a preflight: resp, which was empty, is the answer, without a body, of
// which Response has been made use already.
func (c *CORS) Request(req *head.Request, random uint64, in *Input, resp *head.Response) (origin []byte, answered bool) {
	if c == nil || !c.enabled.hit(random) {
		return nil, false
	}
	from := req.Get(head.Origin)
	if len(from) == 0 {
		return nil, false
	}
	if c.allowed(from, in) {
		origin = from
	}
	method := req.Get(head.AccessControlRequestMethod)
	if string(req.Method) != http.MethodOptions || len(method) == 0 || origin == nil && c.forward {
		return origin, false
	}
	resp.Status = http.StatusOK
	if origin != nil {
		resp.Add(head.Other, "access-control-allow-origin", origin)
	}
	if c.credentials {
		resp.Add(head.Other, "access-control-allow-credentials", []byte("true"))
	}
	if c.methods == "*" {
		resp.Add(head.Other, "access-control-allow-methods", method)
	} else if c.methods != "" {
		resp.Add(head.Other, "access-control-allow-methods", []byte(c.methods))
	}
	if c.headers == "*" {
		v, _ := req.Find(requestHeaders)
		resp.Add(head.Other, "access-control-allow-headers", v)
	} else if c.headers != "" {
		resp.Add(head.Other, "access-control-allow-headers", []byte(c.headers))
	}
	if c.maxAge != "" {
		resp.Add(head.Other, "access-control-max-age", []byte(c.maxAge))
	}
	if v, _ := req.Find(requestPrivate); c.private && string(v) == "true" {
		resp.Add(head.Other, "access-control-allow-private-network", []byte("true"))
	}
	c.Response(resp, origin)
	return origin, true
}

func (c *CORS) allowed(origin []byte, in *Input) bool {
	for i := range c.origins {
		if o := &c.origins[i]; o.match(star, in) || o.match(origin, in) {
			return true
		}
	}
	return false
}

var star = []byte("*")

// Response tells in a response what the origin may do. origin is what Request returned.
func (c *CORS) Response(resp *head.Response, origin []byte) {
	if c == nil || origin == nil {
		return
	}
	resp.Set(head.Other, "access-control-allow-origin", origin)
	if c.credentials {
		resp.Set(head.Other, "access-control-allow-credentials", []byte("true"))
	}
	if c.expose != "" {
		resp.Set(head.Other, "access-control-expose-headers", []byte(c.expose))
	}
}
