package proxy

import (
	"bufio"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
)

// TestRollingUpdate: no request is lost while endpoints come, terminate and go, over connections that clients keep.
func TestRollingUpdate(t *testing.T) {
	inTown(t, "http", func(t *testing.T, w *world, c, v1, v2 *testPod) {
		w.apply(client.Resource{Message: &settings.MeshSettings{TrustDomain: "cluster.local", CallDefaults: &settings.CallDefaults{RetryPolicy: packed(
			&routev3.RetryPolicy{RetryOn: "connect-failure", NumRetries: wrapperspb.UInt32(2), HostSelectionRetryMaxAttempts: 5,
				RetryHostPredicate: []*routev3.RetryPolicy_RetryHostPredicate{{Name: "envoy.retry_host_predicates.previous_hosts"}}})}}, Name: "mesh"})
		conn := c.connect(reviewsVIP)
		defer conn.Close()
		r := bufio.NewReader(conn)
		ask := func(what string, names ...string) {
			t.Helper()
			seen := map[string]bool{}
			for range 8 {
				got := askOn(t, conn, r, "reviews")
				name, ok := strings.CutPrefix(got, "200 ")
				if !ok {
					t.Errorf("%s: %s", what, got)
					return
				}
				seen[name[:2]] = true
			}
			if len(seen) != len(names) {
				t.Errorf("%s: %v answered, want %v", what, seen, names)
			}
			for _, n := range names {
				if !seen[n] {
					t.Errorf("%s: %v answered, want %v", what, seen, names)
				}
			}
		}
		ask("both", "v1", "v2")
		ending := labelled("v2", v2.ip, "v2")
		ending.Status = workloadapi.WorkloadStatus_UNHEALTHY
		w.apply(client.Resource{Message: ending})
		ask("v2 is terminating", "v1")
		v3 := w.pod("b", "v3", "10.0.1.3")
		defer w.stop(v3)
		third := v3.web()
		w.apply(client.Resource{Message: labelled("v3", v3.ip, "v3")})
		ask("v3 has come", "v1", "v3")
		_ = v2.app.Close()
		v2.Remove()
		ask("v2 is gone", "v1", "v3")
		// v1's application ends before anybody is told: connections to it fail, and another endpoint is tried.
		_ = v1.app.Close()
		timer := time.NewTimer(2 * time.Second)
		<-timer.C
		synctest.Wait()
		for range 8 {
			if got := c.ask(t, reviewsVIP, "reviews"); !strings.HasPrefix(got, "200 v") {
				t.Errorf("v1's application has ended: %s", got)
			}
		}
		// The same on another node, by connections that were used before: the engine there answers for the application.
		v4 := w.pod("a", "v4", "10.0.0.4")
		defer w.stop(v4)
		v4.web()
		ending = labelled("v1", v1.ip, "v1")
		ending.Status = workloadapi.WorkloadStatus_UNHEALTHY
		w.apply(client.Resource{Message: labelled("v4", v4.ip, "v4")}, client.Resource{Message: ending})
		ask("v4 has come", "v3", "v4")
		_ = third.Close()
		ask("v3's application has ended", "v4")
	})
}
