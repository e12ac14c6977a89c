package server

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/xds"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// TestManyClients has 1,000 clients over gRPC follow a storm; a tenth of them never reads. Those that do all end in the
// newest state, and those that do not hold nobody up and cost little memory.
func TestManyClients(t *testing.T) {
	const clients, deaf, pods = 1000, 100, 300
	store := xds.NewStore(xds.StoreConfig{Clock: clock.System()})
	disco := xds.NewServer(xds.Config{Store: store, Clock: clock.System(), StallTimeout: time.Hour})
	pod := func(i int, host string) xds.Resource {
		w := &workloadapi.Workload{Uid: fmt.Sprintf("K//Pod/ns/pod-%d", i), Namespace: "ns", Name: fmt.Sprintf("pod-%d", i),
			ClusterId: "K", Node: host + strings.Repeat("x", 300)}
		return xds.Resource{Type: api.AddressType, Name: w.GetUid(), Message: &workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: w}}}
	}
	apply := func(generation uint64, up ...xds.Resource) {
		t.Helper()
		if err := store.Apply(generation, up, nil); err != nil {
			t.Fatal(err)
		}
	}
	var all []xds.Resource
	for i := range pods {
		all = append(all, pod(i, "a"))
	}
	apply(1, all...)
	lis := bufconn.Listen(64 << 10)
	srv := grpc.NewServer(serverOptions()...)
	disco.Register(srv)
	served := make(chan struct{})
	go func() { defer close(served); _ = srv.Serve(lis) }()
	defer func() { srv.Stop(); <-served }()
	var conns []*grpc.ClientConn // many streams share one connection: it is the streams that are many here
	for range 20 {
		conn, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithInitialWindowSize(64<<10), grpc.WithInitialConnWindowSize(8<<20), // set: they do not grow
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	streams := make([]discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient, clients)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range streams {
		str, err := discovery.NewAggregatedDiscoveryServiceClient(conns[i%len(conns)]).DeltaAggregatedResources(ctx)
		if err != nil {
			t.Fatal(err)
		}
		node := &core.Node{Id: fmt.Sprint(i), ClientFeatures: []string{api.DiscoveryParts, api.DiscoveryShort}}
		if err := str.Send(&discovery.DeltaDiscoveryRequest{Node: node, TypeUrl: api.AddressType}); err != nil {
			t.Fatal(err)
		}
		streams[i] = str
	}
	const last = 20
	var wg sync.WaitGroup
	failed := make(chan error, clients)
	for _, str := range streams[deaf:] {
		wg.Go(func() {
			for {
				r, err := str.Recv()
				if err == nil && r.GetSystemVersionInfo() == fmt.Sprint(last) {
					return
				}
				if err == nil {
					err = str.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: api.AddressType, ResponseNonce: r.GetNonce()})
				}
				if err != nil {
					failed <- err
					return
				}
			}
		})
	}
	for g := range uint64(last - 1) {
		apply(g+2, pod(int(g), "b"))
	}
	wg.Wait()
	close(failed)
	for err := range failed {
		t.Fatal(err)
	}
	if n := len(disco.Clients()); n != clients {
		t.Errorf("%d clients are connected, want %d", n, clients)
	}
	runtime.GC()
	runtime.GC() // empties the pools of buffers
	runtime.ReadMemStats(&after)
	if used := int64(after.HeapAlloc) - int64(before.HeapAlloc); used > 200<<20 {
		t.Errorf("%d MB for %d clients, of which %d do not read", used>>20, clients, deaf)
	}
}
