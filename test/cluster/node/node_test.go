package node

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/undermesh/undermesh/test/cluster/plan"
)

func testConfig(family string, member int) Config {
	p := plan.Plan{Options: plan.Options{Name: "x", Family: family}.WithDefaults(), Root: "/repo"}
	return Config{Plan: p, Member: member, Bin: map[string]string{"kubeall": "/bin/k", "containerd": "/bin/c", "netpol": "/bin/n"}, Netpol: true}
}

func TestConflistHasARangeForEachFamily(t *testing.T) {
	for family, want := range map[string][]string{
		plan.FamilyIPv4: {"10.244.2.0/24"}, plan.FamilyDual: {"10.244.2.0/24", "fd30:244:0:2::/64"},
	} {
		var list struct {
			Plugins []struct {
				Type   string
				IPMasq *bool
				IPAM   struct{ Ranges [][]struct{ Subnet string } }
			}
		}
		if err := json.Unmarshal([]byte(testConfig(family, 2).conflist()), &list); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range list.Plugins[0].IPAM.Ranges {
			got = append(got, r[0].Subnet)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", family, got, want)
		}
		// Pods of other nodes must see the sender's own address.
		if m := list.Plugins[0].IPMasq; m == nil || *m {
			t.Errorf("%s: the bridge masquerades", family)
		}
	}
}

// TestServicesStartInOrder: kubelet ends at once without its runtime, so that must be ready before.
func TestServicesStartInOrder(t *testing.T) {
	names := func(ss []service) (out []string) {
		for _, s := range ss {
			out = append(out, s.name)
		}
		return out
	}
	nodes := testConfig(plan.FamilyDual, 1).services()
	if got := strings.Join(names(nodes), " "); got != "containerd kubelet kube-proxy netpol" || nodes[0].ready == nil {
		t.Errorf("a node starts %s", got)
	}
	if !slices.Contains(nodes[1].args, "--node-ip=172.30.0.11,fd30::11") {
		t.Errorf("kubelet starts as %v", nodes[1].args)
	}
	control := testConfig(plan.FamilyDual, 0).services()
	if got := strings.Join(names(control), " "); got != "etcd apiserver controller-manager scheduler" || control[1].ready == nil {
		t.Errorf("the control plane starts %s", got)
	}
	if !slices.Contains(control[1].args, "--service-cluster-ip-range=10.96.0.0/16,fd30:96::/112") {
		t.Errorf("the API server starts as %v", control[1].args)
	}
}
