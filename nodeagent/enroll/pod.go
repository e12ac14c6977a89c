package enroll

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/nodeagent/netns"
	"github.com/undermesh/undermesh/nodeagent/zds"
	"github.com/undermesh/undermesh/nodeagent/zds/zdsapi"
)

// wish is what should become of a pod.
type wish struct {
	pod      *corev1.Pod // the newest known; nil when only the kernel knows the pod
	decision Decision
	gone     bool // the pod or its sandbox does not exist any more: clean up at once
	hold     bool // the namespace is not known: leave everything as it is
}

// machine is one pod's state machine. One goroutine drives it; CNI commands take turns with it by op.
type machine struct {
	m   *Manager
	uid string
	log *slog.Logger

	wake chan struct{} // buffered by one

	op chan struct{} // holds a token while somebody works on the pod; taken before mu

	mu        sync.Mutex // protects below
	want      wish
	addrs     []netip.Addr // as the CNI gave them; status has them later
	ns        *netns.NetNS
	nsFile    *os.File // the same, to be sent
	handle    Handle
	held      zds.Listeners // offered by a ztunnel, not yet adopted
	acked     bool
	noted     bool      // the annotation is written
	sandless  bool      // CNI DEL came: do not look for a namespace until the next ADD
	released  time.Time // zero unless un-enrolment waits for connections
	status    Status
	container string        // of the sandbox, when the CNI told it
	listed    bool          // the cluster's list had it once
	born      time.Time     // of the machine
	said      map[said]bool // events, so that they are not repeated
}

// set stores the wish and wakes the machine when it changed.
func (p *machine) set(w wish) {
	p.mu.Lock()
	changed := p.want.pod != w.pod || p.want.hold != w.hold || p.want.decision.Enrolled != w.decision.Enrolled || p.want.gone != w.gone
	if w.pod == nil {
		w.pod = p.want.pod
	}
	p.want = w
	p.status.Enrolled, p.status.Why = w.decision.Enrolled, w.decision.Why
	if w.pod != nil {
		p.status.Namespace, p.status.Name = w.pod.Namespace, w.pod.Name
		p.noted = w.pod.Annotations[api.AnnotationRedirection] == api.RedirectionEnabled
	}
	p.mu.Unlock()
	if changed {
		p.poke()
	}
}

func (p *machine) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// run drives the pod until it is gone and cleaned up.
func (p *machine) run(ctx context.Context) {
	pause := time.Duration(0)
	for {
		if p.lock(ctx) != nil {
			return
		}
		again, err := p.converge(ctx)
		p.unlock()
		if ctx.Err() != nil {
			return
		}
		if p.finished() {
			return
		}
		p.report(err)
		switch {
		case err != nil:
			pause = min(max(2*pause, p.m.cfg.RetryMin), p.m.cfg.RetryMax)
			again = pause
		default:
			pause = 0
		}
		if !p.sleep(ctx, again) {
			return
		}
	}
}

// lock takes the pod's turn unless ctx ends before.
func (p *machine) lock(ctx context.Context) error {
	select {
	case p.op <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for another step of the pod: %w", ctx.Err())
	}
}

func (p *machine) unlock() { <-p.op }

// sleep waits for d, or for a wake-up when d is 0; it returns false when ctx ended.
func (p *machine) sleep(ctx context.Context, d time.Duration) bool {
	var timer <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-ctx.Done():
		return false
	case <-p.wake:
	case <-timer:
	}
	return true
}

// finished reports whether nothing is left to be done for this pod, ever; the manager forgets it then.
func (p *machine) finished() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.want.gone && p.handle == nil
}

// step records how far the pod is.
func (p *machine) step(s Step) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.status.Step != s {
		p.status.Step, p.status.Since = s, time.Now()
		p.log.Info("pod step", "step", string(s), "pod", podName(p.want.pod))
	}
}

// podName is namespace/name, "" while only the kernel knows the pod.
func podName(pod *corev1.Pod) string {
	if pod == nil {
		return ""
	}
	return pod.Namespace + "/" + pod.Name
}

// report logs an outcome and tells the pod's owner when it is new.
func (p *machine) report(err error) {
	p.mu.Lock()
	text := ""
	if err != nil {
		text = shorten(err.Error())
	}
	changed := text != p.status.Err
	p.status.Err = text
	pod := p.want.pod
	p.mu.Unlock()
	if err == nil || !changed {
		return
	}
	p.log.Warn("pod step failed, will be tried again", "pod", podName(pod), "err", text)
	p.say(pod, corev1.EventTypeWarning, "MeshEnrollmentFailed", text)
}

