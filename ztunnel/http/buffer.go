package http

import "sync"

// Sizes of buffers in bytes.
const (
	smallBuffer = 8 << 10  // a head usually fits
	largeBuffer = 64 << 10 // for bodies under way
)

// buffer holds what was read and not yet used: b[r:w].
type buffer struct {
	b    []byte
	r, w int
}

func (b *buffer) bytes() []byte { return b.b[b.r:b.w] }
func (b *buffer) room() []byte  { return b.b[b.w:] }
func (b *buffer) empty() bool   { return b.r == b.w }

// buffers are the free ones of an engine.
type buffers struct{ small, large sync.Pool }

func (p *buffers) get(size int) *buffer {
	pool := &p.small
	if size > smallBuffer {
		pool = &p.large
	}
	if b, ok := pool.Get().(*buffer); ok {
		return b
	}
	return &buffer{b: make([]byte, size)}
}

// put takes a buffer back; nil is fine. One of another size is left to the collector.
func (p *buffers) put(b *buffer) {
	if b == nil {
		return
	}
	b.r, b.w = 0, 0
	switch len(b.b) {
	case smallBuffer:
		p.small.Put(b)
	case largeBuffer:
		p.large.Put(b)
	}
}
