package api

import "testing"

func TestParseIdentity(t *testing.T) {
	id, err := ParseIdentity("spiffe://cluster.local/ns/foo/sa/sleep")
	if err != nil || id != (Identity{"cluster.local", "foo", "sleep"}) {
		t.Fatalf("got %+v, %v", id, err)
	}
	if got := id.URI().String(); got != id.String() {
		t.Fatalf("URI %q, String %q", got, id)
	}
	for _, bad := range []string{
		"", "cluster.local/ns/foo/sa/sleep", "spiffe://cluster.local/ns/foo/sa/", "spiffe:///ns/foo/sa/x",
		"spiffe://td/ns/foo/sa/x/y", "spiffe://td/sa/foo/ns/x", "spiffe://td/ns/../sa/x", "spiffe://td/ns/a%2Fb/sa/x",
		"spiffe://u@td/ns/a/sa/x", "spiffe://td:1/ns/a/sa/x", "spiffe://td/ns/a/sa/x?q", "spiffe://td/ns/a/sa/x#f",
	} {
		if id, err := ParseIdentity(bad); err == nil {
			t.Errorf("%q accepted as %+v", bad, id)
		}
	}
}
