package rows

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/undermesh/undermesh/test/e2e"
)

// abroad is the namespace of the stand-ins for hosts outside the mesh; they are on the network of the second node.
const abroad = "external"

const standIns = `apiVersion: v1
kind: Pod
metadata: {name: sites, namespace: external, labels: {app: sites}}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 0
  nodeSelector: {kubernetes.io/hostname: node2}
  containers: [{name: sites, image: localhost/undermesh/samples, imagePullPolicy: Never, args: [sites]}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: proxy-configmap, namespace: external}
data:
  squid.conf: |
    http_port 3128
    acl SSL_ports port 443
    acl CONNECT method CONNECT
    http_access deny CONNECT !SSL_ports
    http_access allow all
---
`

// sites are the names that the stand-ins answer to.
var sites = []string{"httpbin.org", "edition.cnn.com", "www.google.com", "www.wikipedia.org", "en.wikipedia.org", "de.wikipedia.org"}

// curl runs curl in a pod and returns what it prints, and its exit code in the last line.
func curl(ctx context.Context, p place, args string) (string, error) {
	r, err := p.Exec(ctx, p.namespace, p.deployment, "curl -m 12 "+args+"; echo exit $?")
	return r.Out, err
}

// curls wants what curl prints to hold texts; after "!" texts that it must not hold.
func curls(args string, texts ...string) func(context.Context, place) error {
	return func(ctx context.Context, p place) error {
		out, err := curl(ctx, p, args)
		if err != nil {
			return err
		}
		for _, text := range texts {
			text, absent := strings.CutPrefix(text, "!")
			if strings.Contains(out, text) == absent {
				return fmt.Errorf("%w: curl %s: %q is absent %t in %.600q", e2e.ErrOther, args, text, !absent, out)
			}
		}
		return nil
	}
}

// all wants everything.
func all(looks ...func(context.Context, place) error) func(context.Context, place) error {
	return func(ctx context.Context, p place) error {
		for _, look := range looks {
			if err := look(ctx, p); err != nil {
				return err
			}
		}
		return nil
	}
}

// logged wants calls to leave a line in the access log with all texts.
func logged(look func(context.Context, place) error, texts ...string) func(context.Context, place) error {
	return func(ctx context.Context, p place) error {
		written := p.Mark()
		if err := look(ctx, p); err != nil {
			return err
		}
		return soon(ctx, p, "the line", func(ctx context.Context) error { return written(ctx, texts...) })
	}
}