// converge does what is missing between state and wish. again asks for another look after that time.
func (p *machine) converge(ctx context.Context) (again time.Duration, err error) {
	p.mu.Lock()
	want, handle, sandless := p.want, p.handle, p.sandless
	p.mu.Unlock()
	switch {
	case sandless:
		return 0, p.remove(ctx, true)
	case want.gone: // of one that was deleted by force the processes may still run
		return 0, p.remove(ctx, false)
	case want.hold:
		return 0, nil
	case want.decision.Enrolled:
		return 0, p.enrol(ctx, want, true)
	case handle != nil:
		return p.unenrol(ctx, want)
	}
	p.step(StepNone)
	// An annotation without capture would make the control plane send tunnels to a pod that has none.
	return 0, p.annotate(ctx, want, false)
}

// enrol goes through the steps of enrolment. For a pod that runs (live) outbound capture comes last, when the control
// plane may already declare it; a pod that is being made has no connections yet and is captured before anything else
// can happen in it.
func (p *machine) enrol(ctx context.Context, want wish, live bool) error {
	if ok, err := p.find(want); err != nil || !ok {
		return err
	}
	h, err := p.prepare(ctx, want)
	if err != nil {
		return err
	}
	in, out, err := h.State()
	if err != nil {
		return fmt.Errorf("read capture state: %w", err)
	}
	if !in && !p.m.cfg.Proxy.Connected() {
		// Inbound capture without a proxy would cut a running pod off.
		return fmt.Errorf("capture inbound: %w", zds.ErrNoZtunnel)
	}
	if err := h.Inbound(true); err != nil {
		return fmt.Errorf("capture inbound: %w", err)
	}
	if !out {
		p.step(StepInbound)
	}
	if err := p.acknowledge(ctx, want, h); err != nil {
		if !in && !out { // it worked before we came: it must go on
			err = errors.Join(err, h.Inbound(false))
			p.step(StepPrepared)
		}
		return err
	}
	if !out && live {
		p.step(StepAcknowledged)
	}
	if live {
		if err := p.annotate(ctx, want, true); err != nil {
			return err
		}
	}
	if !out {
		if live {
			p.step(StepAnnotated)
		}
		if err := h.Outbound(true); err != nil {
			return fmt.Errorf("capture outbound: %w", err)
		}
	}
	p.mu.Lock()
	p.released = time.Time{}
	p.mu.Unlock()
	p.step(StepEnrolled)
	if !out {
		p.say(want.pod, corev1.EventTypeNormal, "MeshEnrolled", "pod is in the mesh: "+want.decision.Why)
	}
	return nil
}

// find opens the pod's network namespace; ok is false while the pod has none yet.
func (p *machine) find(want wish) (ok bool, err error) {
	p.mu.Lock()
	have, addrs, h := p.ns != nil, p.addrs, p.handle
	p.mu.Unlock()
	if have {
		return true, nil
	}
	if now := podAddrs(want.pod); len(now) > 0 {
		addrs = now
	}
	if len(addrs) == 0 {
		return false, nil // CNI ADD will come
	}
	ns, err := p.locate(want, h, addrs)
	if err != nil {
		return false, fmt.Errorf("find network namespace: %w", err)
	}
	if err := p.open(ns, addrs); err != nil {
		return false, err
	}
	p.step(StepFound)
	return true, nil
}

// locate opens the namespace that the kernel's state of the pod is in. What runs in the pod now decides only when there
// is no such state or its namespace is gone: a container may make a namespace of its own.
func (p *machine) locate(want wish, h Handle, addrs []netip.Addr) (*netns.NetNS, error) {
	if h != nil {
		if ns, err := h.Netns(); ns != nil || err != nil {
			return ns, err
		}
	}
	return p.m.cfg.FindNetns(groupUID(want.pod), addrs)
}

