package datapath

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/undermesh/undermesh/bpf/types"
	"github.com/undermesh/undermesh/nodeagent/netns"
)

// Probe is a port that the pod spec declares for a kubelet probe or hook.
type Probe struct {
	Port uint16
	HTTP bool // plain HTTP, also beside others on the port: the connection goes to the probe listener
	GRPC bool // goes to the application; kubelet may send what begins as HTTP/2
	TLS  bool // HTTPS: goes to the application; kubelet may send what begins as TLS
	// Neither: goes to the application, and kubelet may send nothing.
}

// MaxCIDRs and MaxPorts bound what one pod puts into the node's maps of 65,536 entries each: 256 such pods fit, more than
// a node runs, so that no pod keeps others out.
const (
	MaxCIDRs = 256 // ExcludeOutCIDRs and IncludeOutCIDRs
	MaxPorts = 256 // different ports of all fields
)

// Pod is what the datapath needs to know of a pod.
type Pod struct {
	UID             string         // names the pins: letters, digits, - and _
	Netns           *netns.NetNS   // the handle keeps a duplicate
	IPs             []netip.Addr   // 1 to 4
	TunnelPort      uint16         // default: that of Config
	ExcludeOutCIDRs []netip.Prefix // destinations that are not captured
	IncludeOnly     bool           // only IncludeOutCIDRs are captured, without ExcludeOutCIDRs
	IncludeOutCIDRs []netip.Prefix // with IncludeOnly
	IncludeOutPorts []uint16       // captured whatever ExcludeOutCIDRs says
	ExcludeOutPorts []uint16       // never captured
	ExcludeInPorts  []uint16       // passed to the application unseen
	Probes          []Probe
}

// Validate reports the first field that cannot be used.
func (p Pod) Validate() error {
	if p.UID == "" || len(p.UID) > 128 || strings.Trim(p.UID, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
		return fmt.Errorf("pod %q: UID is empty, too long or has other characters than letters, digits, - and _", p.UID)
	}
	if len(p.IPs) == 0 || len(p.IPs) > len(types.BPFMeshPod{}.Ips) {
		return fmt.Errorf("pod %s: IPs has %d addresses, not 1 to %d", p.UID, len(p.IPs), len(types.BPFMeshPod{}.Ips))
	}
	for _, ip := range p.IPs {
		if !ip.IsValid() || ip.Unmap().IsLoopback() || ip.Unmap().IsUnspecified() || ip.IsMulticast() || ip.Zone() != "" {
			return fmt.Errorf("pod %s: IPs has %q, which is no pod's address", p.UID, ip)
		}
	}
	for _, f := range []struct {
		name  string
		cidrs []netip.Prefix
	}{{"ExcludeOutCIDRs", p.ExcludeOutCIDRs}, {"IncludeOutCIDRs", p.IncludeOutCIDRs}} {
		if slices.ContainsFunc(f.cidrs, func(c netip.Prefix) bool { return !c.IsValid() }) {
			return fmt.Errorf("pod %s: %s has an invalid prefix", p.UID, f.name)
		}
	}
	if n := len(p.ExcludeOutCIDRs) + len(p.IncludeOutCIDRs); n > MaxCIDRs {
		return fmt.Errorf("pod %s: ExcludeOutCIDRs and IncludeOutCIDRs have %d prefixes, at most %d fit", p.UID, n, MaxCIDRs)
	}
	for _, f := range []struct {
		name  string
		ports []uint16
	}{{"IncludeOutPorts", p.IncludeOutPorts}, {"ExcludeOutPorts", p.ExcludeOutPorts}, {"ExcludeInPorts", p.ExcludeInPorts}} {
		for _, port := range f.ports {
			if port == 0 {
				return fmt.Errorf("pod %s: %s has port 0", p.UID, f.name)
			}
		}
	}
	for _, pr := range p.Probes {
		if pr.Port == 0 {
			return fmt.Errorf("pod %s: Probes has port 0", p.UID)
		}
	}
	if n := len(p.portEntries(0)); n > MaxPorts {
		return fmt.Errorf("pod %s: IncludeOutPorts, ExcludeOutPorts, ExcludeInPorts and Probes have %d ports, at most %d fit", p.UID, n, MaxPorts)
	}
	return nil
}

