package lab

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestMT29NoNames: whoever spoofs DNS leads connections where he likes that are not HTTP; of HTTP the request says where it goes.
func TestMT29NoNames(t *testing.T) {
	l := New(t, Config{})
	l.Namespace("foo", true)
	l.Namespace("legacy", false)
	one, two := l.Nodes[0], l.Nodes[1]
	client, legacy, web, fake := one.Pod("foo", "sleep"), one.Pod("legacy", "sleep"), two.Pod("foo", "web"), two.Pod("legacy", "fake")
	web.StartWith([]string{"SERVICE_VERSION=meant"}, "samples", "echo", "80", "9000")
	fake.StartWith([]string{"SERVICE_VERSION=fake"}, "samples", "echo", "80", "9000")
	l.Apply("services", `apiVersion: v1
kind: Service
metadata: {name: web, namespace: foo}
spec: {clusterIP: 10.97.0.10, clusterIPs: [10.97.0.10], selector: {app: web}, ports: [{name: http, port: 80}, {name: tcp, port: 9000}]}
---
apiVersion: v1
kind: Service
metadata: {name: fake, namespace: legacy}
spec: {clusterIP: None, selector: {app: fake}, ports: [{name: http, port: 80}, {name: tcp, port: 9000}]}
`)
	client.Enrolled(true)
	web.Enrolled(true)
	// expect has the pod call web.foo, which DNS says is at the address dns.
	expect := func(t *testing.T, from *Pod, dns string, port int, want string) {
		t.Helper()
		l.Until(15*time.Second, "the answer of "+want, func() error {
			out, code := from.Run(10*time.Second, "curl", "-s", "-m", "5", "--resolve", fmt.Sprintf("web.foo:%d:%s", port, dns), fmt.Sprintf("http://web.foo:%d/", port))
			if code != 0 || !strings.Contains(out, `"`+want+`"`) {
				return fmt.Errorf("exit code %d: %s", code, out)
			}
			return nil
		})
	}
	t.Run("MT-29 TCP goes where DNS says", func(t *testing.T) { expect(t, client, fake.Addr.String(), 9000, "fake") })
	t.Run("MT-29 control: with the right address", func(t *testing.T) { expect(t, client, "10.97.0.10", 9000, "meant") })
	t.Run("MT-29 control: HTTP goes where the request says", func(t *testing.T) { expect(t, client, fake.Addr.String(), 80, "meant") })
	t.Run("MT-29 control: outside the mesh", func(t *testing.T) { expect(t, legacy, fake.Addr.String(), 80, "fake") })
}
