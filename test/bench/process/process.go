// Package process measures the processes under a bench: what they have run and what they hold, with those that they started.
// It chooses their CPUs as well.
package process

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Family is a process and what it started.
func Family(pid int) []int {
	all := []int{pid}
	for _, f := range perThread(pid, "children") {
		text, err := os.ReadFile(f)
		if err != nil {
			continue // the thread has ended
		}
		for field := range strings.FieldsSeq(string(text)) {
			if child, err := strconv.Atoi(field); err == nil {
				all = append(all, Family(child)...)
			}
		}
	}
	return all
}

// perThread are the files of a name of all threads of a process.
func perThread(pid int, name string) []string {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/%s", pid, name)) // the pattern is right
	return files
}

// CPU sums what the threads of processes have run, in the kernel's nanoseconds.
func CPU(pids []int) (time.Duration, error) {
	var sum time.Duration
	for _, pid := range pids {
		files := perThread(pid, "schedstat")
		if len(files) == 0 {
			return 0, fmt.Errorf("process %d is gone", pid)
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				continue // the thread has ended
			}
			var ns int64
			if _, err := fmt.Sscan(string(text), &ns); err != nil {
				return 0, fmt.Errorf("read %s: %w", f, err)
			}
			sum += time.Duration(ns)
		}
	}
	return sum, nil
}

// RSS sums what processes hold, in KiB; pages that they share count for each.
func RSS(pids []int) (sum float64) {
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		if err != nil {
			continue // it has ended
		}
		var size, resident float64
		if _, err := fmt.Sscan(string(text), &size, &resident); err == nil {
			sum += resident * float64(os.Getpagesize()) / 1024
		}
	}
	return sum
}

// Pin leaves processes one CPU: their threads, and what those start from now on.
func Pin(pids []int, cpu int) error {
	var one unix.CPUSet
	one.Set(cpu)
	for _, pid := range pids {
		for _, f := range perThread(pid, "stat") {
			thread, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			if err != nil {
				return fmt.Errorf("read thread of %s: %w", f, err)
			}
			if err := unix.SchedSetaffinity(thread, &one); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("choose CPU %d for process %d: %w", cpu, pid, err)
			}
		}
	}
	return nil
}
