package proxy

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
)

// limited makes the workload name a scope, by settings of that name.
func limited(t *testing.T, w *workloadapi.Workload, scope string) *workloadapi.Workload {
	t.Helper()
	ref, err := anypb.New(&settings.SettingsRef{Name: "settings of " + scope})
	if err != nil {
		t.Fatal(err)
	}
	w.Extensions = []*workloadapi.Extension{{Name: api.WorkloadSettingsExtension, Config: ref}}
	return w
}

func settingsOf(scope string) client.Resource {
	return client.Resource{Name: "settings of " + scope, Message: &settings.WorkloadSettings{Scope: scope}}
}

// scope is what a Sidecar compiles to; nil hosts are no egress.
func scope(name string, policy *settings.OutboundPolicy, egress ...*settings.Egress) client.Resource {
	return client.Resource{Name: name, Message: &settings.Scope{Egress: egress, OutboundPolicy: policy}}
}

func egress(port uint32, hosts ...string) *settings.Egress {
	return &settings.Egress{Port: port, Hosts: hosts}
}

var registry, anything = settings.OutboundPolicy_REGISTRY_ONLY, settings.OutboundPolicy_ALLOW_ANY

// TestSR16SidecarLimitsWhatIsReached: the scope of the client's own Sidecar decides at each connection which hosts there are,
// by port, and what becomes of the others.
func TestSR16SidecarLimitsWhatIsReached(t *testing.T) {
	external(t, []string{"192.0.2.1:80", "192.0.2.1:81", "192.0.2.2:80", "198.51.100.1:80"}, func(t *testing.T, w *world, a *testPod, _ *fakeNames) {
		w.apply(declared(t, "shop", "x.example", &settings.ServiceSettings{}, []string{"198.51.100.1/32"}, 80, 80, "192.0.2.1")...)
		w.apply(declared(t, "shop", "y.example", &settings.ServiceSettings{}, []string{"198.51.100.2/32"}, 80, 80, "192.0.2.2")...)
		w.apply(client.Resource{Message: &settings.MeshSettings{}})
		want(t, "SR-16 control: without a Sidecar", reaches(t, a, "198.51.100.1:80"), "192.0.2.1:80")
		w.apply(settingsOf("s"), scope("s", nil, egress(0, "shop/*")), client.Resource{Message: limited(t, workload("foo", "sleep", a.ip), "s")})
		want(t, "a namespace that is listed", reaches(t, a, "198.51.100.1:80"), "192.0.2.1:80")
		w.apply(scope("s", nil, egress(0, "./*")))
		want(t, "a host out of scope is passed on with ALLOW_ANY", reaches(t, a, "198.51.100.1:80"), "198.51.100.1:80")
		w.wantLog("dst.addr=198.51.100.1:80", "path=passthrough")
		w.apply(scope("s", &registry, egress(0, "./*")))
		want(t, "and refused by the Sidecar's REGISTRY_ONLY", reaches(t, a, "198.51.100.1:80"), "reset")
		w.wantLog("reason=outbound_blocked")
		w.apply(scope("s", &registry, egress(0, "shop/x.example")))
		want(t, "a host that is listed", reaches(t, a, "198.51.100.1:80"), "192.0.2.1:80")
		want(t, "another one of its namespace", reaches(t, a, "198.51.100.2:80"), "reset")
		w.apply(scope("s", &registry, egress(81, "*/*"), egress(0, "~/*")))
		want(t, "a port that is not listed", reaches(t, a, "198.51.100.1:80"), "reset")
		w.apply(scope("s", &registry, egress(80, "*/*"), egress(0, "~/*")))
		want(t, "a port that is listed", reaches(t, a, "198.51.100.1:80"), "192.0.2.1:80")
		w.apply(scope("s", &registry, egress(0, "*/*", "~shop/x.example")))
		want(t, "a host that is taken out", reaches(t, a, "198.51.100.1:80"), "reset")
		want(t, "one that is not", reaches(t, a, "198.51.100.2:80"), "192.0.2.2:80")
		w.apply(scope("s", &anything), registryOnly())
		want(t, "the Sidecar's ALLOW_ANY before the mesh's", reaches(t, a, "192.0.2.1:81"), "192.0.2.1:81")
		w.apply(scope("s", nil))
		want(t, "the mesh's REGISTRY_ONLY", reaches(t, a, "192.0.2.1:81"), "reset")
	})
}

