// Package frame codes the frames of HTTP/2 (RFC 9113 §4 and §6): what both users of the protocol share, the tunnels of
// ztunnel/hbone and the connections of ztunnel/http/h2. It holds no state; every function is safe for concurrent use.
package frame

import "encoding/binary"

// Frame types, flags and settings of RFC 9113 §6, and of RFC 8441 §3.
const (
	Data         = 0x0
	Headers      = 0x1
	Priority     = 0x2
	RST          = 0x3
	Settings     = 0x4
	PushPromise  = 0x5
	Ping         = 0x6
	GoAway       = 0x7
	Window       = 0x8
	Continuation = 0x9

	Ack         = 0x1
	EndStream   = 0x1
	EndHeaders  = 0x4
	Padded      = 0x8
	HasPriority = 0x20

	HeaderTable     = 0x1
	EnablePush      = 0x2
	MaxStreams      = 0x3
	InitialWindow   = 0x4
	MaxFrame        = 0x5
	MaxHeaderList   = 0x6
	ConnectProtocol = 0x8

	// HeaderLen is the length of a frame's header in bytes.
	HeaderLen = 9
	// DefaultWindow is the window of a new connection and, until SETTINGS, of a stream, in bytes.
	DefaultWindow = 65535
	// MaxWindow is the largest window, in bytes.
	MaxWindow = 1<<31 - 1
	// MinMaxFrame and MaxMaxFrame bound SETTINGS_MAX_FRAME_SIZE, in bytes; the first is its default.
	MinMaxFrame = 16 << 10
	MaxMaxFrame = 1<<24 - 1
	// MaxStreamID is the highest id of a stream.
	MaxStreamID = 1<<31 - 1
	// DefaultTable is the size of a header table until SETTINGS, in bytes.
	DefaultTable = 4096

	// Preface is what a client sends first.
	Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
)

// Header is the header of a frame.
type Header struct {
	Length int
	Type   byte
	Flags  byte
	ID     uint32
}

// Has reports whether the flag is set.
func (h Header) Has(flag byte) bool { return h.Flags&flag != 0 }

// Parse reads the first HeaderLen bytes of b. The reserved bit is dropped.
func Parse(b []byte) Header {
	_ = b[HeaderLen-1]
	return Header{
		Length: int(b[0])<<16 | int(b[1])<<8 | int(b[2]),
		Type:   b[3],
		Flags:  b[4],
		ID:     binary.BigEndian.Uint32(b[5:]) & MaxStreamID,
	}
}

// Append appends a frame's header for a payload of n bytes.
func Append(b []byte, n int, typ, flags byte, id uint32) []byte {
	return append(b, byte(n>>16), byte(n>>8), byte(n), typ, flags, byte(id>>24), byte(id>>16), byte(id>>8), byte(id))
}

// AppendWindow appends a WINDOW_UPDATE; id 0 is the connection.
func AppendWindow(b []byte, id, n uint32) []byte {
	return binary.BigEndian.AppendUint32(Append(b, 4, Window, 0, id), n)
}

// AppendRST appends a RST_STREAM.
func AppendRST(b []byte, id uint32, code Code) []byte {
	return binary.BigEndian.AppendUint32(Append(b, 4, RST, 0, id), uint32(code))
}

// AppendPing appends a PING; flags is 0 or Ack.
func AppendPing(b []byte, flags byte, data [8]byte) []byte {
	return append(Append(b, 8, Ping, flags, 0), data[:]...)
}

// AppendGoAway appends a GOAWAY.
func AppendGoAway(b []byte, last uint32, code Code, debug string) []byte {
	b = Append(b, 8+len(debug), GoAway, 0, 0)
	b = binary.BigEndian.AppendUint32(b, last)
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	return append(b, debug...)
}

// Setting is one parameter of a SETTINGS frame.
type Setting struct {
	ID    uint16
	Value uint32
}

// AppendSettings appends a SETTINGS frame.
func AppendSettings(b []byte, s ...Setting) []byte {
	b = Append(b, 6*len(s), Settings, 0, 0)
	for _, e := range s {
		b = binary.BigEndian.AppendUint16(b, e.ID)
		b = binary.BigEndian.AppendUint32(b, e.Value)
	}
	return b
}

// AppendBlock appends a header block as HEADERS and, when it is larger than the peer's frames, CONTINUATION frames.
func AppendBlock(b, block []byte, size int, flags byte, id uint32) []byte {
	typ := byte(Headers)
	for {
		k := min(len(block), size)
		fl := byte(0)
		if typ == Headers {
			fl = flags
		}
		if k == len(block) {
			fl |= EndHeaders
		}
		b = append(Append(b, k, typ, fl, id), block[:k]...)
		if block = block[k:]; len(block) == 0 {
			return b
		}
		typ = Continuation
	}
}
