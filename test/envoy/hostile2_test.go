package envoy

import "strings"

// attempt is a hostile request.
type attempt struct{ name, text string }

// attempts are hostile requests that differ in one place from a good one: by what stands in that place.
func attempts() []attempt {
	out := append([]attempt{}, hostile...)
	each := func(name, around string, list ...string) {
		for _, text := range list {
			shown := text
			if len(shown) > 40 {
				shown = shown[:40] + "…"
			}
			out = append(out, attempt{name + " " + quoted(shown), strings.Replace(around, "IT", text, 1)})
		}
	}
	const rest, then = "\r\nHost: h\r\nx-case: CASE\r\n\r\n", "GET /then HTTP/1.1\r\nHost: h\r\nx-case: CASE\r\n\r\n"
	const chunked = "POST /a HTTP/1.1\r\nHost: h\r\nx-case: CASE\r\nTransfer-Encoding: chunked\r\n\r\n"
	each("line", "IT"+rest, "GET /a http/1.1", "GET /a HTTP/1.1 ", "GET /a HTTP/1.10", "GET /a HTTP/01.1", "GET /a HTTP/1,1", "GET /a HTTP/", "GET /a HTTPS/1.1", "GET /a HTTP /1.1", "GET /a HTTP/1.1 x",
		" GET /a HTTP/1.1", " /a HTTP/1.1", "M~ /a HTTP/1.1", "GET! /a HTTP/1.1", "GET: /a HTTP/1.1", "G\xcaT /a HTTP/1.1", "G\x00T /a HTTP/1.1", "GET", "GET /a HTTP/1.\xb2", strings.Repeat("M", 300)+" /a HTTP/1.1")
	each("target", "GET IT HTTP/1.1"+rest, "/\x00", "/a\tb", "/\x7f", "/\x01", "/\"", "/<a>", "/{a}", "/a|b", "/^", "/`", "//a", "/a//b", "/./a", "/%2e%2e/a", "/a%2fb", "/a;b", "/?", "?", "?a", "/a?b?c", "/a#", "#",
		"/a?b#c", "http:///a", "http://", "HTTP://H/a", "http://u@h/a", "http:/a", "http://h?a", "http://h:x/a", "http://h:/a", "http://h:80/a", "http://:80/a", "http://[::1]/a", "http://[::1]:80/a", "http://[::1]x/a", "http://u@/a", "http://u@h@i/a", "http://[::1/a", "/a%", "/%0d%0a", "/%C0%AF", "/\xc3\xa9", "urn:a", "h:80", "h", "*/a", "/*", "\\a", "/a?"+strings.Repeat("q", 40<<10))
	each("host", "GET /a HTTP/1.1\r\nHost:IT\r\nx-case: CASE\r\n\r\n", "h:80", "h:", "h:0", "h:99999", "h:x", "[::1]", "[::1]:80", "[::1", "h,h", "h;x", "h?x", "h#x", "h%00", "%68", "*", ".", "h..", "-", "\xe4", "H", "h\\", "<h>", "h'", "u:p@h",
		"\"h\"", "h_x", "h|x", "h\x7f", strings.Repeat("h", 400), " ")
	each("length", "POST /a HTTP/1.1\r\nHost: h\r\nx-case: CASE\r\nContent-Length:IT\r\n\r\na", "1,1", "1, 1", "1 1", "1;", "01", "1.0", "\xd9\xa1", "", " ", "\t1", "1\t", "18446744073709551617", "9223372036854775808", "1e0", "1\r\nContent-Length:1\r\nContent-Length:1",
		"1\r\ncontent-length:2", "1\r\nContent_Length:2", "1\r\nContent-Length :1", "1\x00", "1\x0b", "'1'", "0x01")
	each("coding", "POST /a HTTP/1.1\r\nHost: h\r\nx-case: CASE\r\nTransfer-Encoding:IT\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "chunked ", "\tchunked", "chunked\t", "identity", "identity, chunked", "chunked;q=1", "\"chunked\"", "chunked,", ",chunked", "chunked\x00", "\x0bchunked", "",
		"chunked\r\nTransfer-Encoding: chunked", "chunked\r\nTransfer-Encoding: identity", "identity\r\nTransfer-Encoding: chunked", "chunked\r\nContent-Length: 13", "chunked\r\nTransfer_Encoding: x", "trailers, chunked", "deflate", "chunked chunked", "c hunked")
	each("chunks", chunked+"IT", "0003\r\nabc\r\n0\r\n\r\n", "00000000000000000000003\r\nabc\r\n0\r\n\r\n", "A\r\n0123456789\r\n0\r\n\r\n", "0x3\r\nabc\r\n0\r\n\r\n", "+3\r\nabc\r\n0\r\n\r\n", "-1\r\n", " 3\r\nabc\r\n0\r\n\r\n", "3 \r\nabc\r\n0\r\n\r\n",
		"3\t\r\nabc\r\n0\r\n\r\n", "3;\r\nabc\r\n0\r\n\r\n", "3;a=\"b\"\r\nabc\r\n0\r\n\r\n", "3 ;a\r\nabc\r\n0\r\n\r\n", "3\nabc\r\n0\r\n\r\n", "3\r\nabcd\r\n0\r\n\r\n", "3\r\nabc0\r\n\r\n", "3\r\nabc\n0\r\n\r\n", "ffffffffffffffff\r\nabc", "fffffffffffffffff\r\nabc", "\r\nabc",
		"3\r\nabc\r\n\r\n", "3\r\nabc\r\n0;x\r\n\r\n", "3;\x00\r\nabc\r\n0\r\n\r\n", "3;\xff\r\nabc\r\n0\r\n\r\n", "3;"+strings.Repeat("x", 4<<10)+"\r\nabc\r\n0\r\n\r\n", "3\rabc\r\n0\r\n\r\n", "3,\r\nabc\r\n0\r\n\r\n", "g\r\n", "3.\r\nabc", "0\r\n\n", "0\n\n", "0\r\nx\r\n\r\n", "0\r\n: 1\r\n\r\n",
		"0\r\nx-a: 1\r\n 2\r\n\r\n", "0\r\nx-\x00: 1\r\n\r\n", "0\r\ntransfer-encoding: chunked\r\n\r\n", "0\r\nhost: i\r\n\r\n", "0\r\n:path: /b\r\n\r\n")
	each("field", "GET /a HTTP/1.1\r\nHost: h\r\nx-case: CASE\r\nIT\r\n\r\n", "x(: 1", "x{: 1", "x@: 1", "x/y: 1", "x y: 1", "x\ty: 1", "\tx: 1", strings.Repeat("x", 300)+": 1", "x-a: \x7f", "x-a: \x01", "x-a: 1\t2", "x-a: 1\x0b2", "x-a:", "x-a", "Connection: close, keep-alive", "Connection: keep-alive",
		"Connection: CLOSE", "Connection: \x00", "Connection: ,", "Connection: host", "Connection: x-case", "Connection: content-length\r\nContent-Length: 0", "Connection: transfer-encoding\r\nx-a: 1", "Connection: x-forwarded-proto", "Connection: x-request-id", "Connection: cookie\r\nCookie: a=b", "Keep-Alive: 5",
		"Proxy-Connection: close", "TE: chunked", "TE: gzip", "Trailer: content-length", ":method: POST", ":scheme: https", ":authority: i", ":status: 200", ":x: 1", "x-forwarded-proto: ftp", "x-request-id: bad", "x-forwarded-for: 1.2.3.4", "x-forwarded-for: x", "x-envoy-original-path: /z", "Cookie: a=b\r\nCookie: c=d", "Content-Length: 0",
		"Expect: 100-continue", "Expect: 200-ok", "HTTP2-Settings: x", "Upgrade: h2c", "x-a: "+strings.Repeat("1", 30<<10), "x-a: 1\r\nx-a: 2\r\nX-A: 3", "server: x", "date: x")
	each("method", "IT /a HTTP/1.1\r\nHost: h\r\nx-case: CASE\r\nContent-Length: 2\r\n\r\nab", "HEAD", "DELETE", "OPTIONS", "TRACE", "PATCH", "LINK", "PURGE", "M-SEARCH", "MSEARCH")
	each("version", "GET /a IT\r\nHost: h\r\nx-case: CASE\r\nConnection: keep-alive\r\n\r\n"+then, "HTTP/1.1", "HTTP/1.0", "HTTP/1.2", "HTTP/3.0")
	each("behind", "POST /a HTTP/1.1\r\nHost: h\r\nx-case: CASE\r\nContent-Length: 2\r\n\r\nabIT", then, "\r\n"+then, "\r\n\r\n\r\n"+then, "x"+then, "\x00", " "+then, then+then+then, strings.Replace(then, "HTTP/1.1", "HTTP/1.1\r\nConnection: close", 1)+then)
	each("behind chunks", chunked+"3\r\nabc\r\n0\r\n\r\nIT", then, "\r\n"+then, "x"+then)
	return out
}

// quoted is a text with what cannot be read written as it is in Go.
func quoted(s string) string {
	r := strings.NewReplacer("\r", `\r`, "\n", `\n`, "\t", `\t`, "\x00", `\0`, "\x7f", `\x7f`, "\x01", `\1`, "\x0b", `\v`)
	return r.Replace(strings.ToValidUTF8(s, `\x`))
}
