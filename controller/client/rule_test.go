package client

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
)

// TestCallRulesIncremental: a snapshot that came about by changes answers as one that was built at once, and older ones stay
// as they were.
func TestCallRulesIncremental(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	w := Resource{Message: &workloadapi.Workload{Uid: "u", Name: "w", Namespace: "foo"}}
	now, err := NewSnapshot(w)
	if err != nil {
		t.Fatal(err)
	}
	look := func(s *Snapshot) string {
		var out []any
		for _, host := range []string{"a.b.c", "b.c", "x.b.c", "c", "other"} {
			for _, rule := range s.CallRules(s.WorkloadByUID("u"), "bar", host) {
				out = append(out, host, rule.GetNamespace(), rule.GetName(), rule.GetHost())
			}
		}
		return fmt.Sprint(out)
	}
	rules := map[string]Resource{}
	for step := range 400 {
		n := name{[]string{"foo", "bar", "istio-system"}[r.IntN(3)], string(rune('p' + r.IntN(5)))}
		key := n.namespace + "/" + n.name
		before, was := now, look(now)
		if r.IntN(3) == 0 {
			delete(rules, key)
			now = mustWith(t, now, nil, Key{Type: api.CallRuleType, Name: key})
		} else {
			rules[key] = Resource{Name: key, Message: &settings.CallRule{Namespace: n.namespace, Name: n.name,
				Host:    []string{"a.b.c", "*.b.c", "*.c", "*", "b.c", "*x.b.c"}[r.IntN(6)],
				Created: &timestamppb.Timestamp{Seconds: int64(r.IntN(3))}}}
			now = mustWith(t, now, []Resource{rules[key]})
		}
		all := []Resource{w}
		for _, rule := range rules {
			all = append(all, rule)
		}
		whole, err := NewSnapshot(all...)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := look(now), look(whole); got != want {
			t.Fatalf("step %d: %s, want %s", step, got, want)
		}
		if look(before) != was {
			t.Fatalf("step %d: an older snapshot changed", step)
		}
	}
}

func TestCallRulesAreChecked(t *testing.T) {
	for _, r := range []Resource{
		{Name: "foo/a", Message: &settings.CallRule{Name: "a", Host: "h"}}, {Name: "foo/a", Message: &settings.CallRule{Namespace: "foo", Host: "h"}},
		{Name: "foo/a", Message: &settings.CallRule{Namespace: "foo", Name: "b", Host: "h"}}, {Name: "foo/a", Message: &settings.CallRule{Namespace: "foo", Name: "a"}},
	} {
		if _, err := NewSnapshot(r); err == nil {
			t.Errorf("%v is accepted", r.Message)
		}
	}
}

// TestEveryTypeCanBeRemoved: what a node subscribes to is what a snapshot is made of, and what may leave it again.
func TestEveryTypeCanBeRemoved(t *testing.T) {
	s, err := NewSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	for _, typ := range Types() {
		if !Understands(typ) {
			t.Errorf("%s is subscribed to and not understood", typ)
		}
		if _, err := s.With(1, nil, []Key{{Type: typ, Name: "foo/gone"}}); err != nil {
			t.Errorf("remove of %s: %v", typ, err)
		}
	}
	if _, err := s.With(1, nil, []Key{{Type: "type.googleapis.com/other", Name: "foo/gone"}}); err == nil {
		t.Error("a type that is not understood can be removed")
	}
}
