package plan

import (
	"net/netip"
	"strings"
	"testing"
)

func TestOptionsValidate(t *testing.T) {
	for _, c := range []struct {
		o    Options
		want string // in the error, "" for none
	}{
		{Options{}, ""},
		{Options{Name: "a", Nodes: 99, Proxy: "iptables", Family: "dual"}, ""},
		{Options{Name: "Upper"}, "option name"},
		{Options{Name: "a/b"}, "option name"},
		{Options{Name: strings.Repeat("x", 33)}, "option name"},
		{Options{Nodes: -1}, "option nodes"},
		{Options{Nodes: 100}, "option nodes"},
		{Options{Proxy: "ipvs"}, "option proxy"},
		{Options{Family: "ipv6"}, "option family"},
	} {
		err := c.o.WithDefaults().Validate()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v: got %v, want %q", c.o, err, c.want)
		}
	}
}

func TestHostLinkFitsAndDiffers(t *testing.T) {
	seen := map[string]string{}
	for _, name := range []string{"undermesh", "a", "exactly-12-ch", "a-rather-long-name", "a-rather-long-name2", "a-rather-lonh-name"} {
		link := Plan{Options: Options{Name: name}}.HostLink()
		if len(link) > 15 || !strings.HasPrefix(link, "uc-") {
			t.Errorf("link of %s is %q", name, link)
		}
		if other := seen[link]; other != "" {
			t.Errorf("clusters %s and %s share link %s", name, other, link)
		}
		seen[link] = name
	}
}

// TestAddressesNeverMeet checks every pair of ranges that two clusters of one machine, or two nodes of one, have.
func TestAddressesNeverMeet(t *testing.T) {
	var all []netip.Prefix
	for i := 0; i <= MaxIndex; i++ {
		p := Plan{Options: Options{Name: "x", Nodes: 3, Family: FamilyDual}, Index: i}
		all = append(all, p.ClusterCIDRs()...)
		for _, a := range p.HostAddrs() {
			all = append(all, a.Masked())
		}
		for _, n := range p.Members()[1:] {
			for f, cidr := range p.PodCIDRs(n) {
				if !p.ClusterCIDRs()[f].Overlaps(cidr) {
					t.Errorf("pods %s of node %d are not within %s", cidr, n, p.ClusterCIDRs()[f])
				}
			}
		}
		if p.PodCIDRs(1)[1].Overlaps(p.PodCIDRs(2)[1]) || p.PodCIDRs(1)[0].Overlaps(p.PodCIDRs(2)[0]) {
			t.Errorf("pods of two nodes meet: %v %v", p.PodCIDRs(1), p.PodCIDRs(2))
		}
	}
	all = append(all, Plan{Options: Options{Family: FamilyDual}}.ServiceCIDRs()...)
	for i, a := range all {
		for _, b := range all[i+1:] {
			if a.Overlaps(b) {
				t.Errorf("%s and %s meet", a, b)
			}
		}
	}
}
