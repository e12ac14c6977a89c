package h2

import (
	"runtime"
	"sync"
	"syscall"

	"github.com/undermesh/undermesh/ztunnel/http/frame"
)

const (
	flushAt    = 16 << 10 // bytes that leave without being asked
	keepBuffer = 4 << 10  // a larger buffer goes back to the pool when nothing is in it
	maxPooled  = 1 << 20  // a larger one goes to the collector
	aloneAfter = 8        // flushes that no other frame met, after which one does not yield
	aloneProbe = 32       // ... but for each so many'th
)

// out is the write side of a connection: a queue of frames that one goroutine at a time writes, while others add to the next.
// Conn.mu protects it.
type out struct {
	q, spare []byte
	writing  bool // q is spare's rest on its way; the goroutine that set it writes what comes as well
	yielding bool // a goroutine is about to flush, and lets others add first
	last     bool // nothing comes any more: the write side is closed after it
	answers  int  // bytes in q that answer the peer
	alone    uint // flushes in a row that no other frame met
	wrote    uint64
	rest     []byte // what the writer goroutine writes first
	write    func() // the writer goroutine
	try      func(fd uintptr)
	wait     func(fd uintptr) bool
	p        []byte // argument and result of try and wait
	n        int
	err      error
}

func (o *out) init(c *Conn) {
	o.write = c.writeLoop
	o.try = func(fd uintptr) { o.n, o.err = rawWrite(fd, o.p) }
	o.wait = func(fd uintptr) bool {
		o.n, o.err = rawWrite(fd, o.p)
		return o.n > 0 || o.err != nil
	}
}

// rawWrite writes what the socket takes; 0 and nil when it is full.
func rawWrite(fd uintptr, p []byte) (int, error) {
	for {
		n, err := syscall.Write(int(fd), p)
		switch err {
		case nil:
			return n, nil
		case syscall.EINTR:
		case syscall.EAGAIN:
			return 0, nil
		default:
			return 0, err
		}
	}
}

// commitLocked flushes on behalf of a goroutine that wrote. It lets others that are about to write go first, unless lately
// nobody had anything: to yield costs a lone request more than the rest of its way.
func (c *Conn) commitLocked() {
	if c.writing || c.yielding {
		c.alone = 0
		return
	}
	if c.alone++; c.alone < aloneAfter || c.alone%aloneProbe == 0 {
		n := len(c.q)
		c.yielding = true
		c.mu.Unlock()
		runtime.Gosched()
		c.mu.Lock()
		c.yielding = false
		if len(c.q) != n {
			c.alone = 0
		}
	}
	c.flushLocked()
}

// flushLocked writes what is queued, as far as the socket takes it without blocking; the rest is left to a goroutine, so that a
// slow peer blocks nobody else. It reports whether the lock was released meanwhile.
func (c *Conn) flushLocked() (released bool) {
	for !c.writing && len(c.q) > 0 {
		c.writing = true
		b := c.q
		c.q, c.spare, c.answers = c.spare[:0], nil, 0
		if c.raw == nil {
			c.startWriterLocked(b)
			return released
		}
		c.p = b
		c.mu.Unlock()
		released = true
		if err := c.raw.Control(c.try); err != nil {
			c.n = 0 // closed: the writer finds out
		}
		c.mu.Lock()
		c.wrote++
		if c.n < len(b) {
			c.spare = b[:0]
			c.startWriterLocked(b[max(c.n, 0):])
			return released
		}
		c.wroteLocked(b)
		c.wakeStarvedLocked()
	}
	return released
}

// wroteLocked takes back a buffer that is written.
func (c *Conn) wroteLocked(b []byte) {
	c.writing, c.p, c.rest = false, nil, nil
	c.spare = b[:0]
	if len(c.q) == 0 && len(c.streams) == 0 { // an idle connection holds nothing
		c.q, c.spare = putOut(c.q), putOut(c.spare)
	}
}

// outPool holds the buffers in which frames gather, while no connection needs them.
var outPool sync.Pool

// getOut returns b, or a pooled buffer when there is none.
func getOut(b []byte) []byte {
	if b == nil {
		if p, ok := outPool.Get().(*[]byte); ok {
			return *p
		}
	}
	return b
}

// putOut gives b to the pool unless it is small enough to keep, or too large. It returns what the caller keeps.
func putOut(b []byte) []byte {
	if cap(b) <= keepBuffer {
		return b
	}
	if cap(b) <= maxPooled {
		b = b[:0]
		outPool.Put(&b)
	}
	return nil
}

func (c *Conn) startWriterLocked(rest []byte) {
	c.rest = rest
	c.wg.Add(1)
	go c.write()
}

// writeLoop writes c.rest and whatever is queued then, and ends.
func (c *Conn) writeLoop() {
	defer c.wg.Done()
	c.mu.Lock()
	for {
		b := c.rest
		c.mu.Unlock()
		err := c.put(b)
		c.mu.Lock()
		c.wrote++
		c.wroteLocked(b)
		if err != nil {
			c.q = nil
			c.writing = true // nobody else tries
			c.mu.Unlock()
			c.end(err)
			c.hardClose()
			return
		}
		if len(c.q) == 0 {
			break
		}
		c.writing = true
		c.rest, c.q, c.spare, c.answers = c.q, c.spare[:0], nil, 0
		c.wakeStarvedLocked()
	}
	c.wakeStarvedLocked()
	if c.dead != nil {
		c.closeWriteLocked()
	}
	c.mu.Unlock()
}

// put writes b, however long that takes.
func (c *Conn) put(b []byte) error {
	if c.raw == nil {
		_, err := c.nc.Write(b)
		return err
	}
	for len(b) > 0 {
		c.p = b
		if err := c.raw.Write(c.wait); err != nil {
			return err
		}
		if c.err != nil {
			return c.err
		}
		b = b[c.n:]
		c.wroteSome()
	}
	return nil
}

// wroteSome tells the watch that the peer takes something.
func (c *Conn) wroteSome() {
	c.mu.Lock()
	c.wrote++
	c.mu.Unlock()
}

// answerLocked counts n bytes that answer the peer. The error is that of a peer that does not read its answers.
func (c *Conn) answerLocked(n int) error {
	if c.answers += n; c.answers > c.cfg.MaxControl {
		return frame.Errorf(frame.CodeCalm, "%d bytes of answers wait to be read", c.answers)
	}
	return nil
}
