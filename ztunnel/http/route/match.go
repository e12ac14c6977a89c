package route

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/undermesh/undermesh/ztunnel/http/head"
)

type pathKind uint8

const (
	pathPrefix    pathKind = iota
	pathExact              // without query and fragment, as all of them
	pathRegex              // the whole path
	pathSeparated          // the prefix, then nothing or a slash
	pathConnect            // CONNECT, whatever the path
)

// match is a compiled route.v3.RouteMatch.
type match struct {
	kind    pathKind
	path    text
	grpc    bool
	share   fraction
	headers []header
	query   []query
}

func newMatch(m *route.RouteMatch) (match, error) {
	var out match
	if m == nil {
		return out, errors.New("must be set")
	}
	if err := only(m, "prefix", "path", "safe_regex", "path_separated_prefix", "connect_matcher", "case_sensitive",
		"runtime_fraction", "headers", "query_parameters", "grpc"); err != nil {
		return out, err
	}
	if err := out.setPath(m); err != nil {
		return out, err
	}
	if m.GetGrpc() != nil {
		if err := only(m.GetGrpc()); err != nil {
			return out, fmt.Errorf("grpc: %w", err)
		}
		out.grpc = true
	}
	var err error
	if f := m.GetRuntimeFraction(); f != nil {
		if out.share, err = newFraction(f.GetDefaultValue()); err != nil {
			return out, fmt.Errorf("runtime_fraction: %w", err)
		}
	}
	if out.headers, err = newHeaders(m.GetHeaders(), true); err != nil {
		return out, fmt.Errorf("headers%w", err)
	}
	for i, q := range m.GetQueryParameters() {
		c, err := newQuery(q)
		if err != nil {
			return out, fmt.Errorf("query_parameters[%d]: %w", i, err)
		}
		out.query = append(out.query, c)
	}
	return out, nil
}

func (m *match) setPath(from *route.RouteMatch) error {
	fold := from.GetCaseSensitive() != nil && !from.GetCaseSensitive().GetValue()
	switch p := from.GetPathSpecifier().(type) {
	case *route.RouteMatch_Prefix:
		m.kind, m.path = pathPrefix, text{kind: textPrefix, fold: fold, want: p.Prefix}
	case *route.RouteMatch_Path:
		m.kind, m.path = pathExact, text{kind: textExact, fold: fold, want: p.Path}
	case *route.RouteMatch_PathSeparatedPrefix:
		if s := p.PathSeparatedPrefix; len(s) < 2 || s[0] != '/' || s[len(s)-1] == '/' || strings.ContainsAny(s, "?#") {
			return errors.New("path_separated_prefix: must begin with a slash, not end with one, and have no query or fragment")
		}
		m.kind, m.path = pathSeparated, text{kind: textPrefix, fold: fold, want: p.PathSeparatedPrefix}
	case *route.RouteMatch_SafeRegex:
		re, err := newPattern(p.SafeRegex)
		if err != nil {
			return fmt.Errorf("safe_regex: %w", err)
		}
		m.kind, m.path, fold = pathRegex, text{kind: textRegex, regex: re}, false
	case *route.RouteMatch_ConnectMatcher_:
		if err := only(p.ConnectMatcher); err != nil {
			return fmt.Errorf("connect_matcher: %w", err)
		}
		m.kind, m.path = pathConnect, text{kind: textAny}
	default:
		return errors.New("path_specifier: must be set")
	}
	if fold {
		m.path.want = strings.ToLower(m.path.want)
	}
	return nil
}

// bare is a path without query and fragment.
func bare(path []byte) []byte {
	if i := bytes.IndexAny(path, "?#"); i >= 0 {
		return path[:i]
	}
	return path
}

// literal is what every path that matches begins with; "" is anything.
func (m *match) literal() string {
	switch {
	case m.kind == pathConnect || m.path.fold:
		return ""
	case m.kind == pathRegex:
		return m.path.regex.prefix
	}
	return m.path.want
}

