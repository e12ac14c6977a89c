package envoy

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// wire2 writes one side of an HTTP/2 connection as a test wants it, and reads the other. It sends small bodies only, so it does not
// look at the windows that it is given. Writing is safe for concurrent use.
type wire2 struct {
	f     *http2.Framer        // read by one goroutine
	early func(*stream2) error // is called at a head that a body follows; nil: nothing is
	hints []int                // informational statuses; used by that goroutine
	last  uint32               // the last stream that was begun here; used by that goroutine
	mu    sync.Mutex           // protects below, and writing
	b     bytes.Buffer
	h     *hpack.Encoder
}

// newWire2 makes one side of a connection whose preface, if it is a client's, was written. SETTINGS are to be sent.
func newWire2(r io.Reader, w net.Conn) *wire2 {
	x := &wire2{}
	x.f = http2.NewFramer(w, r)
	x.f.ReadMetaHeaders, x.f.MaxHeaderListSize, x.f.AllowIllegalWrites = hpack.NewDecoder(4096, nil), 1<<20, true
	x.h = hpack.NewEncoder(&x.b)
	return x
}

// greet sends SETTINGS.
func (x *wire2) greet(s ...http2.Setting) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.f.WriteSettings(s...)
}

// head writes a head or trailers: "name: value", pseudo fields first.
func (x *wire2) head(stream uint32, fields []string, end bool) error {
	var list []hpack.HeaderField
	for _, f := range fields {
		n, v, _ := cutField(f)
		list = append(list, hpack.HeaderField{Name: n, Value: v})
	}
	return x.block(stream, list, end)
}

// block writes a head or trailers as they are.
func (x *wire2) block(stream uint32, fields []hpack.HeaderField, end bool) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.b.Reset()
	for _, f := range fields {
		if err := x.h.WriteField(f); err != nil {
			return err
		}
	}
	const most = 16384
	block := x.b.Bytes()
	first := block[:min(most, len(block))]
	err := x.f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: first, EndStream: end, EndHeaders: len(block) <= most})
	for block = block[len(first):]; len(block) > 0 && err == nil; {
		n := min(most, len(block))
		err = x.f.WriteContinuation(stream, n == len(block), block[:n])
		block = block[n:]
	}
	return err
}

// cutField divides "name: value"; the name may begin with a colon.
func cutField(f string) (name, value string, ok bool) {
	i := strings.Index(f[min(1, len(f)):], ":")
	if i < 0 {
		return f, "", false
	}
	return strings.ToLower(f[:i+1]), strings.TrimPrefix(f[i+2:], " "), true
}

func (x *wire2) data(stream uint32, text string, end bool) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.f.WriteData(stream, end, []byte(text))
}

func (x *wire2) reset(stream uint32, code http2.ErrCode) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.f.WriteRSTStream(stream, code)
}

func (x *wire2) goAway(last uint32, code http2.ErrCode) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.f.WriteGoAway(last, code, nil)
}

func (x *wire2) raw(typ http2.FrameType, flags http2.Flags, stream uint32, payload string) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.f.WriteRawFrame(typ, flags, stream, []byte(payload))
}

// stream2 is what came of one stream.
type stream2 struct {
	head     *http2.MetaHeadersFrame
	header   http.Header // without pseudo fields
	trailer  http.Header // nil: none
	body     []byte
	stream   uint32
	resetFor string // "": it ended
	answered bool   // before its end
}

// errGoAway: the peer takes no more streams.
var errGoAway = errors.New("GOAWAY")