// portEntries are the pod's entries of mesh_ports.
func (p Pod) portEntries(cookie uint64) map[types.BPFMeshPortKey]uint32 {
	all := map[types.BPFMeshPortKey]uint32{}
	add := func(port uint16, flag types.BPFMeshPortFlags) {
		all[types.BPFMeshPortKey{Cookie: cookie, Port: port}] |= uint32(flag)
	}
	for _, port := range p.IncludeOutPorts {
		add(port, types.BPFMeshPortFlagsMESH_PORT_INCLUDE_OUT)
	}
	for _, port := range p.ExcludeOutPorts {
		add(port, types.BPFMeshPortFlagsMESH_PORT_EXCLUDE_OUT)
	}
	for _, port := range p.ExcludeInPorts {
		add(port, types.BPFMeshPortFlagsMESH_PORT_EXCLUDE_IN)
	}
	for _, pr := range p.Probes {
		add(pr.Port, types.BPFMeshPortFlagsMESH_PORT_PROBE)
		if pr.HTTP {
			add(pr.Port, types.BPFMeshPortFlagsMESH_PORT_PROBE_HTTP)
		}
		if pr.GRPC {
			add(pr.Port, types.BPFMeshPortFlagsMESH_PORT_PROBE_GRPC)
		}
		if pr.TLS {
			add(pr.Port, types.BPFMeshPortFlagsMESH_PORT_PROBE_TLS)
		}
	}
	return all
}

// cidrEntries are the pod's entries of mesh_excluded.
func (p Pod) cidrEntries(cookie uint64) map[types.BPFMeshCidrKey]uint32 {
	all := map[types.BPFMeshCidrKey]uint32{}
	for _, c := range p.ExcludeOutCIDRs {
		k, family := cidrKey(cookie, c)
		all[k] = family
	}
	if !p.IncludeOnly {
		return all
	}
	for _, c := range p.IncludeOutCIDRs {
		covers := func(out netip.Prefix) bool { return out.Bits() <= c.Bits() && out.Contains(c.Addr()) }
		if slices.ContainsFunc(p.ExcludeOutCIDRs, covers) {
			continue // the longest prefix decides in the map, exclusion in the meaning
		}
		k, family := cidrKey(cookie, c)
		all[k] = family | uint32(types.BPFMeshCidrFlagsMESH_CIDR_INCLUDE)
	}
	return all
}

// cidrKey is the place of a prefix in mesh_excluded, and the bit of its family.
func cidrKey(cookie uint64, c netip.Prefix) (types.BPFMeshCidrKey, uint32) {
	bits, family := c.Bits(), types.BPFMeshCidrFlagsMESH_CIDR_IPV6
	switch {
	case c.Addr().Is4():
		bits, family = bits+96, types.BPFMeshCidrFlagsMESH_CIDR_IPV4 // in the v4-mapped range
	case c.Addr().Is4In6() && bits >= 96:
		family = types.BPFMeshCidrFlagsMESH_CIDR_IPV4
	}
	return types.BPFMeshCidrKey{PrefixLen: uint32(64 + bits), Cookie: cookieBytes(cookie), Addr: c.Masked().Addr().As16()}, uint32(family)
}

// value is the pod's struct mesh_pod; whether it is captured is not in it.
func (p Pod) value(cookie uint64, cfg Config) types.BPFMeshPod {
	v := types.BPFMeshPod{Cookie: cookie, Budget: cfg.FlowBudget, OwnPorts: cfg.ownPorts(), TunnelPort: p.tunnelPort(cfg)}
	if p.IncludeOnly {
		v.Flags = uint32(types.BPFMeshPodFlagsMESH_POD_INCLUDE_ONLY)
	}
	for i, ip := range p.IPs {
		v.Ips[i] = ip.As16()
	}
	return v
}

func (p Pod) tunnelPort(cfg Config) uint16 {
	if p.TunnelPort != 0 {
		return p.TunnelPort
	}
	return cfg.TunnelPort
}

// applyNetwork brings sysctls, routes and rules of the pod's namespace to those of enrolment. The record of what was
// there before is pinned first.
func (h *PodHandle) applyNetworkLocked() error {
	if h.rec.Sysctls == nil {
		before, err := readSysctls(h.ns)
		if err != nil {
			return err
		}
		h.rec.Sysctls = before
		if err := h.rec.write(h.dir); err != nil {
			return err
		}
	}
	if err := writeSysctls(h.ns, wantedSysctls(h.rec.Sysctls)); err != nil {
		return err
	}
	return h.cfg.addRouting(h.ns, h.rec.IPs)
}

// revertNetwork restores what applyNetwork changed.
func (h *PodHandle) revertNetworkLocked() error {
	if h.rec.Sysctls == nil {
		return nil
	}
	return errors.Join(h.cfg.removeRouting(h.ns, h.rec.IPs), writeSysctls(h.ns, h.rec.Sysctls))
}
