package datapath

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// bpffsMark is the file in RunDir that says that the BPF file system was mounted by us.
const bpffsMark = "bpffs-is-ours"

// ensureBPFFS mounts a BPF file system at dir unless there is one.
func ensureBPFFS(dir, runDir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make mount point %s: %w", dir, err)
	}
	ok, err := isFS(dir, unix.BPF_FS_MAGIC)
	if err != nil || ok {
		return err
	}
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return fmt.Errorf("make run directory: %w", err)
	}
	if err := os.WriteFile(filepath.Join(runDir, bpffsMark), []byte(dir+"\n"), 0o644); err != nil {
		return fmt.Errorf("note mount of %s: %w", dir, err)
	}
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpffs at %s: %w", dir, err)
	}
	return nil
}

func isFS(dir string, magic int64) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return false, fmt.Errorf("inspect file system of %s: %w", dir, err)
	}
	return int64(st.Type) == magic, nil
}

// cgroup2Root finds the mounted cgroup2 hierarchy, whole from its root, or mounts it in runDir. Where /sys/fs/cgroup is
// a tmpfs with version 1 controllers, version 2 is elsewhere or nowhere.
func cgroup2Root(runDir string) (string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("read mounts: %w", err)
	}
	if dir := findCgroup2(string(b)); dir != "" {
		return dir, nil
	}
	dir := filepath.Join(runDir, "cgroup2")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make mount point %s: %w", dir, err)
	}
	if err := unix.Mount("cgroup2", dir, "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return "", fmt.Errorf("mount cgroup2 at %s: %w", dir, err)
	}
	return dir, nil
}

// findCgroup2 reads /proc/self/mountinfo (proc(5)): fields 4 and 5 are root and mount point, the type follows " - ".
func findCgroup2(mountinfo string) string {
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(line, " - ")
		f := strings.Fields(before)
		if ok && strings.HasPrefix(after, "cgroup2 ") && len(f) > 4 && f[3] == "/" {
			return unescape(f[4])
		}
	}
	return ""
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// unmountOurs removes the mounts that ensureBPFFS and cgroup2Root made, and nothing that others made or still use.
func unmountOurs(runDir, bpffs string) error {
	var errs []error
	mark := filepath.Join(runDir, bpffsMark)
	if b, err := os.ReadFile(mark); err == nil && strings.TrimSpace(string(b)) == bpffs {
		empty, err := noPins(bpffs)
		if err == nil && empty {
			err = ignore(unix.Unmount(bpffs, 0), unix.EINVAL)
		}
		errs = append(errs, err, os.Remove(mark))
	}
	dir := filepath.Join(runDir, "cgroup2")
	if _, err := os.Stat(dir); err == nil {
		errs = append(errs, ignore(unix.Unmount(dir, 0), unix.EINVAL), os.Remove(dir))
	}
	_ = os.Remove(runDir) // only when nobody else keeps something there
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove mounts of the datapath: %w", err)
	}
	return nil
}

// noPins reports whether the BPF file system holds nothing but the two iterators that the kernel puts into each.
func noPins(bpffs string) (bool, error) {
	entries, err := os.ReadDir(bpffs)
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		if e.Name() != "maps.debug" && e.Name() != "progs.debug" {
			return false, nil
		}
	}
	return true, nil
}

func ignore(err error, fine ...error) error {
	for _, f := range fine {
		if errors.Is(err, f) {
			return nil
		}
	}
	return err
}
