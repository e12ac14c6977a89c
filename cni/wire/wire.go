// Package wire is what the CNI plugin and the node agent say to each other: JSON over HTTP in a Unix socket, and the
// digest, a file that the agent leaves for the plugin to decide by while the agent is away. It is a leaf.
package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
)

// Where agent and plugin meet.
const (
	DefaultSocket = "/var/run/istio-cni/pluginevent.sock"
	DefaultDigest = "/var/run/istio-cni/digest.json"
)

// Paths of the agent's socket, one for each CNI command; all are POST with a Request.
const (
	PathAdd    = "/v1/add"
	PathDel    = "/v1/del"
	PathCheck  = "/v1/check"
	PathStatus = "/v1/status"
	PathGC     = "/v1/gc"
)

// PluginType is the binary's name and the type of our entry in a conflist.
const PluginType = "undermesh-cni"

// MaxBody bounds a request and a response, in bytes.
const MaxBody = 256 << 10

// Request is one CNI command.
type Request struct {
	ContainerID  string       `json:"containerID,omitempty"`
	Netns        string       `json:"netns,omitempty"` // path on the node
	IfName       string       `json:"ifName,omitempty"`
	PodNamespace string       `json:"podNamespace,omitempty"`
	PodName      string       `json:"podName,omitempty"`
	PodUID       string       `json:"podUID,omitempty"`
	IPs          []netip.Addr `json:"ips,omitempty"`   // of the previous result
	Valid        []string     `json:"valid,omitempty"` // GC: container IDs that still exist
}

// Pod is namespace/name, for messages.
func (r Request) Pod() string { return r.PodNamespace + "/" + r.PodName }

// Response answers every command.
type Response struct {
	Enrolled bool   `json:"enrolled,omitempty"`
	Why      string `json:"why,omitempty"`
	// Error names the pod and the cause; "" on success.
	Error string `json:"error,omitempty"`
}

// ReadJSON decodes one bounded document and refuses unknown fields and what follows it.
func ReadJSON(r io.Reader, into any) error {
	d := json.NewDecoder(io.LimitReader(r, MaxBody))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("decode JSON: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("decode JSON: more than one document")
	}
	return nil
}

// DigestVersion is the layout that this build writes and reads.
const DigestVersion = 1

// Digest is what the agent knew when it last wrote. A namespace that is in neither list did not exist then.
type Digest struct {
	Version int `json:"version"`
	// Open namespaces are outside the mesh: their pods start without the agent.
	Open []string `json:"open"`
	// Enrolled namespaces have pods in the mesh: their pods wait for the agent.
	Enrolled []string `json:"enrolled"`
}

// IsOpen reports whether a pod of the namespace may start without the agent.
func (d Digest) IsOpen(namespace string) bool {
	return slices.Contains(d.Open, namespace) && !slices.Contains(d.Enrolled, namespace)
}

// ReadDigest reads the file at path. Every error means that nothing is known.
func ReadDigest(path string) (Digest, error) {
	f, err := os.Open(path)
	if err != nil {
		return Digest{}, fmt.Errorf("open digest: %w", err)
	}
	defer f.Close()
	var d Digest
	if err := json.NewDecoder(io.LimitReader(f, 64<<20)).Decode(&d); err != nil {
		return Digest{}, fmt.Errorf("decode digest %s: %w", path, err)
	}
	if d.Version != DigestVersion {
		return Digest{}, fmt.Errorf("digest %s has version %d, want %d", path, d.Version, DigestVersion)
	}
	return d, nil
}

// WriteDigest replaces the file at path atomically, mode 0644, and makes its directory.
func WriteDigest(path string, d Digest) error {
	d.Version = DigestVersion
	data, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("encode digest: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make directory of the digest: %w", err)
	}
	return WriteFileAtomic(path, append(data, '\n'), 0o644)
}

// WriteFileAtomic writes data beside path, syncs it and renames it over path; its name there is ".NAME.tmp", which no
// CNI runtime reads.
func WriteFileAtomic(path string, data []byte, mode os.FileMode) error {
	dir, name := filepath.Split(path)
	f, err := os.CreateTemp(dir, "."+name+".tmp*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, werr := f.Write(data)
	err = errors.Join(werr, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}
