package lab

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// leftFile, in a lab's directory, lists what the lab made and a killed test would leave behind: a line "KIND VALUE" each. The test holds
// a lock on it for as long as it lives, so that who gets the lock may take away what is listed.
const leftFile = "left"

// Kinds of leftovers.
const (
	leftProcess = "process" // PID and start time, in ticks since boot
	leftGroup   = "cgroup"
	leftMount   = "mount"
	leftPins    = "pins" // a directory of the BPF file system
)

// register makes the list. It has its name only when it is locked.
func (l *Lab) register() {
	l.T.Helper()
	path := filepath.Join(l.tmp, leftFile)
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	l.must(err)
	l.T.Cleanup(func() { f.Close() })
	l.must(unix.Flock(int(f.Fd()), unix.LOCK_EX))
	l.must(os.Rename(path+".new", path))
	l.left = f
}

// leaves notes something that outlives a killed test.
func (l *Lab) leaves(kind, value string) {
	l.T.Helper()
	_, err := fmt.Fprintf(l.left, "%s %s\n", kind, value)
	l.must(err)
}

// sweep takes away what labs left whose tests are gone. Labs of living tests, of this process or another, are not touched; of two
// that sweep one does. What cannot be taken away is told, and tried again by the next.
func sweep(t testing.TB) {
	t.Helper()
	lists, _ := filepath.Glob(filepath.Join("/tmp", prefix+"*", leftFile)) // the pattern is good
	for _, list := range lists {
		f, err := os.OpenFile(list, os.O_RDWR, 0)
		if err != nil {
			continue // another one was faster
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			if err := clear(f); err != nil {
				t.Logf("leftovers in %s: %v", filepath.Dir(list), err)
			} else if err := os.RemoveAll(filepath.Dir(list)); err != nil {
				t.Logf("remove directory of leftovers: %v", err)
			}
		}
		f.Close()
	}
}

// clear takes away what is listed: processes first, since they hold the rest.
func clear(list *os.File) error {
	of := map[string][]string{}
	for s := bufio.NewScanner(list); s.Scan(); {
		kind, value, _ := strings.Cut(s.Text(), " ")
		of[kind] = append(of[kind], value)
	}
	for _, p := range of[leftProcess] {
		text, start, _ := strings.Cut(p, " ")
		pid, err := strconv.Atoi(text)
		if err == nil && pid > 1 && startOf(pid) == start {
			_ = syscall.Kill(-pid, syscall.SIGKILL) // it leads its group, and may end meanwhile
		}
	}
	for _, group := range of[leftGroup] {
		if err := removeTree(group); err != nil {
			return err
		}
	}
	for _, path := range of[leftMount] {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
		_ = os.Remove(path) // with the directories that testing made for it, unless they hold more
		_ = os.Remove(filepath.Dir(path))
		_ = os.Remove(filepath.Dir(filepath.Dir(path)))
	}
	for _, dir := range of[leftPins] {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove pins: %w", err)
		}
	}
	return nil
}

// removeTree ends the processes of a cgroup and those below it, and removes them.
func removeTree(group string) error {
	if err := os.WriteFile(filepath.Join(group, "cgroup.kill"), []byte("1"), 0); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("end processes of cgroup: %w", err)
	}
	var dirs []string
	_ = filepath.WalkDir(group, func(path string, d fs.DirEntry, err error) error { // of what is gone nothing is listed
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	slices.Reverse(dirs) // the deepest first
	for _, dir := range dirs {
		err := until(5*time.Second, func() error {
			if err := os.Remove(dir); err != nil && !os.IsNotExist(err) {
				return err
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("remove cgroup: %w", err)
		}
	}
	return nil
}

// startOf is when a process started, "" when there is none; with the id it names a process for ever. proc(5), field 22.
func startOf(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 20 {
		return ""
	}
	return fields[19]
}
