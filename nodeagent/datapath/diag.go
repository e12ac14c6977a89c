package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// From linux/inet_diag.h and linux/sock_diag.h.
const (
	diagByFamily    = 20     // SOCK_DIAG_BY_FAMILY
	diagAttrMark    = 15     // INET_DIAG_MARK, told to those with NET_ADMIN
	diagAttrOptions = 22     // INET_DIAG_SOCKOPT
	diagTransparent = 1 << 5 // of its first byte: IP_TRANSPARENT, which a socket has from its listener
	diagRequestLen  = 56     // struct inet_diag_req_v2
	diagMessageLen  = 72     // struct inet_diag_msg
)

// tcpLive are the states in which a connection still has packets to send: all but LISTEN, SYN_RECV, TIME_WAIT and CLOSE.
const tcpLive = 1<<1 | 1<<2 | 1<<4 | 1<<5 | 1<<8 | 1<<9 | 1<<11

// LiveCaptured is the number of connections in the pod's namespace that need its listeners, rules or routes, both ends
// of one counted once: sockets with the capture mark, and what the plaintext inbound listener took, whether ztunnel
// has accepted and delivered it yet or not. Tunnels do not count, only what they deliver. Returns ErrNetnsGone if the
// namespace is gone.
func (h *PodHandle) LiveCaptured() (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return 0, fmt.Errorf("list sockets of pod %s: %w", h.uid, ErrNotOpen)
	}
	if h.ns == nil {
		return 0, fmt.Errorf("list sockets of pod %s: %w", h.uid, ErrNetnsGone)
	}
	tunnel := h.cfg.TunnelPort
	if h.tables != nil {
		v, ok, err := h.tables.pods.Lookup(h.cookie)
		if err != nil {
			return 0, fmt.Errorf("list sockets of pod %s: %w", h.uid, err)
		}
		if ok {
			tunnel = v.TunnelPort
		}
	}
	live := held{h.cfg, tunnel, map[[2]netip.AddrPort]bool{}}
	err := h.eachSocketLocked(tcpLive, live.add)
	return len(live.seen), err
}

// held are the connections that LiveCaptured counts.
type held struct {
	cfg    Config
	tunnel uint16 // port of the pod
	seen   map[[2]netip.AddrPort]bool
}

// add looks at one socket: a struct inet_diag_msg and its attributes.
func (s held) add(m []byte) {
	mark, transparent := diagAttrs(m[diagMessageLen:])
	local, remote := diagEnds(m)
	if mark&s.cfg.Mask == s.cfg.Mark || transparent && local.Port() != s.tunnel {
		if remote.Compare(local) < 0 {
			local, remote = remote, local
		}
		s.seen[[2]netip.AddrPort{local, remote}] = true
	}
}

// tcpUnended are the states in which the peer has not acknowledged the end of a connection: ESTABLISHED, FIN_WAIT1, CLOSE_WAIT,
// LAST_ACK and CLOSING.
const tcpUnended = 1<<1 | 1<<4 | 1<<8 | 1<<9 | 1<<11

// Unended is the number of TCP connections in the pod's namespace whose end their peer does not know of. Returns ErrNetnsGone if
// the namespace is gone.
func (h *PodHandle) Unended() (n int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return 0, fmt.Errorf("list sockets of pod %s: %w", h.uid, ErrNotOpen)
	}
	if h.ns == nil {
		return 0, fmt.Errorf("list sockets of pod %s: %w", h.uid, ErrNetnsGone)
	}
	err = h.eachSocketLocked(tcpUnended, func([]byte) { n++ })
	return n, err
}

// eachSocketLocked calls yield with the struct inet_diag_msg, and its attributes, of each TCP socket in the pod's namespace that is in
// one of the states.
func (h *PodHandle) eachSocketLocked(states uint32, yield func(m []byte)) error {
	fd := -1
	err := h.ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
		return err
	})
	if err != nil {
		return fmt.Errorf("open sock_diag of pod %s: %w", h.uid, err)
	}
	defer unix.Close(fd)
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		if err := listSockets(fd, family, states, yield); err != nil {
			return fmt.Errorf("list sockets of pod %s: %w", h.uid, err)
		}
	}
	return nil
}

// listSockets dumps the TCP sockets of the family that are in one of the states.
func listSockets(fd int, family uint8, states uint32, yield func(m []byte)) error {
	req := make([]byte, unix.NLMSG_HDRLEN+diagRequestLen)
	binary.NativeEndian.PutUint32(req, uint32(len(req)))
	binary.NativeEndian.PutUint16(req[4:], diagByFamily)
	binary.NativeEndian.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	req[16], req[17] = family, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(req[20:], states)
	if err := unix.Sendto(fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("ask sock_diag: %w", err)
	}
	buf := make([]byte, 32<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read sock_diag: %w", err)
		}
		done, err := parseDiag(buf[:n], yield)
		if err != nil || done {
			return err
		}
	}
}

// parseDiag reads one datagram of a dump.
func parseDiag(b []byte, yield func(m []byte)) (done bool, err error) {
	msgs, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return false, fmt.Errorf("parse sock_diag answer: %w", err)
	}
	for _, m := range msgs {
		switch m.Header.Type {
		case unix.NLMSG_DONE:
			return true, nil
		case unix.NLMSG_ERROR:
			if len(m.Data) < 4 {
				return false, errors.New("parse sock_diag answer: short error")
			}
			if code := int32(binary.NativeEndian.Uint32(m.Data)); code != 0 {
				return false, fmt.Errorf("ask sock_diag: %w", unix.Errno(-code))
			}
		case diagByFamily:
			if len(m.Data) < diagMessageLen {
				return false, fmt.Errorf("parse sock_diag answer: socket of %d bytes", len(m.Data))
			}
			yield(m.Data)
		}
	}
	return false, nil
}

// diagEnds reads the addresses of a struct inet_diag_msg: family, ..., sport and dport at 4, src at 8, dst at 24.
func diagEnds(m []byte) (local, remote netip.AddrPort) {
	addr := func(b []byte) netip.Addr {
		if m[0] == unix.AF_INET {
			return netip.AddrFrom4([4]byte(b[:4]))
		}
		return netip.AddrFrom16([16]byte(b[:16])).Unmap()
	}
	return netip.AddrPortFrom(addr(m[8:]), binary.BigEndian.Uint16(m[4:])),
		netip.AddrPortFrom(addr(m[24:]), binary.BigEndian.Uint16(m[6:]))
}

// diagAttrs reads the mark and IP_TRANSPARENT among the attributes.
func diagAttrs(b []byte) (mark uint32, transparent bool) {
	for len(b) >= 4 {
		size, kind := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
		if size < 4 || size > len(b) {
			break
		}
		switch {
		case kind == diagAttrMark && size >= 8:
			mark = binary.NativeEndian.Uint32(b[4:])
		case kind == diagAttrOptions && size >= 5:
			transparent = b[4]&diagTransparent != 0
		}
		b = b[min(len(b), (size+3)&^3):]
	}
	return mark, transparent
}
