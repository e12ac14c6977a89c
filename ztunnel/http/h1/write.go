package h1

import (
	"strconv"

	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// AppendRequest appends the head as text. A body of unknown length is announced as chunked, which the caller then writes; a known
// one is announced when the fields do not. An upgrade and the wish to close are said.
func AppendRequest(dst []byte, r *head.Request) []byte {
	dst = append(dst, r.Method...)
	dst = append(dst, ' ')
	if len(r.Path) == 0 {
		dst = append(dst, r.Authority...)
	} else {
		dst = append(dst, r.Path...)
	}
	dst = append(dst, " HTTP/1.1\r\nhost: "...)
	dst = append(dst, r.Authority...)
	dst = append(dst, "\r\n"...)
	dst = r.AppendLines(dst)
	if r.Expect {
		dst = append(dst, "expect: 100-continue\r\n"...)
	}
	if r.Body < 0 {
		dst = append(dst, "transfer-encoding: chunked\r\n"...)
	} else if (r.Body > 0 || bodied(r.Method) && len(r.Protocol) == 0) && !r.Has(head.ContentLength) {
		dst = appendLength(dst, r.Body)
	}
	return appendConnection(dst, r.Close, r.Protocol)
}

// bodied are methods whose bodies a server expects, so that one of no bytes is announced (RFC 9110 §8.6).
func bodied(method []byte) bool {
	switch string(method) {
	case "POST", "PUT", "PATCH":
		return true
	}
	return false
}

// AppendResponse appends the head as text. none says that no body follows whatever is announced (HEAD, 204, 304); otherwise
// r.Body < 0 is announced as chunked, which the caller then writes.
func AppendResponse(dst []byte, r *head.Response, none bool) []byte {
	dst = appendStatus(dst, r.Status)
	dst = r.AppendLines(dst)
	if !none {
		if r.Body < 0 {
			dst = append(dst, "transfer-encoding: chunked\r\n"...)
		} else if !r.Has(head.ContentLength) {
			dst = appendLength(dst, r.Body)
		}
	}
	return appendConnection(dst, r.Close, r.Protocol)
}

func appendLength(dst []byte, n int64) []byte {
	dst = append(dst, "content-length: "...)
	dst = strconv.AppendInt(dst, n, 10)
	return append(dst, "\r\n"...)
}

func appendConnection(dst []byte, end bool, protocol []byte) []byte {
	switch {
	case len(protocol) > 0:
		dst = append(dst, "connection: upgrade\r\nupgrade: "...)
		dst = append(dst, protocol...)
		dst = append(dst, "\r\n"...)
	case end:
		dst = append(dst, "connection: close\r\n"...)
	}
	return append(dst, "\r\n"...)
}

func appendStatus(dst []byte, status int) []byte {
	if status == 200 {
		return append(dst, "HTTP/1.1 200 OK\r\n"...)
	}
	dst = append(dst, "HTTP/1.1 "...)
	dst = strconv.AppendInt(dst, int64(status), 10)
	dst = append(dst, ' ')
	dst = append(dst, StatusText(status)...)
	return append(dst, "\r\n"...)
}

// StatusText is the reason phrase as Envoy writes it; "Unknown" for codes that it does not know.
func StatusText(status int) string {
	if status >= 0 && status < len(texts) && texts[status] != "" {
		return texts[status]
	}
	return "Unknown"
}

var texts = [512]string{
	100: "Continue", 101: "Switching Protocols", 102: "Processing", 103: "Early Hints",
	200: "OK", 201: "Created", 202: "Accepted", 203: "Non-Authoritative Information", 204: "No Content", 205: "Reset Content",
	206: "Partial Content", 207: "Multi-Status", 208: "Already Reported", 226: "IM Used",
	300: "Multiple Choices", 301: "Moved Permanently", 302: "Found", 303: "See Other", 304: "Not Modified", 305: "Use Proxy",
	307: "Temporary Redirect", 308: "Permanent Redirect",
	400: "Bad Request", 401: "Unauthorized", 402: "Payment Required", 403: "Forbidden", 404: "Not Found",
	405: "Method Not Allowed", 406: "Not Acceptable", 407: "Proxy Authentication Required", 408: "Request Timeout",
	409: "Conflict", 410: "Gone", 411: "Length Required", 412: "Precondition Failed", 413: "Payload Too Large",
	414: "URI Too Long", 415: "Unsupported Media Type", 416: "Range Not Satisfiable", 417: "Expectation Failed",
	421: "Misdirected Request", 422: "Unprocessable Entity", 423: "Locked", 424: "Failed Dependency", 425: "Too Early",
	426: "Upgrade Required", 428: "Precondition Required", 429: "Too Many Requests", 431: "Request Header Fields Too Large",
	500: "Internal Server Error", 501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable",
	504: "Gateway Timeout", 505: "HTTP Version Not Supported", 506: "Variant Also Negotiates", 507: "Insufficient Storage",
	508: "Loop Detected", 510: "Not Extended", 511: "Network Authentication Required",
}
