package xds

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/undermesh/undermesh/controller/api"
)

func unknownNames(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("nowhere/name-%d", i)
	}
	return out
}

// TestManyNamesAreCheap: the lock is everybody's, so that what one client names may cost time in proportion only. Quadratic
// work takes a hundred times as long as the bound.
func TestManyNamesAreCheap(t *testing.T) {
	st, _ := newServer(t)
	apply(t, st, 1, []Resource{wl("a", "10.0.0.1")})
	begin := time.Now()
	c := st.subscribe()
	req := &discovery.DeltaDiscoveryRequest{TypeUrl: api.AddressType, ResourceNamesSubscribe: unknownNames(maxRequest)}
	sub := newSubscription(req)
	if err := sub.change(req); err != nil {
		t.Fatal(err)
	}
	got, err := st.collect(c, []*subscription{sub})
	if err != nil || len(got.deltas) != 1 || len(got.deltas[0].removed) != maxRequest {
		t.Fatalf("%v, %d deltas", err, len(got.deltas))
	}
	if err := sub.change(req); err != nil { // names are asked for again, and dropped unanswered
		t.Fatal(err)
	}
	if err := sub.change(&discovery.DeltaDiscoveryRequest{ResourceNamesUnsubscribe: req.GetResourceNamesSubscribe()}); err != nil {
		t.Fatal(err)
	}
	if len(sub.names) != 0 || sub.due() {
		t.Errorf("%d names, due %v", len(sub.names), sub.due())
	}
	if took := time.Since(begin); took > 4*time.Second {
		t.Errorf("took %s", took)
	}
}

// TestNameIsAnsweredOnce: one alias may stand for thousands of workloads.
func TestNameIsAnsweredOnce(t *testing.T) {
	st, _ := newServer(t)
	apply(t, st, 1, []Resource{wl("a", "10.0.0.1", "foo/svc")})
	req := &discovery.DeltaDiscoveryRequest{TypeUrl: api.AddressType}
	for range 100 {
		req.ResourceNamesSubscribe = append(req.ResourceNamesSubscribe, "foo/svc")
	}
	sub := newSubscription(req)
	if err := sub.change(req); err != nil || len(sub.asked) != 1 {
		t.Fatalf("%v, %d names asked", err, len(sub.asked))
	}
}

func TestRequestsAreBounded(t *testing.T) {
	versions := map[string]string{}
	for _, n := range unknownNames(maxNames + 1) {
		versions[n] = "v"
	}
	long := strings.Repeat("x", maxName+1)
	for want, req := range map[string]*discovery.DeltaDiscoveryRequest{
		"resource_names_subscribe":  {ResourceNamesSubscribe: unknownNames(maxRequest + 1)},
		"initial_resource_versions": {InitialResourceVersions: versions},
		"node: id":                  {Node: &core.Node{Id: long}},
	} {
		synctest.Test(t, func(t *testing.T) {
			st, srv := newServer(t)
			apply(t, st, 1, nil)
			f := open(t, srv)
			req.TypeUrl = api.AddressType
			f.in <- req
			err := <-f.done
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), want) || len(err.Error()) > 1000 {
				t.Errorf("%s: %v", want, err)
			}
			f.done <- nil // for the clean-up
		})
	}
}

func TestSubscribedNamesAreBounded(t *testing.T) {
	sub := newSubscription(&discovery.DeltaDiscoveryRequest{TypeUrl: api.AddressType})
	all := unknownNames(maxNames + 1)
	for len(all) > maxRequest {
		if err := sub.change(&discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: all[:maxRequest]}); err != nil {
			t.Fatal(err)
		}
		all = all[maxRequest:]
	}
	if err := sub.change(&discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: all}); status.Code(err) != codes.InvalidArgument {
		t.Error(err)
	}
	if len(sub.names) != maxNames {
		t.Errorf("%d names are kept", len(sub.names))
	}
}

func TestRefusalIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, srv := newServer(t)
		apply(t, st, 1, []Resource{authz("p", false)})
		f := open(t, srv)
		f.subscribe(api.AuthorizationType, nil)
		r := f.next()
		f.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce(),
			ErrorDetail: &rpcstatus.Status{Message: strings.Repeat("é", maxDetail)}}
		synctest.Wait()
		if got := srv.Clients()[0].Types[api.AuthorizationType].LastError; len(got) > maxDetail+4 || got == "" {
			t.Errorf("%d bytes are kept", len(got))
		}
	})
}
