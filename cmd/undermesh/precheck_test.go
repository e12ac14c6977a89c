package main

import (
	"strings"
	"testing"
)

func TestKernelBelow(t *testing.T) {
	for v, want := range map[string]bool{"5.16.9": true, "5.17.0-1-amd64": false, "6.1.0": false, "4.19": true, "weird": true} {
		if got := kernelBelow(v, 5, 17); got != want {
			t.Errorf("%s: got %v, want %v", v, got, want)
		}
	}
}

func TestInstallRefuses(t *testing.T) {
	for _, tc := range []struct{ args, want string }{
		{"manifest generate --set profile=nosuch", "nosuch"},
		{"manifest generate --set values.pilot.nosuch=1", "pilot.nosuch"},
		{"manifest generate --set nosuch=1", "nosuch"},
		{"manifest generate -f testdata/not-operator.yaml", "IstioOperator"},
		{"uninstall", "--purge"},
	} {
		var out, errw strings.Builder
		root := newRoot("undermesh", strings.NewReader(""), &out, &errw)
		root.SetArgs(strings.Fields(tc.args))
		if err := root.Execute(); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want an error that names %s", tc.args, err, tc.want)
		}
	}
}
