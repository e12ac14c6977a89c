package proxy

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"

	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
)

// fakeNames is a cluster's DNS.
type fakeNames struct {
	mu  sync.Mutex
	now map[string][]netip.Addr
}

func (f *fakeNames) set(host string, ips ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now[host] = nil
	for _, ip := range ips {
		f.now[host] = append(f.now[host], netip.MustParseAddr(ip))
	}
}

func (f *fakeNames) Lookup(_ context.Context, name string) ([]netip.Addr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.now[name]) == 0 {
		return nil, errors.New("no such host " + name)
	}
	return f.now[name], nil
}

func (f *fakeNames) Names(addr netip.Addr) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for host, ips := range f.now {
		if slices.Contains(ips, addr) {
			out = append(out, host)
		}
	}
	slices.Sort(out)
	return out
}

// declared is what a ServiceEntry compiles to: the service, and a workload behind it unless it has none.
func declared(t *testing.T, ns, host string, set *settings.ServiceSettings, prefixes []string, port, target uint32, endpoint string) []client.Resource {
	t.Helper()
	set.Declared = true
	config, err := anypb.New(set)
	if err != nil {
		t.Fatal(err)
	}
	ports := []*workloadapi.Port{{ServicePort: port, TargetPort: target}}
	svc := &workloadapi.Service{Name: host, Namespace: ns, Hostname: host, Ports: ports,
		Extensions: []*workloadapi.Extension{{Name: api.ServiceSettingsExtension, Config: config}}}
	for _, text := range prefixes {
		p := netip.MustParsePrefix(text)
		a := &workloadapi.NetworkAddress{Address: p.Addr().AsSlice()}
		if !p.IsSingleIP() {
			a.Length = wrapperspb.UInt32(uint32(p.Bits()))
		}
		svc.Addresses = append(svc.Addresses, a)
	}
	out := []client.Resource{{Message: svc}}
	if endpoint == "" {
		return out
	}
	w := &workloadapi.Workload{Uid: "Kubernetes/networking.istio.io/ServiceEntry/" + ns + "/" + host + "/" + endpoint, Name: host, Namespace: ns,
		NetworkMode: workloadapi.NetworkMode_HOST_NETWORK, Services: map[string]*workloadapi.PortList{ns + "/" + host: {Ports: ports}}}
	if ip, err := netip.ParseAddr(endpoint); err == nil {
		w.Addresses = [][]byte{ip.AsSlice()}
	} else {
		w.Hostname = endpoint
	}
	return append(out, client.Resource{Message: w})
}

// outside is a server that is in no registry: it says where it listens.
func (w *world) outside(addr string) (stop func()) {
	l := w.net.listen(netip.MustParseAddrPort(addr))
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.WriteString(c, addr+"\n")
				_, _ = io.Copy(io.Discard, c)
			}()
		}
	}()
	return func() { _ = l.Close() }
}

// registryOnly is the mesh's outbound policy in these tests: what is in no registry is refused.
func registryOnly() client.Resource {
	return client.Resource{Message: &settings.MeshSettings{OutboundPolicy: settings.OutboundPolicy_REGISTRY_ONLY}}
}

func dns() *settings.ServiceSettings {
	return &settings.ServiceSettings{External: true, Resolution: settings.ServiceSettings_RESOLUTION_DNS}
}

func passing() *settings.ServiceSettings {
	return &settings.ServiceSettings{External: true, Resolution: settings.ServiceSettings_RESOLUTION_ORIGINAL}
}

// external runs f with the client pod foo/sleep on node a, servers outside and a DNS of its own.
func external(t *testing.T, servers []string, f func(t *testing.T, w *world, a *testPod, names *fakeNames)) {
	t.Helper()
	names := &fakeNames{now: map[string][]netip.Addr{}}
	inWorld(t, func(c *Config) { c.Names = names }, func(t *testing.T, w *world) {
		a := w.pod("a", "sleep", "10.0.0.1")
		defer w.stop(a)
		for _, s := range servers {
			defer w.outside(s)()
		}
		w.apply(registryOnly(), client.Resource{Message: workload("foo", "sleep", a.ip)})
		f(t, w, a, names)
	})
}

