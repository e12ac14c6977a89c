package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/test/e2e"
	"github.com/undermesh/undermesh/test/rows"
)

// kube makes a lab look like a cluster to the tables of rows: it runs Deployments as pods, gives services addresses and names, and
// spreads connections to them as kube-proxy does, for pods outside the mesh. Safe for concurrent use.
type kube struct {
	*Lab
	mu       sync.Mutex // protects below
	pods     []*running
	services map[string]*service // by namespace/name
	hosts    map[string]netip.Addr
	enrolled map[string]bool // of the namespaces that there are
}

// running is a pod of a deployment.
type running struct {
	*Pod
	of     string // the deployment
	labels labels.Set
	procs  []*Process
}

var _ rows.World = (*kube)(nil)

func newKube(t *testing.T) *kube {
	t.Helper()
	k := &kube{services: map[string]*service{}, hosts: map[string]netip.Addr{}, enrolled: map[string]bool{}}
	k.Lab = New(t, Config{Names: k.lookup})
	if err := k.RegistryOnly(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	return k
}

// lookup is what the lab's DNS has.
func (k *kube) lookup(name string) (Record, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if addr, ok := k.hosts[name]; ok {
		return Record{Addr: addr}, true
	}
	short, ok := strings.CutSuffix(name, "."+clusterDomain)
	service, namespace, two := strings.Cut(short, ".")
	s := k.services[namespace+"/"+service]
	if !ok || !two || s == nil {
		return Record{}, false
	}
	return Record{Addr: s.addr, Alias: s.alias}, true
}

// Pace implements rows.World.
func (k *kube) Pace() (tick, late time.Duration) { return 20 * time.Millisecond, time.Second }

// object is what is read of any object.
type object struct {
	Kind     string
	Metadata struct{ Name, Namespace string }
	text     map[string]any
}

// file is the name of the object's file.
func (o *object) file() string {
	return strings.ToLower(o.Kind) + "-" + o.Metadata.Namespace + "-" + o.Metadata.Name
}

// objects reads YAML; objects that name no namespace get the given one.
func objects(namespace, text string) ([]*object, error) {
	var out []*object
	for doc := range strings.SplitSeq("\n"+text, "\n---") {
		o := &object{}
		if err := errors.Join(yaml.Unmarshal([]byte(doc), o), yaml.Unmarshal([]byte(doc), &o.text)); err != nil {
			return nil, fmt.Errorf("read object: %w: %s", err, doc)
		}
		if o.Kind == "" {
			continue
		}
		if o.Metadata.Namespace == "" && o.Kind != "Namespace" {
			o.Metadata.Namespace = namespace
			o.text["metadata"].(map[string]any)["namespace"] = namespace
		}
		out = append(out, o)
	}
	return out, nil
}

// into decodes the object as a type of Kubernetes.
func (o *object) into(v any) error {
	b, err := json.Marshal(o.text)
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		return fmt.Errorf("read %s %s: %w", o.Kind, o.Metadata.Name, err)
	}
	return nil
}

func (o *object) yaml() string {
	b, _ := yaml.Marshal(o.text) // it was read from such text
	return string(b)
}

// ApplyIn implements rows.World.
func (k *kube) ApplyIn(_ context.Context, namespace, text string) error {
	all, err := objects(namespace, text)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, o := range all {
		switch o.Kind {
		case "Namespace":
			k.namespaceLocked(o.Metadata.Name)
		case "Deployment", "Pod":
			err = k.runLocked(o)
		case "Service":
			err = k.serveLocked(o)
		case "ServiceAccount", "Secret", "ConfigMap":
		default:
			k.Apply(o.file(), o.yaml())
		}
		if err != nil {
			return err
		}
	}
	return k.spreadLocked()
}

func (k *kube) namespaceLocked(name string) {
	if _, ok := k.enrolled[name]; !ok {
		k.enrolled[name] = false
		k.Namespace(name, false)
	}
}

// DeleteIn implements rows.World.
func (k *kube) DeleteIn(_ context.Context, namespace, text string) error {
	all, err := objects(namespace, text)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, o := range all {
		switch o.Kind {
		case "Namespace":
			err = k.emptyLocked(o.Metadata.Name)
		case "Deployment", "Pod":
			err = k.endLocked(func(p *running) bool { return p.Namespace == o.Metadata.Namespace && p.of == o.Metadata.Name })
		case "ServiceAccount", "Secret", "ConfigMap":
		case "Service":
			delete(k.services, o.Metadata.Namespace+"/"+o.Metadata.Name)
			fallthrough
		default:
			err = k.remove(o.file())
		}
		if err != nil {
			return err
		}
	}
	return k.spreadLocked()
}

