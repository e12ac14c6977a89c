package http

import "sync"

// Sizes of buffers in bytes.
const (
	smallBuffer = 8 << 10  // a head usually fits
	largeBuffer = 64 << 10 // for bodies whose bytes come fast
)

// buffer holds what was read and not yet used: b[r:w].
type buffer struct {
	b    []byte
	r, w int
	of   *Tenant // whose large buffers it is one of; nil: nobody is charged with it
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

// piece returns a buffer for the next piece of a body: a large one where much is to be expected and the workload may have another.
// old, which is given back, is what the last piece was read into; nil: this is the first.
func (p *buffers) piece(t *Tenant, old *buffer, much bool) *buffer {
	size := smallBuffer
	if much {
		size = largeBuffer
	}
	if old != nil && len(old.b) == size {
		old.r, old.w = 0, 0
		return old
	}
	p.put(old)
	if !much || !reserve(&t.pieces, largeBuffer, t.limits.Pieces) {
		return p.get(smallBuffer)
	}
	b := p.get(largeBuffer)
	b.of = t
	return b
}

// put takes a buffer back; nil is fine. One of another size is left to the collector.
func (p *buffers) put(b *buffer) {
	if b == nil {
		return
	}
	b.r, b.w = 0, 0
	if b.of != nil {
		b.of.pieces.Add(-largeBuffer)
		b.of = nil
	}
	switch len(b.b) {
	case smallBuffer:
		p.small.Put(b)
	case largeBuffer:
		p.large.Put(b)
	}
}