// reaches returns the address of the server that answers the pod's connection to dst, or why there is none.
func reaches(t *testing.T, a *testPod, dst string) string {
	t.Helper()
	c := a.connect(dst)
	defer c.Close()
	got, err := say(t, c, "x")
	if errors.Is(err, syscall.ECONNRESET) {
		return "reset"
	}
	if err != nil {
		return err.Error()
	}
	return got[:max(0, len(got)-1)]
}

func want(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

// SR-05: the host's own address counts, whatever address the client dialled; access works with REGISTRY_ONLY.
func TestSR05DeclaredHostIsResolvedHere(t *testing.T) {
	external(t, []string{"192.0.2.1:80", "192.0.2.2:80", "203.0.113.66:80"}, func(t *testing.T, w *world, a *testPod, names *fakeNames) {
		names.set("httpbin.org", "192.0.2.1")
		want(t, "control: not declared", reaches(t, a, "192.0.2.1:80"), "reset")
		w.wantLog("reason=outbound_blocked")
		w.apply(declared(t, "foo", "httpbin.org", dns(), []string{"240.240.0.1/32"}, 80, 80, "httpbin.org")...)
		want(t, "by the assigned address", reaches(t, a, "240.240.0.1:80"), "192.0.2.1:80")
		want(t, "by an address of the host", reaches(t, a, "192.0.2.1:80"), "192.0.2.1:80")
		want(t, "by another address", reaches(t, a, "203.0.113.66:80"), "reset")
		want(t, "by a port that is not declared", reaches(t, a, "192.0.2.1:81"), "reset")
		names.set("httpbin.org", "192.0.2.2")
		want(t, "after the host moved", reaches(t, a, "240.240.0.1:80"), "192.0.2.2:80")
		want(t, "by the address that it had", reaches(t, a, "192.0.2.1:80"), "reset")
		names.set("httpbin.org")
		want(t, "the host has no address", reaches(t, a, "240.240.0.1:80"), "reset")
		w.wantLog("dst.service=httpbin.org", "no such host")
	})
}

// SR-10: a client's port 80 is dialled on 8443; another namespace's entry does not change ports of addresses that it only
// resolves to.
func TestSR10TargetPort(t *testing.T) {
	external(t, []string{"192.0.2.1:8443", "192.0.2.1:80"}, func(t *testing.T, w *world, a *testPod, names *fakeNames) {
		names.set("cnn.example", "192.0.2.1")
		w.apply(declared(t, "bar", "cnn.example", dns(), []string{"240.240.0.1/32"}, 80, 8443, "cnn.example")...)
		want(t, "by the assigned address", reaches(t, a, "240.240.0.1:80"), "192.0.2.1:8443")
		want(t, "by the host's address, declared elsewhere", reaches(t, a, "192.0.2.1:80"), "reset")
		w.apply(declared(t, "foo", "cnn.example", dns(), nil, 80, 8443, "cnn.example")...)
		want(t, "by the host's address", reaches(t, a, "192.0.2.1:80"), "192.0.2.1:8443")
	})
}

// SR-06 and SR-08: resolution NONE goes where the client dialled, to the addresses and ports that are declared.
func TestSR06OriginalDestination(t *testing.T) {
	external(t, []string{"192.0.2.1:3128", "198.51.100.7:3128"}, func(t *testing.T, w *world, a *testPod, _ *fakeNames) {
		want(t, "control: not declared", reaches(t, a, "192.0.2.1:3128"), "reset")
		w.apply(declared(t, "foo", "my-company-proxy.com", passing(), []string{"192.0.2.1/32", "198.51.100.0/24"}, 3128, 3128, "")...)
		want(t, "SR-08 by address", reaches(t, a, "192.0.2.1:3128"), "192.0.2.1:3128")
		w.wantLog("dst.service=my-company-proxy.com", "dst.addr=192.0.2.1:3128", "path=passthrough")
		want(t, "by network", reaches(t, a, "198.51.100.7:3128"), "198.51.100.7:3128")
		want(t, "another port", reaches(t, a, "192.0.2.1:22"), "reset")
		want(t, "another address", reaches(t, a, "198.51.101.7:3128"), "reset")
	})
}

// SR-07: STATIC goes to the listed addresses, one of the client's own among them, but never to the mesh's listeners there.
func TestSR07StaticEndpoints(t *testing.T) {
	external(t, []string{"192.0.2.1:9191", "127.0.0.1:9191"}, func(t *testing.T, w *world, a *testPod, _ *fakeNames) {
		static := func() *settings.ServiceSettings { return &settings.ServiceSettings{External: true} }
		w.apply(declared(t, "foo", "authz.local", static(), []string{"240.240.0.1/32"}, 9191, 9191, "192.0.2.1")...)
		want(t, "an address", reaches(t, a, "240.240.0.1:9191"), "192.0.2.1:9191")
		w.apply(declared(t, "foo", "local.local", static(), []string{"240.240.0.2/32"}, 9191, 9191, "127.0.0.1")...)
		want(t, "the client's own", reaches(t, a, "240.240.0.2:9191"), "127.0.0.1:9191")
		w.apply(declared(t, "foo", "evil.local", static(), []string{"240.240.0.3/32"}, 80, 15006, "127.0.0.1")...)
		want(t, "a listener of the mesh", reaches(t, a, "240.240.0.3:80"), "reset")
		w.wantLog("reason=mesh_port")
	})
}

// TestDeclaredAddressTakesNoPod: whatever is declared, a pod's connections go to the pod, by its own policies.
func TestDeclaredAddressTakesNoPod(t *testing.T) {
	external(t, []string{"203.0.113.66:80"}, func(t *testing.T, w *world, a *testPod, _ *fakeNames) {
		b := w.pod("b", "httpbin", "10.0.1.1")
		defer w.stop(b)
		b.echo()
		w.apply(client.Resource{Message: workload("foo", "httpbin", b.ip, "istio-system/"+strict().GetName())}, client.Resource{Message: strict()})
		for name, set := range map[string]*settings.ServiceSettings{"redirecting": {External: true}, "passing": passing()} {
			endpoint := ""
			if name == "redirecting" {
				endpoint = "203.0.113.66"
			}
			w.apply(declared(t, "evil", name+".example", set, []string{"10.0.1.1/32", "10.0.0.0/8"}, 80, 80, endpoint)...)
			got, err := say(t, a.connect("10.0.1.1:80"), "hi")
			if err != nil || got != "10.0.0.1\nhi" {
				t.Errorf("%s: got %q, %v", name, got, err)
			}
			w.wantLog("path=tunnel", "dst.hbone_addr=10.0.1.1:80")
		}
	})
}

// TestNameOfTheMeshLeadsThere: a host that resolves to a service or a pod of the mesh is that, with its identity.
func TestNameOfTheMeshLeadsThere(t *testing.T) {
	external(t, nil, func(t *testing.T, w *world, a *testPod, names *fakeNames) {
		b := w.pod("b", "httpbin", "10.0.1.1")
		defer w.stop(b)
		b.echo()
		pod := workload("foo", "httpbin", b.ip, "istio-system/"+strict().GetName())
		pod.Services = map[string]*workloadapi.PortList{"foo/httpbin.foo.svc.cluster.local": {Ports: []*workloadapi.Port{{ServicePort: 8000, TargetPort: 80}}}}
		w.apply(client.Resource{Message: pod}, client.Resource{Message: strict()}, client.Resource{Message: &workloadapi.Service{
			Name: "httpbin", Namespace: "foo", Hostname: "httpbin.foo.svc.cluster.local", Ports: []*workloadapi.Port{{ServicePort: 8000, TargetPort: 80}},
			Addresses: []*workloadapi.NetworkAddress{{Address: []byte{10, 96, 0, 1}}}}})
		w.apply(declared(t, "foo", "alias.example", dns(), []string{"240.240.0.1/32"}, 8000, 8000, "alias.example")...)
		names.set("alias.example", "10.96.0.1")
		if got, err := say(t, a.connect("240.240.0.1:8000"), "hi"); err != nil || got != "10.0.0.1\nhi" {
			t.Errorf("by the service: got %q, %v", got, err)
		}
		w.wantLog("path=tunnel", "dst.service=httpbin.foo.svc.cluster.local")
		w.apply(declared(t, "foo", "pod.example", dns(), []string{"240.240.0.2/32"}, 80, 80, "pod.example")...)
		names.set("pod.example", "10.0.1.1")
		if got, err := say(t, a.connect("240.240.0.2:80"), "hi"); err != nil || got != "10.0.0.1\nhi" {
			t.Errorf("by the pod: got %q, %v", got, err)
		}
		w.wantLog("path=tunnel", "dst.service=pod.example")
	})
}

// TestPrivateEntries: what is not exported to a namespace counts for nothing there, and of two one's own counts.
func TestPrivateEntries(t *testing.T) {
	external(t, []string{"192.0.2.1:80", "192.0.2.2:80"}, func(t *testing.T, w *world, a *testPod, _ *fakeNames) {
		private := &settings.ServiceSettings{ExportTo: []string{"bar"}}
		w.apply(declared(t, "bar", "x.example", private, []string{"198.51.100.1/32"}, 80, 80, "192.0.2.1")...)
		want(t, "another's private one", reaches(t, a, "198.51.100.1:80"), "reset")
		own := &settings.ServiceSettings{ExportTo: []string{"foo"}}
		w.apply(declared(t, "foo", "x.example", own, []string{"198.51.100.1/32"}, 80, 80, "192.0.2.2")...)
		want(t, "one's own", reaches(t, a, "198.51.100.1:80"), "192.0.2.2:80")
	})
}

// TestStrangersTakeNothing: what another namespace declares later, or is not the client's, changes nothing of where the client gets
// to: a more specific address, or a workload with a tunnel at an address outside.
func TestStrangersTakeNothing(t *testing.T) {
	const inside, outside = "203.0.113.7:80", "198.51.100.9:80"
	external(t, []string{"203.0.113.66:80", "198.51.100.1:80", outside}, func(t *testing.T, w *world, a *testPod, _ *fakeNames) {
		static := func() *settings.ServiceSettings { return &settings.ServiceSettings{External: true} }
		w.apply(client.Resource{Message: &settings.MeshSettings{}})
		w.apply(declared(t, "foo", "db.foo.example", static(), []string{"203.0.113.0/24"}, 80, 80, "198.51.100.1")...)
		own, there := reaches(t, a, inside), reaches(t, a, outside)
		w.apply(declared(t, "evil", "x.evil", static(), []string{"203.0.113.7/32"}, 80, 80, "203.0.113.66")...)
		want(t, "a stranger's more specific address", reaches(t, a, inside), own)
		machine := func(namespace string) client.Resource {
			return client.Resource{Message: &workloadapi.Workload{Uid: "Kubernetes/networking.istio.io/WorkloadEntry/" + namespace + "/x", Name: "x",
				Namespace: namespace, Addresses: [][]byte{{198, 51, 100, 9}}, TunnelProtocol: workloadapi.TunnelProtocol_HBONE}}
		}
		w.apply(machine("evil"))
		want(t, "a stranger's WorkloadEntry", reaches(t, a, outside), there)
		w.apply(machine("foo"))
		if got := reaches(t, a, outside); got == there {
			t.Errorf("control: the WorkloadEntry of the client's own namespace changed nothing: %s", got)
		}
	})
}
