package validate

import (
	"strings"
	"testing"

	securitybeta "istio.io/api/security/v1beta1"
	typebeta "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestIPBlock(t *testing.T) {
	for text, want := range map[string]string{
		"10.0.0.1": "10.0.0.1/32", "10.1.2.3/8": "10.0.0.0/8", "fd00::1": "fd00::1/128", "fd00::1/64": "fd00::/64",
		"::ffff:10.0.0.1": "10.0.0.1/32", "::ffff:10.0.0.0/104": "10.0.0.0/8", "0.0.0.0/0": "0.0.0.0/0",
		"": "", "10.0.0.0/33": "", "10.0.0": "", "fe80::1%eth0": "", "fe80::1%eth0/64": "", "10.0.0.1/": "", "*": "", "::ffff:0.0.0.0/8": "",
	} {
		got, err := IPBlock(text)
		if (err != nil) != (want == "") || (err == nil && got.String() != want) {
			t.Errorf("%q: %v, %v; want %q", text, got, err, want)
		}
	}
}

func TestPort(t *testing.T) {
	for text, want := range map[string]uint32{"1": 1, "65535": 65535, "0": 0, "65536": 0, "-1": 0, "http": 0, "": 0, "80 ": 0, "80-90": 0} {
		if got, err := Port(text); got != want || (err != nil) != (want == 0) {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
}

func TestPattern(t *testing.T) {
	for text, ok := range map[string]bool{"a": true, "*": true, "a*": true, "*a": true, "": false, "a*b": false, "*a*": false, "**": false, "a**": false} {
		if err := Pattern(text); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestServiceAccount(t *testing.T) {
	for text, want := range map[string]string{"sa": "own/sa", "ns/sa": "ns/sa", "": "", "/sa": "", "ns/": "", "a/b/c": "", "*": "", "ns/*": ""} {
		ns, sa, err := ServiceAccount(text, "own")
		if (err != nil) != (want == "") || (err == nil && ns+"/"+sa != want) {
			t.Errorf("%q: %s/%s, %v", text, ns, sa, err)
		}
	}
}

func TestPeerAuthenticationFindings(t *testing.T) {
	p := &securityv1.PeerAuthentication{ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: "p"}}
	p.Spec.PortLevelMtls = map[uint32]*securitybeta.PeerAuthentication_MutualTLS{70000: {}}
	found := PeerAuthentication(p, []Field{{"spec.x", "unknown field"}})
	var all []string
	for _, f := range found {
		all = append(all, f.Error())
	}
	got := strings.Join(all, "\n")
	want := "error PeerAuthentication foo/p spec.x: unknown field\n" +
		"error PeerAuthentication foo/p spec.portLevelMtls: needs a selector\n" +
		"error PeerAuthentication foo/p spec.portLevelMtls.70000: is not a port number from 1 to 65535"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestSelectorAndTargets(t *testing.T) {
	p := &securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: "p"}}
	p.Spec.Selector = &typebeta.WorkloadSelector{MatchLabels: map[string]string{"app": "*"}}
	p.Spec.TargetRefs = []*typebeta.PolicyTargetReference{{Kind: "Service", Name: "s", Namespace: "other"}, {Kind: "Pod", Name: "x"},
		{Group: "example.com", Kind: "Service", Name: "s"}, {Group: "core", Kind: "Service", Name: "s"}, {Group: "gateway.networking.k8s.io", Kind: "Gateway", Name: "g"}}
	p.Spec.Rules = []*securitybeta.Rule{nil}
	fields := map[string]bool{}
	for _, f := range AuthorizationPolicy(p, nil) {
		if gateway := f.Field == "spec.targetRefs[4]"; (f.Severity == Warning) != gateway || (f.Severity != Error && !gateway) {
			t.Errorf("%v", f)
		}
		fields[f.Field] = true
	}
	for _, want := range []string{"spec.selector.matchLabels.app", "spec.selector", "spec.targetRefs[0].namespace", "spec.targetRefs[1]",
		"spec.targetRefs[2].group", "spec.targetRefs[4]", "spec.rules[0]"} {
		if !fields[want] {
			t.Errorf("no finding for %s in %v", want, fields)
		}
		delete(fields, want)
	}
	if len(fields) > 0 {
		t.Error("findings for", fields)
	}
}

// FuzzValues feeds every field of a policy with any text: nothing may panic, and what passes must be parsable.
func FuzzValues(f *testing.F) {
	for _, s := range []string{"", "*", "10.0.0.0/8", "::ffff:1.2.3.4/97", "80", "ns/sa", "source.ip"} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, key, value string) {
		p := &securityv1.AuthorizationPolicy{}
		p.Spec.Rules = []*securitybeta.Rule{{
			From: []*securitybeta.Rule_From{{Source: &securitybeta.Source{IpBlocks: []string{value}, Principals: []string{value}, ServiceAccounts: []string{value}}}},
			To:   []*securitybeta.Rule_To{{Operation: &securitybeta.Operation{Ports: []string{value}}}},
			When: []*securitybeta.Condition{{Key: key, Values: []string{value}}},
		}}
		if Worst(AuthorizationPolicy(p, nil)) == Error {
			return
		}
		if _, err := IPBlock(value); err != nil {
			t.Fatal(err)
		}
		if prefix, err := IPBlock(value); err == nil && prefix != prefix.Masked() {
			t.Fatal(prefix)
		}
	})
}
