package datapath

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	stdmaps "maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/undermesh/undermesh/bpf/types"
	"github.com/undermesh/undermesh/nodeagent/maps"
	"github.com/undermesh/undermesh/nodeagent/netns"
)

// PodHandle is one pod in the datapath. Its steps are idempotent and safe for concurrent use. In the order of
// enrolment: PreparePod (rules, routes, sysctls, listeners), AttachInbound, CaptureOutbound(true); of un-enrolment:
// CaptureOutbound(false), DetachInbound, and Cleanup once LiveCaptured is 0 or a deadline has passed.
type PodHandle struct {
	cfg    Config
	uid    string
	cookie uint64
	dir    string // of the pod's pins
	tables *tables
	load   func(config, listeners *ebpf.Map) (*ebpf.Program, error) // nil as tables

	mu        sync.Mutex // protects below
	rec       record
	ns        *netns.NetNS // nil: not found since the agent's restart, or gone
	config    *ebpf.Map
	listeners *ebpf.Map
	link      link.Link // nil: inbound is not attached
	current   bool      // link runs this build's program
	files     map[Kind]*os.File
	ports     map[types.BPFMeshPortKey]uint32 // what is, or may be after an error, in mesh_ports
	cidrs     map[types.BPFMeshCidrKey]uint32
	closed    bool
}

// tables are the node's maps that hold entries of pods; nil in a handle that is only good for cleaning up.
type tables struct {
	pods  maps.Table[uint64, types.BPFMeshPod]
	usage maps.Table[uint64, uint32]
	flows maps.Table[types.BPFMeshFlowKey, types.BPFMeshFlow]
	dials maps.Table[types.BPFMeshFlowKey, types.BPFMeshFlow]
	ports maps.Table[types.BPFMeshPortKey, uint32]
	cidrs maps.Table[types.BPFMeshCidrKey, uint32]
}

func (d *Datapath) tablesLocked() *tables {
	if d.maps == nil {
		return nil
	}
	return &tables{
		pods:  maps.NewTable[uint64, types.BPFMeshPod](mapPods, d.maps[mapPods]),
		usage: maps.NewTable[uint64, uint32](mapUsage, d.maps[mapUsage]),
		flows: maps.NewTable[types.BPFMeshFlowKey, types.BPFMeshFlow](mapFlows, d.maps[mapFlows]),
		dials: maps.NewTable[types.BPFMeshFlowKey, types.BPFMeshFlow](mapDials, d.maps[mapDials]),
		ports: maps.NewTable[types.BPFMeshPortKey, uint32](mapPorts, d.maps[mapPorts]),
		cidrs: maps.NewTable[types.BPFMeshCidrKey, uint32](mapExcluded, d.maps[mapExcluded]),
	}
}

func cookieBytes(c uint64) (b [8]uint8) {
	binary.NativeEndian.PutUint64(b[:], c)
	return b
}

