package zds

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// packetConn reads and writes whole messages with descriptors. Reads and writes may run concurrently with each other,
// two reads may not.
type packetConn struct {
	c   *net.UnixConn
	buf []byte
	oob []byte
}

func newPacketConn(c *net.UnixConn, limit int) *packetConn {
	// One byte more than the limit: a message of exactly the limit is told from a longer one also without MSG_TRUNC.
	return &packetConn{c: c, buf: make([]byte, limit+1), oob: make([]byte, unix.CmsgSpace(maxDescriptors*4))}
}

// setLimit changes the longest message that read accepts.
func (p *packetConn) setLimit(limit int) { p.buf = make([]byte, limit+1) }

// read returns the next message and its descriptors, which the caller owns (close-on-exec is set). The bytes are valid
// until the next read. On error every descriptor that came along is closed.
func (p *packetConn) read() ([]byte, []int, error) {
	n, oobn, flags, _, err := p.c.ReadMsgUnix(p.buf, p.oob)
	fds, ferr := descriptors(p.oob[:oobn])
	switch {
	case err != nil:
		err = fmt.Errorf("read message: %w", err)
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || n >= len(p.buf):
		err = fmt.Errorf("read message: truncated (%d bytes, %d descriptors): %w", n, len(fds), errProtocol)
	case ferr != nil:
		err = fmt.Errorf("read control data: %w", errors.Join(ferr, errProtocol))
	}
	if err != nil {
		closeAll(fds)
		return nil, nil, err
	}
	return p.buf[:n], fds, nil
}

// write sends one message with copies of fds, which stay the caller's.
func (p *packetConn) write(data []byte, fds []int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	n, _, err := p.c.WriteMsgUnix(data, oob, nil)
	if err != nil {
		return fmt.Errorf("write message: %w", err)
	}
	if n != len(data) {
		return fmt.Errorf("write message: %d of %d bytes left", n, len(data))
	}
	return nil
}

// descriptors collects every SCM_RIGHTS descriptor, also when parsing ends early with an error.
func descriptors(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	var fds []int
	for i := range msgs {
		if msgs[i].Header.Level != unix.SOL_SOCKET || msgs[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		got, perr := unix.ParseUnixRights(&msgs[i])
		fds = append(fds, got...)
		err = errors.Join(err, perr)
	}
	return fds, err
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd) // ours alone; nothing to do about a failure
	}
}

// duplicate returns a close-on-exec copy of f's descriptor without touching its blocking mode.
func duplicate(f *os.File) (int, error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("duplicate %s: %w", f.Name(), err)
	}
	fd := -1
	var derr error
	if err := rc.Control(func(raw uintptr) {
		fd, derr = unix.FcntlInt(raw, unix.F_DUPFD_CLOEXEC, 3)
	}); err != nil {
		return -1, fmt.Errorf("duplicate %s: %w", f.Name(), err)
	}
	if derr != nil {
		return -1, fmt.Errorf("duplicate %s: %w", f.Name(), derr)
	}
	return fd, nil
}

// duplicateAll copies the descriptors of files; on error none is left open.
func duplicateAll(files []*os.File) ([]int, error) {
	fds := make([]int, 0, len(files))
	for _, f := range files {
		fd, err := duplicate(f)
		if err != nil {
			closeAll(fds)
			return nil, err
		}
		fds = append(fds, fd)
	}
	return fds, nil
}
