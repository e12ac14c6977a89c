package policy

import (
	"testing"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
)

func TestMT23SameAccount(t *testing.T) {
	mesh := &settings.MeshSettings{TrustDomain: "new-td", TrustDomainAliases: []string{"old-td"}}
	id := func(td, ns, sa string) api.Identity {
		return api.Identity{TrustDomain: td, Namespace: ns, ServiceAccount: sa}
	}
	for _, c := range []struct {
		a, b api.Identity
		want bool
	}{
		{id("new-td", "a", "b"), id("new-td", "a", "b"), true},
		{id("new-td", "a", "b"), id("old-td", "a", "b"), true},
		{id("old-td", "a", "b"), id("new-td", "a", "b"), true},
		{id("new-td", "a", "b"), id("cluster.local", "a", "b"), false}, // a pointer in policies, no identity of the mesh
		{id("other", "a", "b"), id("new-td", "a", "b"), false},
		{id("other", "a", "b"), id("other", "a", "b"), true},
		{id("new-td", "a", "b"), id("old-td", "a", "c"), false},
		{id("new-td", "a", "b"), id("old-td", "c", "b"), false},
	} {
		if got := SameAccount(mesh, c.a, c.b); got != c.want {
			t.Errorf("%s and %s: %t", c.a, c.b, got)
		}
	}
}
