package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/undermesh/undermesh/controller/api"
)

// newcomer is a pod with an identity that no other pod has.
func newcomer(namespace string) string {
	return `apiVersion: v1
kind: ServiceAccount
metadata: {name: newcomer, namespace: ` + namespace + `}
---
apiVersion: v1
kind: Service
metadata: {name: newcomer, namespace: ` + namespace + `}
spec: {selector: {app: newcomer}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: newcomer, namespace: ` + namespace + `, labels: {app: newcomer}}
spec:
  terminationGracePeriodSeconds: 0
  serviceAccountName: newcomer
  containers: [{name: main, image: curlimages/curl, imagePullPolicy: IfNotPresent, command: [sleep, infinity]}]
`
}

// rose waits until each of the series is above what it was.
func (w *World) rose(ctx context.Context, p *Pod, was Series, names ...string) error {
	return Until(ctx, 20*time.Second, strings.Join(names, ", ")+" to rise", func(ctx context.Context) error {
		now, err := w.ControllerMetrics(ctx, p)
		if err != nil {
			return err
		}
		for _, name := range names {
			series, label, _ := strings.Cut(name, " ")
			before, _ := was.Sum(series, label)
			after, found := now.Sum(series, label)
			if !found || after <= before {
				return fmt.Errorf("%s was %v and is %v", name, before, after)
			}
		}
		return nil
	})
}

// TestME12ControlPlaneMetrics: what Prometheus scrapes of the control plane by its annotations has Istio's names, and each
// counter is moved by what it counts.
func TestME12ControlPlaneMetrics(t *testing.T) {
	ctx, w := meshed(t)
	p, err := w.Controller(ctx)
	check(t, err)
	scrape := func() Series {
		t.Helper()
		m, err := w.ControllerMetrics(ctx, p)
		check(t, err)
		return m
	}
	t.Run("ME-12 the build, the clients and the root are told", func(t *testing.T) {
		m := scrape()
		for _, name := range []string{"pilot_info", "istio_build", "pilot_xds", "pilot_services", "citadel_server_root_cert_expiry_timestamp",
			"citadel_server_root_cert_expiry_seconds", "citadel_server_cert_chain_expiry_timestamp", "citadel_server_cert_chain_expiry_seconds",
			"process_resident_memory_bytes", "go_goroutines"} {
			if v, found := m.Sum(name); !found || v <= 0 {
				t.Errorf("%s is %v", name, v)
			}
		}
	})
	cleanup := func(text string) { t.Cleanup(func() { check(t, w.Delete(context.Background(), text)) }) }
	t.Run("ME-12 a pod of the mesh moves events, pushes and certificates", func(t *testing.T) {
		was := scrape()
		cleanup(newcomer("foo"))
		check(t, w.Apply(ctx, newcomer("foo")))
		check(t, w.awaitPod(ctx, "foo", "newcomer"))
		check(t, w.rose(ctx, p, was, `pilot_k8s_reg_events type="Pod"`, `pilot_k8s_reg_events type="Service"`, "pilot_services", "pilot_xds_pushes",
			"pilot_proxy_convergence_time_count", "citadel_server_csr_count", "citadel_server_success_cert_issuance_count"))
	})
	t.Run("ME-12 control: outside the mesh a pod gets no certificate", func(t *testing.T) {
		was := scrape()
		cleanup(newcomer("legacy"))
		check(t, w.Apply(ctx, newcomer("legacy")))
		check(t, w.awaitPod(ctx, "legacy", "newcomer"))
		check(t, w.rose(ctx, p, was, `pilot_k8s_reg_events type="Pod"`))
		check(t, Hold(ctx, 2*time.Second))
		before, _ := was.Sum("citadel_server_csr_count")
		if after, _ := scrape().Sum("citadel_server_csr_count"); after != before {
			t.Errorf("citadel_server_csr_count was %v and is %v", before, after)
		}
	})
	t.Run("ME-12 a rule moves what counts rules", func(t *testing.T) {
		const kind = `pilot_k8s_cfg_events type="VirtualService"`
		rule := "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: counted, namespace: foo}\n" +
			"spec: {hosts: [counted.example], http: [{route: [{destination: {host: httpbin}}]}]}\n"
		was := scrape()
		t.Run("ME-12 control: without the rule", func(t *testing.T) {
			check(t, Hold(ctx, 2*time.Second))
			before, _ := was.Sum("pilot_k8s_cfg_events", `type="VirtualService"`)
			if after, _ := scrape().Sum("pilot_k8s_cfg_events", `type="VirtualService"`); after != before {
				t.Errorf("%s was %v and is %v", kind, before, after)
			}
		})
		cleanup(rule)
		check(t, w.Apply(ctx, rule))
		check(t, w.rose(ctx, p, was, kind, "pilot_virt_services"))
	})
	t.Run("ME-12 refusals move what counts refusals", func(t *testing.T) {
		was := scrape()
		token, err := w.token(ctx, api.DefaultRootNamespace, api.ZtunnelName)
		check(t, err)
		d, err := w.discover(ctx, p, token, api.AddressType, "ztunnel~10.9.9.9~counted.istio-system~istio-system.svc.cluster.local")
		check(t, err)
		defer d.conn.Close()
		check(t, d.refuse(api.AddressType, "no"))
		check(t, w.rose(ctx, p, was, "pilot_total_xds_rejects"))
	})
}

// TestDoorsOfTheControlPlane: what the debug door shows is for this pod's own network only, whoever asks; a pod's own token
// opens no stream; and the door of metrics shows metrics only.
func TestDoorsOfTheControlPlane(t *testing.T) {
	ctx, w := meshed(t)
	p, err := w.Controller(ctx)
	check(t, err)
	code := func(from, url string) string {
		t.Helper()
		r, err := w.Exec(ctx, from, "sleep", "curl -s -o /dev/null -m 5 -w '%{http_code}' "+url+"; echo ' '$?")
		check(t, err)
		return strings.TrimSpace(r.Out)
	}
	base := "http://" + p.Status.PodIP
	for _, from := range []string{"foo", "bar", "legacy"} { // on both nodes, in the mesh and outside
		for url, want := range map[string]string{":15014/metrics": "200 0", ":15014/debug/syncz": "404 0", ":15014/debug/pprof/": "404 0",
			":8080/ready": "200 0", ":8080/debug/syncz": "404 0"} {
			if got := code(from, base+url); got != want {
				t.Errorf("from %s %s: %s, want %s", from, url, got, want)
			}
		}
		// Outside the mesh there is no answer; in it the caller's proxy says that there is none.
		if got := code(from, base+":15004/debug/syncz"); !strings.HasPrefix(got, "000") && (from == "legacy" || got != "503 0") {
			t.Errorf("from %s the debug door answers %s", from, got)
		}
	}
	for _, node := range []string{"1", "2"} {
		if out, err := w.Cluster(ctx, "node", node, "--", "curl", "-s", "-m", "5", base+":15004/debug/syncz"); err == nil {
			t.Errorf("to node %s the debug door says %s", node, out)
		}
	}
	stream := func(namespace, account string) error {
		token, err := w.token(ctx, namespace, account)
		check(t, err)
		d, err := w.discover(ctx, p, token, api.AddressType, "x")
		check(t, err)
		defer d.conn.Close()
		_, err = d.Recv()
		return err
	}
	if err := stream("foo", "sleep"); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a pod's own token: %v", err)
	}
	t.Run("control: a node's token", func(t *testing.T) { check(t, stream(api.DefaultRootNamespace, api.ZtunnelName)) })
}
