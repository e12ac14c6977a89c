package compile_test

import (
	"strings"
	"testing"

	typebeta "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/validate"
)

// TestShadowedPeers: a policy whose workloads all have an older one never counts, and says so; one that an older policy counts
// before for some of its workloads says for which. It is told again when the older one comes, changes and goes.
func TestShadowedPeers(t *testing.T) {
	peer := func(name string, born int64, selector string, m mode) model.Event {
		e := wish{namespace: "foo", name: name, born: born, mode: m}.event()
		pa := e.Object.(*securityv1.PeerAuthentication)
		if selector != "" {
			pa.Spec.Selector = &typebeta.WorkloadSelector{MatchLabels: map[string]string{}}
			for pair := range strings.SplitSeq(selector, ",") {
				k, v, _ := strings.Cut(pair, "=")
				pa.Spec.Selector.MatchLabels[k] = v
			}
		}
		return e
	}
	for _, x := range []struct {
		older, younger string // selectors
		enforced       bool   // the younger
		reason         string
		message        string
	}{
		{"app=x", "app=x,version=v1", false, validate.ReasonShadowed, "the older policy a counts"},
		{"version=v1", "app=x,version=v1", false, validate.ReasonShadowed, "the older policy a counts"},
		{"app=x", "app=x", false, validate.ReasonShadowed, "the older policy a counts"},
		{"app=x,version=v1", "app=x", true, validate.ReasonPartShadowed, "have its labels too: app=x,version=v1"},
		{"version=v1", "app=x", true, validate.ReasonPartShadowed, "have its labels too: version=v1"},
		{"app=y", "app=x", true, validate.ReasonEnforced, ""},
		{"app=y,version=v1", "app=x,version=v1", true, validate.ReasonEnforced, ""},
		{"", "app=x", true, validate.ReasonEnforced, ""},
		{"app=x", "", true, validate.ReasonEnforced, ""},
	} {
		c := compile.New(compile.Config{})
		said := map[string]validate.Status{}
		apply := func(e model.Event) {
			for _, s := range c.Apply([]model.Event{e}).Status {
				said[s.Name] = s
			}
		}
		old := peer("a", 1, x.older, strict)
		check := func(what string, enforced bool, reason, message string) {
			t.Helper()
			if s := said["b"]; s.Enforced != enforced || s.EnforcedBy != reason || !strings.Contains(s.Message, message) || !s.Accepted || (message == "" && s.Message != "") {
				t.Errorf("%q before %q, %s: %+v", x.older, x.younger, what, s)
			}
			if s := said["a"]; !s.Gone && s.EnforcedBy != validate.ReasonEnforced {
				t.Errorf("%q before %q, %s: the older is %+v", x.older, x.younger, what, s)
			}
		}
		apply(peer("b", 2, x.younger, permissive))
		apply(old)
		check("comes", x.enforced, x.reason, x.message)
		apply(peer("a", 1, "app=z", strict))
		if x.younger != "" {
			check("is for others", true, validate.ReasonEnforced, "")
		}
		apply(old)
		check("is back", x.enforced, x.reason, x.message)
		apply(gone(old))
		check("goes", true, validate.ReasonEnforced, "")
	}
}
