package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// outsideNamespace holds the stand-ins for hosts outside the mesh: servers on the network of the nodes, which is in no registry.
const outsideNamespace = "outside"

// The ports of a stand-in. It answers each line with the name of its node.
const (
	outsidePort      = 18080
	outsideOtherPort = 18081
)

func standIn(node string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, namespace: %[2]s, labels: {app: stand-in}}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 0
  nodeSelector: {kubernetes.io/hostname: %[1]s}
  containers:
  - name: echo
    image: docker.io/istio/tcp-echo-server:1.3
    imagePullPolicy: IfNotPresent
    args: ["%[3]d,%[4]d", "%[1]s"]
`, node, outsideNamespace, outsidePort, outsideOtherPort)
}

// Outside is what the tests of external services need to know.
type Outside struct {
	One, Two string // addresses of the stand-ins on node1 and node2
}

// DeployOutside starts the stand-ins.
func (w *World) DeployOutside(ctx context.Context) (*Outside, error) {
	text := "apiVersion: v1\nkind: Namespace\nmetadata: {name: " + outsideNamespace + "}\n" + standIn("node1") + standIn("node2")
	if err := w.Apply(ctx, text); err != nil {
		return nil, err
	}
	if err := w.AwaitReady(ctx, outsideNamespace); err != nil {
		return nil, err
	}
	pods, err := w.Pods(ctx, outsideNamespace)
	if err != nil {
		return nil, err
	}
	out := &Outside{}
	for _, p := range pods {
		switch p.Metadata.Name {
		case "node1":
			out.One = p.Status.PodIP
		case "node2":
			out.Two = p.Status.PodIP
		}
	}
	if out.One == "" || out.Two == "" {
		return nil, fmt.Errorf("stand-ins are at %+v", out)
	}
	return out, nil
}

// zoneMark is before what the tests put into the cluster's DNS.
const zoneMark = "# hosts of the tests"

// SetDNS makes names of example.org what records say, NAME → address; see SetHosts.
func (w *World) SetDNS(ctx context.Context, records map[string]string) error {
	hosts := map[string]string{}
	for name, ip := range records {
		hosts[name+".example.org"] = ip
	}
	return w.SetHosts(ctx, hosts)
}

// SetHosts makes the cluster's DNS answer for hosts as records say, host → address, and for nothing else of their domains, and waits
// until a pod sees it. No records take the names away.
func (w *World) SetHosts(ctx context.Context, records map[string]string) error {
	old, err := w.Kubectl(ctx, "get", "configmap", "-n", "kube-system", "coredns", "-o", "jsonpath={.data.Corefile}")
	if err != nil {
		return err
	}
	file, _, _ := strings.Cut(old, zoneMark)
	if len(records) > 0 {
		var lines strings.Builder
		zones := map[string]bool{}
		for _, name := range slices.Sorted(maps.Keys(records)) {
			labels := strings.Split(name, ".")
			zones[strings.Join(labels[max(0, len(labels)-2):], ".")+":53"] = true
			fmt.Fprintf(&lines, "        %s %s\n", records[name], name)
		}
		file += zoneMark + "\n" + strings.Join(slices.Sorted(maps.Keys(zones)), " ") + " {\n    hosts {\n        ttl 1\n" + lines.String() + "    }\n}\n"
	}
	patch, err := json.Marshal(map[string]any{"data": map[string]string{"Corefile": file}})
	if err != nil {
		return err
	}
	if _, err := w.Kubectl(ctx, "patch", "configmap", "-n", "kube-system", "coredns", "--type", "merge", "-p", string(patch)); err != nil {
		return err
	}
	if _, err := w.Kubectl(ctx, "rollout", "restart", "-n", "kube-system", "deployment/coredns"); err != nil {
		return err
	}
	return Until(ctx, time.Minute, "DNS to say so", func(ctx context.Context) error {
		for name, ip := range records {
			r, err := w.Exec(ctx, "legacy", "sleep", "getent ahostsv4 "+name)
			if err != nil {
				return err
			}
			if !strings.HasPrefix(r.Out, ip+" ") {
				return fmt.Errorf("%s is %q", name, r.Out)
			}
		}
		return nil
	})
}

// meshConfig replaces the mesh's configuration by what change makes of it, and returns how it was.
func (w *World) meshConfig(ctx context.Context, change func(string) string) (old string, err error) {
	old, err = w.Kubectl(ctx, "get", "configmap", "-n", "istio-system", "istio", "-o", "jsonpath={.data.mesh}")
	if err != nil {
		return "", err
	}
	return old, w.setMeshConfig(ctx, change(old))
}

func (w *World) setMeshConfig(ctx context.Context, text string) error {
	patch, err := json.Marshal(map[string]any{"data": map[string]string{"mesh": text}})
	if err != nil {
		return err
	}
	_, err = w.Kubectl(ctx, "patch", "configmap", "-n", "istio-system", "istio", "--type", "merge", "-p", string(patch))
	return err
}

// RegistryOnly blocks what is in no registry, or lets it pass again.
func (w *World) RegistryOnly(ctx context.Context, on bool) error {
	_, err := w.meshConfig(ctx, func(text string) string {
		if on {
			return registryOnly(text)
		}
		return strings.Replace(text, "mode: REGISTRY_ONLY", "mode: ALLOW_ANY", 1)
	})
	return err
}

// registryOnly blocks what is in no registry (EG-02); the installation writes the other mode.
func registryOnly(text string) string {
	return strings.Replace(text, "mode: ALLOW_ANY", "mode: REGISTRY_ONLY", 1)
}

// asks sends a line from a pod to an address and returns the first word of the answer: the stand-in's node, "" without any.
func (w *World) asks(ctx context.Context, from, host string, port int) (string, error) {
	r, err := w.Exec(ctx, from, "sleep", fmt.Sprintf("echo hi | nc -w 3 -q 1 %s %d", host, port))
	if err != nil {
		return "", err
	}
	word, _, _ := strings.Cut(r.Out, " ")
	return word, nil
}

// answered wants the answer to come from a node.
func (w *World) answered(ctx context.Context, from, host string, port int, node string) error {
	got, err := w.asks(ctx, from, host, port)
	if err != nil {
		return err
	}
	if got != node {
		return fmt.Errorf("%w: %s → %s:%d was answered by %q, want %q", ErrOther, from, host, port, got, node)
	}
	return nil
}

// assigned is the IPv4 address that the controller gave a host of a ServiceEntry.
func (w *World) assigned(ctx context.Context, namespace, entry, host string) (string, error) {
	out, err := w.Kubectl(ctx, "get", "serviceentry", "-n", namespace, entry, "--ignore-not-found",
		"-o", `jsonpath={range .status.addresses[?(@.host=="`+host+`")]}{.value}{"\n"}{end}`)
	if err != nil {
		return "", err
	}
	for _, ip := range strings.Fields(out) {
		if strings.Count(ip, ".") == 3 {
			return ip, nil
		}
	}
	return "", fmt.Errorf("%w: %s/%s has no address for %s: %q", ErrOther, namespace, entry, host, out)
}
