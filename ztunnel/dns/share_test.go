package dns

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
)

// of is names with their owner.
func of(owner string, names ...string) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for _, n := range names {
			if !yield(owner, n) {
				return
			}
		}
	}
}

func both(all ...iter.Seq2[string, string]) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for _, one := range all {
			for o, n := range one {
				if !yield(o, n) {
					return
				}
			}
		}
	}
}

// TestNamesAreShared: a namespace with more names than there is room for displaces none of others, whatever the alphabet says
// of the names and of the namespaces, and what is kept does not depend on the order.
func TestNamesAreShared(t *testing.T) {
	for _, x := range []struct {
		limit int
		names iter.Seq2[string, string]
		want  string
		total int
	}{
		{4, both(of("m", "m1", "m2"), of("z", "a", "b", "z")), "a b m1 m2", 5},
		{4, both(of("m", "m1"), of("z", "a", "b", "c", "d")), "a b c m1", 5},
		{4, both(of("m", "m1"), of("a", "a", "b", "c", "d")), "a b c m1", 5},
		{3, both(of("x", "m1", "m2", "m3"), of("m", "m1", "m2", "m3", "m4"), of("n", "n1")), "m1 m2 n1", 5}, // the same names twice
		{2, both(of("a", "x"), of("b", "Y."), of("c", "z")), "x y", 3},
		{5, both(of("m", "m1", "M1."), of("z", "m1")), "m1", 1},
		{5, of("m"), "", 0},
	} {
		got, total, _ := share(x.names, x.limit)
		if names := strings.Join(slices.Sorted(maps.Keys(got)), " "); names != x.want || total != x.total {
			t.Errorf("%d of %v: %s of %d, want %s of %d", x.limit, x.names, names, total, x.want, x.total)
		}
	}
}

// TestStrangersDisplaceNoNames: with the default limit, 16 ServiceEntries of one namespace take nothing from another's one name.
func TestStrangersDisplaceNoNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newResolver(t, &stub{ttl: 30, records: map[string]string{"zz.example": "192.0.2.1"}}, nil)
		var evil []string
		for i := range 16 * 256 {
			evil = append(evil, fmt.Sprintf("a%d.example", i))
		}
		r.Track(both(of("evil", evil...), of("shop", "zz.example")))
		if got := lookup(t, r, "zz.example"); got != "192.0.2.1" {
			t.Error(got)
		}
		if _, err := r.Lookup(t.Context(), "one-more.example"); !errors.Is(err, ErrTooMany) {
			t.Errorf("got %v", err)
		}
	})
}
