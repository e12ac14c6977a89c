package ca

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Operator's requests of a rotation (undermesh ca).
const (
	RequestRotate   = "rotate"   // make a new self-signed root
	RequestSwitch   = "switch"   // sign with the next root now: every node was seen to trust it
	RequestWithdraw = "withdraw" // trust the old roots no longer: no certificate of theirs is in use
)

const maxSteps = 50 // that a Record remembers

// ErrConflict is returned by RotationStore.Save if somebody else stored a record meanwhile.
var ErrConflict = errors.New("the record of the rotation was changed by somebody else")

// Record is what the replicas agree upon: which root signs, which is to come, which are still trusted.
//
//   - nothing under way: Next is empty. Root signs.
//   - a root is to come: Next is published beside Root, and Signer goes on signing, until Config.Spread has passed since
//     the publication.
//   - it signs: Root is what Next was, and the old one is in Trusted until nothing that it signed is valid.
type Record struct {
	Root  []byte    `json:"root"`           // PEM: the root of the signing certificate in force
	Next  []byte    `json:"next,omitempty"` // PEM: the root to come; empty: none
	Since time.Time `json:"since,omitzero"` // when Next was first recorded

	// External is the root of the certificates that an external signer makes; it does from ExternalFrom on. While that is zero
	// the root is published, and nothing is signed by it.
	External     []byte    `json:"external,omitempty"`
	ExternalFrom time.Time `json:"externalFrom,omitzero"`

	Trusted []Old  `json:"trusted,omitempty"`
	Steps   []Step `json:"steps,omitempty"` // newest last

	Signer  map[string][]byte `json:"-"` // while Next is set: the files of the signing certificate in force
	Made    map[string][]byte `json:"-"` // while Next is set and self-signed: its files
	Request *Request          `json:"-"` // of an operator, not done yet
	Version string            `json:"-"` // of the store
}

// Old is a root that signs no longer.
type Old struct {
	Root  []byte    `json:"root"`  // PEM
	Until time.Time `json:"until"` // when nothing is valid that it signed
}

// Step is one thing that happened.
type Step struct {
	At   time.Time `json:"at"`
	What string    `json:"what"`
	Root string    `json:"root,omitempty"` // fingerprint
	By   string    `json:"by,omitempty"`   // who asked for it; "": nobody had to
}

// Request is an operator's word.
type Request struct {
	Step string    `json:"step"`
	By   string    `json:"by"`
	At   time.Time `json:"at"`
}

// RotationStore keeps the Record.
type RotationStore interface {
	// Load returns nil and no error when there is none.
	Load(ctx context.Context) (*Record, error)
	// Save stores r if what is stored has r.Version still (none for ""), and returns ErrConflict otherwise.
	Save(ctx context.Context, r *Record) error
	// ReplaceRoot puts another self-signed root where the Store has it.
	ReplaceRoot(ctx context.Context, files map[string][]byte) error
}

// Fingerprint is how a root is named: the first 16 hexadecimal digits of its SHA-256; "" for what is no certificate.
func Fingerprint(root []byte) string {
	certs, err := parseCerts(root)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(certs[0].Raw)
	return hex.EncodeToString(sum[:8])
}

// Expiry is when a root ends.
func Expiry(root []byte) (time.Time, error) {
	certs, err := parseCerts(root)
	if err != nil {
		return time.Time{}, err
	}
	return certs[0].NotAfter, nil
}

// IsRefusal reports whether a step says no to an operator.
func IsRefusal(s Step) bool { return strings.Contains(s.What, "is refused: ") }

// clone is a copy whose lists may be changed.
func (r *Record) clone() *Record {
	if r == nil {
		return &Record{}
	}
	out := *r
	out.Trusted, out.Steps = slices.Clone(r.Trusted), slices.Clone(r.Steps)
	return &out
}

func (r *Record) note(now time.Time, what string, root []byte, by string) {
	r.Steps = append(r.Steps, Step{At: now.UTC().Truncate(time.Second), What: what, Root: Fingerprint(root), By: by})
	if n := len(r.Steps); n > maxSteps {
		r.Steps = slices.Clone(r.Steps[n-maxSteps:])
	}
}

