package validate

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
)

// regexRoutes is a VirtualService with a route for each expression.
func regexRoutes(expressions ...string) []byte {
	var b strings.Builder
	b.WriteString(`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"a","namespace":"b"},"spec":{"hosts":["a"],"http":[`)
	for i, x := range expressions {
		if i > 0 {
			b.WriteString(",")
		}
		fmt.Fprintf(&b, `{"match":[{"uri":{"regex":%q}}],"route":[{"destination":{"host":"x"}}]}`, x)
	}
	b.WriteString(`]}}`)
	return []byte(b.String())
}

func says(findings []Finding, what string) (n int) {
	for _, f := range findings {
		if strings.Contains(f.Error(), what) {
			n++
		}
	}
	return n
}

// TestRegexCost: thousands of expressions, equal or not, in one object cost about their bytes, and what nodes would have to
// make of them is bounded: one by one, and all of them.
func TestRegexCost(t *testing.T) {
	c, err := NewCatalogue()
	if err != nil {
		t.Fatal(err)
	}
	equal, different := make([]string, 2000), make([]string, 2000)
	for i := range equal {
		equal[i], different[i] = "(a+)+x{1,1000}", fmt.Sprintf("(a+)+%dx{1,1000}", i)
	}
	c.File("", regexRoutes("a")) // makes the schema
	for name, x := range map[string]struct {
		expressions []string
		says        string
		times       int
		most        uint64 // MB allocated
	}{
		"equal": {equal, "VirtualService", 0, 120}, "different": {different, "together are too large", 2000 - maxRegexesSize/1008, 200},
		"one":               {[]string{`x{1,1000}`}, "regular", 0, 5},
		"one of many times": {[]string{`(abcdefghi){1,1000}`}, "is too large", 1, 5},
		"classes":           {[]string{strings.Repeat(`[\pL]`, 200)}, "is too large", 1, 20},
		"long":              {[]string{strings.Repeat("a", maxRegex+1)}, "is longer than 1024 bytes", 1, 5},
		"long and wrong":    {[]string{strings.Repeat("(", maxRegex+1)}, "not a regular expression", 0, 5},
		"wrong":             {[]string{"(", "("}, "is not a regular expression of RE2", 2, 5},
	} {
		t.Run(name, func(t *testing.T) {
			raw := regexRoutes(x.expressions...)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			got := c.File("", raw).Findings
			runtime.ReadMemStats(&after)
			if mb := (after.TotalAlloc - before.TotalAlloc) >> 20; mb > x.most {
				t.Errorf("%d KiB allocate %d MB", len(raw)>>10, mb)
			}
			if n := says(got, x.says); n < x.times || x.times == 0 && n > 0 && Worst(got) == Error {
				t.Errorf("%d findings say %q, want %d: %v", n, x.says, x.times, got[:min(len(got), 3)])
			}
		})
	}
}

// TestObjectCost: what strangers hand over as one object costs about its bytes, however wrong it is.
func TestObjectCost(t *testing.T) {
	c, err := NewCatalogue()
	if err != nil {
		t.Fatal(err)
	}
	object := func(spec string) []byte {
		return []byte(`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"a","namespace":"b"},"spec":{` + spec + `"hosts":["a"]}}`)
	}
	fields := func(n int) (text string) {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `"gatewayz%d":1,`, i)
		}
		return b.String()
	}
	c.Object(object(fields(1))) // makes the schemas
	for name, x := range map[string]struct {
		raw  []byte
		says string
		most uint64 // MB allocated
	}{
		"unknown fields":   {object(fields(4000)), "unknown field", 60},
		"many values":      {object(`"x":[` + strings.Repeat("1,", maxValues) + `1],`), "not checked: it is too large", 5},
		"values in a text": {object(`"x":"` + strings.Repeat("[", maxValues) + `",`), "not checked: it is too large", 5},
		"large":            {object(`"x":"` + strings.Repeat("x", maxObject) + `",`), "not checked: it is too large", 5},
		"a list":           {[]byte(`{"apiVersion":"v1","kind":"List","items":[` + strings.Repeat(string(object(""))+",", 1000) + `1]}`), "is not one object", 5},
		"two documents":    {append(object(""), "\n---\n{}"...), "is not one object", 5},
		"good":             {object(""), "", 5},
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			got := c.Object(x.raw)
			runtime.ReadMemStats(&after)
			if mb := (after.TotalAlloc - before.TotalAlloc) >> 20; mb > x.most {
				t.Errorf("%d KiB allocate %d MB", len(x.raw)>>10, mb)
			}
			if n := says(got, x.says); x.says != "" && n == 0 {
				t.Errorf("%v", got[:min(len(got), 3)])
			}
		})
	}
}
