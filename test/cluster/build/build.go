// Package build compiles what a test cluster runs, from nested Go modules whose go.sum is committed: nothing is resolved
// at run time. Each component is cached by the hash of all that decides its bytes, so a second call costs milliseconds.
package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Versions that the linker writes into the binaries; the modules themselves are pinned by the go.mod files.
const (
	kubernetesVersion = "v1.36.3"
	containerdVersion = "v2.3.7"
	runcVersion       = "1.4.0"
)

// binary is one output of a component.
type binary struct {
	name, pkg string
	ldflags   string
}

// component is one module, or one package of it, and what is built from it.
type component struct {
	name   string
	dir    string // below test/cluster
	tags   string
	static bool // needs cgo, linked statically with the C library
	bins   []binary
}

// Component names, as in Config.Only and Set.Path.
const (
	Kubernetes = "kubeall"
	Netpol     = "netpol"
	Containerd = "containerd"
	CNI        = "cniplugins"
	Runc       = "runc"
	CoreDNS    = "coredns"
	Samples    = "samples"
)

func kubeVersionFlags() string {
	var b strings.Builder
	for _, p := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		for _, kv := range [][2]string{{"gitVersion", kubernetesVersion}, {"gitMajor", "1"}, {"gitMinor", "36"},
			{"gitTreeState", "clean"}, {"gitCommit", strings.Repeat("0", 40)}, {"buildDate", "2026-01-01T00:00:00Z"}} {
			fmt.Fprintf(&b, " -X %s.%s=%s", p, kv[0], kv[1])
		}
	}
	return b.String()
}

func components() []component {
	const ctrd = "github.com/containerd/containerd/v2"
	const cni = "github.com/containernetworking/plugins/plugins/"
	version := " -X " + ctrd + "/version.Version=" + containerdVersion
	return []component{
		{name: Kubernetes, dir: "kubeall", bins: []binary{{"kubeall", ".", kubeVersionFlags()}}},
		{name: Netpol, dir: "kubeall", bins: []binary{{"netpol", "./netpol", ""}}},
		{name: Containerd, dir: "containerd", tags: "urfave_cli_no_docs", bins: []binary{
			{"containerd", ctrd + "/cmd/containerd", version},
			{"containerd-shim-runc-v2", ctrd + "/cmd/containerd-shim-runc-v2", version},
			{"ctr", ctrd + "/cmd/ctr", version},
		}},
		{name: CNI, dir: "cniplugins", bins: []binary{
			{"bridge", cni + "main/bridge", ""}, {"loopback", cni + "main/loopback", ""},
			{"host-local", cni + "ipam/host-local", ""}, {"portmap", cni + "meta/portmap", ""},
		}},
		{name: Runc, dir: "runc", tags: "netgo osusergo seccomp", static: true, bins: []binary{
			{"runc", "github.com/opencontainers/runc", " -X main.version=" + runcVersion + " -extldflags -static"},
		}},
		{name: CoreDNS, dir: "coredns", bins: []binary{{"coredns", ".", ""}}},
		{name: Samples, dir: "", bins: []binary{{"samples", "./samples", ""}}},
	}
}

// Set is where the binaries of each component lie.
type Set struct {
	dirs map[string]string
	keys map[string]string
}

// Path is the binary of component that is named name.
func (s Set) Path(component, name string) string { return filepath.Join(s.dirs[component], name) }

// Key is the content key of component.
func (s Set) Key(component string) string { return s.keys[component] }

// Config says where to build.
type Config struct {
	// Root is the repository.
	Root string
	// Cache receives COMPONENT-KEY directories.
	Cache string
	// Only limits the work to these components; empty means all.
	Only []string
	// Log receives one line a component that had to be built.
	Log *slog.Logger
}

// Build compiles what is not yet in the cache, one component after the other (the Go tool itself uses all cores). Callers
// in several processes wait for each other.
func Build(ctx context.Context, c Config) (Set, error) {
	set := Set{dirs: map[string]string{}, keys: map[string]string{}}
	version, err := exec.CommandContext(ctx, "go", "env", "GOVERSION").Output()
	if err != nil {
		return set, fmt.Errorf("ask the go tool for its version: %w", err)
	}
	for _, m := range components() {
		if len(c.Only) > 0 && !contains(c.Only, m.name) {
			continue
		}
		key, err := contentKey(filepath.Join(c.Root, "test", "cluster"), m, string(version))
		if err != nil {
			return set, err
		}
		dir := filepath.Join(c.Cache, m.name+"-"+key)
		set.dirs[m.name], set.keys[m.name] = dir, key
		if err := c.ensure(ctx, m, dir); err != nil {
			return set, err
		}
	}
	return set, nil
}

