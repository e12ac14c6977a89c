package wire

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDigestRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "digest.json")
	if _, err := ReadDigest(path); err == nil {
		t.Error("a missing digest was read")
	}
	if err := WriteDigest(path, Digest{Open: []string{"legacy", "both"}, Enrolled: []string{"foo", "both"}}); err != nil {
		t.Fatal(err)
	}
	d, err := ReadDigest(path)
	if err != nil {
		t.Fatal(err)
	}
	for ns, want := range map[string]bool{"legacy": true, "foo": false, "both": false, "new": false} {
		if d.IsOpen(ns) != want {
			t.Errorf("IsOpen(%s) = %v", ns, !want)
		}
	}
	ents, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(ents) != 1 {
		t.Errorf("left behind: %v %v", ents, err)
	}
	if err := os.WriteFile(path, []byte(`{"version":9,"open":["foo"]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if d, err := ReadDigest(path); err == nil || d.IsOpen("foo") {
		t.Error("a digest of another version was believed")
	}
}

func FuzzReadJSON(f *testing.F) {
	f.Add([]byte(`{"podName":"a","ips":["10.0.0.1"]}`))
	f.Add([]byte(`{"podName":"a"}{}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var r Request
		if ReadJSON(bytes.NewReader(data), &r) != nil {
			return
		}
		for _, ip := range r.IPs {
			if ip != (netip.Addr{}) && !strings.Contains(string(data), "\"") {
				t.Error("an address out of nothing")
			}
		}
	})
}

func TestReadJSONIsStrict(t *testing.T) {
	for _, s := range []string{``, `{"unknown":1}`, `{} {}`, `{"ips":["x"]}`, `{"podName":"` + strings.Repeat("a", MaxBody) + `"}`} {
		var r Request
		if err := ReadJSON(strings.NewReader(s), &r); err == nil {
			t.Errorf("accepted %.40s", s)
		}
	}
}
