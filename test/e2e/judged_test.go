package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/undermesh/undermesh/controller/api"
)

const onlyBarSleep = `apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata: {name: only-bar-sleep, namespace: foo}
spec:
  selector: {matchLabels: {app: httpbin}}
  action: ALLOW
  rules:
  - from: [{source: {principals: ["cluster.local/ns/bar/sa/sleep"]}}]
`

// TestJudgedByCertificate asks from a pod that the mesh knows by name and address and does not capture: what it is judged by
// is the certificate that it shows, and in clear it is nobody.
func TestJudgedByCertificate(t *testing.T) {
	ctx, w := meshed(t)
	root, err := w.meshRoot(ctx)
	check(t, err)
	server, err := w.OnePod(ctx, "foo", "httpbin")
	check(t, err)
	known, err := w.OnePod(ctx, "bar", "sleep")
	check(t, err)
	label := func(ctx context.Context, value, want string) {
		_, err := w.Kubectl(ctx, "label", "pod", "-n", "bar", known.Metadata.Name, "--overwrite", api.LabelPodInject+value)
		check(t, err)
		check(t, Until(ctx, 30*time.Second, "annotation "+want, func(ctx context.Context) error {
			p, err := w.OnePod(ctx, "bar", "sleep")
			if err == nil && p.Metadata.Annotations[api.AnnotationRedirection] != want {
				err = errors.New("it is another")
			}
			return err
		}))
	}
	t.Cleanup(func() { label(context.Background(), "-", api.RedirectionEnabled) })
	label(ctx, "=false", "")
	all := func(t *testing.T, others, plaintext string) {
		since := time.Now().UTC().Truncate(time.Second).Format(time.RFC3339)
		for _, tc := range []struct{ title, from, identity, want string }{
			{"its own address and certificate", "bar", "spiffe://cluster.local/ns/bar/sa/sleep", "200"},
			{"the right address, another's certificate", "bar", "spiffe://cluster.local/ns/bar/sa/mallory", others},
			{"another's address, the right certificate", "legacy", "spiffe://cluster.local/ns/bar/sa/sleep", "200"},
			{"another's address and certificate", "legacy", "spiffe://cluster.local/ns/legacy/sa/sleep", others},
		} {
			cert, err := root.issue(tc.identity, time.Now().Add(time.Hour))
			check(t, err)
			got, err := w.connectFrom(ctx, tc.from, server.Status.PodIP, cert)
			check(t, err)
			if got != tc.want {
				t.Errorf("%s: status %s, want %s", tc.title, got, tc.want)
			}
			w.Say("  %s: %s", tc.title, got)
			check(t, w.ExpectLog(ctx, since, `"dst.hbone_addr":"`+server.Status.PodIP+`:80"`, `"src.identity":"`+tc.identity+`"`))
		}
		r, err := w.Exec(ctx, "bar", "sleep", "curl -s -o /dev/null -m 10 -w '%{http_code}' http://httpbin.foo:8000/ip; echo ' '$?")
		check(t, err)
		if got := strings.TrimSpace(r.Out); got != plaintext {
			t.Errorf("in clear from a known address: %s, want %s", got, plaintext)
		}
	}
	check(t, w.Apply(ctx, onlyBarSleep))
	t.Cleanup(func() { check(t, w.Delete(context.Background(), onlyBarSleep)) })
	check(t, w.ExpectPairs(ctx, 30*time.Second, "foo→foo=403 0", "legacy→foo=403 0", "bar→foo=403 0"))
	t.Run("AZ-12 judged by certificate", func(t *testing.T) { all(t, "401", "403 0") })
	check(t, w.Delete(ctx, onlyBarSleep))
	check(t, w.ExpectPairs(ctx, 30*time.Second))
	t.Run("AZ-12 control: without the policy all are let in", func(t *testing.T) { all(t, "200", "200 0") })
}

// connectFrom opens a tunnel to a pod by Debian's openssl in a namespace's sleep and frames made here, asks for port 80 of the
// same address, and returns the status.
func (w *World) connectFrom(ctx context.Context, from, podIP string, cert []byte) (string, error) {
	var in bytes.Buffer
	in.WriteString(http2.ClientPreface)
	f := http2.NewFramer(&in, nil)
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	err := errors.Join(f.WriteSettings(),
		enc.WriteField(hpack.HeaderField{Name: ":method", Value: "CONNECT"}),
		enc.WriteField(hpack.HeaderField{Name: ":authority", Value: podIP + ":80"}))
	err = errors.Join(err, f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true}))
	if err != nil {
		return "", err
	}
	if _, err := w.ExecIn(ctx, cert, from, "sleep", "cat > /tmp/client.pem"); err != nil {
		return "", err
	}
	r, err := w.ExecIn(ctx, in.Bytes(), from, "sleep", "(cat; sleep 1) | timeout 3 openssl s_client -quiet -connect "+podIP+":15008 -alpn h2 -tls1_3 -cert /tmp/client.pem -key /tmp/client.pem 2>/dev/null | base64 -w 0")
	if err != nil {
		return "", err
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(r.Out))
	if err != nil {
		return "", err
	}
	frames := http2.NewFramer(nil, bytes.NewReader(raw))
	frames.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		frame, err := frames.ReadFrame()
		if err != nil {
			return "", fmt.Errorf("tunnel of %s from %s: no answer to CONNECT in %d bytes: %w", podIP, from, len(raw), err)
		}
		if h, ok := frame.(*http2.MetaHeadersFrame); ok && h.StreamID == 1 {
			return h.PseudoValue("status"), nil
		}
	}
}
