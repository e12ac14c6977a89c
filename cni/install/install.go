// Package install puts the CNI plugin on the node: the binary, and our entry in the primary plugin's conflist. It repairs
// the entry when another writer drops it, and takes both away again.
//
// Invariants: every file appears by rename, whole; the primary's configuration keeps its bytes apart from our entry, so
// that Uninstall gives back what was there; an agent that ends leaves both in place, so that new pods wait for it.
package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/undermesh/undermesh/cni/wire"
)

// Config says where the parts belong.
type Config struct {
	Binary  string       // the plugin to copy; required by Run
	BinDir  string       // where the runtime looks for plugins; required
	ConfDir string       // where it looks for configurations; required
	Entry   Entry        // our entry; Type is filled in
	Log     *slog.Logger // required
	// Recheck is the pause between looks at the directory beside the notifications; default 10 s.
	Recheck time.Duration
	// OnState is told after each look whether the plugin is in force; err says why not. Optional.
	OnState func(err error)
}

// savedSuffix marks the copy of a conf that was converted. It has no suffix that a CNI runtime reads.
const savedSuffix = ".undermesh-saved"

// ErrNoPrimary is returned when the directory holds no configuration to chain to: the primary plugin is not there yet.
var ErrNoPrimary = errors.New("no primary CNI configuration")

// Installer keeps the plugin in place.
type Installer struct{ cfg Config }

// New returns an installer; Run starts it.
func New(cfg Config) *Installer {
	cfg.Entry.Type = wire.PluginType
	if cfg.Recheck == 0 {
		cfg.Recheck = 10 * time.Second
	}
	return &Installer{cfg: cfg}
}

// Run installs and repairs until ctx ends, then returns nil and leaves everything in place. Errors are reported to
// OnState and tried again: a primary plugin may come later.
func (i *Installer) Run(ctx context.Context) error {
	watch, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", i.cfg.ConfDir, err)
	}
	defer watch.Close()
	if err := os.MkdirAll(i.cfg.ConfDir, 0o755); err != nil {
		return fmt.Errorf("make CNI configuration directory: %w", err)
	}
	if err := watch.Add(i.cfg.ConfDir); err != nil {
		return fmt.Errorf("watch %s: %w", i.cfg.ConfDir, err)
	}
	tick := time.NewTicker(i.cfg.Recheck)
	defer tick.Stop()
	last := ""
	for {
		err := i.Install()
		if text := fmt.Sprint(err); text != last {
			if err != nil {
				i.cfg.Log.Warn("CNI plugin not in force", "err", err)
			} else {
				i.cfg.Log.Info("CNI plugin in force", "dir", i.cfg.ConfDir)
			}
			last = text
		}
		if i.cfg.OnState != nil {
			i.cfg.OnState(err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-watch.Events:
		case err := <-watch.Errors:
			i.cfg.Log.Warn("watch of the CNI directory failed", "err", err)
		case <-tick.C:
		}
	}
}

// Install copies the binary and adds the entry; nothing is written when both are there. Returns ErrNoPrimary if there is
// nothing to chain to.
func (i *Installer) Install() error {
	if err := i.copyBinary(); err != nil {
		return err
	}
	path, data, err := i.primary()
	if err != nil {
		return err
	}
	out, err := appendEntry(data, i.cfg.Entry)
	if err != nil {
		return fmt.Errorf("chain to %s: %w", path, err)
	}
	if bytes.Equal(out, data) {
		return i.removeStale(path)
	}
	if list, _ := parse(data); list.plugins == nil {
		if path, err = i.replaceConf(path, data, out); err != nil {
			return err
		}
	} else if err := wire.WriteFileAtomic(path, out, modeOf(path)); err != nil {
		return err
	}
	i.cfg.Log.Info("CNI plugin added", "file", path)
	return i.removeStale(path)
}

// replaceConf writes the conflist made of a conf and puts the conf aside under a name that runtimes do not read.
func (i *Installer) replaceConf(path string, conf, conflist []byte) (string, error) {
	target := strings.TrimSuffix(path, filepath.Ext(path)) + ".conflist"
	if err := wire.WriteFileAtomic(path+savedSuffix, conf, modeOf(path)); err != nil {
		return "", err
	}
	if err := wire.WriteFileAtomic(target, conflist, modeOf(path)); err != nil {
		return "", err
	}
	if err := os.Remove(path); err != nil {
		return "", fmt.Errorf("put conf aside: %w", err)
	}
	return target, nil
}

// removeStale takes our entry out of every other file: the primary may have changed.
func (i *Installer) removeStale(current string) error {
	files, err := i.files()
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range files {
		if path != current {
			errs = append(errs, i.removeFrom(path))
		}
	}
	return errors.Join(errs...)
}

