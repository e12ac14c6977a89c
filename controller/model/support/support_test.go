package support

import (
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/durationpb"
	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
	typebeta "istio.io/api/type/v1beta1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// ceiling is how many fields may be without their full effect, those without one by design apart. It may only be lowered:
// a change that raises the count takes something away from users.
const ceiling = 855

func TestCeiling(t *testing.T) {
	n := Count()
	got := n[Carried] + n[Refused] + n[Accepted]
	if got > ceiling {
		t.Errorf("%d fields are not enforced, at most %d may be: enforce what was added, or say by design why not", got, ceiling)
	}
	if got < ceiling {
		t.Errorf("%d fields are not enforced: lower the ceiling from %d", got, ceiling)
	}
}

// TestEveryFieldIsDecided fails when a newer API has a field that nobody thought about.
func TestEveryFieldIsDecided(t *testing.T) {
	for _, k := range kinds {
		if len(k.leaves()) == 0 {
			t.Errorf("%s has no fields", k.name)
		}
		for _, leaf := range k.leaves() {
			if k.decide(leaf) == nil {
				t.Errorf("%s: spec.%s is not in the table", k.name, leaf)
			}
		}
	}
}

// TestTableIsTidy finds entries that mean nothing.
func TestTableIsTidy(t *testing.T) {
	rows := catalogue(t)
	for _, k := range kinds {
		seen := map[string]bool{}
		used := map[*entry]bool{}
		for _, leaf := range k.leaves() {
			used[k.decide(leaf)] = true
		}
		shared := k.name != "HTTPRoute" && k.group == "gateway.networking.k8s.io" // one table for several kinds
		for i := range k.entries {
			e := &k.entries[i]
			where := k.name + " " + e.path
			if seen[e.path] {
				t.Errorf("%s: stands there twice", where)
			}
			seen[e.path] = true
			if !used[e] && !shared {
				t.Errorf("%s: there is no such field", where)
			}
			head, fields := e.split()
			for _, f := range fields {
				if !slices.Contains(k.leaves(), head+"."+f) || k.decide(head+"."+f) != e {
					t.Errorf("%s: there is no field %s of its own", where, f)
				}
			}
			if e.rows == "" {
				t.Errorf("%s: names no row of the catalogue", where)
			}
			for _, r := range strings.Fields(e.rows) {
				if !rows[r] {
					t.Errorf("%s: there is no row %s", where, r)
				}
			}
			if (e.state == Enforced || e.state == Unused) != (e.milestone == "") {
				t.Errorf("%s: %s with milestone %q", where, e.state, e.milestone)
			}
			if e.state == Unused && e.note == "" {
				t.Errorf("%s: has no effect by design, and no reason", where)
			}
		}
	}
}

func catalogue(t *testing.T) map[string]bool {
	t.Helper()
	data, err := os.ReadFile("../../../test/capabilities/rows.tsv")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		id, _, _ := strings.Cut(line, "\t")
		rows[id] = true
	}
	return rows
}

// TestInheritance: a field that a newer API adds below an enforced one must not count as enforced.
func TestInheritance(t *testing.T) {
	k := kind{entries: []entry{{"a", Enforced, "", "", ""}, {"", Accepted, L7, "", ""}, {"b", Refused, L7, "", ""}}}
	for leaf, want := range map[string]State{"a": Enforced, "a.new": Accepted, "ab": Accepted, "b": Refused, "b.c": Refused,
		"b[].c": Refused, "b{}": Refused, "bc": Accepted} {
		if got := k.decide(leaf).state; got != want {
			t.Errorf("%s: %s, want %s", leaf, got, want)
		}
	}
	if e := (kind{entries: k.entries[:1]}).decide("a.new"); e != nil {
		t.Errorf("a new field is decided by %+v", e)
	}
}

func TestIneffective(t *testing.T) {
	paths := func(fields []Field) string {
		var all []string
		for _, f := range fields {
			all = append(all, f.Path)
		}
		return strings.Join(all, " ")
	}
	policy := &security.AuthorizationPolicy{
		Selector: &typebeta.WorkloadSelector{MatchLabels: map[string]string{"a": "b"}},
		Rules: []*security.Rule{{From: []*security.Rule_From{{Source: &security.Source{RequestPrincipals: []string{"*"}, IpBlocks: []string{"10.0.0.1"}}}},
			To: []*security.Rule_To{{Operation: &security.Operation{Methods: []string{"GET"}, Ports: []string{"80"}}}}}},
	}
	if got, want := paths(Ineffective("AuthorizationPolicy", policy)),
		"rules[].from[].source.requestPrincipals[] rules[].to[].operation.methods[]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	vs := &networking.VirtualService{Http: []*networking.HTTPRoute{{Timeout: durationpb.New(1), Match: []*networking.HTTPMatchRequest{{StatPrefix: "a"}},
		Headers: &networking.Headers{Request: &networking.Headers_HeaderOperations{Set: map[string]string{"a": "b"}}}}}}
	if got, want := paths(Ineffective("VirtualService", vs)), "http[].match[].statPrefix"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	name := gatewayv1.SectionName("x")
	route := gatewayv1.HTTPRouteSpec{CommonRouteSpec: gatewayv1.CommonRouteSpec{ParentRefs: []gatewayv1.ParentReference{{Name: "gw", SectionName: &name}}},
		Hostnames: []gatewayv1.Hostname{"h"}}
	if got, want := paths(Ineffective("HTTPRoute", route)), "hostnames[] parentRefs[].name parentRefs[].sectionName"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if Ineffective("Unknown", policy) != nil || len(Ineffective("PeerAuthentication", &security.PeerAuthentication{})) > 0 {
		t.Error("found fields where there are none")
	}
	if !Inert("HTTPRoute") || Inert("AuthorizationPolicy") {
		t.Error("Inert is wrong")
	}
}

// TestSetPathsAreLeaves: what is found set must be found in the table.
func TestSetPathsAreLeaves(t *testing.T) {
	e := &networking.EnvoyFilter{ConfigPatches: []*networking.EnvoyFilter_EnvoyConfigObjectPatch{{Patch: &networking.EnvoyFilter_Patch{Operation: networking.EnvoyFilter_Patch_ADD}}}}
	for _, path := range setPaths(e) {
		if !slices.Contains(protoLeaves(e.ProtoReflect().Descriptor()), path) {
			t.Errorf("%s is no field", path)
		}
	}
}

// TestDocumentIsCurrent fails when docs/enforcement.md is not what the table says: run "make generate".
func TestDocumentIsCurrent(t *testing.T) {
	const path = "../../../docs/enforcement.md"
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != Markdown() {
		t.Error("docs/enforcement.md is stale: run make generate")
	}
}
