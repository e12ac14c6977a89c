package install

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/undermesh/undermesh/cni/wire"
)

// primaries are configurations as other projects write them; formatting must survive.
var primaries = map[string]string{
	"compact":  `{"cniVersion":"1.0.0","name":"kbr","plugins":[{"type":"bridge","ipam":{"type":"host-local"}},{"type":"portmap","capabilities":{"portMappings":true}}]}`,
	"indented": "{\n  \"name\": \"k8s-pod-network\",\n  \"cniVersion\": \"0.3.1\",\n  \"plugins\": [\n    {\n      \"type\": \"calico\",\n      \"mtu\": 0\n    } ,\n    {\"type\": \"bandwidth\", \"x\": [1, {\"plugins\": []}]}\n  ],\n  \"disableCheck\": true\n}\n",
	"tabs":     "{\t\"plugins\":\t[ {\"type\":\"ptp\"}\t] ,\"name\":\"a\"}",
}

func entry() Entry {
	return Entry{Type: wire.PluginType, Socket: "/run/a.sock", ExcludeNamespaces: []string{"kube-system"}}
}

func TestConflistRoundTripKeepsEveryByte(t *testing.T) {
	for name, conf := range primaries {
		t.Run(name, func(t *testing.T) {
			with, err := appendEntry([]byte(conf), entry())
			if err != nil {
				t.Fatal(err)
			}
			var got struct {
				Plugins []map[string]any `json:"plugins"`
			}
			if err := json.Unmarshal(with, &got); err != nil {
				t.Fatal(err)
			}
			if last := got.Plugins[len(got.Plugins)-1]; last["type"] != wire.PluginType || last["socket"] != "/run/a.sock" {
				t.Errorf("last plugin: %v", last)
			}
			again, err := appendEntry(with, entry())
			if err != nil || !bytes.Equal(again, with) {
				t.Errorf("second append changed the file: %v", err)
			}
			changed := entry()
			changed.Socket = "/run/b.sock"
			moved, err := appendEntry(with, changed)
			if err != nil || bytes.Count(moved, []byte(wire.PluginType)) != 1 || !bytes.Contains(moved, []byte("/run/b.sock")) {
				t.Errorf("changed entry: %v\n%s", err, moved)
			}
			without, err := removeEntry(moved)
			if err != nil || string(without) != conf {
				t.Errorf("removal left\n%s\nwant\n%s (%v)", without, conf, err)
			}
		})
	}
}

func TestEntryIsMovedToTheEnd(t *testing.T) {
	with, err := appendEntry([]byte(primaries["compact"]), entry())
	if err != nil {
		t.Fatal(err)
	}
	// Another writer chained itself behind us.
	list, err := parse(with)
	if err != nil {
		t.Fatal(err)
	}
	end := list.plugins[len(list.plugins)-1].end
	both := string(with[:end]) + `,{"type":"tuning"}` + string(with[end:])
	moved, err := appendEntry([]byte(both), entry())
	if err != nil {
		t.Fatal(err)
	}
	if list, err = parse(moved); err != nil || list.ours() != len(list.plugins)-1 || len(list.plugins) != 4 {
		t.Errorf("%v\n%s", err, moved)
	}
}

func TestForeignFilesAreRefused(t *testing.T) {
	for _, s := range []string{``, `[]`, `{}`, `{"plugins":{}}`, `{"plugins":[]}`, `{"plugins":[{"type":"a"}]}x`, `{"type":"a"}`,
		`{"plugins":[{"type":"a"}],"plugins":[{"type":"b"}]}`, `{"plugins":[1]}`} {
		if out, err := appendEntry([]byte(s), entry()); err == nil {
			t.Errorf("accepted %s: %s", s, out)
		}
	}
}

func newInstaller(t *testing.T) (*Installer, string) {
	t.Helper()
	root := t.TempDir()
	bin := filepath.Join(root, "undermesh-cni")
	if err := os.WriteFile(bin, []byte("v1"), 0o600); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(root, "net.d")
	if err := os.MkdirAll(conf, 0o755); err != nil {
		t.Fatal(err)
	}
	return New(Config{Binary: bin, BinDir: filepath.Join(root, "bin"), ConfDir: conf, Entry: entry(),
		Log: slog.New(slog.DiscardHandler), Recheck: time.Hour}), conf
}

