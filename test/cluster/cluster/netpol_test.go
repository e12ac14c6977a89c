package cluster_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/undermesh/undermesh/test/cluster/cluster"
	"github.com/undermesh/undermesh/test/cluster/plan"
)

// running returns the cluster that NAME names. Without one the test is skipped, or fails when MESH_TEST_PRIVILEGED is set.
func running(t *testing.T) cluster.State {
	t.Helper()
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	c, err := cluster.New(cluster.Config{Options: plan.Options{Name: os.Getenv("NAME")}, Root: root, Log: slog.Default()})
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.State()
	if err == nil && s.Complete {
		return s
	}
	if os.Getenv("MESH_TEST_PRIVILEGED") == "1" {
		t.Fatalf("a running cluster is needed (bin/cluster up): %v", err)
	}
	t.Skip("needs a running cluster: bin/cluster up")
	return s
}

// kubectl runs kubectl.
func kubectl(ctx context.Context, s cluster.State, stdin string, args ...string) (string, error) {
	path, prefix, env := s.Kubectl()
	cmd := exec.CommandContext(ctx, path, append(prefix, args...)...)
	cmd.Env, cmd.Stdin = env, strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("run kubectl %v: %w: %s", args, err, out)
	}
	return string(out), nil
}

const netpolNamespace = "netpol-test"

const netpolPods = `
apiVersion: apps/v1
kind: Deployment
metadata:
  name: echo
spec:
  replicas: 2
  selector:
    matchLabels:
      app: echo
  template:
    metadata:
      labels:
        app: echo
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - maxSkew: 1
        topologyKey: kubernetes.io/hostname
        whenUnsatisfiable: DoNotSchedule
        labelSelector:
          matchLabels:
            app: echo
      containers:
      - name: echo
        image: docker.io/kennethreitz/httpbin
        imagePullPolicy: IfNotPresent
        command: [/bin/httpbin, -b, ":8080"]
        ports:
        - name: web
          containerPort: 8080
        readinessProbe:
          httpGet:
            path: /ip
            port: 8080
          periodSeconds: 1
---
apiVersion: v1
kind: Service
metadata:
  name: echo
spec:
  ipFamilyPolicy: PreferDualStack
  selector:
    app: echo
  ports:
  - port: 80
    targetPort: 8080
---
apiVersion: v1
kind: Pod
metadata:
  name: client
  labels:
    app: client
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: curlimages/curl
    imagePullPolicy: IfNotPresent
    command: [sleep, infinity]
---
apiVersion: v1
kind: Pod
metadata:
  name: sleep
  labels:
    app: sleep
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: curlimages/curl
    imagePullPolicy: IfNotPresent
    command: [sleep, infinity]
`

// stage is one policy and who may then reach the echo pods.
type stage struct {
	name, spec    string
	client, sleep bool
}

var netpolStages = []stage{
	{"no policy", "", true, true},
	{"default deny", `{podSelector: {matchLabels: {app: echo}}, policyTypes: [Ingress]}`, false, false},
	{"ingress from one pod to one port",
		`{podSelector: {matchLabels: {app: echo}}, ingress: [{from: [{podSelector: {matchLabels: {app: sleep}}}], ports: [{port: 8080}]}]}`,
		false, true},
	{"egress of one pod to DNS only",
		`{podSelector: {matchLabels: {app: sleep}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels:
		{kubernetes.io/metadata.name: kube-system}}}], ports: [{port: 53, protocol: UDP}]}]}`, true, false},
	{"ingress from one pod to a named port",
		`{podSelector: {matchLabels: {app: echo}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: web}]}]}`,
		true, false},
	{"ingress to a range of ports that misses",
		`{podSelector: {matchLabels: {app: echo}}, ingress: [{ports: [{port: 8081, endPort: 9000}]}]}`, false, false},
	{"ingress to a range of ports that holds it",
		`{podSelector: {matchLabels: {app: echo}}, ingress: [{ports: [{port: 8000, endPort: 9000}]}]}`, true, true},
	{"ingress from a namespace and pod together",
		`{podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name:
		netpol-test}}, podSelector: {matchLabels: {app: client}}}]}]}`, true, false},
	{"ingress from everywhere but the pods",
		`{podSelector: {matchLabels: {app: echo}}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8]}},
		{ipBlock: {cidr: "::/0", except: ["fd30:244::/32"]}}]}]}`, false, false},
	{"allow all", `{podSelector: {}, ingress: [{}]}`, true, true},
}

