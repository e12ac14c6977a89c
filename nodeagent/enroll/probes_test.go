package enroll

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// TestProbesThatShareAPort: the mesh answers kubelet's connections to a port with an httpGet probe, so what another kind of
// probe says of the same port is not what the application says, and the pod's owner hears it.
func TestProbesThatShareAPort(t *testing.T) {
	get := func(port int32, scheme corev1.URIScheme) *corev1.Probe {
		return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(port), Scheme: scheme}}}
	}
	tcp := func(port int32) *corev1.Probe {
		return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(port)}}}
	}
	grpc := func(port int32) *corev1.Probe {
		return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: port}}}
	}
	for name, c := range map[string]struct {
		live, ready, startup *corev1.Probe
		want                 []string
	}{
		"alone":           {live: tcp(80), ready: get(81, ""), startup: grpc(82)},
		"two of one kind": {live: get(80, ""), ready: get(80, "")},
		"no httpGet":      {live: tcp(80), ready: grpc(80), startup: get(80, corev1.URISchemeHTTPS)},
		"tcpSocket":       {live: tcp(80), ready: get(80, ""), startup: get(81, ""), want: []string{"pod foo/a: port 80 also has an httpGet probe, which the mesh answers for: a tcpSocket probe succeeds"}},
		"all": {live: get(80, corev1.URISchemeHTTPS), ready: get(80, ""), startup: grpc(80),
			want: []string{"port 80 also has an httpGet probe, which the mesh answers for: a grpc probe fails", "an HTTPS probe fails"}},
	} {
		pod := running("a")
		pod.Spec.Containers = []corev1.Container{{Name: "c", LivenessProbe: c.live, ReadinessProbe: c.ready, StartupProbe: c.startup}}
		_, got := Probes(pod)
		if !slices.EqualFunc(got, c.want, strings.Contains) {
			t.Errorf("%s: got %q\nwant %q", name, got, c.want)
		}
	}
}

// TestProbeTargets has the request lines that kubelet 1.36 sends for these paths.
func TestProbeTargets(t *testing.T) {
	for path, want := range map[string]string{
		"":                       "/",
		"/":                      "/",
		"healthz":                "/healthz",
		"/healthz?full=1&x=a%20": "/healthz?full=1&x=a%20",
		"//healthz":              "/",
		"/anything/a b|c":        "/anything/a%20b%7Cc",
		"/anything/ö#x":          "/anything/%C3%B6",
		"/a%2Fb":                 "/a%2Fb",
		"/100%":                  "/100%25",
		"http://other:81/ready?": "/ready?",
	} {
		pod := running("a")
		pod.Spec.Containers = []corev1.Container{{Name: "c", LivenessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{
			HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(80), Path: path}}}}}
		got, warnings := Probes(pod)
		if len(got) != 1 || got[0] != (Probe{Port: 80, HTTP: true, Path: want}) || len(warnings) > 0 {
			t.Errorf("%q: %+v %q, want %q", path, got, warnings, want)
		}
	}
	for path, want := range map[string]string{"mailto:x": "can make no request of it", "/healthz?x=a b": "write %20"} {
		pod := running("a")
		pod.Spec.Containers = []corev1.Container{{Name: "c", LivenessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{
			HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(80), Path: path}}}}}
		if got, warnings := Probes(pod); len(got) > 0 || len(warnings) != 1 || !strings.Contains(warnings[0], want) {
			t.Errorf("%q: %+v %q, want %q", path, got, warnings, want)
		}
	}
}
