package validate

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/undermesh/undermesh/controller/api"
)

// retryConditions are the words of retryOn; numbers are status codes.
var retryConditions = []string{"5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "envoy-ratelimited", "retriable-4xx",
	"refused-stream", "retriable-status-codes", "retriable-headers", "http3-post-connect-failure",
	"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable"}

// grpcStatuses are the names of the status codes of gRPC.
var grpcStatuses = []string{"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED",
	"RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

func (c *collector) retries(r *networking.HTTPRetry, at string) {
	if r == nil {
		return
	}
	switch {
	case r.GetAttempts() < 0:
		c.add(Error, at+".attempts", "%d is negative", r.GetAttempts())
	case r.GetAttempts() == 0 && (r.GetPerTryTimeout() != nil || r.GetRetryOn() != "" || r.GetBackoff() != nil):
		c.add(Error, at+".attempts", "is 0, which switches retries off: the other fields have no meaning")
	}
	c.atLeast(r.GetPerTryTimeout(), time.Millisecond, at+".perTryTimeout")
	c.atLeast(r.GetBackoff(), time.Millisecond, at+".backoff")
	if r.GetRetryOn() == "" {
		return
	}
	for word := range strings.SplitSeq(r.GetRetryOn(), ",") {
		word = strings.TrimSpace(word)
		if n, err := strconv.Atoi(word); err == nil && n >= 100 && n <= 599 {
			continue
		}
		if !slices.Contains(retryConditions, word) {
			c.add(Error, at+".retryOn", "unknown condition %q", word)
			if meant := closest(word, retryConditions); meant != "" {
				c.hint("did you mean %q?", meant)
			}
		}
	}
}

func (c *collector) percent(p *networking.Percent, at string) {
	if p != nil {
		between(c, p.GetValue(), 0, 100, at+".value")
		if v := p.GetValue(); v > 0 && v < 0.0001 {
			c.add(Error, at+".value", "%v is less than 0.0001, the least share that is counted", v)
		}
	}
}

func (c *collector) fault(f *networking.HTTPFaultInjection, at string) {
	if f == nil {
		return
	}
	if f.GetDelay() == nil && f.GetAbort() == nil {
		c.add(Error, at, "delay or abort is required")
	}
	if d := f.GetDelay(); d != nil {
		c.percent(d.GetPercentage(), at+".delay.percentage")
		between(c, d.GetPercent(), 0, 100, at+".delay.percent") //nolint:staticcheck // still read
		switch d.GetHttpDelayType().(type) {
		case nil:
			c.add(Error, at+".delay.fixedDelay", "is required")
		case *networking.HTTPFaultInjection_Delay_ExponentialDelay:
			c.add(Error, at+".delay.exponentialDelay", "is not supported")
		}
		c.atLeast(d.GetFixedDelay(), time.Millisecond, at+".delay.fixedDelay")
	}
	if a := f.GetAbort(); a != nil {
		c.percent(a.GetPercentage(), at+".abort.percentage")
		switch e := a.GetErrorType().(type) {
		case nil:
			c.add(Error, at+".abort", "httpStatus or grpcStatus is required")
		case *networking.HTTPFaultInjection_Abort_HttpStatus:
			between(c, e.HttpStatus, 200, 599, at+".abort.httpStatus")
		case *networking.HTTPFaultInjection_Abort_GrpcStatus:
			if !slices.Contains(grpcStatuses, e.GrpcStatus) {
				c.add(Error, at+".abort.grpcStatus", "%q is not a status of gRPC", e.GrpcStatus)
				c.suggest(e.GrpcStatus, grpcStatuses)
			}
		case *networking.HTTPFaultInjection_Abort_Http2Error:
			c.add(Error, at+".abort.http2Error", "is not supported")
		}
	}
}

func (c *collector) mirrors(r *networking.HTTPRoute, at string) {
	if r.GetMirror() != nil && len(r.GetMirrors()) > 0 {
		c.add(Error, at+".mirrors", "excludes mirror")
	}
	c.destination(r.GetMirror(), at+".mirror")
	c.percent(r.GetMirrorPercentage(), at+".mirrorPercentage")
	if r.GetMirrorPercentage() != nil && r.GetMirror() == nil {
		c.add(Warning, at+".mirrorPercentage", "has no meaning without mirror")
	}
	if p := r.GetMirrorPercent(); p != nil { //nolint:staticcheck // still read
		between(c, p.GetValue(), 0, 100, at+".mirrorPercent")
	}
	for i, m := range r.GetMirrors() {
		if m.GetDestination() == nil {
			c.add(Error, at+indexed(".mirrors", i)+".destination", "is required")
		}
		c.destination(m.GetDestination(), at+indexed(".mirrors", i)+".destination")
		c.percent(m.GetPercentage(), at+indexed(".mirrors", i)+".percentage")
	}
}

func (c *collector) cors(p *networking.CorsPolicy, at string) {
	for i, o := range p.GetAllowOrigins() {
		c.stringMatch(o, at+indexed(".allowOrigins", i), false)
		if m, ok := o.GetMatchType().(*networking.StringMatch_Exact); ok {
			c.must(at+indexed(".allowOrigins", i)+".exact", filled(m.Exact))
		}
	}
	for i, m := range p.GetAllowMethods() {
		c.method(m, at+indexed(".allowMethods", i))
	}
	c.each(p.GetAllowHeaders(), at+".allowHeaders", headerName)
	c.each(p.GetExposeHeaders(), at+".exposeHeaders", headerName)
	c.atLeast(p.GetMaxAge(), 0, at+".maxAge")
	if d := p.GetMaxAge(); d.GetNanos() != 0 {
		c.add(Warning, at+".maxAge", "is told to browsers in whole seconds: %s is %d", d.AsDuration(), d.GetSeconds())
	}
}

func (c *collector) headerEdits(h *networking.Headers, at string) {
	for name, ops := range map[string]*networking.Headers_HeaderOperations{"request": h.GetRequest(), "response": h.GetResponse()} {
		for _, k := range sortedKeys(ops.GetSet()) {
			c.headerEdit(k, name == "request", at+"."+name+".set."+k)
			c.must(at+"."+name+".set."+k, headerValue(k, ops.GetSet()[k], name == "response"))
		}
		for _, k := range sortedKeys(ops.GetAdd()) {
			c.headerEdit(k, name == "request", at+"."+name+".add."+k)
			c.must(at+"."+name+".add."+k, headerValue(k, ops.GetAdd()[k], name == "response"))
		}
		for i, k := range ops.GetRemove() {
			c.headerEdit(k, false, at+"."+name+indexed(".remove", i))
		}
	}
}

// headerValue checks the value of a header that is written: %NAME% stands for what Envoy knows of the request, and %% for %.
func headerValue(name, text string, response bool) error {
	switch {
	case !httpguts.ValidHeaderFieldValue(text):
		return errors.New("has a character that no header may have")
	case strings.HasPrefix(name, ":") || strings.EqualFold(name, "host"):
		return oneWord(text)
	}
	for {
		_, rest, found := strings.Cut(text, "%")
		if !found {
			return nil
		}
		if text, found = strings.CutPrefix(rest, "%"); found {
			continue
		}
		m := operatorForm.FindStringSubmatch(rest)
		if m == nil {
			return hinted{fmt.Errorf("%q has a %% that is not closed", "%"+rest), "write %% for the character itself"}
		}
		if err := known(m[1], m[2], m[3], response); err != nil {
			return err
		}
		text = rest[len(m[0]):]
	}
}

// operatorForm is NAME%, NAME(ARGUMENT)% or NAME(ARGUMENT):LENGTH%.
var operatorForm = regexp.MustCompile(`^([A-Za-z0-9_.]*)(\([^)]*\))?(:[0-9]+)?%`)

// operators are those without an argument that nodes know. A value with another one would be written by nobody.
var operators = []string{"DOWNSTREAM_DIRECT_REMOTE_ADDRESS", "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT", "DOWNSTREAM_LOCAL_ADDRESS",
	"DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", "DOWNSTREAM_LOCAL_PORT", "DOWNSTREAM_LOCAL_URI_SAN", "DOWNSTREAM_PEER_URI_SAN",
	"DOWNSTREAM_REMOTE_ADDRESS", "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", "DOWNSTREAM_REMOTE_PORT", "PROTOCOL", "REQUESTED_SERVER_NAME",
	"RESPONSE_CODE", "RESPONSE_CODE_DETAILS", "RESPONSE_FLAGS", "ROUTE_NAME", "UPSTREAM_CLUSTER", "UPSTREAM_HOST", "UPSTREAM_LOCAL_ADDRESS",
	"UPSTREAM_REMOTE_ADDRESS", "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", "UPSTREAM_REMOTE_PORT", "UPSTREAM_REQUEST_ATTEMPT_COUNT"}

// known checks an operator; arg has its brackets and length its colon, or they are empty.
func known(name, arg, length string, response bool) error {
	if n, err := strconv.Atoi(strings.TrimPrefix(length, ":")); length != "" && (err != nil || n == 0) {
		return fmt.Errorf("operator %%%s%%: %s is not the length of a value", name, strings.TrimPrefix(length, ":"))
	}
	switch {
	case name == "RESP" && !response:
		return errors.New("operator %RESP%: a request knows nothing of its response")
	case name == "REQ" || name == "RESP":
		one, other, both := strings.Cut(strings.Trim(arg, "()"), "?")
		err := matchedName(one, name == "REQ")
		if err == nil && both {
			err = matchedName(other, name == "REQ")
		}
		if err != nil {
			return fmt.Errorf("operator %%%s%%: %w", name, err)
		}
		return nil
	case name == "START_TIME":
		if arg != "" && arg != "()" && arg != "(%s)" {
			return fmt.Errorf("operator %%START_TIME%%: the format %s is not supported, %%s is", arg)
		}
		return nil
	case !slices.Contains(operators, name):
		return hinted{fmt.Errorf("operator %%%s%% is not supported", name), "write %% for the character itself"}
	case arg != "" || length != "":
		return fmt.Errorf("operator %%%s%% takes no argument", name)
	}
	return nil
}

// matchedName checks the name of a header whose value is looked at: pseudos tells whether what HTTP/2 has beside the headers of a
// request may be named too.
func matchedName(name string, pseudos bool) error {
	if err := headerName(name); err != nil {
		return err
	}
	if strings.HasPrefix(name, ":") && !(pseudos && slices.Contains([]string{":authority", ":method", ":path", ":scheme"}, strings.ToLower(name))) {
		return fmt.Errorf("%q cannot be looked at here", name)
	}
	return nil
}

// headerEdit checks a header that is set, added or removed. Only a request may get another authority.
func (c *collector) headerEdit(name string, authority bool, at string) {
	c.header(name, at)
	if api.Framing(strings.ToLower(name)) {
		c.add(Error, at, "%q says how a message is carried and cannot be changed", name)
	}
	if pseudo := strings.HasPrefix(name, ":") || strings.EqualFold(name, "host"); pseudo && !(authority && (name == ":authority" || strings.EqualFold(name, "host"))) {
		c.add(Error, at, "%q cannot be changed here", name)
		if authority {
			c.hint("rewrite has uri and authority")
		}
	}
}
