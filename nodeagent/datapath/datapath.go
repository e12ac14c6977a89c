package datapath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/undermesh/undermesh/bpf/connect"
	"github.com/undermesh/undermesh/bpf/kubelet"
	"github.com/undermesh/undermesh/bpf/lookup"
	"github.com/undermesh/undermesh/bpf/sockops"
	"github.com/undermesh/undermesh/bpf/types"
	"github.com/undermesh/undermesh/nodeagent/maps"
)

// Names of the node's maps; each is also the name of its pin.
const (
	mapPods      = "mesh_pods"
	mapUsage     = "mesh_usage"
	mapFlows     = "mesh_flows"
	mapDials     = "mesh_dials"
	mapPorts     = "mesh_ports"
	mapExcluded  = "mesh_excluded"
	mapExempt    = "mesh_exempt"
	mapNode      = "mesh_node"
	mapReasons   = "mesh_reasons"
	mapEvents    = "mesh_events"
	mapDecisions = "mesh_decisions"
	mapMeta      = "mesh_meta"
	mapConfig    = "mesh_config"    // per pod
	mapListeners = "mesh_listeners" // per pod
	progLookup   = "mesh_lookup"
	hookKubelet  = "mesh_kubelet" // program and link on kubelet's own cgroup
)

// hook is a program of the node.
type hook struct {
	name   string
	attach ebpf.AttachType
}

// hooks are the programs attached once to the cgroup.
var hooks = []hook{
	// The keeper of the mark comes first, so that no socket is marked without it.
	{"mesh_setsockopt", ebpf.AttachCGroupSetsockopt},
	{"mesh_sockops", ebpf.AttachCGroupSockOps},
	{"mesh_connect4", ebpf.AttachCGroupInet4Connect},
	{"mesh_connect6", ebpf.AttachCGroupInet6Connect},
}

// Datapath is the node's side of the kernel. Safe for concurrent use after Open.
type Datapath struct {
	cfg Config

	mu          sync.Mutex // protects below; order: Datapath.mu before PodHandle.mu
	open        bool
	maps        map[string]*ebpf.Map
	links       []link.Link
	kubelet     *ebpf.Program // of hookKubelet
	kubeletLink link.Link     // nil: kubelet's cgroup is not known
	kernel      *btf.Spec
	lookupSpec  *ebpf.CollectionSpec
	handles     map[string]*PodHandle
}

// New makes a Datapath; it does nothing to the system.
func New(cfg Config) *Datapath {
	return &Datapath{cfg: cfg.withDefaults(), handles: map[string]*PodHandle{}}
}

func (d *Datapath) mapsDir() string          { return filepath.Join(d.cfg.PinDir, "maps") }
func (d *Datapath) linksDir() string         { return filepath.Join(d.cfg.PinDir, "links") }
func (d *Datapath) podsDir() string          { return filepath.Join(d.cfg.PinDir, "pods") }
func (d *Datapath) podDir(uid string) string { return filepath.Join(d.podsDir(), uid) }

