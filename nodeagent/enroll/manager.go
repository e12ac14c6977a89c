package enroll

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/undermesh/undermesh/cni/wire"
	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/nodeagent/zds"
)

// Manager drives the pods of one node. Safe for concurrent use; CNI commands are accepted once Recovered is closed.
type Manager struct {
	cfg       Config
	recovered chan struct{}

	mu     sync.Mutex // protects below; order: Manager.mu before machine.mu
	ctx    context.Context
	group  sync.WaitGroup
	pods   map[string]*machine
	digest wire.Digest
}

// New returns a manager; Run starts it.
func New(cfg Config) *Manager {
	return &Manager{cfg: cfg.withDefaults(), recovered: make(chan struct{}), pods: map[string]*machine{}}
}

// Recovered is closed when the cluster's objects are known and every pod that the kernel knows from an earlier run is
// up to date or cleaned up: only then may ztunnel be given a snapshot.
func (m *Manager) Recovered() <-chan struct{} { return m.recovered }

// Run works until ctx ends; it leaves everything captured as it is. An error means that the kernel's state could not be
// read at the start.
func (m *Manager) Run(ctx context.Context) error {
	known, err := m.cfg.Datapath.Known()
	if err != nil {
		return fmt.Errorf("recover pods: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m.mu.Lock()
	m.ctx = ctx
	m.mu.Unlock()
	defer func() {
		cancel()
		m.group.Wait()
		m.release()
	}()
	m.group.Go(func() { m.guard(ctx) })
	changed, stop := m.cfg.Cluster.Watch()
	defer stop()
	tick := time.NewTicker(10 * m.cfg.Poll)
	defer tick.Stop()
	first := true
	for {
		if pods, namespaces, ok := m.cfg.Cluster.List(); ok {
			if first {
				m.recover(ctx, pods, namespaces, known)
				close(m.recovered)
				first = false
			}
			m.sync(ctx, pods, namespaces)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-tick.C:
		}
	}
}

// release closes the descriptors of all pods at the end.
func (m *Manager) release() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.pods {
		p.forget()
	}
}

// machine returns the pod's machine and starts one if there is none.
func (m *Manager) machine(uid string) *machine {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.pods[uid]; p != nil {
		return p
	}
	p := m.newMachine(uid)
	m.startLocked(p)
	return p
}

func (m *Manager) newMachine(uid string) *machine {
	now := time.Now()
	return &machine{m: m, uid: uid, log: m.cfg.Log.With("uid", uid), wake: make(chan struct{}, 1), op: make(chan struct{}, 1), born: now,
		status: Status{UID: uid, Step: StepNone, Since: now}}
}

func (m *Manager) startLocked(p *machine) {
	m.pods[p.uid] = p
	ctx := m.ctx
	m.group.Go(func() {
		p.run(ctx)
		if p.finished() {
			m.mu.Lock()
			if m.pods[p.uid] == p {
				delete(m.pods, p.uid)
			}
			m.mu.Unlock()
			p.forget()
		}
	})
}

// recover brings back what an earlier run left: pods that still belong to the mesh are opened again before anybody is
// told of them, pods that are gone are cleaned up. What fails is tried again by the pod's machine.
func (m *Manager) recover(ctx context.Context, pods []*corev1.Pod, namespaces map[string]*corev1.Namespace, known map[string]Handle) {
	byUID := index(pods)
	for uid, h := range known {
		p := m.newMachine(uid)
		p.handle = h
		p.listed = true
		pod := byUID[uid]
		if pod == nil {
			p.want = wish{gone: true}
		} else {
			w := m.wish(pod, namespaces)
			p.set(w)
			if !w.gone { // also one that leaves: its connections go on
				m.reopen(ctx, p, w)
			}
		}
		m.mu.Lock()
		m.startLocked(p)
		m.mu.Unlock()
	}
	m.cfg.Log.Info("pods recovered", "pods", len(known))
}

// reopen prepares a recovered pod; it is captured already.
func (m *Manager) reopen(ctx context.Context, p *machine, w wish) {
	ok, err := p.find(w)
	if err == nil && ok {
		_, err = p.prepare(ctx, w)
	}
	if err != nil {
		p.log.Warn("pod not recovered at once", "err", err)
	}
}

func index(pods []*corev1.Pod) map[string]*corev1.Pod {
	out := make(map[string]*corev1.Pod, len(pods))
	for _, p := range pods {
		out[string(p.UID)] = p
	}
	return out
}

func (m *Manager) wish(pod *corev1.Pod, namespaces map[string]*corev1.Namespace) wish {
	ns := namespaces[pod.Namespace]
	if ns == nil { // deleted, or not listed yet: nothing can be decided, so nothing changes to the worse
		return wish{pod: pod, hold: true, decision: Decision{Why: "namespace " + pod.Namespace + " is not known"}}
	}
	finished := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	return wish{pod: pod, decision: Decide(ns, pod, m.cfg.Policy), gone: finished}
}

// sync gives every machine its wish.
func (m *Manager) sync(ctx context.Context, pods []*corev1.Pod, namespaces map[string]*corev1.Namespace) {
	byUID := index(pods)
	enrolled := map[string]bool{}
	for uid, pod := range byUID {
		w := m.wish(pod, namespaces)
		m.mu.Lock()
		p := m.pods[uid]
		stale := pod.Annotations[api.AnnotationRedirection] != "" && !w.hold // of an installation that is gone
		if p == nil && !w.gone && (w.decision.Enrolled || stale || len(w.decision.Warnings) > 0) {
			p = m.newMachine(uid)
			m.startLocked(p)
		}
		m.mu.Unlock()
		if w.decision.Enrolled {
			enrolled[pod.Namespace] = true
		}
		if p == nil {
			continue
		}
		p.mu.Lock()
		p.listed = true
		p.mu.Unlock()
		p.set(w)
		for _, text := range w.decision.Warnings {
			p.say(pod, corev1.EventTypeWarning, "MeshLabelUnknown", text)
		}
	}
	m.retire(ctx, byUID)
	m.writeDigest(namespaces, enrolled)
}

// retire marks pods that the cluster does not list any more. A pod that was added before the list had it is asked for.
func (m *Manager) retire(ctx context.Context, listed map[string]*corev1.Pod) {
	const grace = 10 * time.Second
	m.mu.Lock()
	all := slices.Collect(maps.Values(m.pods))
	m.mu.Unlock()
	for _, p := range all {
		if listed[p.uid] != nil {
			continue
		}
		p.mu.Lock()
		seen, born, pod := p.listed, p.born, p.want.pod
		p.mu.Unlock()
		if !seen && time.Since(born) < grace {
			continue
		}
		if !seen && pod != nil {
			if got, _, err := m.cfg.Cluster.Get(ctx, pod.Namespace, pod.Name); !errors.Is(err, ErrPodGone) && (err != nil || string(got.UID) == p.uid) {
				continue
			}
		}
		p.set(wish{gone: true})
	}
}

// writeDigest leaves for the plugin what is known of namespaces. One without labels is open until a pod of it on this node
// is enrolled: a pod's own labels are not known to a plugin without an agent, which enrols such a pod when it is back.
func (m *Manager) writeDigest(namespaces map[string]*corev1.Namespace, enrolled map[string]bool) {
	if m.cfg.Digest == "" {
		return
	}
	d := wire.Digest{Version: wire.DigestVersion, Open: []string{}, Enrolled: []string{}}
	for _, name := range slices.Sorted(maps.Keys(namespaces)) {
		if NamespaceOpen(namespaces[name], m.cfg.Policy) && !enrolled[name] {
			d.Open = append(d.Open, name)
		} else {
			d.Enrolled = append(d.Enrolled, name)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.digest.Version != 0 && slices.Equal(m.digest.Open, d.Open) && slices.Equal(m.digest.Enrolled, d.Enrolled) {
		return
	}
	if err := wire.WriteDigest(m.cfg.Digest, d); err != nil {
		// What the former one calls open may be in the mesh now. Without one every pod waits; removing works on a full disk.
		if gone := os.Remove(m.cfg.Digest); gone != nil && !errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, gone)
		}
		m.cfg.Log.Error("digest for the CNI plugin not written; without the agent no pod would start", "err", err)
		m.digest = wire.Digest{}
		return
	}
	m.digest = d
}

// Status lists the pods that have or had to do with the mesh, by namespace and name.
func (m *Manager) Status() []Status {
	m.mu.Lock()
	all := slices.Collect(maps.Values(m.pods))
	m.mu.Unlock()
	out := make([]Status, 0, len(all))
	for _, p := range all {
		p.mu.Lock()
		out = append(out, p.status)
		p.mu.Unlock()
	}
	slices.SortFunc(out, func(a, b Status) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name), strings.Compare(a.UID, b.UID))
	})
	return out
}

