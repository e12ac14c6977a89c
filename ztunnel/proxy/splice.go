package proxy

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	maxIdlePipes = 64
	spliceMax    = 1 << 20 // bytes asked of one splice(2); the pipe's size is what it gets
)

// errNoPipe says that nothing was moved for want of a pipe: descriptors or memory are short. The bytes can still be copied.
var errNoPipe = errors.New("no pipe to splice through")

// pipes are the pipes that spliced bytes go through. A relay has one only while bytes are under way.
type pipes struct {
	mu   sync.Mutex // protects below
	idle []*pipe
}

type pipe struct{ r, w int }

func (p *pipes) get() (*pipe, error) {
	p.mu.Lock()
	if n := len(p.idle); n > 0 {
		last := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		return last, nil
	}
	p.mu.Unlock()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, errors.Join(errNoPipe, err)
	}
	// A larger pipe takes more of a bulk stream at a time; one that may not grow works as well.
	_, _ = unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, 256<<10)
	return &pipe{fds[0], fds[1]}, nil
}

// put takes back an empty pipe.
func (p *pipes) put(x *pipe) {
	p.mu.Lock()
	if len(p.idle) < maxIdlePipes {
		p.idle = append(p.idle, x)
		x = nil
	}
	p.mu.Unlock()
	if x != nil {
		x.close()
	}
}

// drop closes the idle pipes.
func (p *pipes) drop() {
	p.mu.Lock()
	idle := p.idle
	p.idle = nil
	p.mu.Unlock()
	for _, x := range idle {
		x.close()
	}
}

func (x *pipe) close() {
	_ = unix.Close(x.r) // pipes have nothing to flush
	_ = unix.Close(x.w)
}

// splicer moves bytes from one TCP socket to another without copying them to user space.
type splicer struct {
	dst, src syscall.RawConn
	pipes    *pipes

	p       *pipe
	n, left int
	err     error
	in, out func(fd uintptr) bool
}

// newSplicer returns nil when one of the two is not a TCP socket.
func newSplicer(dst, src net.Conn, p *pipes) *splicer {
	d, ok := dst.(*net.TCPConn)
	s, ok2 := src.(*net.TCPConn)
	if !ok || !ok2 {
		return nil
	}
	draw, err := d.SyscallConn()
	if err != nil {
		return nil
	}
	sraw, err := s.SyscallConn()
	if err != nil {
		return nil
	}
	sp := &splicer{dst: draw, src: sraw, pipes: p}
	sp.in, sp.out = sp.fill, sp.empty
	return sp
}

// round waits for bytes, moves them, and returns how many it moved. rerr is io.EOF at the end of the source, errNoPipe when
// it could not begin.
func (s *splicer) round() (n int, rerr, werr error) {
	s.n, s.err = 0, nil
	if err := s.src.Read(s.in); err != nil {
		s.err = err
	}
	switch {
	case s.err != nil:
		s.give(s.n == 0)
		return 0, s.err, nil
	case s.n == 0:
		s.give(true)
		return 0, io.EOF, nil
	}
	for s.left = s.n; s.left > 0; {
		if err := s.dst.Write(s.out); err != nil {
			s.err = err
		}
		if s.err != nil {
			s.give(false)
			return s.n - s.left, nil, s.err
		}
	}
	s.give(true)
	return s.n, nil, nil
}

// fill is one splice from the source; false waits until it is readable, without a pipe.
func (s *splicer) fill(fd uintptr) bool {
	if s.p == nil {
		if s.p, s.err = s.pipes.get(); s.err != nil {
			return true
		}
	}
	n, err := splice(int(fd), s.p.w, spliceMax)
	if err == unix.EAGAIN {
		s.give(true)
		return false
	}
	s.n, s.err = n, err
	return true
}

// empty is one splice to the destination; false waits until it is writable.
func (s *splicer) empty(fd uintptr) bool {
	n, err := splice(s.p.r, int(fd), s.left)
	if err == unix.EAGAIN {
		return false
	}
	s.left -= n
	s.err = err
	if err == nil && n == 0 {
		s.err = io.ErrUnexpectedEOF
	}
	return true
}

// give returns the pipe, or closes it when bytes are left in it.
func (s *splicer) give(empty bool) {
	if s.p == nil {
		return
	}
	if empty {
		s.pipes.put(s.p)
	} else {
		s.p.close()
	}
	s.p = nil
}

func splice(from, to, size int) (int, error) {
	for {
		n, err := unix.Splice(from, nil, to, nil, size, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if err == unix.EINTR {
			continue
		}
		return int(max(n, 0)), err
	}
}
