package envoy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"

	"golang.org/x/net/http2"
)

// mishap is what an upstream does in place of a good answer. The request asks for it in x-echo-do, one for each try, as
// x-envoy-attempt-count tells them apart: "close;" closes the connection of the first try.
type mishap string

const (
	none       mishap = ""
	closes     mishap = "close"       // no answer, the connection ends
	halfAnswer mishap = "half"        // the head and some of the body, then the connection ends
	headOnly   mishap = "head"        // the head, and nothing after it
	hangs      mishap = "hang"        // no answer
	garbage    mishap = "garbage"     // no HTTP
	early      mishap = "early"       // an informational answer first, then the good one
	refuses    mishap = "refuse"      // HTTP/2: RST_STREAM REFUSED_STREAM; else as closes
	resets     mishap = "reset"       // HTTP/2: RST_STREAM INTERNAL_ERROR; else as closes
	resetsHalf mishap = "reset-half"  // HTTP/2: the same after some of the body; else as halfAnswer
	goesAway   mishap = "goaway"      // HTTP/2: GOAWAY that leaves the stream out, then the end; else as closes
	grpcDown   mishap = "unavailable" // an answer of gRPC with status 14 in its head
)

// answerWith begins the mishaps that are whole answers: "answer 503 x-again 1" has that status and that field, whose value is 1 unless said.
const answerWith = "answer "

// answer makes the answer what the mishap says, where it says one.
func (a *said) answer() error {
	text, ok := strings.CutPrefix(string(a.mishap), answerWith)
	if !ok {
		return nil
	}
	words := append(strings.Split(text, " "), "1")
	a.mishap = none
	if len(words) > 2 {
		a.fields = append(a.fields, words[1]+": "+words[2])
	}
	var err error
	a.status, err = strconv.Atoi(words[0])
	return err
}

// everyTry makes one thing happen to each try.
func everyTry(m string) string { return strings.Repeat(m+";", 8) + m }

// errOver ends a connection.
var errOver = errors.New("the connection is to end")

// mishapOf is that of the try that the header is of; beyond the list all is well.
func mishapOf(h http.Header) (mishap, error) {
	do := h.Get("X-Echo-Do")
	if do == "" {
		return none, nil
	}
	n := 1
	if s := h.Get("X-Envoy-Attempt-Count"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			return none, err
		}
	}
	list := strings.Split(do, ";")
	if n > len(list) {
		return none, nil
	}
	return mishap(list[n-1]), nil
}

