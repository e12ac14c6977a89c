package support

import (
	"fmt"
	"slices"
	"strings"
)

// Markdown is docs/enforcement.md.
func Markdown() string {
	var b strings.Builder
	n := Count()
	fmt.Fprintf(&b, `# What the mesh does with each field

Made by `+"`make generate`"+` from controller/model/support, the table that statuses go by too; tests hold it against the compiler.
%d fields of %d kinds: %d enforced, %d carried, %d refused, %d accepted without effect, %d without effect by design.

| word | meaning |
|---|---|
| enforced | the mesh does what the field says |
| carried | nodes receive it and do not act on it yet |
| refused | it cannot be judged yet, and what it is about is denied: a policy never lets through what it was to stop |
| accepted | it has no effect yet; the status of an object that sets it says AcceptedNotEnforced and names it |
| unused | it has no effect by design, for the reason given |

Milestones: 2/5 the controller, 3/5 traffic at layer 7, 4/5 policy and telemetry at layer 7, 5/5 gateways and operations. Rows
are those of docs/capabilities.md. `+"`[]`"+` stands for the elements of a list, `+"`{}`"+` for the values of a map. Ingress, IngressClass,
ReferenceGrant and BackendTLSPolicy get no conditions: `+"`undermesh analyze`"+` says of them what stands here (UM0209). The MeshConfig is the key mesh of the ConfigMap istio.
The kinds ServiceRole, ServiceRoleBinding, RbacConfig, Policy, MeshPolicy and those of Mixer, of 2018 and 2019, are not served;
`+"`undermesh validate`"+` names what took their place. An IstioOperator is read by `+"`undermesh install -f`"+`, not by the controller.
`, total(n), len(kinds), n[Enforced], n[Carried], n[Refused], n[Accepted], n[Unused])
	for _, k := range kinds {
		b.WriteString(k.markdown())
	}
	return b.String()
}

func total(n map[State]int) int {
	sum := 0
	for _, c := range n {
		sum += c
	}
	return sum
}

// markdown has one line for each decision, with all the fields that it is about.
func (k kind) markdown() string {
	lines := map[*entry][]string{}
	count := map[State]int{}
	for _, leaf := range k.leaves() {
		if e := k.decide(leaf); e != nil {
			lines[e] = append(lines[e], leaf)
			count[e.state]++
		}
	}
	var parts []string
	for _, s := range []State{Enforced, Carried, Refused, Accepted, Unused} {
		if count[s] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", count[s], s))
		}
	}
	name, _, _ := strings.Cut(k.name, ".")
	var b strings.Builder
	fmt.Fprintf(&b, "\n## %s\n\n", name)
	if k.group != "" {
		b.WriteString(k.group + ": ")
	}
	fmt.Fprintf(&b, "%s.\n\n| fields | | by | rows |\n|---|---|---|---|\n", strings.Join(parts, ", "))
	for i := range k.entries {
		e := &k.entries[i]
		if len(lines[e]) == 0 {
			continue
		}
		state := string(e.state)
		if e.note != "" {
			state += ": " + e.note
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", fieldList(e, lines[e]), state, e.milestone, e.rows)
	}
	return b.String()
}

// fieldList names the leaves below the path, each once: what they have in common stands in front.
func fieldList(e *entry, leaves []string) string {
	path, _ := e.split()
	slices.Sort(leaves)
	if len(leaves) == 1 {
		return "`" + leaves[0] + "`"
	}
	var rest []string
	for _, l := range leaves {
		if l = strings.TrimPrefix(strings.TrimPrefix(l, path), "."); l != "" {
			rest = append(rest, l)
		}
	}
	if path == "" {
		return "`" + strings.Join(rest, "` `") + "`"
	}
	return "`" + path + "`: `" + strings.Join(rest, "` `") + "`"
}
