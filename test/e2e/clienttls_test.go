package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// servedBy is what client TLS by mutual TLS of the mesh asks of the server's identity.
func servedBy(account string) string {
	return "{tls: {mode: ISTIO_MUTUAL, subjectAltNames: [spiffe://cluster.local/ns/bar/sa/" + account + "]}}"
}

// says wants a condition of an object's status to be as given, with the text.
func says(resource, namespace, name, condition, want, text string) seen {
	return func(ctx context.Context, w *World) error {
		c, err := w.conditions(ctx, resource, namespace, name)
		if err == nil && (c.state[condition] != want || !strings.Contains(c.message[condition], text)) {
			err = fmt.Errorf("%w: %s/%s: %v %v", ErrOther, namespace, name, c.state, c.message)
		}
		return err
	}
}

// clientRows are what DestinationRules ask of their clients.
func clientRows() []modeRow {
	open, legacy := pairsAre(), "httpbin.legacy.svc.cluster.local"
	toBar, toLegacy := pairsAre("foo→bar=503 0", "bar→bar=503 0"), pairsAre("foo→legacy=503 0", "bar→legacy=503 0")
	files := clientTLS("legacy", "simple", legacy, "{tls: {mode: SIMPLE, sni: httpbin, caCertificates: /etc/ca.pem}}")
	return []modeRow{
		{ids: "client mode", title: "DISABLE is plain text, which a STRICT server refuses", base: StrictNamespace("bar"),
			resource: clientTLS("bar", "httpbin", httpbinBar, "{tls: {mode: DISABLE}}"),
			holds:    pairsAre("foo→bar=503 0", "bar→bar=503 0", "legacy→bar"), without: refused("bar"), outside: open},
		{ids: "client mode", title: "DISABLE for a port of another namespace's service, from the client's own namespace",
			resource: clientTLS("foo", "httpbin", httpbinBar, "{portLevelSettings: [{port: {number: 8000}, tls: {mode: DISABLE}}]}"),
			holds:    all(open, link("foo", "bar", false)), without: link("foo", "bar", true), outside: all(open, link("foo", "bar", false))},
		{ids: "client mode", title: "ISTIO_MUTUAL to a server that has none is refused",
			resource: clientTLS("legacy", "mutual", legacy, "{tls: {mode: ISTIO_MUTUAL}}"), holds: toLegacy, without: open, outside: open},
		{ids: "client mode", title: "SIMPLE with a file of the workload is refused, and the status says so", resource: files,
			holds:   all(toLegacy, says("destinationrules", "legacy", "simple", "Enforced", "False AcceptedNotEnforced", "connections are refused")),
			without: open, outside: open},
		{ids: "MT-15", title: "a server that may not run the service is refused, with a certificate of the mesh as it has", resource: clientTLS("bar", "httpbin", httpbinBar, servedBy("other")),
			holds: all(toBar, link("bar", "foo", true)), without: open, outside: open},
	}
}

// TestClientTLSRows observes them.
func TestClientTLSRows(t *testing.T) { observeModes(t, clientRows()) }

// TestMT15SecureNaming: who may run a service is said by its ServiceEntry or by the client's DestinationRule, by account.
func TestMT15SecureNaming(t *testing.T) {
	ctx, w := meshed(t)
	server, err := w.OnePod(ctx, "bar", "httpbin")
	check(t, err)
	const host = "named.example.org"
	entry := func(names string) string {
		return serviceEntry("named", "  hosts: ["+host+"]\n  location: MESH_INTERNAL\n  resolution: STATIC\n"+
			"  ports: [{number: 8000, name: http, protocol: HTTP, targetPort: 80}]\n  endpoints: [{address: "+server.Status.PodIP+"}]\n"+
			"  subjectAltNames: ["+names+"]\n")
	}
	t.Cleanup(func() { check(t, w.Delete(context.Background(), entry(""))) })
	ask := func(want string) error {
		return Until(ctx, 30*time.Second, host+" to be "+want, func(ctx context.Context) error {
			vip, err := w.assigned(ctx, "foo", "named", host)
			if err != nil {
				return err
			}
			r, err := w.Exec(ctx, "foo", "sleep", "code=$(curl -s -o /dev/null -m 10 -w '%{http_code}' http://"+vip+":8000/ip); echo $code $?")
			if err != nil {
				return err
			}
			if got := strings.TrimSpace(r.Out); got != want {
				return fmt.Errorf("%w: it is %q", ErrOther, got)
			}
			return nil
		})
	}
	for _, tc := range []struct{ title, names, want string }{
		{"MT-15 an account that is not the server's", "spiffe://cluster.local/ns/bar/sa/other", "503 0"},
		{"MT-15 the account of another namespace", "spiffe://cluster.local/ns/foo/sa/httpbin", "503 0"},
		{"MT-15 a name that is no account", "httpbin.bar.svc.cluster.local", "503 0"},
		{"MT-15 control: the server's account", "spiffe://cluster.local/ns/bar/sa/other, spiffe://cluster.local/ns/bar/sa/httpbin", "200 0"},
		{"MT-15 control: no account is named", "", "200 0"},
	} {
		t.Run(tc.title, func(t *testing.T) {
			since := time.Now().UTC().Truncate(time.Second).Format(time.RFC3339)
			check(t, w.Apply(ctx, entry(tc.names)))
			check(t, ask(tc.want))
			if tc.want != "200 0" {
				check(t, w.ExpectLog(ctx, since, `"reason":"peer_identity"`, `"src.namespace":"foo"`))
			}
		})
	}
	right := clientTLS("bar", "named", httpbinBar, servedBy("httpbin"))
	t.Run("MT-15 control: the right account of a DestinationRule", func(t *testing.T) {
		check(t, w.Apply(ctx, right))
		t.Cleanup(func() { check(t, w.Delete(context.Background(), right)) })
		check(t, Until(ctx, 30*time.Second, "the rule to be in force", func(ctx context.Context) error {
			return says("destinationrules", "bar", "named", "Enforced", "True Enforced", "")(ctx, w)
		}))
		check(t, all(pairsAre(), link("foo", "bar", true))(ctx, w))
		out, err := w.Undermesh(ctx, "proxy-config", "tls", "deployment/sleep", "-n", "foo", "--fqdn", httpbinBar)
		check(t, err)
		if !strings.Contains(out, "ISTIO_MUTUAL") || !strings.Contains(out, "bar/named") {
			t.Errorf("proxy-config tls says\n%s", out)
		}
	})
}
