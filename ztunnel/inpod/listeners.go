package inpod

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/nodeagent/netns"
	"github.com/undermesh/undermesh/nodeagent/zds"
	"github.com/undermesh/undermesh/nodeagent/zds/zdsapi"
)

const backlog = 4096 // connections that wait in a listener of our own

// fromFile opens the namespace of f once more; f stays the caller's.
func fromFile(f *os.File) (*netns.NetNS, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("open netns: %w", err)
	}
	var ns *netns.NetNS
	var nerr error
	if err := raw.Control(func(fd uintptr) { ns, nerr = netns.FromFD(int(fd)) }); err != nil {
		return nil, fmt.Errorf("open netns: %w", err)
	}
	if nerr != nil {
		return nil, fmt.Errorf("open netns: %w", nerr)
	}
	return ns, nil
}

// adopt takes over the listeners of ns that this build serves and closes the others. On error it closes all.
func adopt(ns *netns.NetNS, files zds.Listeners) (map[zdsapi.ListenerKind]*held, error) {
	out := map[zdsapi.ListenerKind]*held{}
	fail := func(err error) (map[zdsapi.ListenerKind]*held, error) {
		closeAll(out)
		files.Close() // those of out once more: they only say that they are closed
		return nil, err
	}
	for kind, f := range files {
		if _, ok := kinds[kind]; !ok {
			_ = f.Close() // nothing was written to it
			continue
		}
		h, err := adoptOne(ns, f)
		if err != nil {
			return fail(fmt.Errorf("take listener %s: %w", kind, err))
		}
		out[kind] = h
	}
	return out, nil
}

// adoptOne serves f. It refuses a listener of another namespace: its connections would come from another pod.
func adoptOne(ns *netns.NetNS, f *os.File) (*held, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cookie, home uint64
	var cerr, herr error
	if err := raw.Control(func(fd uintptr) {
		cookie, cerr = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE)
		home, herr = netns.SocketCookie(int(fd))
	}); err != nil {
		return nil, err
	}
	if cerr != nil {
		return nil, fmt.Errorf("read socket cookie: %w", cerr)
	}
	if herr != nil {
		return nil, herr
	}
	want, err := ns.Cookie()
	if err != nil {
		return nil, err
	}
	if home != want {
		return nil, fmt.Errorf("it lives in network namespace %d, the pod in %d", home, want)
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	return &held{file: f, l: l, cookie: cookie}, nil
}

// openListeners makes the three listeners of the protocol's version 1 in ns.
func openListeners(ns *netns.NetNS) (map[zdsapi.ListenerKind]*held, error) {
	files := zds.Listeners{}
	for kind, port := range map[zdsapi.ListenerKind]uint16{
		zdsapi.ListenerKind_OUTBOUND: api.PortOutbound,
		zdsapi.ListenerKind_INBOUND:  api.PortInbound,
		zdsapi.ListenerKind_TUNNEL:   api.PortTunnel,
	} {
		f, err := netns.Listen(ns, port, backlog, netns.Options{Transparent: true, ReuseAddr: true})
		if err != nil {
			files.Close()
			return nil, fmt.Errorf("open listener %s: %w", kind, err)
		}
		files[kind] = f
	}
	return adopt(ns, files)
}

// replaceLocked serves fresh listeners beside the old ones, and those until their backlog is empty. The same socket under another
// descriptor changes nothing.
func (e *entry) replaceLocked(fresh map[zdsapi.ListenerKind]*held) {
	for kind, h := range fresh {
		old := e.listeners[kind]
		if old != nil && old.cookie == h.cookie {
			h.close()
			continue
		}
		e.pod.Listen(kinds[kind], h.l)
		e.listeners[kind] = h
		if old != nil {
			e.pod.Retire(old.l)
			_ = old.file.Close() // nothing was written to it
		}
	}
}

// closeFiles gives up the descriptors that were kept for the agent; the proxy closes those that it serves.
func (e *entry) closeFiles() {
	for _, h := range e.listeners {
		_ = h.file.Close() // nothing was written to it
	}
}

func (h *held) close() {
	_ = h.l.Close()
	_ = h.file.Close()
}

func closeAll(all map[zdsapi.ListenerKind]*held) {
	for _, h := range all {
		h.close()
	}
}
