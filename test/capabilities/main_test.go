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

func TestControlIsAWord(t *testing.T) {
	for name, want := range map[string]bool{
		"TestMT04/control":                                          true,
		"TestMT04/control_without":                                  true,
		"TestMT04/control:_without":                                 true,
		"TestMT04/control#01":                                       true,
		"TestMT04/part/control:_x/deeper":                           true,
		"TestPolicyRows/AZ-10_control:_outside":                     true,
		"TestPolicyRows/AZ-10_AZ-21_control:_outside_the_mesh":      true,
		"TestPolicyRows/AZ-10,AZ-21_control":                        true,
		"TestPolicyRows/(AZ-10)_control":                            true,
		"TestMT04/controller_restarts":                              false,
		"TestMT04/controls":                                         false,
		"TestMT04/MT-04_controller_restarts":                        false,
		"TestMT04/the_control_plane_is_gone":                        false,
		"TestMT04/MT-04_outage_of_the_control_plane,_MT-05_belongs": false,
		"TestMT04_control":                                          false,
	} {
		proofs := map[string]*proof{}
		_, known := catalogue()
		if err := read(strings.NewReader(`{"Action":"pass","Test":"`+name+`"}`), known, proofs); err != nil {
			t.Fatal(err)
		}
		if len(proofs) == 0 {
			t.Fatalf("%s carries no row", name)
		}
		for id, p := range proofs {
			if got := p.controls[name]; got != want || p.tests[name] == want {
				t.Errorf("%s: counts as a control of %s: %v, want %v", name, id, got, want)
			}
		}
	}
}

func TestStatus(t *testing.T) {
	_, known := catalogue()
	for _, tc := range []struct{ events, want string }{
		{``, "open"},
		{`{"Action":"skip","Test":"TestMT04"}`, "open"},
		{`{"Action":"pass","Test":"TestMT04"}`, "vacuous"},
		{`{"Action":"pass","Test":"TestMT04"}` + "\n" + `{"Action":"pass","Test":"TestMT04/control_without"}`, "vacuous"},
		{`{"Action":"pass","Test":"TestMT04"}` + "\n" + `{"Action":"pass","Test":"TestMT04/control:_outside_the_mesh"}`, "vacuous"},
		{`{"Action":"pass","Test":"TestMT04"}` + "\n" + `{"Action":"pass","Test":"TestMT04/control_without"}` + "\n" + `{"Action":"pass","Test":"TestMT04/control:_outside_the_mesh"}`, "pass"},
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
	if got := status("SI-01", &proof{map[string]bool{"a": true}, map[string]bool{"b": true}}); got != "pass" {
		t.Errorf("SI-01, which has one control: got %s", got)
	}
	if got := status("TR-23", nil); got != "deviation" {
		t.Errorf("TR-23: got %s", got)
	}
}
