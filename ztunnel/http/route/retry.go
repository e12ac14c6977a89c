package route

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3" // a rule that names it can be written as JSON
	prioritiesv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"

	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// on is a set of reasons to try again.
type on uint32

const (
	on5xx on = 1 << iota
	onGateway
	onConnect
	onRetriable4xx
	onRefused
	onCodes
	onHeaders
	onReset
	onResetBefore
	onRateLimited
	onCancelled
	onDeadline
	onExhausted
	onUnavailable
	onInternal
	onHTTP3 // accepted, has no effect
	onGRPC  = onCancelled | onDeadline | onExhausted | onUnavailable | onInternal
)

// reasons by their names in retry_on, x-envoy-retry-on (the first eleven) and x-envoy-retry-grpc-on (the others).
func reasonOf(s string) (r on, grpc bool) {
	switch s {
	case "5xx":
		return on5xx, false
	case "gateway-error":
		return onGateway, false
	case "connect-failure":
		return onConnect, false
	case "retriable-4xx":
		return onRetriable4xx, false
	case "refused-stream":
		return onRefused, false
	case "retriable-status-codes":
		return onCodes, false
	case "retriable-headers":
		return onHeaders, false
	case "reset":
		return onReset, false
	case "reset-before-request":
		return onResetBefore, false
	case "envoy-ratelimited":
		return onRateLimited, false
	case "http3-post-connect-failure":
		return onHTTP3, false
	case "cancelled":
		return onCancelled, true
	case "deadline-exceeded":
		return onDeadline, true
	case "resource-exhausted":
		return onExhausted, true
	case "unavailable":
		return onUnavailable, true
	case "internal":
		return onInternal, true
	}
	return 0, false
}

// RetryPolicy is a compiled route.v3.RetryPolicy.
type RetryPolicy struct {
	Retries      int
	PerTry       time.Duration // 0 none
	PerTryIdle   time.Duration // 0 none
	Base, Max    time.Duration // of the back-off: 25 ms and ten times Base unless said
	AnotherHost  bool          // previous_hosts: hosts that were tried are passed over
	HostAttempts int           // how often another host is looked for then
	// Priorities is that of previous_priorities: after so many tries the priorities of the hosts tried are left out; 0: never.
	Priorities int

	on             on
	codes          []uint32
	headers        []header // of responses
	requestHeaders []header // one of which a request must have; empty: all requests
}

const (
	defaultRetries = 1
	defaultBackOff = 25 * time.Millisecond
	previousHosts  = "envoy.retry_host_predicates.previous_hosts"

	previousPriorities = "envoy.retry_priorities.previous_priorities"
)

func newRetryPolicy(m *route.RetryPolicy) (*RetryPolicy, error) {
	if m == nil {
		return nil, nil
	}
	err := only(m, "retry_on", "num_retries", "per_try_timeout", "per_try_idle_timeout", "retry_host_predicate", "retry_priority",
		"host_selection_retry_max_attempts", "retriable_status_codes", "retry_back_off", "retriable_headers", "retriable_request_headers")
	if err != nil {
		return nil, err
	}
	p := &RetryPolicy{Retries: defaultRetries, Base: defaultBackOff, HostAttempts: 1, codes: m.GetRetriableStatusCodes()}
	for s := range strings.SplitSeq(m.GetRetryOn(), ",") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		r, _ := reasonOf(s)
		if r == 0 {
			return nil, fmt.Errorf("retry_on: %q is not known", s)
		}
		p.on |= r
	}
	if n := m.GetNumRetries(); n != nil {
		p.Retries = int(min(n.GetValue(), math.MaxInt32))
	}
	if p.PerTry, _, err = duration("per_try_timeout", m.GetPerTryTimeout()); err != nil {
		return nil, err
	}
	if p.PerTryIdle, _, err = duration("per_try_idle_timeout", m.GetPerTryIdleTimeout()); err != nil {
		return nil, err
	}
	for i, h := range m.GetRetryHostPredicate() {
		if h.GetName() != previousHosts {
			return nil, fmt.Errorf("retry_host_predicate[%d]: %q: not supported", i, h.GetName())
		}
		p.AnotherHost = true
	}
	if err := p.setPriority(m.GetRetryPriority()); err != nil {
		return nil, fmt.Errorf("retry_priority: %w", err)
	}
	if n := m.GetHostSelectionRetryMaxAttempts(); n > 0 {
		p.HostAttempts = int(min(n, math.MaxInt32))
	}
	if err := p.setBackOff(m.GetRetryBackOff()); err != nil {
		return nil, fmt.Errorf("retry_back_off: %w", err)
	}
	if p.headers, err = newHeaders(m.GetRetriableHeaders(), false); err != nil {
		return nil, fmt.Errorf("retriable_headers%w", err)
	}
	if p.requestHeaders, err = newHeaders(m.GetRetriableRequestHeaders(), true); err != nil {
		return nil, fmt.Errorf("retriable_request_headers%w", err)
	}
	return p, nil
}

