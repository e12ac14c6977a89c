package proxy

import (
	"bufio"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/wrapperspb"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"

	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/ztunnel/http"
)

func withHeaders(t *testing.T, h *meshv1alpha1.ProxyConfig_ProxyHeaders) client.Resource {
	t.Helper()
	return client.Resource{Message: &settings.MeshSettings{TrustDomain: "cluster.local", DefaultConfig: packed(&meshv1alpha1.ProxyConfig{ProxyHeaders: h})}}
}

// TestForwardedClientCert: whatever the mesh says of x-forwarded-client-cert, a workload says nothing there, on its own node (v1) and across
// nodes (v2), and a client that nobody has proved only where the mesh wants it to.
func TestForwardedClientCert(t *testing.T) {
	inTown(t, "http", func(t *testing.T, w *world, c, v1, v2 *testPod) {
		w.apply(byVersion()...)
		for _, how := range []struct {
			mode         meshv1alpha1.ForwardClientCertDetails
			told, nobody bool
		}{
			{meshv1alpha1.ForwardClientCertDetails_UNDEFINED, true, false},
			{meshv1alpha1.ForwardClientCertDetails_SANITIZE, false, false},
			{meshv1alpha1.ForwardClientCertDetails_FORWARD_ONLY, false, false},
			{meshv1alpha1.ForwardClientCertDetails_APPEND_FORWARD, true, false},
			{meshv1alpha1.ForwardClientCertDetails_SANITIZE_SET, true, false},
			{meshv1alpha1.ForwardClientCertDetails_ALWAYS_FORWARD_ONLY, false, true},
		} {
			w.apply(withHeaders(t, &meshv1alpha1.ProxyConfig_ProxyHeaders{ForwardedClientCert: how.mode}))
			for user, name := range map[string]string{"jason": "v2", "bob": "v1"} {
				got := c.ask(t, reviewsVIP, "reviews", "end-user: "+user, forged)
				if !strings.HasPrefix(got, "200 "+name) || strings.Contains(got, "admin") || strings.HasSuffix(got, told) != how.told {
					t.Errorf("%s to %s: %s", how.mode, name, got)
				}
			}
			conn := v2.arrive(v2.in, "10.9.9.9:4444", 80)
			got := askOn(t, conn, bufio.NewReader(conn), "reviews", forged)
			if strings.Contains(got, "admin") != how.nobody || !strings.HasPrefix(got, "200 v2") {
				t.Errorf("%s from outside: %s", how.mode, got)
			}
			_ = conn.Close()
		}
	})
}

// TestHeadersOfTheMesh: every field of proxyHeaders that the engine knows reaches it.
func TestHeadersOfTheMesh(t *testing.T) {
	yes, no := wrapperspb.Bool(true), wrapperspb.Bool(false)
	got := headersOf(&meshv1alpha1.ProxyConfig_ProxyHeaders{
		RequestId:                   &meshv1alpha1.ProxyConfig_ProxyHeaders_RequestId{Disabled: yes},
		EnvoyDebugHeaders:           &meshv1alpha1.ProxyConfig_ProxyHeaders_EnvoyDebugHeaders{Disabled: yes},
		Server:                      &meshv1alpha1.ProxyConfig_ProxyHeaders_Server{Disabled: yes, Value: "me"},
		XForwardedPort:              &meshv1alpha1.ProxyConfig_ProxyHeaders_XForwardedPort{Enabled: yes},
		SetCurrentClientCertDetails: &meshv1alpha1.ProxyConfig_ProxyHeaders_SetCurrentClientCertDetails{Subject: no, Uri: no},
	})
	if want := (http.Headers{NoRequestID: true, NoDebug: true, NoServer: true, Server: "me", ForwardedPort: true, Without: http.CertSubject | http.CertURI}); got != want {
		t.Errorf("%+v", got)
	}
	if got := headersOf(&meshv1alpha1.ProxyConfig_ProxyHeaders{
		SetCurrentClientCertDetails: &meshv1alpha1.ProxyConfig_ProxyHeaders_SetCurrentClientCertDetails{Subject: yes}}); got != (http.Headers{}) {
		t.Errorf("of the defaults: %+v", got)
	}
}
