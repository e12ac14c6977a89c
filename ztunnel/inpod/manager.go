package inpod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/undermesh/undermesh/nodeagent/netns"
	"github.com/undermesh/undermesh/nodeagent/zds"
	"github.com/undermesh/undermesh/nodeagent/zds/zdsapi"
	"github.com/undermesh/undermesh/ztunnel/proxy"
)

// Config is what a Manager needs. Proxy is required.
type Config struct {
	Proxy *proxy.Proxy
	Log   *slog.Logger // default: discard
	// Watch fetches a certificate of the service account ahead of its use; release ends that. Default: nothing.
	Watch func(namespace, serviceAccount string) (release func())
}

// Manager owns one proxy for each pod. It implements zds.Handler, whose methods are called one after the other, and
// prometheus.Collector.
type Manager struct {
	cfg Config

	started chan struct{} // closed when Run has set parent
	parent  context.Context
	wg      sync.WaitGroup // pods

	mu             sync.Mutex // protects below
	pods           map[string]*entry
	seen           map[string]bool // named since the snapshot began
	stopped        bool            // Run takes no more pods
	adding, ended  int
	total, serving int
}

// entry is one pod. Its files are closed when it is removed, its namespace when its proxy has ended.
type entry struct {
	uid       string
	pod       *proxy.Pod
	ns        *netns.NetNS
	listeners map[zdsapi.ListenerKind]*held
	release   func()
}

// held is a listener: the descriptor to offer to the agent, and the one that is served.
type held struct {
	file   *os.File
	l      net.Listener
	cookie uint64
}

var kinds = map[zdsapi.ListenerKind]proxy.Kind{
	zdsapi.ListenerKind_OUTBOUND: proxy.Outbound,
	zdsapi.ListenerKind_INBOUND:  proxy.Inbound,
	zdsapi.ListenerKind_TUNNEL:   proxy.Tunnel,
	zdsapi.ListenerKind_PROBE:    proxy.Probes,
}

