package http

import (
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// TestStreamsOfAConnection: a connection to a host has no more requests at a time than the cluster lets it have (maxConcurrentStreams).
func TestStreamsOfAConnection(t *testing.T) {
	for _, most := range []uint32{0, 1} {
		w := newWorld(t)
		w.loopback = true
		w.routes("a", toUp)
		const n = 4
		var at atomic.Int32
		all := make(chan struct{})
		var mu sync.Mutex
		seen := map[string]bool{}
		w.cluster("up", func(c *clusterv3.Cluster) {
			overHTTP2(c)
			if most > 0 {
				c.Http2ProtocolOptions = &corev3.Http2ProtocolOptions{MaxConcurrentStreams: wrapperspb.UInt32(most)} //nolint:staticcheck // the short form
			}
		}, standard(func(_ http.ResponseWriter, r *http.Request) {
			mu.Lock()
			seen[r.RemoteAddr] = true
			mu.Unlock()
			if at.Add(1) == n {
				close(all)
			}
			<-all
		}))
		c := w.standardClient(true)
		var wg sync.WaitGroup
		for range n {
			wg.Go(func() {
				res, err := c.Get("http://a/x")
				if err != nil {
					t.Error(err)
					return
				}
				_ = res.Body.Close()
			})
		}
		wg.Wait()
		if want := map[uint32]int{0: 1, 1: n}[most]; len(seen) != want {
			t.Errorf("with maxConcurrentStreams %d: %d connections, want %d", most, len(seen), want)
		}
	}
}
