package rows

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/undermesh/undermesh/test/e2e"
)

// protocols is a service whose ports declare HTTP by name, TCP by name, and HTTP by appProtocol, in capitals; 8083 declares nothing. A
// rule for HTTP marks the answers that it is for.
const protocols = `apiVersion: v1
kind: Service
metadata: {name: protocols, namespace: tutorial}
spec:
  selector: {app: echo}
  ports:
  - {name: http-web, port: 8080, targetPort: 8080}
  - {name: tcp-web, port: 8081, targetPort: 8080}
  - {name: app, port: 8082, targetPort: 8080, appProtocol: HTTP}
  - {name: web, port: 8083, targetPort: 8080}
---
`

// ProtocolRows: what a port declares decides whether rules for HTTP count there; what declares nothing is listened to.
func ProtocolRows(t *testing.T, w World) {
	ctx := within(t)
	marks := protocols + rule("protocols", "protocols", "  - route: [{destination: {host: protocols}}]\n    headers: {response: {set: {x-rule: seen}}}\n")
	at := func(port, mark string) expect {
		return expect{e2e.Question{URL: "http://protocols.tutorial:" + port + "/", N: 3}, both(status(200, ""), header("x-rule", mark))}
	}
	observeAll(t, w, []row{{ids: "SR-12", title: "each port is taken as declared", resource: marks,
		look:    asks(at("8080", "seen"), at("8081", ""), at("8082", "seen"), at("8083", "seen")),
		changed: strings.NewReplacer("http-web", "tcp-other", "tcp-web", "http-other").Replace(marks)}})
	says := func(text string) (bool, error) {
		path := filepath.Join(t.TempDir(), "service.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return false, err
		}
		said, err := w.Undermesh(ctx, "validate", "-f", path)
		return strings.Contains(said, "Port name web (port: 8083"), err
	}
	t.Run("SR-12 a name that declares nothing is flagged", func(t *testing.T) {
		if flagged, err := says(protocols); err != nil || !flagged {
			t.Errorf("flagged: %t, %v", flagged, err)
		}
	})
	t.Run("SR-12 control: with a name that declares a protocol", func(t *testing.T) {
		if flagged, err := says(strings.Replace(protocols, "name: web", "name: http2-web", 1)); err != nil || flagged {
			t.Errorf("flagged: %t, %v", flagged, err)
		}
	})
}
