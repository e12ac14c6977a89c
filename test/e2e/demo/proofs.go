package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/undermesh/undermesh/test/e2e"
)

// proofs are the promises that take load, outages and a removal to see. Their steps are the tests of test/e2e themselves, so that
// the demo cannot claim what they do not prove.
func proofs(binary string) []step {
	var out []step
	for _, p := range []struct{ title, tests string }{
		{"Connections stay open while their pods enter and leave the mesh", "TestLoadEnrolment"},
		{"Services mean what they mean without a mesh", "TestServiceSemantics"},
		{"A pod is in the mesh from its first packet, whatever SO_MARK it sets", "TestCN08FirstPacket|TestForeignMark"},
		{"kubelet's probes pass STRICT, and carry nobody's messages", "TestProbesStrict"},
		{"NetworkPolicy keeps its meaning", "TestNetworkPolicy|TestIN13PrecheckNetworkPolicy"},
		{"kill -9 of the controller and of the agents under load: no failure", "TestLoadKillController|TestLoadKillAgent"},
		{"kill -9 of ztunnel under load: its live connections break, and nothing else", "TestLoadKillZtunnel"},
		{"Pods start while the controller is away; outside the mesh also while the agent is", "TestControllerAway|TestAgentAway"},
		{"Bad input is named, and neither passes nor harms", "TestBad[A-Z][a-z]+"},
		{"undermesh uninstall leaves nothing; then the mesh is installed again", "TestIN15Uninstall"},
	} {
		out = append(out, step{p.title, func(ctx context.Context, w *e2e.World) error { return prove(ctx, w, binary, p.tests) }})
	}
	return out
}

// prove runs the tests that match and narrates what they say. None is an error, and so is one that is skipped.
func prove(ctx context.Context, w *e2e.World, binary, tests string) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "-test.v", "-test.count=1", "-test.run", "^("+tests+")$")
	cmd.Env = append(os.Environ(), "MESH_TEST_CLUSTER=1")
	cmd.Dir = w.Root + "/test/e2e"
	cmd.Stderr = os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	passed, skipped := narrate(stdout, w.Say)
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("tests %s: %w", tests, err)
	}
	if passed == 0 || skipped > 0 {
		return fmt.Errorf("tests %s: %d passed and %d were skipped", tests, passed, skipped)
	}
	return nil
}

var (
	said   = regexp.MustCompile(`^\s+[a-z0-9_]+\.go:[0-9]+:\s?(.*)`)
	result = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+) \(`)
)

// narrate shows what tests log, and how they and their parts ended. It counts tests, parts included.
func narrate(r io.Reader, say func(string, ...any)) (passed, skipped int) {
	for s := bufio.NewScanner(r); s.Scan(); {
		if m := said.FindStringSubmatch(s.Text()); m != nil {
			say("    %s", strings.TrimSpace(m[1]))
		} else if m := result.FindStringSubmatch(s.Text()); m != nil {
			mark := map[string]string{"PASS": "✓", "FAIL": "✗", "SKIP": "-"}[m[1]]
			switch m[1] {
			case "PASS":
				passed++
			case "SKIP":
				skipped++
			}
			test, part, _ := strings.Cut(m[2], "/")
			if part == "" {
				part = test
			}
			say("  %s %s", mark, strings.ReplaceAll(part, "_", " "))
		} else if !strings.HasPrefix(s.Text(), "===") && s.Text() != "PASS" {
			say("    %s", s.Text())
		}
	}
	return passed, skipped
}
