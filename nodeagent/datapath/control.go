package datapath

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/undermesh/undermesh/bpf/types"
	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/nodeagent/maps"
)

// Exempt lets the processes of a cgroup, and of all below it, connect without being captured: ztunnel's. It must be
// written before the first connect of the process. The entry outlives the agent. Source of the id: the inode of the
// cgroup's directory.
func (d *Datapath) Exempt(cgroupID uint64) error {
	t, err := d.exemptTable()
	if err != nil {
		return err
	}
	return t.Update(cgroupID, 1)
}

// Unexempt takes the permission back; an absent one is no error.
func (d *Datapath) Unexempt(cgroupID uint64) error {
	t, err := d.exemptTable()
	if err != nil {
		return err
	}
	return t.Delete(cgroupID)
}

// Exempted lists the exempt cgroups.
func (d *Datapath) Exempted() ([]uint64, error) {
	t, err := d.exemptTable()
	if err != nil {
		return nil, err
	}
	all, err := t.All()
	if err != nil {
		return nil, err
	}
	ids := make([]uint64, 0, len(all))
	for id := range all {
		ids = append(ids, id)
	}
	return ids, nil
}

func (d *Datapath) exemptTable() (maps.Table[uint64, uint32], error) {
	m, err := d.nodeMap(mapExempt)
	if err != nil {
		return maps.Table[uint64, uint32]{}, err
	}
	return maps.NewTable[uint64, uint32](mapExempt, m), nil
}

func (d *Datapath) nodeMap(name string) (*ebpf.Map, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.open {
		return nil, ErrNotOpen
	}
	return d.maps[name], nil
}

// SetKubelet names the cgroup of kubelet's own processes and the namespace cookie of the node, where its probes come
// from. A cgroup of 0 takes it back. To be called again when the cgroup was made anew. The group is watched before its
// probes pass, so after an error none do.
func (d *Datapath) SetKubelet(cgroupID, hostNetnsCookie uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.open {
		return ErrNotOpen
	}
	usage := maps.NewTable[uint64, uint32](mapUsage, d.maps[mapUsage])
	if _, ok, err := usage.Lookup(hostNetnsCookie); err != nil {
		return err
	} else if !ok {
		if err := usage.Update(hostNetnsCookie, 0); err != nil {
			return err
		}
	}
	guardErr := d.guardKubeletLocked(cgroupID)
	if guardErr != nil {
		cgroupID = 0
	}
	t := d.nodeTableLocked()
	n, _, err := t.Lookup(0)
	if err == nil {
		n.HostCookie, n.KubeletCgroup = hostNetnsCookie, cgroupID
		err = t.Update(0, n)
	}
	if guardErr != nil {
		guardErr = fmt.Errorf("attach %s to kubelet's cgroup: %w", hookKubelet, guardErr)
	}
	return errors.Join(err, guardErr)
}

// guardKubeletLocked moves the program that bounds what kubelet sends to the cgroup; 0 takes it off.
func (d *Datapath) guardKubeletLocked(cgroupID uint64) error {
	path := filepath.Join(d.linksDir(), hookKubelet)
	if cgroupID == 0 {
		err := errors.Join(closeLink(d.kubeletLink), dropLink(path))
		d.kubeletLink = nil
		return err
	}
	group, err := openCgroup(d.cfg.CgroupRoot, cgroupID)
	if err != nil {
		return err
	}
	defer group.Close()
	l, err := attachHook(path, int(group.Fd()), d.kubelet, ebpf.AttachCGroupInetEgress)
	if err != nil {
		return err
	}
	err = closeLink(d.kubeletLink)
	d.kubeletLink = l
	return err
}

func closeLink(l link.Link) error {
	if l == nil {
		return nil
	}
	return l.Close()
}

// openCgroup opens the group whose directory below root has the inode id. Returns fs.ErrNotExist if there is none.
func openCgroup(root string, id uint64) (*os.File, error) {
	found := ""
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return ignore(err, fs.ErrNotExist) // removed while we walk
		}
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil && st.Ino == id {
			found = path
			return filepath.SkipAll
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("search cgroup %d: %w", id, err)
	}
	if found == "" {
		return nil, fmt.Errorf("search cgroup %d below %s: %w", id, root, fs.ErrNotExist)
	}
	f, err := os.Open(found)
	if err != nil {
		return nil, fmt.Errorf("open cgroup: %w", err)
	}
	return f, nil
}