// PreparePod brings rules, routes, sysctls, listeners and tables of a pod into being, and captures nothing yet. For a
// pod that is already known, from this run or from pins of an earlier one, it brings it up to date instead: links that
// are attached stay, capture that is on stays on, and listeners are not made again (see EnsureListeners).
//
// A namespace is never exchanged for another: returns ErrOtherNetns, and touches nothing, while the pod's former one
// exists (Cleanup comes first) or when another pod holds this one.
func (d *Datapath) PreparePod(ctx context.Context, pod Pod) (*PodHandle, error) {
	if err := pod.Validate(); err != nil {
		return nil, err
	}
	if pod.Netns == nil {
		return nil, fmt.Errorf("prepare pod %s: Netns is not given: %w", pod.UID, ErrNetnsGone)
	}
	cookie, err := pod.Netns.Cookie()
	if err != nil {
		return nil, fmt.Errorf("prepare pod %s: %w", pod.UID, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.open {
		return nil, ErrNotOpen
	}
	h, err := d.handleLocked(pod.UID)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if h != nil && h.cookie != cookie {
		if err := h.lost(); err != nil {
			return nil, fmt.Errorf("prepare pod %s in the namespace with cookie %d: %w", pod.UID, cookie, err)
		}
		if err := h.cleanup(); err != nil {
			return nil, fmt.Errorf("clean up former namespace of pod %s: %w", pod.UID, err)
		}
		delete(d.handles, pod.UID)
		h = nil
	}
	if holder := d.holderLocked(cookie); holder != "" && holder != pod.UID {
		return nil, fmt.Errorf("prepare pod %s: pod %s has the namespace with cookie %d: %w", pod.UID, holder, cookie, ErrOtherNetns)
	}
	fresh := h == nil
	if fresh {
		h = d.newHandleLocked(record{UID: pod.UID, Cookie: cookie, Netns: pod.Netns.ID(), Path: pod.Netns.Path()})
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := h.prepare(pod, fresh); err != nil {
		if fresh {
			err = errors.Join(err, h.cleanup())
		}
		return nil, fmt.Errorf("prepare pod %s: %w", pod.UID, err)
	}
	d.handles[pod.UID] = h
	return h, nil
}

// holderLocked is the pod that has the namespace, "" if none has.
func (d *Datapath) holderLocked(cookie uint64) string {
	for uid, h := range d.handles {
		h.mu.Lock()
		holds := !h.closed && h.cookie == cookie
		h.mu.Unlock()
		if holds {
			return uid
		}
	}
	return ""
}

// lost returns nil when the pod's namespace is gone, ErrOtherNetns when it is there.
func (h *PodHandle) lost() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch err := h.reopenLocked(); {
	case errors.Is(err, ErrNetnsGone):
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("its own has cookie %d: %w", h.cookie, ErrOtherNetns)
}

// reopenLocked finds the namespace of a recovered pod once more. Returns ErrNetnsGone if nothing leads to it.
func (h *PodHandle) reopenLocked() (err error) {
	if h.ns == nil {
		h.ns, err = h.rec.findNetns()
	}
	return err
}

// Netns opens the pod's network namespace, that with Cookie, once more; the caller closes it. Returns ErrNetnsGone if
// nothing leads to it any more.
func (h *PodHandle) Netns() (*netns.NetNS, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, fmt.Errorf("open namespace of pod %s: %w", h.uid, ErrNotOpen)
	}
	if err := h.reopenLocked(); err != nil {
		return nil, err
	}
	return h.ns.Dup()
}

func (d *Datapath) newHandleLocked(r record) *PodHandle {
	h := &PodHandle{cfg: d.cfg, uid: r.UID, cookie: r.Cookie, dir: d.podDir(r.UID), tables: d.tablesLocked(), rec: r,
		files: map[Kind]*os.File{}}
	if d.lookupSpec != nil {
		h.load = d.lookupLoaderLocked()
	}
	return h
}

// lookupLoader makes instances of the sk_lookup program from what is open now, so that it needs no lock later.
func (d *Datapath) lookupLoaderLocked() func(config, listeners *ebpf.Map) (*ebpf.Program, error) {
	pristine, opts := d.lookupSpec, d.loadOptionsLocked(d.lookupSpec)
	return func(config, listeners *ebpf.Map) (*ebpf.Program, error) {
		o := opts
		o.MapReplacements = stdmaps.Clone(opts.MapReplacements)
		o.MapReplacements[mapConfig], o.MapReplacements[mapListeners] = config, listeners
		coll, err := ebpf.NewCollectionWithOptions(pristine.Copy(), o)
		if err != nil {
			return nil, fmt.Errorf("load sk_lookup program: %w", err)
		}
		defer coll.Close()
		return coll.DetachProgram(progLookup), nil
	}
}

func (h *PodHandle) prepare(pod Pod, fresh bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ns == nil {
		ns, err := pod.Netns.Dup()
		if err != nil {
			return err
		}
		h.ns = ns
	}
	if err := os.MkdirAll(h.dir, 0o700); err != nil {
		return fmt.Errorf("make pin directory: %w", err)
	}
	if err := h.openMapsLocked(); err != nil {
		return err
	}
	if err := h.updateLocked(pod); err != nil {
		return err
	}
	if fresh {
		return h.ensureListenersLocked()
	}
	return nil
}

// openMapsLocked adopts or creates the pod's own maps.
func (h *PodHandle) openMapsLocked() (err error) {
	if h.config == nil {
		spec := &ebpf.MapSpec{Name: mapConfig, Type: ebpf.Array, KeySize: 4, ValueSize: uint32(binary.Size(types.BPFMeshPod{})), MaxEntries: 1}
		if h.config, err = adoptMap(filepath.Join(h.dir, mapConfig), spec); err != nil {
			return err
		}
	}
	if h.listeners == nil {
		spec := &ebpf.MapSpec{Name: mapListeners, Type: ebpf.SockMap, KeySize: 4, ValueSize: 8, MaxEntries: uint32(types.BPFMeshListenerMESH_LISTENER_COUNT)}
		h.listeners, err = adoptMap(filepath.Join(h.dir, mapListeners), spec)
	}
	return err
}

// UpdateConfig brings addresses, ports, exclusions and probes up to date; pod.Netns is not looked at. Connections that
// are already established keep their way.
func (h *PodHandle) UpdateConfig(pod Pod) error {
	if err := pod.Validate(); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.usableLocked(); err != nil {
		return fmt.Errorf("update pod %s: %w", h.uid, err)
	}
	if err := h.updateLocked(pod); err != nil {
		return fmt.Errorf("update pod %s: %w", h.uid, err)
	}
	return nil
}

func (h *PodHandle) updateLocked(pod Pod) error {
	if tunnel := pod.tunnelPort(h.cfg); !slices.Equal(h.rec.IPs, pod.IPs) || h.rec.Tunnel != tunnel {
		if h.rec.Sysctls != nil { // routes name the addresses
			if err := h.cfg.removeRoutingOf(h.ns, h.rec.IPs, pod.IPs); err != nil {
				return err
			}
		}
		h.rec.IPs, h.rec.Tunnel = slices.Clone(pod.IPs), tunnel
		if h.rec.Sysctls != nil {
			if err := h.rec.write(h.dir); err != nil {
				return err
			}
		}
	}
	if err := h.applyNetworkLocked(); err != nil {
		return err
	}
	return h.writeTablesLocked(pod)
}

// writeTablesLocked writes exclusions before the pod's own entry, so that no connect sees the pod without them. What may
// have been written is remembered first: an error, of a full map say, leaves nothing that Cleanup does not know.
func (h *PodHandle) writeTablesLocked(pod Pod) error {
	v := pod.value(h.cookie, h.cfg)
	old, _, err := h.tables.pods.Lookup(h.cookie)
	if err != nil {
		return err
	}
	const capture, only = uint32(types.BPFMeshPodFlagsMESH_POD_CAPTURE_OUT), uint32(types.BPFMeshPodFlagsMESH_POD_INCLUDE_ONLY)
	if old.Flags&only != 0 && v.Flags&only == 0 { // before the prefixes go, or nothing would be captured meanwhile
		old.Flags &^= only
		if err := h.tables.pods.Update(h.cookie, old); err != nil {
			return err
		}
	}
	ports, cidrs := pod.portEntries(h.cookie), pod.cidrEntries(h.cookie)
	oldPorts, oldCIDRs := h.ports, h.cidrs
	h.ports = maps.Pending(oldPorts, ports)
	if _, _, err := h.tables.ports.Apply(oldPorts, ports); err != nil {
		return err
	}
	h.ports = ports
	h.cidrs = maps.Pending(oldCIDRs, cidrs)
	if _, _, err := h.tables.cidrs.Apply(oldCIDRs, cidrs); err != nil {
		return err
	}
	h.cidrs = cidrs
	if _, ok, err := h.tables.usage.Lookup(h.cookie); err != nil {
		return err
	} else if !ok {
		if err := h.tables.usage.Update(h.cookie, 0); err != nil {
			return err
		}
	}
	v.Flags |= old.Flags & capture
	if err := h.config.Put(uint32(0), v); err != nil {
		return fmt.Errorf("write %s: %w", mapConfig, err)
	}
	return h.tables.pods.Update(h.cookie, v)
}

func (h *PodHandle) usableLocked() error {
	switch {
	case h.closed || h.tables == nil:
		return ErrNotOpen
	case h.ns == nil:
		return ErrNetnsGone
	}
	return nil
}

// UID is the pod's.
func (h *PodHandle) UID() string { return h.uid }

// Cookie is the number of the pod's network namespace.
func (h *PodHandle) Cookie() uint64 { return h.cookie }

// AttachInbound puts the sk_lookup program onto the pod's namespace: from now on new connections to the pod go to its
// listeners. If an earlier run's link is pinned its program is replaced by this build's.
func (h *PodHandle) AttachInbound() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.usableLocked(); err != nil {
		return fmt.Errorf("attach inbound of pod %s: %w", h.uid, err)
	}
	if err := h.attachLocked(); err != nil {
		return fmt.Errorf("attach inbound of pod %s: %w", h.uid, err)
	}
	return nil
}

func (h *PodHandle) attachLocked() error {
	if h.link != nil && h.current {
		return nil
	}
	prog, err := h.load(h.config, h.listeners)
	if err != nil {
		return err
	}
	defer prog.Close()
	if h.link != nil {
		err := h.link.Update(prog)
		h.current = err == nil
		return err
	}
	l, err := link.AttachNetNs(h.ns.FD(), prog)
	if err != nil {
		return err
	}
	if err := l.Pin(filepath.Join(h.dir, progLookup)); err != nil {
		_ = l.Close()
		return fmt.Errorf("pin link: %w", err)
	}
	h.link, h.current = l, true
	return nil
}

// InboundAttached reports whether the pod's namespace has the sk_lookup program.
func (h *PodHandle) InboundAttached() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.link != nil
}

