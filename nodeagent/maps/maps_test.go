package maps_test

import (
	stdmaps "maps"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/undermesh/undermesh/nodeagent/maps"
	"github.com/undermesh/undermesh/test/netnstest"
)

func TestTable(t *testing.T) {
	netnstest.Require(t)
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 8, MaxEntries: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	table := maps.NewTable[uint32, uint64]("test", m)
	first, second := map[uint32]uint64{1: 10, 2: 20}, map[uint32]uint64{2: 21, 3: 30}
	for _, step := range []struct {
		from, to         map[uint32]uint64
		written, deleted int
	}{{nil, first, 2, 0}, {first, first, 0, 0}, {first, second, 2, 1}} {
		w, d, err := table.Apply(step.from, step.to)
		if err != nil || w != step.written || d != step.deleted {
			t.Errorf("apply %v -> %v: %d written, %d deleted, %v", step.from, step.to, w, d, err)
		}
		if all, err := table.All(); err != nil || !stdmaps.Equal(all, step.to) {
			t.Errorf("apply %v -> %v: content %v, %v", step.from, step.to, all, err)
		}
	}
	if _, ok, err := table.Lookup(1); ok || err != nil {
		t.Errorf("absent key: %v, %v", ok, err)
	}
	if v, ok, err := table.Lookup(2); v != 21 || !ok || err != nil {
		t.Errorf("present key: %d, %v, %v", v, ok, err)
	}
	if some, err := table.Select(func(k uint32) bool { return k == 3 }); err != nil || !stdmaps.Equal(some, map[uint32]uint64{3: 30}) {
		t.Errorf("select: %v, %v", some, err)
	}
	if n, err := table.Prune(func(k uint32, _ uint64) bool { return k == 2 }); n != 1 || err != nil {
		t.Errorf("prune: %d, %v", n, err)
	}
	if err := table.Delete(3); err != nil {
		t.Errorf("delete an absent key: %v", err)
	}
	_, _, err = table.Apply(nil, map[uint32]uint64{4: 1, 5: 1, 6: 1, 7: 1})
	if err == nil || !strings.Contains(err.Error(), "map test") {
		t.Errorf("full map: %v", err)
	}
}

func TestPending(t *testing.T) {
	got := maps.Pending(map[int]int{1: 10, 2: 20}, map[int]int{2: 21, 3: 30, 1: 10})
	if !stdmaps.Equal(got, map[int]int{1: 10, 2: 0, 3: 0}) {
		t.Errorf("%v", got)
	}
}
