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

// Used is one range or address that the machine's network namespace uses, and the link it belongs to.
type Used struct {
	Prefix netip.Prefix
	Link   string
	// Host says that it is one address (of the machine or of a gateway), not a range behind a route.
	Host bool
}

// InUse lists addresses, gateways and routes of the caller's network namespace.
func InUse() ([]Used, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	names := map[int]string{}
	var out []Used
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return nil, fmt.Errorf("list addresses of link %s: %w", l.Attrs().Name, err)
		}
		for _, a := range addrs {
			out = addHost(out, a.IP, l.Attrs().Name)
		}
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		out = addHost(out, r.Gw, names[r.LinkIndex])
		if r.Dst == nil {
			continue
		}
		if p, ok := prefix(r.Dst); ok {
			out = append(out, Used{Prefix: p, Link: names[r.LinkIndex]})
		}
	}
	return out, nil
}

func addHost(list []Used, ip net.IP, link string) []Used {
	a, ok := netip.AddrFromSlice(ip)
	if !ok {
		return list
	}
	a = a.Unmap()
	return append(list, Used{Prefix: netip.PrefixFrom(a, a.BitLen()), Link: link, Host: true})
}

// Clash returns the link that already uses part of want, or "". A route to a wider range is no clash: a cluster's own route is the
// more specific one, and hides only addresses of that range that nobody here is known to use.
func Clash(used []Used, want []netip.Prefix) string {
	for _, u := range used {
		for _, w := range want {
			w = w.Masked()
			if w.Overlaps(u.Prefix) && (u.Host || u.Prefix.Bits() >= w.Bits()) {
				return u.Link
			}
		}
	}
	return ""
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
