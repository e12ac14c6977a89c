package datapath

import (
	"errors"
	"fmt"
	"maps"
	"os"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/undermesh/undermesh/nodeagent/netns"
)

// Listeners gives the listeners that this process holds. The files stay the handle's: duplicate what is to live longer,
// and reach the descriptor by SyscallConn. They are shared with ztunnel, and File.Fd of a Go program may make a shared
// socket blocking.
func (h *PodHandle) Listeners() map[Kind]*os.File {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.files)
}

// EnsureListeners makes the listeners whose slots are empty: after a restart those that ztunnel does not hold either.
// They accept from the start; whoever serves them later finds the connections in the backlog.
func (h *PodHandle) EnsureListeners() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.usableLocked(); err != nil {
		return fmt.Errorf("listen in pod %s: %w", h.uid, err)
	}
	return h.ensureListenersLocked()
}

func (h *PodHandle) ensureListenersLocked() error {
	for _, k := range Kinds() {
		held, err := h.heldLocked(k)
		if err != nil {
			return err
		}
		if held {
			continue
		}
		// Transparent: the answer to a captured SYN comes from a foreign address. Its mark is that of the SYN, by
		// tcp_fwmark_accept.
		o := netns.Options{Transparent: true, ReuseAddr: true}
		f, err := netns.Listen(h.ns, h.cfg.port(k, h.rec.Tunnel), h.cfg.Backlog, o)
		if err != nil {
			return fmt.Errorf("make %s listener of pod %s: %w", k, h.uid, err)
		}
		if err := h.installLocked(k, f); err != nil {
			_ = f.Close()
			return err
		}
	}
	return nil
}

// SetListeners takes over listeners that another process handed back, and puts them into their slots unless they are
// there. The files are duplicated. Returns ErrForeignListener, and changes nothing, if one does not belong to the pod.
func (h *PodHandle) SetListeners(files map[Kind]*os.File) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || h.listeners == nil {
		return fmt.Errorf("adopt listeners of pod %s: %w", h.uid, ErrNotOpen)
	}
	for k, f := range files {
		if err := control(f, func(fd int) error { return h.checkListener(fd) }); err != nil {
			return fmt.Errorf("adopt %s listener of pod %s: %w", k, h.uid, err)
		}
	}
	for k, f := range files {
		dup, err := dupFile(f)
		if err == nil {
			err = h.installLocked(k, dup)
		}
		if err != nil {
			return fmt.Errorf("adopt %s listener of pod %s: %w", k, h.uid, err)
		}
	}
	return nil
}

// checkListener is needed because the kernel takes a listener of another namespace into the map without a word, and the
// connections given to it die.
func (h *PodHandle) checkListener(fd int) error {
	cookie, err := netns.SocketCookie(fd)
	if err != nil {
		return err
	}
	if cookie != h.cookie {
		return fmt.Errorf("socket of network namespace %d, pod has %d: %w", cookie, h.cookie, ErrForeignListener)
	}
	if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || on == 0 {
		return fmt.Errorf("socket does not listen: %w", errors.Join(err, ErrForeignListener))
	}
	return nil
}

// installLocked takes ownership of f and puts it into the slot of k.
func (h *PodHandle) installLocked(k Kind, f *os.File) error {
	err := control(f, func(fd int) error {
		var have uint64
		cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		if err == nil && h.listeners.Lookup(uint32(k), &have) == nil && have == cookie {
			return nil
		}
		return errors.Join(err, h.listeners.Put(uint32(k), uint64(fd)))
	})
	if err != nil {
		_ = f.Close()
		return fmt.Errorf("put %s listener of pod %s into its slot: %w", k, h.uid, err)
	}
	if old := h.files[k]; old != nil {
		_ = old.Close()
	}
	h.files[k] = f
	return nil
}

// ListenerHeld reports whether the slot of k has a live listener, held by this process or another: the map alone keeps
// none alive.
func (h *PodHandle) ListenerHeld(k Kind) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	held, err := h.heldLocked(k)
	return err == nil && held
}

func (h *PodHandle) heldLocked(k Kind) (bool, error) {
	if h.closed || h.listeners == nil {
		return false, ErrNotOpen
	}
	var cookie uint64
	err := h.listeners.Lookup(uint32(k), &cookie)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read slot of %s listener of pod %s: %w", k, h.uid, err)
	}
	return true, nil
}

// control runs fn with the descriptor and leaves its mode alone.
func control(f *os.File, fn func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) { inner = fn(int(fd)) })
	return errors.Join(err, inner)
}

func dupFile(f *os.File) (*os.File, error) {
	var dup int
	err := control(f, func(fd int) error {
		var err error
		dup, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("duplicate descriptor: %w", err)
	}
	return os.NewFile(uintptr(dup), f.Name()), nil
}