// Open mounts what is missing, probes the kernel, and loads the programs: onto the pinned maps and links of an earlier
// run where there are some. Returns ErrLayout if those have another layout, ErrUnsupported if the kernel lacks
// something. After an error nothing is held open; what was pinned before stays in force.
func (d *Datapath) Open(ctx context.Context) error {
	if err := d.cfg.Validate(); err != nil {
		return err
	}
	if err := probe(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open {
		return nil
	}
	if err := d.openLocked(ctx); err != nil {
		d.closeLocked()
		return err
	}
	d.open = true
	return nil
}

func (d *Datapath) openLocked(ctx context.Context) error {
	if err := ensureBPFFS(d.cfg.BPFFS, d.cfg.RunDir); err != nil {
		return err
	}
	if d.cfg.CgroupRoot == "" {
		root, err := cgroup2Root(d.cfg.RunDir)
		if err != nil {
			return err
		}
		d.cfg.CgroupRoot = root
	}
	for _, dir := range []string{d.cfg.PinDir, d.mapsDir(), d.linksDir(), d.podsDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make pin directory: %w", err)
		}
	}
	connectSpec, err := connect.LoadConnect()
	if err != nil {
		return fmt.Errorf("parse connect programs: %w", err)
	}
	sockopsSpec, err := sockops.LoadSockops()
	if err != nil {
		return fmt.Errorf("parse sockops program: %w", err)
	}
	kubeletSpec, err := kubelet.LoadKubelet()
	if err != nil {
		return fmt.Errorf("parse kubelet program: %w", err)
	}
	if d.lookupSpec, err = lookup.LoadLookup(); err != nil {
		return fmt.Errorf("parse sk_lookup program: %w", err)
	}
	if d.kernel, err = btf.LoadKernelSpec(); err != nil {
		return fmt.Errorf("read kernel BTF: %w", err)
	}
	if err := d.openMapsLocked(connectSpec); err != nil {
		return err
	}
	if err := d.writeNodeLocked(); err != nil {
		return err
	}
	if err := d.pruneTablesLocked(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return d.attachLocked(connectSpec, sockopsSpec, kubeletSpec)
}

// openMapsLocked adopts or creates the node's maps.
func (d *Datapath) openMapsLocked(spec *ebpf.CollectionSpec) error {
	d.maps = map[string]*ebpf.Map{}
	meta, err := d.openMetaLocked(spec.Maps[mapMeta])
	if err != nil {
		return err
	}
	d.maps[mapMeta] = meta
	for name, s := range spec.Maps {
		if name == mapMeta {
			continue
		}
		m, err := adoptMap(filepath.Join(d.mapsDir(), name), s)
		if err != nil {
			return err
		}
		d.maps[name] = m
	}
	return nil
}

// adoptMap opens the map pinned at path, or creates and pins it.
func adoptMap(path string, spec *ebpf.MapSpec) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err == nil {
		if err := spec.Compatible(m); err != nil {
			_ = m.Close()
			return nil, fmt.Errorf("adopt map %s: %w", path, err)
		}
		return m, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open map %s: %w", path, err)
	}
	if m, err = ebpf.NewMap(spec); err != nil {
		return nil, fmt.Errorf("create map %s: %w", spec.Name, err)
	}
	if err := m.Pin(path); err != nil {
		_ = m.Close()
		return nil, fmt.Errorf("pin map %s: %w", path, err)
	}
	return m, nil
}

// openMetaLocked checks the layout before any other map is touched. A new mesh_meta is pinned before the other maps, so
// that pins without it are never ours.
func (d *Datapath) openMetaLocked(spec *ebpf.MapSpec) (*ebpf.Map, error) {
	path := filepath.Join(d.mapsDir(), mapMeta)
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err == nil {
		if err := checkMeta(m, d.cfg.Build); err != nil {
			_ = m.Close()
			return nil, fmt.Errorf("adopt %s: %w", d.cfg.PinDir, err)
		}
		return m, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open map %s: %w", path, err)
	}
	if rest, _ := os.ReadDir(d.mapsDir()); len(rest) > 0 {
		return nil, fmt.Errorf("adopt %s: map %s exists without %s: %w", d.cfg.PinDir, rest[0].Name(), mapMeta, ErrLayout)
	}
	if m, err = ebpf.NewMap(spec); err != nil {
		return nil, fmt.Errorf("create map %s: %w", mapMeta, err)
	}
	if err := errors.Join(m.Put(uint32(0), d.meta()), m.Pin(path)); err != nil {
		_ = m.Close()
		return nil, fmt.Errorf("pin map %s: %w", path, err)
	}
	return m, nil
}

func (d *Datapath) meta() types.BPFMeshMeta {
	v := types.BPFMeshMeta{Layout: uint32(types.BPFMeshLayoutMESH_LAYOUT_CURRENT)}
	copy(v.Build[:], d.cfg.Build)
	return v
}