func (p *RetryPolicy) setPriority(m *route.RetryPolicy_RetryPriority) error {
	if m == nil {
		return nil
	}
	var cfg prioritiesv3.PreviousPrioritiesConfig
	switch {
	case m.GetName() != previousPriorities:
		return fmt.Errorf("%q: not supported", m.GetName())
	case m.GetTypedConfig() == nil:
		return errors.New("typed_config: must be set")
	}
	if err := unpack(m.GetTypedConfig(), &cfg); err != nil {
		return fmt.Errorf("typed_config: %w", err)
	}
	if cfg.GetUpdateFrequency() < 1 {
		return errors.New("update_frequency: must be at least 1")
	}
	p.Priorities = int(cfg.GetUpdateFrequency())
	return nil
}

func (p *RetryPolicy) setBackOff(m *route.RetryPolicy_RetryBackOff) error {
	p.Max = 10 * p.Base
	if m == nil {
		return nil
	}
	if err := only(m, "base_interval", "max_interval"); err != nil {
		return err
	}
	d, ok, err := duration("base_interval", m.GetBaseInterval())
	if err != nil {
		return err
	}
	if !ok {
		return errors.New("base_interval: must be set")
	}
	p.Base = max(d, time.Millisecond)
	p.Max = 10 * min(p.Base, math.MaxInt64/10)
	if d, ok, err = duration("max_interval", m.GetMaxInterval()); err != nil {
		return err
	} else if ok {
		p.Max = max(d, time.Millisecond)
	}
	if p.Max < p.Base {
		return errors.New("max_interval: must not be less than base_interval")
	}
	return nil
}

// Retry is what one request may still do. The zero value never tries again.
type Retry struct {
	Left int

	policy *RetryPolicy // nil: what the request's own fields ask for, with the defaults
	on     on
	codes  []uint32 // of the request's own field
	names  []name   // the same
	next   time.Duration
	max    time.Duration
}

// Retry works out what a request may do, and takes the fields out of it that ask for it (x-envoy-retry-on and what belongs to
// it). It allocates only when such fields are there. The route must be a Forward.
func (r *Route) Retry(req *head.Request, in *Input) Retry {
	p := r.Forward.Policy
	out := Retry{policy: p, Left: defaultRetries, next: defaultBackOff, max: 10 * defaultBackOff}
	if p != nil {
		out.on, out.Left, out.next, out.max = p.on, p.Retries, p.Base, p.Max
	}
	asked := out.addReasons(req, head.XEnvoyRetryOn, false)
	asked = out.addReasons(req, head.XEnvoyRetryGRPCOn, true) || asked
	if p != nil && len(p.requestHeaders) > 0 && !anyMatches(p.requestHeaders, req, &req.Fields, in) {
		out.on = 0
	}
	if v := req.Get(head.XEnvoyMaxRetries); v != nil && out.on != 0 {
		if n, ok := parseInt(v); ok && n >= 0 {
			out.Left = int(min(n, math.MaxInt32))
		}
	}
	if v := req.Get(head.XEnvoyRetriableStatusCodes); v != nil {
		for s := range bytes.SplitSeq(v, []byte(",")) {
			if n, ok := parseUint(bytes.TrimSpace(s)); ok && n < 1000 {
				out.codes = append(out.codes, uint32(n))
			}
		}
	}
	const names = "x-envoy-retriable-header-names"
	if v, ok := req.Find(names); ok {
		for s := range bytes.SplitSeq(v, []byte(",")) {
			if n, err := newName(string(bytes.TrimSpace(s)), false); err == nil {
				out.names = append(out.names, n)
			}
		}
		req.Del(head.Other, names)
	}
	for _, id := range [...]head.ID{head.XEnvoyMaxRetries, head.XEnvoyRetriableStatusCodes} {
		req.Del(id, head.Names[id])
	}
	req.Del(head.Other, "x-envoy-hedge-on-per-try-timeout")
	if out.on == 0 && !asked {
		out.Left = 0
	}
	return out
}

