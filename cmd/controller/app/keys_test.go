package app

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// TestOwnAddresses: those of the interfaces count without being told, and those of the node beside them.
func TestOwnAddresses(t *testing.T) {
	own, err := ownAddresses("192.0.2.7, 2001:db8::7")
	if err != nil {
		t.Fatal(err)
	}
	all, err := own()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"192.0.2.7", "2001:db8::7"} {
		if !slices.Contains(all, netip.MustParseAddr(want)) {
			t.Errorf("%s is not in %v", want, all)
		}
	}
	if !slices.ContainsFunc(all, func(a netip.Addr) bool { return a.Unmap().IsLoopback() }) {
		t.Errorf("none of an interface in %v", all)
	}
	if _, err := ownAddresses("node1"); err == nil || !strings.Contains(err.Error(), `"node1" is not an address`) {
		t.Errorf("got %v", err)
	}
	if _, err := fetchKeys(keyOptions{node: "node1"}); err == nil || !strings.HasPrefix(err.Error(), "variable HOST_IP: ") {
		t.Errorf("got %v", err)
	}
}
