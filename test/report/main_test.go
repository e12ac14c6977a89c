package main

import (
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	const (
		pass  = `{"Action":"pass","Package":"p","Test":"TestA"}` + "\n"
		skip  = `{"Action":"skip","Package":"p","Test":"TestB"}` + "\n"
		fail  = `{"Action":"output","Package":"p","Test":"TestC","Output":"why\n"}` + "\n" + `{"Action":"fail","Package":"p","Test":"TestC"}` + "\n"
		crash = `{"Action":"output","Package":"q","Output":"panic: x\n"}` + "\n" + `{"Action":"fail","Package":"q"}` + "\n"
	)
	for _, tc := range []struct {
		in     string
		noskip bool
		ok     bool
		want   string
	}{
		{pass, true, true, "1 passed, 0 failed, 0 skipped"},
		{pass + skip, false, true, "1 passed, 0 failed, 1 skipped"},
		{pass + skip, true, false, "1 skipped"},
		{pass + fail, false, false, "why\n"},
		{pass + crash, false, false, "broken: q"},
		{"", false, false, "0 passed"},
		{skip, false, false, "0 passed"},
	} {
		var out strings.Builder
		ok, err := run(strings.NewReader(tc.in), &out, "", tc.noskip)
		if err != nil || ok != tc.ok || !strings.Contains(out.String(), tc.want) {
			t.Errorf("%q noskip %v: %v, %v, %q; want %v and %q", tc.in, tc.noskip, ok, err, out.String(), tc.ok, tc.want)
		}
	}
}