// Reason is why the kernel side refused a connection, or let a flow lose its standing. Its numbers are enum mesh_reason.
type Reason = reason.Reason

// Event is what the kernel side counts beside refusals.
type Event uint32

var eventNames = [types.BPFMeshEventMESH_EVENT_COUNT]string{
	types.BPFMeshEventMESH_EVENT_CAPTURED:      "captured",
	types.BPFMeshEventMESH_EVENT_STRIPPED:      "stripped",
	types.BPFMeshEventMESH_EVENT_EXEMPT:        "exempt",
	types.BPFMeshEventMESH_EVENT_FLOW_ADDED:    "flow_added",
	types.BPFMeshEventMESH_EVENT_FLOW_CONSUMED: "flow_consumed",
	types.BPFMeshEventMESH_EVENT_FLOW_CLOSED:   "flow_closed",
	types.BPFMeshEventMESH_EVENT_OUTBOUND:      "outbound",
	types.BPFMeshEventMESH_EVENT_INBOUND:       "inbound",
	types.BPFMeshEventMESH_EVENT_TUNNEL:        "tunnel",
	types.BPFMeshEventMESH_EVENT_PROBE:         "probe",
	types.BPFMeshEventMESH_EVENT_PROBE_PASSED:  "probe_passed",
	types.BPFMeshEventMESH_EVENT_LEG_PASSED:    "leg_passed",
	types.BPFMeshEventMESH_EVENT_OWN_PASSED:    "own_passed",
	types.BPFMeshEventMESH_EVENT_EXCLUDED:      "excluded",
	types.BPFMeshEventMESH_EVENT_DECISION_LOST: "decision_lost",
}

// String is the name used in metric labels.
func (e Event) String() string {
	if int(e) < len(eventNames) {
		return eventNames[e]
	}
	return fmt.Sprintf("event_%d", uint32(e))
}

// Stats are counters since the maps were created; they outlive the agent.
type Stats struct {
	Reasons map[Reason]uint64 // refusals, and flows that lost their standing; only those that occurred
	Events  map[string]uint64 // by the name of the Event; every one
}

// Stats reads the counters.
func (d *Datapath) Stats() (Stats, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.open {
		return Stats{}, ErrNotOpen
	}
	s := Stats{Reasons: map[Reason]uint64{}, Events: map[string]uint64{}}
	for i := range uint32(types.BPFMeshReasonMESH_REASON_COUNT) {
		n, err := total(d.maps[mapReasons], i)
		if err != nil {
			return s, err
		}
		if n > 0 {
			s.Reasons[Reason(i)] = n
		}
	}
	for i := range uint32(types.BPFMeshEventMESH_EVENT_COUNT) {
		n, err := total(d.maps[mapEvents], i)
		if err != nil {
			return s, err
		}
		s.Events[Event(i).String()] = n
	}
	return s, nil
}

func total(m *ebpf.Map, key uint32) (sum uint64, err error) {
	var each []uint64
	if err := m.Lookup(key, &each); err != nil {
		return 0, fmt.Errorf("read counter %d: %w", key, err)
	}
	for _, v := range each {
		sum += v
	}
	return sum, nil
}

// Layer is the hook that decided.
type Layer uint8

// String is the name used in logs.
func (l Layer) String() string {
	switch types.BPFMeshLayer(l) {
	case types.BPFMeshLayerMESH_LAYER_CONNECT:
		return "connect"
	case types.BPFMeshLayerMESH_LAYER_LOOKUP:
		return "sk_lookup"
	case types.BPFMeshLayerMESH_LAYER_SOCKOPS:
		return "sockops"
	case types.BPFMeshLayerMESH_LAYER_EGRESS:
		return "egress"
	}
	return fmt.Sprintf("layer_%d", uint8(l))
}

// Verdict is what was decided.
type Verdict uint8

// String is the name used in logs.
func (v Verdict) String() string {
	switch types.BPFMeshVerdict(v) {
	case types.BPFMeshVerdictMESH_VERDICT_REFUSE:
		return "refuse"
	case types.BPFMeshVerdictMESH_VERDICT_DROP:
		return "drop"
	case types.BPFMeshVerdictMESH_VERDICT_UNKNOWN:
		return "unknown_flow"
	}
	return fmt.Sprintf("verdict_%d", uint8(v))
}

