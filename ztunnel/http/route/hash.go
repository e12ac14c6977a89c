package route

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/cespare/xxhash/v2"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/undermesh/undermesh/ztunnel/http/head"
)

type hashKind uint8

const (
	hashHeader hashKind = iota
	hashCookie
	hashSource
	hashQuery
)

// hashPolicy is a compiled hash_policy.
type hashPolicy struct {
	kind     hashKind
	terminal bool
	name     name         // of a header
	change   *replacement // of its values, before they are hashed
	key      string       // of a cookie or query parameter
	generate bool         // a cookie that is not there is made
	attrs    string       // of the cookie that is made
}

func newHashPolicy(m *route.RouteAction_HashPolicy) (hashPolicy, error) {
	p := hashPolicy{terminal: m.GetTerminal()}
	err := only(m, "terminal", "header", "cookie", "connection_properties", "query_parameter")
	if err != nil {
		return p, err
	}
	switch s := m.GetPolicySpecifier().(type) {
	case *route.RouteAction_HashPolicy_Header_:
		p.kind = hashHeader
		if err = only(s.Header, "header_name", "regex_rewrite"); err != nil {
			return p, fmt.Errorf("header: %w", err)
		}
		if p.name, err = newName(s.Header.GetHeaderName(), true); err != nil {
			return p, fmt.Errorf("header.header_name: %w", err)
		}
		if r := s.Header.GetRegexRewrite(); r != nil {
			if p.change, err = newReplacement(r); err != nil {
				return p, fmt.Errorf("header.regex_rewrite: %w", err)
			}
		}
	case *route.RouteAction_HashPolicy_Cookie_:
		return p, within("cookie", p.setCookie(s.Cookie))
	case *route.RouteAction_HashPolicy_ConnectionProperties_:
		if !s.ConnectionProperties.GetSourceIp() {
			return p, errors.New("connection_properties: source_ip must be true")
		}
		p.kind = hashSource
	case *route.RouteAction_HashPolicy_QueryParameter_:
		if p.kind, p.key = hashQuery, s.QueryParameter.GetName(); p.key == "" {
			return p, errors.New("query_parameter.name: must not be empty")
		}
	default:
		return p, errors.New("policy_specifier: must be set")
	}
	return p, nil
}

func (p *hashPolicy) setCookie(c *route.RouteAction_HashPolicy_Cookie) error {
	if err := only(c, "name", "ttl", "path", "attributes"); err != nil {
		return err
	}
	p.kind, p.key = hashCookie, c.GetName()
	if p.key == "" || strings.ContainsFunc(p.key, func(r rune) bool { return r > 0x7e || !token(byte(r)) }) {
		return fmt.Errorf("name: %q is no name of a cookie", p.key)
	}
	if err := cleanPath(c.GetPath()); err != nil || strings.Contains(c.GetPath(), ";") {
		return fmt.Errorf("path: %q is no path", c.GetPath())
	}
	ttl, ok, err := duration("ttl", c.GetTtl())
	if err != nil {
		return err
	}
	p.generate = ok
	if s := int64(ttl.Seconds()); s > 0 {
		p.attrs = "; Max-Age=" + strconv.FormatInt(s, 10)
	}
	if c.GetPath() != "" {
		p.attrs += "; Path=" + c.GetPath()
	}
	for i, a := range c.GetAttributes() {
		one := a.GetName()
		if a.GetValue() != "" {
			one += "=" + a.GetValue()
		}
		if a.GetName() == "" || strings.ContainsAny(one, ";,") || hasControl(one) {
			return fmt.Errorf("attributes[%d]: %q is no attribute of a cookie", i, one)
		}
		p.attrs += "; " + one
	}
	p.attrs += "; HttpOnly"
	return nil
}

// Hash is what a request is balanced by.
type Hash struct {
	Value  uint64
	Set    bool     // false: nothing in the request says
	Cookie []string // values of set-cookie that the response must have; nearly always none
}

// Hash works out what the request is balanced by, as Envoy does. It allocates only for a cookie that it makes, several values
// of a header or a regex. The route must be a Forward.
func (r *Route) Hash(req *head.Request, in *Input) Hash {
	var out Hash
	for i := range r.Forward.hash {
		p := &r.Forward.hash[i]
		if v, ok := p.value(req, in, &out); ok {
			if out.Set {
				v ^= out.Value<<1 | out.Value>>63
			}
			out.Value, out.Set = v, true
		}
		if p.terminal && out.Set {
			break
		}
	}
	return out
}

func (p *hashPolicy) value(req *head.Request, in *Input, out *Hash) (uint64, bool) {
	switch p.kind {
	case hashHeader:
		return p.ofHeader(req, in)
	case hashCookie:
		v := cookie(req, p.key)
		if len(v) > 0 {
			return xxhash.Sum64(v), true
		}
		if !p.generate {
			return 0, false
		}
		made := madeCookie(in)
		out.Cookie = append(out.Cookie, p.key+`="`+made+`"`+p.attrs)
		return xxhash.Sum64String(made), true
	case hashSource:
		if !in.Source.IsValid() {
			return 0, false
		}
		var buf [netipMax]byte
		return xxhash.Sum64(appendIP(buf[:0], in.Source)), true
	}
	v, ok := parameter(req.Path, p.key)
	return xxhash.Sum64(v), ok
}

const netipMax = 64 // bytes of an address as text

func (p *hashPolicy) ofHeader(req *head.Request, in *Input) (uint64, bool) {
	v, ok := p.name.first(req, &req.Fields, in)
	if !ok {
		return 0, false
	}
	again := -1
	if p.name.pseudo == field && !p.name.joined {
		again = req.Next(req.Next(0, p.name.id, p.name.text)+1, p.name.id, p.name.text)
	}
	if again < 0 {
		if p.change != nil {
			v = p.change.apply(nil, v, in)
		}
		return xxhash.Sum64(v), true
	}
	values := [][]byte{v}
	for ; again >= 0; again = req.Next(again+1, p.name.id, p.name.text) {
		values = append(values, req.Value(again))
	}
	if p.change != nil {
		for i, v := range values {
			values[i] = p.change.apply(nil, v, in)
		}
	}
	slices.SortFunc(values, bytes.Compare)
	var d xxhash.Digest
	var seed uint64
	for _, v := range values {
		d.ResetWithSeed(seed)
		_, _ = d.Write(v)
		seed = d.Sum64()
	}
	return seed, true
}

// madeCookie is the same for all streams of one downstream connection.
func madeCookie(in *Input) string {
	var buf [2 * netipMax]byte
	h := xxhash.Sum64(appendAddr(appendAddr(buf[:0], in.Source), in.Destination))
	return fmt.Sprintf("%016x", h)
}

// cookie returns the value of the first cookie of the name, without quotes; nil for none.
func cookie(req *head.Request, name string) []byte {
	for i := req.Next(0, head.Cookie, "cookie"); i >= 0; i = req.Next(i+1, head.Cookie, "cookie") {
		for rest := req.Value(i); len(rest) > 0; {
			one := rest
			if i := bytes.IndexByte(rest, ';'); i >= 0 {
				one, rest = rest[:i], rest[i+1:]
			} else {
				rest = nil
			}
			one = bytes.TrimSpace(one)
			if i := bytes.IndexByte(one, '='); i >= 0 && string(one[:i]) == name {
				v := one[i+1:]
				if len(v) >= 2 && v[0] == '"' && v[len(v)-1] == '"' {
					v = v[1 : len(v)-1]
				}
				return v
			}
		}
	}
	return nil
}
