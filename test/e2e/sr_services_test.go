package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// inTurn is a Service of bar's helloworld; spec is added to its own.
func inTurn(spec string) string {
	return "apiVersion: v1\nkind: Service\nmetadata: {name: in-turn, namespace: bar}\n" +
		"spec: {selector: {app: helloworld}, ports: [{name: http, port: 5000}]" + spec + "}\n"
}

// alternates wants twelve requests, each on a connection of its own, to be answered by the two versions in turn.
func alternates(ctx context.Context, w *World, from string) error {
	r, err := w.Exec(ctx, from, "sleep", `i=0; while [ $i -lt 12 ]; do i=$((i+1)); curl -s -m 10 http://in-turn.bar:5000/hello || echo none; done`)
	if err != nil {
		return err
	}
	var got []string
	for _, l := range strings.Split(strings.TrimSpace(r.Out), "\n") {
		_, version, _ := strings.Cut(l, "version: ")
		version, _, _ = strings.Cut(version, ",")
		got = append(got, version)
	}
	for i, v := range got {
		if len(got) != 12 || v == "" || i > 0 && v == got[i-1] {
			return fmt.Errorf("%w: %v", ErrOther, got)
		}
	}
	return nil
}

// TestSR02InTurn: without any configuration the ready endpoints of a service answer in turn.
func TestSR02InTurn(t *testing.T) {
	ctx, w := meshed(t)
	r := &externalRow{title: "the endpoints answer in turn", holds: alternates}
	check(t, w.Apply(ctx, inTurn("")))
	t.Cleanup(func() { check(t, w.Delete(context.Background(), inTurn(""))) })
	t.Run("SR-02 the endpoints answer in turn", func(t *testing.T) {
		for _, from := range Meshed {
			check(t, r.expects(ctx, w, from, true))
		}
	})
	t.Run("SR-02 control: outside the mesh chance decides", func(t *testing.T) { check(t, r.expects(ctx, w, "legacy", false)) })
	t.Run("SR-02 control: with sessionAffinity", func(t *testing.T) {
		check(t, w.Apply(ctx, inTurn(", sessionAffinity: ClientIP")))
		check(t, r.expects(ctx, w, "foo", false))
	})
}

// protocolService has a port for each way of saying what is spoken.
const protocolService = `apiVersion: v1
kind: Service
metadata: {name: protocols, namespace: foo}
spec:
  selector: {app: tcp-echo}
  ports:
  - {name: http, port: 7001}
  - {name: grpc-web-x, port: 7002}
  - {name: tcp-db, port: 7003}
  - {name: NAME, port: 7004}
  - {name: other, port: 7005, appProtocol: HTTP}
  - {name: http-x, port: 7006, appProtocol: Tcp}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: protocols, namespace: foo}
spec:
  hosts: [protocols.example.org]
  addresses: [198.51.100.77]
  ports: [{number: 7007, name: a, protocol: http}, {number: 7008, name: b, protocol: tls}, {number: 7009, name: c, protocol: HTTP}]
`

// matches are what "proxy-config listener" says of the ports of protocolService.
func (w *World) matches(ctx context.Context) (map[string]string, error) {
	pod, err := w.OnePod(ctx, "foo", "sleep")
	if err != nil {
		return nil, err
	}
	out, err := w.Undermesh(ctx, "proxy-config", "listener", pod.Metadata.Name+".foo")
	if err != nil {
		return nil, err
	}
	got := map[string]string{}
	for _, l := range strings.Split(out, "\n") {
		f := strings.Fields(l)
		if len(f) < 3 || !strings.HasPrefix(f[1], "700") || strings.Contains(l, "in-turn") {
			continue
		}
		match, _, _ := strings.Cut(strings.Join(f[2:], " "), " Route:")
		match, _, _ = strings.Cut(match, " Cluster:")
		got[f[1]] = match
	}
	return got, nil
}

