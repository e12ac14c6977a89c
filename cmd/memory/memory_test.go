package memory

import "testing"

func TestSoftLimit(t *testing.T) {
	for text, want := range map[string]int64{"max\n": 0, "": 0, "-1": 0, "1000\n": 900, "2147483648\n": 1932735284} {
		if got, ok := softLimit(text); got != want || ok != (want > 0) {
			t.Errorf("%q: %d, %t; want %d", text, got, ok, want)
		}
	}
}
