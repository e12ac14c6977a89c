package h1

import (
	"bytes"

	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// requestFields draws from the fields what concerns the message's framing and its connection, and drops those fields.
func requestFields(r *head.Request) error {
	c := connection{protocol: r.Fields.Get(head.Upgrade)}
	body, err := framing(&r.Fields)
	if err != nil {
		return err
	}
	r.Body = max(body, 0)
	if body == chunked {
		r.Body = -1
	}
	if err := hop(&r.Fields, &c); err != nil {
		return err
	}
	if i := r.Next(0, head.Host, "host"); i >= 0 {
		if r.Next(i+1, head.Host, "host") >= 0 {
			return errRepeated
		}
		host := r.Value(i)
		if !all(host, inAuthority) {
			return errAuthority
		}
		if r.Authority == nil {
			r.Authority = host
		}
		r.Drop(i)
	}
	r.Close, r.Protocol = c.close, c.upgradeTo()
	if string(r.Method) == "CONNECT" { // it turns to no other protocol, and says nothing of a body that it has not
		r.Protocol = nil
		if r.Body == 0 {
			r.Del(head.ContentLength, head.Names[head.ContentLength])
		}
	}
	if i := r.Next(0, head.Expect, "expect"); i >= 0 && head.EqualFold(r.Value(i), "100-continue") {
		r.Expect = true
		r.Drop(i)
	}
	return nil
}

func responseFields(r *head.Response, toHead bool) (Framing, error) {
	c := connection{protocol: r.Fields.Get(head.Upgrade)}
	body, err := framing(&r.Fields)
	if err != nil {
		return None, err
	}
	if err := hop(&r.Fields, &c); err != nil {
		return None, err
	}
	r.Close = c.close || r.Minor == 0 && !c.keep
	if body == chunked || body == unsaid {
		r.Body = -1
	} else {
		r.Body = body
	}
	if r.Status == 101 {
		r.Protocol = c.upgradeTo()
	}
	switch {
	case r.Status < 200 || r.Status == 204:
		if body > 0 || body == chunked {
			return None, errBodyless
		}
		r.Body = 0
		return None, nil
	case r.Minor == 0 && body == chunked:
		return None, errBodyless
	case toHead || r.Status == 304 || body == 0:
		return None, nil
	case body == chunked:
		return Chunked, nil
	case body == unsaid:
		r.Close = true
		return UntilClose, nil
	}
	return Length, nil
}

// What framing returns beside a length.
const (
	unsaid  = -1
	chunked = -2
)

// framing returns the length of the body as the fields say it, chunked or unsaid, and drops Transfer-Encoding.
func framing(f *head.Fields) (int64, error) {
	length := int64(unsaid)
	if i := f.Next(0, head.ContentLength, "content-length"); i >= 0 {
		if f.Next(i+1, head.ContentLength, "content-length") >= 0 {
			return 0, errRepeated
		}
		v := f.Value(i)
		if len(v) == 0 || len(v) > 18 {
			return 0, errLength
		}
		length = 0
		for _, c := range v {
			if !digit(c) {
				return 0, errLength
			}
			length = length*10 + int64(c-'0')
		}
	}
	i := f.Next(0, head.TransferEncoding, "transfer-encoding")
	if i < 0 {
		return length, nil
	}
	if f.Next(i+1, head.TransferEncoding, "transfer-encoding") >= 0 || !head.EqualFold(f.Value(i), "chunked") {
		return 0, errCoding
	}
	if length >= 0 {
		return 0, errBoth
	}
	f.Drop(i)
	return chunked, nil
}

// connection is what the Connection fields say.
type connection struct {
	close, keep, upgrade bool
	protocol             []byte // of Upgrade
}

func (c *connection) upgradeTo() []byte {
	if !c.upgrade || len(c.protocol) == 0 || head.EqualFold(c.protocol, "h2c") {
		return nil
	}
	return c.protocol
}

// hop drops the fields that concern this connection only, and those that Connection names.
func hop(f *head.Fields, c *connection) error {
	for i := f.Next(0, head.Connection, "connection"); i >= 0; i = f.Next(i+1, head.Connection, "connection") {
		if err := c.read(f, f.Value(i)); err != nil {
			return err
		}
		f.Drop(i)
	}
	if i := f.Next(0, head.ProxyConnection, "proxy-connection"); i >= 0 {
		c.close = c.close || head.EqualFold(f.Value(i), "close")
		f.Del(head.ProxyConnection, "proxy-connection")
	}
	for _, id := range [...]head.ID{head.KeepAlive, head.Upgrade, head.HTTP2Settings} {
		if f.Has(id) {
			f.Del(id, head.Names[id])
		}
	}
	for i := f.Next(0, head.TE, "te"); i >= 0; i = f.Next(i+1, head.TE, "te") {
		if !head.EqualFold(f.Value(i), "trailers") {
			f.Drop(i)
		}
	}
	return nil
}

// read takes one value of Connection.
func (c *connection) read(f *head.Fields, v []byte) error {
	for len(v) > 0 {
		var name []byte
		if i := bytes.IndexByte(v, ','); i >= 0 {
			name, v = v[:i], v[i+1:]
		} else {
			name, v = v, nil
		}
		s, e := trim(name, 0, len(name))
		name = name[s:e]
		switch {
		case head.EqualFold(name, "close"):
			c.close = true
		case head.EqualFold(name, "keep-alive"):
			c.keep = true
		case head.EqualFold(name, "upgrade"):
			c.upgrade = true
		case len(name) > 0:
			if err := nominated(f, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// nominated drops the fields of a name that Connection has.
func nominated(f *head.Fields, name []byte) error {
	if !all(name, inToken) {
		return errNominated
	}
	switch id := head.IDOf(name); id {
	case head.XForwardedFor, head.XForwardedHost, head.XForwardedProto, head.ContentLength, head.XForwardedClientCert:
		return errNominated // they say who is there, or frame the message
	case head.TE: // hop judges it
	case head.Other:
		for i := 0; i < f.Len(); i++ {
			if id, n, _, ok := f.At(i); ok && id == head.Other && bytes.EqualFold(n, name) {
				f.Drop(i)
			}
		}
	default:
		f.Del(id, head.Names[id])
	}
	return nil
}
