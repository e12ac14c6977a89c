package datapath

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/undermesh/undermesh/nodeagent/netns"
)

const recordName = "mesh_record"

// record is what the agent must remember of a pod to take it out of the mesh again, after a restart too. It is the JSON
// value of a pinned array map, so it lives exactly as long as the other pins and is replaced by one rename.
type record struct {
	UID     string            `json:"uid"`
	Cookie  uint64            `json:"cookie"`
	Netns   netns.ID          `json:"netns"`
	Path    string            `json:"path,omitempty"` // where the namespace was opened
	IPs     []netip.Addr      `json:"ips"`
	Tunnel  uint16            `json:"tunnelPort"`
	Sysctls map[string]string `json:"sysctls"` // values before enrolment
}

// write replaces the record in dir.
func (r record) write(dir string) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode record of pod %s: %w", r.UID, err)
	}
	size := (len(b) + 7) / 8 * 8
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: recordName, Type: ebpf.Array, KeySize: 4, ValueSize: uint32(size), MaxEntries: 1})
	if err != nil {
		return fmt.Errorf("create record of pod %s: %w", r.UID, err)
	}
	defer m.Close()
	next := filepath.Join(dir, recordName+"_next")
	err = errors.Join(m.Put(uint32(0), append(b, make([]byte, size-len(b))...)), ignore(os.Remove(next), fs.ErrNotExist))
	if err == nil {
		err = m.Pin(next)
	}
	if err == nil {
		err = os.Rename(next, filepath.Join(dir, recordName))
	}
	if err != nil {
		return fmt.Errorf("pin record of pod %s: %w", r.UID, err)
	}
	return nil
}

// readRecord reads the record in dir. Returns fs.ErrNotExist if there is none: then nothing was done to the pod yet.
func readRecord(dir string) (record, error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, recordName), nil)
	if err != nil {
		return record{}, fmt.Errorf("open record of pod %s: %w", filepath.Base(dir), err)
	}
	defer m.Close()
	b, err := m.LookupBytes(uint32(0))
	if err != nil {
		return record{}, fmt.Errorf("read record of pod %s: %w", filepath.Base(dir), err)
	}
	var r record
	if err := json.Unmarshal(bytes.TrimRight(b, "\x00"), &r); err != nil {
		return record{}, fmt.Errorf("decode record of pod %s: %w", filepath.Base(dir), err)
	}
	return r, nil
}

// findNetns opens the namespace of the record again: where it was, or as the namespace of a process. Returns
// ErrNetnsGone if no process and no path leads to it.
func (r record) findNetns() (*netns.NetNS, error) {
	if ns := r.try(r.Path); ns != nil {
		return ns, nil
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	want := "net:[" + strconv.FormatUint(r.Netns.Inode, 10) + "]"
	for _, p := range procs {
		if strings.Trim(p.Name(), "0123456789") != "" {
			continue
		}
		path := filepath.Join("/proc", p.Name(), "ns/net")
		if got, err := os.Readlink(path); err != nil || got != want {
			continue
		}
		if ns := r.try(path); ns != nil {
			return ns, nil
		}
	}
	return nil, fmt.Errorf("find network namespace of pod %s: %w", r.UID, ErrNetnsGone)
}

// try opens path if it is still the record's namespace. Inodes are used again, cookies are not.
func (r record) try(path string) *netns.NetNS {
	if path == "" {
		return nil
	}
	ns, err := netns.OpenPath(path)
	if err != nil {
		return nil
	}
	if c, err := ns.Cookie(); err != nil || c != r.Cookie {
		_ = ns.Close()
		return nil
	}
	return ns
}
