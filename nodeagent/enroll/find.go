package enroll

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/undermesh/undermesh/nodeagent/netns"
)

// errNoNetns is returned by Finder.Find when no namespace of the pod was seen: no process of it runs yet, or any more.
var errNoNetns = errors.New("no network namespace found")

// Finder finds the network namespace of a running pod without asking the container runtime.
type Finder struct {
	ProcRoot string // default /proc; the node's, so the agent runs in the node's pid namespace
	NetnsDir string // where the runtime keeps its mounts; default /var/run/netns
}

func (f Finder) withDefaults() Finder {
	if f.ProcRoot == "" {
		f.ProcRoot = "/proc"
	}
	if f.NetnsDir == "" {
		f.NetnsDir = "/var/run/netns"
	}
	return f
}

// Find returns the namespace that owns one of addrs: of a process in the pod's cgroup, else a cni-* mount. The caller
// closes it. Returns errNoNetns if there is none.
func (f Finder) Find(uid string, addrs []netip.Addr) (*netns.NetNS, error) {
	f = f.withDefaults()
	home, err := netns.Current()
	if err != nil {
		return nil, err
	}
	defer home.Close()
	seen := map[netns.ID]bool{home.ID(): true} // a host's namespace is never a pod's
	pids, err := f.processes(uid)
	if err != nil {
		return nil, err
	}
	candidates := make([]string, 0, len(pids))
	for _, pid := range pids {
		candidates = append(candidates, filepath.Join(f.ProcRoot, strconv.Itoa(pid), "ns/net"))
	}
	mounts, err := filepath.Glob(filepath.Join(f.NetnsDir, "cni-*"))
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", f.NetnsDir, err)
	}
	for _, path := range append(candidates, mounts...) {
		ns, err := open(path, seen, addrs)
		if err != nil {
			return nil, err
		}
		if ns != nil {
			return ns, nil
		}
	}
	return nil, fmt.Errorf("pod %s with addresses %v, %d processes: %w", uid, addrs, len(pids), errNoNetns)
}

// open returns the namespace at path if it is new and owns one of addrs, nil if not or when it is gone.
func open(path string, seen map[netns.ID]bool, addrs []netip.Addr) (*netns.NetNS, error) {
	ns, err := netns.OpenPath(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, netns.ErrNotNetns) || errors.Is(err, fs.ErrPermission) {
			return nil, nil //nolint:nilerr // the process ended, or the file is a left-over
		}
		return nil, err
	}
	if seen[ns.ID()] {
		_ = ns.Close()
		return nil, nil
	}
	seen[ns.ID()] = true
	own, err := Addresses(ns)
	if err == nil && slices.ContainsFunc(own, func(a netip.Addr) bool { return slices.Contains(addrs, a) }) {
		return ns, nil
	}
	_ = ns.Close()
	return nil, err
}

// Addresses lists the addresses of a namespace, loopback and link-local ones left out.
func Addresses(ns *netns.NetNS) ([]netip.Addr, error) {
	var found []net.Addr
	if err := ns.Do(func() (err error) { found, err = net.InterfaceAddrs(); return err }); err != nil {
		return nil, fmt.Errorf("list addresses of network namespace %s: %w", ns.Path(), err)
	}
	var out []netip.Addr
	for _, a := range found {
		p, err := netip.ParsePrefix(a.String())
		if err != nil || p.Addr().IsLoopback() || p.Addr().IsLinkLocalUnicast() {
			continue
		}
		out = append(out, p.Addr().Unmap())
	}
	return out, nil
}

// processes lists the processes whose cgroup, in any hierarchy, is the pod's.
func (f Finder) processes(uid string) ([]int, error) {
	ents, err := os.ReadDir(f.ProcRoot)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var out []int
	for _, e := range ents {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		data, err := os.ReadFile(filepath.Join(f.ProcRoot, e.Name(), "cgroup"))
		if err != nil {
			continue // it ended
		}
		if inPod(string(data), uid) {
			out = append(out, pid)
		}
	}
	return out, nil
}

// inPod reports whether a /proc/PID/cgroup file names the pod's group: kubelet's cgroupfs driver makes
// kubepods/QOS/podUID, the systemd driver kubepods-QOS-podUID.slice with underscores.
func inPod(cgroups, uid string) bool {
	systemd := "pod" + strings.ReplaceAll(uid, "-", "_") + ".slice"
	for line := range strings.Lines(cgroups) {
		_, path, ok := cutCgroup(strings.TrimSuffix(line, "\n"))
		if !ok || !strings.Contains(path, "kubepods") {
			continue
		}
		for _, part := range strings.Split(path, "/") {
			if part == "pod"+uid || part == systemd || strings.HasSuffix(part, "-"+systemd) {
				return true
			}
		}
	}
	return false
}

// cutCgroup splits "ID:CONTROLLERS:PATH".
func cutCgroup(line string) (controllers, path string, ok bool) {
	parts := strings.SplitN(line, ":", 3)
	if len(parts) != 3 {
		return "", "", false
	}
	return parts[1], parts[2], true
}

// cgroup2Path is the path of a process in the cgroup2 hierarchy: the line "0::PATH".
func (f Finder) cgroup2Path(pid int) (string, error) {
	file, err := os.Open(filepath.Join(f.withDefaults().ProcRoot, strconv.Itoa(pid), "cgroup"))
	if err != nil {
		return "", fmt.Errorf("read cgroup of process %d: %w", pid, err)
	}
	defer file.Close()
	for sc := bufio.NewScanner(file); sc.Scan(); {
		if path, ok := strings.CutPrefix(sc.Text(), "0::"); ok {
			return path, nil
		}
	}
	return "", fmt.Errorf("process %d is in no cgroup2 group", pid)
}
