package e2e

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

// externalRow is a row about services outside the mesh, seen by foo's sleep, and by legacy's for the control outside the mesh.
type externalRow struct {
	id, title, resource string
	holds               func(ctx context.Context, w *World, from string) error
	unmeshed            string // why the same is seen outside the mesh; "": it is not
}

// declared asks a host by its name, and by the address that it was assigned.
func declared(entry string, port int, node string) func(context.Context, *World, string) error {
	return func(ctx context.Context, w *World, from string) error {
		return errors.Join(byHost(entry+".example.org", port, node)(ctx, w, from), byAssigned(entry, port, node)(ctx, w, from))
	}
}

// byAssigned asks the address that a host of an entry in foo was given, whatever the name resolves to.
func byAssigned(entry string, port int, node string) func(context.Context, *World, string) error {
	return func(ctx context.Context, w *World, from string) error {
		vip, err := w.assigned(ctx, "foo", entry, entry+".example.org")
		if err != nil {
			return err
		}
		return w.answered(ctx, from, vip, port, node)
	}
}

func byHost(host string, port int, node string) func(context.Context, *World, string) error {
	return func(ctx context.Context, w *World, from string) error { return w.answered(ctx, from, host, port, node) }
}

func serviceEntry(name, spec string) string {
	return "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: " + name + ", namespace: foo}\nspec:\n" + spec
}

// tcpEntry is an entry for NAME.example.org and one TCP port.
func tcpEntry(name string, port int, rest string) string {
	return serviceEntry(name, fmt.Sprintf("  hosts: [%s.example.org]\n  location: MESH_EXTERNAL\n  ports: [{number: %d, name: tcp, protocol: TCP%s\n", name, port, rest))
}

