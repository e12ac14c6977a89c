package lab

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// shop is a lab with three versions of one service and its callers: v1 and v3 on node1, as the client sleep, v2 on node2; httpbin on
// node2; and a client outside the mesh on node1.
type shop struct {
	*Lab
	client, legacy *Pod
	versions       map[string]*Pod
}

const shopHost = "reviews.foo.svc.cluster.local"

func newShop(t *testing.T) *shop {
	l := New(t, Config{})
	w := &shop{Lab: l, versions: map[string]*Pod{}}
	l.Namespace("foo", true)
	l.Namespace("legacy", false)
	one, two := l.Nodes[0], l.Nodes[1]
	w.client, w.legacy = one.Pod("foo", "sleep"), one.Pod("legacy", "sleep")
	for version, n := range map[string]*Node{"v1": one, "v2": two, "v3": one} {
		p := n.Labelled("foo", "reviews-"+version, "app: reviews, version: "+version)
		p.StartWith([]string{"SERVICE_VERSION=" + version, "SERVICE_NAME=reviews"}, "samples", "echo", "8080")
		w.versions[version] = p
	}
	l.Apply("svc-reviews", `apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: foo}
spec: {clusterIP: 10.97.0.10, clusterIPs: [10.97.0.10], selector: {app: reviews}, ports: [{name: http, port: 80, targetPort: 8080}]}
`)
	for _, p := range w.versions {
		p.Enrolled(true)
	}
	w.client.Enrolled(true)
	w.Until(15*time.Second, "all versions to answer", func() error {
		seen := w.spread(w.client, 12)
		if len(seen) != 3 {
			return fmt.Errorf("%v", seen)
		}
		return nil
	})
	return w
}

// answer is what the echo server says.
type answer struct {
	Version, Host, Path string
	Headers             map[string]string
	Status              int
}

// get asks the service as reviews.foo, or what another Host header in args says.
func (w *shop) get(p *Pod, url string, args ...string) (answer, error) {
	out, code := p.Run(15*time.Second, "curl", append([]string{"-s", "-m", "10", "-w", "\n%{http_code}", url}, args...)...)
	i := strings.LastIndexByte(out, '\n')
	if code != 0 || i < 0 {
		return answer{}, fmt.Errorf("curl ended with %d: %q", code, out)
	}
	var a answer
	_ = json.Unmarshal([]byte(out[:i]), &a) // an answer of the proxy is none of the server
	_, err := fmt.Sscan(out[i+1:], &a.Status)
	return a, err
}

func (w *shop) service() string { return "http://10.97.0.10/" }

func (w *shop) spread(p *Pod, n int, args ...string) map[string]int {
	seen := map[string]int{}
	for range n {
		a, err := w.get(p, w.service(), append(args, "-H", "Host: reviews.foo")...)
		if err != nil {
			seen[err.Error()]++
			continue
		}
		seen[fmt.Sprintf("%d %s", a.Status, a.Version)]++
	}
	return seen
}

const byUser = `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: foo}
spec:
  hosts: [reviews]
  http:
  - match: [{headers: {end-user: {exact: jason}}}]
    route: [{destination: {host: reviews, subset: v2}}]
  - match: [{headers: {end-user: {exact: bob}}}]
    route: [{destination: {host: reviews, subset: v3}}]
  - route: [{destination: {host: reviews, subset: v1}}]
`

const subsets = `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: foo}
spec:
  host: reviews
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
  - {name: v3, labels: {version: v3}}
`

// only fails unless all of n answers are the wanted one; it polls until the first one is.
func (w *shop) only(p *Pod, n int, want string, args ...string) {
	w.T.Helper()
	w.Until(10*time.Second, "answers to be "+want, func() error {
		if seen := w.spread(p, 3, args...); seen[want] != 3 {
			return fmt.Errorf("%v", seen)
		}
		return nil
	})
	if seen := w.spread(p, n, args...); seen[want] != n {
		w.T.Errorf("%v, want %s", seen, want)
	}
}

// TestL7 is a VirtualService in small: by a header to a version on the client's node or on another one.
func TestL7(t *testing.T) {
	w := newShop(t)
	user := func(name string) []string { return []string{"-H", "end-user: " + name} }
	t.Run("TR-02 control: without the VirtualService", func(t *testing.T) {
		if seen := w.spread(w.client, 12, user("jason")...); len(seen) != 3 {
			t.Errorf("%v, want every version", seen)
		}
	})
	w.Apply("vs", byUser)
	w.Apply("dr", subsets)
	t.Run("TR-02 by header", func(t *testing.T) {
		w.only(w.client, 10, "200 v2", user("jason")...) // on another node
		w.only(w.client, 10, "200 v3", user("bob")...)   // on this one
		w.only(w.client, 10, "200 v1")
	})
	t.Run("TR-02 control: outside the mesh", func(t *testing.T) {
		a, err := w.get(w.legacy, fmt.Sprintf("http://%s:8080/", w.versions["v3"].Addr), "-H", "Host: reviews.foo", "-H", "end-user: jason")
		if err != nil || a.Version != "v3" {
			t.Errorf("%+v, %v: want v3, which was dialled", a, err)
		}
	})
	t.Run("MT-01 who calls", func(t *testing.T) {
		for name, version := range map[string]string{"jason": "v2", "bob": "v3"} {
			a, err := w.get(w.client, w.service(), append(user(name), "-H", "Host: reviews", "-H", "X-Forwarded-Client-Cert: URI=spiffe://cluster.local/ns/foo/sa/admin")...)
			got := a.Headers["X-Forwarded-Client-Cert"]
			if err != nil || !strings.HasPrefix(got, "By=spiffe://cluster.local/ns/foo/sa/reviews-"+version+";Hash=") ||
				!strings.HasSuffix(got, `;Subject="";URI=spiffe://cluster.local/ns/foo/sa/sleep`) || len(got) < 64+100 {
				t.Errorf("%s: %q, %v", version, got, err)
			}
		}
	})
	t.Run("MT-01 control: outside the mesh", func(t *testing.T) {
		a, err := w.get(w.legacy, fmt.Sprintf("http://%s:8080/", w.versions["v2"].Addr), "-H", "X-Forwarded-Client-Cert: URI=spiffe://cluster.local/ns/foo/sa/admin")
		if got, ok := a.Headers["X-Forwarded-Client-Cert"]; err != nil || ok || a.Version != "v2" {
			t.Errorf("%q, %+v, %v", got, a, err)
		}
	})
	t.Run("the rule is taken away", func(t *testing.T) {
		w.Delete("vs")
		w.Until(10*time.Second, "every version to answer", func() error {
			if seen := w.spread(w.client, 12, user("jason")...); len(seen) != 3 {
				return fmt.Errorf("%v", seen)
			}
			return nil
		})
	})
}
