package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Snapshot is what a node's kernel and files hold, section by section, each a sorted list of lines. Numbers that the kernel
// gives out anew (ids of programs, inodes) are left out; names, types and attach points are in.
type Snapshot map[string][]string

// look prints, in sections, what an installed mesh could leave in a node. A network namespace has a section of each kind.
const look = `
cg=$(findmnt -t cgroup2 -n -o TARGET | head -1)
section() { echo "## $*"; }
network() {
	section "$1 rules"; $2 ip -4 rule; $2 ip -6 rule
	section "$1 routes"; $2 ip -4 route show table all; $2 ip -6 route show table all
	section "$1 sysctls"; $2 sysctl -a -r '^net\.(ipv4|ipv6|core)' 2>/dev/null
	section "$1 links"; $2 ip -o link | sed 's/^[0-9]*: //;s/[@:].*//'
	section "$1 bpftool net"; $2 bpftool net show
}
network node ""
for ns in /run/netns/*; do network "pod $(basename $ns)" "nsenter --net=$ns"; section "pod $(basename $ns) nft"; nsenter --net=$ns nft list ruleset; done
section cgroup hooks; bpftool cgroup tree $cg | awk '/^\//{c=$1;next} $1~/^[0-9]+$/{print c,$2,$3,$4}'
section cgroups; find $cg -type d -path "*mesh*" -o -type d -path "$cg/kubepods/*"
section pins; find /sys/fs/bpf | grep -v '\.debug$'
section cni; find /etc/cni/net.d /opt/cni/bin ! -type d -exec sha256sum {} +
section mounts; cat /proc/self/mounts
section unix sockets; ss -xlH | awk '{print $5}'; find /run -xdev -type s
section .netns; stat -L -c %i /run/netns/* /proc/self/ns/net
section .cgroups; find $cg -type d -exec stat -c %i {} +
section .links; bpftool -j link show; echo
section .progs; bpftool -j prog show; echo
section .maps; bpftool -j map show; echo
`

// bpfObject is what bpftool says of a link, a program or a map.
type bpfObject struct {
	ID         int
	ProgID     int `json:"prog_id"`
	Type, Name string
	AttachType string `json:"attach_type"`
	NetnsIno   int    `json:"netns_ino"`
	CgroupID   int    `json:"cgroup_id"`
	MapIDs     []int  `json:"map_ids"`
}

// Kernel is the BPF objects that belong to a node, by the kernel's ids. A machine can carry several nodes, so a program
// belongs to a node when a link holds it to one of the node's cgroups or network namespaces, and a map when such a program uses it.
type Kernel struct{ Progs, Maps map[int]string }

// Snap takes a snapshot of a node, and lists the BPF objects that belong to it.
func (w *World) Snap(ctx context.Context, node string) (Snapshot, *Kernel, error) {
	out, err := w.Cluster(ctx, "node", strings.TrimPrefix(node, "node"), "--", "sh", "-c", look)
	if err != nil {
		return nil, nil, err
	}
	raw, name := Snapshot{}, ""
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "## "); ok {
			name = rest
			raw[name] = nil
		} else if line != "" {
			raw[name] = append(raw[name], line)
		}
	}
	links, kernel, err := belonging(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("snapshot of %s: %w", node, err)
	}
	s := Snapshot{"bpf links": links}
	for name, lines := range raw {
		if !strings.HasPrefix(name, ".") {
			slices.Sort(lines)
			s[name] = lines
		}
	}
	slices.Sort(s["bpf links"])
	return s, kernel, nil
}

// Settled takes snapshots, two seconds apart, until two in a row are equal: new links get their IPv6 addresses a while after
// their pods are ready.
func (w *World) Settled(ctx context.Context, node string) (s Snapshot, k *Kernel, err error) {
	err = Until(ctx, 30*time.Second, "two equal snapshots of "+node, func(ctx context.Context) error {
		last := s
		if err := Hold(ctx, 2*time.Second); err != nil {
			return err
		}
		if s, k, err = w.Snap(ctx, node); err != nil {
			return err
		}
		if diff := last.Difference(s); len(diff) > 0 {
			return fmt.Errorf("%d lines differ, the first: %s", len(diff), diff[0])
		}
		return nil
	})
	return s, k, err
}

// belonging picks the node's links and what they hold out of the machine's.
func belonging(raw Snapshot) ([]string, *Kernel, error) {
	var links, progs, all []bpfObject
	for name, into := range map[string]*[]bpfObject{".links": &links, ".progs": &progs, ".maps": &all} {
		text := strings.Join(raw[name], "")
		if text == "" {
			continue // bpftool prints nothing when there is none
		}
		if err := json.Unmarshal([]byte(text), into); err != nil {
			return nil, nil, fmt.Errorf("parse bpftool's list %s: %w", name, err)
		}
	}
	k := &Kernel{map[int]string{}, map[int]string{}}
	own := func(section string, id int) bool { return id != 0 && slices.Contains(raw[section], fmt.Sprint(id)) }
	held := map[int]bool{}
	var lines []string
	for _, l := range links {
		if own(".netns", l.NetnsIno) || own(".cgroups", l.CgroupID) {
			held[l.ProgID] = true
			lines = append(lines, l.Type+" "+l.AttachType)
		}
	}
	used := map[int]bool{}
	for _, p := range progs {
		if held[p.ID] {
			k.Progs[p.ID] = p.Type + " " + p.Name
			for _, id := range p.MapIDs {
				used[id] = true
			}
		}
	}
	for _, m := range all {
		if used[m.ID] {
			k.Maps[m.ID] = m.Type + " " + m.Name
		}
	}
	return lines, k, nil
}

// Alive lists those of the objects that the kernel still holds.
func (w *World) Alive(ctx context.Context, node string, k *Kernel) ([]string, error) {
	out, err := w.Cluster(ctx, "node", strings.TrimPrefix(node, "node"), "--", "sh", "-c", "bpftool -j prog show; echo; bpftool -j map show; echo")
	if err != nil {
		return nil, err
	}
	lines := strings.SplitN(out, "\n", 3)
	if len(lines) != 3 {
		return nil, errors.New("bpftool printed too little")
	}
	var alive []string
	for i, was := range []map[int]string{k.Progs, k.Maps} {
		var now []bpfObject
		if lines[i] != "" {
			if err := json.Unmarshal([]byte(lines[i]), &now); err != nil {
				return nil, fmt.Errorf("parse bpftool's list: %w", err)
			}
		}
		for _, o := range now {
			if name, ok := was[o.ID]; ok {
				alive = append(alive, fmt.Sprintf("%s (id %d)", name, o.ID))
			}
		}
	}
	return alive, nil
}

// Difference lists what differs between two snapshots: "section: - line" is only in s, "+ line" only in t.
func (s Snapshot) Difference(t Snapshot) []string {
	var out []string
	sections := Snapshot{}
	maps.Copy(sections, s)
	maps.Copy(sections, t)
	for _, name := range slices.Sorted(maps.Keys(sections)) {
		count := map[string]int{}
		for _, l := range s[name] {
			count[l]--
		}
		for _, l := range t[name] {
			count[l]++
		}
		for _, l := range slices.Sorted(maps.Keys(count)) {
			switch n := count[l]; {
			case n < 0:
				out = append(out, name+": - "+l)
			case n > 0:
				out = append(out, name+": + "+l)
			}
		}
	}
	return out
}
