package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/undermesh/undermesh/controller/api"
)

// unharmed runs do and wants the same proxies and agents to be there afterwards, and all pairs to answer.
func unharmed(ctx context.Context, t *testing.T, w *World, do func()) {
	t.Helper()
	pids := func() string {
		var all []string
		for _, n := range nodes {
			for _, pattern := range []string{"^/ztunnel worker ", "^/nodeagent "} {
				pid, err := w.PID(ctx, n, pattern)
				check(t, err)
				all = append(all, fmt.Sprintf("%s %s %d", n, pattern, pid))
			}
		}
		return strings.Join(all, ", ")
	}
	before := pids()
	do()
	if after := pids(); after != before {
		t.Errorf("processes were %s and are %s", before, after)
	}
	check(t, w.ExpectPairs(ctx, 30*time.Second))
}

// TestBadLabels: an unknown value counts as disabled, and an event names object, label and value.
func TestBadLabels(t *testing.T) {
	ctx, w := meshed(t)
	const ns = "badlabel"
	check(t, w.Deploy(ctx, ns, "node2", "sleep"))
	t.Cleanup(func() {
		_, err := w.Kubectl(context.Background(), "delete", "namespace", ns, "--wait")
		check(t, err)
	})
	pod, err := w.OnePod(ctx, ns, "sleep")
	check(t, err)
	for _, tc := range []struct {
		title, want string
		label       []string
	}{
		{"namespace", `namespace badlabel: label istio-injection has the unknown value "enabld"`, []string{"namespace", ns, api.LabelInjection + "=enabld"}},
		{"pod", fmt.Sprintf("pod %s/%s: label sidecar.istio.io/inject has the unknown value %q", ns, pod.Metadata.Name, "maybe"),
			[]string{"pod", "-n", ns, pod.Metadata.Name, api.LabelPodInject + "=maybe"}},
	} {
		t.Run(tc.title, func(t *testing.T) {
			_, err := w.Kubectl(ctx, append([]string{"label", "--overwrite"}, tc.label...)...)
			check(t, err)
			check(t, w.awaitEvent(ctx, ns, "MeshLabelUnknown", tc.want))
			p, err := w.OnePod(ctx, ns, "sleep")
			check(t, err)
			if got := p.Metadata.Annotations[api.AnnotationRedirection]; got != "" {
				t.Errorf("the pod is enrolled: %q", got)
			}
		})
	}
	t.Run("control: known values enrol", func(t *testing.T) {
		_, err := w.Kubectl(ctx, "label", "--overwrite", "pod", "-n", ns, pod.Metadata.Name, api.LabelPodInject+"=true")
		check(t, err)
		check(t, w.Enrol(ctx, ns))
	})
}

// awaitEvent waits for an event with a reason whose message contains a text.
func (w *World) awaitEvent(ctx context.Context, namespace, reason, text string) error {
	return Until(ctx, 45*time.Second, fmt.Sprintf("event %s in %s with %q", reason, namespace, text), func(ctx context.Context) error {
		out, err := w.Kubectl(ctx, "get", "events", "-n", namespace, "--field-selector", "reason="+reason, "-o", `jsonpath={range .items[*]}{.message}{"\n"}{end}`)
		if err == nil && !strings.Contains(out, text) {
			err = fmt.Errorf("there are: %s", strings.TrimSpace(out))
		}
		return err
	})
}

