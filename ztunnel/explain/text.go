package explain

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
)

// Text is the decision for people: a line or more for each step, in the order in which the node takes them.
func (d *Decision) Text() string {
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 8, 2, ' ', 0)
	row := func(title, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", title, printable(fmt.Sprintf(format, args...)))
	}
	row("request", "%s %s", d.Question.Method, d.Question.URL)
	for _, h := range d.Question.Headers {
		row("", "%s", h)
	}
	row("from", "%s, %s%s", d.Source.Workload, d.Source.Identity, on(d.Source.Node))
	row("connection", "to %s%s, listener %s", cmp.Or(d.Connection.Address, "an address that DNS gives the pod"), is(d.Connection.Service), d.Connection.Listener)
	row("protocol", "%s: %s", d.Connection.Protocol, d.Connection.Why)
	row("scope", "%s, rest %s", cmp.Or(strings.Join(d.Scope.Egress, "; "), "everything that is exported to the namespace"), cmp.Or(d.Scope.EgressProxy, d.Scope.Rest))
	if t := d.Target; t != nil {
		row("target", "%s", strings.TrimSpace(t.Kind+" "+t.Host+" on port "+strconv.Itoa(int(t.Port))))
		passed(row, t.Passed)
	}
	if v := d.VirtualHost; v != nil {
		row("virtual host", "%s, %d routes, for %s", v.Name, v.Routes, strings.Join(v.Domains, ", "))
	}
	if r := d.Route; r != nil {
		passed(row, r.Passed)
		if r.Match != "" || r.Object != "" {
			row("route", "%s%s%s", cmp.Or(r.Name, "without a name"), of(r.Object), matching(r.Match))
		}
		for _, e := range r.Does {
			row("", "%s", e)
		}
	}
	for _, c := range d.Clusters {
		c.rows(row)
	}
	row("outcome", "%s", d.Outcome)
	_ = w.Flush() // to memory
	return out.String()
}

func passed(row func(string, string, ...any), all []Passed) {
	for _, p := range all {
		row("", "not %s: %s", p.What, p.Why)
	}
}

func (c Cluster) rows(row func(string, string, ...any)) {
	row("cluster", "%s, %g %% of requests%s%s", c.Name, c.Share, comma(c.Balancing), ruled(c.Rules))
	if c.Missing != "" {
		row("", "%s", c.Missing)
	}
	if c.Hashed {
		row("", "what the request is hashed by leads to one endpoint")
	}
	for _, e := range c.Endpoints {
		row("endpoint", "%s", e.text())
	}
	if more := c.Total - len(c.Endpoints); more > 0 {
		row("", "and %d more", more)
	}
}

func (e Endpoint) text() string {
	out := e.Address + comma(e.Workload) + comma(e.Locality)
	if e.Priority > 0 {
		out += fmt.Sprintf(", priority %d", e.Priority)
	}
	out += ", " + e.Health
	if e.Share == 0 {
		out += ", not picked"
	} else {
		out += fmt.Sprintf(", %g %%", e.Share)
	}
	if e.Path != "" {
		out += "; " + e.Path + ": " + e.PathWhy
	}
	switch {
	case e.Allowed == nil:
	case *e.Allowed:
		out += "; allowed by " + cmp.Or(e.Policy, "default: no policy applies")
	default:
		out += "; refused by " + cmp.Or(e.Policy, "default") + ": " + e.Reason
	}
	return out
}

func prefixed(by, text string) string {
	if text == "" {
		return ""
	}
	return by + text
}

func comma(text string) string    { return prefixed(", ", text) }
func on(node string) string       { return prefixed(", node ", node) }
func is(service string) string    { return prefixed(", which is ", service) }
func of(object string) string     { return prefixed(" of VirtualService ", object) }
func matching(text string) string { return prefixed(": ", text) }

func ruled(rules []string) string {
	return prefixed(", DestinationRule ", strings.Join(rules, ", "))
}

// printable keeps what tenants wrote from moving the cursor.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if strconv.IsPrint(r) {
			return r
		}
		return '_'
	}, text)
}
