package envoy

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// step is something that an upstream of HTTP/2 does about a stream.
type step func(a said, w *wire2, stream uint32) error

// atHead begins the mishaps that happen as soon as the head of a request is there, before its body.
const atHead = "at head: "

// steps2 are mishaps that only HTTP/2 has; over HTTP/1.1 they are as closes.
func steps2() map[mishap][]step {
	out := heads2()
	for name, list := range map[string][]step{
		"GOAWAY with": {goAway(0, http2.ErrCodeNo), good}, "GOAWAY with, end": {goAway(0, http2.ErrCodeNo), over},
		"GOAWAY with INTERNAL, end": {goAway(0, http2.ErrCodeInternal), over}, "GOAWAY with CALM": {goAway(0, http2.ErrCodeEnhanceYourCalm), good},
		"GOAWAY twice": {goAway(0, http2.ErrCodeNo), goAway(0, http2.ErrCodeNo), good}, "GOAWAY half": {part, goAway(0, http2.ErrCodeNo), rest},
		"GOAWAY half, end": {part, goAway(0, http2.ErrCodeNo), over}, "GOAWAY half, INTERNAL, end": {part, goAway(0, http2.ErrCodeInternal), over},
		"GOAWAY behind": {good, goAway(0, http2.ErrCodeNo)}, "GOAWAY behind, end": {good, goAway(0, http2.ErrCodeNo), over},
		"over behind": {good, over}, "NO_ERROR behind": {good, reset(http2.ErrCodeNo)}, "INTERNAL behind": {good, reset(http2.ErrCodeInternal)},
		"garbage behind": {good, raw2(http2.FrameData, 0, -1, "x")},

		"DATA idle": {raw2(http2.FrameData, 0, 2, "x")}, "DATA first": {raw2(http2.FrameData, 0, 0, "x"), good},
		"HEADERS even": {raw2(http2.FrameHeaders, 5, 1, "\x88")}, "HEADERS idle": {raw2(http2.FrameHeaders, 5, 2, "\x88")},
		"HEADERS 0": {raw2(http2.FrameHeaders, 5, -1, "\x88")}, "no HPACK": {raw2(http2.FrameHeaders, 5, 0, "\xff\xff\xff\xff\xff\xff\xff")},
		"HPACK index": {raw2(http2.FrameHeaders, 5, 0, "\xfe")}, "large frame": {part, raw2(http2.FrameData, 0, 0, strings.Repeat("x", 1<<20))},
		"PUSH_PROMISE": {raw2(http2.FramePushPromise, 4, 0, "\x00\x00\x00\x02\x82")}, "CONTINUATION": {raw2(http2.FrameContinuation, 4, 0, "\x88")},
		"CONTINUATION waits": {raw2(http2.FrameHeaders, 1, 0, "\x88"), raw2(http2.FramePing, 0, -1, "12345678")},
		"WINDOW_UPDATE 0":    {part, raw2(http2.FrameWindowUpdate, 0, 0, "\x00\x00\x00\x00")}, "WINDOW_UPDATE 0 of all": {part, raw2(http2.FrameWindowUpdate, 0, -1, "\x00\x00\x00\x00")},
		"WINDOW_UPDATE over": {part, raw2(http2.FrameWindowUpdate, 0, 0, "\x7f\xff\xff\xff")}, "WINDOW_UPDATE over of all": {part, raw2(http2.FrameWindowUpdate, 0, -1, "\x7f\xff\xff\xff")},
		"WINDOW_UPDATE idle": {raw2(http2.FrameWindowUpdate, 0, 2, "\x00\x00\x00\x01")}, "WINDOW_UPDATE short": {raw2(http2.FrameWindowUpdate, 0, 0, "\x00\x01")},
		"SETTINGS of stream": {raw2(http2.FrameSettings, 0, 0, "")}, "SETTINGS odd": {raw2(http2.FrameSettings, 0, -1, "12345")},
		"SETTINGS window": {raw2(http2.FrameSettings, 0, -1, "\x00\x04\x80\x00\x00\x00")}, "SETTINGS frame": {raw2(http2.FrameSettings, 0, -1, "\x00\x05\x00\x00\x00\x01")},
		"SETTINGS push": {raw2(http2.FrameSettings, 0, -1, "\x00\x02\x00\x00\x00\x01")}, "SETTINGS unknown": {raw2(http2.FrameSettings, 0, -1, "\x0f\x0f\x00\x00\x00\x01"), good},
		"SETTINGS ack with": {raw2(http2.FrameSettings, 1, -1, "123456")},
		"PING short":        {raw2(http2.FramePing, 0, -1, "12345")}, "PING of stream": {raw2(http2.FramePing, 0, 0, "12345678")}, "PING": {raw2(http2.FramePing, 0, -1, "12345678"), good},
		"RST_STREAM 0": {raw2(http2.FrameRSTStream, 0, -1, "\x00\x00\x00\x08")}, "RST_STREAM idle": {raw2(http2.FrameRSTStream, 0, 2, "\x00\x00\x00\x08")},
		"RST_STREAM short": {raw2(http2.FrameRSTStream, 0, 0, "\x00\x00")}, "GOAWAY short": {raw2(http2.FrameGoAway, 0, -1, "\x00\x00\x00\x00")},
		"PRIORITY": {raw2(http2.FramePriority, 0, 0, "\x00\x00\x00\x00\x01"), good}, "unknown frame": {raw2(0xbb, 0, 0, "x"), good},
		"padding":          {raw2(http2.FrameHeaders, 0xc, 0, "\x03\x88\x00\x00\x00"), raw2(http2.FrameData, 9, 0, "\x02ab\x00\x00")},
		"padding too long": {raw2(http2.FrameHeaders, 0xc, 0, "\x30\x88\x00\x00\x00")}, "priority of HEADERS": {raw2(http2.FrameHeaders, 0x25, 0, "\x00\x00\x00\x00\x01\x88")},

		"trailers": {part, heads(true, "x-after", "1")}, "trailers alone": {heads(false, ":status", "200"), heads(true, "x-after", "1")},
		"trailers open": {part, heads(false, "x-after", "1")}, "trailers with :status": {part, heads(true, ":status", "200")},
		"trailers of upper": {part, heads(true, "X-After", "1")}, "trailers of connection": {part, heads(true, "connection", "close")},
		"trailers of length": {part, heads(true, "content-length", "4")}, "DATA behind trailers": {part, heads(true, "x-after", "1"), data("more")},
		"HEADERS behind": {good, heads(true, ":status", "200")}, "second head": {part, heads(false, ":status", "200"), rest},

		"gRPC 0 in head":  {heads(true, ":status", "200", "content-type", "application/grpc", "grpc-status", "0")},
		"gRPC 14":         {heads(false, ":status", "200", "content-type", "application/grpc"), heads(true, "grpc-status", "14", "grpc-message", "down")},
		"gRPC 14 behind":  {heads(false, ":status", "200", "content-type", "application/grpc"), data("some"), heads(true, "grpc-status", "14")},
		"gRPC 13 in head": {heads(true, ":status", "200", "content-type", "application/grpc", "grpc-status", "13")}, "gRPC 99 in head": {heads(true, ":status", "200", "grpc-status", "99")},
		"gRPC x in head": {heads(true, ":status", "200", "grpc-status", "x")}, "gRPC none": {heads(true, ":status", "200", "content-type", "application/grpc")},
		"gRPC 503": {heads(true, ":status", "503", "content-type", "application/grpc")}, "gRPC 14 and 503": {heads(true, ":status", "503", "content-type", "application/grpc", "grpc-status", "14")},

		"100": {heads(false, ":status", "100"), good}, "102": {heads(false, ":status", "102"), good}, "199": {heads(false, ":status", "199"), good},
		"103 thrice": {heads(false, ":status", "103"), heads(false, ":status", "103"), heads(false, ":status", "103"), good},
		"103 at end": {heads(true, ":status", "103")}, "103, INTERNAL": {heads(false, ":status", "103"), reset(http2.ErrCodeInternal)},
		"103, end": {heads(false, ":status", "103"), over}, "103, REFUSED": {heads(false, ":status", "103"), reset(http2.ErrCodeRefusedStream)},
		"103, 503": {heads(false, ":status", "103"), heads(true, ":status", "503")}, "100, 503": {heads(false, ":status", "100"), heads(true, ":status", "503")},
		"103, DATA": {heads(false, ":status", "103"), data("x"), good},

		atHead + "good": {good}, atHead + "good, NO_ERROR": {good, reset(http2.ErrCodeNo)}, atHead + "good, CANCEL": {good, reset(http2.ErrCodeCancel)},
		atHead + "good, end": {good, over}, atHead + "REFUSED": {reset(http2.ErrCodeRefusedStream)}, atHead + "NO_ERROR": {reset(http2.ErrCodeNo)},
		atHead + "INTERNAL": {reset(http2.ErrCodeInternal)}, atHead + "end": {over}, atHead + "GOAWAY": {goAway(-99, http2.ErrCodeNo), over},
		atHead + "part, NO_ERROR": {part, reset(http2.ErrCodeNo)}, atHead + "503": {heads(true, ":status", "503")},
	} {
		out[mishap(name)] = list
	}
	for code := range http2.ErrCode(0xf) {
		out[mishap(fmt.Sprintf("RST_STREAM %d", code))] = []step{reset(code)}
		out[mishap(fmt.Sprintf("half, RST_STREAM %d", code))] = []step{part, reset(code)}
		out[mishap(fmt.Sprintf("GOAWAY without, %d", code))] = []step{goAway(-99, code), over}
		out[mishap(fmt.Sprintf("GOAWAY with, %d", code))] = []step{goAway(0, code), over}
	}
	return out
}

