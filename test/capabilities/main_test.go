package main

import (
	"slices"
	"strings"
	"testing"
)

func TestIDs(t *testing.T) {
	known := map[string]bool{"MT-04": true, "MT-05": true, "AZ-10": true}
	for name, want := range map[string][]string{
		"TestMT04StrictMesh": {"MT-04"},
		"TestMT04MT05":       {"MT-04", "MT-05"},
		"TestAuthorizationTCP/AZ-10_ports_(AZ-10)": {"AZ-10"},
		"TestAuthorizationTCP/(MT-05)_x":           {"MT-05"},
		"TestXX04":                                 nil,
		"TestMT041":                                nil,
		"TestSomething":                            nil,
	} {
		if got := ids(name, known); !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
}

func TestStatus(t *testing.T) {
	_, known := catalogue()
	for _, tc := range []struct{ events, want string }{
		{``, "open"},
		{`{"Action":"skip","Test":"TestMT04"}`, "open"},
		{`{"Action":"pass","Test":"TestMT04"}`, "vacuous"},
		{`{"Action":"pass","Test":"TestMT04"}` + "\n" + `{"Action":"pass","Test":"TestMT04/control_without"}`, "pass"},
		{`{"Action":"pass","Test":"TestMT04"}` + "\n" + `{"Action":"fail","Test":"TestMT04/control_without"}`, "fail"},
		{`{"Action":"fail","Test":"TestMT04"}`, "fail"},
	} {
		proofs := map[string]*proof{}
		if err := read(strings.NewReader(tc.events), known, proofs); err != nil {
			t.Fatal(err)
		}
		if got := status("MT-04", proofs["MT-04"]); got != tc.want {
			t.Errorf("%s: got %s, want %s", tc.events, got, tc.want)
		}
	}
	if got := status("TR-23", nil); got != "deviation" {
		t.Errorf("TR-23: got %s", got)
	}
}
