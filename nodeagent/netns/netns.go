// Package netns identifies and enters network namespaces. It is the only package of the mesh that calls setns(2).
//
// Every entry happens on a thread of its own goroutine, which is given back to the runtime only after it has returned
// home; a thread that cannot return dies with its goroutine. A namespace is held by its file descriptor and known by
// (device, inode): a path may come to mean another namespace.
package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrNotNetns is returned by the Open functions for a file that is no network namespace.
var ErrNotNetns = errors.New("not a network namespace")

// ErrClosed is returned by every use of a NetNS after Close.
var ErrClosed = errors.New("network namespace is closed")

// ID is the identity of a network namespace while it lives. Source: stat(2) of the nsfs file.
type ID struct {
	Dev   uint64
	Inode uint64
}

// NetNS is an open network namespace; it keeps the namespace alive until Close. Safe for concurrent use.
type NetNS struct {
	path string // as opened; empty when taken from a descriptor
	id   ID
	home int // namespace of the process, to return to

	mu     sync.RWMutex // protects below; held for reading while the descriptors are used
	fd     int
	closed bool

	cookieOnce sync.Once
	cookie     uint64
	cookieErr  error
}

// OpenPath opens the namespace at path, for example /run/netns/NAME or /proc/PID/ns/net. Returns ErrNotNetns if the file
// is something else.
func OpenPath(path string) (*NetNS, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	return adopt(fd, path)
}

// OpenPID opens the network namespace of the process pid.
func OpenPID(pid int) (*NetNS, error) {
	return OpenPath(fmt.Sprintf("/proc/%d/ns/net", pid))
}

// FromFD duplicates fd, which stays the caller's.
func FromFD(fd int) (*NetNS, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate network namespace descriptor %d: %w", fd, err)
	}
	return adopt(dup, "")
}

// Current opens the namespace that the process runs in.
func Current() (*NetNS, error) { return OpenPath(homePath) }

// The calling thread's: enter may be using the main thread, which is what /proc/self shows, for another namespace.
const homePath = "/proc/thread-self/ns/net"

// adopt takes ownership of fd.
func adopt(fd int, path string) (*NetNS, error) {
	n, err := inspect(fd, path)
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	n.home, err = unix.Open(homePath, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("open own network namespace: %w", err)
	}
	return n, nil
}

func inspect(fd int, path string) (*NetNS, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return nil, fmt.Errorf("inspect network namespace %s: %w", path, err)
	}
	if fs.Type != unix.NSFS_MAGIC {
		return nil, fmt.Errorf("open %s: %w", path, ErrNotNetns)
	}
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil {
		return nil, fmt.Errorf("inspect network namespace %s: %w", path, err)
	}
	if kind != unix.CLONE_NEWNET {
		return nil, fmt.Errorf("open %s: %w", path, ErrNotNetns)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("stat network namespace %s: %w", path, err)
	}
	return &NetNS{path: path, fd: fd, id: ID{Dev: uint64(st.Dev), Inode: st.Ino}}, nil
}

// ID is the identity of the namespace; it stays valid after Close.
func (n *NetNS) ID() ID { return n.id }

// Path is the path given to OpenPath, or empty.
func (n *NetNS) Path() string { return n.path }

// FD is the descriptor; it is valid until Close and must not be closed by the caller.
func (n *NetNS) FD() int {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.fd
}

// Dup opens the same namespace once more, with a life of its own.
func (n *NetNS) Dup() (*NetNS, error) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.closed {
		return nil, ErrClosed
	}
	fd, err := unix.FcntlInt(uintptr(n.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate network namespace %s: %w", n.path, err)
	}
	return adopt(fd, n.path)
}

// Close gives the descriptors back, after entries under way have ended. It may be called twice.
func (n *NetNS) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil
	}
	n.closed = true
	fd := n.fd
	n.fd = -1
	return errors.Join(unix.Close(fd), unix.Close(n.home))
}

// Do runs fn on a thread inside the namespace and returns its error. fn must not start goroutines, resolve names or
// wait for the network: only syscalls that need the namespace. Returns ErrClosed after Close.
func (n *NetNS) Do(fn func() error) error {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.closed {
		return ErrClosed
	}
	done := make(chan error, 1)
	go func() { done <- n.enter(fn) }()
	return <-done
}

// enter leaves the thread locked, so that it dies with its goroutine, when it cannot return home.
func (n *NetNS) enter(fn func() error) error {
	runtime.LockOSThread()
	if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace %s: %w", n.path, err)
	}
	err := fn()
	if back := unix.Setns(n.home, unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, fmt.Errorf("leave network namespace %s: %w", n.path, back))
	}
	runtime.UnlockOSThread()
	return err
}

// Cookie is the kernel's number of the namespace, unique since boot; BPF programs know namespaces by it. Kernel 5.14.
func (n *NetNS) Cookie() (uint64, error) {
	n.cookieOnce.Do(func() {
		fd, err := n.socket(unix.AF_INET, unix.SOCK_STREAM)
		if err != nil {
			n.cookieErr = err
			return
		}
		defer unix.Close(fd)
		n.cookie, n.cookieErr = SocketCookie(fd)
	})
	return n.cookie, n.cookieErr
}

// SocketCookie is the cookie of the namespace that the socket fd belongs to.
func SocketCookie(fd int) (uint64, error) {
	c, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("read namespace cookie of socket %d: %w", fd, err)
	}
	return c, nil
}

// socket creates a non-blocking socket inside the namespace.
func (n *NetNS) socket(family, kind int) (fd int, err error) {
	err = n.Do(func() error {
		var err error
		fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("create socket: %w", err)
		}
		return nil
	})
	if err != nil {
		return -1, err
	}
	return fd, nil
}

// File duplicates the descriptor into an *os.File, for passing it to another process.
func (n *NetNS) File() (*os.File, error) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.closed {
		return nil, ErrClosed
	}
	fd, err := unix.FcntlInt(uintptr(n.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate network namespace %s: %w", n.path, err)
	}
	return os.NewFile(uintptr(fd), "netns "+n.path), nil
}