// heads2 are those of them that are odd heads.
func heads2() map[mishap][]step {
	return map[mishap][]step{
		"no status": {heads(true, "x-a", "1")}, "status abc": {heads(true, ":status", "abc")}, "status 20": {heads(true, ":status", "20")}, "status 099": {heads(true, ":status", "099")},
		"status 2000": {heads(true, ":status", "2000")}, "status 600": {heads(true, ":status", "600")}, "status 999": {heads(true, ":status", "999")},
		"status 101": {heads(false, ":status", "101"), good}, "status twice": {heads(true, ":status", "200", ":status", "200")},
		"status late": {heads(true, "x-a", "1", ":status", "200")}, "status empty": {heads(true, ":status", "")},
		":path": {heads(true, ":status", "200", ":path", "/")}, ":odd": {heads(true, ":status", "200", ":odd", "1")},
		"upper": {heads(true, ":status", "200", "X-A", "1")}, "connection": {heads(true, ":status", "200", "connection", "close")},
		"keep-alive": {heads(true, ":status", "200", "keep-alive", "5")}, "upgrade": {heads(true, ":status", "200", "upgrade", "x")},
		"transfer-encoding": {heads(false, ":status", "200", "transfer-encoding", "chunked"), rest}, "te": {heads(true, ":status", "200", "te", "trailers")},
		"no name": {heads(true, ":status", "200", "", "1")}, "blank in name": {heads(true, ":status", "200", "x a", "1")}, "NUL": {heads(true, ":status", "200", "x-a", "1\x002")},
		"LF": {heads(true, ":status", "200", "x-a", "1\n2")}, "CR": {heads(true, ":status", "200", "x-a", "1\r2")}, "8 bit": {heads(true, ":status", "200", "x-a", "\xff\xfe")},
		"blanks": {heads(true, ":status", "200", "x-a", "  1 ")}, "control": {heads(true, ":status", "200", "x-a", "1\x012")},
		"many fields": {heads(true, append([]string{":status", "200"}, strings.Split(strings.Repeat("a,b,", 120)+"a,b", ",")...)...)},
		"large head":  {heads(true, ":status", "200", "x-a", strings.Repeat("h", 70<<10))}, "empty cookie": {heads(true, ":status", "200", "set-cookie", "", "set-cookie", "a=b")},

		"length 5, end": {heads(true, ":status", "200", "content-length", "5")}, "length 5, some": {heads(false, ":status", "200", "content-length", "5"), rest},
		"length 1, some": {heads(false, ":status", "200", "content-length", "1"), rest}, "length x": {heads(false, ":status", "200", "content-length", "x"), rest},
		"length -1": {heads(false, ":status", "200", "content-length", "-1"), rest}, "length twice": {heads(false, ":status", "200", "content-length", "4", "content-length", "4"), rest},
		"length differs": {heads(false, ":status", "200", "content-length", "4", "content-length", "5"), rest}, "length of 204": {heads(true, ":status", "204", "content-length", "4")},
		"length of 304": {heads(true, ":status", "304", "content-length", "4")}, "body of 204": {heads(false, ":status", "204"), rest}, "body of 304": {heads(false, ":status", "304"), rest},
		"length 0 of 204": {heads(true, ":status", "204", "content-length", "0")}, "length 0": {heads(true, ":status", "200", "content-length", "0")}, "no DATA": {heads(false, ":status", "200"), raw2(http2.FrameData, 1, 0, "")},
		"length of trailers": {heads(false, ":status", "200", "content-length", "9"), data("some"), heads(true, "x-after", "1")},
	}
}