func externalRows(o *Outside) []externalRow {
	return []externalRow{
		{"SR-05", "a declared host is resolved by the mesh, whatever address was dialled", tcpEntry("dns", outsidePort, "}]\n  resolution: DNS"),
			declared("dns", outsidePort, "node2"), ""},
		{"SR-10", "a target port is dialled instead", tcpEntry("target", 80, fmt.Sprintf(", targetPort: %d}]\n  resolution: DNS", outsidePort)),
			byAssigned("target", 80, "node2"), ""},
		{"SR-07", "listed addresses are dialled", tcpEntry("static", outsidePort, "}]\n  resolution: STATIC\n  endpoints: [{address: "+o.Two+"}]"),
			byAssigned("static", outsidePort, "node2"), ""},
		{"SR-06", "without resolution the address that was dialled", tcpEntry("none", outsidePort, "}]\n  addresses: ["+o.Two+"]"),
			byHost(o.Two, outsidePort, "node2"), "nothing is refused there"},
		{"SR-08", "an address is enough to be known by", serviceEntry("proxy", fmt.Sprintf(
			"  hosts: [my-company-proxy.com] # ignored\n  addresses: [%s/32]\n  ports: [{number: %d, name: tcp, protocol: TCP}]\n  location: MESH_EXTERNAL\n", o.Two, outsideOtherPort)),
			named(o.Two, outsideOtherPort, "node2", "my-company-proxy.com"), ""},
		{"SR-13", "an alias leads to the host", "apiVersion: v1\nkind: Service\nmetadata: {name: alias, namespace: foo}\nspec: {type: ExternalName, " +
			fmt.Sprintf("externalName: dns.example.org, ports: [{name: tcp, port: %d}]}\n", outsidePort),
			byHost("alias.foo.svc.cluster.local", outsidePort, "node2"), "an alias works with and without the mesh"},
		{"SR-14", "a service without selector leads to its Endpoints", fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {name: manual, namespace: foo}
spec: {ports: [{name: tcp, port: 7000, targetPort: %[1]d}]}
---
apiVersion: v1
kind: Endpoints
metadata: {name: manual, namespace: foo}
subsets: [{addresses: [{ip: %[2]s}], ports: [{name: tcp, port: %[1]d}]}]
`, outsidePort, o.Two), named("manual.foo", 7000, "node2", "manual.foo.svc.cluster.local"), ""},
	}
}

// named wants the answer, and a line in the log that gives the connection the name of the service.
func named(host string, port int, node, service string) func(context.Context, *World, string) error {
	return func(ctx context.Context, w *World, from string) error {
		since := time.Now().UTC().Truncate(time.Second).Format(time.RFC3339)
		if err := w.answered(ctx, from, host, port, node); err != nil {
			return err
		}
		brief, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if err := w.ExpectLog(brief, since, `"src.namespace":"`+from+`"`, `"dst.service":"`+service+`"`); err != nil {
			return fmt.Errorf("%w: %w", ErrOther, err)
		}
		return nil
	}
}

// expects waits until the row is seen, or its opposite.
func (r *externalRow) expects(ctx context.Context, w *World, from string, holds bool) error {
	return Until(ctx, 30*time.Second, fmt.Sprintf("%s from %s to be %t", r.title, from, holds), func(ctx context.Context) error {
		err := r.holds(ctx, w, from)
		switch {
		case holds:
			return err
		case errors.Is(err, ErrOther):
			return nil
		case err == nil:
			return errors.New("it holds")
		}
		return err
	})
}

// TestExternalServices observes external services with stand-ins on the nodes' network and names in the cluster's DNS, where
// what is in no registry is blocked.
func TestExternalServices(t *testing.T) {
	ctx, w := meshed(t)
	o, err := w.DeployOutside(ctx)
	check(t, err)
	t.Cleanup(func() {
		_, err := w.Kubectl(context.Background(), "delete", "namespace", outsideNamespace)
		check(t, err)
	})
	check(t, w.SetDNS(ctx, map[string]string{"dns": o.Two, "target": o.Two}))
	t.Cleanup(func() { check(t, w.SetDNS(context.Background(), nil)) })
	old, err := w.meshConfig(ctx, registryOnly)
	check(t, err)
	t.Cleanup(func() { check(t, w.setMeshConfig(context.Background(), old)) })
	blocked := &externalRow{title: "blocked", holds: byHost(o.Two, outsidePort, "")}
	check(t, blocked.expects(ctx, w, "foo", true))
	for _, r := range externalRows(o) {
		t.Run(r.id+" control: without the resource", func(t *testing.T) { check(t, r.expects(ctx, w, "foo", false)) })
		check(t, w.Apply(ctx, r.resource))
		t.Run(r.id+" "+r.title, func(t *testing.T) { check(t, r.expects(ctx, w, "foo", true)) })
		t.Run(r.id+" control: outside the mesh", func(t *testing.T) { check(t, r.expects(ctx, w, "legacy", r.unmeshed != "")) })
		check(t, w.Delete(ctx, r.resource))
	}
}

// TestSR21PortOfNoService: a port that no Service names is captured and policed all the same.
func TestSR21PortOfNoService(t *testing.T) {
	ctx, w := meshed(t)
	pod, err := w.OnePod(ctx, "foo", "tcp-echo")
	check(t, err)
	policy := `apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: not-9002, namespace: foo}
spec:
  selector: {matchLabels: {app: tcp-echo}}
  action: DENY
  rules:
  - from: [{source: {principals: ["cluster.local/ns/bar/sa/sleep"]}}]
    to: [{operation: {ports: ["9002"]}}]
`
	r := &externalRow{title: "the port is refused", holds: func(ctx context.Context, w *World, from string) error {
		return w.answered(ctx, from, pod.Status.PodIP, 9002, "")
	}}
	t.Run("SR-21 control: without the resource", func(t *testing.T) { check(t, r.expects(ctx, w, "bar", false)) })
	check(t, w.Apply(ctx, policy))
	t.Cleanup(func() { check(t, w.Delete(context.Background(), policy)) })
	t.Run("SR-21 a port of no service is captured and policed", func(t *testing.T) { check(t, r.expects(ctx, w, "bar", true)) })
	t.Run("SR-21 control: outside the mesh", func(t *testing.T) { check(t, r.expects(ctx, w, "legacy", false)) })
}

// TestServiceRows observes what happens without any configuration of the mesh, and how soon a change of it counts.
func TestServiceRows(t *testing.T) {
	ctx, w := meshed(t)
	before, err := w.PodFacts(ctx, All)
	check(t, err)
	for _, r := range []externalRow{
		{"SR-01", "a new Service is known without any configuration of the mesh", `apiVersion: v1
kind: Service
metadata: {name: found, namespace: foo}
spec: {selector: {app: tcp-echo}, ports: [{name: tcp, port: 9100, targetPort: 9000}]}
`, named("found.foo", 9100, "hello", "found.foo.svc.cluster.local"), ""},
		{"SR-18", "a new rule counts within seconds, without a restart", `apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: not-from-foo, namespace: foo}
spec:
  selector: {matchLabels: {app: tcp-echo}}
  action: DENY
  rules:
  - from: [{source: {principals: ["cluster.local/ns/foo/sa/sleep"]}}]
    to: [{operation: {ports: ["9001"]}}]
`, byHost("tcp-echo.foo", 9001, ""), ""},
	} {
		t.Run(r.id+" control: without the resource", func(t *testing.T) { check(t, r.expects(ctx, w, "foo", false)) })
		check(t, w.Apply(ctx, r.resource))
		start := time.Now()
		t.Run(r.id+" "+r.title, func(t *testing.T) { check(t, r.expects(ctx, w, "foo", true)) })
		w.Say("%s: seen %.1f s after it was applied", r.id, time.Since(start).Seconds())
		t.Run(r.id+" control: outside the mesh", func(t *testing.T) { check(t, r.expects(ctx, w, "legacy", false)) })
		check(t, w.Delete(ctx, r.resource))
	}
	after, err := w.PodFacts(ctx, All)
	check(t, err)
	check(t, Same(before, after))
}
