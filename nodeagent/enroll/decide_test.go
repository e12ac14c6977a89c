package enroll

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/undermesh/undermesh/controller/api"
)

// labels parses "k=v,k=v".
func labels(s string) map[string]string {
	out := map[string]string{}
	for _, kv := range strings.Split(s, ",") {
		if k, v, ok := strings.Cut(kv, "="); ok {
			out[k] = v
		}
	}
	return out
}

func TestDecide(t *testing.T) {
	for _, tc := range []struct {
		row, ns, pod string
		byDefault    bool
		want         bool
		warning      string // part of it
	}{
		{row: "SI-01 namespace enabled", ns: "istio-injection=enabled", want: true},
		{row: "SI-01 ambient namespace", ns: "istio.io/dataplane-mode=ambient", want: true},
		{row: "SI-02 namespace disabled", ns: "istio-injection=disabled"},
		{row: "SI-02 label removed", ns: ""},
		{row: "SI-03 pod opts in", pod: "sidecar.istio.io/inject=true", want: true},
		{row: "SI-03 pod opts out", ns: "istio-injection=enabled", pod: "sidecar.istio.io/inject=false"},
		{row: "SI-03 ambient pod opts in", pod: "istio.io/dataplane-mode=ambient", want: true},
		{row: "SI-03 ambient pod opts out", ns: "istio.io/dataplane-mode=ambient", pod: "istio.io/dataplane-mode=none"},
		{row: "SI-04 namespace revision", ns: "istio.io/rev=canary", want: true},
		{row: "SI-04 pod revision", pod: "istio.io/rev=canary", want: true},
		{row: "SI-05 injection beats revision", ns: "istio-injection=disabled,istio.io/rev=canary"},
		{row: "SI-05 injection and revision", ns: "istio-injection=enabled,istio.io/rev=canary", want: true},
		{row: "SI-05 namespace disabled wins over pod", ns: "istio-injection=disabled", pod: "sidecar.istio.io/inject=true"},
		{row: "SI-05 namespace disabled wins over pod revision", ns: "istio-injection=disabled", pod: "istio.io/rev=canary"},
		{row: "SI-05 pod disabled wins over revision", ns: "istio.io/rev=canary", pod: "sidecar.istio.io/inject=false"},
		{row: "SI-05 mode none wins", ns: "istio-injection=enabled,istio.io/dataplane-mode=none"},
		{row: "SI-06 default off"},
		{row: "SI-06 default on", byDefault: true, want: true},
		{row: "SI-06 default on, pod opts out", byDefault: true, pod: "sidecar.istio.io/inject=false"},
		{row: "unknown namespace value", ns: "istio-injection=yes", warning: `namespace foo: label istio-injection has the unknown value "yes"`},
		{row: "unknown pod value", ns: "istio-injection=enabled", pod: "sidecar.istio.io/inject=True", warning: `pod foo/a: label sidecar.istio.io/inject has the unknown value "True"`},
		{row: "unknown mode", byDefault: true, pod: "istio.io/dataplane-mode=sidecar", warning: "istio.io/dataplane-mode"},
		{row: "empty revision", ns: "istio.io/rev=", warning: "istio.io/rev"},
		{row: "unknown revision hidden by injection", ns: "istio-injection=enabled,istio.io/rev=", want: true},
	} {
		t.Run(tc.row, func(t *testing.T) {
			ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "foo", Labels: labels(tc.ns)}}
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: "a", Labels: labels(tc.pod)}}
			d := Decide(ns, pod, Policy{EnrollByDefault: tc.byDefault})
			if d.Enrolled != tc.want || d.Why == "" {
				t.Errorf("got %+v, want enrolled %v", d, tc.want)
			}
			if text := strings.Join(d.Warnings, "\n"); (text != "") != (tc.warning != "") || !strings.Contains(text, tc.warning) {
				t.Errorf("warnings %q, want %q", text, tc.warning)
			}
		})
	}
}

// TestDecideTerminating: a pod stays in the mesh while it ends, since it may be the last one that serves.
func TestDecideTerminating(t *testing.T) {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "foo", Labels: map[string]string{"istio-injection": "enabled"}}}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &metav1.Time{}}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
	if d := Decide(ns, pod, Policy{}); !d.Enrolled {
		t.Errorf("not enrolled: %s", d.Why)
	}
}

