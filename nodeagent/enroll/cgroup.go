package enroll

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// errNoKubelet is returned when nothing listens on kubelet's port.
var errNoKubelet = errors.New("no process listens on kubelet's port")

// Cgroups turns processes into cgroup2 ids.
type Cgroups struct {
	Root   string // mount point of the cgroup2 hierarchy, see HierarchyRoot; required
	Finder Finder
}

// HierarchyRoot returns the mount point of the file system that dir, a cgroup, is in: /proc tells groups from there.
func HierarchyRoot(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("find cgroup mount: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return "", fmt.Errorf("stat cgroup %s: %w", dir, err)
	}
	for parent := filepath.Dir(dir); parent != dir; parent = filepath.Dir(dir) {
		var up unix.Stat_t
		if err := unix.Stat(parent, &up); err != nil {
			return "", fmt.Errorf("stat %s: %w", parent, err)
		}
		if up.Dev != st.Dev {
			break
		}
		dir = parent
	}
	return dir, nil
}

// OfPath returns the id of the group at path below Root: the inode of its directory.
func (c Cgroups) OfPath(path string) (uint64, error) {
	if strings.HasPrefix(path, "/..") {
		return 0, fmt.Errorf("cgroup %s lies outside the agent's cgroup namespace", path)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(c.Root, path), &st); err != nil {
		return 0, fmt.Errorf("stat cgroup %s: %w", path, err)
	}
	return st.Ino, nil
}

// IDs lists the ids of all groups.
func (c Cgroups) IDs() (map[uint64]bool, error) {
	out := map[uint64]bool{}
	err := filepath.WalkDir(c.Root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed while we walk
		}
		if err != nil || !d.IsDir() {
			return err
		}
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil {
			out[st.Ino] = true
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list cgroups: %w", err)
	}
	return out, nil
}

// OfProcess returns the id and path of the group of a process.
func (c Cgroups) OfProcess(pid int) (id uint64, path string, err error) {
	if path, err = c.Finder.cgroup2Path(pid); err != nil {
		return 0, "", err
	}
	if strings.HasPrefix(path, "/..") { // told relative to the agent's own cgroup namespace
		if path, err = c.search(pid); err != nil {
			return 0, "", err
		}
	}
	id, err = c.OfPath(path)
	return id, path, err
}

// search finds the group of a process by the groups' member lists.
func (c Cgroups) search(pid int) (string, error) {
	found := ""
	err := filepath.WalkDir(c.Root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed while we walk
		}
		if err != nil || d.Name() != "cgroup.procs" {
			return err
		}
		data, err := os.ReadFile(path)
		if err == nil && slices.Contains(strings.Fields(string(data)), strconv.Itoa(pid)) {
			found = strings.TrimPrefix(filepath.Dir(path), filepath.Clean(c.Root))
			return filepath.SkipAll
		}
		return nil //nolint:nilerr // a threaded group has no list to read
	})
	if err != nil {
		return "", fmt.Errorf("search cgroup of process %d: %w", pid, err)
	}
	if found == "" {
		return "", fmt.Errorf("process %d is in no group below %s", pid, c.Root)
	}
	return found, nil
}

// rootPath reports whether a group holds the whole node: exempting or trusting it would open everything.
func rootPath(path string) bool { return filepath.Clean(path) == "/" }

// Trusted reports why a group must not be given what ztunnel or kubelet alone may do: it holds the whole node, all pods, or
// the agent, and so more than the one program. That is so where a runtime leaves containers in its own cgroup2 group.
func (c Cgroups) Trusted(path string) error {
	if rootPath(path) {
		return errors.New("it is the root cgroup")
	}
	if pod, below := podOf(path); below && pod == (podGroup{}) || kubepods(filepath.Base(path)) {
		return fmt.Errorf("cgroup %s holds the pods of the node", path)
	}
	top := filepath.Join(c.Root, path)
	self := strconv.Itoa(os.Getpid())
	err := filepath.WalkDir(top, func(name string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // removed while we walk
		case err != nil:
			return err
		case d.IsDir() && name != top && kubepods(d.Name()):
			return fmt.Errorf("cgroup %s holds the pods of the node in %s", path, strings.TrimPrefix(name, top))
		case d.Name() != "cgroup.procs":
			return nil
		}
		data, err := os.ReadFile(name)
		if err == nil && slices.Contains(strings.Fields(string(data)), self) {
			return fmt.Errorf("cgroup %s also holds the node agent", path)
		}
		return nil //nolint:nilerr // a threaded group has no list to read; it was removed
	})
	if err != nil {
		return fmt.Errorf("inspect cgroup: %w", err)
	}
	return nil
}