func checkMeta(m *ebpf.Map, build string) error {
	var v types.BPFMeshMeta
	if err := m.Lookup(uint32(0), &v); err != nil {
		return fmt.Errorf("read %s: %w", mapMeta, err)
	}
	if v.Layout == uint32(types.BPFMeshLayoutMESH_LAYOUT_CURRENT) {
		return nil
	}
	return fmt.Errorf("pins have layout %d of build %s, this is layout %d of build %s: %w",
		v.Layout, cString(v.Build[:]), types.BPFMeshLayoutMESH_LAYOUT_CURRENT, build, ErrLayout)
}

func cString(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// writeNodeLocked brings the node's settings up to date and keeps what SetKubelet wrote.
func (d *Datapath) writeNodeLocked() error {
	t := d.nodeTableLocked()
	n, _, err := t.Lookup(0)
	if err != nil {
		return err
	}
	n.Mark, n.Mask, n.KubeletBudget = d.cfg.Mark, d.cfg.Mask, d.cfg.KubeletBudget
	return t.Update(0, n)
}

// pruneTablesLocked deletes entries of namespaces that are no pod's: what an agent left that died between the tables and
// the pod's own entry.
func (d *Datapath) pruneTablesLocked() error {
	t := d.tablesLocked()
	pods, err := t.pods.All()
	if err != nil {
		return err
	}
	known := map[[8]uint8]bool{}
	for cookie := range pods {
		known[cookieBytes(cookie)] = true
	}
	node, _, err := d.nodeTableLocked().Lookup(0)
	if err != nil {
		return err
	}
	_, err = t.ports.Prune(func(k types.BPFMeshPortKey, _ uint32) bool { return known[cookieBytes(k.Cookie)] })
	if err == nil {
		_, err = t.cidrs.Prune(func(k types.BPFMeshCidrKey, _ uint32) bool { return known[k.Cookie] })
	}
	known[cookieBytes(node.HostCookie)] = true // kubelet's flows
	for _, flows := range []maps.Table[types.BPFMeshFlowKey, types.BPFMeshFlow]{t.flows, t.dials} {
		if err == nil {
			_, err = flows.Prune(func(_ types.BPFMeshFlowKey, f types.BPFMeshFlow) bool { return known[cookieBytes(f.Cookie)] })
		}
	}
	if err == nil {
		_, err = t.usage.Prune(func(cookie uint64, _ uint32) bool { return known[cookieBytes(cookie)] })
	}
	return err
}

func (d *Datapath) nodeTableLocked() maps.Table[uint32, types.BPFMeshNode] {
	return maps.NewTable[uint32, types.BPFMeshNode](mapNode, d.maps[mapNode])
}

// attachLocked loads the node's programs and attaches each, or updates its pinned link, so that no instant is without.
func (d *Datapath) attachLocked(specs ...*ebpf.CollectionSpec) error {
	cgroup, err := os.Open(d.cfg.CgroupRoot)
	if err != nil {
		return fmt.Errorf("open cgroup: %w", err)
	}
	defer cgroup.Close()
	progs := map[string]*ebpf.Program{}
	defer func() {
		for _, p := range progs {
			_ = p.Close() // the links hold them
		}
	}()
	for _, s := range specs {
		coll, err := ebpf.NewCollectionWithOptions(s, d.loadOptionsLocked(s))
		if err != nil {
			return fmt.Errorf("load programs: %w", err)
		}
		for name := range coll.Programs {
			progs[name] = coll.DetachProgram(name)
		}
		coll.Close()
	}
	for _, h := range hooks {
		l, err := attachHook(filepath.Join(d.linksDir(), h.name), int(cgroup.Fd()), progs[h.name], h.attach)
		if err != nil {
			return fmt.Errorf("attach %s to cgroup %s: %w", h.name, d.cfg.CgroupRoot, err)
		}
		d.links = append(d.links, l)
	}
	d.kubelet = progs[hookKubelet]
	delete(progs, hookKubelet) // for SetKubelet
	if err := d.keepKubeletLocked(); err != nil {
		return err
	}
	if err := d.dropOldHooks(); err != nil {
		return err
	}
	return d.maps[mapMeta].Put(uint32(0), d.meta())
}

// keepKubeletLocked brings this build's program to kubelet's cgroup as an earlier run knew it. If that group is gone
// kubelet is not known until SetKubelet.
func (d *Datapath) keepKubeletLocked() error {
	t := d.nodeTableLocked()
	n, _, err := t.Lookup(0)
	if err != nil {
		return err
	}
	err = d.guardKubeletLocked(n.KubeletCgroup)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	n.KubeletCgroup = 0
	return errors.Join(t.Update(0, n), d.guardKubeletLocked(0))
}

// dropOldHooks removes links that an earlier build had and this one has not.
func (d *Datapath) dropOldHooks() error {
	entries, err := os.ReadDir(d.linksDir())
	if err != nil {
		return fmt.Errorf("list pinned links: %w", err)
	}
	for _, e := range entries {
		if e.Name() == hookKubelet || slices.ContainsFunc(hooks, func(h hook) bool { return h.name == e.Name() }) {
			continue
		}
		if err := dropLink(filepath.Join(d.linksDir(), e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// loadOptionsLocked replaces the maps of spec that the node has.
func (d *Datapath) loadOptionsLocked(spec *ebpf.CollectionSpec) ebpf.CollectionOptions {
	o := ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{}}
	o.Programs.KernelTypes = d.kernel // parsed once: it takes longer than the rest of a load
	for name := range spec.Maps {
		if m := d.maps[name]; m != nil {
			o.MapReplacements[name] = m
		}
	}
	return o
}

// attachHook updates the link pinned at path to prog when it is on this cgroup; otherwise it makes a new one, and only
// then lets an old one go.
func attachHook(path string, cgroup int, prog *ebpf.Program, attach ebpf.AttachType) (link.Link, error) {
	old, err := link.LoadPinnedLink(path, nil)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open link %s: %w", path, err)
	}
	if old != nil {
		on, err := onCgroup(old, cgroup)
		if err == nil && on {
			if err = old.Update(prog); err == nil {
				return old, nil
			}
		}
		if err != nil {
			_ = old.Close()
			return nil, fmt.Errorf("update link %s: %w", path, err)
		}
	}
	l, err := link.AttachRawLink(link.RawLinkOptions{Target: cgroup, Program: prog, Attach: attach})
	if err != nil {
		return nil, err
	}
	if old != nil {
		err = errors.Join(old.Unpin(), old.Close())
	}
	if err = errors.Join(err, l.Pin(path)); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("pin link %s: %w", path, err)
	}
	return l, nil
}

func onCgroup(l link.Link, cgroup int) (bool, error) {
	info, err := l.Info()
	if err != nil {
		return false, fmt.Errorf("inspect link: %w", err)
	}
	c := info.Cgroup()
	if c == nil {
		return false, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(cgroup, &st); err != nil {
		return false, fmt.Errorf("stat cgroup: %w", err)
	}
	return c.CgroupId == st.Ino, nil // of a cgroup that was removed it is 0
}

// Close lets go of every descriptor. Pins, and with them capture, stay.
func (d *Datapath) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closeLocked()
	return nil
}

func (d *Datapath) closeLocked() {
	for _, h := range d.handles {
		h.close()
	}
	for _, l := range d.links {
		_ = l.Close()
	}
	_ = closeLink(d.kubeletLink)
	_ = d.kubelet.Close() // nil is allowed
	for _, m := range d.maps {
		_ = m.Close()
	}
	d.handles, d.links, d.maps, d.open = map[string]*PodHandle{}, nil, nil, false
	d.kubelet, d.kubeletLink = nil, nil
}
