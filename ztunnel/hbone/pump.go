package hbone

import (
	"io"
	"net"
	"sync"
	"syscall"

	"github.com/undermesh/undermesh/ztunnel/http/frame"
)

// pumpBuf is a pooled buffer of the way from an application to the tunnel.
type pumpBuf struct {
	b    []byte
	size int // index of pumpPools
}

// pumpSizes are the buffers that a pump takes: it starts small and goes up while reads fill them. The largest makes a
// frame of largeFrame.
var pumpSizes = [3]int{4 << 10, 64 << 10, largeFrame + frame.HeaderLen}

var pumpPools [len(pumpSizes)]sync.Pool

// pumper reads from an application's socket. Used by one goroutine.
type pumper struct {
	app  net.Conn
	raw  syscall.RawConn
	size int

	fn  func(fd uintptr) bool
	buf *pumpBuf
	n   int
	err error
}

func (p *pumper) get() *pumpBuf {
	if b, ok := pumpPools[p.size].Get().(*pumpBuf); ok {
		return b
	}
	return &pumpBuf{b: make([]byte, pumpSizes[p.size]), size: p.size}
}

func (p *pumper) put(b *pumpBuf) { pumpPools[b.size].Put(b) }

// read waits for bytes and reads them behind the header room of a buffer, which is taken only when there is something.
func (p *pumper) read() (*pumpBuf, int, error) {
	p.buf, p.n, p.err = nil, 0, nil
	if p.raw == nil {
		p.buf = p.get()
		p.n, p.err = p.app.Read(p.buf.b[frame.HeaderLen:])
	} else if err := p.raw.Read(p.fn); err != nil {
		p.err = err
	}
	if p.n > 0 {
		p.err = nil
		p.adapt()
	} else if p.err == nil {
		p.err = io.EOF
	}
	return p.buf, p.n, p.err
}

func (p *pumper) readRaw(fd uintptr) bool {
	b := p.get()
	for {
		n, err := syscall.Read(int(fd), b.b[frame.HeaderLen:])
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			p.put(b)
			return false
		}
		p.buf, p.n, p.err = b, max(n, 0), nil
		if err != nil {
			p.err = err
		}
		return true
	}
}

// adapt chooses the next buffer by what the last read brought.
func (p *pumper) adapt() {
	switch room := len(p.buf.b) - frame.HeaderLen; {
	case p.n == room && p.size < len(pumpSizes)-1:
		p.size++
	case p.size > 0 && p.n <= pumpSizes[p.size-1]/2:
		p.size--
	}
}
