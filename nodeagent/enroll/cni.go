package enroll

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/undermesh/undermesh/nodeagent/netns"
	"github.com/undermesh/undermesh/nodeagent/zds"
)

// Attachment is a sandbox as the CNI plugin describes it.
type Attachment struct {
	Namespace, Name string // of the pod
	UID             string // "" when the runtime does not tell it
	ContainerID     string
	Netns           string // path on the node
	IPs             []netip.Addr
}

// proxyWait bounds how long Add waits for a ztunnel: one that is being replaced is back within it.
const proxyWait = 10 * time.Second

// cleanupTime bounds the way back after a failed Add and the wait of Del.
const cleanupTime = 2 * time.Second

// Add enrols a pod that is being made, if it belongs to the mesh, and returns when it is captured in both directions.
// On error nothing of the mesh is left in it; the error names pod and cause. Returns ErrPodGone if the pod was deleted.
func (m *Manager) Add(ctx context.Context, a Attachment) (Decision, error) {
	d, err := m.add(ctx, a)
	if err != nil {
		return d, fmt.Errorf("enrol pod %s/%s: %w", a.Namespace, a.Name, err)
	}
	return d, nil
}

func (m *Manager) add(ctx context.Context, a Attachment) (Decision, error) {
	select {
	case <-m.recovered:
	case <-ctx.Done():
		return Decision{}, fmt.Errorf("node agent is not ready: %w", ctx.Err())
	}
	pod, ns, err := m.lookup(ctx, a)
	if err != nil {
		return Decision{}, err
	}
	d := Decide(ns, pod, m.cfg.Policy)
	for _, text := range d.Warnings {
		m.cfg.Log.Warn("label not understood", "pod", a.Namespace+"/"+a.Name, "cause", text)
	}
	if !d.Enrolled {
		return d, nil
	}
	if len(a.IPs) == 0 {
		return d, errors.New("the previous CNI plugin gave no address")
	}
	return d, m.attach(ctx, a, wish{pod: pod, decision: d})
}

// lookup finds the pod in the list, or reads it past the cache: a new pod may not be listed yet.
func (m *Manager) lookup(ctx context.Context, a Attachment) (*corev1.Pod, *corev1.Namespace, error) {
	if pods, namespaces, ok := m.cfg.Cluster.List(); ok {
		i := slices.IndexFunc(pods, func(p *corev1.Pod) bool { return p.Namespace == a.Namespace && p.Name == a.Name && a.owns(p) })
		if ns := namespaces[a.Namespace]; i >= 0 && ns != nil {
			return pods[i], ns, nil
		}
	}
	pod, ns, err := m.cfg.Cluster.Get(ctx, a.Namespace, a.Name)
	if err != nil {
		return nil, nil, err
	}
	if !a.owns(pod) {
		return nil, nil, fmt.Errorf("uid %s is not that of the pod now (%s): %w", a.UID, pod.UID, ErrPodGone)
	}
	return pod, ns, nil
}

// configHash is kubelet's UID of a static pod; the API's is that of its mirror.
const configHash = "kubernetes.io/config.hash"

func (a Attachment) owns(p *corev1.Pod) bool {
	return a.UID == "" || a.UID == string(p.UID) || a.UID == p.Annotations[configHash]
}

func (m *Manager) attach(ctx context.Context, a Attachment, w wish) error {
	p := m.machine(string(w.pod.UID))
	if err := p.lock(ctx); err != nil {
		return err
	}
	defer p.unlock()
	ns, err := netns.OpenPath(a.Netns)
	if err != nil {
		return err
	}
	if p.in(ns) { // the runtime asks again
		_ = ns.Close() // only a descriptor
	} else {
		if err := p.remove(ctx, true); err != nil { // of a former sandbox
			_ = ns.Close()
			return err
		}
		if err := p.open(ns, slices.Clone(a.IPs)); err != nil {
			return err
		}
	}
	p.mu.Lock()
	p.container, p.sandless = a.ContainerID, false
	p.mu.Unlock()
	p.set(w)
	if err = m.awaitProxy(ctx); err == nil {
		err = p.enrol(ctx, w, false)
	}
	if err == nil {
		p.poke() // what may come later: the annotation
		return nil
	}
	p.mu.Lock()
	p.sandless = true // the runtime removes the sandbox and tries again
	p.mu.Unlock()
	p.report(err)
	back, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	return errors.Join(err, p.remove(back, true))
}