func (i *Installer) removeFrom(path string) error {
	data, err := os.ReadFile(path)
	if err != nil || !hasEntry(data) {
		return ignore(err, fs.ErrNotExist)
	}
	out, err := removeEntry(data)
	if err != nil {
		return fmt.Errorf("remove entry from %s: %w", path, err)
	}
	return wire.WriteFileAtomic(path, out, modeOf(path))
}

// Uninstall removes the entry, gives converted files their name back and removes the binary. It goes on after an error
// and may be repeated.
func (i *Installer) Uninstall() error {
	errs := []error{i.restoreSaved()}
	files, err := i.files()
	errs = append(errs, ignore(err, fs.ErrNotExist))
	for _, path := range files {
		errs = append(errs, i.removeFrom(path))
	}
	errs = append(errs, ignore(os.Remove(filepath.Join(i.cfg.BinDir, wire.PluginType)), fs.ErrNotExist))
	return errors.Join(errs...)
}

// restoreSaved undoes replaceConf unless somebody has changed the conflist meanwhile: then that stays, without us.
func (i *Installer) restoreSaved() error {
	saved, err := filepath.Glob(filepath.Join(i.cfg.ConfDir, "*"+savedSuffix))
	if err != nil {
		return fmt.Errorf("list saved files: %w", err)
	}
	var errs []error
	for _, s := range saved {
		errs = append(errs, i.restore(s))
	}
	return errors.Join(errs...)
}

func (i *Installer) restore(saved string) error {
	conf, err := os.ReadFile(saved)
	if err != nil {
		return fmt.Errorf("read saved configuration: %w", err)
	}
	path := strings.TrimSuffix(saved, savedSuffix)
	target := strings.TrimSuffix(path, filepath.Ext(path)) + ".conflist"
	now, err := os.ReadFile(target)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read converted configuration: %w", err)
	}
	ours := err == nil && convertedFrom(now, conf)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) && ours {
		if err := os.Rename(saved, path); err != nil {
			return fmt.Errorf("restore configuration: %w", err)
		}
		return os.Remove(target)
	}
	return os.Remove(saved)
}

// convertedFrom reports whether list is conf converted, with our entry or without.
func convertedFrom(list, conf []byte) bool {
	got, err := parse(list)
	return err == nil && len(got.plugins) > 0 && len(got.plugins) <= 2 && bytes.Equal(got.plugins[0].raw, bytes.TrimSpace(conf)) &&
		(len(got.plugins) == 1 || got.ours() == 1)
}

// primary returns the first configuration by name, as a runtime picks it.
func (i *Installer) primary() (string, []byte, error) {
	files, err := i.files()
	if err != nil {
		return "", nil, err
	}
	for _, path := range files {
		data, err := os.ReadFile(path)
		if err != nil {
			return "", nil, fmt.Errorf("read CNI configuration: %w", err)
		}
		if _, err := parse(data); err != nil {
			i.cfg.Log.Debug("file skipped", "file", path, "err", err)
			continue
		}
		return path, data, nil
	}
	return "", nil, fmt.Errorf("%s: %w", i.cfg.ConfDir, ErrNoPrimary)
}

func (i *Installer) files() ([]string, error) {
	ents, err := os.ReadDir(i.cfg.ConfDir)
	if err != nil {
		return nil, fmt.Errorf("list CNI configurations: %w", err)
	}
	var out []string
	for _, e := range ents {
		ext := filepath.Ext(e.Name())
		if slices.Contains([]string{".conf", ".conflist", ".json"}, ext) && !e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
			out = append(out, filepath.Join(i.cfg.ConfDir, e.Name()))
		}
	}
	return out, nil // ReadDir sorts
}

// copyBinary replaces the plugin when its content differs. A runtime that runs the old one is not disturbed.
func (i *Installer) copyBinary() error {
	want, err := os.ReadFile(i.cfg.Binary)
	if err != nil {
		return fmt.Errorf("read CNI plugin: %w", err)
	}
	target := filepath.Join(i.cfg.BinDir, wire.PluginType)
	have, err := os.ReadFile(target)
	if err == nil && bytes.Equal(want, have) && modeOf(target)&0o111 != 0 {
		return nil
	}
	if err := os.MkdirAll(i.cfg.BinDir, 0o755); err != nil {
		return fmt.Errorf("make CNI binary directory: %w", err)
	}
	return wire.WriteFileAtomic(target, want, 0o755)
}

func modeOf(path string) os.FileMode {
	fi, err := os.Stat(path)
	if err != nil {
		return 0o600
	}
	return fi.Mode().Perm()
}

func ignore(err, target error) error {
	if errors.Is(err, target) {
		return nil
	}
	return err
}