// mishaps2 are the names of steps2: those that happen at the head of a request, or the others.
func mishaps2(early bool) []mishap {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(steps2())), func(m mishap) bool { return m.early() != early })
}

func (m mishap) early() bool { return strings.HasPrefix(string(m), atHead) }

func over(said, *wire2, uint32) error { return errOver }

// good is the answer that the request asks for.
func good(a said, w *wire2, stream uint32) error {
	a.mishap = none
	return a.send2(w, stream)
}

// part is its head and some of a body; rest is the end of one.
func part(a said, w *wire2, stream uint32) error {
	return errors.Join(w.head(stream, a.head2(), false), w.data(stream, "some", false))
}

func rest(_ said, w *wire2, stream uint32) error { return w.data(stream, "rest", true) }

func data(text string) step {
	return func(_ said, w *wire2, stream uint32) error { return w.data(stream, text, false) }
}

func reset(code http2.ErrCode) step {
	return func(_ said, w *wire2, stream uint32) error { return w.reset(stream, code) }
}

// goAway names the stream at this distance.
func goAway(distance int, code http2.ErrCode) step {
	return func(_ said, w *wire2, stream uint32) error {
		return w.goAway(uint32(max(0, int(stream)+distance)), code)
	}
}

// raw2 is a frame of the stream at this distance; -1: of the connection.
func raw2(typ http2.FrameType, flags http2.Flags, distance int, payload string) step {
	return func(_ said, w *wire2, stream uint32) error {
		id := uint32(0)
		if distance >= 0 {
			id = stream + uint32(distance)
		}
		return w.raw(typ, flags, id, payload)
	}
}

