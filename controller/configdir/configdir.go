// Package configdir serves a directory of YAML as typed objects: the mesh without a Kubernetes API server. It is a leaf.
//
// Every *.yaml, *.yml and *.json below the directory is read strictly: an unknown field, a duplicate key, an unknown
// kind or a bad name is a Problem that names file, document, object and field. A file with a problem keeps serving its
// last good state, and every other file is not disturbed. Policies (security.istio.io) are the exception: a field that
// cannot be understood is carried on the object as an Issue, so that the compiler makes the policy deny instead of
// forgetting it. Policies also outlive their file while another file, which may be that one renamed, is not understood;
// and an object that several files define is served from the file that was served before.
//
// Files below DIR/.status/ hold partial objects (annotations, labels, status) that are laid over the others: that is how
// node agents and controller write back. Names that begin with a dot are ignored otherwise.
package configdir

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/undermesh/undermesh/ztunnel/clock"
)

// StatusDir is the name of the overlay directory below Config.Dir.
const StatusDir = ".status"

// Config says what to watch.
type Config struct {
	Dir    string        // required; must exist when Load or Run is called
	Log    *slog.Logger  // default slog.DiscardHandler
	Clock  clock.Clock   // default clock.System
	Reread time.Duration // period of the full re-read that backs the notifications; default 10 s
	Settle time.Duration // a change is read this long after its last notification; default 30 ms
}

func (c Config) withDefaults() Config {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Clock == nil {
		c.Clock = clock.System()
	}
	if c.Reread <= 0 {
		c.Reread = 10 * time.Second
	}
	if c.Settle <= 0 {
		c.Settle = 30 * time.Millisecond
	}
	return c
}

// Dir is a watched directory. View, Watch and Load may be called from any goroutine.
type Dir struct {
	cfg  Config
	view atomic.Pointer[View]

	mu    sync.Mutex // protects below
	cache *cache
	subs  map[chan struct{}]struct{}
}

// New returns a Dir that has read nothing yet.
func New(cfg Config) *Dir {
	return &Dir{cfg: cfg.withDefaults(), cache: newCache(), subs: map[chan struct{}]struct{}{}}
}

// View returns what the directory holds now, nil before the first Load.
func (d *Dir) View() *View { return d.view.Load() }

// Watch returns a channel that receives after View changed; notifications are coalesced. stop releases it.
func (d *Dir) Watch() (changed <-chan struct{}, stop func()) {
	ch := make(chan struct{}, 1)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.subs[ch] = struct{}{}
	return ch, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.subs, ch)
	}
}

// Load reads the whole directory and publishes the result. It returns an error only when the directory itself cannot be
// read; what is wrong with single files is in View.Problems.
func (d *Dir) Load() (*View, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.view.Load()
	files, err := readTree(d.cfg.Dir)
	if err == nil && d.cache.loses(files) { // what is renamed while we read is in neither place: the second look finds it
		files, err = readTree(d.cfg.Dir)
	}
	if err != nil {
		return old, err
	}
	view := d.cache.update(files)
	if old != nil && view.equal(old) {
		return old, nil
	}
	for _, p := range view.Problems {
		if old == nil || !old.hasProblem(p) {
			d.cfg.Log.Warn("configuration file has a problem", "err", p)
		}
	}
	d.view.Store(view)
	for ch := range d.subs {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
	return view, nil
}

// Run keeps View up to date until ctx ends. It fails when the directory cannot be read at the start; later a directory
// that went away keeps its last view.
func (d *Dir) Run(ctx context.Context) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch directory %s: %w", d.cfg.Dir, err)
	}
	defer watcher.Close()
	if err := watchTree(watcher, d.cfg.Dir); err != nil {
		return err
	}
	if _, err := d.Load(); err != nil {
		return err
	}
	wake := make(chan struct{}, 1)
	due := d.cfg.Clock.AfterFunc(d.cfg.Reread, func() { wake <- struct{}{} })
	defer due.Stop()
	settling := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-watcher.Events:
			if !ok {
				return errors.New("watch directory: notifications ended")
			}
			if !settling { // the delay is not extended: a busy writer must not starve the readers
				settling = due.Stop()
				if settling {
					due.Reset(d.cfg.Settle)
				}
			}
		case err := <-watcher.Errors: // an overflow: what was missed is found by the re-read
			d.cfg.Log.Warn("directory notification lost", "err", err)
		case <-wake:
			settling = false
			if err := watchTree(watcher, d.cfg.Dir); err != nil {
				d.cfg.Log.Warn("watch directory", "err", err)
			}
			if _, err := d.Load(); err != nil {
				d.cfg.Log.Warn("read directory", "err", err)
			}
			due.Reset(d.cfg.Reread)
		}
	}
}

// watchTree adds every directory of the tree; adding one twice does nothing.
func watchTree(w *fsnotify.Watcher, root string) error {
	if _, err := os.Stat(root); err != nil {
		return fmt.Errorf("watch directory: %w", err)
	}
	return walkDirs(root, func(dir string) error {
		if err := w.Add(dir); err != nil {
			return fmt.Errorf("watch directory %s: %w", dir, err)
		}
		return nil
	})
}