// TestSidecarAndPodAddresses: a pod's own address is in scope by its service or by its namespace. Out of it the pod is refused
// with REGISTRY_ONLY, and reached with the client's identity otherwise.
func TestSidecarAndPodAddresses(t *testing.T) {
	external(t, nil, func(t *testing.T, w *world, a *testPod, _ *fakeNames) {
		b := w.pod("b", "httpbin", "10.0.1.1")
		defer w.stop(b)
		b.echo()
		a.echo()
		pod := workload("foo", "httpbin", b.ip, "istio-system/"+strict().GetName())
		pod.Services = map[string]*workloadapi.PortList{"foo/httpbin.foo.svc.cluster.local": {Ports: []*workloadapi.Port{{ServicePort: 8000, TargetPort: 80}}}}
		w.apply(client.Resource{Message: pod}, client.Resource{Message: strict()}, client.Resource{Message: &workloadapi.Service{
			Name: "httpbin", Namespace: "foo", Hostname: "httpbin.foo.svc.cluster.local", Ports: []*workloadapi.Port{{ServicePort: 8000}}}})
		w.apply(settingsOf("s"), client.Resource{Message: limited(t, workload("foo", "sleep", a.ip), "s")})
		for _, tt := range []struct {
			row   string
			scope client.Resource
			want  string
		}{
			{"its namespace", scope("s", &registry, egress(0, "foo/*")), "10.0.0.1"},
			{"another namespace", scope("s", &registry, egress(0, "bar/*")), "reset"},
			{"its service", scope("s", &registry, egress(0, "*/httpbin.foo.svc.cluster.local")), "10.0.0.1"},
			{"its service, by the service's port", scope("s", &registry, egress(8000, "*/*"), egress(0, "~/*")), "10.0.0.1"},
			{"its service on another port", scope("s", &registry, egress(8001, "*/*"), egress(0, "~/*")), "reset"},
			{"its service is taken out", scope("s", &registry, egress(0, "*/*", "~/httpbin.foo.svc.cluster.local")), "reset"},
			{"ALLOW_ANY", scope("s", &anything, egress(0, "bar/*")), "10.0.0.1"},
		} {
			w.apply(tt.scope)
			want(t, tt.row, reachesPod(t, a, "10.0.1.1:80"), tt.want)
		}
		w.wantLog("path=tunnel", "dst.hbone_addr=10.0.1.1:80")
		w.apply(scope("s", &registry, egress(0, "~/*")))
		want(t, "the pod itself", reachesPod(t, a, "10.0.0.1:80"), "10.0.0.1")
	})
}

// reachesPod returns the client address that an echoing pod saw.
func reachesPod(t *testing.T, a *testPod, dst string) string {
	t.Helper()
	got, _, _ := strings.Cut(reaches(t, a, dst), "\n")
	return got
}

// TestScopeThatHasNotArrivedIsWaitedFor: what a pod sees is never guessed; nothing else of the pod waits.
func TestScopeThatHasNotArrivedIsWaitedFor(t *testing.T) {
	external(t, []string{"192.0.2.1:80"}, func(t *testing.T, w *world, a *testPod, _ *fakeNames) {
		a.echo()
		w.apply(client.Resource{Message: &settings.MeshSettings{}}, settingsOf("s"), client.Resource{Message: limited(t, workload("foo", "sleep", a.ip), "s")})
		start := time.Now()
		want(t, "it never comes", reaches(t, a, "192.0.2.1:80"), "reset")
		w.wantLog("reason=not_ready")
		if d := time.Since(start); d < 10*time.Second || d > 11*time.Second {
			t.Errorf("refused after %s", d)
		}
		if got, err := say(t, a.arrive(a.in, "198.51.100.9:1234", 80), "in"); err != nil || got != "198.51.100.9\nin" {
			t.Errorf("inbound: %q, %v", got, err)
		}
		c := a.connect("192.0.2.1:80")
		synctest.Wait()
		w.apply(scope("s", nil, egress(0, "./*")))
		if got, err := say(t, c, "x"); err != nil || got != "192.0.2.1:80\n" {
			t.Errorf("once it is there: %q, %v", got, err)
		}
	})
}
