package status

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	fakedynamic "k8s.io/client-go/dynamic/fake"

	"github.com/undermesh/undermesh/controller/configdir"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/validate"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// apiServer keeps what was written and shows it to every allocator a moment later.
type apiServer struct {
	mu      sync.Mutex
	entries map[model.Name]model.EntryAddresses
	fail    int
	writes  int
	show    []*Allocator
}

func (s *apiServer) WriteAddresses(_ context.Context, a Assignment) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail > 0 {
		s.fail--
		return errors.New("not now")
	}
	s.writes++
	e, ok := s.entries[a.Name]
	if !ok || a.Gone {
		return nil
	}
	hosts := map[string][]netip.Addr{}
	for h := range e.Hosts {
		hosts[h] = nil
	}
	for _, h := range a.Addresses {
		hosts[h.Host] = append(hosts[h.Host], h.IP)
	}
	e.Hosts, e.Clean = hosts, true
	s.putLocked(e)
	return nil
}

func (s *apiServer) putLocked(e model.EntryAddresses) {
	s.entries[e.Name] = e
	for _, a := range s.show {
		time.AfterFunc(50*time.Millisecond, func() { a.Update([]model.EntryAddresses{e}) })
	}
}

func (s *apiServer) put(name string, since int64, hosts ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := model.EntryAddresses{Name: model.Name{Namespace: "a", Name: name}, UID: name, Since: since, Hosts: map[string][]netip.Addr{}, Clean: true}
	for _, h := range hosts {
		e.Hosts[h] = nil
	}
	s.putLocked(e)
}

func (s *apiServer) remove(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := model.Name{Namespace: "a", Name: name}
	delete(s.entries, n)
	for _, a := range s.show {
		a.Update([]model.EntryAddresses{{Name: n, Gone: true}})
	}
}

// lead runs an allocator that sees everything, until the function returned is called.
func (s *apiServer) lead(t *testing.T) (stop func()) {
	a := NewAllocator(AllocatorConfig{Writer: s, Pools: validate.Pools(), Clock: clock.System()})
	s.mu.Lock()
	for _, e := range s.entries {
		a.Update([]model.EntryAddresses{e})
	}
	s.show = append(s.show, a)
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// all returns host → addresses and fails when two hosts share one, or one has not one address of each pool.
func (s *apiServer) all(t *testing.T) map[string]string {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	out, owner := map[string]string{}, map[netip.Addr]string{}
	for _, e := range s.entries {
		for h, ips := range e.Hosts {
			if len(ips) != 2 || !ips[0].Is4() || ips[1].Is4() {
				t.Errorf("%s of %s has %v", h, e.Name, ips)
			}
			for _, ip := range ips {
				if other := owner[ip]; other != "" {
					t.Errorf("%s is of %s and of %s", ip, h, other)
				}
				owner[ip] = h
				if !validate.Pools()[0].Contains(ip) && !validate.Pools()[1].Contains(ip) {
					t.Errorf("%s is of no pool", ip)
				}
			}
			out[h] = fmt.Sprint(ips)
		}
	}
	return out
}

func settled() {
	time.Sleep(time.Minute) // of the bubble
	synctest.Wait()
}

// TestAddressesAreStable: no two hosts share an address; a leader that restarts, or another one, changes nothing; an address
// goes with its entry.
func TestAddressesAreStable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &apiServer{entries: map[model.Name]model.EntryAddresses{}, fail: 3}
		stop := s.lead(t)
		for i := range 1500 {
			s.put(fmt.Sprintf("e%d", i), int64(i), fmt.Sprintf("h%d.example", i), fmt.Sprintf("g%d.example", i))
		}
		settled()
		before := s.all(t)
		writes := s.writes
		if len(before) != 3000 || writes != 1500 {
			t.Fatalf("%d hosts, %d writes", len(before), writes)
		}
		stop()
		stop = s.lead(t)
		settled()
		if s.writes != writes {
			t.Errorf("another leader wrote %d times", s.writes-writes)
		}
		s.remove("e7")
		s.put("e7", 9999, "h7.example", "g7.example")
		settled()
		after := s.all(t)
		for h, ips := range before {
			if after[h] != ips {
				t.Errorf("%s was %s and is %s", h, ips, after[h])
			}
		}
		stop()
	})
}