// matches reports whether a request does. path is that which is compared: without query, fragment and maybe parameters.
func (m *match) matches(req *head.Request, path []byte, in *Input) bool {
	if !m.matchesPath(req, path, in) || !m.share.hit(in.Random) {
		return false
	}
	if m.grpc && !IsGRPC(req) {
		return false
	}
	for i := range m.headers {
		if !m.headers[i].matches(req, &req.Fields, in) {
			return false
		}
	}
	for i := range m.query {
		if !m.query[i].matches(req.Path, in) {
			return false
		}
	}
	return true
}

func (m *match) matchesPath(req *head.Request, path []byte, in *Input) bool {
	if m.kind == pathConnect {
		return isConnect(req)
	}
	if req.Path == nil || !m.path.match(path, in) {
		return false
	}
	return m.kind != pathSeparated || len(path) == len(m.path.want) || path[len(m.path.want)] == '/'
}

// isConnect is false for an extended CONNECT, which Envoy handles as the upgrade of a GET.
func isConnect(req *head.Request) bool { return req.Protocol == nil && string(req.Method) == "CONNECT" }

// IsGRPC reports whether a request is gRPC's (grpc-web's are not), by its content type. As Envoy does, it takes several lines
// for one value.
func IsGRPC(req *head.Request) bool {
	const want, name = "application/grpc", "content-type"
	v := req.Get(head.ContentType)
	if req.Path == nil || len(v) < len(want) || string(v[:len(want)]) != want {
		return false
	}
	if len(v) > len(want) {
		return v[len(want)] == '+'
	}
	return req.Next(req.Next(0, head.ContentType, name)+1, head.ContentType, name) < 0
}

// fraction is a share of requests; the zero value is all of them.
type fraction struct{ below, of uint64 }

func newFraction(p *typev3.FractionalPercent) (fraction, error) {
	f := fraction{below: uint64(p.GetNumerator())}
	switch p.GetDenominator() {
	case typev3.FractionalPercent_HUNDRED:
		f.of = 100
	case typev3.FractionalPercent_TEN_THOUSAND:
		f.of = 10_000
	case typev3.FractionalPercent_MILLION:
		f.of = 1_000_000
	default:
		return f, fmt.Errorf("denominator: %d is not known", p.GetDenominator())
	}
	return f, nil
}

func (f fraction) hit(random uint64) bool { return f.of == 0 || random%f.of < f.below }

// query is a compiled route.v3.QueryParameterMatcher.
type query struct {
	name    string
	present bool // the parameter must be there, whatever its value, or (want false) must not
	want    bool
	text    text
}

func newQuery(m *route.QueryParameterMatcher) (query, error) {
	q := query{name: m.GetName(), want: true}
	if err := only(m, "name", "string_match", "present_match"); err != nil {
		return q, err
	}
	if q.name == "" {
		return q, errors.New("name: must be set")
	}
	switch p := m.GetQueryParameterMatchSpecifier().(type) {
	case *route.QueryParameterMatcher_StringMatch:
		var err error
		if q.text, err = newText(p.StringMatch); err != nil {
			return q, fmt.Errorf("string_match: %w", err)
		}
	case *route.QueryParameterMatcher_PresentMatch:
		q.present, q.want = true, p.PresentMatch
	default:
		q.present = true
	}
	return q, nil
}

func (q *query) matches(path []byte, in *Input) bool {
	v, ok := parameter(path, q.name)
	if q.present {
		return ok == q.want
	}
	return ok && q.text.match(v, in)
}

// parameter returns the first value of a query parameter, as it is written.
func parameter(path []byte, name string) (value []byte, ok bool) {
	i := bytes.IndexByte(path, '?')
	if i < 0 {
		return nil, false
	}
	for rest := path[i+1:]; len(rest) > 0; {
		one := rest
		if i := bytes.IndexByte(rest, '&'); i >= 0 {
			one, rest = rest[:i], rest[i+1:]
		} else {
			rest = nil
		}
		key := one
		if i := bytes.IndexByte(one, '='); i >= 0 {
			key, value = one[:i], one[i+1:]
		} else {
			value = nil
		}
		if string(key) == name {
			return value, true
		}
	}
	return nil, false
}