// in reports whether ns is the pod's namespace already.
func (p *machine) in(ns *netns.NetNS) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ns != nil && p.ns.ID() == ns.ID()
}

// awaitProxy waits for a ztunnel that is on its way.
func (m *Manager) awaitProxy(ctx context.Context) error {
	deadline := time.NewTimer(proxyWait)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !m.cfg.Proxy.Connected() {
		select {
		case <-tick.C:
		case <-deadline.C:
			return zds.ErrNoZtunnel
		case <-ctx.Done():
			return errors.Join(zds.ErrNoZtunnel, ctx.Err())
		}
	}
	return nil
}

// Del takes a sandbox out; it waits a little and never fails. A sandbox that is not the pod's present one is ignored.
func (m *Manager) Del(ctx context.Context, a Attachment) {
	p := m.find(a)
	if p == nil || !p.isSandbox(a) {
		return
	}
	p.mu.Lock()
	p.sandless = true
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, cleanupTime)
	defer cancel()
	done := make(chan struct{})
	go func() { // ends: every step of remove is bounded by ctx
		defer close(done)
		if p.lock(ctx) != nil {
			p.poke() // it has to do with what is under way
			return
		}
		defer p.unlock()
		if err := p.remove(ctx, true); err != nil {
			p.log.Warn("removal will be tried again", "err", err)
		}
		p.poke()
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// find returns the machine of an attachment, nil if there is none.
func (m *Manager) find(a Attachment) *machine {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.pods[a.UID]; p != nil {
		return p
	}
	for _, p := range m.pods {
		p.mu.Lock()
		pod := p.want.pod
		p.mu.Unlock()
		if pod != nil && pod.Namespace == a.Namespace && pod.Name == a.Name && a.owns(pod) {
			return p
		}
	}
	return nil
}

// isSandbox reports whether a is the sandbox that the machine knows. After a restart of the agent it is known by its
// namespace only; a sandbox that cannot be told is not removed: the pod's end in the cluster removes it.
func (p *machine) isSandbox(a Attachment) bool {
	p.mu.Lock()
	container, ns := p.container, p.ns
	p.mu.Unlock()
	if container != "" || ns == nil {
		return container == a.ContainerID
	}
	other, err := netns.OpenPath(a.Netns)
	if err != nil {
		return false
	}
	defer other.Close()
	return other.ID() == ns.ID()
}

// Check reports whether the pod is captured in both directions, if it should be. Returns ErrNotEnrolled if not.
func (m *Manager) Check(ctx context.Context, a Attachment) error {
	pod, ns, err := m.lookup(ctx, a)
	if err != nil {
		return fmt.Errorf("check pod %s/%s: %w", a.Namespace, a.Name, err)
	}
	if !Decide(ns, pod, m.cfg.Policy).Enrolled {
		return nil
	}
	p := m.find(a)
	if p == nil {
		return fmt.Errorf("check pod %s/%s: %w", a.Namespace, a.Name, ErrNotEnrolled)
	}
	p.mu.Lock()
	h := p.handle
	p.mu.Unlock()
	if h == nil {
		return fmt.Errorf("check pod %s/%s: %w", a.Namespace, a.Name, ErrNotEnrolled)
	}
	in, out, err := h.State()
	if err == nil && (!in || !out) {
		err = fmt.Errorf("inbound %t, outbound %t: %w", in, out, ErrNotEnrolled)
	}
	if err != nil {
		return fmt.Errorf("check pod %s/%s: %w", a.Namespace, a.Name, err)
	}
	return nil
}

// GC removes sandboxes that the CNI told of and that are not among the valid container IDs.
func (m *Manager) GC(ctx context.Context, valid []string) {
	m.mu.Lock()
	all := slices.Collect(maps.Values(m.pods))
	m.mu.Unlock()
	for _, p := range all {
		p.mu.Lock()
		container := p.container
		p.mu.Unlock()
		if container != "" && !slices.Contains(valid, container) {
			m.Del(ctx, Attachment{UID: p.uid, ContainerID: container})
		}
	}
}
