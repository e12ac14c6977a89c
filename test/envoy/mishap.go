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
// x-envoy-attempt-count tells them apart: "close,none" closes the connection of the first try.
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
	list := strings.Split(do, ",")
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
		return errors.Join(w.garbage(), errOver)
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
		return errors.Join(w.goAway(), errOver)
	}
	return errOver
}

var mishaps = []mishap{none, closes, halfAnswer, headOnly, hangs, garbage, early, refuses, resets, resetsHalf, goesAway, grpcDown}

// silent are those after which a client gets no end of an answer by itself.
func (m mishap) silent() bool { return m == hangs || m == headOnly }

// unanswered are those after which, over HTTP/1.1, a connection has ended without a byte of an answer.
func (m mishap) unanswered() bool {
	return m == closes || m == refuses || m == resets || m == goesAway
}