func put(t *testing.T, path, data string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// snapshot is every file below root with its content.
func snapshot(t *testing.T, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			out[path] = get(t, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestInstallUninstallLeavesNoTrace(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"conflist": {"10-a.conflist": primaries["indented"], "20-b.conflist": primaries["compact"], "README": "x"},
		"conf":     {"05-kbr.conf": "{\n \"cniVersion\": \"0.4.0\", \"name\": \"kbr\", \"type\": \"bridge\" }\n"},
	} {
		t.Run(name, func(t *testing.T) {
			i, dir := newInstaller(t)
			for f, data := range files {
				put(t, filepath.Join(dir, f), data)
			}
			before := snapshot(t, dir)
			for range 2 {
				if err := i.Install(); err != nil {
					t.Fatal(err)
				}
			}
			path, data, err := i.primary()
			if err != nil || !hasEntry(data) || filepath.Ext(path) != ".conflist" {
				t.Fatalf("primary %s: %v\n%s", path, err, data)
			}
			if fi, err := os.Stat(filepath.Join(i.cfg.BinDir, wire.PluginType)); err != nil || fi.Mode().Perm() != 0o755 {
				t.Errorf("binary: %v %v", fi, err)
			}
			for range 2 {
				if err := i.Uninstall(); err != nil {
					t.Fatal(err)
				}
			}
			after := snapshot(t, dir)
			if len(after) != len(before) {
				t.Errorf("files before %v, after %v", before, after)
			}
			for f, data := range before {
				if after[f] != data {
					t.Errorf("%s is now\n%s", f, after[f])
				}
			}
			if _, err := os.Stat(filepath.Join(i.cfg.BinDir, wire.PluginType)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("binary is left: %v", err)
			}
		})
	}
}

func TestNoPrimary(t *testing.T) {
	i, _ := newInstaller(t)
	if err := i.Install(); !errors.Is(err, ErrNoPrimary) {
		t.Errorf("Install: %v", err)
	}
}

// looks collects what Run reports.
func start(t *testing.T, i *Installer) chan error {
	t.Helper()
	states := make(chan error, 64)
	i.cfg.OnState = func(err error) { states <- err }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- i.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return states
}

// await waits for a look after which ok holds.
func await(t *testing.T, states chan error, what string, ok func(err error) bool) {
	t.Helper()
	deadline := time.After(5 * time.Second)
	for {
		select {
		case err := <-states:
			if ok(err) {
				return
			}
		case <-deadline:
			t.Fatalf("not within 5 s: %s", what)
		}
	}
}

func TestRepair(t *testing.T) {
	i, dir := newInstaller(t)
	states := start(t, i)
	await(t, states, "no primary yet", func(err error) bool { return errors.Is(err, ErrNoPrimary) })
	path := filepath.Join(dir, "10-a.conflist")
	has := func(f string) func(error) bool {
		return func(err error) bool { return err == nil && hasEntry([]byte(get(t, f))) }
	}
	put(t, path, primaries["indented"])
	await(t, states, "primary came late", has(path))
	put(t, path, primaries["compact"]) // the primary's own installer writes again
	await(t, states, "repaired", has(path))
	first := filepath.Join(dir, "00-z.conflist")
	put(t, first, primaries["tabs"])
	await(t, states, "another primary", func(err error) bool {
		return has(first)(err) && !hasEntry([]byte(get(t, path)))
	})
	if get(t, path) != primaries["compact"] {
		t.Errorf("the former primary is not as it was:\n%s", get(t, path))
	}
}

func FuzzConflist(f *testing.F) {
	for _, p := range primaries {
		f.Add([]byte(p))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := parse(data)
		if err != nil || list.plugins == nil || list.ours() >= 0 {
			return
		}
		with, err := appendEntry(data, entry())
		if err != nil {
			return
		}
		if !json.Valid(with) || !hasEntry(with) {
			t.Fatalf("broken: %s", with)
		}
		without, err := removeEntry(with)
		if err != nil || !bytes.Equal(without, data) {
			t.Fatalf("not restored: %v\n%s\n%s", err, data, without)
		}
	})
}