// TestSR12ProtocolSelection: the name of a port or its appProtocol say what is spoken, in any case; a name that says nothing is
// told, and its port counts as undeclared.
func TestSR12ProtocolSelection(t *testing.T) {
	ctx, w := meshed(t)
	const http, both, raw = "App: HTTP", "App: HTTP or TCP", "ALL"
	declared := func(name, unknown string, flagged bool) externalRow {
		want := map[string]string{"7001": http, "7002": http, "7003": raw, "7004": unknown, "7005": http, "7006": raw, "7007": http, "7008": raw, "7009": http}
		return externalRow{title: "each port is taken as declared", holds: func(ctx context.Context, w *World, _ string) error {
			got, err := w.matches(ctx)
			if err != nil {
				return err
			}
			var wrong []error
			for port, match := range want {
				if got[port] != match {
					wrong = append(wrong, fmt.Errorf("%w: port %s is %q, want %q", ErrOther, port, got[port], match))
				}
			}
			r, err := run(ctx, nil, []string{"KUBECONFIG=" + w.Kubeconfig()}, w.Root+"/bin/undermesh", "analyze", "-n", "foo")
			if err != nil {
				return err
			}
			if strings.Contains(r.Out+r.Err, "[IST0118] (Service foo/protocols) Port name "+name) != flagged {
				wrong = append(wrong, fmt.Errorf("%w: analyze says %s", ErrOther, r.Out+r.Err))
			}
			return errors.Join(wrong...)
		}}
	}
	with := func(name string) string { return strings.Replace(protocolService, "NAME", name, 1) }
	unknown, known := declared("foo", both, true), declared("http2-x", http, false)
	t.Run("SR-12 control: without the resource", func(t *testing.T) { check(t, unknown.expects(ctx, w, "foo", false)) })
	check(t, w.Apply(ctx, with("foo")))
	t.Cleanup(func() { check(t, w.Delete(context.Background(), with("foo"))) })
	t.Run("SR-12 each port is taken as declared, and foo is flagged", func(t *testing.T) { check(t, unknown.expects(ctx, w, "foo", true)) })
	check(t, w.Apply(ctx, with("http2-x")))
	t.Run("SR-12 control: with a name that declares a protocol", func(t *testing.T) { check(t, unknown.expects(ctx, w, "foo", false)) })
	t.Run("SR-12 a name that begins with a protocol declares it", func(t *testing.T) { check(t, known.expects(ctx, w, "foo", true)) })
}

// caller is a pod that calls bar's httpbin, with a serviceAccountName or without.
func caller(namespace, account string) string {
	return `apiVersion: v1
kind: ServiceAccount
metadata: {name: special, namespace: ` + namespace + `}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: caller, namespace: ` + namespace + `}
spec:
  selector: {matchLabels: {app: caller}}
  template:
    metadata: {labels: {app: caller}}
    spec:
      terminationGracePeriodSeconds: 0
` + account + `
      nodeSelector: {kubernetes.io/hostname: node1}
      containers: [{name: sleep, image: curlimages/curl, imagePullPolicy: IfNotPresent, command: [sleep, infinity]}]
`
}

// identified wants a call of caller to be recorded at the destination with the identity.
func identified(id string) func(context.Context, *World, string) error {
	return func(ctx context.Context, w *World, from string) error {
		since := time.Now().UTC().Truncate(time.Second).Format(time.RFC3339)
		r, err := w.Exec(ctx, from, "caller", "curl -s -o /dev/null -m 10 -w '%{http_code}' http://httpbin.bar:8000/ip")
		if err != nil {
			return err
		}
		if r.Out != "200" {
			return fmt.Errorf("%s → bar: %q", from, r.Out)
		}
		brief, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if err := w.ExpectLog(brief, since, `"direction":"inbound"`, `"src.identity":"`+id+`"`); err != nil {
			return fmt.Errorf("%w: %w", ErrOther, err)
		}
		return nil
	}
}

// TestSR19ServiceAccountIsIdentity: the account that a pod runs as is who it is, whatever its name, labels or address.
func TestSR19ServiceAccountIsIdentity(t *testing.T) {
	ctx, w := meshed(t)
	const special = "      serviceAccountName: special"
	r := &externalRow{title: "the destination sees the service account", holds: identified("spiffe://cluster.local/ns/foo/sa/special")}
	deploy := func(namespace, account string) {
		t.Helper()
		check(t, w.Apply(ctx, caller(namespace, account)))
		_, err := w.Kubectl(ctx, "rollout", "status", "-n", namespace, "deployment/caller", "--timeout=60s")
		check(t, err)
	}
	t.Cleanup(func() {
		check(t, w.Delete(context.Background(), caller("foo", special)))
		check(t, w.Delete(context.Background(), caller("legacy", special)))
	})
	deploy("foo", "")
	t.Run("SR-19 control: without serviceAccountName", func(t *testing.T) {
		check(t, r.expects(ctx, w, "foo", false))
		usual := &externalRow{title: "it is default", holds: identified("spiffe://cluster.local/ns/foo/sa/default")}
		check(t, usual.expects(ctx, w, "foo", true))
	})
	deploy("foo", special)
	t.Run("SR-19 the service account is the identity", func(t *testing.T) { check(t, r.expects(ctx, w, "foo", true)) })
	deploy("legacy", special)
	t.Run("SR-19 control: outside the mesh", func(t *testing.T) {
		legacy := &externalRow{title: "the destination sees the service account", holds: identified("spiffe://cluster.local/ns/legacy/sa/special")}
		check(t, legacy.expects(ctx, w, "legacy", false))
	})
}