// DetachInbound takes the program off: new connections reach the application directly.
func (h *PodHandle) DetachInbound() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.detachLocked()
}

func (h *PodHandle) detachLocked() error {
	if h.link == nil {
		return nil
	}
	if err := h.link.Close(); err != nil {
		return fmt.Errorf("close link of pod %s: %w", h.uid, err)
	}
	h.link, h.current = nil, false
	return dropLink(filepath.Join(h.dir, progLookup))
}

// CaptureOutbound switches the capture of new outbound connections.
func (h *PodHandle) CaptureOutbound(on bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || h.tables == nil {
		return fmt.Errorf("capture pod %s: %w", h.uid, ErrNotOpen)
	}
	v, ok, err := h.tables.pods.Lookup(h.cookie)
	if err != nil {
		return err
	}
	if !ok {
		if on {
			return fmt.Errorf("capture pod %s: it is not prepared", h.uid)
		}
		return nil
	}
	v.Flags &^= uint32(types.BPFMeshPodFlagsMESH_POD_CAPTURE_OUT)
	if on {
		v.Flags |= uint32(types.BPFMeshPodFlagsMESH_POD_CAPTURE_OUT)
	}
	return h.tables.pods.Update(h.cookie, v)
}

// OutboundCaptured reports whether new outbound connections are captured.
func (h *PodHandle) OutboundCaptured() (bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || h.tables == nil {
		return false, ErrNotOpen
	}
	v, _, err := h.tables.pods.Lookup(h.cookie)
	return v.Flags&uint32(types.BPFMeshPodFlagsMESH_POD_CAPTURE_OUT) != 0, err
}
