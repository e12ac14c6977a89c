package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"github.com/undermesh/undermesh/controller/api"
)

// proxyStatus runs the documents' command and returns the columns of each line, by its first one.
func (w *World) proxyStatus(ctx context.Context) (map[string][]string, string, error) {
	out, err := w.Undermesh(ctx, "proxy-status")
	if err != nil {
		return nil, "", err
	}
	lines := map[string][]string{}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 0 && f[0] != "NAME" {
			lines[f[0]] = f
		}
	}
	return lines, out, nil
}

// awaitProxyStatus waits until the lines are as wanted.
func (w *World) awaitProxyStatus(ctx context.Context, what string, ok func(lines map[string][]string) error) error {
	return Until(ctx, 40*time.Second, what, func(ctx context.Context) error {
		lines, out, err := w.proxyStatus(ctx)
		if err != nil {
			return err
		}
		if err := ok(lines); err != nil {
			return fmt.Errorf("%w in\n%s", err, out)
		}
		return nil
	})
}

// discoverer is a client of the control plane that refuses everything.
type discoverer struct {
	discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	conn *grpc.ClientConn
}

// token is one of a service account for the control plane, made as kubelet makes them.
func (w *World) token(ctx context.Context, namespace, account string) (string, error) {
	out, err := w.Kubectl(ctx, "create", "token", account, "-n", namespace, "--audience", api.TokenAudience)
	return strings.TrimSpace(out), err
}

// connect makes a connection to the controller with the mesh's root.
func (w *World) connect(ctx context.Context, p *Pod) (*grpc.ClientConn, error) {
	roots, err := w.Kubectl(ctx, "get", "configmap", "-n", api.DefaultRootNamespace, api.CAConfigMap, "-o", `jsonpath={.data.root-cert\.pem}`)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(roots)) {
		return nil, errors.New("read root certificates: there is none")
	}
	return grpc.NewClient("passthrough:///"+p.Status.PodIP+":15012", grpc.WithTransportCredentials(credentials.NewTLS(
		&tls.Config{RootCAs: pool, ServerName: api.ControllerName + "." + api.DefaultRootNamespace + ".svc"})))
}

// discover opens a stream as an account.
func (w *World) discover(ctx context.Context, p *Pod, token, typ, id string) (*discoverer, error) {
	conn, err := w.connect(ctx, p)
	if err != nil {
		return nil, err
	}
	st, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(
		metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token))
	if err == nil {
		err = st.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: typ, Node: &core.Node{Id: id}})
		if errors.Is(err, io.EOF) { // it was refused already: Recv says why
			err = nil
		}
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &discoverer{st, conn}, nil
}

// refuse answers the next response with a refusal.
func (d *discoverer) refuse(typ, why string) error {
	r, err := d.Recv()
	if err != nil {
		return err
	}
	return d.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: typ, ResponseNonce: r.GetNonce(), ErrorDetail: &rpcstatus.Status{Message: why}})
}

// TestIN14ProxyStatusOnCluster: the seventh word of each proxy's and workload's line is the pod of the control plane that it
// follows; a proxy that does not acknowledge, and one that refuses, are told.
func TestIN14ProxyStatusOnCluster(t *testing.T) {
	ctx, w := meshed(t)
	p, err := w.Controller(ctx)
	check(t, err)
	sleep, err := w.OnePod(ctx, "foo", "sleep")
	check(t, err)
	bar, err := w.OnePod(ctx, "bar", "sleep")
	check(t, err)
	legacy, err := w.OnePod(ctx, "legacy", "sleep")
	check(t, err)
	name := func(p *Pod) string { return p.Metadata.Name + "." + p.Metadata.Namespace }
	states := func(pod *Pod, want string, column int) func(map[string][]string) error {
		return func(lines map[string][]string) error {
			l := lines[name(pod)]
			if len(l) != 8 || l[6] != p.Metadata.Name || l[column] != want {
				return fmt.Errorf("line of %s: %v, want %s in column %d and %s in column 7", name(pod), l, want, column+1, p.Metadata.Name)
			}
			return nil
		}
	}
	t.Run("IN-14 the seventh word is the control plane's pod", func(t *testing.T) {
		for column := 2; column < 6; column++ {
			check(t, w.awaitProxyStatus(ctx, "everything to be synced", states(sleep, "SYNCED", column)))
		}
	})
	t.Run("IN-14 control: outside the mesh", func(t *testing.T) {
		check(t, w.awaitProxyStatus(ctx, "no line of a pod outside", func(lines map[string][]string) error {
			if lines[name(legacy)] != nil {
				return errors.New("there is one")
			}
			return nil
		}))
	})
	t.Run("IN-14 a proxy that is stuck is STALE, and its node's workloads with it", func(t *testing.T) {
		pid, err := w.PID(ctx, "node2", "^/ztunnel worker ")
		check(t, err)
		check(t, w.Signal(ctx, "node2", "STOP", pid))
		defer func() {
			check(t, w.Signal(ctx, "node2", "CONT", pid))
			check(t, w.awaitProxyStatus(ctx, "the proxy to be synced again", states(bar, "SYNCED", 4)))
		}()
		policy := echoPolicy("nothing", "  action: DENY\n  rules:\n  - to: [{operation: {ports: [\"9\"]}}]\n")
		check(t, w.Apply(ctx, policy))
		defer func() { check(t, w.Delete(ctx, policy)) }()
		check(t, w.awaitProxyStatus(ctx, "the stuck proxy to be stale", states(bar, "STALE", 4)))
		t.Run("IN-14 control: without the stop", func(t *testing.T) {
			check(t, w.awaitProxyStatus(ctx, "the other node to be synced", states(sleep, "SYNCED", 4)))
		})
	})
	t.Run("IN-14 a proxy that refuses is REJECTED, and the reason is printed", func(t *testing.T) {
		token, err := w.token(ctx, api.DefaultRootNamespace, api.ZtunnelName)
		check(t, err)
		d, err := w.discover(ctx, p, token, api.AddressType, "ztunnel~10.9.9.9~stubborn.istio-system~istio-system.svc.cluster.local")
		check(t, err)
		defer d.conn.Close()
		check(t, d.refuse(api.AddressType, "it is not to my liking"))
		check(t, w.awaitProxyStatus(ctx, "the refusal", func(lines map[string][]string) error {
			if l := lines["stubborn.istio-system"]; !slices.Contains(l, "REJECTED") {
				return fmt.Errorf("its line is %v", l)
			}
			return nil
		}))
		r, err := run(ctx, nil, []string{"KUBECONFIG=" + w.Kubeconfig()}, w.Root+"/bin/undermesh", "proxy-status", "stubborn.istio-system")
		check(t, err)
		if !strings.Contains(r.Err, "stubborn.istio-system refused "+api.AddressType+": it is not to my liking") {
			t.Errorf("the reason is not told: %s", r.Err)
		}
	})
}
