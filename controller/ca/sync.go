package ca

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// ErrPlugInGone is returned when cacerts, which were in force, are no longer there.
var ErrPlugInGone = errors.New("cacerts are gone: what they said last stays in force; store them again, or go back to a self-signed root with ca rotate")

// ErrNotAgreed is returned at a start when the root that is wanted is another one than the mesh has: the leader knows more.
var ErrNotAgreed = errors.New("the signing certificate leads to another root than the mesh's, which the leader has not taken in yet")

// ErrKeyLost is returned at a start when the key of the mesh's root is in no Secret, and no operator has said to go on without.
// Whoever deletes a Secret must not choose the mesh's root by it.
var ErrKeyLost = errors.New("the key of the mesh's root is neither in cacerts nor in istio-ca-secret: put the Secret back, or go on with another root by ca rotate")

// Sync takes in what the stores say now, and decides what is next if this replica leads. What is missing, malformed or
// unreachable changes nothing that was good before, and is an error. Returns ErrOtherRoot if another root is stored and
// there is no RotationStore that could lead to it.
func (a *Authority) Sync(ctx context.Context, lead bool) error {
	a.syncing.Lock()
	defer a.syncing.Unlock()
	now := a.cfg.Clock.Now()
	bad := errors.Join(a.readExternal(ctx), a.readWanted(ctx, lead, now))
	if a.wanted == nil || a.cfg.External != nil && a.external == nil {
		return bad
	}
	record, err := a.agree(ctx, lead, now)
	if err != nil {
		return errors.Join(bad, err)
	}
	return errors.Join(bad, a.adopt(record, now))
}

// readWanted reads the signing certificate that is asked for; with an error the last good one stays wanted.
func (a *Authority) readWanted(ctx context.Context, lead bool, now time.Time) error {
	files, plugged, err := a.files(ctx, lead, now)
	if plugged && err == nil {
		a.fallback = nil // they are there
	}
	switch {
	case err != nil:
		return err
	case a.wanted.madeFrom(files):
		return nil
	case !plugged && a.wanted != nil && a.wanted.plugged:
		fallback, err := parseRoot(files, now)
		if err != nil {
			return fmt.Errorf("check stored root: %w", err)
		}
		a.fallback = fallback
		return ErrPlugInGone
	}
	parse, what := parseRoot, "stored root"
	if plugged {
		parse, what = parsePlugIn, "cacerts"
	}
	iss, err := parse(files, now)
	if err != nil {
		return fmt.Errorf("check %s: %w", what, err)
	}
	a.cfg.Log.Info("signing certificate loaded", "subject", iss.cert.Subject.String(), "plugged_in", iss.plugged,
		"root", Fingerprint(encodeCert(iss.root().Raw)), "not_after", iss.cert.NotAfter)
	a.wanted, a.fallback = iss, nil
	return nil
}

// files are those of cacerts, or those of the self-signed root, which is made when there never was any. Returns ErrKeyLost if
// there was.
func (a *Authority) files(ctx context.Context, lead bool, now time.Time) (files map[string][]byte, plugged bool, err error) {
	if a.cfg.PlugIn != nil {
		files, err = a.cfg.PlugIn(ctx)
		if err != nil {
			return nil, true, fmt.Errorf("read cacerts: %w", err)
		}
		if files != nil || a.cfg.Store == nil {
			return files, true, nil
		}
	}
	files, err = a.cfg.Store.Load(ctx)
	if err != nil {
		return nil, false, fmt.Errorf("load root: %w", err)
	}
	if files != nil {
		return files, false, nil
	}
	switch kept := a.wanted; {
	case kept == nil:
		if err := a.mayMake(ctx, lead); err != nil {
			return nil, false, err
		}
		if files, err = selfSigned(a.cfg.TrustDomain(), now); err != nil {
			return nil, false, fmt.Errorf("make root: %w", err)
		}
	case kept.plugged && !lead:
		return nil, false, ErrPlugInGone
	case kept.plugged:
		if files, err = selfSigned(a.cfg.TrustDomain(), now); err != nil {
			return nil, false, fmt.Errorf("make root: %w", err)
		}
	case !lead:
		return kept.files, false, nil
	default:
		// The next controller that starts would make another root, and the mesh would fall apart into those who trust the one
		// and those who trust the other.
		a.cfg.Log.Warn("stored root was gone and is stored again")
		files = kept.files
	}
	if files, err = a.cfg.Store.CreateOnce(ctx, files); err != nil {
		return nil, false, fmt.Errorf("store root: %w", err)
	}
	return files, false, nil
}

// mayMake returns an error if a root was made before, or plugged in, and no operator has asked for another one.
func (a *Authority) mayMake(ctx context.Context, lead bool) error {
	if a.cfg.Rotation == nil {
		return nil
	}
	record, err := a.cfg.Rotation.Load(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("load record of the rotation: %w", err)
	case record == nil, lead && (record.asked() || len(record.Made) > 0):
		return nil
	}
	return record.lost()
}

func (a *Authority) readExternal(ctx context.Context) error {
	if a.cfg.External == nil {
		return nil
	}
	roots, err := a.cfg.External.readRoots(ctx)
	if err != nil {
		return err
	}
	a.external = roots
	return nil
}

