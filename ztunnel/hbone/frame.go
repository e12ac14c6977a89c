package hbone

import (
	"encoding/binary"
)

// Frame types, flags and settings of RFC 9113 §6.
const (
	frameData         = 0x0
	frameHeaders      = 0x1
	framePriority     = 0x2
	frameRST          = 0x3
	frameSettings     = 0x4
	framePushPromise  = 0x5
	framePing         = 0x6
	frameGoAway       = 0x7
	frameWindow       = 0x8
	frameContinuation = 0x9

	flagAck        = 0x1
	flagEndStream  = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20

	settingHeaderTable   = 0x1
	settingEnablePush    = 0x2
	settingMaxStreams    = 0x3
	settingInitialWindow = 0x4
	settingMaxFrame      = 0x5
	settingMaxHeaderList = 0x6

	frameHeaderLen = 9
	defaultWindow  = 65535
	maxWindow      = 1<<31 - 1
	minMaxFrame    = 16 << 10
	maxMaxFrame    = 1<<24 - 1
	maxStreamID    = 1<<31 - 1

	clientPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
)

type frameHeader struct {
	length int
	typ    byte
	flags  byte
	id     uint32
}

func (h frameHeader) has(flag byte) bool { return h.flags&flag != 0 }

// parseFrameHeader reads the first frameHeaderLen bytes of b. The reserved bit is dropped.
func parseFrameHeader(b []byte) frameHeader {
	_ = b[frameHeaderLen-1]
	return frameHeader{
		length: int(b[0])<<16 | int(b[1])<<8 | int(b[2]),
		typ:    b[3],
		flags:  b[4],
		id:     binary.BigEndian.Uint32(b[5:]) & maxStreamID,
	}
}

func appendFrameHeader(b []byte, n int, typ, flags byte, id uint32) []byte {
	return append(b, byte(n>>16), byte(n>>8), byte(n), typ, flags, byte(id>>24), byte(id>>16), byte(id>>8), byte(id))
}

func appendWindowUpdate(b []byte, id, n uint32) []byte {
	return binary.BigEndian.AppendUint32(appendFrameHeader(b, 4, frameWindow, 0, id), n)
}

func appendRST(b []byte, id uint32, code ErrCode) []byte {
	return binary.BigEndian.AppendUint32(appendFrameHeader(b, 4, frameRST, 0, id), uint32(code))
}

func appendPing(b []byte, flags byte, data [8]byte) []byte {
	return append(appendFrameHeader(b, 8, framePing, flags, 0), data[:]...)
}

func appendGoAway(b []byte, last uint32, code ErrCode, debug string) []byte {
	b = appendFrameHeader(b, 8+len(debug), frameGoAway, 0, 0)
	b = binary.BigEndian.AppendUint32(b, last)
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	return append(b, debug...)
}

type setting struct {
	id  uint16
	val uint32
}

func appendSettings(b []byte, s ...setting) []byte {
	b = appendFrameHeader(b, 6*len(s), frameSettings, 0, 0)
	for _, e := range s {
		b = binary.BigEndian.AppendUint16(b, e.id)
		b = binary.BigEndian.AppendUint32(b, e.val)
	}
	return b
}

// unpad strips the padding of a DATA or HEADERS payload. The error is a connection error (RFC 9113 §6.1).
func unpad(h frameHeader, p []byte) ([]byte, error) {
	if !h.has(flagPadded) {
		return p, nil
	}
	if len(p) == 0 {
		return nil, connErr(CodeFrameSize, "padded frame without pad length")
	}
	pad := int(p[0])
	if pad > len(p)-1 {
		return nil, connErr(CodeProtocol, "padding of %d exceeds frame of %d", pad, len(p))
	}
	return p[1 : len(p)-pad], nil
}