func contains(l []string, s string) bool {
	for _, x := range l {
		if x == s {
			return true
		}
	}
	return false
}

// contentKey hashes the toolchain, flags and all files that are compiled, apart from modules, which go.sum stands for.
func contentKey(base string, m component, version string) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%s %s %s %q %v\n", version, runtime.GOARCH, m.name, m.tags, m.static)
	files := []string{"go.mod", "go.sum"}
	for _, b := range m.bins {
		fmt.Fprintf(h, "%s %s %s\n", b.name, b.pkg, b.ldflags)
		if strings.HasPrefix(b.pkg, ".") {
			more, err := filepath.Glob(filepath.Join(base, m.dir, b.pkg, "*.go"))
			if err != nil {
				return "", fmt.Errorf("list sources of %s: %w", m.name, err)
			}
			for _, f := range more {
				if strings.HasSuffix(f, "_test.go") {
					continue
				}
				rel, err := filepath.Rel(filepath.Join(base, m.dir), f)
				if err != nil {
					return "", fmt.Errorf("name source of %s: %w", m.name, err)
				}
				files = append(files, rel)
			}
		}
	}
	for _, name := range files {
		f, err := os.Open(filepath.Join(base, m.dir, name))
		if err != nil {
			return "", fmt.Errorf("read source of %s: %w", m.name, err)
		}
		fmt.Fprintf(h, "%s\n", name)
		_, err = io.Copy(h, f)
		f.Close()
		if err != nil {
			return "", fmt.Errorf("read source of %s: %w", m.name, err)
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:12], nil
}

func complete(m component, dir string) bool {
	for _, b := range m.bins {
		if _, err := os.Stat(filepath.Join(dir, b.name)); err != nil {
			return false
		}
	}
	return true
}

// ensure builds m into dir unless it is there. The directory appears complete, by rename.
func (c Config) ensure(ctx context.Context, m component, dir string) error {
	if complete(m, dir) {
		return nil
	}
	if err := os.MkdirAll(c.Cache, 0o755); err != nil {
		return fmt.Errorf("make build cache: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(c.Cache, m.name+".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return fmt.Errorf("open build lock of %s: %w", m.name, err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock build of %s: %w", m.name, err)
	}
	if complete(m, dir) {
		return nil
	}
	start := time.Now()
	c.Log.Info("building", "component", m.name)
	tmp, err := os.MkdirTemp(c.Cache, m.name+".tmp-")
	if err != nil {
		return fmt.Errorf("make build directory of %s: %w", m.name, err)
	}
	defer os.RemoveAll(tmp)
	for _, b := range m.bins {
		if err := c.compile(ctx, m, b, filepath.Join(tmp, b.name)); err != nil {
			return err
		}
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return fmt.Errorf("open up build directory of %s: %w", m.name, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove incomplete build of %s: %w", m.name, err)
	}
	if err := os.Rename(tmp, dir); err != nil {
		return fmt.Errorf("publish build of %s: %w", m.name, err)
	}
	c.Log.Info("built", "component", m.name, "dur", time.Since(start).Round(100*time.Millisecond).String())
	return nil
}

func (c Config) compile(ctx context.Context, m component, b binary, out string) error {
	args := []string{"build", "-mod=readonly", "-trimpath", "-ldflags", "-s -w" + b.ldflags, "-o", out}
	if m.tags != "" {
		args = append(args, "-tags", m.tags)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, b.pkg)...)
	cmd.Dir = filepath.Join(c.Root, "test", "cluster", m.dir)
	cgo := "CGO_ENABLED=0"
	if m.static {
		cgo = "CGO_ENABLED=1"
	}
	cmd.Env = append(os.Environ(), cgo, "GOWORK=off", "GOFLAGS=")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s of %s: %w\n%s", b.name, m.name, err, msg)
	}
	return nil
}

// Dirs returns the directory of each component.
func (s Set) Dirs() map[string]string { return s.dirs }
