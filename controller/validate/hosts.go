package validate

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// called checks the host of a destination, which is no address.
func called(text string, wildcard bool) error {
	if _, err := netip.ParseAddr(text); err == nil {
		return hinted{fmt.Errorf("%q is an address, which is no host", text), "name a Service, or a host of a ServiceEntry that has the address"}
	}
	return Host(text, wildcard)
}

// indexed is the path of an item of a list.
func indexed(path string, i int) string { return fmt.Sprintf("%s[%d]", path, i) }

// noBlank refuses white space, which no name has: a line was broken there.
func noBlank(text string) error {
	if strings.ContainsAny(text, " \t\r\n") {
		return hinted{fmt.Errorf("%q contains white space and matches nothing", text),
			fmt.Sprintf("was a line broken there? perhaps %q is meant", strings.Join(strings.Fields(text), ""))}
	}
	return nil
}

// oneWord refuses white space in what becomes part of the first line of a request, where it ends the part.
func oneWord(text string) error {
	if strings.ContainsAny(text, " \t\r\n") {
		return fmt.Errorf("%q has white space, which no address of a request may have", text)
	}
	return nil
}

// hinted is an error that says what to write instead.
type hinted struct {
	error
	hint string
}

// Host checks the name of a service or a host. wildcard allows "*" and "*.example.com", which stand for many.
func Host(text string, wildcard bool) error {
	if text == "" {
		return errors.New("is empty")
	}
	if err := noBlank(text); err != nil {
		return err
	}
	if p := placeholder(text); p != "" {
		return fmt.Errorf("%q is not a host name: %s looks like a placeholder", text, p)
	}
	if _, err := netip.ParseAddr(text); err == nil {
		return nil
	}
	name := text
	if strings.Contains(text, "*") {
		switch {
		case !wildcard:
			return fmt.Errorf("%q must be one host, without *", text)
		case text == "*":
			return nil
		}
		if name = strings.TrimPrefix(text, "*."); name == text || strings.Contains(name, "*") {
			return fmt.Errorf("%q may have one * only, as its first label", text)
		}
	}
	if len(name) > 255 {
		return errors.New("is longer than 255 bytes")
	}
	labels := strings.Split(strings.TrimSuffix(name, "."), ".")
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" && last != "" {
		return fmt.Errorf("%q is neither a host name nor an address: its last label is a number", text)
	}
	for _, l := range labels {
		l = strings.ToLower(strings.ReplaceAll(l, "_", "-")) // DNS itself and Envoy allow it
		if m := validation.IsDNS1123Label(l); len(m) > 0 {
			return fmt.Errorf("%q is not a host name: label %q is wrong", text, l)
		}
	}
	return nil
}