// TestBadPolicy: what cannot be enforced as written refuses everything, and the status names the field.
func TestBadPolicy(t *testing.T) {
	ctx, w := meshed(t)
	withoutAdmission(ctx, t, w) // it refuses them before they are stored
	for _, tc := range []struct{ title, rule, says string }{
		{"invalid port", `to: [{operation: {ports: ["http"]}}]`, "ports"},
		{"invalid block", `from: [{source: {ipBlocks: ["10.0.0.0/33"]}}]`, "ipBlocks"},
		{"unknown condition", `when: [{key: source.shoeSize, values: ["43"]}]`, "source.shoeSize"},
		{"unknown field", `from: [{source: {principalz: ["cluster.local/ns/bar/sa/sleep"]}}]`, "principalz"},
		// Without the field this rule would be {}, which matches everything.
		{"unknown field of a rule", `form: [{source: {principals: ["cluster.local/ns/bar/sa/sleep"]}}]`, "form"},
	} {
		t.Run(tc.title, func(t *testing.T) {
			policy := echoPolicy("bad-policy", "  action: ALLOW\n  rules:\n  - "+tc.rule+"\n")
			t.Cleanup(func() { check(t, w.Delete(context.Background(), policy)) })
			_, err := w.KubectlIn(ctx, []byte(policy), "apply", "--validate=false", "-f", "-")
			check(t, err)
			check(t, w.awaitRefused(ctx, "foo", "bad-policy", tc.says))
			check(t, w.echoCases(ctx, []EchoCase{{"foo", 9000, "rejected"}, {"bar", 9000, "rejected"}, {"legacy", 9000, "rejected"}}))
		})
	}
	t.Run("unknown field, as kubectl sends it", func(t *testing.T) {
		policy := echoPolicy("bad-policy", "  action: ALLOW\n  rules:\n  - from: [{source: {principalz: [a]}}]\n")
		t.Cleanup(func() { check(t, w.Delete(context.Background(), policy)) })
		check(t, w.Apply(ctx, policy)) // the API server stores the field, so that the controller sees what it must refuse
		check(t, w.awaitRefused(ctx, "foo", "bad-policy", "spec.rules[0].from[0].source.principalz"))
		check(t, w.echoCases(ctx, []EchoCase{{"foo", 9000, "rejected"}, {"bar", 9000, "rejected"}, {"legacy", 9000, "rejected"}}))
	})
	t.Run("control: without them all are accepted", func(t *testing.T) {
		check(t, w.echoCases(ctx, []EchoCase{{"foo", 9000, "accepted"}, {"bar", 9000, "accepted"}, {"legacy", 9000, "accepted"}}))
	})
}

// awaitRefused waits until an AuthorizationPolicy says that it is not accepted, and why.
func (w *World) awaitRefused(ctx context.Context, namespace, name, text string) error {
	return w.awaitReason(ctx, "authorizationpolicies", namespace, name, "Accepted", "False", text)
}

// TestBadBytes sends what is no tunnel to the tunnel port, and anything to the mesh's own ports.
func TestBadBytes(t *testing.T) {
	ctx, w := meshed(t)
	pod, err := w.OnePod(ctx, "foo", "httpbin")
	check(t, err)
	since := time.Now().UTC().Truncate(time.Second).Format(time.RFC3339)
	garbage := bytes.Repeat([]byte{0x16, 0x03, 0x01, 0xff, 0xff, 'g', 0}, 400)
	unharmed(ctx, t, w, func() {
		for _, tc := range []struct {
			title string
			port  int
			bytes []byte
		}{
			{"garbage to the tunnel port", 15008, garbage},
			{"zeroes to the tunnel port", 15008, make([]byte, 3000)},
			{"plain HTTP to the tunnel port", 15008, []byte("GET /ip HTTP/1.1\r\nHost: httpbin\r\n\r\n")},
			{"plain HTTP/2 to the tunnel port", 15008, []byte(http2.ClientPreface)},
			{"garbage to 15001", 15001, garbage},
			{"garbage to 15006", 15006, garbage},
			{"plain HTTP to 15006", 15006, []byte("GET /ip HTTP/1.1\r\nHost: httpbin\r\n\r\n")},
		} {
			got, err := exchange(ctx, fmt.Sprintf("%s:%d", pod.Status.PodIP, tc.port), tc.bytes)
			t.Logf("%s: %d bytes %.20q, %v", tc.title, len(got), got, err)
			if len(got) > 7 { // a TLS alert is 7 bytes
				t.Errorf("%s was answered: %q", tc.title, got)
			}
			if err == nil && tc.port != api.PortTunnel {
				t.Errorf("%s: the connection was accepted", tc.title)
			}
		}
		check(t, w.ExpectLog(ctx, since, `"reason":"tls_handshake"`, pod.Metadata.Name, pod.Status.PodIP+":15008"))
	})
	t.Run("control: the pod is reached on the application's port", func(t *testing.T) {
		got, err := exchange(ctx, pod.Status.PodIP+":80", []byte("GET /ip HTTP/1.1\r\nHost: httpbin\r\nConnection: close\r\n\r\n"))
		check(t, err)
		if !bytes.HasPrefix(got, []byte("HTTP/1.1 200")) {
			t.Errorf("got %q", got)
		}
	})
}

