package validate

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
	"google.golang.org/protobuf/types/known/durationpb"
	"k8s.io/apimachinery/pkg/util/validation"
)

// must records an Error when err is not nil.
func (c *collector) must(field string, err error) {
	if err == nil {
		return
	}
	c.add(Error, field, "%s", err)
	var h hinted
	if errors.As(err, &h) {
		c.hint("%s", h.hint)
	}
}

func (c *collector) port(n uint32, field string) {
	if n == 0 || n > 65535 {
		c.add(Error, field, "%d is not a port number from 1 to 65535", n)
	}
}

// between checks a number.
func between[T int32 | uint32 | uint64 | float64](c *collector, n, low, high T, field string) {
	if !(n >= low && n <= high) {
		c.add(Error, field, "%v is not from %v to %v", n, low, high)
	}
}

// atLeast checks a duration that is set.
func (c *collector) atLeast(d *durationpb.Duration, low time.Duration, field string) {
	if d != nil && d.AsDuration() < low {
		c.add(Error, field, "%s is shorter than %s", d.AsDuration(), low)
	}
}

// orZero checks a duration that 0 switches off.
func (c *collector) orZero(d *durationpb.Duration, field string) {
	if d.AsDuration() != 0 {
		c.atLeast(d, time.Millisecond, field)
	}
}

func headerName(text string) error {
	name := strings.TrimPrefix(text, ":") // pseudo headers
	if !httpguts.ValidHeaderFieldName(name) {
		return fmt.Errorf("%q is not the name of an HTTP header", text)
	}
	return nil
}

func (c *collector) header(text, field string) { c.must(field, headerName(text)) }

func (c *collector) method(text, field string) {
	known := []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete,
		http.MethodConnect, http.MethodOptions, http.MethodTrace}
	switch {
	case !httpguts.ValidHeaderFieldName(text):
		c.add(Error, field, "%q is not an HTTP method", text)
	case text == "*" || slices.Contains(known, text):
	case slices.Contains(known, strings.ToUpper(text)):
		c.add(Warning, field, "methods are compared with case: %q is not %s", text, strings.ToUpper(text))
		c.hint("did you mean %s?", strings.ToUpper(text))
	default:
		if meant := closest(text, known); meant != "" && distance(text, meant) == 1 { // others are there: PROPFIND, PURGE
			c.add(Warning, field, "%q is not a method that is often used", text)
			c.hint("did you mean %s?", meant)
		}
	}
}

func label1123(text string) error {
	if m := validation.IsDNS1123Label(text); len(m) > 0 {
		return fmt.Errorf("%q is not a DNS label: %s", text, m[0])
	}
	return nil
}

// unique reports values that stand twice in a list.
func (c *collector) unique(values []string, field, what string) {
	seen := map[string]int{}
	for i, v := range values {
		key := v
		if what == "host" {
			key = strings.ToLower(v)
		}
		if first, ok := seen[key]; ok {
			c.add(Error, indexed(field, i), "the %s %q stands in %s already", what, v, indexed(field, first))
			continue
		}
		seen[key] = i
	}
}

// exportTo checks the namespaces to which an object is visible.
func (c *collector) exportTo(values []string) {
	c.unique(values, "spec.exportTo", "namespace")
	for i, v := range values {
		if v != "." && v != "*" && v != "~" {
			if m := validation.IsDNS1123Label(v); len(m) > 0 {
				c.add(Error, indexed("spec.exportTo", i), "%q is neither a namespace nor \".\" nor \"*\": %s", v, m[0])
			}
		}
	}
	if len(values) > 1 && (slices.Contains(values, "*") || slices.Contains(values, "~")) {
		c.add(Error, "spec.exportTo", "\"*\" and \"~\" stand alone")
	}
}

// reference checks [NAMESPACE/]NAME.
func reference(text string) error {
	ns, name, found := strings.Cut(text, "/")
	if !found {
		ns, name = "default", text
	}
	if len(validation.IsDNS1123Subdomain(name)) > 0 || (ns != "." && len(validation.IsDNS1123Label(ns)) > 0) {
		return fmt.Errorf("%q is not NAME or NAMESPACE/NAME", text)
	}
	return nil
}