// New returns a Manager. Its methods wait for Run.
func New(cfg Config) (*Manager, error) {
	if cfg.Proxy == nil {
		return nil, errors.New("inpod config: Proxy is not set")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Watch == nil {
		cfg.Watch = func(string, string) func() { return func() {} }
	}
	return &Manager{cfg: cfg, started: make(chan struct{}), pods: map[string]*entry{}, seen: map[string]bool{}}, nil
}

// Run runs the pods' proxies until ctx ends, and returns when all of them have. Their drain is the Proxy's configuration.
// Call it once. No Handler method may be called after ctx ended.
func (m *Manager) Run(ctx context.Context) error {
	m.parent = ctx
	close(m.started)
	<-ctx.Done()
	m.mu.Lock()
	m.stopped = true
	for _, e := range m.pods {
		e.closeFiles()
	}
	m.pods = map[string]*entry{}
	m.mu.Unlock()
	m.wg.Wait()
	return nil
}

func (m *Manager) running(ctx context.Context) error {
	select {
	case <-m.started:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if m.parent.Err() != nil {
		return errStopped
	}
	return nil
}

var errStopped = errors.New("ztunnel is shutting down")

// Add implements zds.Handler.
func (m *Manager) Add(ctx context.Context, w zds.Workload) error {
	defer func() {
		if w.Netns != nil {
			_ = w.Netns.Close() // the entry has its own
		}
	}()
	if err := m.running(ctx); err != nil {
		w.Listeners.Close()
		return err
	}
	m.count(&m.adding, 1)
	defer m.count(&m.adding, -1)
	if err := m.add(w); err != nil {
		return fmt.Errorf("add pod %s: %w", w.UID, err)
	}
	return nil
}

func (m *Manager) add(w zds.Workload) error {
	if w.UID == "" || w.Netns == nil || w.Info.GetName() == "" || w.Info.GetNamespace() == "" {
		w.Listeners.Close()
		return errors.New("uid, netns, workload_info.name or workload_info.namespace is not set")
	}
	ns, err := fromFile(w.Netns)
	if err != nil {
		w.Listeners.Close()
		return err
	}
	fresh, err := adopt(ns, w.Listeners)
	if err != nil {
		_ = ns.Close()
		return err
	}
	m.mu.Lock()
	old := m.pods[w.UID]
	m.seen[w.UID] = true
	m.mu.Unlock()
	if old != nil && old.ns.ID() == ns.ID() {
		_ = ns.Close()
		old.pod.SetProbes(probes(w.Probes))
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.pods[w.UID] != old { // Run ended meanwhile
			closeAll(fresh)
			return errStopped
		}
		old.replaceLocked(fresh)
		return nil
	}
	if len(fresh) == 0 { // version 1: the listeners are ours to make
		if fresh, err = openListeners(ns); err != nil {
			_ = ns.Close()
			return err
		}
	}
	if old != nil {
		m.remove(w.UID, true) // a new sandbox of the same pod
	}
	return m.start(w, ns, fresh)
}

// start runs a new pod and owns what it is given.
func (m *Manager) start(w zds.Workload, ns *netns.NetNS, listeners map[zdsapi.ListenerKind]*held) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopped {
		closeAll(listeners)
		_ = ns.Close() // it was only read
		return errStopped
	}
	e := &entry{
		uid: w.UID, ns: ns, listeners: listeners,
		release: m.cfg.Watch(w.Info.GetNamespace(), w.Info.GetServiceAccount()),
		pod: m.cfg.Proxy.NewPod(proxy.PodConfig{
			UID: w.UID, Name: w.Info.GetName(), Namespace: w.Info.GetNamespace(), ServiceAccount: w.Info.GetServiceAccount(),
			Addrs: w.Addrs, Probes: probes(w.Probes), Sockets: NewSockets(ns),
		}),
	}
	for kind, h := range listeners {
		e.pod.Listen(kinds[kind], h.l)
	}
	m.pods[w.UID] = e
	m.total++
	m.serving++
	m.wg.Go(func() {
		err := e.pod.Run(m.parent)
		e.release()
		_ = e.ns.Close()
		m.mu.Lock()
		m.serving--
		m.ended++
		m.mu.Unlock()
		if err != nil {
			m.cfg.Log.Error("proxy of a pod ended", "uid", e.uid, "err", err)
		}
	})
	m.cfg.Log.Info("pod added", "pod", w.Info.GetNamespace()+"/"+w.Info.GetName(), "uid", w.UID, "listeners", len(listeners))
	return nil
}

// Del implements zds.Handler.
func (m *Manager) Del(ctx context.Context, uid string, deleted bool) error {
	if err := m.running(ctx); err != nil {
		return err
	}
	m.remove(uid, deleted)
	return nil
}

func (m *Manager) remove(uid string, deleted bool) {
	m.mu.Lock()
	e := m.pods[uid]
	delete(m.pods, uid)
	if e != nil {
		e.closeFiles()
	}
	m.mu.Unlock()
	if e == nil {
		return
	}
	if deleted {
		e.pod.Delete()
	} else {
		e.pod.Remove()
	}
	m.cfg.Log.Info("pod removed", "uid", uid, "deleted", deleted)
}

// Keep implements zds.Handler.
func (m *Manager) Keep(uid string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seen[uid] = true
}

// SnapshotSent implements zds.Handler.
func (m *Manager) SnapshotSent(ctx context.Context) error {
	if err := m.running(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	var gone []string
	for uid := range m.pods {
		if !m.seen[uid] {
			gone = append(gone, uid)
		}
	}
	m.seen = map[string]bool{}
	m.mu.Unlock()
	for _, uid := range gone {
		m.remove(uid, false) // why it is not there nobody says
	}
	return nil
}

// Held implements zds.Handler.
func (m *Manager) Held() []zds.Workload {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seen = map[string]bool{}
	out := make([]zds.Workload, 0, len(m.pods))
	for uid, e := range m.pods {
		l := zds.Listeners{}
		for kind, h := range e.listeners {
			l[kind] = h.file
		}
		out = append(out, zds.Workload{UID: uid, Listeners: l})
	}
	return out
}

func (m *Manager) count(n *int, by int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	*n += by
}

func probes(list []*zdsapi.Probe) []proxy.Probe {
	out := make([]proxy.Probe, 0, len(list))
	for _, p := range list {
		if p.GetPort() == 0 || p.GetPort() > 65535 {
			continue // such a probe never arrives
		}
		out = append(out, proxy.Probe{Port: uint16(p.GetPort()), Method: p.GetMethod(), Path: p.GetPath()})
	}
	return out
}

var (
	activeDesc  = prometheus.NewDesc("workload_manager_active_proxy_count", "Pods that are served.", nil, nil)
	pendingDesc = prometheus.NewDesc("workload_manager_pending_proxy_count", "Pods that are being added.", nil, nil)
	startedDesc = prometheus.NewDesc("workload_manager_proxies_started_total", "Pods added since the start.", nil, nil)
	stoppedDesc = prometheus.NewDesc("workload_manager_proxies_stopped_total", "Pods whose last connection ended after their removal.", nil, nil)
)

// Describe implements prometheus.Collector.
func (m *Manager) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{activeDesc, pendingDesc, startedDesc, stoppedDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *Manager) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	active, pending, started, stopped := m.serving, m.adding, m.total, m.ended
	m.mu.Unlock()
	ch <- prometheus.MustNewConstMetric(activeDesc, prometheus.GaugeValue, float64(active))
	ch <- prometheus.MustNewConstMetric(pendingDesc, prometheus.GaugeValue, float64(pending))
	ch <- prometheus.MustNewConstMetric(startedDesc, prometheus.CounterValue, float64(started))
	ch <- prometheus.MustNewConstMetric(stoppedDesc, prometheus.CounterValue, float64(stopped))
}

var _ zds.Handler = (*Manager)(nil)
