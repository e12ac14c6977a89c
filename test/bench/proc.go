package bench

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of /proc/PID/stat: USER_HZ is 100 on every architecture that the mesh runs on.
const tick = 10 * time.Millisecond

// usage is what processes and those that they started have used: ztunnel's supervisor and its worker count together.
type usage struct {
	cpu time.Duration // user and system, since their start
	rss int64         // bytes, now
}

func usageOf(pids []int) (usage, error) {
	var all usage
	for _, pid := range pids {
		dir := filepath.Join("/proc", strconv.Itoa(pid))
		stat, err := os.ReadFile(filepath.Join(dir, "stat"))
		if err != nil {
			return usage{}, fmt.Errorf("read usage: %w", err)
		}
		u, err := parseStat(string(stat))
		if err != nil {
			return usage{}, fmt.Errorf("read usage of process %d: %w", pid, err)
		}
		children, err := childrenOf(dir)
		if err != nil {
			return usage{}, err
		}
		below, err := usageOf(children)
		if err != nil {
			return usage{}, err
		}
		all.cpu += u.cpu + below.cpu
		all.rss += u.rss + below.rss
	}
	return all, nil
}

func childrenOf(dir string) ([]int, error) {
	files, err := filepath.Glob(filepath.Join(dir, "task", "*", "children"))
	if err != nil || len(files) == 0 {
		return nil, errors.Join(fmt.Errorf("list threads of %s: none", dir), err)
	}
	var pids []int
	for _, f := range files {
		b, err := os.ReadFile(f)
		if errors.Is(err, os.ErrNotExist) {
			continue // the thread has ended
		}
		if err != nil {
			return nil, fmt.Errorf("list children: %w", err)
		}
		for field := range strings.FieldsSeq(string(b)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				return nil, fmt.Errorf("list children in %s: %w", f, err)
			}
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// parseStat reads utime, stime and rss of a line of /proc/PID/stat; the name in it may hold spaces and parentheses.
func parseStat(line string) (usage, error) {
	f := strings.Fields(line[strings.LastIndexByte(line, ')')+1:])
	if len(f) < 22 {
		return usage{}, fmt.Errorf("stat has %d fields after the name, want 22 or more", len(f))
	}
	var n [3]int64
	for i, field := range []int{11, 12, 21} { // from the state on
		v, err := strconv.ParseInt(f[field], 10, 64)
		if err != nil {
			return usage{}, fmt.Errorf("field %d of stat: %w", field+3, err)
		}
		n[i] = v
	}
	return usage{cpu: time.Duration(n[0]+n[1]) * tick, rss: n[2] * int64(os.Getpagesize())}, nil
}

// opened sums istio_tcp_connections_opened_total by "reporter policy", as "source mutual_tls".
func opened(metrics string) map[string]int64 {
	sums := map[string]int64{}
	for line := range strings.Lines(metrics) {
		labels, value, ok := strings.Cut(strings.TrimPrefix(line, "istio_tcp_connections_opened_total{"), "} ")
		if !ok || !strings.HasPrefix(line, "istio_tcp_connections_opened_total{") {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if err != nil {
			continue
		}
		sums[label(labels, "reporter")+" "+label(labels, "connection_security_policy")] += int64(n)
	}
	return sums
}

func label(labels, name string) string {
	_, rest, ok := strings.Cut(","+labels, ","+name+`="`)
	if !ok {
		return "?"
	}
	value, _, _ := strings.Cut(rest, `"`)
	return value
}

// paths counts the lines of a connection log by "direction path", as "outbound tunnel".
func paths(log string) map[string]int64 {
	sums := map[string]int64{}
	for line := range strings.Lines(log) {
		if strings.Contains(line, `"scope":"access"`) {
			sums[jsonText(line, "direction")+" "+jsonText(line, "path")]++
		}
	}
	return sums
}

func jsonText(line, key string) string {
	_, rest, ok := strings.Cut(line, `"`+key+`":"`)
	if !ok {
		return "?"
	}
	value, _, _ := strings.Cut(rest, `"`)
	return value
}

// fact is the first value of a key in a file of lines "key : value".
func fact(file, key string) string {
	f, err := os.Open(file)
	if err != nil {
		return "unknown"
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if k, v, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}