// fail1 does what goes wrong, over HTTP/1.1.
func (a said) fail1(c net.Conn) error {
	write := func(text string) error {
		_, err := io.WriteString(c, text)
		return err
	}
	part := fmt.Sprintf("HTTP/1.1 %d Echo\r\n%s\r\ncontent-length: 100\r\n\r\n", a.status, strings.Join(a.fields, "\r\n"))
	if text, ok := texts1[a.mishap]; ok {
		err := write(strings.ReplaceAll(text, "SEEN", a.fields[1]))
		if strings.HasSuffix(string(a.mishap), ", end") {
			err = errors.Join(err, errOver)
		}
		return err
	}
	switch a.mishap {
	case halfAnswer, resetsHalf:
		return errors.Join(write(part+"some"), errOver)
	case headOnly:
		return write(part)
	case hangs:
		return nil
	case garbage:
		return errors.Join(write("garbage\r\n\r\n"), errOver)
	case early:
		return write("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + a.text1())
	case grpcDown:
		return write("HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ngrpc-status: 14\r\ncontent-length: 0\r\n\r\n")
	}
	return errOver
}

// fail2 does what goes wrong, over HTTP/2.
func (a said) fail2(w *wire2, stream uint32) error {
	for _, s := range a.steps {
		if err := s(a, w, stream); err != nil {
			return err
		}
	}
	if a.steps != nil {
		return nil
	}
	switch a.mishap {
	case halfAnswer, resetsHalf:
		err := errors.Join(w.head(stream, a.head2(), false), w.data(stream, "some", false))
		if a.mishap == resetsHalf {
			return errors.Join(err, w.reset(stream, http2.ErrCodeInternal))
		}
		return errors.Join(err, errOver)
	case headOnly:
		return w.head(stream, a.head2(), false)
	case hangs:
		return nil
	case garbage:
		return errors.Join(w.raw(http2.FrameData, 0, 0, "garbage"), errOver) // that no stream may have
	case early:
		a.mishap = none
		return errors.Join(w.head(stream, []string{":status: 103", "link: </a>"}, false), a.send2(w, stream))
	case grpcDown:
		return w.head(stream, []string{":status: 200", "content-type: application/grpc", "grpc-status: 14"}, true)
	case refuses:
		return w.reset(stream, http2.ErrCodeRefusedStream)
	case resets:
		return w.reset(stream, http2.ErrCodeInternal)
	case goesAway:
		return errors.Join(w.goAway(0, http2.ErrCodeNo), errOver)
	}
	return errOver
}

var mishaps = []mishap{none, closes, halfAnswer, headOnly, hangs, garbage, early, refuses, resets, resetsHalf, goesAway, grpcDown}

// silent are those after which a client gets no end of an answer by itself.
func (m mishap) silent() bool { return m == hangs || m == headOnly }

// unanswered are those after which a connection has ended without a byte of an answer.
func (m mishap) unanswered(two bool) bool {
	return m == closes || m == goesAway || !two && (m == refuses || m == resets)
}

// texts1 are answers of HTTP/1.1 that are out of the ordinary, as text; SEEN is replaced by what tells of the request. After one
// whose name says so the connection ends.
var texts1 = map[mishap]string{
	"1.0": "HTTP/1.0 200 OK\r\ncontent-length: 2\r\nSEEN\r\n\r\nok", "1.0, end": "HTTP/1.0 200 OK\r\nSEEN\r\n\r\nsome", "1.2": "HTTP/1.2 200 OK\r\ncontent-length: 2\r\n\r\nok",
	"0.9, end": "<html>", "to the end, end": "HTTP/1.1 200 OK\r\nSEEN\r\n\r\nsome", "connection close": "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\nSEEN\r\n\r\nok",
	"chunked": "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "chunked half, end": "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nok", "chunked bad": "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
	"chunked bad later": "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\nzz\r\n", "chunked with trailers": "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-after: 1\r\n\r\n",
	"chunked and length": "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n", "gzip, chunked": "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
	"length twice": "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok", "length differs": "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
	"length x": "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\nok", "length +2": "HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nok", "length -2": "HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nok",
	"length short": "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nok", "length of 204": "HTTP/1.1 204 No\r\ncontent-length: 4\r\n\r\n", "length 0 of 204": "HTTP/1.1 204 No\r\ncontent-length: 0\r\n\r\n",
	"chunked 204": "HTTP/1.1 204 No\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "204": "HTTP/1.1 204 No\r\n\r\n", "304": "HTTP/1.1 304 Not\r\n\r\n", "length of 304": "HTTP/1.1 304 Not\r\ncontent-length: 4\r\n\r\n",
	"chunked 304": "HTTP/1.1 304 Not\r\ntransfer-encoding: chunked\r\n\r\n", "205": "HTTP/1.1 205 Reset\r\ncontent-length: 0\r\n\r\n", "205 with a body": "HTTP/1.1 205 Reset\r\ncontent-length: 2\r\n\r\nok",
	"101": "HTTP/1.1 101 Switch\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", "101 bare": "HTTP/1.1 101 Switch\r\n\r\n", "100": "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
	"102": "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", "199": "HTTP/1.1 199 Odd\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
	"103 thrice": strings.Repeat("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n", 3) + "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", "103, end": "HTTP/1.1 103 Early Hints\r\n\r\n",
	"100 with length": "HTTP/1.1 100 Continue\r\ncontent-length: 4\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", "103, 503": "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 503 No\r\ncontent-length: 2\r\n\r\nno", "103, garbage": "HTTP/1.1 103 Early Hints\r\n\r\ngarbage\r\n\r\n",
	"status 99": "HTTP/1.1 099 OK\r\ncontent-length: 2\r\n\r\nok", "status 600": "HTTP/1.1 600 OK\r\ncontent-length: 2\r\n\r\nok", "status 999": "HTTP/1.1 999 OK\r\ncontent-length: 2\r\n\r\nok",
	"status 20": "HTTP/1.1 20 OK\r\ncontent-length: 2\r\n\r\nok", "status 2000": "HTTP/1.1 2000 OK\r\ncontent-length: 2\r\n\r\nok", "status x": "HTTP/1.1 x OK\r\ncontent-length: 2\r\n\r\nok",
	"no reason": "HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nok", "empty reason": "HTTP/1.1 200 \r\ncontent-length: 2\r\n\r\nok", "8 bit reason": "HTTP/1.1 200 \xff\r\ncontent-length: 2\r\n\r\nok",
	"folded": "HTTP/1.1 200 OK\r\nx-a: 1\r\n 2\r\ncontent-length: 2\r\n\r\nok", "bare LF": "HTTP/1.1 200 OK\ncontent-length: 2\n\nok", "bare CR": "HTTP/1.1 200 OK\r\nx-a: 1\r2\r\ncontent-length: 2\r\n\r\nok",
	"NUL": "HTTP/1.1 200 OK\r\nx-a: 1\x002\r\ncontent-length: 2\r\n\r\nok", "8 bit": "HTTP/1.1 200 OK\r\nx-a: \xff\xfe\r\ncontent-length: 2\r\n\r\nok", "no name": "HTTP/1.1 200 OK\r\n: 1\r\ncontent-length: 2\r\n\r\nok",
	"no colon": "HTTP/1.1 200 OK\r\nnothing\r\ncontent-length: 2\r\n\r\nok", "blank before colon": "HTTP/1.1 200 OK\r\nx-a : 1\r\ncontent-length: 2\r\n\r\nok", "underscore": "HTTP/1.1 200 OK\r\nx_a: 1\r\ncontent-length: 2\r\n\r\nok",
	"many fields": "HTTP/1.1 200 OK\r\n" + strings.Repeat("a: b\r\n", 120) + "content-length: 2\r\n\r\nok", "large head": "HTTP/1.1 200 OK\r\nx: " + strings.Repeat("h", 70<<10) + "\r\ncontent-length: 2\r\n\r\nok",
	"lines before": "\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", "connection names": "HTTP/1.1 200 OK\r\nconnection: x-a, keep-alive\r\nx-a: 1\r\nkeep-alive: 5\r\ncontent-length: 2\r\n\r\nok",
	"upgrade": "HTTP/1.1 200 OK\r\nconnection: upgrade\r\nupgrade: h2c\r\ncontent-length: 2\r\n\r\nok", "half head, end": "HTTP/1.1 200 OK\r\ncontent-le", "two answers": "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno",
	"proxy-connection": "HTTP/1.1 200 OK\r\nproxy-connection: close\r\ncontent-length: 2\r\n\r\nok", "trailer": "HTTP/1.1 200 OK\r\ntrailer: x-after\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx-after: 1\r\n\r\n",
	atHead + "text": "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", atHead + "text, end": "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", atHead + "text, close, end": "HTTP/1.1 413 No\r\nconnection: close\r\ncontent-length: 2\r\n\r\nno",
	atHead + "half, end": "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok",
}