// abroadWorld deploys the stand-ins, makes DNS lead to them, and returns the address of the proxy.
func abroadWorld(t *testing.T, w World) (proxy string) {
	t.Helper()
	ctx := within(t)
	check(t, w.ApplyIn(ctx, "", "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+abroad+"}\n---\n"+standIns+seed(t, "169")))
	t.Cleanup(func() { check(t, w.DeleteNamespace(context.Background(), abroad)) })
	check(t, w.AwaitReady(ctx, abroad))
	site, err := podOf(ctx, w, abroad, "sites")
	check(t, err)
	squid, err := podOf(ctx, w, abroad, "squid")
	check(t, err)
	records := map[string]string{}
	for _, s := range sites {
		records[s] = site.Status.PodIP
	}
	check(t, w.SetHosts(ctx, records))
	t.Cleanup(func() { check(t, w.SetHosts(context.Background(), nil)) })
	return squid.Status.PodIP
}

// Egress is the documents' tasks about hosts outside the mesh, with their resources. The stand-ins' certificates are of no public
// authority, so curl has -k; for what the mesh originates see origination.
func Egress(t *testing.T, w World) {
	proxy := abroadWorld(t, w)
	ctx := t.Context()
	google := curls("-ksSI https://www.google.com", "HTTP/2 200", "exit 0")
	p := place{w, inside, "sleep"}
	unknown := &row{title: "unknown hosts pass", look: all(google, curls("-ksI https://edition.cnn.com", "HTTP/2 200"), curls("-sSI http://httpbin.org/status/200", "HTTP/1.1 200"))}
	blocked := curls("-ksI https://www.google.com", "exit 35", "!HTTP/")
	refused := &row{title: "in no registry is blocked", look: blocked}
	t.Run("EG-01 unknown hosts pass", func(t *testing.T) { check(t, unknown.expects(ctx, p, true)) })
	t.Run("EG-02 control: with ALLOW_ANY", func(t *testing.T) { check(t, refused.expects(ctx, p, false)) })
	check(t, w.RegistryOnly(ctx, true))
	defer func() { check(t, w.RegistryOnly(context.WithoutCancel(ctx), false)) }()
	t.Run("EG-02 what is in no registry is blocked", func(t *testing.T) { check(t, refused.expects(ctx, p, true)) })
	t.Run("EG-01 control: with REGISTRY_ONLY", func(t *testing.T) { check(t, unknown.expects(ctx, p, false)) })
	t.Run("EG-01 EG-02 control: outside the mesh", func(t *testing.T) {
		check(t, unknown.expects(ctx, place{w, outside, "sleep"}, true))
		check(t, refused.expects(ctx, place{w, outside, "sleep"}, false))
	})
	decorated := `"X-Envoy-Decorator-Operation": "httpbin.org:80/*"`
	late := "-o /dev/null -sS -w '%{http_code} %{time_total}' http://httpbin.org/delay/5"
	bin := seed(t, "136") + "---\n"
	originated := origination(ctx, t, w)
	squid := strings.ReplaceAll(seed(t, "170"), "172.30.109.95", proxy)
	observeAll(t, w, []row{
		{ids: "EG-03", title: "HTTP to an unknown host is 502", look: curls("-sSI http://httpbin.org/status/200", "HTTP/1.1 502"), changed: bin},
		{ids: "EG-04", title: "a registered HTTP host", resource: bin, look: logged(curls("-sS http://httpbin.org/headers", `"Host": "httpbin.org"`, decorated), "outbound|80||httpbin.org")},
		{ids: "EG-05", title: "a registered HTTPS host", resource: seed(t, "137"), look: logged(google, `"dst.service":"www.google.com"`)},
		{ids: "EG-06 SR-11", title: "a timeout for a host outside", resource: bin + seed(t, "138"), look: curls(late, "504 3.", "exit 0"), changed: bin},
		{ids: "EG-09", title: "the mesh originates TLS", resource: originated, look: all(curls("-sSL -o /dev/null -D - http://edition.cnn.com/politics", "HTTP/1.1 200 OK", "!301"), curls("-ksI https://edition.cnn.com/politics", "HTTP/2 200")), changed: seed(t, "139")},
		{ids: "EG-17 SR-09", title: "any host of a wildcard", resource: seed(t, "156"), look: all(
			curls("-ks https://en.wikipedia.org/wiki/Main_Page", "<title>Wikipedia, the free encyclopedia</title>"), curls("-ks https://de.wikipedia.org/wiki/Wikipedia:Hauptseite", "<title>Wikipedia – Die freie Enzyklopädie</title>"), blocked)},
		{ids: "EG-22", title: "through an HTTPS proxy", resource: squid, look: logged(func(ctx context.Context, p place) error {
			r, err := p.Exec(ctx, p.namespace, p.deployment, "HTTPS_PROXY="+proxy+":3128 curl -m 10 -ks https://en.wikipedia.org/wiki/Main_Page")
			if err != nil {
				return err
			}
			if !strings.Contains(r.Out, "<title>Wikipedia, the free encyclopedia</title>") {
				return fmt.Errorf("%w: %q %q", e2e.ErrOther, r.Out, r.Err)
			}
			return soon(ctx, p, "squid's line", func(ctx context.Context) error {
				lines, err := p.Log(ctx, abroad, "app=squid")
				if err == nil && (!strings.Contains(lines, "TCP_TUNNEL/200") || !strings.Contains(lines, "CONNECT en.wikipedia.org:443 - HIER_DIRECT/")) {
					err = fmt.Errorf("squid wrote %q", lines)
				}
				return err
			})
		}, `"dst.service":"my-company-proxy.com"`)},
		{ids: "EG-22", title: "a DestinationRule leads through the proxy", resource: strings.ReplaceAll(tunnelled, "PROXY", proxy), look: asksSquid("de.wikipedia.org",
			curls("-ks https://en.wikipedia.org/wiki/Main_Page", "<title>Wikipedia, the free encyclopedia</title>", "exit 0"))},
	})
}

// truster is a world whose proxies can be told whom else to trust, in PEM, before they have verified any server.
type truster interface{ Trust(pem string) error }

// origination is the documents' TLS origination as it is where the proxies can trust the stand-ins' authority as they do public ones;
// elsewhere without verification.
func origination(ctx context.Context, t *testing.T, w World) string {
	t.Helper()
	text := seed(t, "140")
	to, ok := w.(truster)
	if !ok {
		return strings.Replace(text, "mode: SIMPLE", "insecureSkipVerify: true\n        mode: SIMPLE", 1)
	}
	check(t, until(ctx, w, 20*time.Second, "the stand-ins' authority", func(ctx context.Context) error {
		out, err := w.Exec(ctx, outside, "sleep", "curl -s -m 5 http://edition.cnn.com/ca.pem")
		if err == nil && !strings.HasPrefix(out.Out, "-----BEGIN CERTIFICATE-----") {
			err = fmt.Errorf("%q %q", out.Out, out.Err)
		}
		if err != nil {
			return err
		}
		return to.Trust(out.Out)
	}))
	return text
}

// tunnelled leads TLS for a site to the proxy, which is asked for another name of the stand-ins.
const tunnelled = `apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: forward-proxy}
spec: {hosts: [forward-proxy.example], ports: [{number: 3128, name: tcp, protocol: TCP}], resolution: STATIC, endpoints: [{address: PROXY}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wikipedia}
spec: {hosts: [en.wikipedia.org], ports: [{number: 443, name: tls, protocol: TLS}], resolution: DNS}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: wikipedia}
spec:
  hosts: [en.wikipedia.org]
  tls:
  - match: [{port: 443, sniHosts: [en.wikipedia.org]}]
    route: [{destination: {host: forward-proxy.example, port: {number: 3128}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: forward-proxy}
spec: {host: forward-proxy.example, trafficPolicy: {tunnel: {protocol: CONNECT, targetHost: de.wikipedia.org, targetPort: 443}}}
`

// asksSquid wants squid to be asked for the host while look holds.
func asksSquid(host string, look func(context.Context, place) error) func(context.Context, place) error {
	return func(ctx context.Context, p place) error {
		asked := func(ctx context.Context) (int, error) {
			lines, err := p.Log(ctx, abroad, "app=squid")
			return strings.Count(lines, "CONNECT "+host+":443"), err
		}
		before, err := asked(ctx)
		if err != nil {
			return err
		}
		if err := look(ctx, p); err != nil {
			return err
		}
		return soon(ctx, p, "squid's line", func(ctx context.Context) error {
			now, err := asked(ctx)
			if err == nil && now == before {
				err = fmt.Errorf("squid was not asked for %s", host)
			}
			return err
		})
	}
}

// EG23NoTLS: towards services that are not the mesh's DISABLE is plain text, and a mode of the mesh fails.
func EG23NoTLS(t *testing.T, w World) {
	abroadWorld(t, w)
	alias := strings.Replace(seed(t, "164"), "name: my-httpbin", "name: my-httpbin\n  namespace: "+inside, 1) + "---\n"
	mode := func(m string) string {
		return alias + strings.NewReplacer("my-httpbin.default", "my-httpbin."+inside, "DISABLE", m, "name: my-httpbin", "name: my-httpbin\n  namespace: "+inside).Replace(seed(t, "165"))
	}
	r := row{ids: "EG-23", title: "plain text with DISABLE", apart: true, resource: mode("DISABLE"), changed: mode("ISTIO_MUTUAL"), unmeshed: "an alias works there too",
		look: curls("-sS http://my-httpbin."+inside+".svc.cluster.local/headers", `"Host": "my-httpbin.`+inside+`.svc.cluster.local"`, "exit 0")}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	observe(ctx, t, w, &r)
}
