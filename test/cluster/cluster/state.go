// Package cluster brings test clusters up and down. One cluster is its control plane and nodes (process trees in namespaces
// of their own, see package node), one link and one route a node in the machine's network namespace, one group in each cgroup
// hierarchy and one state directory. A record in /run tells the clusters of all checkouts of this machine apart.
package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/undermesh/undermesh/test/cluster/plan"
	"github.com/undermesh/undermesh/test/cluster/sandbox"
)

// registry is where records lie: one NAME.json and NAME.lock a cluster. It is empty when no cluster is up.
const registry = "/run/undermesh-clusters"

// State is the record of one cluster.
type State struct {
	Plan plan.Plan `json:"plan"`
	// Bin maps components to the directories of their binaries.
	Bin map[string]string `json:"bin"`
	// Members are the init processes, control plane first.
	Members []sandbox.Proc `json:"members"`
	// Controllers were turned on in the root cgroup for this cluster.
	Controllers []string `json:"controllers,omitempty"`
	// Complete says that `up` saw everything it promises.
	Complete bool `json:"complete"`
}

// ErrNotUp is returned by what needs a running cluster.
var ErrNotUp = errors.New("cluster is not up")

// Config is common to all operations.
type Config struct {
	// Options of the cluster; only Name matters except for Up.
	Options plan.Options
	// Root is the repository.
	Root string
	// Exe is this program, which runs itself as init.
	Exe string
	// Log receives progress.
	Log *slog.Logger
}

// Cluster is one cluster by name. Its methods may run in several processes at once: those that change it take a lock.
type Cluster struct {
	cfg Config
}

// New checks the options.
func New(c Config) (*Cluster, error) {
	c.Options = c.Options.WithDefaults()
	if err := c.Options.Validate(); err != nil {
		return nil, err
	}
	return &Cluster{cfg: c}, nil
}

func recordFile(name string) string { return filepath.Join(registry, name+".json") }

// State reads the record. Returns ErrNotUp if there is none.
func (c *Cluster) State() (State, error) { return readState(c.cfg.Options.Name) }

func readState(name string) (State, error) {
	var s State
	b, err := os.ReadFile(recordFile(name))
	if errors.Is(err, fs.ErrNotExist) {
		return s, fmt.Errorf("read record of cluster %s: %w", name, ErrNotUp)
	}
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		return s, fmt.Errorf("read record of cluster %s: %w", name, err)
	}
	return s, nil
}

func (s State) write() error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("encode record of cluster: %w", err)
	}
	tmp := recordFile(s.Plan.Name) + ".tmp"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("write record of cluster: %w", err)
	}
	if err := os.Rename(tmp, recordFile(s.Plan.Name)); err != nil {
		return fmt.Errorf("publish record of cluster: %w", err)
	}
	return nil
}

// alive tells whether all members' init processes run.
func (s State) alive() bool {
	for _, p := range s.Members {
		if !p.Alive() {
			return false
		}
	}
	return len(s.Members) == s.Plan.Nodes+1
}

// running returns the record of a cluster whose members live. Returns ErrNotUp if there is none.
func (c *Cluster) running() (State, error) {
	s, err := c.State()
	if err == nil && !s.alive() {
		err = fmt.Errorf("check members of cluster %s: %w", s.Plan.Name, ErrNotUp)
	}
	return s, err
}

// lock takes the lock of a cluster, without waiting; release gives it back, and removes it when the cluster has no record.
func (c *Cluster) lock() (release func(), err error) {
	name := c.cfg.Options.Name
	path := filepath.Join(registry, name+".lock")
	for {
		if err := os.MkdirAll(registry, 0o755); err != nil {
			return nil, fmt.Errorf("make registry of clusters: %w", err)
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the registry was removed in between
		}
		if err != nil {
			return nil, fmt.Errorf("open lock of cluster %s: %w", name, err)
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err != nil {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fmt.Errorf("lock cluster %s: another up or down of it is running", name)
			}
			return nil, fmt.Errorf("lock cluster %s: %w", name, err)
		}
		if current(f, path) {
			return func() { c.unlock(f, path) }, nil
		}
		f.Close() // its last holder removed the file
	}
}

func current(f *os.File, path string) bool {
	mine, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(path)
	return err == nil && os.SameFile(mine, there)
}

func (c *Cluster) unlock(f *os.File, path string) {
	if _, err := os.Stat(recordFile(c.cfg.Options.Name)); errors.Is(err, fs.ErrNotExist) {
		// What stays is an empty file; the registry stays while another cluster is in it.
		_ = os.Remove(path)
		_ = os.Remove(registry)
	}
	f.Close()
}

// lockAddresses serialises the choice of addresses among all clusters; it waits as long as that takes.
func lockAddresses() (release func(), err error) {
	d, err := os.Open(registry)
	if err != nil {
		return nil, fmt.Errorf("open registry of clusters: %w", err)
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
		d.Close()
		return nil, fmt.Errorf("lock registry of clusters: %w", err)
	}
	return func() { d.Close() }, nil
}

// draw chooses the lowest number whose addresses are not used on this machine, neither by another cluster's record nor by
// anything else.
func (c *Cluster) draw() (plan.Plan, error) {
	p := plan.Plan{Options: c.cfg.Options, Root: c.cfg.Root}
	taken := map[int]string{}
	records, err := filepath.Glob(filepath.Join(registry, "*.json"))
	if err != nil {
		return p, fmt.Errorf("list records of clusters: %w", err)
	}
	for _, r := range records {
		name := strings.TrimSuffix(filepath.Base(r), ".json")
		if s, err := readState(name); err == nil && name != p.Name {
			taken[s.Plan.Index] = "cluster " + name
		}
	}
	inUse, err := sandbox.InUse()
	if err != nil {
		return p, err
	}
	var used []string
	for i := 0; i <= plan.MaxIndex; i++ {
		p.Index = i
		who := taken[i]
		if who == "" {
			link := sandbox.Clash(inUse, append(p.HostAddrs(), p.ClusterCIDRs()...))
			if link == "" {
				return p, nil
			}
			who = "link " + link
		}
		used = append(used, fmt.Sprintf("%s by %s", p.HostAddrs()[0].Masked(), who))
	}
	return p, fmt.Errorf("choose addresses: all are in use: %s", strings.Join(used, ", "))
}
