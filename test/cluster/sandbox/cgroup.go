// Package sandbox holds what a test cluster needs of the kernel, seen from the machine's side: cgroups, namespaces,
// links between them, and the processes that live in them.
package sandbox

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Hierarchy is one mounted cgroup hierarchy of the machine.
type Hierarchy struct {
	// Mount is where it is mounted, such as /sys/fs/cgroup/memory.
	Mount string
	// Type is cgroup or cgroup2, Options what the mount needs besides (controllers or name=).
	Type, Options string
}

// Hierarchies reads the mounted cgroup hierarchies: several on a version 1 or hybrid machine, one on a version 2 machine.
func Hierarchies() ([]Hierarchy, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	defer f.Close()
	var out []Hierarchy
	seen := map[string]bool{}
	for s := bufio.NewScanner(f); s.Scan(); {
		left, right, ok := strings.Cut(s.Text(), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 5 || len(r) < 3 || (r[0] != "cgroup" && r[0] != "cgroup2") || seen[l[2]] {
			continue
		}
		if !strings.HasPrefix(l[4], "/sys/fs/cgroup") {
			continue
		}
		seen[l[2]] = true
		out = append(out, Hierarchy{Mount: l[4], Type: r[0], Options: controllers(r[2])})
	}
	if len(out) == 0 {
		return nil, errors.New("find cgroup hierarchies: none is mounted below /sys/fs/cgroup")
	}
	return out, nil
}

// controllers keeps those super block options that choose a version 1 hierarchy.
func controllers(options string) string {
	var keep []string
	for _, o := range strings.Split(options, ",") {
		switch o {
		case "rw", "ro", "nsdelegate", "memory_recursiveprot", "memory_localevents", "xattr", "clone_children":
			continue
		}
		if strings.HasPrefix(o, "release_agent=") || strings.HasPrefix(o, "favordynmods") {
			continue
		}
		keep = append(keep, o)
	}
	return strings.Join(keep, ",")
}

// MakeCgroups makes the group path (relative, two levels at most) in every hierarchy. It returns the controllers that it had to
// turn on in the root group of a version 2 machine, for RestoreRoot.
func MakeCgroups(hs []Hierarchy, path string) (added []string, err error) {
	for _, h := range hs {
		dir := h.Mount
		for _, part := range strings.Split(path, "/") {
			parent := dir
			if pureV2(hs) {
				on, err := delegate(parent)
				if err != nil {
					return added, err
				}
				if parent == h.Mount {
					added = append(added, on...)
				}
			}
			dir = filepath.Join(dir, part)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return added, fmt.Errorf("make cgroup: %w", err)
			}
			if err := copyCPUSet(h, parent, dir); err != nil {
				return added, err
			}
		}
	}
	return added, nil
}

// copyCPUSet hands cpus and memory nodes down: a new version 1 cpuset has none and so takes no process.
func copyCPUSet(h Hierarchy, parent, dir string) error {
	if h.Type == "cgroup2" {
		return nil
	}
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		b, err := os.ReadFile(filepath.Join(parent, name))
		if errors.Is(err, fs.ErrNotExist) {
			return nil // another hierarchy
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), b, 0o644)
		}
		if err != nil {
			return fmt.Errorf("copy %s of cgroup: %w", name, err)
		}
	}
	return nil
}

// pureV2 tells whether controllers are in the version 2 hierarchy; on a hybrid machine it is there for its tree only, and the
// cluster leaves its controllers alone.
func pureV2(hs []Hierarchy) bool { return len(hs) == 1 && hs[0].Type == "cgroup2" }

// delegated controllers are those that kubelet and runtimes use.
var delegated = []string{"cpuset", "cpu", "io", "memory", "hugetlb", "pids"}

