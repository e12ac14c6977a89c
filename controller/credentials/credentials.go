// Package credentials reads the Secrets that DestinationRules name in tls.credentialName, and hands them to the nodes that may have
// them.
//
// Invariants: a Secret is read only while a rule of its namespace with a workloadSelector names it; it leaves to a node only while a pod
// that such a rule selects runs there, and of it only what the rule needs; it is in no resource, log line, metric or status. What was
// good once stays while the API server is away, and goes when the Secret does.
package credentials

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/undermesh/undermesh/controller/api/credential"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// ErrForbidden is Config.Get's when the controller has no right to read the Secret.
var ErrForbidden = errors.New("the controller has no right to read it")

// maxPerNamespace bounds the Secrets that are read for one namespace, so that its rules do not hold up those of others.
const maxPerNamespace = 64

// Config of a Keeper. Get, Selects, Caller and Clock are required.
type Config struct {
	// Get reads a Secret; nil without an error: there is none. Returns ErrForbidden; other errors are no verdict.
	Get func(ctx context.Context, n model.Name) (credential.Data, error)
	// Selects reports whether a pod of the namespace that has all the labels runs on the node.
	Selects func(node, namespace string, labels map[string]string) bool
	// Caller returns who opened a call. Returns an error, with a status of gRPC, for whom none is answered.
	Caller func(ctx context.Context) (Caller, error)
	// Tell hears what became of a credential that a rule names: what is wrong, "" for nothing; known is false when none names it any
	// more. It is called from Run alone; nil: nobody hears.
	Tell   func(ref credential.Ref, problem string, known bool)
	Clock  clock.Clock
	Log    *slog.Logger  // default: discard
	Period time.Duration // between two looks at a Secret; default 5 s
	Pace   time.Duration // between two looks at any; default 25 ms
	Calls  int           // of one node at once; default 4
}

// Caller is a node.
type Caller struct {
	Node    string
	Expires time.Time // the call ends then; zero: never
}

// Keeper is safe for concurrent use.
type Keeper struct {
	cfg  Config
	wake chan struct{} // capacity 1: there is something to read, or to tell

	mu      sync.Mutex // protects below
	ready   bool       // the first events came: what no rule names is not named
	rules   map[model.Name][]credential.Ref
	wanted  map[credential.Ref]*wanted
	secrets map[model.Name]*secret
	told    map[credential.Ref]string // what was told
	calls   map[*call]struct{}
	open    map[string]int // calls of a node
	fresh   bool           // what was read last had not been read before
}

// wanted is a credential that rules name.
type wanted struct {
	rules  map[model.Name]map[string]string // rule → whom it selects
	answer *settings.Credential             // nil: not read yet
}

// secret is when a Secret was looked at.
type secret struct {
	last   time.Time // zero: never
	beyond bool      // it is one too many of its namespace
	failed string    // why the last look told nothing
}

// New returns a Keeper that has read nothing yet.
func New(cfg Config) (*Keeper, error) {
	if cfg.Get == nil || cfg.Selects == nil || cfg.Caller == nil || cfg.Clock == nil {
		return nil, errors.New("check credentials config: Get, Selects, Caller or Clock: missing")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Period <= 0 {
		cfg.Period = 5 * time.Second
	}
	if cfg.Pace <= 0 {
		cfg.Pace = 25 * time.Millisecond
	}
	if cfg.Calls <= 0 {
		cfg.Calls = 4
	}
	return &Keeper{cfg: cfg, wake: make(chan struct{}, 1), rules: map[model.Name][]credential.Ref{}, wanted: map[credential.Ref]*wanted{},
		secrets: map[model.Name]*secret{}, told: map[credential.Ref]string{}, calls: map[*call]struct{}{}, open: map[string]int{}}, nil
}

// Apply takes in the events about rules and pods and ignores the others. The first call has the whole state.
func (k *Keeper) Apply(events []model.Event) {
	k.mu.Lock()
	defer k.mu.Unlock()
	changed, first := map[string]bool{}, !k.ready
	k.ready = true
	for _, e := range events {
		switch e.Kind {
		case model.KindDestinationRule:
			rule, _ := e.Object.(*networkingv1.DestinationRule)
			if k.ruleLocked(e.Name, rule) {
				changed[e.Name.Namespace] = true
			}
		case model.KindPod:
			changed[e.Name.Namespace] = true
		}
	}
	for c := range k.calls {
		if first || slices.ContainsFunc(slices.Collect(maps.Keys(changed)), func(ns string) bool { return c.namespaces[ns] > 0 }) {
			c.poke()
		}
	}
}

// ruleLocked takes in a rule, nil for one that is gone, and reports whether it names Secrets, or did.
func (k *Keeper) ruleLocked(n model.Name, rule *networkingv1.DestinationRule) bool {
	old := k.rules[n]
	delete(k.rules, n)
	var now []credential.Ref
	if rule != nil {
		now = compile.Credentials(rule)
	}
	for _, ref := range old {
		if w := k.wanted[ref]; w != nil {
			if delete(w.rules, n); len(w.rules) == 0 && !slices.Contains(now, ref) {
				delete(k.wanted, ref)
			}
		}
	}
	for _, ref := range now {
		w := k.wanted[ref]
		if w == nil {
			w = &wanted{rules: map[model.Name]map[string]string{}}
			k.wanted[ref] = w
			name := model.Name{Namespace: ref.Namespace, Name: ref.Name}
			if s := k.secrets[name]; s != nil {
				s.last = time.Time{} // what was read was not kept for this
			}
		}
		w.rules[n] = rule.Spec.GetWorkloadSelector().GetMatchLabels()
	}
	if len(now) > 0 {
		k.rules[n] = now
	}
	if len(old)+len(now) == 0 {
		return false
	}
	k.listLocked(n.Namespace)
	poke(k.wake)
	return true
}

// listLocked brings up to date which Secrets of the namespace are read: the first ones by name.
func (k *Keeper) listLocked(namespace string) {
	names := map[string]bool{}
	for ref := range k.wanted {
		if ref.Namespace == namespace {
			names[ref.Name] = true
		}
	}
	for n := range k.secrets {
		if n.Namespace == namespace && !names[n.Name] {
			delete(k.secrets, n)
		}
	}
	for i, name := range slices.Sorted(maps.Keys(names)) {
		n := model.Name{Namespace: namespace, Name: name}
		if k.secrets[n] == nil {
			k.secrets[n] = &secret{}
		}
		s := k.secrets[n]
		if s.beyond = i >= maxPerNamespace; s.beyond {
			s.last = time.Time{}
			k.answerLocked(n, func(credential.Ref) (*settings.Credential, error) {
				return nil, fmt.Errorf("namespace %s names more than %d Secrets, of which Secret %s is none of the first", namespace, maxPerNamespace, n)
			})
		}
	}
}

// answerLocked keeps what a Secret is for each use of it.
func (k *Keeper) answerLocked(n model.Name, read func(credential.Ref) (*settings.Credential, error)) {
	changed := false
	for ref, w := range k.wanted {
		if ref.Namespace != n.Namespace || ref.Name != n.Name {
			continue
		}
		c, err := read(ref)
		if err != nil {
			c = &settings.Credential{Ref: ref.Message(), Problem: err.Error()}
		}
		if !proto.Equal(c, w.answer) {
			w.answer, changed = c, true
		}
	}
	if !changed {
		return
	}
	poke(k.wake)
	for c := range k.calls {
		if c.namespaces[n.Namespace] > 0 {
			c.poke()
		}
	}
}

// Run reads the Secrets until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		k.tell()
		n, wait := k.next()
		if wait == 0 {
			k.look(ctx, n)
			clock.Pause(ctx, k.cfg.Clock, k.cfg.Pace)
			continue
		}
		due := make(chan struct{})
		t := k.cfg.Clock.AfterFunc(wait, func() { close(due) })
		select {
		case <-ctx.Done():
		case <-due:
		case <-k.wake:
		}
		t.Stop()
	}
	return nil
}

