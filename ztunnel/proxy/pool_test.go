package proxy

import (
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/ztunnel/cluster"
)

// aged is a DestinationRule of the host by which no connection lasts longer.
func aged(host string, age time.Duration) client.Resource {
	return client.Resource{Message: &settings.CallRule{Namespace: "foo", Name: "aged", Host: host, Policies: &settings.CallPolicies{Host: &settings.CallPolicy{
		ConnectionPool: &settings.ConnectionPool{Cluster: packed(&clusterv3.Cluster{}), Http: packed(&corev3.HttpProtocolOptions{MaxConnectionDuration: durationpb.New(age)})}}}}}
}

// wait lets so much time pass in the bubble.
func wait(d time.Duration) {
	timer := time.NewTimer(d)
	<-timer.C
	synctest.Wait()
}

// TestStreamAge: a connection that is not HTTP ends after tcp.maxConnectionDuration, used or not.
func TestStreamAge(t *testing.T) {
	external(t, []string{"192.0.2.1:80"}, func(t *testing.T, w *world, a *testPod, _ *fakeNames) {
		w.apply(declared(t, "foo", "one.example", &settings.ServiceSettings{External: true}, []string{"198.51.100.1/32"}, 80, 80, "192.0.2.1")...)
		open := func() net.Conn {
			c := a.connect("198.51.100.1:80")
			t.Cleanup(func() { _ = c.Close() })
			if _, err := io.WriteString(c, "\x00"); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, make([]byte, len("192.0.2.1:80\n"))); err != nil {
				t.Fatal(err)
			}
			return c
		}
		ended := func(c net.Conn) bool {
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			_, err := c.Read(make([]byte, 1))
			return err != nil && !strings.Contains(err.Error(), "timeout")
		}
		c := open()
		wait(time.Hour)
		if ended(c) {
			t.Error("control: without the DestinationRule a connection ends")
		}
		w.apply(aged("one.example", 10*time.Second))
		c = open()
		wait(8 * time.Second)
		if ended(c) {
			t.Error("a connection ends before its time")
		}
		wait(3 * time.Second)
		if !ended(c) {
			t.Error("a connection lasts longer than the DestinationRule says")
		}
		w.wantLog("reason=connection_age", "one.example")
	})
}

// TestRequestsAge: no request is sent over a connection that is older than tcp.maxConnectionDuration.
func TestRequestsAge(t *testing.T) {
	inTown(t, "http", func(t *testing.T, w *world, c, v1, v2 *testPod) {
		made := func() (n uint64) {
			for e := range c.calls.Clusters {
				for name, v := range e.Stats {
					if name == "upstream_cx_total" {
						n += v
					}
				}
			}
			return n
		}
		ask := func() {
			for range 4 {
				if got := c.ask(t, reviewsVIP, "reviews"); !strings.HasPrefix(got, "200") {
					t.Fatal(got)
				}
				synctest.Wait() // its connection is in the pool again
			}
		}
		ask()
		first := made()
		wait(20 * time.Second)
		ask()
		if got := made(); first == 0 || got != first {
			t.Fatalf("control: without the DestinationRule there are %d connections, then %d", first, got)
		}
		w.apply(aged("reviews.foo.svc.cluster.local", 10*time.Second))
		ask()
		before := made()
		wait(5 * time.Second)
		ask()
		if got := made(); got != before {
			t.Errorf("%d connections were made before their time", got-before)
		}
		wait(20 * time.Second)
		ask()
		if got := made(); got <= before {
			t.Error("connections are used longer than the DestinationRule says")
		}
	})
}

// TestKeepAlive: what a DestinationRule says of it takes the place of what the mesh has, each value for itself.
func TestKeepAlive(t *testing.T) {
	for _, tc := range []struct {
		own  *cluster.Keepalive
		want net.KeepAliveConfig
	}{
		{nil, net.KeepAliveConfig{Enable: true, Idle: 180 * time.Second, Interval: 180 * time.Second, Count: 9}},
		{&cluster.Keepalive{Idle: time.Minute}, net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 180 * time.Second, Count: 9}},
		{&cluster.Keepalive{Probes: 3, Interval: time.Second}, net.KeepAliveConfig{Enable: true, Idle: 180 * time.Second, Interval: time.Second, Count: 3}},
		{&cluster.Keepalive{Probes: 1 << 30, Idle: 1 << 60, Interval: 1 << 60}, net.KeepAliveConfig{Enable: true, Idle: maxKeepalive, Interval: maxKeepalive, Count: maxProbes}},
	} {
		c := &kept{}
		tune(c, tc.own)
		if c.got != tc.want {
			t.Errorf("%+v: %+v, want %+v", tc.own, c.got, tc.want)
		}
	}
}

// kept is a connection that notes how it is kept alive.
type kept struct {
	net.Conn
	got net.KeepAliveConfig
}

// SetKeepAliveConfig is that of net.TCPConn.
func (c *kept) SetKeepAliveConfig(k net.KeepAliveConfig) error {
	c.got = k
	return nil
}

// TestKeepAliveOfARule: the connections to a host are kept alive as its DestinationRule says.
func TestKeepAliveOfARule(t *testing.T) {
	s := &session{}
	spec, err := cluster.Compile(&clusterv3.Cluster{Name: "c", ConnectTimeout: durationpb.New(time.Second),
		UpstreamConnectionOptions: &clusterv3.UpstreamConnectionOptions{TcpKeepalive: &corev3.TcpKeepalive{}}})
	if err != nil {
		t.Fatal(err)
	}
	if s.as(spec); s.keepalive != spec.TCPKeepalive || s.keepalive == nil || s.connectTimeout() != time.Second {
		t.Errorf("%+v", s)
	}
}
