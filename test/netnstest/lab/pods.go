package lab

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/configdir"
	"github.com/undermesh/undermesh/nodeagent/netns"
	"github.com/undermesh/undermesh/test/netnstest"
)

// Pod is a network namespace on a node's bridge, with a cgroup named as kubelet names a pod's, and an object in the
// directory of YAML.
type Pod struct {
	Namespace, Name, Account, UID string
	Node                          *Node
	NS                            *netns.NetNS
	Addr                          netip.Addr

	cgroup string
}

// Pod makes a pod with the label app=name and starts a process in it, so that it has an owner.
func (n *Node) Pod(namespace, name string) *Pod { return n.Labelled(namespace, name, "app: "+name) }

// Labelled is Pod with other labels, written as in YAML without braces.
func (n *Node) Labelled(namespace, name, labels string) *Pod {
	return n.As(namespace, name, name, labels)
}

// As is Labelled with a service account, which is the pod's name otherwise.
func (n *Node) As(namespace, name, account, labels string) *Pod {
	l := n.lab
	l.T.Helper()
	n.pods++
	p := &Pod{Namespace: namespace, Name: name, Account: account, Node: n, NS: l.netns(),
		Addr: netip.AddrFrom4([4]byte{10, 99, byte(n.n), byte(1 + n.pods)}), UID: uuid()}
	netnstest.Veth(l.T, n.NS, n.bridge, prefix, p.NS, []netip.Prefix{netip.PrefixFrom(p.Addr, 24)}, netip.AddrFrom4([4]byte{10, 99, byte(n.n), 1}))
	n.group("kubepods/pod" + p.UID)
	p.cgroup = n.group("kubepods/pod" + p.UID + "/main")
	l.must(os.Symlink(p.NS.Path(), filepath.Join(n.dir, "netns", "cni-"+p.UID))) // as a container runtime mounts it
	l.start("pause-"+namespace+"-"+name, p.NS, p.cgroup, nil, "/bin/sleep", "infinity")
	l.Apply("pod-"+namespace+"-"+name, fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: %s, uid: %s, labels: {%s}}
spec: {nodeName: %s, serviceAccountName: %s, containers: [{name: main, image: none}]}
status: {phase: Running, podIP: %s, podIPs: [{ip: %s}], conditions: [{type: Ready, status: "True"}]}
`, name, namespace, p.UID, labels, n.Name, p.Account, p.Addr, p.Addr))
	return p
}

// uuid is random, so that labs beside each other do not take each other's pods for their own.
func uuid() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// Start runs a binary of the lab ("samples" under a name of its own) or of the system in the pod.
func (p *Pod) Start(name string, args ...string) *Process {
	p.Node.lab.T.Helper()
	return p.StartWith(nil, name, args...)
}

// StartWith is Start with variables of the environment, NAME=VALUE each.
func (p *Pod) StartWith(env []string, name string, args ...string) *Process {
	p.Node.lab.T.Helper()
	program, rest := p.as(name, args)
	return p.Node.lab.start(p.Namespace+"-"+p.Name+"-"+filepath.Base(name), p.NS, p.cgroup, append(env, "POD_NAME="+p.Name), program, rest...)
}

// as is the command line of a program in the pod. Where DNS is served it has the pod's host name, resolv.conf and a /var/log.
func (p *Pod) as(name string, args []string) (string, []string) {
	l := p.Node.lab
	if name == "samples" || name == "undermesh" {
		name = filepath.Join(l.bin, name)
	}
	if !l.names {
		return name, args
	}
	const enter = `mount --bind "$1" /etc/resolv.conf && mount -t tmpfs none /var/log && echo "$2" >/proc/sys/kernel/hostname && shift 2 && exec "$@"`
	return "unshare", append([]string{"--mount", "--uts", "sh", "-c", enter, "sh", l.resolvConf(p.Namespace), p.Name, name}, args...)
}

// Run executes a command in the pod and gives its output and exit code.
func (p *Pod) Run(limit time.Duration, name string, args ...string) (string, int) {
	p.Node.lab.T.Helper()
	program, rest := p.as(name, args)
	return p.Node.lab.run(p.NS, p.cgroup, limit, program, rest...)
}

// Curl asks a URL and gives "status exit-code".
func (p *Pod) Curl(url string, args ...string) string {
	p.Node.lab.T.Helper()
	out, code := p.Run(15*time.Second, "curl", append([]string{"-s", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", url}, args...)...)
	return fmt.Sprintf("%s %d", out, code)
}

// Namespace writes a namespace; enrolled ones carry the label.
func (l *Lab) Namespace(name string, enrolled bool) {
	l.T.Helper()
	labels := ""
	if enrolled {
		labels = ", labels: {" + api.LabelInjection + ": enabled}"
	}
	l.Apply("ns-"+name, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+name+labels+"}\n")
}

func podAnnotation(v *configdir.View, namespace, name string) string {
	for _, pod := range configdir.List[*corev1.Pod](v) {
		if pod.Namespace == namespace && pod.Name == name {
			return pod.Annotations[api.AnnotationRedirection]
		}
	}
	return ""
}
