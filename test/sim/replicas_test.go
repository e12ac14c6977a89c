package sim

import (
	"strings"
	"testing"
	"testing/synctest"
)

func playReplicas(t *testing.T, opt ReplicaOptions) (violations []string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { violations = RunReplicas(t.Context(), opt) })
	return violations
}

// TestReplicas: histories of two or three replicas that restart, lag and stop hearing of changes, and of nodes that are cut
// off and come back to any of them. -seed plays one, -first and -histories choose others.
func TestReplicas(t *testing.T) {
	first, n := *firstFlag, uint64(40)
	if *seedFlag != 0 {
		first, n = *seedFlag, 1
	}
	for seed := first; seed < first+n; seed++ {
		if v := playReplicas(t, ReplicaOptions{Seed: seed}); len(v) > 0 {
			t.Errorf("%s\nagain with: go test ./test/sim -run TestReplicas -seed %d", strings.Join(v[:min(len(v), 5)], "\n"), seed)
		}
	}
}

// TestTornChangesAreSeen: replicas that serve a change in two halves are found out.
func TestTornChangesAreSeen(t *testing.T) {
	for seed := range uint64(5) {
		if len(playReplicas(t, ReplicaOptions{Seed: seed + 1, Torn: true})) > 0 {
			return
		}
	}
	t.Error("no history shows that a change is served in two halves")
}

// TestOlderStatesAreSeen: replicas that do not ask nodes what they have seen are found out.
func TestOlderStatesAreSeen(t *testing.T) {
	for seed := range uint64(5) {
		if v := playReplicas(t, ReplicaOptions{Seed: seed + 1, Forgetful: true}); strings.Contains(strings.Join(v, "\n"), "took it back") {
			return
		}
	}
	t.Error("no history shows that a node is taken back")
}
