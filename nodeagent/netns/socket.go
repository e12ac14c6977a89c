package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Options are set on a socket before it is bound or connected. The zero value sets nothing.
type Options struct {
	Transparent bool           // IP_TRANSPARENT: a foreign address may be local. Needs NET_ADMIN or NET_RAW
	Mark        uint32         // SO_MARK; 0 leaves it. Needs NET_ADMIN or NET_RAW
	BindIfindex int            // SO_BINDTOIFINDEX; 0 leaves it; 1 is lo
	Bind        netip.AddrPort // local address and port; not valid: not bound. An invalid address with a port cannot be given
	ReuseAddr   bool           // SO_REUSEADDR
	NoDelay     bool           // TCP_NODELAY
	KeepAlive   time.Duration  // TCP_KEEPIDLE and TCP_KEEPINTVL, rounded up to seconds; 0: no keep-alive
	UserTimeout time.Duration  // TCP_USER_TIMEOUT, milliseconds; 0 leaves the kernel's
}

// Socket creates a non-blocking TCP socket of family AF_INET or AF_INET6 inside ns with the options set. It is plain
// TCP, never MPTCP. The caller owns the descriptor.
func Socket(ns *NetNS, family int, o Options) (int, error) {
	fd, err := ns.socket(family, unix.SOCK_STREAM)
	if err != nil {
		return -1, fmt.Errorf("create TCP socket in %s: %w", ns.path, err)
	}
	if err := o.apply(fd, family); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (o Options) apply(fd, family int) error {
	if o.Transparent {
		if err := transparent(fd, family); err != nil {
			return err
		}
	}
	for _, s := range []struct {
		on                 bool
		name               string
		level, opt, amount int
	}{
		{o.Mark != 0, "SO_MARK", unix.SOL_SOCKET, unix.SO_MARK, int(o.Mark)},
		{o.BindIfindex != 0, "SO_BINDTOIFINDEX", unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, o.BindIfindex},
		{o.ReuseAddr, "SO_REUSEADDR", unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
		{o.NoDelay, "TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		{o.KeepAlive != 0, "SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{o.KeepAlive != 0, "TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, seconds(o.KeepAlive)},
		{o.KeepAlive != 0, "TCP_KEEPINTVL", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, seconds(o.KeepAlive)},
		{o.UserTimeout != 0, "TCP_USER_TIMEOUT", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(o.UserTimeout.Milliseconds())},
	} {
		if !s.on {
			continue
		}
		if err := unix.SetsockoptInt(fd, s.level, s.opt, s.amount); err != nil {
			return fmt.Errorf("set %s to %d: %w", s.name, s.amount, err)
		}
	}
	if o.Bind.IsValid() {
		if err := unix.Bind(fd, sockaddr(family, o.Bind)); err != nil {
			return fmt.Errorf("bind socket to %s: %w", o.Bind, err)
		}
	}
	return nil
}

func seconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }

func transparent(fd, family int) error {
	if family == unix.AF_INET6 {
		if err := unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1); err != nil {
			return fmt.Errorf("set IPV6_TRANSPARENT: %w", err)
		}
	}
	// The flag is the socket's, not the family's: this covers v4-mapped addresses of an AF_INET6 socket too.
	if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1); err != nil {
		return fmt.Errorf("set IP_TRANSPARENT: %w", err)
	}
	return nil
}

// sockaddr is the address in the form that a socket of the family wants.
func sockaddr(family int, a netip.AddrPort) unix.Sockaddr {
	if family == unix.AF_INET {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().Unmap().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// Family is the socket family that reaches addr; a v4-mapped address is AF_INET.
func Family(addr netip.Addr) int {
	if addr.Unmap().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// Connect starts connecting the non-blocking socket fd of the family. It returns nil when the connection is up or
// under way; the outcome is SO_ERROR once the socket is writable.
func Connect(fd, family int, dst netip.AddrPort) error {
	err := unix.Connect(fd, sockaddr(family, dst))
	if err == nil || errors.Is(err, unix.EINPROGRESS) || errors.Is(err, unix.EINTR) {
		return nil
	}
	return fmt.Errorf("connect to %s: %w", dst, err)
}

// Dial connects to dst from inside ns. The thread is inside the namespace only while the socket is made; waiting is the
// runtime poller's. Errors of the kernel (ECONNREFUSED, EHOSTUNREACH and so on) are in the chain; a context that ends
// gives context.Cause.
func Dial(ctx context.Context, ns *NetNS, dst netip.AddrPort, o Options) (*net.TCPConn, error) {
	family := Family(dst.Addr())
	fd, err := Socket(ns, family, o)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "tcp")
	defer f.Close() // net.FileConn duplicates
	if err := Connect(fd, family, dst); err != nil {
		return nil, err
	}
	if err := connected(ctx, f); err != nil {
		return nil, fmt.Errorf("connect to %s: %w", dst, err)
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("adopt connection to %s: %w", dst, err)
	}
	return c.(*net.TCPConn), nil
}

// connected waits until the connection of f is up or has failed.
func connected(ctx context.Context, f *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var outcome error
	err = raw.Write(func(fd uintptr) bool {
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err != nil {
			outcome = err
			return true
		}
		if code != 0 {
			outcome = unix.Errno(code)
			return true
		}
		_, err = unix.Getpeername(int(fd))
		return err == nil // ENOTCONN: still under way
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.Join(err, outcome)
}

// Listen makes a TCP listener on port inside ns for both families (IPv4 alone where the kernel has no IPv6), with the
// options set; o.Bind is not looked at. Port 0 takes a free one. backlog is in connections.
func Listen(ns *NetNS, port uint16, backlog int, o Options) (*os.File, error) {
	family := unix.AF_INET6
	o.Bind = netip.AddrPortFrom(netip.IPv6Unspecified(), port)
	fd, err := ns.socket(family, unix.SOCK_STREAM)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		family = unix.AF_INET
		o.Bind = netip.AddrPortFrom(netip.IPv4Unspecified(), port)
		fd, err = ns.socket(family, unix.SOCK_STREAM)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on port %d in %s: %w", port, ns.path, err)
	}
	if err := listen(fd, family, backlog, o); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("listen on port %d in %s: %w", port, ns.path, err)
	}
	return os.NewFile(uintptr(fd), fmt.Sprintf("listener %d", port)), nil
}

func listen(fd, family, backlog int, o Options) error {
	if family == unix.AF_INET6 {
		if err := unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
			return fmt.Errorf("set IPV6_V6ONLY to 0: %w", err)
		}
	}
	if err := o.apply(fd, family); err != nil {
		return err
	}
	return unix.Listen(fd, backlog)
}
