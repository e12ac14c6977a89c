package route

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/undermesh/undermesh/ztunnel/http/head"
)

const originalHost = "x-envoy-original-host"

// rewrite is what becomes of a path. The zero value leaves it.
type rewrite struct {
	prefix string // replaces what the route matched
	from   *text  // how that begins; nil: it is the whole path without query
	regex  *replacement
}

func newRewrite(a *route.RouteAction, m *match) (rewrite, error) {
	w := rewrite{prefix: a.GetPrefixRewrite(), from: m.from()}
	if err := cleanPath(w.prefix); err != nil {
		return w, fmt.Errorf("prefix_rewrite: %w", err)
	}
	if r := a.GetRegexRewrite(); r != nil {
		if w.prefix != "" {
			return w, errors.New("prefix_rewrite and regex_rewrite are both set")
		}
		var err error
		if w.regex, err = newReplacement(r); err != nil {
			return w, fmt.Errorf("regex_rewrite: %w", err)
		}
	}
	return w, nil
}

// from is how paths begin that the route matches; nil where that is all of one.
func (m *match) from() *text {
	if m.kind == pathRegex || m.kind == pathConnect {
		return nil
	}
	return &text{kind: textPrefix, fold: m.path.fold, want: m.path.want}
}

// cleanPath refuses what cannot be in a request line or a field's value.
func cleanPath(s string) error {
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] == 0x7f {
			return errors.New("has a blank or a control character")
		}
	}
	return nil
}

// of appends the path as it is rewritten; ok is false when nothing is.
func (w *rewrite) of(dst, path []byte, in *Input) (out []byte, ok bool) {
	just := bare(path)
	switch {
	case w.prefix != "":
		n := len(just)
		if w.from != nil {
			if n = len(w.from.want); !w.from.begins(path) { // parameters are in the midst of what was matched without them
				return dst, false
			}
		}
		return append(append(dst, w.prefix...), path[n:]...), true
	case w.regex != nil:
		return append(w.regex.apply(dst, just, in), path[len(just):]...), true
	}
	return dst, false
}

func (w *rewrite) apply(req *head.Request, in *Input) {
	if w.prefix == "" && w.regex == nil || req.Path == nil {
		return
	}
	path, ok := w.of(make([]byte, 0, len(req.Path)+len(w.prefix)+32), req.Path, in)
	if !ok {
		return
	}
	if len(path) == 0 || path[0] == '?' { // or it would be no target
		path = slices.Insert(path, 0, '/')
	}
	if !in.Quiet {
		req.Set(head.XEnvoyOriginalPath, head.Names[head.XEnvoyOriginalPath], req.Path)
	}
	req.Path = path
}

// hostRewrite is what becomes of an authority. The zero value leaves it.
type hostRewrite struct {
	literal []byte
	header  name // whose value it becomes
	path    *replacement
	forward bool // tell the old one in x-forwarded-host
}

func (f *Forward) setAuthority(a *route.RouteAction) error {
	h := hostRewrite{forward: a.GetAppendXForwardedHost()}
	var err error
	switch s := a.GetHostRewriteSpecifier().(type) {
	case nil:
	case *route.RouteAction_HostRewriteLiteral:
		if err := cleanPath(s.HostRewriteLiteral); err != nil {
			return fmt.Errorf("host_rewrite_literal: %w", err)
		}
		h.literal = []byte(s.HostRewriteLiteral)
	case *route.RouteAction_AutoHostRewrite:
		f.AutoHost = s.AutoHostRewrite.GetValue()
	case *route.RouteAction_HostRewriteHeader:
		if h.header, err = newName(s.HostRewriteHeader, true); err != nil {
			return fmt.Errorf("host_rewrite_header: %w", err)
		}
	case *route.RouteAction_HostRewritePathRegex:
		if h.path, err = newReplacement(s.HostRewritePathRegex); err != nil {
			return fmt.Errorf("host_rewrite_path_regex: %w", err)
		}
	default:
		return errors.New("host_rewrite_specifier: not supported")
	}
	f.authority = h
	return nil
}

func (h *hostRewrite) apply(req *head.Request, in *Input) {
	switch {
	case len(h.literal) > 0:
		h.set(req, h.literal, in)
	case h.header.text != "":
		if v, ok := h.header.first(req, &req.Fields, in); ok && len(v) > 0 {
			h.set(req, bytes.Clone(v), in)
		}
	case h.path != nil:
		if v := h.path.apply(nil, bare(req.Path), in); len(v) > 0 {
			h.set(req, v, in)
		}
	}
}

func (h *hostRewrite) set(req *head.Request, authority []byte, in *Input) {
	old := req.Authority
	if h.forward && len(old) > 0 {
		appendForwardedHost(req, old)
	}
	if !in.Quiet {
		req.Set(head.Other, originalHost, old)
	}
	req.Authority = authority
}

// appendForwardedHost adds a name to x-forwarded-host unless it is the last there.
func appendForwardedHost(req *head.Request, host []byte) {
	id, name := head.XForwardedHost, head.Names[head.XForwardedHost]
	var list []byte
	for i := req.Next(0, id, name); i >= 0; i = req.Next(i+1, id, name) {
		if len(list) > 0 {
			list = append(list, ',')
		}
		list = append(list, req.Value(i)...)
	}
	if last := list[bytes.LastIndexByte(list, ',')+1:]; len(list) > 0 && bytes.Equal(last, host) {
		return
	}
	if len(list) > 0 {
		list = append(list, ',')
	}
	req.Set(id, name, append(list, host...))
}
