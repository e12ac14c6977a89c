package h2

import (
	"bytes"

	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// request makes r of a list whose regular fields are already in r. The reason is that of a malformed request (RFC 9113 §8.1.1).
func (c *Conn) request(l *list, r *head.Request, end bool) (reason string) {
	if l.bad != "" {
		return l.bad
	}
	if l.seen[pStatus] {
		return "request has :status"
	}
	if reason := illegalFields(&r.Fields); reason != "" {
		return reason
	}
	l.joinCookies(&r.Fields)
	r.Major = 2
	r.Method, r.Authority = l.value(pMethod), l.value(pAuthority)
	if !l.seen[pMethod] || !isToken(r.Method) {
		return ":method is not a token"
	}
	if reason := authority(l, r); reason != "" {
		return reason
	}
	plain := string(r.Method) == "CONNECT" && !l.seen[pProtocol]
	if l.seen[pProtocol] {
		if r.Protocol = l.value(pProtocol); !c.cfg.ExtendedConnect || string(r.Method) != "CONNECT" || !isToken(r.Protocol) {
			return ":protocol is out of place"
		}
	}
	if plain {
		if l.seen[pScheme] || l.seen[pPath] {
			return "CONNECT has :scheme or :path"
		}
	} else {
		r.Scheme, r.Path = l.value(pScheme), l.value(pPath)
		if !l.seen[pScheme] || !legalScheme(r.Scheme) {
			return ":scheme is missing or not legal"
		}
		if !l.seen[pPath] || !legalPath(r.Method, r.Path) {
			return ":path is missing or not legal"
		}
	}
	var ok bool
	if r.Body, ok = contentLength(&r.Fields); !ok {
		return "content-length is not valid"
	}
	if string(r.Method) == "CONNECT" { // what follows is the tunnel's: to HTTP/1 a length would tell of a body that never comes
		if r.Body > 0 {
			return "CONNECT has a length"
		}
		r.Del(head.ContentLength, "content-length")
	}
	if end {
		if r.Body > 0 {
			return "body does not have the announced length"
		}
		r.Body = 0
	}
	if r.Expect = head.EqualFold(r.Get(head.Expect), "100-continue"); r.Expect {
		r.Del(head.Expect, "expect")
	}
	return ""
}

// authority takes Host when there is no :authority, and refuses two that differ.
func authority(l *list, r *head.Request) (reason string) {
	for i := r.Next(0, head.Host, "host"); i >= 0; i = r.Next(i+1, head.Host, "host") {
		v := r.Value(i)
		if len(r.Authority) == 0 && !l.seen[pAuthority] {
			r.Authority = v
		} else if !bytes.EqualFold(v, r.Authority) {
			return "host and :authority differ"
		}
	}
	r.Del(head.Host, "host")
	if !legalAuthority(r.Authority) {
		return ":authority is missing or not legal"
	}
	return ""
}

// response makes r of a list whose regular fields are already in r.
func response(l *list, r *head.Response, end bool) (reason string) {
	if l.bad != "" {
		return l.bad
	}
	v := l.value(pStatus)
	for p, seen := range l.seen {
		if seen != (pseudo(p) == pStatus) {
			return "pseudo fields are not those of a response"
		}
	}
	if len(v) != 3 || v[0] < '1' || v[0] > '9' || v[1] < '0' || v[1] > '9' || v[2] < '0' || v[2] > '9' {
		return ":status is not valid"
	}
	r.Status, r.Major = int(v[0]-'0')*100+int(v[1]-'0')*10+int(v[2]-'0'), 2
	if r.Status == 101 || r.Status < 200 && end {
		return "informational response is not legal"
	}
	if reason := illegalFields(&r.Fields); reason != "" {
		return reason
	}
	var ok bool
	if r.Body, ok = contentLength(&r.Fields); !ok {
		return "content-length is not valid"
	}
	if r.Body > 0 && (r.Status < 200 || r.Status == 204) {
		return "body where there is none"
	}
	if end && r.Body < 0 {
		r.Body = 0
	}
	return ""
}

// illegalFields refuses the fields that belong to a connection of HTTP/1 (RFC 9113 §8.2.2).
func illegalFields(f *head.Fields) (reason string) {
	if f.Has(head.Connection) || f.Has(head.KeepAlive) || f.Has(head.ProxyConnection) || f.Has(head.TransferEncoding) ||
		f.Has(head.Upgrade) {
		return "field belongs to HTTP/1"
	}
	for i := f.Next(0, head.TE, "te"); i >= 0; i = f.Next(i+1, head.TE, "te") {
		if !head.EqualFold(f.Value(i), "trailers") {
			return "te is not trailers"
		}
	}
	return ""
}

// joinCookies makes one field of the crumbs of a cookie (RFC 9113 §8.2.3), behind the others.
func (l *list) joinCookies(f *head.Fields) {
	first := f.Next(0, head.Cookie, "cookie")
	if first < 0 || f.Next(first+1, head.Cookie, "cookie") < 0 {
		return
	}
	at := uint32(len(l.text))
	l.text = append(l.text, "cookie: "...)
	val := uint32(len(l.text))
	for i := first; i >= 0; i = f.Next(i+1, head.Cookie, "cookie") {
		if i != first {
			l.text = append(l.text, "; "...)
		}
		l.text = append(l.text, f.Value(i)...)
	}
	end := uint32(len(l.text))
	l.text = append(l.text, '\r', '\n')
	f.Del(head.Cookie, "cookie")
	f.Rebase(l.text)
	f.PutLine(head.Field{Line: at, NameEnd: at + uint32(len("cookie")), Val: val, ValEnd: end, End: end + 2, ID: head.Cookie})
}

// contentLength returns the announced length, -1 for none. It must not be there twice.
func contentLength(f *head.Fields) (n int64, ok bool) {
	i := f.Next(0, head.ContentLength, "content-length")
	if i < 0 {
		return -1, true
	}
	v := f.Value(i)
	if len(v) == 0 || len(v) > 18 || f.Next(i+1, head.ContentLength, "content-length") >= 0 {
		return 0, false
	}
	for _, c := range v {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

func isToken(v []byte) bool {
	for _, c := range v {
		if !nameBytes[head.Lower[c]] {
			return false
		}
	}
	return len(v) > 0
}

// legalScheme is RFC 3986 §3.1.
func legalScheme(v []byte) bool {
	for i, c := range v {
		c = head.Lower[c]
		if !(c >= 'a' && c <= 'z' || i > 0 && (c >= '0' && c <= '9' || c == '+' || c == '-' || c == '.')) {
			return false
		}
	}
	return len(v) > 0
}

// legalPath takes what begins with a slash, and "*" of OPTIONS (RFC 9113 §8.3.1). No byte of it is a control character or a
// blank: those end a request line of HTTP/1.
func legalPath(method, v []byte) bool {
	if len(v) == 0 || v[0] != '/' && (string(v) != "*" || string(method) != "OPTIONS") {
		return false
	}
	for _, c := range v {
		if c <= ' ' || c == 0x7f {
			return false
		}
	}
	return true
}

// legalAuthority refuses user information, and what ends an authority or a request line.
func legalAuthority(v []byte) bool {
	for _, c := range v {
		if c <= ' ' || c >= 0x7f || c == '@' || c == '/' || c == '?' || c == '#' || c == '\\' {
			return false
		}
	}
	return len(v) > 0
}
