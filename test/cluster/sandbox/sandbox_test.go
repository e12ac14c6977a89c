package sandbox

import (
	"net/netip"
	"os"
	"testing"
)

func TestClash(t *testing.T) {
	want := []netip.Prefix{netip.MustParsePrefix("172.30.1.1/24"), netip.MustParsePrefix("10.243.0.0/16"), netip.MustParsePrefix("fd30:0:0:1::1/64")}
	for _, c := range []struct {
		used string
		host bool
		want bool
	}{
		{"172.30.1.0/24", false, true},
		{"172.30.1.200/32", true, true},
		{"10.243.7.0/24", false, true},
		{"10.243.7.1/32", true, true},
		{"10.0.0.0/8", false, false}, // wider: ours is more specific
		{"10.1.2.3/32", true, false},
		{"172.30.0.0/24", false, false},
		{"fd30:0:0:1::/64", false, true},
		{"fd30::/16", false, false},
	} {
		used := []Used{{Prefix: netip.MustParsePrefix(c.used), Link: "x0", Host: c.host}}
		if got := Clash(used, want) == "x0"; got != c.want {
			t.Errorf("%s (host %v): got %v, want %v", c.used, c.host, got, c.want)
		}
	}
	if got := Clash(nil, want); got != "" {
		t.Errorf("nothing in use: got %q", got)
	}
}

func TestInUseSeesTheLoopback(t *testing.T) {
	used, err := InUse()
	if err != nil {
		t.Fatal(err)
	}
	if got := Clash(used, []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}); got != "lo" {
		t.Errorf("127.0.0.0/8 is used by %q, want lo", got)
	}
}

func TestProcAlive(t *testing.T) {
	start, err := startTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	me := Proc{PID: os.Getpid(), Start: start}
	if !me.Alive() {
		t.Error("this process is not alive")
	}
	// The number of a process that ended is given to another: its start tells.
	me.Start--
	if me.Alive() {
		t.Error("another process with this number counts as alive")
	}
	if (Proc{}).Alive() {
		t.Error("no process is alive")
	}
}

func TestControllers(t *testing.T) {
	for options, want := range map[string]string{
		"rw,memory": "memory", "rw,cpu,cpuacct": "cpu,cpuacct", "rw,nsdelegate,memory_recursiveprot": "",
		"rw,xattr,release_agent=/lib/systemd,name=systemd": "name=systemd",
	} {
		if got := controllers(options); got != want {
			t.Errorf("%q: got %q, want %q", options, got, want)
		}
	}
}
