package validate

import (
	"regexp/syntax"
)

// Bounds of regular expressions. Each node makes programmes of them, and who writes an object is not who pays for that.
const (
	maxRegex        = 1 << 10  // bytes of one
	maxRegexSize    = 1 << 13  // instructions of one, about: "a{1,1000}" has 1,000
	maxRegexesSize  = 1 << 17  // instructions of all of an object that differ
	maxRegexesBytes = 64 << 10 // and bytes of these
)

// regexes remembers what was found in the regular expressions of one object. The zero value is ready.
type regexes struct {
	seen        map[string]verdict
	bytes, size int
}

type verdict struct{ code, says string } // says is "" for a good one

// regex checks that the text is a regular expression of RE2 and no larger than nodes take it. No programme is made of it.
func (c *collector) regex(text, field string) {
	v, known := c.patterns.seen[text]
	if !known {
		v = c.patterns.judge(text)
	}
	if v.says == "" {
		return
	}
	c.add(Error, field, "%s", v.says)
	if v.code != "" {
		c.code(v.code)
	}
}

func (r *regexes) judge(text string) (v verdict) {
	if len(text) > maxRegex {
		return verdict{says: "is longer than 1024 bytes"}
	}
	const together = "is too much: all regular expressions of the object together are too large"
	if r.bytes+len(text) > maxRegexesBytes || r.size > maxRegexesSize {
		return verdict{says: together}
	}
	if r.seen == nil {
		r.seen = map[string]verdict{}
	}
	defer func() { r.seen[text] = v }()
	r.bytes += len(text)
	tree, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return verdict{code: CodeRegex, says: "is not a regular expression of RE2: " + err.Error()}
	}
	size := instructions(tree)
	r.size += size
	switch {
	case size > maxRegexSize:
		return verdict{says: "is too large: its repetitions and classes make a programme that nodes do not take"}
	case r.size > maxRegexesSize:
		return verdict{says: together}
	}
	return verdict{}
}

// instructions is about how long a programme is, in instructions and ranges of characters. The parser bounds nested repetitions
// at 1,000 and the nesting too.
func instructions(re *syntax.Regexp) int {
	n := 1
	for _, sub := range re.Sub {
		n += instructions(sub)
	}
	switch re.Op {
	case syntax.OpLiteral:
		n = len(re.Rune)
	case syntax.OpCharClass:
		n = len(re.Rune) / 2
	case syntax.OpRepeat:
		n *= max(re.Min, re.Max, 1)
	}
	return max(n, 1)
}
