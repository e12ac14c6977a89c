package route

import (
	"fmt"
	"strconv"

	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// Passed is a route that was passed over, and why.
type Passed struct {
	Route *Route
	Why   string // path "/a" does not begin with "/b"
}

// Explain is Match with the routes that it passes over, in order. It is for people and allocates.
func (v *VirtualHost) Explain(req *head.Request, in *Input) (taken *Route, passed []Passed) {
	path := v.compared(req, in)
	for _, r := range v.Routes {
		if r.match.matches(req, path, in) {
			return r, passed
		}
		passed = append(passed, Passed{r, r.match.whyNot(req, path, in)})
	}
	return nil, passed
}

// whyNot names the first condition that a request which does not match fails, in the order of matches.
func (m *match) whyNot(req *head.Request, path []byte, in *Input) string {
	switch {
	case in.Excess != "":
		return "the request was given up before: its regular expressions cost too much"
	case !m.matchesPath(req, path, in):
		return m.whyNotPath(req, path)
	case !m.share.hit(in.Random):
		return fmt.Sprintf("it takes %d of %d requests, and this is none of them", m.share.below, m.share.of)
	case m.grpc && !IsGRPC(req):
		return fmt.Sprintf("content-type %s is not gRPC's", quoted(req.Get(head.ContentType), req.Has(head.ContentType)))
	}
	for i := range m.headers {
		if h := &m.headers[i]; !h.matches(req, &req.Fields, in) {
			return h.whyNot(req, in)
		}
	}
	for i := range m.query {
		if q := &m.query[i]; !q.matches(req.Path, in) {
			v, ok := parameter(req.Path, q.name)
			if q.present {
				return fmt.Sprintf("query parameter %s is %s", q.name, presence(ok))
			}
			return fmt.Sprintf("query parameter %s is %s, which %s", q.name, quoted(v, ok), q.text.not())
		}
	}
	return ""
}

func (m *match) whyNotPath(req *head.Request, path []byte) string {
	switch {
	case m.kind == pathConnect:
		return fmt.Sprintf("method %q is not CONNECT", req.Method)
	case req.Path == nil:
		return "the request has no path"
	case m.kind == pathSeparated:
		return fmt.Sprintf("path %q is neither %q nor below it", path, m.path.want)
	}
	return fmt.Sprintf("path %q %s", path, m.path.not())
}

func (h *header) whyNot(req *head.Request, in *Input) string {
	what := "header " + h.name.text
	switch h.name.pseudo {
	case pseudoMethod:
		what = "method"
	case pseudoAuthority:
		what = "authority"
	case pseudoScheme:
		what = "scheme"
	case pseudoPath:
		what = "path"
	}
	if h.present {
		_, ok := h.name.first(req, &req.Fields, in)
		return what + " is " + presence(ok)
	}
	v, ok := h.name.first(req, &req.Fields, in)
	switch {
	case h.invert && ok || h.invert && h.empty:
		return fmt.Sprintf("%s is %s, which is excluded", what, quoted(v, ok))
	case h.ranged:
		return fmt.Sprintf("%s is %s, which is not a number from %d to %d", what, quoted(v, ok), h.from, h.to-1)
	}
	return fmt.Sprintf("%s is %s, which %s", what, quoted(v, ok), h.text.not())
}

func presence(there bool) string {
	if there {
		return "there, and must not be"
	}
	return "not there"
}

// quoted is a value of the request for a message; what a client wrote is not trusted there.
func quoted(v []byte, there bool) string {
	if !there {
		return "not there"
	}
	return strconv.Quote(string(v))
}

// not says what a value is not that does not match.
func (t *text) not() string {
	fold := ""
	if t.fold {
		fold = ", whatever the case"
	}
	switch t.kind {
	case textExact:
		return fmt.Sprintf("is not %q%s", t.want, fold)
	case textPrefix:
		return fmt.Sprintf("does not begin with %q%s", t.want, fold)
	case textSuffix:
		return fmt.Sprintf("does not end with %q%s", t.want, fold)
	case textContains:
		return fmt.Sprintf("does not contain %q%s", t.want, fold)
	case textRegex:
		return fmt.Sprintf("does not match %q", t.regex.parts)
	}
	return "does not match"
}
