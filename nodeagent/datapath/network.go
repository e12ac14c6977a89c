package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/undermesh/undermesh/nodeagent/netns"
)

// sysctls of an enrolled pod, with the values that the return path needs.
var sysctls = map[string]string{
	"net.ipv4.tcp_fwmark_accept": "1", // an accepted socket keeps the mark of its SYN: its answers go over lo too
	"net.ipv4.fwmark_reflect":    "1", // so do a RST and an ICMP error
	"net.ipv6.fwmark_reflect":    "1",
	"net.ipv4.tcp_tw_reuse":      "1", // application and judged leg share one port range
}

// barrierMetric is that of the route behind the local one: what the local route does not match (a socket that was bound
// to a device after connect, an address family that the pod has no address of) must fail, not leave by the main table.
const barrierMetric = 1 << 20

func sysctlPath(name string) string {
	return "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
}

// readSysctls reads the present values; those that the kernel does not have are left out.
func readSysctls(ns *netns.NetNS) (map[string]string, error) {
	values := map[string]string{}
	err := ns.Do(func() error {
		for name := range sysctls {
			b, err := os.ReadFile(sysctlPath(name))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return fmt.Errorf("read sysctl %s: %w", name, err)
			}
			values[name] = strings.TrimSpace(string(b))
		}
		return nil
	})
	return values, err
}

// writeSysctls sets the names of values to what value says.
func writeSysctls(ns *netns.NetNS, values map[string]string) error {
	return ns.Do(func() error {
		for name, v := range values {
			if err := os.WriteFile(sysctlPath(name), []byte(v), 0); err != nil {
				return fmt.Errorf("set sysctl %s to %s: %w", name, v, err)
			}
		}
		return nil
	})
}

// wantedSysctls are the values of enrolment for the sysctls that the namespace has.
func wantedSysctls(have map[string]string) map[string]string {
	want := map[string]string{}
	for name := range have {
		want[name] = sysctls[name]
	}
	return want
}

// family is one address family of a pod's namespace.
type family struct {
	id  int        // AF_INET, AF_INET6
	any net.IPNet  // the default destination
	src netip.Addr // the pod's first address; not valid: it has none
}

// families lists those that the namespace has, usable or not.
func families(ns *netns.NetNS, ips []netip.Addr) ([]family, error) {
	v4 := family{id: unix.AF_INET, any: net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}}
	v6 := family{id: unix.AF_INET6, any: net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}}
	for _, ip := range ips {
		f := &v4
		if ip.Unmap().Is6() {
			f = &v6
		}
		if !f.src.IsValid() {
			f.src = ip.Unmap()
		}
	}
	out := []family{v4}
	err := ns.Do(func() error {
		b, err := os.ReadFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
		if err == nil && strings.TrimSpace(string(b)) == "0" {
			out = append(out, v6)
			return nil
		}
		if v6.src.IsValid() {
			return fmt.Errorf("pod has address %s, but IPv6 is off in its network namespace", v6.src)
		}
		return nil
	})
	return out, err
}

// openNetlink opens a route netlink socket inside ns.
func openNetlink(ns *netns.NetNS) (*netlink.Handle, error) {
	var h *netlink.Handle
	err := ns.Do(func() error {
		var err error
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink in network namespace: %w", err)
	}
	return h, nil
}

func (c Config) rule(f family) *netlink.Rule {
	r := netlink.NewRule()
	mask := c.Mask
	r.Family, r.Priority, r.Mark, r.Mask, r.Table = f.id, c.RulePref, c.Mark, &mask, c.Table
	return r
}

// routes are what a captured packet finds: home over lo, or nothing.
func (c Config) routes(f family) []*netlink.Route {
	all := f.any
	barrier := &netlink.Route{Dst: &all, Table: c.Table, Type: unix.RTN_UNREACHABLE, Family: f.id, Priority: barrierMetric}
	if !f.src.IsValid() {
		return []*netlink.Route{barrier}
	}
	// With the pod's address as source: the kernel would take the destination's.
	home := &netlink.Route{LinkIndex: 1, Dst: &all, Table: c.Table, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST,
		Src: f.src.AsSlice(), Family: f.id, Priority: 1}
	return []*netlink.Route{barrier, home}
}

// addRouting puts rules and routes into ns; what is there already stays.
func (c Config) addRouting(ns *netns.NetNS, ips []netip.Addr) error {
	fams, err := families(ns, ips)
	if err != nil {
		return err
	}
	h, err := openNetlink(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	for _, f := range fams {
		for _, r := range c.routes(f) {
			if err := h.RouteReplace(r); err != nil {
				return fmt.Errorf("add route %s to table %d: %w", r, c.Table, err)
			}
		}
		if err := h.RuleAdd(c.rule(f)); ignore(err, unix.EEXIST) != nil {
			return fmt.Errorf("add rule %d for mark %#x/%#x: %w", c.RulePref, c.Mark, c.Mask, err)
		}
	}
	return nil
}

// removeRouting is the opposite of addRouting; what is gone already is no error.
func (c Config) removeRouting(ns *netns.NetNS, ips []netip.Addr) error {
	fams, err := families(ns, ips)
	if err != nil {
		return err
	}
	h, err := openNetlink(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	var errs []error
	for _, f := range fams {
		if err := h.RuleDel(c.rule(f)); ignore(err, unix.ENOENT) != nil {
			errs = append(errs, fmt.Errorf("delete rule %d: %w", c.RulePref, err))
		}
		for _, r := range c.routes(f) {
			if err := h.RouteDel(r); ignore(err, unix.ESRCH, unix.ENOENT) != nil {
				errs = append(errs, fmt.Errorf("delete route %s from table %d: %w", r, c.Table, err))
			}
		}
	}
	return errors.Join(errs...)
}

// removeRoutingOf takes away the home routes of families whose address changes; rules and barriers stay, so that a
// captured packet fails meanwhile rather than leave.
func (c Config) removeRoutingOf(ns *netns.NetNS, old, next []netip.Addr) error {
	before, err := families(ns, old)
	if err != nil {
		return err
	}
	after, err := families(ns, next)
	if err != nil {
		return err
	}
	h, err := openNetlink(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	for i, f := range before {
		if !f.src.IsValid() || f.src == after[i].src {
			continue
		}
		home := c.routes(f)[1]
		if err := h.RouteDel(home); ignore(err, unix.ESRCH, unix.ENOENT) != nil {
			return fmt.Errorf("delete route %s from table %d: %w", home, c.Table, err)
		}
	}
	return nil
}
