package h2spec

import (
	"context"
	"math/rand/v2"
	"net"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/cluster"
	"github.com/undermesh/undermesh/ztunnel/http"
	"github.com/undermesh/undermesh/ztunnel/http/head"
	"github.com/undermesh/undermesh/ztunnel/http/route"
)

// world is one virtual host and one cluster of one host.
type world struct {
	routes  *route.VirtualHost
	cluster *cluster.Cluster
}

func (w *world) Routes(*head.Request) *route.VirtualHost { return w.routes }

func (w *world) Cluster(string) *cluster.Cluster { return w.cluster }

func (w *world) Dial(ctx context.Context, _ *cluster.Cluster, h *cluster.Host) (*http.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", h.Endpoint().Addr.String())
	if err != nil {
		return nil, err
	}
	return &http.Conn{Net: c}, nil
}

const (
	virtualHost  = `{"name": "v", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "c"}}]}`
	http2Cluster = `{"name": "c", "connectTimeout": "1s", "type": "EDS", "typedExtensionProtocolOptions": {
		"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
			"@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
			"explicitHttpConfig": {"http2ProtocolOptions": {}}}}}`
)

// engine serves by the L7 engine what leads to the host at up.
func engine(t *testing.T, up *net.TCPAddr) *net.TCPAddr {
	t.Helper()
	var vh routev3.VirtualHost
	var cl clusterv3.Cluster
	if err := protojson.Unmarshal([]byte(virtualHost), &vh); err != nil {
		t.Fatal(err)
	}
	if err := protojson.Unmarshal([]byte(http2Cluster), &cl); err != nil {
		t.Fatal(err)
	}
	w := &world{}
	var err error
	if w.routes, err = route.Compile(&vh); err != nil {
		t.Fatal(err)
	}
	spec, err := cluster.Compile(&cl)
	if err != nil {
		t.Fatal(err)
	}
	w.cluster = cluster.New(cluster.Config{Clock: clock.System(), Rand: rand.Uint64}, spec,
		cluster.NewHosts([]cluster.Endpoint{{Key: "a", Addr: up.AddrPort(), Healthy: true}}))
	e, err := http.New(http.Config{})
	if err != nil {
		t.Fatal(err)
	}
	tenant := http.NewTenant(http.TenantLimits{})
	return accept(t, func(ctx context.Context, nc net.Conn) {
		_ = e.Serve(ctx, nc, nil, &http.Flow{
			Source: nc.RemoteAddr().(*net.TCPAddr).AddrPort(), Destination: nc.LocalAddr().(*net.TCPAddr).AddrPort(), Upstreams: w, Workload: tenant,
		})
	})
}
