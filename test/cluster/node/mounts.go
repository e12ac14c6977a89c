package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/undermesh/undermesh/test/cluster/sandbox"
)

// The member sees the machine's root file system with these differences, all in its own mount namespace: nothing of
// the machine's own tree is made or changed.
var (
	// overlaid directories take writes in memory, so that a node has its own /etc/cni and /opt/cni.
	overlaid = []string{"/etc", "/opt", "/var/lib", "/var/log"}
	// bound directories lie on disk in the member's directory: container runtimes cannot stack overlays on an overlay.
	bound = []string{"/var/lib/kubelet", "/var/lib/containerd", "/var/lib/cni", "/var/log/pods", "/var/log/containers",
		"/etc/cni/net.d", "/opt/cni/bin", "/etc/containerd"}
	// masked settings belong to the whole machine; kubelet finds the values that it wants to set and leaves them alone.
	masked = map[string]int{
		"vm/overcommit_memory": 1, "vm/panic_on_oom": 0, "kernel/panic": 10, "kernel/panic_on_oops": 1,
		"kernel/keys/root_maxkeys": 1000000, "kernel/keys/root_maxbytes": 25000000,
	}
)

// scratch is in memory, below the member's own /run.
const scratch = "/run/.member"

func (c Config) mounts() error {
	hs, err := sandbox.Hierarchies()
	if err != nil {
		return err
	}
	state, err := unix.Open(c.Plan.MemberDir(c.Member), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open directory of member: %w", err)
	}
	defer unix.Close(state)
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, m := range [][3]string{{"proc", "/proc", ""}, {"sysfs", "/sys", ""}, {"tmpfs", "/run", "mode=755"}} {
		if err := mount(m[0], m[1], m[2]); err != nil {
			return err
		}
	}
	if err := cgroupMounts(hs); err != nil {
		return err
	}
	if err := mount("bpf", "/sys/fs/bpf", ""); err != nil {
		return err
	}
	// Not every kernel has these; what needs them says so itself.
	for fstype, dir := range map[string]string{"tracefs": "/sys/kernel/tracing", "debugfs": "/sys/kernel/debug"} {
		if err := mount(fstype, dir, ""); err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ENOENT) &&
			!errors.Is(err, unix.EPERM) {
			return err
		}
	}
	if err := overlays(); err != nil {
		return err
	}
	for _, dir := range bound {
		if err := bind(state, dir); err != nil {
			return err
		}
	}
	if err := maskSettings(); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make mounts shared: %w", err)
	}
	return nil
}

func mount(fstype, dir, options string) error {
	if err := unix.Mount(fstype, dir, fstype, 0, options); err != nil {
		return fmt.Errorf("mount %s on %s: %w", fstype, dir, err)
	}
	return nil
}

// cgroupMounts mounts the same hierarchies at the same places; the cgroup namespace makes the member's group their root.
func cgroupMounts(hs []sandbox.Hierarchy) error {
	if len(hs) > 1 || hs[0].Mount != "/sys/fs/cgroup" {
		if err := mount("tmpfs", "/sys/fs/cgroup", "mode=755"); err != nil {
			return err
		}
	}
	for _, h := range hs {
		if err := os.MkdirAll(h.Mount, 0o755); err != nil {
			return fmt.Errorf("make mount point of cgroups: %w", err)
		}
		options := h.Options
		if h.Type == "cgroup2" {
			options = ""
		} else if len(options) > 5 && options[:5] == "name=" {
			options = "none," + options
		}
		if err := mount(h.Type, h.Mount, options); err != nil {
			return err
		}
		if h.Type != "cgroup2" {
			continue
		}
		// Process 1 must not stay in a group whose controllers its children use.
		own := filepath.Join(h.Mount, "system", "init")
		if err := os.MkdirAll(own, 0o755); err != nil {
			return fmt.Errorf("make cgroup of init: %w", err)
		}
		if err := os.WriteFile(filepath.Join(own, "cgroup.procs"), []byte("1"), 0o644); err != nil {
			return fmt.Errorf("join cgroup of init: %w", err)
		}
	}
	return nil
}

// delegate hands the controllers of a version 2 hierarchy on to the member's groups. It comes after the harness has said go:
// then the process that launched this one has left the group, which must be empty.
func delegate() error {
	hs, err := sandbox.Hierarchies()
	if err != nil {
		return err
	}
	return sandbox.Delegate(hs)
}

func overlays() error {
	for i, dir := range overlaid {
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("overlay %s: the machine has no such directory: %w", dir, err)
		}
		base := filepath.Join(scratch, strconv.Itoa(i))
		up, work := filepath.Join(base, "up"), filepath.Join(base, "work")
		for _, d := range []string{up, work} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return fmt.Errorf("make directory of overlay: %w", err)
			}
		}
		opts := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", dir, up, work)
		if err := mount("overlay", dir, opts); err != nil {
			return err
		}
	}
	return nil
}

// bind puts the directory of the same name below the member's directory (an open file, as an overlay may cover its path) on
// dir.
func bind(state int, dir string) error {
	src := filepath.Join("/proc/self/fd", strconv.Itoa(state), dir)
	for _, d := range []string{src, dir} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("make directory to bind: %w", err)
		}
	}
	if err := unix.Mount(src, dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", dir, err)
	}
	return nil
}

func maskSettings() error {
	dir := filepath.Join(scratch, "sysctl")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make directory of settings: %w", err)
	}
	for name, value := range masked {
		file := filepath.Join(dir, filepath.Base(name))
		if err := os.WriteFile(file, []byte(strconv.Itoa(value)+"\n"), 0o644); err != nil {
			return fmt.Errorf("write setting %s: %w", name, err)
		}
		if err := unix.Mount(file, "/proc/sys/"+name, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mask setting %s: %w", name, err)
		}
	}
	return nil
}
