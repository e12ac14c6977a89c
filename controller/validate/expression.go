package validate

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// expression checks an expression of CEL as far as its words and brackets follow each other. What names mean is said by the
// program that evaluates it.
func (c *collector) expression(text, at string) {
	if strings.TrimSpace(text) == "" {
		c.add(Error, at, "is empty")
		return
	}
	if err := celSyntax(text); err != nil {
		c.add(Error, at, "is not an expression: %s", err)
		return
	}
	c.skipped(at, "not checked: the names and types in the expression")
}

// celToken is one word of CEL: text in quotes, a number, a name, an operator or a bracket.
var celToken = regexp.MustCompile(`^(?:(?:[rRbB]{0,2})(?:"""(?s:.*?)"""|'''(?s:.*?)'''|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')` +
	`|0x[0-9a-fA-F]+u?|[0-9]+\.[0-9]+(?:[eE][+-]?[0-9]+)?|\.[0-9]+|[0-9]+(?:[eE][+-]?[0-9]+|u)?|[A-Za-z_][A-Za-z0-9_]*` +
	`|&&|\|\||==|!=|<=|>=|[-+*/%!<>?:.,()\[\]{}])`)

// celSyntax walks over the words: a value follows an operator, and an operator a value.
func celSyntax(text string) error {
	var open []string
	value, dot := false, false // a value, or a dot, stands before
	for rest := strings.TrimSpace(text); rest != ""; rest = strings.TrimSpace(rest) {
		t := celToken.FindString(rest)
		if t == "" {
			return fmt.Errorf("%q is no word of it", shortened(rest))
		}
		switch {
		case t == "(" || t == "[" || t == "{":
			open, value = append(open, t), false
		case t == ")" || t == "]" || t == "}":
			if len(open) == 0 || open[len(open)-1]+t != map[string]string{")": "()", "]": "[]", "}": "{}"}[t] {
				return fmt.Errorf("the bracket %q was not opened", t)
			}
			open, value = open[:len(open)-1], true
		case t == "in" || (strings.ContainsAny(t[:1], "&|=<>?:.,*/%") && !celNumber(t)) || t == "!=" || t == "+":
			if !value && (t != "." || dot) {
				return fmt.Errorf("there is no value before %q", t)
			}
			value = false
		case t == "-" || t == "!":
			if t == "!" && value {
				return errors.New(`there is no operator before "!"`)
			}
			value = false
		case value:
			return fmt.Errorf("there is no operator before %q", shortened(t))
		default:
			value = true
		}
		dot = t == "."
		rest = rest[len(t):]
	}
	switch {
	case len(open) > 0:
		return fmt.Errorf("the bracket %q is not closed", open[len(open)-1])
	case !value:
		return errors.New("it ends behind an operator")
	}
	return nil
}

// celNumber says whether a word that begins with a dot is a number.
func celNumber(t string) bool { return len(t) > 1 && t[0] == '.' }

func shortened(text string) string { return text[:min(len(text), 24)] }
