// Package validate finds what is wrong with mesh objects: pure functions from typed objects to findings that name object
// and field. Controller, admission and CLI share them. A finding of severity Error on a policy means that the policy
// cannot be enforced as it is written; the compiler makes it deny then.
package validate

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// Severity of a finding.
type Severity int

// Severities.
const (
	Info    Severity = iota // nothing to do
	Warning                 // works, but perhaps not as meant
	Error                   // cannot be done as written
)

// String is info, warning or error.
func (s Severity) String() string {
	if s < Info || s > Error {
		return "severity_" + strconv.Itoa(int(s))
	}
	return [...]string{"info", "warning", "error"}[s]
}

// Finding is one remark about one object.
type Finding struct {
	Severity  Severity
	Kind      string
	Namespace string
	Name      string
	Field     string // path below the object; "" when the whole object is meant
	Message   string

	Unsupported bool   // the field is right, but this mesh cannot do it
	Skipped     bool   // says what was not checked, nothing about the object
	Code        string // of the kind of finding, as Istio's analyzers number them; "" when it has none of its own
	Hint        string // what to write instead; "" when there is nothing to say
	File        string // where the object was read; "" when it did not come from a file
	Line        int    // of Field in File, from 1; 0 when there is no file
}

// Error makes a finding an error: SEVERITY KIND NS/NAME FIELD: MESSAGE.
func (f Finding) Error() string {
	name := f.Name
	if f.Namespace != "" {
		name = f.Namespace + "/" + name
	}
	field := ""
	if f.Field != "" {
		field = " " + f.Field
	}
	return fmt.Sprintf("%s %s %s%s: %s", f.Severity, f.Kind, name, field, f.Message)
}

// Field is the path of a field with a message, as decoders report what they did not understand.
type Field struct{ Path, Message string }

// Worst returns the highest severity of the findings, Info when there are none.
func Worst(findings []Finding) Severity {
	worst := Info
	for _, f := range findings {
		worst = max(worst, f.Severity)
	}
	return worst
}

// Port reads a port number from 1 to 65535.
func Port(text string) (uint32, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is not a port number from 1 to 65535", text)
	}
	return uint32(n), nil
}

// IPBlock reads one address or one network in CIDR notation. Bits beyond the prefix length are ignored.
func IPBlock(text string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(text); err == nil && addr.Zone() == "" {
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	prefix, err := netip.ParsePrefix(text)
	if err != nil || (prefix.Addr().Is4In6() && prefix.Bits() < 96) {
		return netip.Prefix{}, fmt.Errorf("%q is not an IP address or a network in CIDR notation", text)
	}
	if prefix.Addr().Is4In6() {
		prefix = netip.PrefixFrom(prefix.Addr().Unmap(), prefix.Bits()-96)
	}
	return prefix.Masked(), nil
}

// Pattern checks a value that may be exact, "prefix*", "*suffix" or "*".
func Pattern(text string) error {
	switch inner := strings.TrimSuffix(strings.TrimPrefix(text, "*"), "*"); {
	case text == "":
		return fmt.Errorf("is empty")
	case text == "*":
		return nil
	case strings.Contains(inner, "*"), strings.HasPrefix(text, "*") && strings.HasSuffix(text, "*"):
		return fmt.Errorf("%q may have one * only, at its beginning or at its end", text)
	}
	return nil
}

// ServiceAccount reads ACCOUNT (of the policy's namespace) or NAMESPACE/ACCOUNT.
func ServiceAccount(text, namespace string) (ns, account string, err error) {
	ns, account, found := strings.Cut(text, "/")
	if !found {
		ns, account = namespace, text
	}
	if (found && label1123(ns) != nil) || AccountName(account) != nil {
		return "", "", fmt.Errorf("%q is not ACCOUNT or NAMESPACE/ACCOUNT", text)
	}
	return ns, account, nil
}

// AccountName checks the name of a Kubernetes service account: no account has another one.
func AccountName(text string) error {
	if m := validation.IsDNS1123Subdomain(text); len(m) > 0 {
		return fmt.Errorf("%q is not the name of a service account: %s", text, m[0])
	}
	return nil
}

// collector gathers the findings of one object.
type collector struct {
	kind, namespace, name string
	found                 []Finding
	patterns              regexes
}

func (c *collector) add(s Severity, field, format string, args ...any) {
	c.found = append(c.found, Finding{Severity: s, Kind: c.kind, Namespace: c.namespace, Name: c.name, Field: field, Message: fmt.Sprintf(format, args...)})
}

// unsupported records an Error for a field that is right, but that this mesh cannot do.
func (c *collector) unsupported(field, format string, args ...any) {
	c.add(Error, field, format, args...)
	c.found[len(c.found)-1].Unsupported = true
}

// skipped records an Info about what was not checked.
func (c *collector) skipped(field, format string, args ...any) {
	c.add(Info, field, format, args...)
	c.found[len(c.found)-1].Skipped = true
}

// code numbers the finding that was added last.
func (c *collector) code(code string) { c.found[len(c.found)-1].Code = code }

// hint explains the finding that was added last.
func (c *collector) hint(format string, args ...any) {
	c.found[len(c.found)-1].Hint = fmt.Sprintf(format, args...)
}

// suggest adds to the last finding what was probably meant, and reports whether there is such a name.
func (c *collector) suggest(name string, names []string) bool {
	meant := closest(name, names)
	if meant != "" {
		c.hint("did you mean %s?", meant)
	}
	return meant != ""
}

// oneOf reports a text that is none of those that are known.
func (c *collector) oneOf(severity Severity, text string, known []string, field string) {
	if !slices.Contains(known, text) {
		c.add(severity, field, "%q is not one of %s", text, strings.Join(known, ", "))
		c.suggest(text, known)
	}
}

func (c *collector) each(values []string, field string, check func(string) error) {
	for i, v := range values {
		c.must(indexed(field, i), check(v))
	}
}

func (c *collector) fields(issues []Field) {
	for _, i := range issues {
		c.add(Error, i.Path, "%s", i.Message)
	}
}

// selector names labels that no workload can have: a policy that selects by them would do nothing.
func (c *collector) selector(labels map[string]string, path string) {
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		v, at := labels[k], path+"."+k
		switch {
		case k == "" || strings.Contains(k, "*") || strings.Contains(v, "*"):
			c.add(Error, at, "wildcards and empty keys are not supported in label selectors")
		case len(validation.IsQualifiedName(k)) > 0:
			c.add(Error, at, "%q is not the name of a label: %s", k, validation.IsQualifiedName(k)[0])
		case len(validation.IsValidLabelValue(v)) > 0:
			c.add(Error, at, "%q is not the value of a label: %s", v, validation.IsValidLabelValue(v)[0])
		}
	}
}
