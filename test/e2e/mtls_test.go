package e2e

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// modeRow is a row on PeerAuthentication that is observed with its resource, and whose opposite is without it and outside
// the mesh. What is in base stays throughout.
type modeRow struct {
	ids, title     string
	base, resource string
	holds          seen
	without        seen   // nil: there is no resource to be without
	contrast       string // what without shows; default "without the resource"
	outside        seen
}

type seen func(context.Context, *World) error

func all(looks ...seen) seen {
	return func(ctx context.Context, w *World) error {
		for _, l := range looks {
			if err := l(ctx, w); err != nil {
				return err
			}
		}
		return nil
	}
}

// link wants the link between two namespaces' pods to carry cipher text, or the marker in clear.
func link(from, to string, encrypted bool) seen {
	return func(ctx context.Context, w *World) error { return w.Encrypted(ctx, from, to, encrypted) }
}

func echo(cases ...EchoCase) seen {
	return func(ctx context.Context, w *World) error { return w.echoNow(ctx, cases) }
}

// hello asks helloworld.bar from a namespace and wants curl's status and exit code.
func hello(from, want string) seen {
	return func(ctx context.Context, w *World) error {
		r, err := w.Exec(ctx, from, "sleep", `code=$(curl -s -o /dev/null -m 10 -w '%{http_code}' http://helloworld.bar:5000/hello); echo $code $?`)
		if err != nil {
			return err
		}
		if got := strings.TrimSpace(r.Out); got != want {
			return fmt.Errorf("%w: helloworld.bar from %s is %q, want %q", ErrOther, from, got, want)
		}
		return nil
	}
}

// plainHTTP asks httpbin.legacy from the mesh and wants no certificate of the client in what the server saw (MT-02).
func plainHTTP(ctx context.Context, w *World) error {
	r, err := w.Exec(ctx, "bar", "sleep", "curl -s -m 10 http://httpbin.legacy:8000/headers")
	if err != nil {
		return err
	}
	if !strings.Contains(r.Out, `"Host"`) || strings.Contains(strings.ToLower(r.Out), "x-forwarded-client-cert") {
		return fmt.Errorf("%w: httpbin.legacy saw %q", ErrOther, r.Out)
	}
	return nil
}

func peer(namespace, name, spec string) string {
	return `---
apiVersion: security.istio.io/v1beta1
kind: PeerAuthentication
metadata: {name: ` + name + `, namespace: ` + namespace + `}
spec: ` + spec + "\n"
}

func clientTLS(namespace, name, host, policy string) string {
	return `---
apiVersion: networking.istio.io/v1alpha3
kind: DestinationRule
metadata: {name: ` + name + `, namespace: ` + namespace + `}
spec: {host: ` + host + `, trafficPolicy: ` + policy + `}
`
}

const httpbinBar, httpbinFoo = "httpbin.bar.svc.cluster.local", "httpbin.foo.svc.cluster.local"