// remove removes a file of the directory, if it is there.
func (k *kube) remove(name string) error {
	if err := os.Remove(filepath.Join(k.Dir, name+".yaml")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// DeleteNamespace implements rows.World.
func (k *kube) DeleteNamespace(_ context.Context, namespace string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return errors.Join(k.emptyLocked(namespace), k.spreadLocked())
}

// emptyLocked takes a namespace away with its pods and services; rules of it are taken away by those who made them.
func (k *kube) emptyLocked(namespace string) error {
	err := k.endLocked(func(p *running) bool { return p.Namespace == namespace })
	for key := range maps.Clone(k.services) {
		if of, name, _ := strings.Cut(key, "/"); of == namespace {
			delete(k.services, key)
			err = errors.Join(err, k.remove("service-"+namespace+"-"+name))
		}
	}
	delete(k.enrolled, namespace)
	return errors.Join(err, k.remove("ns-"+namespace))
}

// endLocked ends pods.
func (k *kube) endLocked(which func(*running) bool) error {
	var err error
	k.pods = slices.DeleteFunc(k.pods, func(p *running) bool {
		if !which(p) {
			return false
		}
		for _, proc := range p.procs {
			proc.Kill()
		}
		err = errors.Join(err, k.remove("pod-"+p.Namespace+"-"+p.Name))
		return true
	})
	return err
}

// Deploy implements rows.World.
func (k *kube) Deploy(ctx context.Context, namespace, node string, samples ...string) error {
	k.mu.Lock()
	k.namespaceLocked(namespace)
	k.mu.Unlock()
	for _, s := range samples {
		text, err := (&e2e.World{Root: k.root}).Sample(s, node)
		if err == nil {
			err = k.ApplyIn(ctx, namespace, text)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// AwaitReady implements rows.World: a lab's pods are ready when they are there, and who asks them asks again.
func (k *kube) AwaitReady(context.Context, string) error { return nil }

// Enrol implements rows.World.
func (k *kube) Enrol(ctx context.Context, namespaces ...string) error {
	return k.enrol(ctx, true, namespaces)
}

// Unenrol implements rows.World.
func (k *kube) Unenrol(ctx context.Context, namespaces ...string) error {
	return k.enrol(ctx, false, namespaces)
}

func (k *kube) enrol(_ context.Context, want bool, namespaces []string) error {
	k.mu.Lock()
	var all []*running
	for _, ns := range namespaces {
		k.enrolled[ns] = want
		k.Namespace(ns, want)
		all = append(all, k.findLocked(ns, func(*running) bool { return true })...)
	}
	k.mu.Unlock()
	for _, p := range all {
		if err := p.awaitEnrolled(want); err != nil {
			return err
		}
	}
	return nil
}

func (k *kube) findLocked(namespace string, which func(*running) bool) []*running {
	var out []*running
	for _, p := range k.pods {
		if p.Namespace == namespace && which(p) {
			out = append(out, p)
		}
	}
	return out
}

// find lists the pods of a namespace that a selector finds.
func (k *kube) find(namespace, selector string) ([]*running, error) {
	s, err := labels.Parse(selector)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.findLocked(namespace, func(p *running) bool { return s.Matches(p.labels) }), nil
}

// caller is a pod of a deployment.
func (k *kube) caller(namespace, deployment string) (*running, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if all := k.findLocked(namespace, func(p *running) bool { return p.of == deployment }); len(all) > 0 {
		return all[0], nil
	}
	return nil, fmt.Errorf("deployment %s/%s has no pods", namespace, deployment)
}

// Pods implements rows.World.
func (k *kube) Pods(_ context.Context, namespace string, selector ...string) ([]e2e.Pod, error) {
	found, err := k.find(namespace, strings.Join(selector, ","))
	out := make([]e2e.Pod, len(found))
	for i, p := range found {
		out[i].Metadata.Name, out[i].Metadata.Namespace, out[i].Metadata.Labels = p.Name, p.Namespace, p.labels
		out[i].Status.PodIP, out[i].Spec.NodeName = p.Addr.String(), p.Node.Name
	}
	return out, err
}

func (k *kube) exec(ctx context.Context, namespace, deployment string, in []byte, name string, args ...string) (e2e.Result, error) {
	p, err := k.caller(namespace, deployment)
	if err != nil {
		return e2e.Result{}, err
	}
	program, rest := p.as(name, args)
	cmd := exec.CommandContext(ctx, program, rest...)
	var out, said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &said
	if err := runIn(p.NS, p.cgroup, cmd); err != nil {
		return e2e.Result{}, err
	}
	return e2e.Result{Out: out.String(), Err: said.String(), Code: cmd.ProcessState.ExitCode()}, ctx.Err()
}

// Ask implements rows.World.
func (k *kube) Ask(ctx context.Context, namespace, deployment string, questions ...e2e.Question) ([][]e2e.Answer, error) {
	in, err := json.Marshal(questions)
	if err != nil {
		return nil, err
	}
	r, err := k.exec(ctx, namespace, deployment, in, "samples", "ask")
	if err != nil {
		return nil, err
	}
	var out [][]e2e.Answer
	if err := json.Unmarshal([]byte(r.Out), &out); err != nil || len(out) != len(questions) {
		return nil, fmt.Errorf("parse answers of %s/%s: %w: %.200q %.200q", namespace, deployment, err, r.Out, r.Err)
	}
	return out, nil
}

// Exec implements rows.World.
func (k *kube) Exec(ctx context.Context, namespace, deployment, line string) (e2e.Result, error) {
	return k.exec(ctx, namespace, deployment, nil, "sh", "-c", line)
}

// Log implements rows.World.
func (k *kube) Log(_ context.Context, namespace, selector string) (string, error) {
	found, err := k.find(namespace, selector)
	var out strings.Builder
	for _, p := range found {
		for _, proc := range p.procs {
			out.WriteString(proc.Output())
		}
	}
	return out.String(), err
}

// Mark implements rows.World.
func (k *kube) Mark() func(context.Context, ...string) error {
	from := map[*Node]int64{}
	for _, n := range k.Nodes {
		_, from[n] = n.Ztunnel.OutputFrom(-1)
	}
	return func(_ context.Context, texts ...string) error {
		for n, offset := range from {
			text, _ := n.Ztunnel.OutputFrom(offset)
			for line := range strings.Lines(text) {
				if !slices.ContainsFunc(texts, func(s string) bool { return !strings.Contains(line, s) }) {
					return nil
				}
			}
		}
		return fmt.Errorf("no line has %q", texts)
	}
}

// adminOf asks the ztunnel of a pod's node for one of the pod's views.
func (k *kube) adminOf(p e2e.Pod, method, view string) (string, error) {
	found, err := k.find(p.Metadata.Namespace, "")
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(found, func(r *running) bool { return r.Name == p.Metadata.Name })
	if i < 0 {
		return "", fmt.Errorf("no pod %s/%s", p.Metadata.Namespace, p.Metadata.Name)
	}
	text, status := found[i].admin(method, view)
	if status != 200 {
		return "", fmt.Errorf("%s of %s: %d: %s", view, p.Metadata.Name, status, text)
	}
	return text, nil
}

// Stats implements rows.World.
func (k *kube) Stats(_ context.Context, p e2e.Pod, filter string) (string, error) {
	return k.adminOf(p, "GET", "stats?filter="+url.QueryEscape(filter))
}

// Drain implements rows.World.
func (k *kube) Drain(_ context.Context, p e2e.Pod, undo bool) error {
	view := "drain_listeners"
	if undo {
		view += "?undo"
	}
	_, err := k.adminOf(p, "POST", view)
	return err
}

// Undermesh implements rows.World.
func (k *kube) Undermesh(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, filepath.Join(k.bin, "undermesh"), args...).CombinedOutput()
	return string(out), err
}

// DryRun implements rows.World: without an API server it is what validate says.
func (k *kube) DryRun(ctx context.Context, text string) (string, bool, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(k.bin, "undermesh"), "validate", "-f", "-")
	cmd.Stdin = strings.NewReader(text)
	out, err := cmd.CombinedOutput()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		return string(out), true, nil
	}
	return string(out), false, err
}

// Trust has the nodes' proxies verify servers outside by these certificates too. They read them once, with the first server.
func (k *kube) Trust(pem string) error { return os.WriteFile(k.publicRoots(), []byte(pem), 0o644) }

// SetHosts implements rows.World.
func (k *kube) SetHosts(_ context.Context, records map[string]string) error {
	hosts := map[string]netip.Addr{}
	for name, text := range records {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return err
		}
		hosts[name] = addr
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.hosts = hosts
	return nil
}

// RegistryOnly implements rows.World.
func (k *kube) RegistryOnly(_ context.Context, on bool) error {
	mode := map[bool]string{true: "REGISTRY_ONLY", false: "ALLOW_ANY"}[on]
	k.mu.Lock()
	defer k.mu.Unlock()
	k.Apply("mesh-config", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: "+api.MeshConfigMap+", namespace: "+api.DefaultRootNamespace+
		"}\ndata:\n  mesh: |\n    accessLogFile: /dev/stdout\n    outboundTrafficPolicy: {mode: "+mode+"}\n")
	return nil
}
