package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestSetupInstallsDependencies: on a fresh machine it is .ci/setup that installs what `up` then looks for.
func TestSetupInstallsDependencies(t *testing.T) {
	text, err := os.ReadFile("../../.ci/setup")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^\s*cluster\) packages\+=\((.*)\)`).FindSubmatch(text)
	if m == nil {
		t.Fatal("there is no step cluster in .ci/setup")
	}
	installed := strings.Fields(string(m[1]))
	needed := []string{"kmod"}
	for _, d := range dependencies() {
		needed = append(needed, d.pkg)
	}
	for _, pkg := range needed {
		if !slices.Contains(installed, pkg) {
			t.Errorf(".ci/setup does not install %s", pkg)
		}
	}
}
