package head

import "testing"

// TestAddStaysOneLine: a value that was made of several parts cannot begin another field.
func TestAddStaysOneLine(t *testing.T) {
	var f Fields
	f.Reset(nil)
	f.Add(Other, "x-a", []byte("1\r\nx-b: 2\x00"))
	if got := string(f.AppendLines(nil)); got != "x-a: 1  x-b: 2 \r\n" {
		t.Errorf("%q", got)
	}
}
