package datapath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/undermesh/undermesh/bpf/types"
	"github.com/undermesh/undermesh/nodeagent/maps"
)

// Cleanup takes the pod out: outbound, inbound, rules, routes, sysctls back to what they were, entries, listeners, pins.
// It works when the namespace is gone, too. After an error it can be repeated.
func (h *PodHandle) Cleanup(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return h.cleanup()
}

func (h *PodHandle) cleanup() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil
	}
	if h.tables != nil {
		if err := h.tables.pods.Delete(h.cookie); err != nil { // outbound is off
			return fmt.Errorf("clean up pod %s: %w", h.uid, err)
		}
	}
	if err := h.detachLocked(); err != nil {
		return fmt.Errorf("clean up pod %s: %w", h.uid, err)
	}
	if h.ns != nil {
		if err := h.revertNetworkLocked(); err != nil {
			return fmt.Errorf("clean up pod %s: %w", h.uid, err)
		}
	}
	if h.tables != nil {
		if err := h.deleteEntriesLocked(); err != nil {
			return fmt.Errorf("clean up pod %s: %w", h.uid, err)
		}
	}
	if err := os.RemoveAll(h.dir); err != nil {
		return fmt.Errorf("remove pins of pod %s: %w", h.uid, err)
	}
	h.closeLocked()
	return nil
}

func (h *PodHandle) deleteEntriesLocked() error {
	_, _, err := h.tables.ports.Apply(h.ports, nil)
	if err == nil {
		_, _, err = h.tables.cidrs.Apply(h.cidrs, nil)
	}
	// Entries before the count: one that a leg gives back later must not be missing from a new count.
	for _, t := range []maps.Table[types.BPFMeshFlowKey, types.BPFMeshFlow]{h.tables.flows, h.tables.dials} {
		_, perr := t.Prune(func(_ types.BPFMeshFlowKey, f types.BPFMeshFlow) bool { return f.Cookie != h.cookie })
		err = errors.Join(err, perr)
	}
	return errors.Join(err, h.tables.usage.Delete(h.cookie))
}

// close lets go of descriptors; pins stay.
func (h *PodHandle) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closeLocked()
}

func (h *PodHandle) closeLocked() {
	if h.closed {
		return
	}
	h.closed = true
	for _, f := range h.files {
		_ = f.Close()
	}
	h.files = nil
	if h.link != nil {
		_ = h.link.Close()
	}
	for _, m := range []*ebpf.Map{h.config, h.listeners} {
		if m != nil {
			_ = m.Close()
		}
	}
	if h.ns != nil {
		_ = h.ns.Close()
	}
}

// Pods gives every pod that the datapath knows, from this run or recovered from pins of an earlier one.
func (d *Datapath) Pods() ([]*PodHandle, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.open {
		return nil, ErrNotOpen
	}
	return d.podsLocked()
}

func (d *Datapath) podsLocked() ([]*PodHandle, error) {
	entries, err := os.ReadDir(d.podsDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list pinned pods: %w", err)
	}
	var all []*PodHandle
	var errs []error
	for _, e := range entries {
		h, err := d.handleLocked(e.Name())
		if err != nil {
			errs = append(errs, ignore(err, fs.ErrNotExist))
			continue
		}
		all = append(all, h)
	}
	return all, errors.Join(errs...)
}

// handleLocked finds the pod in memory or recovers it from its pins. Returns fs.ErrNotExist if there are none; a
// directory without a record, left by a death at the very start, is removed.
func (d *Datapath) handleLocked(uid string) (*PodHandle, error) {
	if h := d.handles[uid]; h != nil {
		h.mu.Lock()
		gone := h.closed
		h.mu.Unlock()
		if !gone {
			return h, nil
		}
		delete(d.handles, uid) // cleaned up
	}
	dir := d.podDir(uid)
	rec, err := readRecord(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(os.RemoveAll(dir), err)
	}
	if err != nil {
		return nil, err
	}
	h := d.newHandleLocked(rec)
	if err := h.recover(); err != nil {
		h.close()
		return nil, fmt.Errorf("recover pod %s: %w", uid, err)
	}
	d.handles[uid] = h
	return h, nil
}

// recover opens the pins, and the namespace if it can be found.
func (h *PodHandle) recover() error {
	l, err := link.LoadPinnedLink(filepath.Join(h.dir, progLookup), nil)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("open link: %w", err)
	}
	if err == nil {
		h.link = l
	}
	if h.ns, err = h.rec.findNetns(); err != nil {
		h.ns = nil
		if !errors.Is(err, ErrNetnsGone) {
			return err
		}
	}
	if h.tables == nil {
		return nil // only to be cleaned up
	}
	if err := h.openMapsLocked(); err != nil {
		return err
	}
	if h.ports, err = h.tables.ports.Select(func(k types.BPFMeshPortKey) bool { return k.Cookie == h.cookie }); err != nil {
		return err
	}
	mine := cookieBytes(h.cookie)
	h.cidrs, err = h.tables.cidrs.Select(func(k types.BPFMeshCidrKey) bool { return k.Cookie == mine })
	return err
}

// Prune cleans up every pod whose UID keep does not want: those deleted while the agent was away.
func (d *Datapath) Prune(ctx context.Context, keep func(uid string) bool) error {
	pods, err := d.Pods()
	errs := []error{err}
	for _, h := range pods {
		if !keep(h.uid) {
			errs = append(errs, h.Cleanup(ctx))
		}
	}
	return errors.Join(errs...)
}
