// Package datapath loads, attaches, pins and upgrades the mesh's BPF programs, and puts pods into and out of the mesh. It
// is the only importer of bpf/*.
//
// What it owns: the node's hooks and maps (New, Open), and for each pod a rule and routes, sysctls, listeners, a
// sk_lookup program and entries in the node's maps (PodHandle). Every link and map is pinned: the death of the agent
// changes nothing in the kernel, and the next Open adopts what it finds. Whatever is missing closes, never opens, a path.
package datapath

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/undermesh/undermesh/bpf/types"
)

var (
	// ErrLayout is returned by Open when the pinned maps were written by a build with another layout of its maps.
	ErrLayout = errors.New("pinned maps have another layout")
	// ErrNotOpen is returned by everything that needs a successful Open.
	ErrNotOpen = errors.New("datapath is not open")
	// ErrUnsupported is returned by Open when the kernel lacks something; the message names it.
	ErrUnsupported = errors.New("kernel does not support the datapath")
	// ErrForeignListener is returned for a listener of another network namespace, or a socket that does not listen.
	ErrForeignListener = errors.New("not a listener of the pod's network namespace")
	// ErrNetnsGone is returned by steps that must enter a pod's namespace when that has ended.
	ErrNetnsGone = errors.New("network namespace of the pod is gone")
	// ErrOtherNetns is returned by PreparePod for a namespace that is not the pod's.
	ErrOtherNetns = errors.New("network namespace is not the pod's")
)

// Config says where the datapath lives and which numbers it uses. The zero value of each field takes its default.
type Config struct {
	BPFFS      string // mount point of the BPF file system, mounted when it is none; default /sys/fs/bpf
	PinDir     string // directory of all pins, on BPFFS; default BPFFS/undermesh
	RunDir     string // directory for our own mounts and marks of them; default /run/undermesh
	CgroupRoot string // cgroup whose processes are captured; default the root of the cgroup2 hierarchy, mounted when it is not
	Build      string // version written into mesh_meta, at most 55 bytes; default "dev"

	Mark     uint32 // capture mark; default 0x111
	Mask     uint32 // mark bits that belong to the mesh; default 0xfff
	RulePref int    // preference of the rules in a pod; default 100
	Table    int    // routing table in a pod; default 100

	OutboundPort uint16 // port of the outbound listener; default 15001
	InboundPort  uint16 // port of the plaintext inbound listener; default 15006
	TunnelPort   uint16 // port of the tunnel listener; default 15008
	ProbePort    uint16 // port of the probe listener; default 15007
	DNSPort      uint16 // port of the resolver; default 15053
	Backlog      int    // of each listener, in connections; default 4096

	FlowBudget    uint32 // handshakes of judged legs that one pod may have under way; default 1024: 124 such pods fit the table
	KubeletBudget uint32 // the same for kubelet; default 4096

	Log *slog.Logger // default: discards
}

func (c Config) withDefaults() Config {
	set(&c.BPFFS, "/sys/fs/bpf")
	set(&c.PinDir, filepath.Join(c.BPFFS, "undermesh"))
	set(&c.RunDir, "/run/undermesh")
	set(&c.Build, "dev")
	set(&c.Mark, 0x111)
	set(&c.Mask, 0xfff)
	set(&c.RulePref, 100)
	set(&c.Table, 100)
	set(&c.OutboundPort, 15001)
	set(&c.InboundPort, 15006)
	set(&c.TunnelPort, 15008)
	set(&c.ProbePort, 15007)
	set(&c.DNSPort, 15053)
	set(&c.Backlog, 4096)
	set(&c.FlowBudget, 1024)
	set(&c.KubeletBudget, 4096)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

func set[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Validate reports the first field that cannot be used.
func (c Config) Validate() error {
	c = c.withDefaults()
	if c.Mark&^c.Mask != 0 {
		return fmt.Errorf("datapath config: Mark %#x has bits outside Mask %#x", c.Mark, c.Mask)
	}
	if len(c.Build) >= len(types.BPFMeshMeta{}.Build) {
		return fmt.Errorf("datapath config: Build %q is longer than %d bytes", c.Build, len(types.BPFMeshMeta{}.Build)-1)
	}
	if c.Table < 1 || c.Table >= 253 && c.Table <= 255 {
		return fmt.Errorf("datapath config: Table %d is not free for use", c.Table)
	}
	if rel, err := filepath.Rel(c.BPFFS, c.PinDir); err != nil || rel == "." || len(rel) > 1 && rel[:2] == ".." {
		return fmt.Errorf("datapath config: PinDir %s is not below BPFFS %s", c.PinDir, c.BPFFS)
	}
	seen := map[uint16]string{}
	for _, p := range []struct {
		name string
		port uint16
	}{{"OutboundPort", c.OutboundPort}, {"InboundPort", c.InboundPort}, {"TunnelPort", c.TunnelPort}, {"ProbePort", c.ProbePort}, {"DNSPort", c.DNSPort}} {
		if other, ok := seen[p.port]; ok {
			return fmt.Errorf("datapath config: %s and %s are both %d", other, p.name, p.port)
		}
		seen[p.port] = p.name
	}
	return nil
}

// ownPorts are the ports that nobody may ask for from outside, or from the pod itself.
func (c Config) ownPorts() [4]uint16 {
	return [4]uint16{c.OutboundPort, c.InboundPort, c.ProbePort, c.DNSPort}
}

// Kind is one of a pod's listeners; its number is the slot in the pod's SOCKMAP.
type Kind uint32

// The listeners of a pod. Which connections each gets is written in bpf/lookup.
const (
	KindOutbound = Kind(types.BPFMeshListenerMESH_LISTENER_OUTBOUND)
	KindInbound  = Kind(types.BPFMeshListenerMESH_LISTENER_INBOUND)
	KindTunnel   = Kind(types.BPFMeshListenerMESH_LISTENER_TUNNEL)
	KindProbe    = Kind(types.BPFMeshListenerMESH_LISTENER_PROBE)
)

// Kinds lists every kind.
func Kinds() []Kind { return []Kind{KindOutbound, KindInbound, KindTunnel, KindProbe} }

// String is the name used in logs and in the messages to ztunnel.
func (k Kind) String() string {
	switch k {
	case KindOutbound:
		return "outbound"
	case KindInbound:
		return "inbound"
	case KindTunnel:
		return "tunnel"
	case KindProbe:
		return "probe"
	}
	return fmt.Sprintf("kind_%d", uint32(k))
}

// port is where the listener is bound. Steering does not depend on it, except that the tunnel's is the one asked for.
func (c Config) port(k Kind, tunnel uint16) uint16 {
	switch k {
	case KindOutbound:
		return c.OutboundPort
	case KindInbound:
		return c.InboundPort
	case KindProbe:
		return c.ProbePort
	default:
		return tunnel
	}
}