func TestDecideNever(t *testing.T) {
	on := map[string]string{"istio-injection": "enabled"}
	for name, tc := range map[string]struct {
		ns  string
		pod corev1.Pod
	}{
		"host network":       {"foo", corev1.Pod{Spec: corev1.PodSpec{HostNetwork: true}}},
		"static":             {"foo", corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{corev1.MirrorPodAnnotationKey: "x"}}}},
		"succeeded":          {"foo", corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodSucceeded}}},
		"failed":             {"foo", corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodFailed}}},
		"excluded (CN-05)":   {"kube-system", corev1.Pod{}},
		"root ns (excluded)": {"istio-system", corev1.Pod{}},
	} {
		p := Policy{ExcludedNamespaces: []string{"istio-system", "kube-system"}, EnrollByDefault: true}
		if d := Decide(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: tc.ns, Labels: on}}, &tc.pod, p); d.Enrolled {
			t.Errorf("%s: enrolled: %s", name, d.Why)
		}
	}
}

func TestExclusions_CN07(t *testing.T) {
	e, errs := ParseExclusions("foo/a", map[string]string{
		api.AnnotationIncludeOutboundIPRanges: "*",
		api.AnnotationExcludeOutboundIPRanges: "10.1.0.0/16, fd00::/8,10.1.0.0/16",
		api.AnnotationExcludeOutboundPorts:    "3306,5432 ,3306",
		api.AnnotationIncludeOutboundPorts:    "80",
		api.AnnotationExcludeInboundPorts:     "9090",
		api.AnnotationIncludeInboundPorts:     "*",
	})
	want := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00::/8")}
	if len(errs) > 0 || !slices.Equal(e.OutboundPrefixes, want) || !slices.Equal(e.ExcludeOutboundPorts, []uint16{3306, 5432}) ||
		!slices.Equal(e.IncludeOutboundPorts, []uint16{80}) || !slices.Equal(e.ExcludeInboundPorts, []uint16{9090}) {
		t.Errorf("%+v %v", e, errs)
	}
}

func TestIncludeOutboundIPRanges(t *testing.T) {
	e, errs := ParseExclusions("foo/a", map[string]string{api.AnnotationIncludeOutboundIPRanges: "10.0.0.0/8,192.168.1.0/24,10.0.0.0/8"})
	want := []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24"), netip.MustParsePrefix("10.0.0.0/8")}
	if len(errs) > 0 || !e.IncludeOnly || !slices.Equal(e.IncludePrefixes, want) || len(e.OutboundPrefixes) > 0 {
		t.Errorf("%+v %v", e, errs)
	}
	if none, _ := ParseExclusions("foo/a", map[string]string{api.AnnotationIncludeOutboundIPRanges: ""}); !none.IncludeOnly || len(none.IncludePrefixes) > 0 {
		t.Errorf("nothing included: %+v", none)
	}
	if all, _ := ParseExclusions("foo/a", map[string]string{api.AnnotationIncludeOutboundIPRanges: "*"}); all.IncludeOnly {
		t.Errorf("all included: %+v", all)
	}
}

// No pod takes more of the node's tables than its part, whatever its annotations say.
func TestExclusionsAreBounded(t *testing.T) {
	list := func(n int, format string) string {
		var all []string
		for i := range n {
			all = append(all, fmt.Sprintf(format, i+1))
		}
		return strings.Join(all, ",")
	}
	e, errs := ParseExclusions("foo/a", map[string]string{
		api.AnnotationIncludeOutboundIPRanges: list(200, "2001:db8::%x/128"), api.AnnotationExcludeOutboundIPRanges: list(57, "10.0.0.%d/32"),
		api.AnnotationIncludeOutboundPorts: list(100, "%d"), api.AnnotationExcludeOutboundPorts: list(29, "2%03d"), api.AnnotationExcludeInboundPorts: list(28, "3%03d"),
	})
	if len(e.IncludePrefixes) != 200 || len(e.OutboundPrefixes) != 0 || len(e.IncludeOutboundPorts) != 100 || len(e.ExcludeOutboundPorts) != 0 || len(e.ExcludeInboundPorts) != 28 {
		t.Errorf("%+v", e)
	}
	if len(errs) != 2 || !strings.Contains(errs[0].Error(), api.AnnotationExcludeOutboundIPRanges) || !strings.Contains(errs[1].Error(), api.AnnotationExcludeOutboundPorts) {
		t.Errorf("%v", errs)
	}
}

func TestBadExclusionsKeepTheTrafficCaptured(t *testing.T) {
	for annotation, values := range map[string][]string{
		api.AnnotationIncludeOutboundIPRanges: {"10.0.0.0", "10.0.0.1/8", "a", "10.0.0.0/8,", "::ffff:10.0.0.0/104"},
		api.AnnotationExcludeOutboundIPRanges: {"10.0.0.0/33", "*"},
		api.AnnotationExcludeOutboundPorts:    {"0", "65536", "http", "80;81", "80,,81", strings.Repeat("1,", 300) + "1"},
		api.AnnotationExcludeInboundPorts:     {"-1"},
		api.AnnotationIncludeInboundPorts:     {"80", ""},
	} {
		for _, v := range values {
			e, errs := ParseExclusions("foo/a", map[string]string{annotation: v})
			if len(errs) != 1 || e.IncludeOnly || len(e.OutboundPrefixes)+len(e.ExcludeOutboundPorts)+len(e.ExcludeInboundPorts) > 0 {
				t.Errorf("%s=%q: %+v %v", annotation, v, e, errs)
				continue
			}
			for _, part := range []string{"foo/a", annotation, "stays captured"} {
				if !strings.Contains(errs[0].Error(), part) {
					t.Errorf("error does not name %s: %v", part, errs[0])
				}
			}
		}
	}
}