func (t *Retry) addReasons(req *head.Request, id head.ID, wantGRPC bool) bool {
	v := req.Get(id)
	if v == nil {
		return false
	}
	for s := range bytes.SplitSeq(v, []byte(",")) {
		if r, grpc := reasonOf(string(bytes.TrimSpace(s))); grpc == wantGRPC {
			t.on |= r
		}
	}
	return req.Del(id, head.Names[id])
}

func anyMatches(list []header, req *head.Request, f *head.Fields, in *Input) bool {
	for i := range list {
		if list[i].matches(req, f, in) {
			return true
		}
	}
	return false
}

// Enabled reports whether any response or failure could be tried again, so that the body must be kept.
func (t *Retry) Enabled() bool { return t.on != 0 }

// Policy is that of the route; nil when it has none.
func (t *Retry) Policy() *RetryPolicy { return t.policy }

// Head reports whether a response calls for another try; Left is not looked at.
func (t *Retry) Head(resp *head.Response, in *Input) bool {
	if resp.Next(0, head.Other, "x-envoy-ratelimited") >= 0 {
		return t.on&onRateLimited != 0
	}
	s := resp.Status
	switch {
	case t.on == 0:
		return false
	case t.on&on5xx != 0 && s >= 500 && s < 600,
		t.on&onGateway != 0 && s >= 502 && s <= 504,
		t.on&onRetriable4xx != 0 && s == 409,
		t.on&onCodes != 0 && t.hasCode(uint32(s)),
		t.on&onHeaders != 0 && t.hasHeader(resp, in),
		t.on&onGRPC != 0 && t.hasGRPC(resp.Get(head.GRPCStatus)):
		return true
	}
	return false
}

func (t *Retry) hasCode(s uint32) bool {
	for _, c := range t.codes {
		if c == s {
			return true
		}
	}
	if t.policy != nil {
		for _, c := range t.policy.codes {
			if c == s {
				return true
			}
		}
	}
	return false
}

func (t *Retry) hasHeader(resp *head.Response, in *Input) bool {
	for i := range t.names {
		if resp.Next(0, t.names[i].id, t.names[i].text) >= 0 {
			return true
		}
	}
	return t.policy != nil && anyMatches(t.policy.headers, nil, &resp.Fields, in)
}

func (t *Retry) hasGRPC(v []byte) bool {
	n, ok := parseUint(v)
	if !ok {
		return false
	}
	switch n {
	case 1:
		return t.on&onCancelled != 0
	case 4:
		return t.on&onDeadline != 0
	case 8:
		return t.on&onExhausted != 0
	case 13:
		return t.on&onInternal != 0
	case 14:
		return t.on&onUnavailable != 0
	}
	return false
}

// Failure is why a try has no response.
type Failure uint8

// The kinds of failure that differ in whether they are tried again.
const (
	FailedOverflow Failure = iota // a circuit breaker is open: never
	FailedConnect                 // no connection came about
	FailedRefused                 // the stream was refused (REFUSED_STREAM): nothing was done
	FailedReset                   // the stream or the connection ended, or a try timed out
)

// Failed reports whether a failure calls for another try. sent tells whether anything of the request went to the upstream.
func (t *Retry) Failed(why Failure, sent bool) bool {
	switch {
	case why == FailedOverflow:
		return false
	case t.on&(onReset|on5xx|onGateway) != 0,
		t.on&onResetBefore != 0 && !sent,
		t.on&onRefused != 0 && why == FailedRefused,
		t.on&onConnect != 0 && why == FailedConnect:
		return true
	}
	return false
}

// BackOff takes one of what is left and returns how long to wait before it: at random below an interval that doubles.
func (t *Retry) BackOff(random uint64) time.Duration {
	t.Left--
	limit := max(t.next, time.Millisecond)
	t.next = min(2*limit, max(t.max, limit))
	return time.Duration(random%uint64(limit.Milliseconds())) * time.Millisecond
}