// delegate turns controllers of a version 2 group on for its children and returns those that were off.
func delegate(dir string) (added []string, err error) {
	have, err := words(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return nil, err
	}
	control := filepath.Join(dir, "cgroup.subtree_control")
	on, err := words(control)
	if err != nil {
		return nil, err
	}
	for _, c := range delegated {
		if !slices.Contains(have, c) || slices.Contains(on, c) {
			continue
		}
		if err := os.WriteFile(control, []byte("+"+c), 0o644); err != nil {
			return added, fmt.Errorf("delegate cgroup controller %s: %w", c, err)
		}
		added = append(added, c)
	}
	return added, nil
}

func words(file string) ([]string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read controllers of cgroup: %w", err)
	}
	return strings.Fields(string(b)), nil
}

// Delegate turns controllers of a version 2 machine on for the groups below the root of the caller's cgroup namespace; no
// process may be in that root itself. On other machines there is nothing to do.
func Delegate(hs []Hierarchy) error {
	if !pureV2(hs) {
		return nil
	}
	_, err := delegate(hs[0].Mount)
	return err
}

// RestoreRoot turns controllers off in the root group again. What another cluster or program came to use meanwhile stays on.
func RestoreRoot(hs []Hierarchy, added []string) error {
	if !pureV2(hs) {
		return nil
	}
	for _, c := range added {
		err := os.WriteFile(filepath.Join(hs[0].Mount, "cgroup.subtree_control"), []byte("-"+c), 0o644)
		if err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("take back cgroup controller %s: %w", c, err)
		}
	}
	return nil
}

// JoinCgroups moves process pid (0 is the caller) into path of every hierarchy; in version 2 into its child leaf when leaf
// is not empty, as a group with delegated controllers holds no processes itself.
func JoinCgroups(hs []Hierarchy, path, leaf string, pid int) error {
	for _, h := range hs {
		dir := filepath.Join(h.Mount, path)
		if h.Type == "cgroup2" && leaf != "" {
			dir = filepath.Join(dir, leaf)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return fmt.Errorf("make cgroup leaf: %w", err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644); err != nil {
			return fmt.Errorf("join cgroup: %w", err)
		}
	}
	return nil
}

// Processes lists the processes in path and below, in any hierarchy.
func Processes(hs []Hierarchy, path string) ([]int, error) {
	seen := map[int]bool{}
	var out []int
	for _, h := range hs {
		err := filepath.WalkDir(filepath.Join(h.Mount, path), func(p string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || d.Name() != "cgroup.procs" {
				return err
			}
			b, err := os.ReadFile(p)
			if err != nil {
				return nil // the group went away, or holds threads only
			}
			for _, f := range strings.Fields(string(b)) {
				if pid, err := strconv.Atoi(f); err == nil && pid > 0 && !seen[pid] {
					seen[pid] = true
					out = append(out, pid)
				}
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("list processes of cgroup %s: %w", path, err)
		}
	}
	return out, nil
}

// RemoveCgroups kills what lives in path of any hierarchy and removes the groups. It gives up when ctx ends, naming what is
// left.
func RemoveCgroups(ctx context.Context, hs []Hierarchy, path string) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		pids, err := Processes(hs, path)
		if err != nil {
			return err
		}
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill process %d of cgroup %s: %w", pid, path, err)
			}
		}
		if len(pids) == 0 {
			left := removeDirs(hs, path)
			if left == "" {
				return nil
			}
			if ctx.Err() != nil {
				return fmt.Errorf("remove cgroup %s: %w", left, ctx.Err())
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the end of processes %v of cgroup %s: %w", pids, path, ctx.Err())
		case <-tick.C:
		}
	}
}

// removeDirs removes path and what is below, deepest first, and returns one that is still there.
func removeDirs(hs []Hierarchy, path string) (left string) {
	for _, h := range hs {
		top := filepath.Join(h.Mount, path)
		var dirs []string
		// A directory that vanishes meanwhile is what is wanted.
		_ = filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			if err := unix.Rmdir(dirs[i]); err != nil && !errors.Is(err, unix.ENOENT) {
				left = dirs[i]
			}
		}
	}
	return left
}