// request is one try from a pod.
type request struct {
	name string
	from string
	url  string
	opt  string
	want func(stage) bool
}

// inForce is how long a policy may take until all requests show it. It is generous: a request that must fail takes a second.
const inForce = 30 * time.Second

// TestNetworkPolicyIsEnforced makes the same requests under each policy, on both nodes and in each family.
func TestNetworkPolicyIsEnforced(t *testing.T) {
	s := running(t)
	if s.Plan.Nodes < 2 {
		t.Fatal("two nodes are needed")
	}
	k := namespace(t, s, netpolNamespace)
	k(netpolPods, "apply", "-f", "-")
	k("", "wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s")
	requests := netpolRequests(t, s, k)
	for _, st := range netpolStages {
		t.Run(st.name, func(t *testing.T) {
			if st.spec != "" {
				k("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: "+st.spec+"\n", "apply", "-f", "-")
				t.Cleanup(func() {
					if _, err := kubectl(context.Background(), s, "", "-n", netpolNamespace, "delete", "networkpolicy", "p"); err != nil {
						t.Error(err)
					}
				})
			}
			deadline := time.Now().Add(inForce)
			for {
				wrong := wrongAnswers(t.Context(), s, st, requests)
				if len(wrong) == 0 {
					return
				}
				if time.Now().After(deadline) {
					t.Fatalf("after %s: %s", inForce, strings.Join(wrong, "; "))
				}
			}
		})
	}
	for _, line := range strings.Fields(k("", "get", "pods", "-l", "app=echo", "-o",
		"jsonpath={range .items[*]}{.status.containerStatuses[0].ready}/{.status.containerStatuses[0].restartCount} {end}")) {
		if line != "true/0" {
			t.Errorf("echo pod is %s (ready/restarts): probes must pass every policy", line)
		}
	}
}

func mustKubectl(t *testing.T, s cluster.State, stdin string, args ...string) string {
	t.Helper()
	out, err := kubectl(t.Context(), s, stdin, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func netpolRequests(t *testing.T, s cluster.State, k func(string, ...string) string) []request {
	t.Helper()
	client, sleep := func(st stage) bool { return st.client }, func(st stage) bool { return st.sleep }
	vip := k("", "get", "service", "echo", "-o", "jsonpath={.spec.clusterIP}")
	out := []request{{"client to the service", "client", "http://" + vip + "/ip", "-4", client}}
	pods := strings.Fields(k("", "get", "pods", "-l", "app=echo", "-o",
		"jsonpath={range .items[*]}{.spec.nodeName}={range .status.podIPs[*]}{.ip},{end} {end}"))
	if len(pods) != 2 {
		t.Fatalf("got pods %q, want one on each node", pods)
	}
	for _, p := range pods {
		node, ips, _ := strings.Cut(p, "=")
		for _, ip := range strings.Split(strings.Trim(ips, ","), ",") {
			opt, host := "-4", ip
			if strings.Contains(ip, ":") {
				opt, host = "-6", "["+ip+"]"
			}
			url := "http://" + host + ":8080/ip"
			out = append(out, request{"client to the pod on " + node + " " + opt, "client", url, opt, client},
				request{"sleep to the pod on " + node + " " + opt, "sleep", url, opt, sleep})
		}
	}
	out = append(out, request{"sleep to the service by name -4", "sleep", "http://echo/ip", "-4", sleep})
	if s.Plan.Dual() {
		out = append(out, request{"sleep to the service by name -6", "sleep", "http://echo/ip", "-6", sleep})
	}
	return out
}

// wrongAnswers makes all requests at once and names those whose outcome is not the stage's.
func wrongAnswers(ctx context.Context, s cluster.State, st stage, requests []request) []string {
	results := make(chan string)
	for _, r := range requests {
		go func() {
			_, err := kubectl(ctx, s, "", "-n", netpolNamespace, "exec", r.from, "--", "curl", "-sf", "-m", "1", "-o", "/dev/null", r.opt, r.url)
			if got := err == nil; got != r.want(st) {
				results <- fmt.Sprintf("%s: passed is %v", r.name, got)
				return
			}
			results <- ""
		}()
	}
	var wrong []string
	for range requests {
		if w := <-results; w != "" {
			wrong = append(wrong, w)
		}
	}
	return wrong
}
