package hbone

import (
	"errors"
	"net"
	"runtime"
	"sync"

	"github.com/undermesh/undermesh/ztunnel/http/frame"
)

// errGone is sendData's answer for a stream that was reset.
var errGone = errors.New("stream is gone")

const (
	largeFrame   = 256 << 10 // the largest DATA frame that is sent
	queueCap     = 256 << 10 // writers wait while more than this is queued
	controlCap   = 512 << 10 // answers queued for a peer that does not read them: the connection ends
	maxPooledOut = 1 << 20
	aloneAfter   = 8        // flushes that no other frame met, after which one does not yield
	aloneProbe   = 32       // ... but for each so many'th
	directMin    = 16 << 10 // payloads from this size on are written from the caller's buffer when the line is free
)

// outPool holds the buffers in which frames and TLS records gather, while no connection needs them.
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
	if cap(b) <= 4<<10 {
		return b
	}
	if cap(b) <= maxPooledOut {
		b = b[:0]
		outPool.Put(&b)
	}
	return nil
}

// writer sends frames with group commit: while one goroutine flushes, the frames of all others gather in a buffer that
// the next flush takes whole, in one TLS write and one write(2).
type writer struct {
	nc net.Conn
	tr *Transport // nil: nc has none

	mu       sync.Mutex // protects below
	room     *sync.Cond // the queue shrank, or the writer died
	work     *sync.Cond // the background flusher has something to do
	q, spare []byte
	busy     bool // a flush is under way; its goroutine owns nc's write side
	kicked   bool
	control  int  // bytes in q that post queued
	alone    uint // flushes in a row that no other frame met
	last     bool
	err      error
	hdr      *block // the encoder side only
}

func (w *writer) init(nc net.Conn, tr *Transport, hdr *block) {
	w.nc, w.tr, w.hdr = nc, tr, hdr
	w.room, w.work = sync.NewCond(&w.mu), sync.NewCond(&w.mu)
}

// post queues frames without ever blocking: for the read loop, timers and resets. The background flusher sends them.
func (w *writer) post(b []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.postLocked(b)
}

func (w *writer) postLocked(b []byte) error {
	if w.err != nil {
		return w.err
	}
	if w.control += len(b); w.control > controlCap {
		return frame.Errorf(frame.CodeCalm, "%d bytes of answers wait to be read", w.control)
	}
	w.q = append(getOut(w.q), b...)
	w.kickLocked()
	return nil
}

func (w *writer) kickLocked() {
	if !w.busy {
		w.kicked = true
		w.work.Signal()
	}
}

// sendEnd sends END_STREAM, unless s was reset. It waits while the queue is full.
func (w *writer) sendEnd(s *Stream) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.awaitRoomLocked(s); err != nil {
		return err
	}
	if s.gone.Load() {
		return nil
	}
	w.q = frame.Append(w.q, 0, frame.Data, frame.EndStream, s.id)
	return w.flushOwnLocked()
}

// awaitRoomLocked waits while the queue is full; the end of s, unless that is nil, ends it too.
func (w *writer) awaitRoomLocked(s *Stream) error {
	for len(w.q) > queueCap && w.err == nil && (s == nil || !s.gone.Load()) {
		w.room.Wait()
	}
	w.q = getOut(w.q)
	return w.err
}

// flushOwnLocked makes the calling goroutine the flusher when there is none. Others get a chance to add their frames first,
// unless lately nobody had any: to yield wakes another thread of the process, which costs a lone request more than the rest
// of its way.
func (w *writer) flushOwnLocked() error {
	if w.busy {
		w.alone = 0
		return nil
	}
	w.busy = true
	if w.alone++; w.alone < aloneAfter || w.alone%aloneProbe == 0 {
		n := len(w.q)
		w.mu.Unlock()
		runtime.Gosched()
		w.mu.Lock()
		if len(w.q) != n {
			w.alone = 0
		}
	}
	w.flushLocked()
	return w.err
}

