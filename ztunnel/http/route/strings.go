package route

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"

	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// Bounds of one regular expression, so that a tenant's pattern costs bounded memory. Matching takes as many steps as it has
// instructions for each byte: see Input.pay.
const (
	maxPattern = 4096  // bytes
	maxProgram = 10000 // instructions
)

// pattern matches whole values, as Envoy does.
type pattern struct {
	whole  *regexp.Regexp
	parts  *regexp.Regexp // without anchors, for replacing
	prefix string         // that every match begins with
	size   int            // instructions
}

func newPattern(m *matcher.RegexMatcher) (*pattern, error) {
	if err := only(m, "regex", "google_re2"); err != nil {
		return nil, err
	}
	text := m.GetRegex()
	if text == "" {
		return nil, errors.New("regex: must not be empty")
	}
	if len(text) > maxPattern {
		return nil, fmt.Errorf("regex: longer than %d bytes", maxPattern)
	}
	tree, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return nil, fmt.Errorf("regex: %w", err)
	}
	program, err := syntax.Compile(tree.Simplify())
	if err != nil {
		return nil, fmt.Errorf("regex: %w", err)
	}
	if len(program.Inst) > maxProgram {
		return nil, fmt.Errorf("regex: compiles to more than %d instructions", maxProgram)
	}
	parts, err := regexp.Compile(text)
	if err != nil {
		return nil, fmt.Errorf("regex: %w", err)
	}
	whole, err := regexp.Compile(`\A(?:` + text + `)\z`)
	if err != nil {
		return nil, fmt.Errorf("regex: %w", err)
	}
	prefix, _ := parts.LiteralPrefix()
	return &pattern{whole: whole, parts: parts, prefix: prefix, size: len(program.Inst)}, nil
}

type textKind uint8

const (
	textExact textKind = iota
	textPrefix
	textSuffix
	textContains
	textRegex
	textAny // whatever is there
)

// text matches one value.
type text struct {
	kind  textKind
	fold  bool   // want is in lower case
	want  string // unless a regex
	regex *pattern
}

func newText(m *matcher.StringMatcher) (text, error) {
	if err := only(m, "exact", "prefix", "suffix", "contains", "safe_regex", "ignore_case"); err != nil {
		return text{}, err
	}
	t := text{fold: m.GetIgnoreCase()}
	switch p := m.GetMatchPattern().(type) {
	case *matcher.StringMatcher_Exact:
		t.kind, t.want = textExact, p.Exact
	case *matcher.StringMatcher_Prefix:
		t.kind, t.want = textPrefix, p.Prefix
	case *matcher.StringMatcher_Suffix:
		t.kind, t.want = textSuffix, p.Suffix
	case *matcher.StringMatcher_Contains:
		t.kind, t.want = textContains, p.Contains
	case *matcher.StringMatcher_SafeRegex:
		if t.fold {
			return text{}, errors.New("ignore_case: has no effect on safe_regex")
		}
		var err error
		if t.regex, err = newPattern(p.SafeRegex); err != nil {
			return text{}, fmt.Errorf("safe_regex: %w", err)
		}
		t.kind = textRegex
	default:
		return text{}, errors.New("match_pattern: must be set")
	}
	if t.fold {
		t.want = strings.ToLower(t.want)
	}
	return t, nil
}

func (t *text) match(v []byte, in *Input) bool {
	switch t.kind {
	case textExact:
		return len(v) == len(t.want) && t.begins(v)
	case textPrefix:
		return t.begins(v)
	case textSuffix:
		return len(v) >= len(t.want) && t.begins(v[len(v)-len(t.want):])
	case textContains:
		return t.within(v)
	case textRegex:
		return in.pay(t.regex, v) && t.regex.whole.Match(v)
	}
	return true
}

func (t *text) begins(v []byte) bool {
	if len(v) < len(t.want) {
		return false
	}
	if t.fold {
		return head.EqualFold(v[:len(t.want)], t.want)
	}
	return string(v[:len(t.want)]) == t.want
}

func (t *text) within(v []byte) bool {
	if !t.fold {
		return indexString(v, t.want) >= 0
	}
	for ; len(v) >= len(t.want); v = v[1:] {
		if head.EqualFold(v[:len(t.want)], t.want) {
			return true
		}
		if len(v) == 0 {
			break
		}
	}
	return false
}

// indexString is bytes.Index without making a slice of s.
func indexString(v []byte, s string) int {
	if s == "" {
		return 0
	}
	for at := 0; len(v)-at >= len(s); at++ {
		i := bytes.IndexByte(v[at:], s[0])
		if i < 0 || len(v)-at-i < len(s) {
			return -1
		}
		if at += i; string(v[at:at+len(s)]) == s {
			return at
		}
	}
	return -1
}

// substitution is RE2's rewrite: \0 to \9 are groups, \\ is a backslash.
type substitution struct{ parts []subPart }

type subPart struct {
	literal string
	group   int // used when literal is ""
}

// hasControl reports whether s, which becomes part of a line of HTTP, would end the line or worse.
func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c == 0x7f })
}

func newSubstitution(s string, groups int) (substitution, error) {
	var out substitution
	var lit []byte
	if err := cleanPath(s); err != nil {
		return out, fmt.Errorf("substitution: %w", err)
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c != '\\' {
			lit = append(lit, c)
			continue
		}
		i++
		switch {
		case i < len(s) && s[i] == '\\':
			lit = append(lit, '\\')
		case i < len(s) && s[i] >= '0' && s[i] <= '9':
			g := int(s[i] - '0')
			if g > groups {
				return out, fmt.Errorf("substitution: group %d of a pattern with %d", g, groups)
			}
			if len(lit) > 0 {
				out.parts, lit = append(out.parts, subPart{literal: string(lit)}), nil
			}
			out.parts = append(out.parts, subPart{group: g})
		default:
			return out, errors.New("substitution: a backslash stands before a digit or a backslash")
		}
	}
	if len(lit) > 0 {
		out.parts = append(out.parts, subPart{literal: string(lit)})
	}
	return out, nil
}

// replacement is a pattern and what all its matches become.
type replacement struct {
	pattern *pattern
	with    substitution
}

func newReplacement(m *matcher.RegexMatchAndSubstitute) (*replacement, error) {
	if err := only(m, "pattern", "substitution"); err != nil {
		return nil, err
	}
	p, err := newPattern(m.GetPattern())
	if err != nil {
		return nil, fmt.Errorf("pattern: %w", err)
	}
	with, err := newSubstitution(m.GetSubstitution(), p.parts.NumSubexp())
	if err != nil {
		return nil, err
	}
	return &replacement{pattern: p, with: with}, nil
}

// apply appends v with all matches replaced. What is too long or costs too much is cut off, and in.Excess says so.
func (r *replacement) apply(dst, v []byte, in *Input) []byte {
	if !in.pay(r.pattern, v) {
		return dst
	}
	last, most := 0, len(dst)+maxMade
	for _, m := range r.pattern.parts.FindAllSubmatchIndex(v, -1) {
		dst = append(dst, v[last:m[0]]...)
		for _, p := range r.with.parts {
			if p.literal != "" {
				dst = append(dst, p.literal...)
			} else if from := m[2*p.group]; from >= 0 {
				dst = append(dst, v[from:m[2*p.group+1]]...)
			}
			if len(dst) > most {
				in.Excess = tooLong
				return dst[:most]
			}
		}
		last = m[1]
	}
	return append(dst, v[last:]...)
}