// next is the Secret to look at, or how long there is none: what was never read and what is due take turns.
func (k *Keeper) next() (n model.Name, wait time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.cfg.Clock.Now()
	var unread, oldest model.Name
	var at time.Time
	for name, s := range k.secrets {
		switch {
		case s.beyond:
		case s.last.IsZero():
			if unread.Name == "" || strings.Compare(name.String(), unread.String()) < 0 {
				unread = name
			}
		case oldest.Name == "" || s.last.Before(at):
			oldest, at = name, s.last
		}
	}
	due := oldest.Name != "" && now.Sub(at) >= k.cfg.Period
	switch {
	case unread.Name != "" && !(due && k.fresh):
		k.fresh = true
		return unread, 0
	case due:
		k.fresh = false
		return oldest, 0
	case oldest.Name != "":
		return n, k.cfg.Period - now.Sub(at)
	}
	return n, time.Hour // until there is one
}

// look reads a Secret and the one with its roots.
func (k *Keeper) look(ctx context.Context, n model.Name) {
	ctx, cancel := clock.WithTimeout(ctx, k.cfg.Clock, k.cfg.Period, nil)
	defer cancel()
	own, err := k.cfg.Get(ctx, n)
	var cacert credential.Data
	if err == nil {
		cacert, err = k.cfg.Get(ctx, model.Name{Namespace: n.Namespace, Name: n.Name + credential.Suffix})
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.secrets[n]
	if s == nil || s.beyond { // meanwhile
		return
	}
	s.last = k.cfg.Clock.Now()
	forbidden := errors.Is(err, ErrForbidden)
	if err != nil && !forbidden {
		if text := err.Error(); text != s.failed && context.Cause(ctx) == nil {
			k.cfg.Log.Warn("read secret of a DestinationRule", "secret", n.String(), "err", err)
			s.failed = text
		}
		return
	}
	s.failed = ""
	k.answerLocked(n, func(ref credential.Ref) (*settings.Credential, error) {
		if forbidden {
			return nil, fmt.Errorf("read Secret %s: %w (pilot.credentials.namespaces of the chart)", n, err)
		}
		return credential.Read(ref, own, cacert)
	})
}

// tell tells what changed.
func (k *Keeper) tell() {
	if k.cfg.Tell == nil {
		return
	}
	type news struct {
		ref     credential.Ref
		problem string
		known   bool
	}
	var all []news
	k.mu.Lock()
	for ref, w := range k.wanted {
		if w.answer == nil {
			continue
		}
		if was, told := k.told[ref]; !told || was != w.answer.GetProblem() {
			k.told[ref] = w.answer.GetProblem()
			all = append(all, news{ref, w.answer.GetProblem(), true})
		}
	}
	for ref := range k.told {
		if k.wanted[ref] == nil {
			delete(k.told, ref)
			all = append(all, news{ref: ref})
		}
	}
	k.mu.Unlock()
	for _, n := range all {
		k.cfg.Tell(n.ref, n.problem, n.known)
	}
}

func poke(wake chan struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}