func FuzzExclusions(f *testing.F) {
	f.Add("10.0.0.0/8,fd00::/8", "80,443")
	f.Add("*", "")
	f.Fuzz(func(t *testing.T, ranges, list string) {
		e, errs := ParseExclusions("foo/a", map[string]string{api.AnnotationIncludeOutboundIPRanges: ranges, api.AnnotationExcludeInboundPorts: list})
		if len(errs) == 2 && (e.IncludeOnly || len(e.ExcludeInboundPorts) > 0) {
			t.Error("a refused annotation has an effect")
		}
		for _, p := range e.IncludePrefixes {
			if p != p.Masked() {
				t.Errorf("prefix %s is not masked", p)
			}
		}
	})
}

func TestProbes(t *testing.T) {
	get := func(port intstr.IntOrString, path, host string, scheme corev1.URIScheme) corev1.ProbeHandler {
		return corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: port, Path: path, Host: host, Scheme: scheme}}
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: "a"},
		Spec: corev1.PodSpec{
			InitContainers: []corev1.Container{{Name: "init", StartupProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(7000)}}}}},
			Containers: []corev1.Container{{Name: "c",
				Ports:          []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
				LivenessProbe:  &corev1.Probe{ProbeHandler: get(intstr.FromString("http"), "/live?x=1", "", "")},
				ReadinessProbe: &corev1.Probe{ProbeHandler: get(intstr.FromInt32(8080), "ready", "10.0.0.1", corev1.URISchemeHTTP)},
				Lifecycle: &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(8081)}},
					PreStop: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{}}},
			}, {Name: "d",
				LivenessProbe:  &corev1.Probe{ProbeHandler: get(intstr.FromInt32(8443), "/x", "", corev1.URISchemeHTTPS)},
				ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 9000}}},
				StartupProbe:   &corev1.Probe{ProbeHandler: get(intstr.FromString("http"), "/", "", "")}, // a port of another container
			}, {Name: "e",
				LivenessProbe: &corev1.Probe{ProbeHandler: get(intstr.FromInt32(80), "/secret", "10.0.0.9", "")}, // another pod
			}}},
		Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}}}}
	probes, warnings := Probes(pod)
	want := []Probe{{Port: 7000}, {Port: 8080, HTTP: true, Path: "/live?x=1"}, {Port: 8080, HTTP: true, Path: "/ready"},
		{Port: 8081, HTTP: true, Path: "/"}, {Port: 8443, TLS: true}, {Port: 9000, GRPC: true}}
	if !slices.Equal(probes, want) {
		t.Errorf("got %+v\nwant %+v", probes, want)
	}
	if len(warnings) != 2 || !strings.Contains(warnings[0], `container d: startupProbe: port "http"`) || !strings.Contains(warnings[1], `host "10.0.0.9"`) {
		t.Errorf("warnings: %q", warnings)
	}
}

func TestInPod(t *testing.T) {
	const uid = "0a1b-2c"
	for line, want := range map[string]bool{
		"0::/kubepods/burstable/pod0a1b-2c/abc":                                               true,
		"3:cpu,cpuacct:/kubepods/pod0a1b-2c/abc":                                              true,
		"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod0a1b_2c.slice/x": true,
		"0::/kubepods.slice/kubepods-pod0a1b_2c.slice/cri-containerd-x.scope":                 true,
		"0::/kubepods/pod0a1b-2cd/abc":                                                        false,
		"0::/kubepods/burstable/xpod0a1b-2c/abc":                                              false,
		"0::/user.slice/pod0a1b-2c":                                                           false,
		"garbage":                                                                             false,
	} {
		if inPod("1:name=systemd:/\n"+line+"\n", uid) != want {
			t.Errorf("%s: want %v", line, want)
		}
	}
}

func TestListeners(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:280A 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 0 100 0 0 10 0
   1: 0100007F:280A 0100007F:C000 01 00000000:00000000 00:00000000 00000000     0        0 222 1 0 100 0 0 10 0
   2: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 333 1 0 100 0 0 10 0
`
	got := map[string]bool{}
	if err := listeners(strings.NewReader(table), 10250, got); err != nil || len(got) != 1 || !got["socket:[111]"] {
		t.Errorf("%v %v", got, err)
	}
}