// agree reads the record, and the leader brings it forward.
func (a *Authority) agree(ctx context.Context, lead bool, now time.Time) (*Record, error) {
	if a.cfg.Rotation == nil {
		return nil, nil
	}
	record, err := a.cfg.Rotation.Load(ctx)
	if err != nil {
		return nil, fmt.Errorf("load record of the rotation: %w", err)
	}
	a.mu.RLock()
	last := a.record
	a.mu.RUnlock()
	lost := record == nil && last != nil
	if lost { // without it an old root would be forgotten that is still in use
		record = last.clone()
		record.Version, record.Request = "", nil
	}
	a.fallBack(record, lead)
	if !lead {
		return record, nil
	}
	s := a.situation(record, now)
	if record, err = a.madeRoot(record, &s); err != nil {
		return nil, err
	}
	if record.lacks(s) {
		return nil, record.lost()
	}
	next, changed := record.advance(s)
	if !changed && !lost {
		return record, nil
	}
	return next, a.store(ctx, record, next, s.want)
}

// fallBack lets the self-signed root be wanted again when cacerts are gone: an operator asked for it, or did before. That they
// are gone is no reason by itself.
func (a *Authority) fallBack(record *Record, lead bool) {
	if a.fallback == nil || record == nil {
		return
	}
	root := encodeCert(a.fallback.root().Raw)
	if lead && len(record.Next) == 0 && record.asked() || bytes.Equal(root, record.Next) || bytes.Equal(root, record.Root) {
		a.wanted, a.fallback = a.fallback, nil
	}
}

// situation is what the leader decides by.
func (a *Authority) situation(record *Record, now time.Time) situation {
	s := situation{want: a.wanted, now: now, spread: a.cfg.Spread, longest: a.cfg.MaxTTL}
	a.mu.RLock()
	defer a.mu.RUnlock()
	s.inForce = a.issuer
	if record != nil {
		s.told, s.signer = a.published.since(record.Next), a.published.since(record.External)
	}
	s.external = encodeCerts(a.external)
	return s
}

// store makes a decision count for all replicas.
func (a *Authority) store(ctx context.Context, was, next *Record, want *issuer) error {
	was = was.clone()
	if len(was.Made) > 0 && len(next.Made) == 0 && bytes.Equal(next.Root, was.Next) {
		// First the root, then the record: what is between them is seen as a rotation that is not over, and done again.
		if err := a.cfg.Rotation.ReplaceRoot(ctx, was.Made); err != nil {
			return fmt.Errorf("store the next root: %w", err)
		}
		a.wanted = want
	}
	if err := a.cfg.Rotation.Save(ctx, next); err != nil {
		return fmt.Errorf("store record of the rotation: %w", err)
	}
	for _, step := range next.Steps {
		if !slices.Contains(was.Steps, step) {
			a.cfg.Log.Info("root rotation", "step", step.What, "root", step.Root, "by", step.By)
		}
	}
	return nil
}

// madeRoot makes the self-signed root that an operator asked for, and lets one that is under way be what is wanted.
func (a *Authority) madeRoot(record *Record, s *situation) (*Record, error) {
	if record == nil || s.want.plugged {
		return record, nil
	}
	if len(record.Made) == 0 && !bytes.Equal(encodeCert(s.want.root().Raw), record.Root) {
		return record, nil // another one is wanted already
	}
	if len(record.Made) == 0 {
		if !record.asked() || len(record.Next) > 0 {
			return record, nil
		}
		made, err := selfSigned(a.cfg.TrustDomain(), s.now)
		if err != nil {
			return nil, fmt.Errorf("make root: %w", err)
		}
		record = record.clone()
		record.Made = made
	}
	want, err := parseRoot(record.Made, s.now)
	if err != nil {
		return nil, fmt.Errorf("check the root that was made: %w", err)
	}
	s.want = want
	return record, nil
}

// adopt makes the record count.
func (a *Authority) adopt(record *Record, now time.Time) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	inForce, err := a.inForceLocked(record, now)
	if inForce == nil {
		return err
	}
	if inForce != a.issuer {
		a.cfg.Log.Info("signing certificate in force", "subject", inForce.cert.Subject.String(),
			"root", Fingerprint(encodeCert(inForce.root().Raw)), "not_after", inForce.cert.NotAfter)
	}
	a.issuer, a.record, a.signers = inForce, record, a.external
	a.bundle = record.trusted(inForce, a.external, now)
	return err
}

func (a *Authority) inForceLocked(record *Record, now time.Time) (*issuer, error) {
	want, held := a.wanted, a.issuer
	if record == nil {
		switch {
		case held == nil || held.root().Equal(want.root()):
			return want, nil
		case a.cfg.Rotation == nil:
			return held, ErrOtherRoot
		}
		return held, nil // until the leader has taken the new root in
	}
	root := encodeCert(want.root().Raw)
	if len(record.Next) > 0 && len(record.Signer) > 0 {
		if held.madeFrom(record.Signer) {
			return held, nil
		}
		signer, err := parseIssuer(record.Signer, now)
		if err == nil {
			return signer, nil
		}
		return want, fmt.Errorf("check the signing certificate that is being replaced: %w", err)
	}
	switch {
	case bytes.Equal(root, record.Root):
		return want, nil
	case held != nil:
		return held, nil // the leader has not taken the new root in yet
	case bytes.Equal(root, record.Next):
		return want, nil // its key is all there is
	case want.plugged:
		return nil, ErrNotAgreed
	}
	return nil, record.lost()
}