// modeRows are the documents' PeerAuthentications, with the DestinationRules that stand beside them.
func modeRows() []modeRow {
	open := pairsAre()
	return []modeRow{
		{ids: "MT-02", title: "plain text to a server outside the mesh", holds: all(plainHTTP, link("bar", "legacy", false), link("bar", "foo", true)),
			without: link("bar", "foo", true), contrast: "a server in the mesh", outside: link("bar", "foo", false)},
		{ids: "MT-06", title: "STRICT for a workload",
			resource: peer("bar", "httpbin", `{selector: {matchLabels: {app: httpbin}}, mtls: {mode: STRICT}}`) +
				clientTLS("bar", "httpbin", httpbinBar, "{tls: {mode: ISTIO_MUTUAL}}"),
			holds: all(refused("bar"), hello("legacy", "200 0")), without: open, outside: open},
		{ids: "MT-07", title: "one container port without mutual TLS", base: StrictNamespace("bar"),
			resource: peer("bar", "httpbin", `{selector: {matchLabels: {app: httpbin}}, mtls: {mode: STRICT}, portLevelMtls: {80: {mode: DISABLE}}}`) +
				clientTLS("bar", "httpbin", httpbinBar, "{tls: {mode: ISTIO_MUTUAL}, portLevelSettings: [{port: {number: 8000}, tls: {mode: DISABLE}}]}"),
			holds:   all(open, hello("legacy", "000 56"), link("foo", "bar", false)),
			without: all(refused("bar"), hello("legacy", "000 56"), link("foo", "bar", true)), outside: all(open, hello("legacy", "200 0"))},
		{ids: "MT-08", title: "a port that no Service leads to is ignored",
			resource: peer("foo", "tcp-echo", `{selector: {matchLabels: {app: tcp-echo}}, mtls: {mode: STRICT}, portLevelMtls: {9001: {mode: DISABLE}, 9002: {mode: DISABLE}}}`),
			holds:    echo(EchoCase{"legacy", 9000, "rejected"}, EchoCase{"legacy", 9001, "accepted"}, EchoCase{"legacy", 9002, "rejected"}, EchoCase{"bar", 9002, "accepted"}),
			without:  echo(EchoCase{"legacy", 9000, "accepted"}, EchoCase{"legacy", 9002, "accepted"}), outside: echo(EchoCase{"legacy", 9000, "accepted"}, EchoCase{"legacy", 9002, "accepted"})},
		{ids: "MT-09", title: "the policy of a workload counts before that of its namespace", base: StrictNamespace("foo"),
			resource: peer("foo", "overwrite-example", `{selector: {matchLabels: {app: httpbin}}, mtls: {mode: DISABLE}}`) +
				clientTLS("foo", "overwrite-example", httpbinFoo, "{tls: {mode: DISABLE}}"),
			holds:   all(open, echo(EchoCase{"legacy", 9000, "rejected"})),
			without: all(refused("foo"), echo(EchoCase{"legacy", 9000, "rejected"})), outside: all(open, echo(EchoCase{"legacy", 9000, "accepted"}))},
		{ids: "MT-10", title: "UNSET inherits, a namespace counts before the mesh", base: StrictMesh,
			resource: peer("foo", "default", "{mtls: {mode: UNSET}}") + peer("bar", "default", "{mtls: {mode: PERMISSIVE}}"),
			holds:    refused("foo"), without: refused("foo", "bar"), outside: open},
		{ids: "MT-12", title: "DISABLE is plain text", resource: peer("bar", "default", "{mtls: {mode: DISABLE}}"),
			holds: all(open, link("foo", "bar", false), link("bar", "foo", true)), without: link("foo", "bar", true), outside: link("bar", "foo", false)},
		{ids: "MT-28", title: "clients of a STRICT server need no DestinationRule: one without tls changes nothing", base: StrictNamespace("bar"),
			resource: clientTLS("bar", "httpbin", httpbinBar, "{connectionPool: {tcp: {maxConnections: 100}}}"),
			holds:    all(refused("bar"), link("foo", "bar", true)), without: all(refused("bar"), link("foo", "bar", true)), outside: all(open, link("foo", "bar", false))},
	}
}

// TestMTLSRows and TestMTLSModes observe the rows on the modes of PeerAuthentication.
func TestMTLSRows(t *testing.T) { observeModes(t, modeRows()[:4]) }

func TestMTLSModes(t *testing.T) { observeModes(t, modeRows()[4:]) }

func observeModes(t *testing.T, rows []modeRow) {
	ctx, w := meshed(t)
	see := func(t *testing.T, l seen, what string) {
		check(t, Until(ctx, 30*time.Second, what, func(ctx context.Context) error { return l(ctx, w) }))
	}
	with := func(t *testing.T, yaml string) {
		if yaml != "" {
			check(t, w.Apply(ctx, yaml))
			t.Cleanup(func() { check(t, w.Delete(context.Background(), yaml)) })
		}
	}
	for _, r := range rows {
		t.Run(r.ids+" "+r.title, func(t *testing.T) {
			with(t, r.base+r.resource)
			see(t, r.holds, r.title)
		})
		if r.without != nil {
			t.Run(r.ids+" control: "+cmp.Or(r.contrast, "without the resource"), func(t *testing.T) {
				with(t, r.base)
				see(t, r.without, "its opposite")
			})
		}
	}
	check(t, w.Unenrol(ctx, Meshed...))
	t.Cleanup(func() { check(t, w.Enrol(context.Background(), Meshed...)) })
	for _, r := range rows {
		t.Run(r.ids+" control: outside the mesh", func(t *testing.T) {
			with(t, r.base+r.resource)
			see(t, r.outside, "its opposite")
		})
	}
}