// situation is what a decision is made of.
type situation struct {
	want     *issuer   // what the Secrets ask for
	inForce  *issuer   // what signs; nil at a start
	external []byte    // PEM; nil: there is no external signer
	told     time.Time // when the nodes were first given Next, with all other roots; zero: not yet
	signer   time.Time // when they were first given External
	now      time.Time
	spread   time.Duration
	longest  time.Duration // life of a certificate
}

// advance decides what comes next; it reports whether that is anything. It does no I/O: the leader stores the outcome.
func (r *Record) advance(s situation) (*Record, bool) {
	out := r.clone()
	steps := len(out.Steps)
	fresh := len(out.Root) == 0
	root := encodeCert(s.want.root().Raw)
	if fresh {
		out.Root = root
		out.note(s.now, "the first root is recorded", root, "")
	}
	out.expire(s.now)
	out.followExternal(s, fresh)
	request := out.Request
	if request != nil && request.Step != RequestSwitch {
		out.Request = nil // done, or refused
	}
	switch {
	case bytes.Equal(root, out.Root) && len(out.Next) > 0:
		out.note(s.now, "the rotation is given up: the signing certificate leads to the old root again", root, "")
		out.Next, out.Signer, out.Made, out.Since = nil, nil, nil, time.Time{}
	case bytes.Equal(root, out.Root):
	case !bytes.Equal(root, out.Next):
		out.begin(s, root, request)
	case !s.told.IsZero() && (s.now.Sub(s.told) >= s.spread || request != nil && request.Step == RequestSwitch):
		out.change(s, request)
	}
	out.answer(s, request)
	return out, len(out.Steps) != steps
}

// asked reports whether an operator wants another self-signed root.
func (r *Record) asked() bool { return r.Request != nil && r.Request.Step == RequestRotate }

// lacks reports whether a root would sign that nobody asked for: a self-signed one, only because the key of the mesh's is gone.
func (r *Record) lacks(s situation) bool {
	if r == nil || len(r.Root) == 0 || s.want.plugged || s.inForce != nil && !s.inForce.plugged {
		return false
	}
	root := encodeCert(s.want.root().Raw)
	return !bytes.Equal(root, r.Root) && !bytes.Equal(root, r.Next) && !r.asked()
}

func (r *Record) lost() error { return fmt.Errorf("root %s: %w", Fingerprint(r.Root), ErrKeyLost) }

// KeyStored reports whether a controller that starts finds a key to sign with: that of the root that signs is in one of the
// Secrets, of which files are the content, or a rotation is under way.
func (r *Record) KeyStored(now time.Time, secrets ...map[string][]byte) bool {
	return len(r.Next) > 0 || slices.ContainsFunc(secrets, func(files map[string][]byte) bool {
		iss, err := parseIssuer(files, now)
		return err == nil && bytes.Equal(encodeCert(iss.root().Raw), r.Root)
	})
}

func (r *Record) expire(now time.Time) {
	r.Trusted = slices.DeleteFunc(r.Trusted, func(o Old) bool {
		if now.Before(o.Until) {
			return false
		}
		r.note(now, "an old root is withdrawn: nothing that it signed is valid any more", o.Root, "")
		return true
	})
}

// followExternal keeps account of the external signer's root. It signs at once in a new mesh, and where there are nodes already
// after they were given it and had time to trust it.
func (r *Record) followExternal(s situation, fresh bool) {
	if bytes.Equal(r.External, s.external) {
		if len(r.External) > 0 && r.ExternalFrom.IsZero() && !s.signer.IsZero() && s.now.Sub(s.signer) >= s.spread {
			r.ExternalFrom = s.now
			r.note(s.now, "the external signer signs", r.External, "")
		}
		return
	}
	if len(r.External) > 0 {
		r.keep(r.External, s)
		r.note(s.now, "the external signer's root signs no longer", r.External, "")
	}
	r.External, r.ExternalFrom = s.external, time.Time{}
	if len(s.external) == 0 {
		return
	}
	if fresh {
		r.ExternalFrom = s.now
	}
	r.forget(s.external)
	r.note(s.now, "an external signer's root is published", s.external, "")
}