// Decision is one record of the kernel side.
type Decision struct {
	Time       time.Duration // since boot, CLOCK_MONOTONIC
	Layer      Layer
	Verdict    Verdict
	Reason     Reason
	Policy     uint32 // 0: no policy took part
	Rule       uint32
	Generation uint64
	Src        netip.AddrPort // not valid where the kernel had not chosen it yet
	Dst        netip.AddrPort
	Cookie     uint64 // network namespace
	UID        string // the pod with that namespace; empty when there is none any more
	Detail     uint32 // the Kind of listener for LISTENER_MISSING and ASSIGN_FAILED, the port's bits for PROBE_PAYLOAD
}

// Decisions calls fn for each record until ctx ends, in order, on the caller's goroutine. One reader at a time: each
// record goes to one. Returns the cause of ctx's end, or the error of the ring buffer.
func (d *Datapath) Decisions(ctx context.Context, fn func(Decision)) error {
	m, err := d.nodeMap(mapDecisions)
	if err != nil {
		return err
	}
	r, err := ringbuf.NewReader(m)
	if err != nil {
		return fmt.Errorf("open ring buffer %s: %w", mapDecisions, err)
	}
	defer r.Close()
	defer context.AfterFunc(ctx, func() { _ = r.Close() })()
	var rec ringbuf.Record
	for {
		if err := r.ReadInto(&rec); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("read ring buffer %s: %w", mapDecisions, err)
		}
		dec, err := parseDecision(rec.RawSample)
		if err != nil {
			return err
		}
		dec.UID = d.uidOf(dec.Cookie)
		fn(dec)
	}
}

// parseDecision reads a struct mesh_decision.
func parseDecision(b []byte) (Decision, error) {
	var r types.BPFMeshDecision
	if _, err := binary.Decode(b, binary.NativeEndian, &r); err != nil {
		return Decision{}, fmt.Errorf("decode decision of %d bytes: %w", len(b), err)
	}
	dec := Decision{Time: time.Duration(r.Time), Layer: Layer(r.Layer), Verdict: Verdict(r.Verdict), Reason: Reason(r.Reason),
		Policy: r.Policy, Rule: r.Rule, Generation: r.Generation, Cookie: r.Cookie, Detail: r.Detail,
		Dst: netip.AddrPortFrom(netip.AddrFrom16(r.Daddr).Unmap(), r.Dport)}
	if r.Saddr != [16]uint8{} {
		dec.Src = netip.AddrPortFrom(netip.AddrFrom16(r.Saddr).Unmap(), r.Sport)
	}
	return dec, nil
}

func (d *Datapath) uidOf(cookie uint64) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	for uid, h := range d.handles {
		if h.cookie == cookie {
			return uid
		}
	}
	return ""
}

// Uninstall removes everything: capture first, then each pod's state, then maps, pins and the mounts of ours. It needs
// no Open, and works on pins of another layout. Pods whose namespaces are gone cost nothing. It can be repeated.
func (d *Datapath) Uninstall(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if ok, err := isFS(d.cfg.BPFFS, unix.BPF_FS_MAGIC); err != nil || !ok {
		d.closeLocked()
		return errors.Join(ignore(err, fs.ErrNotExist), unmountOurs(d.cfg.RunDir, d.cfg.BPFFS))
	}
	var errs []error
	entries, err := os.ReadDir(d.linksDir())
	errs = append(errs, ignore(err, fs.ErrNotExist))
	for _, e := range entries {
		errs = append(errs, dropLink(filepath.Join(d.linksDir(), e.Name())))
	}
	handles, err := d.podsLocked()
	errs = append(errs, err)
	for _, h := range handles {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		errs = append(errs, h.cleanup())
	}
	d.closeLocked()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("uninstall datapath: %w", err) // pins stay, to try again
	}
	if err := os.RemoveAll(d.cfg.PinDir); err != nil {
		return fmt.Errorf("remove pins: %w", err)
	}
	return unmountOurs(d.cfg.RunDir, d.cfg.BPFFS)
}

// dropLink detaches the link pinned at path, whoever else holds it, and removes the pin.
func dropLink(path string) error {
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open link %s: %w", path, err)
	}
	defer l.Close()
	if err := errors.Join(l.Detach(), l.Unpin()); err != nil {
		return fmt.Errorf("detach link %s: %w", path, err)
	}
	return nil
}