// exchange sends bytes and reads until the other side ends. A reset is an end like another; only what was read tells. An
// error is a connection that was not accepted, or one that does not end.
func exchange(ctx context.Context, addr string, send []byte) ([]byte, error) {
	c, err := (&net.Dialer{Timeout: 3 * time.Second}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return nil, err
	}
	_, werr := c.Write(send)
	got, err := io.ReadAll(c)
	if errors.Is(errors.Join(err, werr), os.ErrDeadlineExceeded) {
		return got, fmt.Errorf("the connection to %s stays open: %w", addr, os.ErrDeadlineExceeded)
	}
	return got, nil
}

// TestBadConnect asks a pod's tunnel, with a certificate of the mesh, for what is not the pod's.
func TestBadConnect(t *testing.T) {
	ctx, w := meshed(t)
	pod, err := w.OnePod(ctx, "foo", "httpbin")
	check(t, err)
	other, err := w.OnePod(ctx, "foo", "tcp-echo")
	check(t, err)
	root, err := w.meshRoot(ctx)
	check(t, err)
	both, err := root.issue("spiffe://cluster.local/ns/bar/sa/sleep", time.Now().Add(time.Hour))
	check(t, err)
	cert, err := tls.X509KeyPair(both, both)
	check(t, err)
	since := time.Now().UTC().Format(time.RFC3339)
	unharmed(ctx, t, w, func() {
		for _, authority := range []string{other.Status.PodIP + ":9000", "127.0.0.1:15000", "httpbin.foo.svc.cluster.local:8000"} {
			status, err := connectThrough(ctx, pod.Status.PodIP, authority, cert)
			check(t, err)
			t.Logf("CONNECT %s: %d", authority, status)
			if status < 400 || status > 499 {
				t.Errorf("CONNECT %s through %s: status %d", authority, pod.Status.PodIP, status)
			}
		}
		check(t, w.ExpectLog(ctx, since, "authority_mismatch", other.Status.PodIP))
	})
	t.Run("control: the pod's own address", func(t *testing.T) {
		status, err := connectThrough(ctx, pod.Status.PodIP, pod.Status.PodIP+":80", cert)
		check(t, err)
		if status != http.StatusOK {
			t.Errorf("status %d", status)
		}
	})
}

// connectThrough asks the tunnel of a pod for an authority, with an HTTP/2 client that is not ours.
func connectThrough(ctx context.Context, podIP, authority string, cert tls.Certificate) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	d := &tls.Dialer{Config: &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13,
		InsecureSkipVerify: true}} // the server is not what is tested here
	nc, err := d.DialContext(ctx, "tcp", podIP+":15008")
	if err != nil {
		return 0, err
	}
	defer nc.Close()
	h2, err := (&http2.Transport{}).NewClientConn(nc)
	if err != nil {
		return 0, err
	}
	body, w := io.Pipe()
	defer w.Close()
	req := (&http.Request{Method: http.MethodConnect, URL: &url.URL{Scheme: "https", Host: authority}, Host: authority, Header: http.Header{}, Body: body}).WithContext(ctx)
	res, err := h2.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	return res.StatusCode, nil
}

