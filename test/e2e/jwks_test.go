package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/jwks"
)

// issuerKeys is a set of one key of P-256, with what an issuer publishes besides.
const issuerKeys = `{"keys":[{"kty":"EC","kid":"a","use":"sig","x5t":"xyz","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}`

// issuer serves these keys inside the cluster, to everybody who connects.
var issuer = fmt.Sprintf(`apiVersion: v1
kind: Namespace
metadata: {name: issuer}
---
apiVersion: v1
kind: Service
metadata: {name: issuer, namespace: issuer}
spec: {selector: {app: issuer}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: answer, namespace: issuer}
data: {answer: %q}
---
apiVersion: v1
kind: Pod
metadata: {name: issuer, namespace: issuer, labels: {app: issuer}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: issuer, image: curlimages/curl, imagePullPolicy: IfNotPresent, command: [sh, -c, "while :; do nc -N -l 8080 < /answer/answer > /dev/null; done"], volumeMounts: [{name: answer, mountPath: /answer}]}
  volumes: [{name: answer, configMap: {name: answer}}]
`, fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(issuerKeys), issuerKeys))

// request is a RequestAuthentication for workloads that do not exist.
func request(name, uri string) string {
	return `---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: ` + name + `, namespace: issuer}
spec: {selector: {matchLabels: {app: nobody}}, jwtRules: [{issuer: "testing@secure.istio.io", jwksUri: "` + uri + `"}]}
`
}

// keyRecords are the stored keys by source.
func (w *World) keyRecords(ctx context.Context) (map[string]jwks.Record, error) {
	out, err := w.Kubectl(ctx, "get", "configmap", "-n", api.DefaultRootNamespace, jwks.ConfigMap, "--ignore-not-found", "-o", "json")
	if err != nil || out == "" {
		return nil, err
	}
	var cm struct{ Data map[string]string }
	if err := json.Unmarshal([]byte(out), &cm); err != nil {
		return nil, err
	}
	all := map[string]jwks.Record{}
	for key, value := range cm.Data {
		r, err := jwks.Decode(key, value)
		if err != nil {
			return nil, err
		}
		all[r.Source] = r
	}
	return all, nil
}

// awaitKeyStatus waits until the status of a RequestAuthentication says the text, or for "" until it says nothing of keys.
func (w *World) awaitKeyStatus(ctx context.Context, name, text string) error {
	return Until(ctx, 30*time.Second, "status of "+name+" with "+text, func(ctx context.Context) error {
		out, err := w.Kubectl(ctx, "get", "requestauthentications.security.istio.io", "-n", "issuer", name, "-o", `jsonpath={.status.conditions[*].message}`)
		switch {
		case err != nil:
			return err
		case out == "", text == "" && strings.Contains(out, "the keys of"), !strings.Contains(out, text):
			return fmt.Errorf("it is %q", out)
		}
		w.Say("  %s: %s", name, out)
		return nil
	})
}

// TestJW09Keys: the control plane fetches the keys of an issuer inside the cluster, stores what is public of them, and reaches
// nothing that it must not reach.
func TestJW09Keys(t *testing.T) {
	ctx, w := meshed(t)
	const inside = "http://issuer.issuer:8080/keys"
	t.Cleanup(func() {
		_, err := w.Kubectl(context.Background(), "delete", "namespace", "issuer", "--ignore-not-found", "--wait")
		check(t, err)
	})
	check(t, w.Apply(ctx, issuer))
	check(t, w.AwaitReady(ctx, "issuer"))
	t.Run("JW-09 keys are fetched and stored", func(t *testing.T) {
		check(t, w.Apply(ctx, request("inside", inside)))
		check(t, Until(ctx, 30*time.Second, "the keys", func(ctx context.Context) error {
			all, err := w.keyRecords(ctx)
			if r := all[inside]; err == nil && (!strings.Contains(r.Keys, `"kid":"a"`) || strings.Contains(r.Keys, "x5t") || r.Fetched.IsZero()) {
				err = fmt.Errorf("stored is %+v", all)
			}
			return err
		}))
		check(t, w.awaitKeyStatus(ctx, "inside", ""))
	})
	for name, c := range map[string]struct{ uri, says string }{
		"metadata": {"http://169.254.169.254/latest/meta-data", "169.254.169.254 belongs to the host, the link or the cloud"},
		"loopback": {"http://localhost:8080/ready", "is an address of the control plane's own host"},
		"closed":   {"http://issuer.issuer:8081/keys", "cannot be had: "},
	} {
		t.Run("JW-09 "+name+" is named in the status", func(t *testing.T) {
			check(t, w.Apply(ctx, request(name, c.uri)))
			check(t, w.awaitKeyStatus(ctx, name, c.says))
		})
	}
	t.Run("JW-09 control: without the resource", func(t *testing.T) {
		check(t, w.Delete(ctx, request("inside", inside)))
		check(t, Until(ctx, 30*time.Second, "no keys", func(ctx context.Context) error {
			all, err := w.keyRecords(ctx)
			if _, still := all[inside]; err == nil && still {
				err = errors.New("they are still there")
			}
			return err
		}))
	})
}