// TestMT11OldestCounts: of two policies of one level the older one counts, whatever their names are, and the younger one's
// status says so.
func TestMT11OldestCounts(t *testing.T) {
	ctx, w := meshed(t)
	old, young := peer("foo", "zz-old", "{mtls: {mode: STRICT}}"), peer("foo", "aa-young", "{mtls: {mode: PERMISSIVE}}")
	t.Cleanup(func() { check(t, w.Delete(context.Background(), old+young)) })
	check(t, w.Apply(ctx, old))
	check(t, w.ExpectPairs(ctx, 30*time.Second, "legacy→foo"))
	check(t, Hold(ctx, 1100*time.Millisecond)) // times of creation have seconds
	check(t, w.Apply(ctx, young))
	t.Run("MT-11 the newer policy is ignored", func(t *testing.T) {
		check(t, w.awaitReason(ctx, "peerauthentications", "foo", "aa-young", "Enforced", "False Shadowed", ""))
		check(t, refused("foo")(ctx, w))
	})
	t.Run("MT-11 control: without the older policy", func(t *testing.T) {
		check(t, w.Delete(ctx, old))
		check(t, w.ExpectPairs(ctx, 30*time.Second))
		check(t, w.awaitReason(ctx, "peerauthentications", "foo", "aa-young", "Enforced", "True Enforced", ""))
		check(t, w.Apply(ctx, old)) // younger now: it is ignored
		check(t, w.awaitReason(ctx, "peerauthentications", "foo", "zz-old", "Enforced", "False Shadowed", ""))
		check(t, pairsAre()(ctx, w))
	})
	t.Run("MT-11 control: outside the mesh", func(t *testing.T) {
		check(t, w.Delete(ctx, young))
		check(t, w.ExpectPairs(ctx, 30*time.Second, "legacy→foo"))
		check(t, w.Unenrol(ctx, "foo"))
		t.Cleanup(func() { check(t, w.Enrol(context.Background(), "foo")) })
		check(t, w.ExpectPairs(ctx, 30*time.Second))
	})
}

// TestMT27Migration walks the documents' way from plain text to mutual TLS for everybody.
func TestMT27Migration(t *testing.T) {
	ctx, w := meshed(t)
	foo := StrictNamespace("foo")
	t.Cleanup(func() { check(t, w.Delete(context.Background(), foo+"---\n"+StrictMesh)) })
	for _, s := range []struct {
		title, apply string
		refused      []string
	}{
		{"MT-27 PERMISSIVE, six pairs answer", "", nil},
		{"MT-27 foo is locked", foo, []string{"legacy→foo"}},
		{"MT-27 the mesh is locked", StrictMesh, []string{"legacy→foo", "legacy→bar"}},
	} {
		t.Run(s.title, func(t *testing.T) {
			if s.apply != "" {
				check(t, w.Apply(ctx, s.apply))
			}
			check(t, w.ExpectPairs(ctx, 30*time.Second, s.refused...))
		})
	}
	t.Run("MT-27 control: outside the mesh", func(t *testing.T) {
		check(t, w.Unenrol(ctx, Meshed...))
		t.Cleanup(func() { check(t, w.Enrol(context.Background(), Meshed...)) })
		check(t, w.ExpectPairs(ctx, 30*time.Second))
	})
	t.Run("MT-27 control: without the resource", func(t *testing.T) {
		check(t, w.Delete(ctx, foo+"---\n"+StrictMesh))
		check(t, w.ExpectPairs(ctx, 30*time.Second))
	})
}
