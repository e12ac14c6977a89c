package rows

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/undermesh/undermesh/test/e2e"
)

// xfcc is the header that httpbin of a namespace sees of sleep of foo.
func xfcc(namespace string) *regexp.Regexp {
	return regexp.MustCompile(`"X-Forwarded-Client-Cert": "By=spiffe://cluster\.local/ns/` + namespace + `/sa/httpbin;Hash=[0-9a-f]{64};Subject=\\"\\";URI=spiffe://cluster\.local/ns/foo/sa/sleep"`)
}

// presents wants httpbin of a namespace to see the certificate of the caller, whatever the caller says itself.
func presents(namespace string) func(context.Context, place) error {
	return func(ctx context.Context, p place) error {
		for _, own := range []string{"", " -H 'X-Forwarded-Client-Cert: By=spiffe://cluster.local/ns/foo/sa/httpbin;URI=spiffe://evil'"} {
			out, err := curl(ctx, p, "-s http://httpbin."+namespace+":8000/headers"+own)
			if err != nil {
				return err
			}
			if !xfcc(namespace).MatchString(out) || strings.Contains(out, "evil") {
				return fmt.Errorf("%w: httpbin of %s sees %s", e2e.ErrOther, namespace, out)
			}
		}
		return nil
	}
}

// MT01Certificates: the server sees who called, on the same node and on another, and no word of the caller's on that.
func MT01Certificates(t *testing.T, w World) {
	const off = `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: plain, namespace: foo}
spec: {host: "*.svc.cluster.local", trafficPolicy: {tls: {mode: DISABLE}}}
`
	const nobody = `!"X-Forwarded-Client-Cert"`
	plain := func(namespace string) func(context.Context, place) error {
		return curls("-s -H 'X-Forwarded-Client-Cert: URI=spiffe://evil' http://httpbin."+namespace+":8000/headers", nobody, "!evil", `"Host"`)
	}
	observeAll(t, w, []row{
		{ids: "MT-01", title: "on the same node", namespace: "foo", look: presents("foo"), changed: off},
		{ids: "MT-01", title: "on another node", namespace: "foo", look: presents("bar"), changed: off},
	})
	ctx := within(t)
	none := func(namespace string) *row {
		return &row{title: "httpbin of " + namespace + " sees none", look: curls("-s http://httpbin."+namespace+":8000/headers", nobody, `"Host"`)}
	}
	foo := place{w, "foo", "sleep"}
	t.Run("MT-02 a server outside the mesh sees none", func(t *testing.T) { check(t, none(outside).expects(ctx, foo, true)) })
	t.Run("MT-02 control: a server in the mesh sees one", func(t *testing.T) { check(t, none("bar").expects(ctx, foo, false)) })
	t.Run("MT-02 control: outside the mesh nobody sees one", func(t *testing.T) {
		check(t, none("bar").expects(ctx, place{w, outside, "sleep"}, true))
	})
	t.Run("MT-01 MT-02 a caller outside the mesh cannot say who it is", func(t *testing.T) {
		for _, namespace := range []string{"foo", "bar"} {
			check(t, plain(namespace)(ctx, place{w, outside, "sleep"}))
		}
	})
}

// MT13ClientTLS: how a client speaks TLS is said by a DestinationRule.
func MT13ClientTLS(t *testing.T, w World) {
	// The port for TLS of the echo server behind a port for HTTP.
	const service = `apiVersion: v1
kind: Service
metadata: {name: secure}
spec: {selector: {app: echo, version: v1}, ports: [{name: http, port: 8080, targetPort: 8443}]}
---
`
	dr := func(tls string) string {
		return service + "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: secure}\nspec: {host: secure, trafficPolicy: {tls: " + tls + "}}\n"
	}
	ask := func(w want) func(context.Context, place) error {
		return asks(expect{e2e.Question{URL: "http://secure.tutorial:8080/", N: 5}, w})
	}
	observeAll(t, w, []row{
		{ids: "MT-13", title: "SIMPLE: the mesh speaks TLS to a server that is not its own", resource: dr("{mode: SIMPLE, insecureSkipVerify: true}"), look: ask(v("v1")), changed: service},
		{ids: "MT-13", title: "a server whose certificate nobody vouches for is refused", resource: dr("{mode: SIMPLE, caCertificates: system}"), look: ask(status(503, "-")), changed: dr("{mode: SIMPLE, insecureSkipVerify: true}")},
	})
}

// MT29NoNames: what no HTTP says is known by its address alone, so whoever answers DNS says where it goes.
func MT29NoNames(t *testing.T, w World) {
	ctx := within(t)
	p := place{w, inside, "sleep"}
	// The line goes to the service whose address was dialled, whatever name the caller meant.
	meant := func(dial string) func(context.Context, place) error {
		return asks(expect{e2e.Question{URL: "tcp://postgresql.tutorial:5432", Dial: dial, Body: "hi", N: 4, Timeout: 2000}, begins("usual")})
	}
	t.Run("MT-29 the address decides", func(t *testing.T) {
		check(t, (&row{title: "spoofed", look: meant("tcp-echo.tutorial:9000")}).expects(ctx, p, false))
	})
	t.Run("MT-29 control: with the right address", func(t *testing.T) { check(t, (&row{title: "right", look: meant("")}).expects(ctx, p, true)) })
	t.Run("MT-29 control: outside the mesh", func(t *testing.T) {
		check(t, (&row{title: "spoofed", look: meant("tcp-echo.tutorial:9000")}).expects(ctx, place{w, outside, "sleep"}, false))
	})
}