// KubeletProcess is kubelet as it was found.
type KubeletProcess struct {
	PID  int
	ID   uint64 // of its cgroup2 group
	Path string // of the group
}

// Kubelet finds the process that listens on port in the agent's own network namespace, which is the node's, and is not in
// a pod: one in the node's network may have the port on an address that kubelet leaves free. last is its process id as
// found before, 0 if it was not: it spares the look at all processes. Returns errNoKubelet if there is none.
func (c Cgroups) Kubelet(port uint16, last int) (KubeletProcess, error) {
	f := c.Finder.withDefaults()
	inodes := map[string]bool{}
	for _, name := range []string{"tcp", "tcp6"} {
		file, err := os.Open(filepath.Join(f.ProcRoot, "thread-self/net", name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return KubeletProcess{}, fmt.Errorf("read sockets: %w", err)
		}
		err = listeners(file, port, inodes)
		_ = file.Close() // only read
		if err != nil {
			return KubeletProcess{}, err
		}
	}
	if len(inodes) == 0 {
		return KubeletProcess{}, fmt.Errorf("port %d: %w", port, errNoKubelet)
	}
	k := KubeletProcess{PID: last}
	var err error
	if last == 0 || !f.holds(last, inodes) {
		if k.PID, err = f.owner(inodes); err != nil {
			return KubeletProcess{}, err
		}
	}
	if k.ID, k.Path, err = c.OfProcess(k.PID); err == nil {
		err = c.Trusted(k.Path)
	}
	if err != nil {
		return KubeletProcess{}, fmt.Errorf("kubelet, process %d: %w", k.PID, err)
	}
	return k, nil
}

// listeners adds the socket inodes that listen on port to into. The format is that of /proc/net/tcp.
func listeners(r io.Reader, port uint16, into map[string]bool) error {
	const listen = "0A"
	suffix := fmt.Sprintf(":%04X", port)
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		field := strings.Fields(sc.Text())
		if len(field) > 9 && field[3] == listen && strings.HasSuffix(field[1], suffix) && field[9] != "0" {
			into["socket:["+field[9]+"]"] = true
		}
	}
	if err := sc.Err(); err != nil {
		return fmt.Errorf("read sockets: %w", err)
	}
	return nil
}

// owner finds a process outside of pods that holds one of the sockets.
func (f Finder) owner(sockets map[string]bool) (int, error) {
	ents, err := os.ReadDir(f.ProcRoot)
	if err != nil {
		return 0, fmt.Errorf("list processes: %w", err)
	}
	for _, e := range ents {
		if pid, err := strconv.Atoi(e.Name()); err == nil && f.holds(pid, sockets) {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("no visible process outside of pods holds the socket: %w", errNoKubelet)
}

// holds reports whether a process is outside of pods and holds one of the sockets.
func (f Finder) holds(pid int, sockets map[string]bool) bool {
	dir := filepath.Join(f.ProcRoot, strconv.Itoa(pid))
	group, err := os.ReadFile(filepath.Join(dir, "cgroup"))
	if err != nil || belowKubepods(string(group)) {
		return false
	}
	fds, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		return false // it ended
	}
	return slices.ContainsFunc(fds, func(fd os.DirEntry) bool {
		target, err := os.Readlink(filepath.Join(dir, "fd", fd.Name()))
		return err == nil && sockets[target]
	})
}
