package e2e

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/undermesh/undermesh/controller/api"
)

// row is a capability of the catalogue that a resource switches on. Each is observed with its resource, without it, and with
// it outside the mesh; the last two must fail, unless the row says that nothing changes.
type row struct {
	ids, title string
	resource   string
	holds      func(context.Context, *World) error // one look, without waiting
	always     string                              // why nothing changes without resource or mesh; "": it does
}

func policyRows(barIP string) []row {
	rows := []row{
		{"MT-03", "PERMISSIVE is the default", "", pairsAre(), "a permissive mesh refuses nobody"},
		{"MT-04", "STRICT for the mesh", StrictMesh, refused("foo", "bar"), ""},
		{"MT-05", "STRICT for a namespace", StrictNamespace("foo"), refused("foo"), ""},
		{"AZ-21 AZ-34", "a refusal: accepted, then reset, and logged with policy, rule and reason", echoPolicy("only-9001", `  action: ALLOW
  rules:
  - to: [{operation: {ports: ["9001"]}}]
`), refusal("policy_not_allowed", ""), ""},
		{"AZ-34", "a refusal by DENY names the rule", echoPolicy("nobody", `  action: DENY
  rules:
  - from: [{source: {namespaces: ["elsewhere"]}}]
  - from: [{source: {namespaces: ["bar", "foo"]}}]
`), refusal("policy_denied", `"rule":1`), ""},
	}
	const httpbins = "selector: {matchLabels: {app: httpbin}}, "
	for _, s := range []struct {
		title, namespace, selector string
		refused                    []string
	}{
		{"a policy of the root namespace is for all namespaces", api.DefaultRootNamespace, "", append(pairsTo("foo"), pairsTo("bar")...)},
		{"a policy without a selector is for its namespace", "bar", "", pairsTo("bar")},
		{"a selector names the workloads of the namespace", "foo", httpbins, pairsTo("foo")},
		{"a selector of the root namespace names workloads of all", api.DefaultRootNamespace, httpbins, append(pairsTo("foo"), pairsTo("bar")...)},
	} {
		echoes := "accepted" // port 9000 is no workload's that the policy is for, except where it is for all of the namespace
		if s.selector == "" && s.namespace == api.DefaultRootNamespace {
			echoes = "rejected"
		}
		rows = append(rows, row{"AZ-07", s.title, closed(s.namespace, s.selector), func(ctx context.Context, w *World) error {
			return errors.Join(pairsAre(s.refused...)(ctx, w), w.echoNow(ctx, []EchoCase{{"bar", 9000, echoes}, {"bar", 9001, "accepted"}}))
		}, ""})
	}
	for _, p := range EchoPolicies(barIP) {
		ids := p.ID
		if ids == "AZ-10" {
			ids += " AZ-21" // the documents' TCP policy
		}
		rows = append(rows, row{ids, p.Title, p.Policy, func(ctx context.Context, w *World) error { return w.echoNow(ctx, p.Cases) }, ""})
	}
	return rows
}

// pairsTo are those whose server is in the namespace, as a policy refuses requests of HTTP.
func pairsTo(namespace string) []string {
	const denied = "=403 0"
	return []string{"foo→" + namespace + denied, "bar→" + namespace + denied, "legacy→" + namespace + denied}
}

// closed denies port 80, httpbin's, and 9000, one of tcp-echo's, to everybody.
func closed(namespace, selector string) string {
	return `apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: closed, namespace: ` + namespace + `}
spec: {action: DENY, ` + selector + `rules: [{to: [{operation: {ports: ["80", "9000"]}}]}]}
`
}

func pairsAre(refused ...string) func(context.Context, *World) error {
	return func(ctx context.Context, w *World) error {
		got, err := w.Pairs(ctx)
		if err != nil {
			return err
		}
		return wantPairs(got, refused)
	}
}

// refused wants legacy to be reset in 50 of 50 tries to each namespace, and all other pairs to answer.
func refused(namespaces ...string) func(context.Context, *World) error {
	var pairs []string
	for _, to := range namespaces {
		pairs = append(pairs, "legacy→"+to)
	}
	return func(ctx context.Context, w *World) error {
		if err := pairsAre(pairs...)(ctx, w); err != nil {
			return err
		}
		for _, to := range namespaces {
			if err := w.RefusedAlways(ctx, "legacy", to, 50); err != nil {
				return err
			}
		}
		return nil
	}
}

