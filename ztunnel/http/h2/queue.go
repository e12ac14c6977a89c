package h2

import "sync"

// chunk is a piece of a queue, of one of two sizes.
type chunk struct {
	b    []byte
	r, w int
	next *chunk
}

const (
	smallChunk = 2 << 10
	largeChunk = 16 << 10
)

var (
	smallPool = sync.Pool{New: func() any { return &chunk{b: make([]byte, smallChunk)} }}
	largePool = sync.Pool{New: func() any { return &chunk{b: make([]byte, largeChunk)} }}
)

func (k *chunk) free() {
	k.r, k.w, k.next = 0, 0, nil
	if len(k.b) == smallChunk {
		smallPool.Put(k)
		return
	}
	largePool.Put(k)
}

// queue is what was received and is not read. Its memory is at most one small and one large chunk more than its size.
type queue struct {
	first, last *chunk
	size        int
}

func (q *queue) add(p []byte) {
	q.size += len(p)
	for len(p) > 0 {
		k := q.last
		if k == nil || k.w == len(k.b) {
			if k == nil && len(p) <= smallChunk {
				k = smallPool.Get().(*chunk)
			} else {
				k = largePool.Get().(*chunk)
			}
			if q.last == nil {
				q.first = k
			} else {
				q.last.next = k
			}
			q.last = k
		}
		n := copy(k.b[k.w:], p)
		k.w += n
		p = p[n:]
	}
}

func (q *queue) read(p []byte) (n int) {
	for q.first != nil && n < len(p) {
		k := q.first
		m := copy(p[n:], k.b[k.r:k.w])
		k.r += m
		n += m
		if k.r == k.w {
			if q.first = k.next; q.first == nil {
				q.last = nil
			}
			k.free()
		}
	}
	q.size -= n
	return n
}

func (q *queue) free() {
	for k := q.first; k != nil; {
		next := k.next
		k.free()
		k = next
	}
	*q = queue{}
}
