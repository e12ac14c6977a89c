package hbone

import "sync"

const (
	smallChunk = 4 << 10
	largeChunk = 64 << 10
)

// chunk is a pooled buffer; b[r:w] is unread.
type chunk struct {
	b    []byte
	r, w int
}

// The pools of chunks. They are shared by all connections, so that an idle one holds none.
var (
	smallPool = sync.Pool{New: func() any { return &chunk{b: make([]byte, smallChunk)} }}
	largePool = sync.Pool{New: func() any { return &chunk{b: make([]byte, largeChunk)} }}
)

func getChunk(n int) *chunk {
	if n <= smallChunk {
		return smallPool.Get().(*chunk)
	}
	return largePool.Get().(*chunk)
}

func (c *chunk) free() {
	c.r, c.w = 0, 0
	if len(c.b) == smallChunk {
		smallPool.Put(c)
		return
	}
	largePool.Put(c)
}

func (c *chunk) bytes() []byte { return c.b[c.r:c.w] }

// backlog is what a stream's reader has not taken yet, in order.
type backlog struct {
	chunks []*chunk
	size   int
	budget *Budget // counts the chunks
}

// done gives back a chunk that was taken.
func (q *backlog) done(c *chunk) {
	q.budget.add(-len(c.b))
	c.free()
}

// add copies p to the end. Small payloads share chunks, so that what is held stays close to what was received.
func (q *backlog) add(p []byte) {
	q.size += len(p)
	for len(p) > 0 {
		var tail *chunk
		if n := len(q.chunks); n > 0 {
			tail = q.chunks[n-1]
		}
		if tail == nil || tail.w == len(tail.b) {
			want := len(p)
			if tail != nil {
				want = largeChunk
			}
			if q.budget.spent() { // no room that is not used
				want = smallChunk
			}
			tail = getChunk(want)
			q.budget.add(len(tail.b))
			q.chunks = append(q.chunks, tail)
		}
		k := copy(tail.b[tail.w:], p)
		tail.w += k
		p = p[k:]
	}
}

// adopt takes c over when its content is worth its size, else copies it. c must not be used afterwards.
func (q *backlog) adopt(c *chunk) {
	if n := c.w - c.r; n < len(c.b)/2 {
		q.add(c.bytes())
		c.free()
		return
	}
	q.size += c.w - c.r
	q.budget.add(len(c.b))
	q.chunks = append(q.chunks, c)
}

// read moves bytes to p.
func (q *backlog) read(p []byte) int {
	n := 0
	for len(p) > 0 && len(q.chunks) > 0 {
		c := q.chunks[0]
		k := copy(p, c.bytes())
		c.r += k
		n += k
		p = p[k:]
		if c.r == c.w {
			q.done(q.pop())
		}
	}
	q.size -= n
	return n
}

// take removes the first chunk; the caller calls done with it. It returns nil when there is none.
func (q *backlog) take() *chunk {
	if len(q.chunks) == 0 {
		return nil
	}
	c := q.pop()
	q.size -= c.w - c.r
	return c
}

func (q *backlog) pop() *chunk {
	c := q.chunks[0]
	q.chunks[0] = nil
	if q.chunks = q.chunks[1:]; len(q.chunks) == 0 {
		q.chunks = nil
	}
	return c
}

// drop frees everything and returns how many bytes that were.
func (q *backlog) drop() int {
	n := q.size
	for _, c := range q.chunks {
		q.done(c)
	}
	q.chunks, q.size = nil, 0
	return n
}