// PodName returns namespace/name of a pod, "" when it is not known.
func (m *Manager) PodName(uid string) string {
	m.mu.Lock()
	p := m.pods[uid]
	m.mu.Unlock()
	if p == nil {
		return ""
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status.Namespace + "/" + p.status.Name
}

// Snapshot returns every pod that ztunnel has to serve, also those that are leaving and still have connections. For
// zds.ServerConfig.
func (m *Manager) Snapshot() []zds.Workload {
	m.mu.Lock()
	all := slices.Collect(maps.Values(m.pods))
	m.mu.Unlock()
	var out []zds.Workload
	for _, p := range all {
		if w, err := p.workload(); err == nil {
			out = append(out, w)
		}
	}
	return out
}

// OnHeld takes listeners that a ztunnel kept. For zds.ServerConfig.
func (m *Manager) OnHeld(uid string, l zds.Listeners) {
	m.mu.Lock()
	p := m.pods[uid]
	m.mu.Unlock()
	if p == nil {
		l.Close()
		return
	}
	p.mu.Lock()
	p.held.Close()
	p.held = l
	h := p.handle
	p.mu.Unlock()
	if h == nil {
		return
	}
	if err := p.adopt(h); err != nil {
		p.log.Warn("listeners not taken over", "err", err)
	}
	p.poke()
}

// OnAck records ztunnel's answer to a pod of a snapshot. For zds.ServerConfig.
func (m *Manager) OnAck(uid string, err error) {
	m.mu.Lock()
	p := m.pods[uid]
	m.mu.Unlock()
	if p == nil {
		return
	}
	p.mu.Lock()
	p.acked = err == nil
	p.mu.Unlock()
	p.poke()
}

// OnDisconnect makes every pod ask the ztunnel that is left, if any. For zds.ServerConfig.
func (m *Manager) OnDisconnect(zds.Peer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.pods {
		p.mu.Lock()
		p.acked = false
		p.mu.Unlock()
		p.poke()
	}
}
