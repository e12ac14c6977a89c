package h1

import "github.com/undermesh/undermesh/ztunnel/http/head"

// Bounds of what chunked coding may cost beside the data.
const (
	chunkOverhead = 16 << 10  // bytes of extensions, beyond 16 a chunk and 2 for each byte of data
	maxTrailers   = 16 << 10  // bytes of trailers
	maxChunk      = 1<<60 - 1 // bytes of a chunk
)

type chunkState uint8

const (
	chunkSize chunkState = iota // at least one digit is missing
	chunkDigits
	chunkExtension
	chunkSizeLF
	chunkData
	chunkDataCR
	chunkDataLF
	trailerStart // of a line of the trailers, or of the end
	trailerName
	trailerValue
	trailerLF
	endLF
	chunkDone
)

// Chunks reads the chunked coding. The zero value is at the beginning of a body. Trailers are checked and left out, as Envoy does.
type Chunks struct {
	state    chunkState
	last     bool // the chunk of size 0 was seen
	left     int64
	excess   int64
	trailers int
}

// Done reports whether the end was read.
func (c *Chunks) Done() bool { return c.state == chunkDone }

// Next reads from b and returns data that was in it, in one piece, and how many bytes of b it has used; data is a part of b, whose
// bytes may have been moved for it. It reads all that is there, up to the end of the body.
func (c *Chunks) Next(b []byte) (data []byte, used int, err error) {
	start, n := 0, 0 // data is b[start:start+n]
	for used < len(b) && c.state != chunkDone {
		if c.state != chunkData {
			if err := c.step(b[used]); err != nil {
				return nil, used, err
			}
			used++
			continue
		}
		k := int(min(c.left, int64(len(b)-used)))
		if n == 0 {
			start = used
		} else {
			copy(b[start+n:], b[used:used+k])
		}
		n += k
		used += k
		c.excess = max(c.excess-2*int64(k), 0)
		if c.left -= int64(k); c.left == 0 {
			c.state = chunkDataCR
		}
	}
	return b[start : start+n : start+n], used, nil
}

// step takes one byte outside of data.
func (c *Chunks) step(b byte) error {
	switch c.state {
	case chunkSize, chunkDigits:
		return c.size(b)
	case chunkExtension:
		if b == '\r' {
			c.state = chunkSizeLF
			return nil
		}
		if c.excess++; c.excess > chunkOverhead || classes[b]&inValue == 0 {
			return errChunk
		}
		return nil
	case chunkSizeLF:
		c.last = c.left == 0
		return c.expect(b, '\n', ternary(c.last, trailerStart, chunkData))
	case chunkDataCR:
		return c.expect(b, '\r', chunkDataLF)
	case chunkDataLF:
		c.excess = max(c.excess-16, 0)
		return c.expect(b, '\n', chunkSize)
	}
	return c.trailer(b)
}

func (c *Chunks) size(b byte) error {
	d, ok := head.Unhex(b)
	if ok {
		if c.left > maxChunk>>4 {
			return errChunk
		}
		if c.state == chunkDigits && c.left == 0 { // zeros before the number cost as an extension does
			if c.excess++; c.excess > chunkOverhead {
				return errChunk
			}
		}
		c.left, c.state = c.left<<4|int64(d), chunkDigits
		return nil
	}
	if c.state == chunkSize {
		return errChunk
	}
	switch b {
	case '\r':
		c.state = chunkSizeLF
	case ';', ' ', '\t':
		c.excess += 4
		c.state = chunkExtension
	default:
		return errChunk
	}
	return nil
}

// trailer takes one byte after the last chunk.
func (c *Chunks) trailer(b byte) error {
	if c.trailers++; c.trailers > maxTrailers {
		return errChunk
	}
	switch c.state {
	case trailerStart:
		if b == '\r' {
			c.state = endLF
			return nil
		}
		c.state = trailerName
		return inClass(b, inToken)
	case trailerName:
		if b == ':' {
			c.state = trailerValue
			return nil
		}
		return inClass(b, inToken)
	case trailerValue:
		if b == '\r' {
			c.state = trailerLF
			return nil
		}
		return inClass(b, inValue)
	case trailerLF:
		return c.expect(b, '\n', trailerStart)
	case endLF:
		return c.expect(b, '\n', chunkDone)
	}
	return errChunk
}

func (c *Chunks) expect(b, want byte, next chunkState) error {
	if b != want {
		return errChunk
	}
	c.state = next
	return nil
}

func inClass(b byte, class uint8) error {
	if classes[b]&class == 0 {
		return errChunk
	}
	return nil
}

func ternary(cond bool, yes, no chunkState) chunkState {
	if cond {
		return yes
	}
	return no
}

// AppendChunk appends the line that announces n bytes of data; AppendChunkEnd what follows them. n must not be 0.
func AppendChunk(dst []byte, n int) []byte {
	const digits = "0123456789abcdef"
	shift := 0
	for v := n >> 4; v != 0; v >>= 4 {
		shift += 4
	}
	for ; shift >= 0; shift -= 4 {
		dst = append(dst, digits[n>>shift&15])
	}
	return append(dst, "\r\n"...)
}

// The texts that end a chunk's data, and a body.
const (
	ChunkEnd = "\r\n"
	BodyEnd  = "0\r\n\r\n"
)
