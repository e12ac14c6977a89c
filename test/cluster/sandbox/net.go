package sandbox

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Bridge is the link in the control plane's network namespace that joins all members.
const Bridge = "nodes0"

// MakeBridge makes the bridge in the network namespace of process pid and gives it addrs.
func MakeBridge(pid int, addrs []netip.Prefix) error {
	h, closeNS, err := handle(pid)
	if err != nil {
		return err
	}
	defer closeNS()
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: Bridge}}
	if err := h.LinkAdd(br); err != nil {
		return fmt.Errorf("add bridge: %w", err)
	}
	if err := up(h, "lo"); err != nil {
		return err
	}
	return address(h, Bridge, addrs)
}

// Port describes one link from a namespace to the bridge.
type Port struct {
	// BridgePID is a process in the namespace of the bridge; BridgeEnd the name of the link's end there.
	BridgePID int
	BridgeEnd string
	// PID is a process in the namespace of the other end, 0 for the caller's own; End is its name.
	PID int
	End string
	// Addrs are the addresses of the other end, Routes leave by it: destination → gateway. An invalid destination is the default.
	Addrs  []netip.Prefix
	Routes []Route
}

// Route is one destination behind a gateway; the zero Dst is the default route of the gateway's family.
type Route struct {
	Dst netip.Prefix
	Via netip.Addr
}

// Plug makes the link, with addresses and routes, both ends up.
func Plug(p Port) error {
	bridge, closeBridge, err := handle(p.BridgePID)
	if err != nil {
		return err
	}
	defer closeBridge()
	target := p.PID
	if target == 0 {
		target = unix.Gettid()
	}
	peerNS, err := netns.GetFromPid(target)
	if p.PID == 0 {
		peerNS, err = netns.Get()
	}
	if err != nil {
		return fmt.Errorf("open network namespace of process %d: %w", target, err)
	}
	defer peerNS.Close()
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: p.BridgeEnd},
		PeerName:      p.End,
		PeerNamespace: netlink.NsFd(int(peerNS)),
	}
	if err := bridge.LinkAdd(veth); err != nil {
		return fmt.Errorf("add link %s to %s: %w", p.BridgeEnd, p.End, err)
	}
	br, err := bridge.LinkByName(Bridge)
	if err != nil {
		return fmt.Errorf("find bridge: %w", err)
	}
	l, err := bridge.LinkByName(p.BridgeEnd)
	if err != nil {
		return fmt.Errorf("find link %s: %w", p.BridgeEnd, err)
	}
	if err := bridge.LinkSetMaster(l, br); err != nil {
		return fmt.Errorf("put link %s on the bridge: %w", p.BridgeEnd, err)
	}
	if err := up(bridge, p.BridgeEnd); err != nil {
		return err
	}
	peer, err := netlink.NewHandleAt(peerNS)
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	defer peer.Close()
	if p.PID != 0 {
		if err := up(peer, "lo"); err != nil {
			return err
		}
	}
	if err := address(peer, p.End, p.Addrs); err != nil {
		return err
	}
	return routes(peer, p.End, p.Routes)
}

// AddRoutes adds routes by link in the namespace of process pid.
func AddRoutes(pid int, link string, rs []Route) error {
	h, closeNS, err := handle(pid)
	if err != nil {
		return err
	}
	defer closeNS()
	return routes(h, link, rs)
}

// RemoveLink removes the link of the caller's namespace; none is fine.
func RemoveLink(name string) error {
	l, err := netlink.LinkByName(name)
	var none netlink.LinkNotFoundError
	if errors.As(err, &none) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove link %s: %w", name, err)
	}
	return nil
}

// Overlaps returns the name of the link by which an address or route of this machine meets one of want, or "".
func Overlaps(want []netip.Prefix) (string, error) {
	rs, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return "", fmt.Errorf("list routes: %w", err)
	}
	for _, r := range rs {
		if r.Dst == nil {
			continue
		}
		have, ok := prefix(r.Dst)
		if !ok || have.Bits() == 0 {
			continue
		}
		for _, w := range want {
			if !have.Overlaps(w.Masked()) {
				continue
			}
			if l, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
				return l.Attrs().Name, nil
			}
			return have.String(), nil
		}
	}
	return "", nil
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	a, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones), ok
}

func handle(pid int) (*netlink.Handle, func(), error) {
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return nil, nil, fmt.Errorf("open network namespace of process %d: %w", pid, err)
	}
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		ns.Close()
		return nil, nil, fmt.Errorf("open netlink socket in namespace of process %d: %w", pid, err)
	}
	return h, func() { h.Close(); ns.Close() }, nil
}

func up(h *netlink.Handle, name string) error {
	l, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := h.LinkSetUp(l); err != nil {
		return fmt.Errorf("set link %s up: %w", name, err)
	}
	return nil
}

func address(h *netlink.Handle, name string, addrs []netip.Prefix) error {
	l, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	for _, a := range addrs {
		n := ipNet(a)
		addr := &netlink.Addr{IPNet: &n}
		if a.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD // usable at once
		}
		if err := h.AddrAdd(l, addr); err != nil {
			return fmt.Errorf("add address %s to link %s: %w", a, name, err)
		}
	}
	return up(h, name)
}

func routes(h *netlink.Handle, name string, rs []Route) error {
	l, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	for _, r := range rs {
		route := &netlink.Route{LinkIndex: l.Attrs().Index, Gw: r.Via.AsSlice()}
		if r.Dst.IsValid() {
			n := ipNet(r.Dst)
			route.Dst = &n
		}
		if err := h.RouteAdd(route); err != nil {
			return fmt.Errorf("add route to %v by %s: %w", r.Dst, r.Via, err)
		}
	}
	return nil
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
