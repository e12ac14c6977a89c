package enroll

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"k8s.io/apimachinery/pkg/types"

	"github.com/undermesh/undermesh/nodeagent/zds"
)

// directoryUID is the UID of a pod whose file has none.
func directoryUID(namespace, name string) types.UID { return types.UID(namespace + "_" + name) }

// NodeRules are the kernel's rules for processes outside of pods.
type NodeRules interface {
	// Exempt lets the group's processes connect in pods without being captured; Unexempt takes it back.
	Exempt(cgroup uint64) error
	Unexempt(cgroup uint64) error
	Exempted() ([]uint64, error)
	// SetKubelet names the group whose probes pass; 0 for none.
	SetKubelet(cgroup uint64) error
}

// SupervisorConfig configures a Supervisor.
type SupervisorConfig struct {
	Rules   NodeRules    // required
	Cgroups Cgroups      // required
	Log     *slog.Logger // required
	// ZtunnelCgroup is the path of ztunnel's group as /proc/PID/cgroup has it; "" takes the group of the process that connects.
	ZtunnelCgroup string
	// KubeletPort is kubelet's; default 10250.
	KubeletPort uint16
	// Recheck is the pause between looks; default 5 s.
	Recheck time.Duration
}

// Supervisor keeps the kernel's idea of ztunnel's and kubelet's cgroups right while these processes come and go.
type Supervisor struct {
	cfg SupervisorConfig

	mu    sync.Mutex     // protects below
	peers map[int]uint64 // process of a connected ztunnel to its group
}

// NewSupervisor returns a supervisor; Run starts it.
func NewSupervisor(cfg SupervisorConfig) *Supervisor {
	if cfg.KubeletPort == 0 {
		cfg.KubeletPort = 10250
	}
	if cfg.Recheck == 0 {
		cfg.Recheck = 5 * time.Second
	}
	return &Supervisor{cfg: cfg, peers: map[int]uint64{}}
}

// Admit exempts the group of a ztunnel that connects, before it is given a pod. For zds.ServerConfig. It refuses a peer
// whose group is not Trusted: exempting that would exempt others with it.
func (s *Supervisor) Admit(_ context.Context, p zds.Peer) error {
	id, err := s.groupOf(p)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.cfg.Rules.Exempt(id); err != nil {
		return fmt.Errorf("exempt ztunnel's cgroup: %w", err)
	}
	s.peers[p.PID] = id
	return nil
}

func (s *Supervisor) groupOf(p zds.Peer) (uint64, error) {
	if path := s.cfg.ZtunnelCgroup; path != "" {
		if err := s.cfg.Cgroups.Trusted(path); err != nil {
			return 0, fmt.Errorf("ztunnel cannot be exempted, choose a cgroup of its own: %w", err)
		}
		return s.cfg.Cgroups.OfPath(path)
	}
	if p.PID == 0 {
		return 0, errors.New("ztunnel's process is not visible: the agent needs the node's pid namespace")
	}
	id, path, err := s.cfg.Cgroups.OfProcess(p.PID)
	if err != nil {
		return 0, err
	}
	if err := s.cfg.Cgroups.Trusted(path); err != nil {
		return 0, fmt.Errorf("ztunnel, process %d, cannot be exempted, run it in a cgroup of its own: %w", p.PID, err)
	}
	return id, nil
}

// Depart notes that a ztunnel left. Its group stays exempt as long as it exists: connections may go on in it.
func (s *Supervisor) Depart(p zds.Peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.peers, p.PID)
}

// Run keeps both up to date until ctx ends. The kernel keeps what was written last.
func (s *Supervisor) Run(ctx context.Context) error {
	tick := time.NewTicker(s.cfg.Recheck)
	defer tick.Stop()
	watch, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch cgroups: %w", err)
	}
	defer watch.Close()
	var text, watched string
	pid := 0
	for {
		k, err := s.cfg.Cgroups.Kubelet(s.cfg.KubeletPort, pid)
		pid = k.PID
		if now := fmt.Sprint(k.ID, err); now != text && s.setKubelet(k.ID, k.Path, err) {
			text = now
		}
		if parent := filepath.Join(s.cfg.Cgroups.Root, filepath.Dir(k.Path)); k.ID != 0 && parent != watched {
			if watched != "" {
				_ = watch.Remove(watched) // it may be gone
			}
			if err := watch.Add(parent); err == nil {
				watched = parent
			}
		}
		s.follow()
		s.removeStale()
		select {
		case <-ctx.Done():
			return nil
		case <-watch.Events:
		case <-tick.C:
		}
	}
}

// setKubelet reports whether the kernel took it; if not, it is tried again at the next look.
func (s *Supervisor) setKubelet(id uint64, path string, cause error) bool {
	if err := s.cfg.Rules.SetKubelet(id); err != nil {
		s.cfg.Log.Error("kubelet's cgroup not written, its probes do not pass STRICT", "err", err)
		return false
	}
	if cause != nil {
		s.cfg.Log.Warn("no kubelet that can be told from others, its probes do not pass STRICT", "err", cause)
		return true
	}
	s.cfg.Log.Info("kubelet found", "cgroup", path, "id", id)
	return true
}

// follow exempts the group that a connected ztunnel was moved to.
func (s *Supervisor) follow() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for pid, old := range s.peers {
		id, err := s.groupOf(zds.Peer{PID: pid})
		if err != nil || id == old {
			continue // it is ending, or where it was
		}
		if err := s.cfg.Rules.Exempt(id); err != nil {
			s.cfg.Log.Error("ztunnel's new cgroup not exempted", "pid", pid, "err", err)
			continue
		}
		s.peers[pid] = id
		s.cfg.Log.Info("ztunnel moved to another cgroup", "pid", pid, "id", id)
	}
}

// removeStale takes back the exemption of groups that do not exist any more, as their ids may be used again.
func (s *Supervisor) removeStale() {
	ids, err := s.cfg.Rules.Exempted()
	if err != nil {
		s.cfg.Log.Warn("exempt cgroups not listed", "err", err)
		return
	}
	if len(ids) == 0 {
		return
	}
	live, err := s.cfg.Cgroups.IDs()
	if err != nil {
		s.cfg.Log.Warn("cgroups not listed", "err", err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range s.peers {
		live[id] = true // it may have been made after the list
	}
	for _, id := range ids {
		if live[id] {
			continue
		}
		if err := s.cfg.Rules.Unexempt(id); err != nil {
			s.cfg.Log.Warn("stale exemption not removed", "id", id, "err", err)
			continue
		}
		s.cfg.Log.Info("stale exemption removed", "id", id)
	}
}
