package ca

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestPlugInLostAtRestart: cacerts are deleted and no controller is left that knows their key. One that starts takes no other root
// by itself; it does when they are back, or when an operator says so.
func TestPlugInLostAtRestart(t *testing.T) {
	for _, stored := range []bool{true, false} { // whether there ever was a self-signed root
		for _, back := range []bool{true, false} {
			t.Run(fmt.Sprintf("stored %t back %t", stored, back), func(t *testing.T) {
				s, clk, logs := &shared{}, &manual{now: start}, &bytes.Buffer{}
				if stored {
					must(t, s.replica(t, clk, logs).Sync(t.Context(), true))
					s.record = nil
				}
				files := cacerts(t)
				s.set(files)
				a := s.replica(t, clk, logs)
				must(t, a.Sync(t.Context(), true))
				old, had := signerOf(t, a), s.data
				s.set(nil)
				clk.add(time.Hour)
				next, follower := s.newReplica(t, clk, logs), s.newReplica(t, clk, logs)
				for range 3 {
					for lead, x := range map[bool]*Authority{true: next, false: follower} {
						if err := x.Sync(t.Context(), lead); !errors.Is(err, ErrKeyLost) || !strings.Contains(err.Error(), "root "+old) || !strings.Contains(err.Error(), "ca rotate") {
							t.Fatalf("leads %t: %v", lead, err)
						}
						if _, err := x.RootPEM(); !errors.Is(err, ErrNotLoaded) {
							t.Fatalf("leads %t: it is loaded: %v", lead, err)
						}
					}
				}
				if len(s.record.Next) > 0 || len(s.record.Steps) != 1 || len(s.data) != len(had) || s.record.KeyStored(clk.Now(), nil, s.data) {
					t.Fatalf("it went on: %+v, stored are %d files", s.record.Steps, len(s.data))
				}
				if back {
					s.set(files)
					must(t, next.Sync(t.Context(), true))
					must(t, next.Load(t.Context()))
					if got := rootsOf(t, next); signerOf(t, next) != old || len(got) != 1 || !s.record.KeyStored(clk.Now(), files, s.data) {
						t.Errorf("trusted are %v", got)
					}
					return
				}
				s.request(RequestRotate)
				if err := follower.Load(t.Context()); !errors.Is(err, ErrKeyLost) {
					t.Fatalf("before the leader: %v", err)
				}
				must(t, next.Sync(t.Context(), true))
				must(t, next.Load(t.Context()))
				must(t, follower.Load(t.Context()))
				for _, x := range []*Authority{next, follower, s.replica(t, clk, logs)} {
					if got := rootsOf(t, x); len(got) != 2 || got[0] == old || got[1] != old || signerOf(t, x) != got[0] {
						t.Errorf("asked for: trusted are %v", got)
					}
				}
				if by := s.record.Steps[len(s.record.Steps)-1].By; by != "jane" {
					t.Errorf("who asked is not recorded: %+v", s.record.Steps)
				}
				raw, _ := next.RootPEM()
				next.Distributed(raw)
				clk.add(6 * time.Minute)
				must(t, next.Sync(t.Context(), true))
				if len(s.record.Next) > 0 || len(s.record.Trusted) != 1 || !s.record.KeyStored(clk.Now(), nil, s.data) {
					t.Errorf("not done: %+v", s.record.Steps)
				}
			})
		}
	}
}

// TestSelfSignedRootLost: the same for the Secret of the self-signed root.
func TestSelfSignedRootLost(t *testing.T) {
	s, clk, logs := &shared{}, &manual{now: start}, &bytes.Buffer{}
	a := s.replica(t, clk, logs)
	must(t, a.Sync(t.Context(), true))
	old, kept := signerOf(t, a), s.data
	s.data = nil
	next := s.newReplica(t, clk, logs)
	if err := errors.Join(next.Sync(t.Context(), true), next.Load(t.Context())); !errors.Is(err, ErrKeyLost) || s.data != nil {
		t.Fatalf("%v, stored are %d files", err, len(s.data))
	}
	s.data = kept // from a backup
	must(t, next.Sync(t.Context(), true))
	must(t, next.Load(t.Context()))
	if signerOf(t, next) != old || len(rootsOf(t, next)) != 1 {
		t.Errorf("trusted are %v", rootsOf(t, next))
	}
	other, err := selfSigned("older", start)
	must(t, err)
	s.data = other // from another backup
	if err := s.newReplica(t, clk, logs).Sync(t.Context(), true); !errors.Is(err, ErrKeyLost) {
		t.Errorf("another root: %v", err)
	}
}
