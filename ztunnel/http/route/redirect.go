package route

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// Redirect is an answer that sends the client elsewhere.
type Redirect struct {
	Status int

	scheme string // "": that of the request
	host   string // "": that of the request
	port   string // with its colon; "" none said
	path   string // replaces the path; "" none said
	query  bool   // path has a query
	strip  bool   // the query is left out
	change rewrite
}

func newRedirect(a *route.RedirectAction, r *Route) (*Redirect, error) {
	err := only(a, "https_redirect", "scheme_redirect", "host_redirect", "port_redirect", "path_redirect", "prefix_rewrite",
		"regex_rewrite", "response_code", "strip_query")
	if err != nil {
		return nil, err
	}
	d := &Redirect{scheme: a.GetSchemeRedirect(), host: a.GetHostRedirect(), path: a.GetPathRedirect(), strip: a.GetStripQuery(),
		query: strings.Contains(a.GetPathRedirect(), "?"), change: rewrite{prefix: a.GetPrefixRewrite(), from: r.match.from()}}
	for _, s := range []string{d.scheme, d.host, d.path, d.change.prefix} {
		if err := cleanPath(s); err != nil {
			return nil, fmt.Errorf("%q: %w", s, err)
		}
	}
	if a.GetHttpsRedirect() {
		d.scheme = "https"
	}
	if p := a.GetPortRedirect(); p > 65535 {
		return nil, fmt.Errorf("port_redirect: %d is no port", p)
	} else if p > 0 {
		d.port = ":" + strconv.Itoa(int(p))
	}
	if m := a.GetRegexRewrite(); m != nil {
		if d.change.regex, err = newReplacement(m); err != nil {
			return nil, fmt.Errorf("regex_rewrite: %w", err)
		}
	}
	switch a.GetResponseCode() {
	case route.RedirectAction_MOVED_PERMANENTLY:
		d.Status = http.StatusMovedPermanently
	case route.RedirectAction_FOUND:
		d.Status = http.StatusFound
	case route.RedirectAction_SEE_OTHER:
		d.Status = http.StatusSeeOther
	case route.RedirectAction_TEMPORARY_REDIRECT:
		d.Status = http.StatusTemporaryRedirect
	case route.RedirectAction_PERMANENT_REDIRECT:
		d.Status = http.StatusPermanentRedirect
	default:
		return nil, errors.New("response_code: not known")
	}
	return d, nil
}

// Location appends where a request is sent to. As in Envoy the request's path is rewritten then, for the operators of response
// headers and the log; the old one is in x-envoy-original-path.
func (d *Redirect) Location(dst []byte, req *head.Request, in *Input) []byte {
	d.change.apply(req, in)
	path := req.Path
	if d.scheme != "" {
		dst = append(dst, d.scheme...)
	} else {
		dst = append(dst, req.Scheme...)
	}
	dst = append(dst, "://"...)
	if d.host != "" {
		dst = append(dst, d.host...)
	} else {
		dst = append(dst, d.keptHost(req)...)
	}
	dst = append(dst, d.port...)
	question := bytes.IndexByte(path, '?')
	if d.path != "" {
		dst = append(dst, d.path...)
		if !d.query && !d.strip && question >= 0 {
			dst = append(dst, path[question:]...)
		}
		return dst
	}
	if d.strip && question >= 0 {
		path = path[:question]
	}
	return append(dst, path...)
}

// Location appends where an answer of status 201 or 3xx says that it is: where it was asked for, as Envoy has it. For another
// it returns dst as it is.
func (d *Direct) Location(dst []byte, req *head.Request, in *Input) []byte {
	if d.Status != http.StatusCreated && d.Status/100 != 3 || req.Path == nil {
		return dst
	}
	return (&Redirect{}).Location(dst, req, in)
}

// keptHost is the request's authority, without the port where another one is said or the old one was the default of a scheme
// that changes.
func (d *Redirect) keptHost(req *head.Request) []byte {
	host := req.Authority
	end := bytes.LastIndexByte(host, ':')
	if len(host) > 0 && host[0] == '[' {
		if end = bytes.LastIndex(host, closing); end >= 0 {
			end++
		}
	}
	if end < 0 {
		return host
	}
	drop := d.port != ""
	proto := req.Get(head.XForwardedProto)
	if proto == nil {
		proto = req.Scheme
	}
	scheme := d.scheme
	if scheme == "" && string(proto) == string(req.Scheme) || scheme == string(proto) {
		// the scheme stays
	} else if port := string(host[end:]); string(proto) == "https" && port == ":443" || string(proto) == "http" && port == ":80" {
		drop = true
	}
	if drop {
		return host[:end]
	}
	return host
}

var closing = []byte("]:")