// open makes ns the pod's namespace and owns it, also on error.
func (p *machine) open(ns *netns.NetNS, addrs []netip.Addr) error {
	file, err := ns.File()
	if err != nil {
		_ = ns.Close() // only a descriptor
		return fmt.Errorf("duplicate network namespace: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ns, p.nsFile, p.addrs = ns, file, addrs
	return nil
}

// prepare brings the pod's part of the kernel up to date and its listeners into this process.
func (p *machine) prepare(ctx context.Context, want wish) (Handle, error) {
	name := want.pod.Namespace + "/" + want.pod.Name
	exclusions, errs := ParseExclusions(name, want.pod.Annotations)
	ignored := make([]string, 0, len(errs))
	for _, err := range errs {
		ignored = append(ignored, err.Error())
	}
	p.warn(want.pod, "MeshExclusionIgnored", ignored)
	probes, warnings := Probes(want.pod)
	p.warn(want.pod, "MeshProbeIgnored", warnings)
	p.mu.Lock()
	if now := podAddrs(want.pod); len(now) > 0 {
		p.addrs = now
	}
	spec := PodNet{UID: p.uid, Netns: p.ns, IPs: p.addrs, Exclusions: exclusions, Probes: probes}
	p.mu.Unlock()
	h, err := p.m.cfg.Datapath.Prepare(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("prepare: %w", err)
	}
	p.mu.Lock()
	known := p.handle != nil
	p.handle = h
	p.mu.Unlock()
	if err := p.adopt(h); err != nil {
		return nil, err
	}
	if !known {
		p.step(StepPrepared)
	}
	return h, nil
}

// adopt takes what ztunnel offered, then makes what nobody holds. An offer that does not fit is dropped with a warning.
func (p *machine) adopt(h Handle) error {
	p.mu.Lock()
	held := p.held
	p.held = nil
	p.mu.Unlock()
	if held != nil {
		defer held.Close()
		mine := h.Files()
		offered := map[zdsapi.ListenerKind]*os.File{}
		for k, f := range held {
			if mine[k] == nil {
				offered[k] = f
			}
		}
		if len(offered) > 0 {
			if err := h.Adopt(offered); err != nil {
				p.log.Warn("listeners that ztunnel offered do not fit", "err", err)
			} else {
				p.mu.Lock()
				p.acked = false // a ztunnel that got the pod without them needs them
				p.mu.Unlock()
			}
		}
	}
	if err := h.Ensure(); err != nil {
		return fmt.Errorf("make listeners: %w", err)
	}
	return nil
}

// acknowledge hands the pod to ztunnel unless it serves it already.
func (p *machine) acknowledge(ctx context.Context, want wish, h Handle) error {
	p.mu.Lock()
	acked := p.acked
	p.mu.Unlock()
	if acked {
		return nil
	}
	_, out, err := h.State()
	if err != nil {
		return fmt.Errorf("read capture state: %w", err)
	}
	if out && !p.m.cfg.Proxy.Connected() {
		return nil // captured already: the snapshot to the next ztunnel has it
	}
	w, err := p.workload()
	if err != nil {
		return err
	}
	if err := p.m.cfg.Proxy.Add(ctx, w); err != nil {
		return fmt.Errorf("hand to ztunnel: %w", err)
	}
	p.mu.Lock()
	p.acked = true
	p.mu.Unlock()
	return nil
}

// workload is the pod as ztunnel sees it; its files stay the machine's.
func (p *machine) workload() (zds.Workload, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.handle == nil || p.ns == nil || p.want.pod == nil {
		return zds.Workload{}, fmt.Errorf("pod %s is not prepared", p.uid)
	}
	pod := p.want.pod
	account := pod.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	w := zds.Workload{UID: p.uid, Netns: p.nsFile, Listeners: p.handle.Files(), Addrs: slices.Clone(p.addrs),
		Info: &zdsapi.WorkloadInfo{Name: pod.Name, Namespace: pod.Namespace, ServiceAccount: account}}
	probes, _ := Probes(pod) // warned about when prepared
	for _, probe := range probes {
		if probe.HTTP {
			w.Probes = append(w.Probes, &zdsapi.Probe{Port: uint32(probe.Port), Method: "GET", Path: probe.Path})
		}
	}
	return w, nil
}

// annotate writes or removes the annotation unless it is as wanted.
func (p *machine) annotate(ctx context.Context, want wish, on bool) error {
	p.mu.Lock()
	done := p.noted == on
	p.mu.Unlock()
	if done || want.pod == nil {
		return nil
	}
	if err := p.m.cfg.Cluster.Annotate(ctx, want.pod, on); err != nil {
		return fmt.Errorf("annotate: %w", err)
	}
	p.mu.Lock()
	p.noted = on
	p.mu.Unlock()
	return nil
}
