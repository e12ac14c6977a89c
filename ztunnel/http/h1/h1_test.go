package h1

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// raw spells a request: lines are ended by CRLF, and the empty line is added.
func raw(lines ...string) string { return strings.Join(lines, "\r\n") + "\r\n\r\n" }

func TestParseRequest(t *testing.T) {
	for name, c := range map[string]struct {
		in, method, path, authority, protocol, fields string
		body                                          int64
		close, expect                                 bool
	}{
		"get":           {in: raw("GET /a?b HTTP/1.1", "Host: x:80", "A: b"), method: "GET", path: "/a?b", authority: "x:80", fields: "A: b\r\n"},
		"leading crlf":  {in: "\r\n" + raw("GET / HTTP/1.1", "Host: x"), method: "GET", path: "/", authority: "x"},
		"length":        {in: raw("POST / HTTP/1.1", "Host: x", "Content-Length: 0003"), method: "POST", path: "/", authority: "x", body: 3, fields: "Content-Length: 0003\r\n"},
		"chunked":       {in: raw("POST / HTTP/1.1", "Host: x", "Transfer-Encoding: CHUNKED"), method: "POST", path: "/", authority: "x", body: -1},
		"absolute":      {in: raw("GET http://y/p HTTP/1.1", "Host: x"), method: "GET", path: "/p", authority: "y"},
		"absolute bare": {in: raw("GET HTTPS://y HTTP/1.1", "Host: x"), method: "GET", path: "/", authority: "y"},
		"connect":       {in: raw("CONNECT y:443 HTTP/1.1", "Host: x"), method: "CONNECT", authority: "y:443"},
		"star":          {in: raw("OPTIONS * HTTP/1.1", "Host: x"), method: "OPTIONS", path: "*", authority: "x"},
		"no host":       {in: raw("GET / HTTP/1.1"), method: "GET", path: "/"},
		"close":         {in: raw("GET / HTTP/1.1", "Host: x", "Connection: a, close", "A: b", "C: d"), method: "GET", path: "/", authority: "x", close: true, fields: "C: d\r\n"},
		"proxy close":   {in: raw("GET / HTTP/1.1", "Host: x", "Proxy-Connection: close"), method: "GET", path: "/", authority: "x", close: true},
		"hop":           {in: raw("GET / HTTP/1.1", "Host: x", "Keep-Alive: 1", "TE: gzip", "TE: trailers", "Trailer: a"), method: "GET", path: "/", authority: "x", fields: "TE: trailers\r\nTrailer: a\r\n"},
		"websocket":     {in: raw("GET / HTTP/1.1", "Host: x", "Connection: Upgrade", "Upgrade: WebSocket"), method: "GET", path: "/", authority: "x", protocol: "WebSocket"},
		"upgrade alone": {in: raw("GET / HTTP/1.1", "Host: x", "Upgrade: WebSocket"), method: "GET", path: "/", authority: "x"},
		"h2c":           {in: raw("GET / HTTP/1.1", "Host: x", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: A"), method: "GET", path: "/", authority: "x"},
		"expect":        {in: raw("POST / HTTP/1.1", "Host: x", "Content-Length: 1", "Expect: 100-Continue"), method: "POST", path: "/", authority: "x", body: 1, expect: true, fields: "Content-Length: 1\r\n"},
		"expect other":  {in: raw("GET / HTTP/1.1", "Host: x", "Expect: 200-ok"), method: "GET", path: "/", authority: "x", fields: "Expect: 200-ok\r\n"},
		"obs text":      {in: raw("GET / HTTP/1.1", "Host: x", "A:\t\x80\xff \t"), method: "GET", path: "/", authority: "x", fields: "A:\t\x80\xff \t\r\n"},
		"te is named":   {in: raw("GET / HTTP/1.1", "Host: x", "Connection: te", "TE: trailers"), method: "GET", path: "/", authority: "x", fields: "TE: trailers\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var r head.Request
			n, err := ParseRequest([]byte(c.in+"rest"), &r, Limits{})
			if err != nil || n != len(c.in) {
				t.Fatalf("used %d of %d, error %v", n, len(c.in), err)
			}
			if string(r.Method) != c.method || string(r.Path) != c.path || string(r.Authority) != c.authority ||
				string(r.Protocol) != c.protocol || r.Body != c.body || r.Close != c.close || r.Expect != c.expect {
				t.Errorf("got %+v", r)
			}
			if got := string(r.AppendLines(nil)); got != c.fields {
				t.Errorf("fields %q, want %q", got, c.fields)
			}
			for i := range len(c.in) {
				if _, err := ParseRequest([]byte(c.in[:i]), &r, Limits{}); !errors.Is(err, ErrMore) {
					t.Fatalf("after %d bytes: %v", i, err)
				}
			}
		})
	}
}

// refusals are requests that must not pass, with what Envoy answers (or would, were it as strict).
var refusals = map[string]struct {
	in     string
	status int
	detail string
}{
	"not http":            {raw("SSH-2.0-x"), 400, "http1.codec_error"},
	"two words":           {raw("GET /"), 426, "low_version"},
	"four words":          {raw("GET / a HTTP/1.1"), 400, "http1.codec_error"},
	"two blanks":          {raw("GET  / HTTP/1.1"), 400, "http1.codec_error"},
	"1.0":                 {raw("GET / HTTP/1.0", "Host: x"), 426, "low_version"},
	"1.2":                 {raw("GET / HTTP/1.2", "Host: x"), 426, "low_version"},
	"2.0":                 {raw("GET / HTTP/2.0", "Host: x"), 426, "low_version"},
	"version":             {raw("GET / HTTP/1.1x", "Host: x"), 400, "http1.codec_error"},
	"lower method":        {raw("get / HTTP/1.1", "Host: x"), 400, "http1.codec_error"},
	"bad method":          {raw("GE(T / HTTP/1.1", "Host: x"), 400, "http1.codec_error"},
	"get star":            {raw("GET * HTTP/1.1", "Host: x"), 400, "http1.invalid_url"},
	"ftp":                 {raw("GET ftp://x/ HTTP/1.1", "Host: x"), 400, "http1.invalid_scheme"},
	"no slash":            {raw("GET a HTTP/1.1", "Host: x"), 400, "http1.codec_error"},
	"no authority":        {raw("GET http:///a HTTP/1.1", "Host: x"), 400, "http1.invalid_url"},
	"nul in path":         {raw("GET /\x00 HTTP/1.1", "Host: x"), 400, "http1.invalid_characters"},
	"non-ascii path":      {raw("GET /\x80 HTTP/1.1", "Host: x"), 400, "http1.codec_error"},
	"bare lf":             {"GET / HTTP/1.1\nHost: x\n\n", 400, "http1.codec_error"},
	"bare lf in fields":   {"GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", 400, "http1.codec_error"},
	"bare cr":             {raw("GET / HTTP/1.1", "Host: x", "A: a\rb"), 400, "http1.invalid_characters"},
	"bare cr in line":     {raw("GET / HTTP/1.1\rA: b", "Host: x"), 400, "http1.invalid_characters"},
	"fold":                {raw("GET / HTTP/1.1", "Host: x", "A: b", " c"), 400, "http1.codec_error"},
	"fold tab":            {raw("GET / HTTP/1.1", "Host: x", "A: b", "\tc"), 400, "http1.codec_error"},
	"leading blank":       {raw("GET / HTTP/1.1", " Host: x"), 400, "http1.codec_error"},
	"blank before colon":  {raw("GET / HTTP/1.1", "Host : x"), 400, "http1.codec_error"},
	"no colon":            {raw("GET / HTTP/1.1", "Host"), 400, "http1.codec_error"},
	"no name":             {raw("GET / HTTP/1.1", ": x"), 400, "http1.codec_error"},
	"bad name":            {raw("GET / HTTP/1.1", "A(: x"), 400, "http1.codec_error"},
	"nul in value":        {raw("GET / HTTP/1.1", "Host: x", "A: \x00"), 400, "http1.invalid_characters"},
	"del in value":        {raw("GET / HTTP/1.1", "Host: x", "A: \x7f"), 400, "http1.invalid_characters"},
	"two hosts":           {raw("GET / HTTP/1.1", "Host: x", "Host: x"), 400, "http1.codec_error"},
	"host":                {raw("GET / HTTP/1.1", "Host: a/b"), 400, "http.invalid_authority"},
	"cl te":               {raw("POST / HTTP/1.1", "Host: x", "Content-Length: 3", "Transfer-Encoding: chunked"), 400, "http1.content_length_and_chunked_not_allowed"},
	"te cl":               {raw("POST / HTTP/1.1", "Host: x", "Transfer-Encoding: chunked", "Content-Length: 3"), 400, "http1.content_length_and_chunked_not_allowed"},
	"two cl":              {raw("POST / HTTP/1.1", "Host: x", "Content-Length: 3", "Content-Length: 3"), 400, "http1.codec_error"},
	"cl list":             {raw("POST / HTTP/1.1", "Host: x", "Content-Length: 3, 3"), 400, "http1.codec_error"},
	"cl sign":             {raw("POST / HTTP/1.1", "Host: x", "Content-Length: +3"), 400, "http1.codec_error"},
	"cl negative":         {raw("POST / HTTP/1.1", "Host: x", "Content-Length: -3"), 400, "http1.codec_error"},
	"cl hex":              {raw("POST / HTTP/1.1", "Host: x", "Content-Length: 0x3"), 400, "http1.codec_error"},
	"cl empty":            {raw("POST / HTTP/1.1", "Host: x", "Content-Length:"), 400, "http1.codec_error"},
	"cl overflow":         {raw("POST / HTTP/1.1", "Host: x", "Content-Length: 99999999999999999999"), 400, "http1.codec_error"},
	"te twice":            {raw("POST / HTTP/1.1", "Host: x", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), 501, "http1.invalid_transfer_encoding"},
	"te gzip":             {raw("POST / HTTP/1.1", "Host: x", "Transfer-Encoding: gzip, chunked"), 501, "http1.invalid_transfer_encoding"},
	"te identity":         {raw("POST / HTTP/1.1", "Host: x", "Transfer-Encoding: identity"), 501, "http1.invalid_transfer_encoding"},
	"te vtab":             {raw("POST / HTTP/1.1", "Host: x", "Transfer-Encoding: \vchunked"), 400, "http1.invalid_characters"},
	"names xff":           {raw("GET / HTTP/1.1", "Host: x", "Connection: X-Forwarded-For"), 400, "http1.connection_header_rejected"},
	"names length":        {raw("POST / HTTP/1.1", "Host: x", "Connection: content-length", "Content-Length: 3"), 400, "http1.connection_header_rejected"},
	"names no token":      {raw("GET / HTTP/1.1", "Host: x", "Connection: a b"), 400, "http1.connection_header_rejected"},
	"many fields":         {raw(append([]string{"GET / HTTP/1.1"}, strings.Split(strings.Repeat("A: b,", 101), ",")[:101]...)...), 431, "http1.too_many_headers"},
	"large field":         {raw("GET / HTTP/1.1", "Host: x", "A: "+strings.Repeat("a", DefaultBytes)), 431, "http1.headers_too_large"},
	"large path":          {raw("GET /"+strings.Repeat("a", DefaultBytes)+" HTTP/1.1", "Host: x"), 431, "http1.headers_too_large"},
	"large line no end":   {strings.Repeat("a", DefaultBytes), 431, "http1.headers_too_large"},
	"large name no colon": {"GET / HTTP/1.1\r\n" + strings.Repeat("a", DefaultBytes), 431, "http1.headers_too_large"},
}

func TestRefusals(t *testing.T) {
	for name, c := range refusals {
		t.Run(name, func(t *testing.T) {
			var r head.Request
			_, err := ParseRequest([]byte(c.in), &r, Limits{})
			var e *Error
			if !errors.As(err, &e) || e.Status != c.status || e.Detail != c.detail {
				t.Errorf("got %v %+v, want %d %s", err, e, c.status, c.detail)
			}
		})
	}
}

func TestParseResponse(t *testing.T) {
	for name, c := range map[string]struct {
		in      string
		head    bool
		status  int
		framing Framing
		body    int64
		close   bool
		bad     bool
	}{
		"length":       {in: raw("HTTP/1.1 200 OK", "Content-Length: 3"), status: 200, framing: Length, body: 3},
		"no phrase":    {in: raw("HTTP/1.1 200", "Content-Length: 3"), status: 200, framing: Length, body: 3},
		"chunked":      {in: raw("HTTP/1.1 200 OK", "Transfer-Encoding: chunked"), status: 200, framing: Chunked, body: -1},
		"until close":  {in: raw("HTTP/1.1 200 OK"), status: 200, framing: UntilClose, body: -1, close: true},
		"1.0":          {in: raw("HTTP/1.0 200 OK", "Content-Length: 3"), status: 200, framing: Length, body: 3, close: true},
		"1.0 keep":     {in: raw("HTTP/1.0 200 OK", "Content-Length: 3", "Connection: keep-alive"), status: 200, framing: Length, body: 3},
		"empty":        {in: raw("HTTP/1.1 200 OK", "Content-Length: 0"), status: 200},
		"head":         {in: raw("HTTP/1.1 200 OK", "Content-Length: 7"), head: true, status: 200, body: 7},
		"head bare":    {in: raw("HTTP/1.1 200 OK"), head: true, status: 200, body: -1},
		"304":          {in: raw("HTTP/1.1 304 Not Modified", "Content-Length: 7"), status: 304, body: 7},
		"204":          {in: raw("HTTP/1.1 204 No Content"), status: 204},
		"101":          {in: raw("HTTP/1.1 101 S", "Connection: upgrade", "Upgrade: websocket"), status: 101},
		"204 body":     {in: raw("HTTP/1.1 204 No Content", "Content-Length: 3"), bad: true},
		"100 chunked":  {in: raw("HTTP/1.1 100 C", "Transfer-Encoding: chunked"), bad: true},
		"1.0 chunked":  {in: raw("HTTP/1.0 200 OK", "Transfer-Encoding: chunked"), bad: true},
		"status 099":   {in: raw("HTTP/1.1 099 Bad"), bad: true},
		"status 9xx":   {in: raw("HTTP/1.1 9xx Bad"), bad: true},
		"status 2000":  {in: raw("HTTP/1.1 2000 Bad"), bad: true},
		"garbage":      {in: raw("SSH-2.0-x"), bad: true},
		"version":      {in: raw("HTTP/2.0 200 OK"), bad: true},
		"cl te":        {in: raw("HTTP/1.1 200 OK", "Content-Length: 3", "Transfer-Encoding: chunked"), bad: true},
		"two cl":       {in: raw("HTTP/1.1 200 OK", "Content-Length: 3", "Content-Length: 4"), bad: true},
		"bare lf":      {in: "HTTP/1.1 200 OK\nContent-Length: 3\n\n", bad: true},
		"fold":         {in: raw("HTTP/1.1 200 OK", "A: b", " c"), bad: true},
		"150 fields":   {in: raw("HTTP/1.1 200 OK", strings.Repeat("A: b\r\n", 149)+"C: d"), bad: true},
		"phrase bytes": {in: raw("HTTP/1.1 200 O\x00K"), bad: true},
	} {
		t.Run(name, func(t *testing.T) {
			var r head.Response
			n, framing, err := ParseResponse([]byte(c.in+"rest"), &r, c.head, Limits{})
			if c.bad {
				var e *Error
				if !errors.As(err, &e) {
					t.Fatalf("error %v", err)
				}
				return
			}
			if err != nil || n != len(c.in) || r.Status != c.status || framing != c.framing || r.Body != c.body || r.Close != c.close {
				t.Errorf("used %d, framing %d, error %v, %+v", n, framing, err, r)
			}
		})
	}
}

// decode reads a whole body that comes in pieces of n bytes.
func decode(body string, n int) (data string, rest int, err error) {
	var c Chunks
	in := []byte(body)
	for len(in) > 0 && !c.Done() {
		piece := in[:min(n, len(in))]
		got, used, err := c.Next(piece)
		data += string(got)
		if err != nil {
			return data, len(in), err
		}
		in = in[used:]
	}
	if !c.Done() {
		return data, len(in), io.ErrUnexpectedEOF
	}
	return data, len(in), nil
}

func TestChunks(t *testing.T) {
	for name, c := range map[string]struct {
		in, data string
		rest     int
		bad      bool
	}{
		"one":             {in: "3\r\nabc\r\n0\r\n\r\nGET", data: "abc", rest: 3},
		"several":         {in: "3\r\nabc\r\nA;x=y\r\n0123456789\r\n00\r\nA: b\r\n\r\n", data: "abc0123456789"},
		"upper and lower": {in: "0a\r\n0123456789\r\n0 \r\n\r\n", data: "0123456789"},
		"empty":           {in: "0\r\n\r\n"},
		"no size":         {in: "\r\n\r\n", bad: true},
		"bad size":        {in: "xyz\r\n", bad: true},
		"0x":              {in: "0x3\r\nabc\r\n", bad: true},
		"overflow":        {in: "10000000000000000\r\n", bad: true},
		"bare lf":         {in: "3\nabc\n0\n\n", bad: true},
		"no crlf":         {in: "3\r\nabc0\r\n\r\n", bad: true},
		"long data":       {in: "3\r\nabcd\r\n0\r\n\r\n", bad: true},
		"ext lf":          {in: "3;a\nabc\r\n0\r\n\r\n", bad: true},
		"ext cr":          {in: "3;a\rb\r\nabc\r\n0\r\n\r\n", bad: true},
		"ext nul":         {in: "3;\x00\r\nabc\r\n0\r\n\r\n", bad: true},
		"trailer fold":    {in: "0\r\nA: b\r\n c\r\n\r\n", bad: true},
		"trailer lf":      {in: "0\r\nA: b\n\r\n", bad: true},
		"trailer blank":   {in: "0\r\nA : b\r\n\r\n", bad: true},
		"end lf":          {in: "0\r\n\n", bad: true},
		"long ext":        {in: "3;" + strings.Repeat("a", chunkOverhead+1) + "\r\nabc\r\n0\r\n\r\n", bad: true},
		"zeros":           {in: strings.Repeat("0", chunkOverhead+2) + "3\r\nabc\r\n0\r\n\r\n", bad: true},
		"many extensions": {in: strings.Repeat("1;"+strings.Repeat("a", 50)+"\r\nx\r\n", 1000) + "0\r\n\r\n", bad: true},
		"long trailers":   {in: "0\r\nA: " + strings.Repeat("a", maxTrailers) + "\r\n\r\n", bad: true},
	} {
		for _, n := range []int{1, 2, 7, 1 << 20} {
			data, rest, err := decode(c.in, n)
			if c.bad {
				var e *Error
				if !errors.As(err, &e) {
					t.Errorf("%s by %d: error %v", name, n, err)
				}
			} else if err != nil || data != c.data || rest != c.rest {
				t.Errorf("%s by %d: %q, rest %d, error %v", name, n, data, rest, err)
			}
		}
	}
}

func TestAppendChunk(t *testing.T) {
	for n, want := range map[int]string{1: "1\r\n", 15: "f\r\n", 16: "10\r\n", 0x12345: "12345\r\n"} {
		if got := string(AppendChunk(nil, n)); got != want {
			t.Errorf("%d: %q", n, got)
		}
	}
}

// TestAppend shows that net/http reads what is written.
func TestAppend(t *testing.T) {
	var r head.Request
	in := raw("POST /a HTTP/1.1", "Host: x", "Connection: upgrade, close", "Upgrade: websocket", "A: b", "Transfer-Encoding: chunked")
	if _, err := ParseRequest([]byte(in), &r, Limits{}); err != nil {
		t.Fatal(err)
	}
	r.Protocol = nil
	out := AppendRequest(nil, &r)
	got, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(out)))
	if err != nil || got.Host != "x" || got.Header.Get("A") != "b" || !got.Close || got.ContentLength != -1 {
		t.Errorf("%v: %q", err, out)
	}
	resp := head.Response{Status: 418, Body: 3}
	out = append(AppendResponse(nil, &resp, false), "abc"...)
	answer, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(out)), nil)
	if err != nil || answer.Status != "418 Unknown" || answer.ContentLength != 3 {
		t.Errorf("%v: %q", err, out)
	}
}

func TestNoAllocation(t *testing.T) {
	in := []byte(raw("GET /a/b?c HTTP/1.1", "Host: x", "User-Agent: y", "A: b", "Connection: keep-alive"))
	var r head.Request
	out := make([]byte, 0, 1024)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := ParseRequest(in, &r, Limits{}); err != nil {
			t.Fatal(err)
		}
		out = AppendRequest(out[:0], &r)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkParseRequest(b *testing.B) {
	in := []byte(raw("GET /a/b?c HTTP/1.1", "Host: x.default.svc.cluster.local:8000", "User-Agent: curl/7.73.0-DEV", "Accept: */*",
		"X-Request-Id: 9b3b1d7e-7a5c-4bd5-9d5e-0e9f0a4c3c11", "X-Forwarded-Proto: http", "Connection: keep-alive"))
	var r head.Request
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseRequest(in, &r, Limits{}); err != nil {
			b.Fatal(err)
		}
	}
}