// next reads frames until a stream has ended.
func (x *wire2) next(open map[uint32]*stream2) (*stream2, error) {
	for {
		f, err := x.f.ReadFrame()
		if err != nil {
			return nil, err
		}
		m := open[f.Header().StreamID]
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				x.mu.Lock()
				err = x.f.WriteSettingsAck()
				x.mu.Unlock()
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				x.mu.Lock()
				err = x.f.WritePing(true, f.Data)
				x.mu.Unlock()
			}
		case *http2.MetaHeadersFrame:
			m = x.heads(f, m)
			open[f.StreamID] = m
			if f.StreamEnded() {
				return m, nil
			}
			if x.early != nil && m.trailer == nil {
				err = x.early(m)
			}
		case *http2.DataFrame:
			if n := len(f.Data()); n > 0 {
				x.mu.Lock()
				err = errors.Join(x.f.WriteWindowUpdate(0, uint32(n)), x.f.WriteWindowUpdate(f.StreamID, uint32(n)))
				x.mu.Unlock()
			}
			if m == nil {
				continue
			}
			if m.body = append(m.body, f.Data()...); f.StreamEnded() {
				return m, nil
			}
		case *http2.RSTStreamFrame:
			if m == nil && f.StreamID != x.last {
				continue // of a stream that is over
			}
			if m == nil {
				m = &stream2{stream: f.StreamID}
			}
			m.resetFor = f.ErrCode.String()
			return m, nil
		case *http2.GoAwayFrame:
			if f.LastStreamID < x.last {
				return nil, errGoAway
			}
		}
		if err != nil {
			return nil, err
		}
	}
}

// heads takes the head of a message, or its trailers. Of informational heads the status is noted.
func (x *wire2) heads(f *http2.MetaHeadersFrame, m *stream2) *stream2 {
	fields := http.Header{}
	for _, h := range f.RegularFields() {
		fields.Add(textproto.CanonicalMIMEHeaderKey(h.Name), h.Value)
	}
	if m != nil && m.head != nil && !strings.HasPrefix(m.head.PseudoValue("status"), "1") {
		m.trailer = fields
		return m
	}
	if status := f.PseudoValue("status"); strings.HasPrefix(status, "1") {
		n, _ := strconv.Atoi(status) // 0 of one that is none
		x.hints = append(x.hints, n)
	}
	return &stream2{stream: f.StreamID, head: f, header: fields}
}

// asked is the request of a server's stream.
func (m *stream2) asked(cluster string) asked {
	q := asked{header: m.header, Seen: Seen{Cluster: cluster, Two: true, Method: m.head.PseudoValue("method"), Target: m.head.PseudoValue("path"),
		Authority: m.head.PseudoValue("authority"), Body: string(m.body)}}
	if m.trailer != nil {
		q.Trailers = Fields(m.trailer)
	}
	return q
}

// serve2 serves a connection of HTTP/2 whose preface has begun.
func (e *Echoes) serve2(r *bufio.Reader, c net.Conn, cluster string) {
	if _, err := r.Discard(len(http2.ClientPreface)); err != nil {
		return
	}
	w := newWire2(r, c)
	answer := func(m *stream2) error {
		a, err := e.say(m.asked(cluster))
		if err == nil {
			err = a.send2(w, m.stream)
		}
		return err
	}
	w.early = func(m *stream2) error {
		do, err := mishapOf(m.header)
		if m.answered = err == nil && do.early(); m.answered {
			err = answer(m)
		}
		return err
	}
	open := map[uint32]*stream2{}
	for err := manners[cluster].begin(w, c); err == nil; {
		var m *stream2
		if m, err = w.next(open); err != nil {
			return
		}
		delete(open, m.stream)
		if m.resetFor == "" && !m.answered {
			err = answer(m)
		}
	}
}

// head2 is the head of the answer.
func (a said) head2() []string {
	return append([]string{":status: " + strconv.Itoa(a.status)}, a.fields...)
}

// send2 answers on a stream.
func (a said) send2(w *wire2, stream uint32) error {
	if a.mishap != none {
		return a.fail2(w, stream)
	}
	switch {
	case a.bodyless, a.keptToItself:
		return w.head(stream, a.head2(), true)
	case len(a.trailers) == 0:
		return errors.Join(w.head(stream, a.head2(), false), w.data(stream, a.body, true))
	}
	return errors.Join(w.head(stream, a.head2(), false), w.data(stream, a.body, false), w.head(stream, a.trailers, true))
}
