package lab

import (
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// service is what kube knows of one.
type service struct {
	addr      netip.Addr
	alias     string // of an ExternalName
	namespace string
	selector  labels.Selector
	ports     []corev1.ServicePort
}

// runLocked starts the pods of a Deployment, or a Pod.
func (k *kube) runLocked(o *object) error {
	var d appsv1.Deployment
	if o.Kind == "Pod" {
		var p corev1.Pod
		if err := o.into(&p); err != nil {
			return err
		}
		d.Spec.Template.Labels, d.Spec.Template.Spec = p.Labels, p.Spec
	} else if err := o.into(&d); err != nil {
		return err
	}
	replicas := 1
	if d.Spec.Replicas != nil {
		replicas = int(*d.Spec.Replicas)
	}
	for i := range replicas {
		name := o.Metadata.Name
		if o.Kind != "Pod" {
			name += fmt.Sprintf("-%d", i)
		}
		if slices.ContainsFunc(k.pods, func(p *running) bool { return p.Namespace == o.Metadata.Namespace && p.Name == name }) {
			continue
		}
		p, err := k.podLocked(o, name, &d.Spec.Template)
		if err != nil {
			return err
		}
		k.pods = append(k.pods, p)
	}
	return nil
}

// podLocked starts a pod on the node that it asks for, or on that with fewer.
func (k *kube) podLocked(o *object, name string, t *corev1.PodTemplateSpec) (*running, error) {
	k.namespaceLocked(o.Metadata.Namespace)
	node := slices.MinFunc(k.Nodes, func(a, b *Node) int { return a.pods - b.pods })
	for _, n := range k.Nodes {
		if t.Spec.NodeSelector["kubernetes.io/hostname"] == n.Name {
			node = n
		}
	}
	p := &running{of: o.Metadata.Name, labels: t.Labels}
	if t.Spec.HostNetwork {
		p.Pod = &Pod{Namespace: o.Metadata.Namespace, Name: name, Node: node, NS: node.NS, Addr: node.Addr}
	} else {
		account := t.Spec.ServiceAccountName
		if account == "" {
			account = "default"
		}
		var pairs []string
		for name, value := range t.Labels {
			pairs = append(pairs, fmt.Sprintf("%s: %q", name, value))
		}
		p.Pod = node.As(o.Metadata.Namespace, name, account, strings.Join(pairs, ", "))
	}
	for i := range t.Spec.Containers {
		c := &t.Spec.Containers[i]
		args, env, err := command(c)
		if err != nil {
			return nil, err
		}
		for _, v := range c.Env {
			env = append(env, v.Name+"="+v.Value)
		}
		if args == nil {
			continue
		}
		if t.Spec.HostNetwork {
			env = append(env, "POD_NAME="+name)
		}
		p.procs = append(p.procs, p.StartWith(env, "samples", args...))
	}
	return p, nil
}

// command is the program of the samples that stands behind an image, with the variables that its image has; nil for one that waits.
func command(c *corev1.Container) (args, env []string, err error) {
	image, _, _ := strings.Cut(c.Image[strings.LastIndexByte(c.Image, '/')+1:], ":")
	rest := append(slices.Clone(c.Command), c.Args...)
	if part, ok := strings.CutPrefix(image, "examples-bookinfo-"); ok {
		program, version, _ := strings.Cut(part, "-")
		return append([]string{program}, rest...), []string{"SERVICE_VERSION=" + version}, nil
	}
	switch image {
	case "curl":
		return nil, nil, nil
	case "samples":
		return rest, nil, nil
	case "httpbin":
		if len(c.Command) > 0 {
			return rest, nil, nil // gunicorn
		}
		return append([]string{"httpbin"}, rest...), nil, nil
	case "tcp-echo-server":
		return append([]string{"tcp-echo"}, rest...), nil, nil
	case "squid":
		return []string{"squid"}, nil, nil
	case "examples-helloworld-v1":
		return []string{"helloworld"}, nil, nil
	}
	return nil, nil, fmt.Errorf("image %s of container %s stands for no sample", c.Image, c.Name)
}

// serveLocked gives a service an address, unless it has one or is an alias, and a name.
func (k *kube) serveLocked(o *object) error {
	var s corev1.Service
	if err := o.into(&s); err != nil {
		return err
	}
	key := o.Metadata.Namespace + "/" + o.Metadata.Name
	known := k.services[key]
	if known == nil {
		known = &service{namespace: o.Metadata.Namespace, addr: k.freeLocked()}
		k.services[key] = known
	}
	known.alias, known.ports, known.selector = s.Spec.ExternalName, s.Spec.Ports, labels.SelectorFromSet(s.Spec.Selector)
	if len(s.Spec.Selector) == 0 {
		known.selector = labels.Nothing()
	}
	if known.alias == "" {
		spec := o.text["spec"].(map[string]any)
		spec["clusterIP"], spec["clusterIPs"] = known.addr.String(), []string{known.addr.String()}
	}
	k.Apply(o.file(), o.yaml())
	return nil
}

// freeLocked is an address that no service has.
func (k *kube) freeLocked() netip.Addr {
	taken := map[netip.Addr]bool{}
	for _, s := range k.services {
		taken[s.addr] = true
	}
	addr := netip.MustParseAddr("10.97.1.1")
	for taken[addr] {
		addr = addr.Next()
	}
	return addr
}

// spreadLocked makes the nodes lead connections to services to their pods, each by chance.
func (k *kube) spreadLocked() error {
	var b strings.Builder
	b.WriteString("table ip lab {}\nflush table ip lab\ntable ip lab {\n chain back { type nat hook postrouting priority 100; ct status dnat masquerade; }\n chain to {\n  type nat hook prerouting priority -100;\n")
	for _, s := range k.services {
		if s.alias != "" {
			continue
		}
		pods := k.findLocked(s.namespace, func(p *running) bool { return s.selector.Matches(p.labels) })
		if len(pods) == 0 {
			continue
		}
		for _, port := range s.ports {
			target := port.TargetPort.IntValue()
			if target == 0 {
				target = int(port.Port)
			}
			var to []string
			for i, p := range pods {
				to = append(to, fmt.Sprintf("%d : %s . %d", i, p.Addr, target))
			}
			fmt.Fprintf(&b, "  ip daddr %s tcp dport %d dnat ip to numgen random mod %d map { %s }\n", s.addr, port.Port, len(pods), strings.Join(to, ", "))
		}
	}
	b.WriteString(" }\n}\n")
	for _, n := range k.Nodes {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(b.String())
		var said strings.Builder
		cmd.Stderr = &said
		if err := runIn(n.NS, "", cmd); err != nil || !cmd.ProcessState.Success() {
			return fmt.Errorf("write rules of %s: %w: %s", n.Name, err, said.String())
		}
	}
	return nil
}
