package policy

import (
	"maps"
	"slices"
	"strings"

	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/client"
)

// Inputs are the parts of a snapshot that something was composed of. What was composed stays good as long as they hold, however
// often endpoints and other services change.
type Inputs struct{ facts []fact }

// Hold reports whether the caller, which may be of a newer snapshot, would compose the same of the same parts.
func (in Inputs) Hold(c Caller) bool {
	for _, f := range in.facts {
		if !f.equal(c.ask(f.question)) {
			return false
		}
	}
	return true
}

// question is what composing asks a snapshot.
type question struct {
	kind      questionKind
	namespace string
	host      string
	port      uint16
}

type questionKind int

const (
	askCaller   questionKind = iota // who calls
	askDefaults                     // what the mesh says of calls, and of hosts in no registry
	askService                      // the service of the host that is exported to the caller
	askRoutes                       // the VirtualServices of the host that count on the port
	askCalls                        // the DestinationRules of the host of a service in the namespace
)

// fact is a question with its answer. Values of a snapshot are compared as pointers.
type fact struct {
	question
	namespace string
	labels    map[string]string
	others    TargetKind // what calls for no host are for, where nothing is known of what was dialled
	proxy     string     // the egress proxy's cluster
	defaults  *client.CallDefaults
	headers   headers
	service   *client.Service
	routes    []*client.RouteRule
	calls     []*client.CallRule
}

func (f fact) equal(o fact) bool {
	return f.question == o.question && f.namespace == o.namespace && maps.Equal(f.labels, o.labels) && f.others == o.others && f.proxy == o.proxy &&
		f.defaults == o.defaults && f.headers == o.headers && f.service == o.service && slices.Equal(f.routes, o.routes) && slices.Equal(f.calls, o.calls)
}

// headers are those that the mesh has routes tell.
type headers struct {
	attempts bool // x-envoy-attempt-count
	host     bool // x-forwarded-host, where another host is asked for than the client did
}

// ask is the one place where composing looks into the snapshot.
func (c Caller) ask(q question) fact {
	f := fact{question: q}
	switch q.kind {
	case askCaller:
		f.namespace = c.View.Namespace
		if c.Workload != nil {
			f.labels = c.Workload.Labels
		}
	case askDefaults:
		f.defaults, f.others, f.proxy = c.Snapshot.CallDefaults(), c.others(), c.View.EgressProxy()
		of := c.Snapshot.DefaultConfig().GetProxyHeaders()
		f.headers = headers{attempts: !of.GetAttemptCount().GetDisabled().GetValue(), host: of.GetXForwardedHost().GetEnabled().GetValue()}
	case askService:
		f.service = c.exported(q.host)
	case askRoutes:
		f.routes = c.routeRules(q.host, q.port)
	case askCalls:
		f.calls = c.Snapshot.CallRules(c.Workload, q.namespace, q.host)
	}
	return f
}

// composer is a Caller that notes what it asks.
type composer struct {
	Caller
	facts map[question]fact
}

func (c Caller) composer() *composer { return &composer{Caller: c, facts: map[question]fact{}} }

func (c *composer) note(q question) fact {
	f, ok := c.facts[q]
	if !ok {
		f = c.ask(q)
		c.facts[q] = f
	}
	return f
}

func (c *composer) inputs() Inputs { return Inputs{slices.Collect(maps.Values(c.facts))} }

func (c *composer) defaults() *client.CallDefaults {
	return c.note(question{kind: askDefaults}).defaults
}

func (c *composer) headers() headers { return c.note(question{kind: askDefaults}).headers }

func (c *composer) others() TargetKind { return c.note(question{kind: askDefaults}).others }

func (c *composer) egressProxy() string { return c.note(question{kind: askDefaults}).proxy }

func (c *composer) service(host string) *client.Service {
	return c.note(question{kind: askService, host: host}).service
}

func (c *composer) routes(host string, port uint16) []*client.RouteRule {
	return c.note(question{kind: askRoutes, host: host, port: port}).routes
}

func (c *composer) calls(namespace, host string) []*client.CallRule {
	return c.note(question{kind: askCalls, namespace: namespace, host: host}).calls
}

// meets reports whether the caller is one that the condition wants, calling the port.
func (c *composer) meets(m *settings.CallerMatch, port uint16) bool {
	if m == nil || m.GetPort() != 0 && m.GetPort() != uint32(port) {
		return m == nil
	}
	if m.GetNamespace() == "" && len(m.GetLabels()) == 0 {
		return true
	}
	who := c.note(question{kind: askCaller})
	return (m.GetNamespace() == "" || m.GetNamespace() == who.namespace) && hasLabels(who.labels, m.GetLabels())
}

// hasLabels reports whether all of the wanted ones are there.
func hasLabels(have, want map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// patterns are the host and the patterns that cover it, the most specific first.
func patterns(host string) []string {
	out := []string{host}
	rest := strings.TrimPrefix(host, "*.")
	for {
		_, after, more := strings.Cut(rest, ".")
		if !more {
			break
		}
		out, rest = append(out, "*."+after), after
	}
	if host != "*" {
		out = append(out, "*")
	}
	return out
}
