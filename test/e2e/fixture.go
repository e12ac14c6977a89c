package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/undermesh/undermesh/controller/api"
)

// Meshed and Legacy are the documents' three namespaces: foo and bar join the mesh, legacy does not. foo lies on the first
// node, bar on the second, legacy on the first: so legacy→foo and bar→bar stay on a node, legacy→bar and foo→bar cross.
var (
	Meshed = []string{"foo", "bar"}
	All    = []string{"foo", "bar", "legacy"}
)

// nodeOf places the namespaces' pods.
var nodeOf = map[string]string{"foo": "node1", "bar": "node2", "legacy": "node1"}

// Sample reads a sample's manifest and pins its pods to a node ("" for any). A name is a directory of deploy/samples, whose manifest
// has its name, or the path of one below that.
func (w *World) Sample(name, node string) (string, error) {
	file := name
	if !strings.Contains(name, "/") {
		file = filepath.Join(name, name)
	}
	b, err := os.ReadFile(filepath.Join(w.Root, "deploy/samples", file+".yaml"))
	if err != nil {
		return "", fmt.Errorf("read sample: %w", err)
	}
	if node == "" {
		return string(b), nil
	}
	docs := strings.Split(string(b), "\n---")
	for i, doc := range docs {
		var d appsv1.Deployment
		if err := yaml.Unmarshal([]byte(doc), &d); err != nil {
			return "", fmt.Errorf("parse sample %s: %w", name, err)
		}
		if d.Kind != "Deployment" {
			continue
		}
		d.Spec.Template.Spec.NodeSelector = map[string]string{"kubernetes.io/hostname": node}
		m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&d)
		if err != nil {
			return "", err
		}
		delete(m, "status")
		out, err := yaml.Marshal(m)
		if err != nil {
			return "", err
		}
		docs[i] = "\n" + string(out)
	}
	return strings.Join(docs, "\n---"), nil
}

// Deploy applies samples to a namespace, which it creates, and waits until their pods are ready.
func (w *World) Deploy(ctx context.Context, namespace, node string, samples ...string) error {
	if err := w.Apply(ctx, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+namespace+"}\n"); err != nil {
		return err
	}
	for _, s := range samples {
		text, err := w.Sample(s, node)
		if err != nil {
			return err
		}
		if _, err := w.KubectlIn(ctx, []byte(text), "apply", "-n", namespace, "-f", "-"); err != nil {
			return err
		}
	}
	return w.AwaitReady(ctx, namespace)
}

// AwaitReady waits until every pod of a namespace is ready.
func (w *World) AwaitReady(ctx context.Context, namespace string) error {
	return Until(ctx, 90*time.Second, "pods of "+namespace+" to be ready", func(ctx context.Context) error {
		pods, err := w.Pods(ctx, namespace)
		if err != nil {
			return err
		}
		if len(pods) == 0 {
			return fmt.Errorf("there is none")
		}
		for i := range pods {
			if !pods[i].Ready() {
				return fmt.Errorf("pod %s is %s and not ready", pods[i].Metadata.Name, pods[i].Status.Phase)
			}
		}
		return nil
	})
}

// Fixture deploys httpbin and sleep to the three namespaces, tcp-echo to foo and helloworld to bar.
func (w *World) Fixture(ctx context.Context) error {
	extra := map[string][]string{"foo": {"tcp-echo"}, "bar": {"helloworld"}}
	for _, ns := range All {
		if err := w.Deploy(ctx, ns, nodeOf[ns], append([]string{"httpbin", "sleep"}, extra[ns]...)...); err != nil {
			return err
		}
		pods, err := w.Pods(ctx, ns)
		if err != nil {
			return err
		}
		for i := range pods {
			w.Say("  %-7s %-32s %s %s", ns, pods[i].Metadata.Name, pods[i].Spec.NodeName, pods[i].Status.PodIP)
		}
	}
	return nil
}

// PodFacts are what enrolment must not change.
func (w *World) PodFacts(ctx context.Context, namespaces []string) (map[string]string, error) {
	facts := map[string]string{}
	for _, ns := range namespaces {
		pods, err := w.Pods(ctx, ns)
		if err != nil {
			return nil, err
		}
		for _, p := range pods {
			restarts, ready := 0, 0
			for _, c := range p.Status.ContainerStatuses {
				restarts += c.RestartCount
				if c.Ready {
					ready++
				}
			}
			facts[ns+"/"+p.Metadata.Name] = fmt.Sprintf("uid %s, %d restarts, READY %d/%d, %s", p.Metadata.UID, restarts, ready, len(p.Status.ContainerStatuses), p.Status.PodIP)
		}
	}
	return facts, nil
}

// Same compares two PodFacts.
func Same(before, after map[string]string) error {
	if len(before) == 0 {
		return fmt.Errorf("there are no pods to compare")
	}
	for name, was := range before {
		if now := after[name]; now != was {
			return fmt.Errorf("pod %s was %q and is %q", name, was, now)
		}
	}
	if len(after) != len(before) {
		return fmt.Errorf("there were %d pods and are %d", len(before), len(after))
	}
	return nil
}

// Enrol labels namespaces and waits until each of their pods carries the agent's annotation.
func (w *World) Enrol(ctx context.Context, namespaces ...string) error {
	for _, ns := range namespaces {
		if _, err := w.Kubectl(ctx, "label", "namespace", ns, api.LabelInjection+"=enabled", "--overwrite"); err != nil {
			return err
		}
	}
	return w.awaitAnnotation(ctx, namespaces, api.RedirectionEnabled)
}

// Unenrol removes the label and waits until the annotation is gone.
func (w *World) Unenrol(ctx context.Context, namespaces ...string) error {
	for _, ns := range namespaces {
		if _, err := w.Kubectl(ctx, "label", "namespace", ns, api.LabelInjection+"-"); err != nil {
			return err
		}
	}
	return w.awaitAnnotation(ctx, namespaces, "")
}

func (w *World) awaitAnnotation(ctx context.Context, namespaces []string, want string) error {
	return Until(ctx, time.Minute, fmt.Sprintf("annotation %s=%q on the pods of %s", api.AnnotationRedirection, want, strings.Join(namespaces, ", ")), func(ctx context.Context) error {
		for _, ns := range namespaces {
			pods, err := w.Pods(ctx, ns)
			if err != nil {
				return err
			}
			for _, p := range pods {
				if got := p.Metadata.Annotations[api.AnnotationRedirection]; got != want {
					return fmt.Errorf("pod %s/%s has %q", ns, p.Metadata.Name, got)
				}
			}
		}
		return nil
	})
}

// Bare takes the mesh off the cluster, if an earlier run left it there.
func (w *World) Bare(ctx context.Context) error {
	out, err := w.Kubectl(ctx, "get", "daemonset", "-n", api.DefaultRootNamespace, api.AgentName, "--ignore-not-found", "-o", "name")
	if err != nil || out == "" {
		return err
	}
	w.Say("  the mesh of an earlier run is removed first")
	if _, err := w.Kubectl(ctx, "label", "namespaces", "-l", api.LabelInjection, api.LabelInjection+"-"); err != nil {
		return err
	}
	_, err = w.Undermesh(ctx, "uninstall", "--purge", "-y")
	return err
}