// sendData sends n payload bytes of b, which begin at frameHeaderLen, in frames of at most frame bytes. b's bytes are
// overwritten by frame headers; b is free again on return. It returns errGone, having sent nothing, after a reset.
func (w *writer) sendData(s *Stream, b []byte, n, size int) error {
	id := s.id
	w.mu.Lock()
	err := w.awaitRoomLocked(s)
	if err == nil && s.gone.Load() {
		err = errGone
	}
	if err != nil {
		w.mu.Unlock()
		return err
	}
	if w.busy || n < directMin || len(w.q) > 0 {
		for off := 0; off < n; {
			k := min(n-off, size)
			w.q = frame.Append(w.q, k, frame.Data, 0, id)
			w.q = append(w.q, b[frame.HeaderLen+off:frame.HeaderLen+off+k]...)
			off += k
		}
		err := w.flushOwnLocked()
		w.mu.Unlock()
		return err
	}
	w.busy = true
	w.mu.Unlock()
	err = w.writeFrames(b, n, size, id)
	w.mu.Lock()
	if err != nil {
		w.failLocked(err)
	}
	w.flushLocked()
	err = w.err
	w.mu.Unlock()
	return err
}

func (w *writer) writeFrames(b []byte, n, size int, id uint32) error {
	if w.tr != nil {
		w.tr.gather()
	}
	for off := 0; off < n; {
		k := min(n-off, size)
		frame.Append(b[off:off], k, frame.Data, 0, id)
		if _, err := w.nc.Write(b[off : off+frame.HeaderLen+k]); err != nil {
			return err
		}
		off += k
	}
	if w.tr != nil {
		return w.tr.release()
	}
	return nil
}

// flushLocked writes until the queue is empty. The caller has set busy.
func (w *writer) flushLocked() {
	for len(w.q) > 0 && w.err == nil {
		b := w.q
		w.q, w.spare, w.control = w.spare, nil, 0
		w.mu.Unlock()
		err := w.put(b)
		w.mu.Lock()
		w.spare = b[:0]
		if err != nil {
			w.failLocked(err)
		}
		w.room.Broadcast()
	}
	if len(w.q) == 0 { // an idle connection holds nothing
		w.q, w.spare = putOut(w.q), putOut(w.spare)
	}
	w.busy = false
	w.room.Broadcast()
	if w.last {
		w.work.Signal()
	}
}

func (w *writer) put(b []byte) error {
	if w.tr == nil {
		_, err := w.nc.Write(b)
		return err
	}
	w.tr.gather()
	if _, err := w.nc.Write(b); err != nil {
		return err
	}
	return w.tr.release()
}

func (w *writer) failLocked(err error) {
	if w.err == nil {
		w.err = err
	}
	w.room.Broadcast()
	w.work.Signal()
}

// wake makes those that wait for room look again: a stream has gone.
func (w *writer) wake() {
	w.mu.Lock()
	w.room.Broadcast()
	w.mu.Unlock()
}

func (w *writer) fail(err error) {
	w.mu.Lock()
	w.failLocked(err)
	w.mu.Unlock()
}

// finish queues the last frames; run returns once they are written.
func (w *writer) finish(b []byte) {
	w.mu.Lock()
	if w.err == nil {
		w.q = append(w.q, b...)
	}
	w.last = true
	w.work.Signal()
	w.mu.Unlock()
}

// run is the background flusher. It returns nil after finish, or the error that ended the writer.
func (w *writer) run() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		for w.err == nil && (w.busy || !w.kicked && !w.last) {
			w.work.Wait()
		}
		if w.err != nil {
			return w.err
		}
		w.kicked = false
		if len(w.q) > 0 {
			w.busy = true
			w.flushLocked()
		}
		if w.last && len(w.q) == 0 && w.err == nil && !w.busy {
			return nil
		}
	}
}
