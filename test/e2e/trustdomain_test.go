package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"
)

func trustDomain(domain string, aliases ...string) string {
	text := "accessLogFile: /dev/stdout\ntrustDomain: " + domain + "\ntrustDomainAliases:\n"
	for _, a := range aliases {
		text += "- " + a + "\n"
	}
	return text
}

func onlyPrincipal(principal string) string {
	return echoPolicy("tcp-policy", `  action: ALLOW
  rules:
  - from: [{source: {principals: ["`+principal+`"]}}]
`)
}

// awaitSAN waits until httpbin.foo shows the identity in its certificate.
func (w *World) awaitSAN(ctx context.Context, want string) error {
	pod, err := w.OnePod(ctx, "foo", "httpbin")
	if err != nil {
		return err
	}
	return Until(ctx, 30*time.Second, "a certificate of "+want, func(ctx context.Context) error {
		san, _, err := w.Handshake(ctx, pod.Status.PodIP+":15008", nil)
		if err == nil && san != "URI:"+want {
			err = fmt.Errorf("it is of %s", san)
		}
		return err
	})
}

// TestMT22MT23MT24TrustDomainLive walks the documents' migration between trust domains on a running mesh.
func TestMT22MT23MT24TrustDomainLive(t *testing.T) {
	ctx, w := meshed(t)
	restoreMesh(ctx, t, w)
	accepted := []EchoCase{{"bar", 9000, "accepted"}, {"foo", 9000, "rejected"}, {"legacy", 9000, "rejected"}}
	rejected := []EchoCase{{"bar", 9000, "rejected"}, {"foo", 9000, "rejected"}}
	t.Cleanup(func() { check(t, w.Delete(context.Background(), onlyPrincipal("x"))) })
	for _, s := range []struct {
		title, mesh, principal, san string
		cases                       []EchoCase
	}{
		{"MT-22 control: without the resource", "", "old-td/ns/bar/sa/sleep", "spiffe://cluster.local/ns/foo/sa/httpbin", rejected},
		{"MT-22 identities follow the trust domain", trustDomain("old-td", "cluster.local"), "old-td/ns/bar/sa/sleep", "spiffe://old-td/ns/foo/sa/httpbin", accepted},
		{"MT-22 MT-23 control: another trust domain breaks old principals", trustDomain("new-td"), "old-td/ns/bar/sa/sleep", "spiffe://new-td/ns/foo/sa/httpbin", rejected},
		{"MT-23 the old principal counts while its domain is an alias", trustDomain("new-td", "old-td"), "old-td/ns/bar/sa/sleep", "spiffe://new-td/ns/foo/sa/httpbin", accepted},
		{"MT-24 cluster.local stands for the mesh's own trust domain", trustDomain("new-td"), "cluster.local/ns/bar/sa/sleep", "spiffe://new-td/ns/foo/sa/httpbin", accepted},
		{"MT-24 control: another name does not", trustDomain("new-td"), "other.local/ns/bar/sa/sleep", "spiffe://new-td/ns/foo/sa/httpbin", rejected},
	} {
		t.Run(s.title, func(t *testing.T) {
			check(t, w.Apply(ctx, onlyPrincipal(s.principal)))
			if s.mesh != "" {
				check(t, w.SetMesh(ctx, s.mesh))
			}
			check(t, w.awaitSAN(ctx, s.san))
			check(t, w.echoCases(ctx, s.cases))
		})
	}
	t.Run("MT-22 MT-23 MT-24 control: outside the mesh", func(t *testing.T) {
		check(t, w.Apply(ctx, onlyPrincipal("other.local/ns/bar/sa/sleep")))
		check(t, w.Unenrol(ctx, "foo"))
		t.Cleanup(func() { check(t, w.Enrol(context.Background(), "foo")) })
		check(t, w.echoCases(ctx, []EchoCase{{"bar", 9000, "accepted"}, {"legacy", 9000, "accepted"}}))
	})
}

// TestMT23NoFailedHandshake changes the trust domain under a load, by way of an alias: no connection breaks and none fails
// to open, although nodes hear of it one after the other.
func TestMT23NoFailedHandshake(t *testing.T) {
	ctx, w := underLoad(t, true)
	restoreMesh(ctx, t, w)
	for _, text := range []string{trustDomain("cluster.local", "new-td"), trustDomain("new-td", "cluster.local"), trustDomain("cluster.local", "new-td")} {
		check(t, w.SetMesh(ctx, text))
		check(t, Hold(ctx, 6*time.Second))
	}
	check(t, w.awaitSAN(ctx, "spiffe://cluster.local/ns/foo/sa/httpbin"))
	reports, err := w.Reports(ctx)
	check(t, err)
	check(t, Unharmed(reports))
}
