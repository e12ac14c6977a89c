package head_test

import (
	"slices"
	"testing"

	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// lines makes a list of the text's lines, "name: value" each.
func lines(text ...string) *head.Fields {
	var buf []byte
	f := &head.Fields{}
	var all []head.Field
	for _, l := range text {
		at := uint32(len(buf))
		n := uint32(slices.Index([]byte(l), ':'))
		buf = append(append(buf, l...), "\r\n"...)
		all = append(all, head.Field{Line: at, NameEnd: at + n, Val: at + n + 2, ValEnd: at + uint32(len(l)),
			End: uint32(len(buf)), ID: head.IDOf([]byte(l[:n]))})
	}
	f.Reset(buf)
	for _, x := range all {
		f.PutLine(x)
	}
	return f
}

func TestIDs(t *testing.T) {
	for id := head.Other + 1; id < head.NumIDs; id++ {
		if name := head.Names[id]; name == "" || head.IDOf([]byte(name)) != id {
			t.Errorf("name %q of id %d has id %d", name, id, head.IDOf([]byte(name)))
		}
	}
	for name, want := range map[string]head.ID{"CoNtEnT-LeNgTh": head.ContentLength, "content_length": head.Other, "": head.Other, "hosT": head.Host} {
		if got := head.IDOf([]byte(name)); got != want {
			t.Errorf("id of %q is %d, want %d", name, got, want)
		}
	}
}

func TestFields(t *testing.T) {
	f := lines("Host: a", "X-A: 1", "Cookie: b=1", "x-a: 2", "cookie: c=2")
	var got []string
	for i := f.Next(0, head.Other, "x-a"); i >= 0; i = f.Next(i+1, head.Other, "x-a") {
		got = append(got, string(f.Value(i)))
	}
	if !slices.Equal(got, []string{"1", "2"}) {
		t.Errorf("values of x-a: %q", got)
	}
	f.Drop(2)
	if v := f.Get(head.Cookie); string(v) != "c=2" {
		t.Errorf("cookie after the first was dropped: %q", v)
	}
	f.Set(head.Other, "x-a", []byte("3"))
	f.AddString(head.Server, "envoy")
	if !f.Del(head.Host, "host") || f.Has(head.Host) || f.Del(head.Host, "host") {
		t.Error("host is still there, or was removed twice")
	}
	want := "cookie: c=2\r\nx-a: 3\r\nserver: envoy\r\n"
	if text := string(f.AppendLines(nil)); text != want || f.Size() != len(want) {
		t.Errorf("lines %q of size %d, want %q", text, f.Size(), want)
	}
	if _, ok := f.Find("x-b"); ok {
		t.Error("found x-b")
	}
	f.Reset(nil)
	if f.Len() != 0 || f.Has(head.Server) || len(f.AppendLines(nil)) != 0 {
		t.Error("something is left after Reset")
	}
}

func TestNoAllocation(t *testing.T) {
	f := lines("Host: a", "X-A: 1", "Cookie: b=1")
	out := make([]byte, 0, 256)
	value := []byte("v")
	f.Add(head.Other, "x-b", value)
	if n := testing.AllocsPerRun(100, func() {
		f.Get(head.Cookie)
		f.Find("x-a")
		out = f.AppendLines(out[:0])
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