// TestTwoLeadersAgree: for the moment in which two replicas take themselves for the leader.
func TestTwoLeadersAgree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &apiServer{entries: map[model.Name]model.EntryAddresses{}}
		for _, stop := range []func(){s.lead(t), s.lead(t)} {
			defer stop()
		}
		for i := range 200 {
			s.put(fmt.Sprintf("e%d", i), 0, fmt.Sprintf("h%d.example", i))
		}
		settled()
		s.all(t)
		if s.writes > 400 {
			t.Errorf("%d writes", s.writes)
		}
	})
}

func TestPoolRunsOut(t *testing.T) {
	pool, used := netip.MustParsePrefix("192.0.2.0/30"), map[netip.Addr]bool{}
	for range 2 {
		ip := pickFree(pool, "x", used)
		if !pool.Contains(ip) || used[ip] || ip == netip.MustParseAddr("192.0.2.0") || ip == netip.MustParseAddr("192.0.2.3") {
			t.Errorf("got %s", ip)
		}
		used[ip] = true
	}
	if ip := pickFree(pool, "x", used); ip.IsValid() {
		t.Errorf("got %s of a pool without any left", ip)
	}
}

var someAddresses = Assignment{Name: model.Name{Namespace: "foo", Name: "e"}, UID: "u", Addresses: []HostAddress{
	{"h.example", netip.MustParseAddr("240.240.0.7")}, {"h.example", netip.MustParseAddr("2001:2::7")}}}

func TestKubernetesStoresAddresses(t *testing.T) {
	gvr := schema.GroupVersionResource{Group: model.GroupNetworking, Version: "v1", Resource: "serviceentries"}
	obj := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
		"metadata": map[string]any{"name": "e", "namespace": "foo", "uid": "u"},
		"status":   map[string]any{"conditions": []any{map[string]any{"type": "Other", "status": "True"}}}}}
	client := fakedynamic.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(),
		map[schema.GroupVersionResource]string{gvr: "ServiceEntryList"}, obj)
	w := Kubernetes{Client: client, Clock: clock.System()}
	if err := w.WriteAddresses(t.Context(), someAddresses); err != nil {
		t.Fatal(err)
	}
	got, err := client.Resource(gvr).Namespace("foo").Get(t.Context(), "e", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if text := fmt.Sprint(got.Object["status"]); !strings.Contains(text, "240.240.0.7") || !strings.Contains(text, "Other") {
		t.Errorf("status is %s", text)
	}
	if p := client.Actions()[0]; p.GetSubresource() != "status" {
		t.Errorf("patched %q", p.GetSubresource())
	}
	gone := someAddresses
	gone.Name.Name = "gone"
	if err := w.WriteAddresses(t.Context(), gone); err != nil {
		t.Errorf("an entry that is gone: %v", err)
	}
}

func TestDirectoryStoresAddresses(t *testing.T) {
	dir := t.TempDir()
	if err := writeFile(dir, "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: foo}\n"+
		"spec: {hosts: [h.example], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}]}\n"); err != nil {
		t.Fatal(err)
	}
	w := Directory{Dir: dir}
	for _, c := range []struct {
		a    Assignment
		want int
	}{{someAddresses, 2}, {Assignment{Name: someAddresses.Name, Gone: true}, 0}} {
		if err := w.WriteAddresses(t.Context(), c.a); err != nil {
			t.Fatal(err)
		}
		view, err := configdir.New(configdir.Config{Dir: dir}).Load()
		if err != nil || len(view.Problems) != 0 {
			t.Fatal(view.Problems, err)
		}
		all := configdir.List[*networkingv1.ServiceEntry](view)
		if len(all) != 1 || len(all[0].Status.GetAddresses()) != c.want {
			t.Errorf("got %v", all)
		}
	}
}

func writeFile(dir, text string) error {
	return os.WriteFile(filepath.Join(dir, "e.yaml"), []byte(text), 0o600)
}