// TestBadTiming deletes pods while they are being added: nothing of them stays in the kernel.
func TestBadTiming(t *testing.T) {
	ctx, w := meshed(t)
	pods := func() string {
		text := ""
		for i := range 8 {
			text += fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata: {name: brief-%d, namespace: foo, labels: {app: brief}}
spec:
  terminationGracePeriodSeconds: 0
  nodeSelector: {kubernetes.io/hostname: node1}
  containers: [{name: main, image: curlimages/curl, imagePullPolicy: IfNotPresent, command: [sleep, infinity]}]
`, i)
		}
		return text
	}()
	unharmed(ctx, t, w, func() {
		for _, after := range []time.Duration{100 * time.Millisecond, 400 * time.Millisecond, 900 * time.Millisecond} {
			check(t, w.Apply(ctx, pods))
			check(t, Hold(ctx, after))
			check(t, w.deleteBrief(ctx))
		}
		check(t, w.deletedDuringAdd(ctx, pods))
		check(t, Until(ctx, time.Minute, "the pins of node1 to be those of its enrolled pods", func(ctx context.Context) error {
			return w.comparePins(ctx, "node1")
		}))
	})
	t.Run("control: pods that are not deleted have pins", func(t *testing.T) {
		before, err := w.pins(ctx, "node1")
		check(t, err)
		check(t, w.Apply(ctx, pods))
		t.Cleanup(func() { check(t, w.deleteBrief(context.Background())) })
		check(t, Until(ctx, time.Minute, "pins of eight more pods", func(ctx context.Context) error {
			now, err := w.pins(ctx, "node1")
			if err == nil && len(now) < len(before)+8 {
				err = fmt.Errorf("%d pods before, %d now", len(before), len(now))
			}
			return err
		}))
	})
}

func (w *World) deleteBrief(ctx context.Context) error {
	_, err := w.Kubectl(ctx, "delete", "pods", "-n", "foo", "-l", "app=brief", "--force", "--grace-period=0", "--wait")
	return err
}

// deletedDuringAdd deletes pods while their ADD waits for the agent, which is stopped meanwhile. The agent must name one of them.
func (w *World) deletedDuringAdd(ctx context.Context, pods string) error {
	agent, err := w.PID(ctx, "node1", "^/nodeagent ")
	if err != nil {
		return err
	}
	since := time.Now().UTC().Truncate(time.Second).Format(time.RFC3339)
	if err := w.Signal(ctx, "node1", "STOP", agent); err != nil {
		return err
	}
	goOn := func() error { return w.Signal(context.WithoutCancel(ctx), "node1", "CONT", agent) }
	err = w.Apply(ctx, pods)
	if err == nil {
		err = Until(ctx, 20*time.Second, "a plugin to wait for the agent", func(ctx context.Context) error {
			_, err := w.Cluster(ctx, "node", "1", "--", "pgrep", "-f", "undermesh-cni")
			return err
		})
	}
	if err == nil {
		err = w.deleteBrief(ctx)
	}
	if err := errors.Join(err, goOn()); err != nil {
		return err
	}
	_, err = w.awaitLine(ctx, "istio-cni-node", since, "CNI command refused", "foo/brief-", "pod does not exist")
	return err
}

// pins are the uids of the pods that a node has pins of.
func (w *World) pins(ctx context.Context, node string) ([]string, error) {
	out, err := w.Cluster(ctx, "node", strings.TrimPrefix(node, "node"), "--", "ls", "/sys/fs/bpf/undermesh/pods")
	return strings.Fields(out), err
}

// comparePins wants a directory of pins for each enrolled pod of a node, and no other.
func (w *World) comparePins(ctx context.Context, node string) error {
	out, err := w.Kubectl(ctx, "get", "pods", "-A", "--field-selector", "spec.nodeName="+node, "-o", "json")
	if err != nil {
		return err
	}
	var list struct{ Items []Pod }
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return err
	}
	want := map[string]bool{}
	for _, p := range list.Items {
		if p.Metadata.Annotations[api.AnnotationRedirection] == api.RedirectionEnabled {
			want[p.Metadata.UID] = true
		}
	}
	have, err := w.pins(ctx, node)
	if err != nil {
		return err
	}
	for _, uid := range have {
		if !want[uid] {
			return fmt.Errorf("there are pins of %s, which is no enrolled pod", uid)
		}
		delete(want, uid)
	}
	if len(want) > 0 {
		return fmt.Errorf("there are no pins of %v", want)
	}
	return nil
}
