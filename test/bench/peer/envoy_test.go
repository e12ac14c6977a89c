package peer

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/undermesh/undermesh/test/bench/load"
)

// hops are one of each kind that the benches ask for.
func hops(certs string) []Hop {
	at := netip.MustParseAddrPort
	return []Hop{
		{Listen: at("127.0.0.1:15100"), Up: at("127.0.0.1:8080"), Routes: 50, Policies: 10},
		{Listen: at("127.0.0.1:15101"), Up: at("127.0.0.1:8081"), Routes: 1, HTTP2: true, TLSFrom: certs, Policies: 10},
		{Listen: at("127.0.0.1:15102"), Up: at("127.0.0.1:8081"), Routes: 2, HTTP2: true, TLSTo: certs},
	}
}

func TestPolicies(t *testing.T) {
	for _, h := range hops("certs")[:2] {
		all := h.policies()
		last := all["p09"].(Object)["principals"].([]Object)[0]
		if h.TLSFrom == "" && last["direct_remote_ip"].(Object)["prefix_len"] != 0 {
			t.Errorf("%v", last)
		}
		if h.TLSFrom != "" && last["authenticated"].(Object)["principal_name"].(Object)["exact"] != load.ProxyName {
			t.Errorf("%v", last)
		}
		if len(all) != 10 {
			t.Errorf("%d policies", len(all))
		}
	}
}

// TestEnvoy: Envoy takes the configuration, where there is one.
func TestEnvoy(t *testing.T) {
	bin := os.Getenv("MESH_TEST_ENVOY")
	if bin == "" {
		t.Skip("MESH_TEST_ENVOY is not set")
	}
	dir := t.TempDir()
	if err := load.WriteCertificate(dir, time.Now()); err != nil {
		t.Fatal(err)
	}
	text, err := Envoy(dir, hops(dir)...)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "envoy.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	if out, err := exec.CommandContext(ctx, bin, "--mode", "validate", "-c", path).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
