package http

import (
	"io"
	"net"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rawSocket reads and writes a socket inside the callbacks of its RawConn, with system calls that the scheduler is not told
// about, because they never block. The callbacks are bound once, so that a call allocates nothing. One goroutine may read while
// another one writes.
type rawSocket struct {
	conn                syscall.RawConn
	onRead, onIdle, onW func(fd uintptr) bool

	in     []byte // of read
	n      int
	err    syscall.Errno
	free   *buffers // of readIdle
	got    *buffer
	out    []byte // of write
	outErr syscall.Errno
}

// newRaw returns nil where c is not a socket of the kernel.
func newRaw(c net.Conn) *rawSocket {
	t, ok := c.(syscall.Conn)
	if !ok {
		return nil
	}
	rc, err := t.SyscallConn()
	if err != nil {
		return nil
	}
	s := &rawSocket{conn: rc}
	s.onRead, s.onIdle, s.onW = s.readable, s.readableIdle, s.writable
	return s
}

func sysRead(fd uintptr, p []byte) (int, syscall.Errno) {
	for {
		n, _, e := syscall.RawSyscall(syscall.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
		if e != syscall.EINTR {
			return max(int(n), 0), e
		}
	}
}

func (s *rawSocket) readable(fd uintptr) bool {
	s.n, s.err = sysRead(fd, s.in)
	return s.err != syscall.EAGAIN
}

func (s *rawSocket) readableIdle(fd uintptr) bool {
	b := s.free.get(smallBuffer)
	s.n, s.err = sysRead(fd, b.b)
	if s.err == syscall.EAGAIN {
		s.free.put(b)
		return false
	}
	b.w, s.got = s.n, b
	return true
}

func (s *rawSocket) writable(fd uintptr) bool {
	for len(s.out) > 0 {
		n, _, e := syscall.RawSyscall(syscall.SYS_WRITE, fd, uintptr(unsafe.Pointer(unsafe.SliceData(s.out))), uintptr(len(s.out)))
		switch e {
		case 0:
			s.out = s.out[n:]
		case syscall.EINTR:
		case syscall.EAGAIN:
			return false
		default:
			s.outErr = e
			return true
		}
	}
	return true
}

func (s *rawSocket) result(err error) (int, error) {
	switch {
	case err != nil:
		return 0, err
	case s.err != 0:
		return 0, s.err
	case s.n == 0:
		return 0, io.EOF
	}
	return s.n, nil
}

func (s *rawSocket) read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	s.in, s.n, s.err = p, 0, 0
	err := s.conn.Read(s.onRead)
	s.in = nil
	return s.result(err)
}

// readIdle takes a buffer only when there is something for it.
func (s *rawSocket) readIdle(free *buffers) (*buffer, error) {
	s.free, s.got, s.n, s.err = free, nil, 0, 0
	err := s.conn.Read(s.onIdle)
	b := s.got
	s.got = nil
	if _, err = s.result(err); err != nil {
		free.put(b)
		return nil, err
	}
	return b, nil
}

func (s *rawSocket) write(p []byte) error {
	s.out, s.outErr = p, 0
	err := s.conn.Write(s.onW)
	s.out = nil
	if err == nil && s.outErr != 0 {
		err = s.outErr
	}
	return err
}

// alive reports whether neither bytes nor the end are waiting: an idle connection can be used.
func (s *rawSocket) alive() bool {
	_, e, err := s.peek()
	return err == nil && e == syscall.EAGAIN
}

// over reports whether nothing but the end of the connection waits.
func (s *rawSocket) over() bool {
	n, e, err := s.peek()
	return err == nil && n == 0 && e != syscall.EAGAIN
}

// peek tells what a read would find, without waiting and without reading.
func (s *rawSocket) peek() (n int, e syscall.Errno, err error) {
	err = s.conn.Control(func(fd uintptr) {
		var b [1]byte
		var r uintptr
		r, _, e = syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&b)), 1, syscall.MSG_PEEK|syscall.MSG_DONTWAIT, 0, 0)
		if e == 0 {
			n = int(r)
		}
	})
	return n, e, err
}

// ended tells whether the peer has ended its direction, also where bytes wait before that end, and whether it has left altogether.
func (s *rawSocket) ended() (half, all bool) {
	err := s.conn.Control(func(fd uintptr) {
		p := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		if _, err := unix.Poll(p[:], 0); err == nil {
			half = p[0].Revents&unix.POLLRDHUP != 0
			all = p[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0
		}
	})
	return half, all || err != nil
}
