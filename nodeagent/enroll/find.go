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

	"golang.org/x/sys/unix"

	"github.com/undermesh/undermesh/nodeagent/netns"
)

var (
	// errNoNetns is returned by Finder.Find when no namespace of the pod was seen: no process of it runs yet, or any more.
	errNoNetns = errors.New("no network namespace found")
	// errAmbiguous is returned by Finder.Find for a pod with processes in two namespaces that own its address.
	errAmbiguous = errors.New("several network namespaces could be the pod's")
)

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

// Find returns the namespace that owns one of addrs, that a process of the pod is in and that the runtime has mounted; uid
// is the pod's in the names of cgroups, see groupUID. Either alone is not enough: a container makes namespaces with any
// address, and an address is used again by another pod. The caller closes it. Returns errNoNetns if there is none and
// errAmbiguous if there are several: then a process of the pod has entered another pod's.
func (f Finder) Find(uid string, addrs []netip.Addr) (*netns.NetNS, error) {
	f = f.withDefaults()
	pids, err := f.processes(uid)
	if err != nil {
		return nil, err
	}
	inside := map[netns.ID]bool{}
	for _, pid := range pids {
		if id, ok := identify(filepath.Join(f.ProcRoot, strconv.Itoa(pid), "ns/net")); ok {
			inside[id] = true
		}
	}
	home, err := netns.Current()
	if err != nil {
		return nil, err
	}
	defer home.Close()
	delete(inside, home.ID()) // a host's namespace is never a pod's
	mounts, err := os.ReadDir(f.NetnsDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list mounts of network namespaces: %w", err)
	}
	var found *netns.NetNS
	for _, m := range mounts {
		path := filepath.Join(f.NetnsDir, m.Name())
		if id, ok := identify(path); !ok || !inside[id] || found != nil && found.ID() == id {
			continue
		}
		ns, err := open(path, inside, addrs)
		switch {
		case err != nil:
		case ns != nil && found != nil:
			_ = ns.Close()
			err = fmt.Errorf("pod %s with addresses %v: %s and %s: %w", uid, addrs, found.Path(), path, errAmbiguous)
		case ns != nil:
			found = ns
		}
		if err != nil {
			if found != nil {
				_ = found.Close()
			}
			return nil, err
		}
	}
	if found == nil {
		return nil, fmt.Errorf("pod %s with addresses %v, %d processes, %d mounts in %s: %w", uid, addrs, len(pids), len(mounts),
			f.NetnsDir, errNoNetns)
	}
	return found, nil
}

// identify tells which namespace a path leads to, without opening it.
func identify(path string) (netns.ID, bool) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return netns.ID{}, false // the process ended, or the mount went
	}
	return netns.ID{Dev: uint64(st.Dev), Inode: st.Ino}, true
}

// open returns the namespace at path if it is one of inside and owns one of addrs, nil if not or when it is gone.
func open(path string, inside map[netns.ID]bool, addrs []netip.Addr) (*netns.NetNS, error) {
	ns, err := netns.OpenPath(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, netns.ErrNotNetns) || errors.Is(err, fs.ErrPermission) {
			return nil, nil //nolint:nilerr // a left-over
		}
		return nil, err
	}
	if !inside[ns.ID()] { // exchanged since it was identified
		_ = ns.Close()
		return nil, nil
	}
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

// processes lists the processes that are in the pod's cgroup.
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