// refusal wants a silent client in bar, and one in foo on the server's own node, to be accepted on port 9000 of foo's tcp-echo and
// reset within a second, and a log line for each with the reason and a text.
func refusal(reason, text string) func(context.Context, *World) error {
	return func(ctx context.Context, w *World) error {
		pod, err := w.OnePod(ctx, "foo", "tcp-echo")
		if err != nil {
			return err
		}
		for _, from := range Meshed {
			since := time.Now().UTC().Truncate(time.Second).Format(time.RFC3339)
			if err := w.refusedLater(ctx, from); err != nil {
				return err
			}
			if err := w.ExpectLog(ctx, since, `"reason":"`+reason+`"`, `"policy":"foo/`, text, `"src.namespace":"`+from+`"`, pod.Status.PodIP+":9000"); err != nil {
				return err
			}
		}
		return nil
	}
}

func (w *World) refusedLater(ctx context.Context, from string) error {
	r, err := w.Exec(ctx, from, "sleep", "curl -s -m 5 -w '%{time_connect} %{time_total}' telnet://tcp-echo.foo:9000 </dev/null; echo ' '$?")
	if err != nil {
		return err
	}
	f := strings.Fields(r.Out)
	if len(f) != 3 {
		return fmt.Errorf("curl says %q %q", r.Out, r.Err)
	}
	connect, cerr := strconv.ParseFloat(f[0], 64)
	total, terr := strconv.ParseFloat(f[1], 64)
	if err := errors.Join(cerr, terr); err != nil {
		return err
	}
	if connect == 0 || f[2] != "56" || total-connect > 1 {
		return fmt.Errorf("%w: from %s connected after %.3f s, ended after %.3f s with code %s", ErrOther, from, connect, total, f[2])
	}
	return nil
}

// echoNow is echoCases without waiting.
func (w *World) echoNow(ctx context.Context, cases []EchoCase) error {
	pod, err := w.OnePod(ctx, "foo", "tcp-echo")
	if err != nil {
		return err
	}
	for _, c := range cases {
		got, err := w.TCPEcho(ctx, c.From, c.host(pod), c.Port)
		if err != nil {
			return err
		}
		if got != c.Want {
			return fmt.Errorf("%w: %s:%d from %s is %s, want %s", ErrOther, c.host(pod), c.Port, c.From, got, c.Want)
		}
	}
	return nil
}

// TestPolicyRows observes the rows on authorization and mutual TLS.
func TestPolicyRows(t *testing.T) {
	ctx, w := meshed(t)
	bar, err := w.OnePod(ctx, "bar", "sleep")
	check(t, err)
	rows := policyRows(bar.Status.PodIP)
	for _, r := range rows {
		t.Run(r.ids+" "+r.title, func(t *testing.T) {
			if r.resource != "" {
				check(t, w.Apply(ctx, r.resource))
				t.Cleanup(func() { check(t, w.Delete(context.Background(), r.resource)) })
			}
			check(t, Until(ctx, 30*time.Second, r.title, func(ctx context.Context) error { return r.holds(ctx, w) }))
		})
		t.Run(r.ids+" control: without the resource", func(t *testing.T) { check(t, r.control(ctx, w)) })
	}
	t.Run("MT-03 control: under STRICT", func(t *testing.T) {
		check(t, w.Apply(ctx, StrictMesh))
		t.Cleanup(func() { check(t, w.Delete(context.Background(), StrictMesh)) })
		check(t, (&row{title: "refuses nobody", holds: pairsAre()}).control(ctx, w))
	})
	check(t, w.Unenrol(ctx, Meshed...))
	t.Cleanup(func() { check(t, w.Enrol(context.Background(), Meshed...)) })
	for _, r := range rows {
		t.Run(r.ids+" control: outside the mesh", func(t *testing.T) {
			if r.resource != "" {
				check(t, w.Apply(ctx, r.resource))
				t.Cleanup(func() { check(t, w.Delete(context.Background(), r.resource)) })
			}
			check(t, r.control(ctx, w))
		})
	}
}

// control waits until the opposite of the row is seen, or sees that it still holds if nothing changes.
func (r *row) control(ctx context.Context, w *World) error {
	if r.always != "" {
		if err := r.holds(ctx, w); err != nil {
			return fmt.Errorf("although %s: %w", r.always, err)
		}
		return nil
	}
	return Until(ctx, 20*time.Second, r.title+" to fail", func(ctx context.Context) error {
		switch err := r.holds(ctx, w); {
		case errors.Is(err, ErrOther):
			return nil
		case err != nil:
			return err
		default:
			return errors.New("it holds")
		}
	})
}