// begin publishes another root beside the one that signs.
func (r *Record) begin(s situation, root []byte, by *Request) {
	r.Next, r.Since, r.Signer = root, s.now, nil
	if s.want.plugged {
		r.Made = nil
	}
	if s.inForce != nil && bytes.Equal(encodeCert(s.inForce.root().Raw), r.Root) {
		r.Signer = s.inForce.files
	}
	r.note(s.now, "the next root is published", root, who(by))
}

// change makes the next root the one that signs.
func (r *Record) change(s situation, by *Request) {
	r.keep(r.Root, s)
	r.forget(r.Next)
	r.note(s.now, "the next root signs", r.Next, who(by))
	r.Root, r.Next, r.Signer, r.Made, r.Since, r.Request = r.Next, nil, nil, nil, time.Time{}, nil
}

// keep trusts a root for as long as something that it signed may be valid; a minute more, for replicas that learn late.
func (r *Record) keep(root []byte, s situation) {
	until := s.now.Add(s.longest + time.Minute)
	if certs, err := parseCerts(root); err == nil && certs[0].NotAfter.Before(until) {
		until = certs[0].NotAfter
	}
	r.forget(root)
	r.Trusted = append(r.Trusted, Old{Root: root, Until: until.UTC().Truncate(time.Second)})
}

func (r *Record) forget(root []byte) {
	r.Trusted = slices.DeleteFunc(r.Trusted, func(o Old) bool { return bytes.Equal(o.Root, root) })
}

// answer does, or refuses, what an operator asked for; a switch waits until the next root is published.
func (r *Record) answer(s situation, request *Request) {
	if request == nil {
		return
	}
	switch request.Step {
	case RequestRotate:
		switch {
		case s.want.plugged:
			r.note(s.now, "rotate is refused: the signing certificate is plugged in, replace the Secret cacerts", r.Root, request.By)
		case !r.Since.Equal(s.now):
			r.note(s.now, "rotate is refused: a rotation is under way", r.Next, request.By)
		}
	case RequestSwitch:
		if len(r.Next) == 0 && r.Request != nil {
			r.note(s.now, "switch is refused: no root is to come", r.Root, request.By)
			r.Request = nil
		}
	case RequestWithdraw:
		if len(r.Next) > 0 || len(r.Trusted) == 0 {
			r.note(s.now, "withdraw is refused: there is no old root, or another one is to come", r.Root, request.By)
			return
		}
		for _, o := range r.Trusted {
			r.note(s.now, "an old root is withdrawn by an operator", o.Root, request.By)
		}
		r.Trusted = nil
	default:
		r.note(s.now, fmt.Sprintf("%.32q is refused: no such step", request.Step), nil, request.By)
	}
}

func who(r *Request) string {
	if r == nil {
		return ""
	}
	return r.By
}

// trusted is the bundle: what signs workloads first, then everything else that is valid or will be.
func (r *Record) trusted(inForce *issuer, external []*x509.Certificate, now time.Time) []byte {
	var out []byte
	seen := map[string]bool{}
	add := func(certs ...*x509.Certificate) {
		for _, c := range certs {
			if !seen[string(c.Raw)] {
				seen[string(c.Raw)] = true
				out = append(out, encodeCert(c.Raw)...)
			}
		}
	}
	if r.usesExternal(external, now) {
		add(external...)
	}
	add(inForce.root())
	text := [][]byte{inForce.roots}
	if r != nil {
		text = append(text, r.Root, r.Next, r.External)
		for _, o := range r.Trusted {
			text = append(text, o.Root)
		}
	}
	for _, raw := range text {
		if certs, err := parseCerts(raw); err == nil {
			add(certs...)
		}
	}
	add(external...)
	return out
}

// usesExternal reports whether the external signer signs already, and with these roots: others that a replica reads before the
// leader recorded them are not known to the nodes.
func (r *Record) usesExternal(external []*x509.Certificate, now time.Time) bool {
	if len(external) == 0 {
		return false
	}
	return r == nil || !r.ExternalFrom.IsZero() && !now.Before(r.ExternalFrom) && bytes.Equal(r.External, encodeCerts(external))
}