// heads is a block of names and values as they are.
func heads(end bool, fields ...string) step {
	return func(_ said, w *wire2, stream uint32) error {
		var list []hpack.HeaderField
		for i := 0; i+1 < len(fields); i += 2 {
			list = append(list, hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
		}
		return w.block(stream, list, end)
	}
}

// manner is how an upstream of HTTP/2 begins a connection, and what it does not do.
type manner struct {
	text     string // that it writes in place of SETTINGS
	settings []http2.Setting
	frames   []step // behind them
	over     bool   // it ends then
}

// manners are those of the clusters of these names.
var manners = map[string]manner{
	"http1":            {text: "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n", over: true},
	"end":              {text: "\x00", over: true},
	"no-settings":      {text: "\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678"},
	"settings-window":  {settings: []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 1 << 31}}},
	"settings-frame":   {settings: []http2.Setting{{ID: http2.SettingMaxFrameSize, Val: 1}}},
	"settings-push":    {settings: []http2.Setting{{ID: http2.SettingEnablePush, Val: 1}}},
	"settings-unknown": {settings: []http2.Setting{{ID: 0xf0f0, Val: 1}}},
	"no-window":        {settings: []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 0}}},
	"no-table":         {settings: []http2.Setting{{ID: http2.SettingHeaderTableSize, Val: 0}}},
	"small-list":       {settings: []http2.Setting{{ID: http2.SettingMaxHeaderListSize, Val: 10}}},
	"no-streams":       {settings: []http2.Setting{{ID: http2.SettingMaxConcurrentStreams, Val: 0}}},
	"one-stream":       {settings: []http2.Setting{{ID: http2.SettingMaxConcurrentStreams, Val: 1}}},
	"settings-end":     {over: true},
}

func (m manner) begin(w *wire2, c io.Writer) error {
	var err error
	if m.text != "" {
		_, err = io.WriteString(c, m.text)
	} else {
		err = w.greet(m.settings...)
	}
	for _, s := range m.frames {
		err = errors.Join(err, s(said{}, w, 0))
	}
	if m.over {
		err = errors.Join(err, errOver)
	}
	return err
}
