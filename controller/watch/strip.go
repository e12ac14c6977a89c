package watch

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/model"
)

// strip removes what the mesh never reads before an informer stores the object.
func strip(o any) (any, error) {
	if m, ok := o.(metav1.Object); ok {
		m.SetManagedFields(nil)
		cleanText(m.GetAnnotations())
	}
	if v, ok := o.(*corev1.Node); ok {
		v.Annotations, v.Spec, v.Status = nil, corev1.NodeSpec{}, corev1.NodeStatus{Addresses: v.Status.Addresses}
	}
	return o, nil
}

// cleanText takes out what is no UTF-8. The API server checks labels and names; annotations it stores as they come, if they
// come as protobuf, and nothing that we write or serve could carry them.
func cleanText(annotations map[string]string) {
	for k, v := range annotations {
		if !utf8.ValidString(v) {
			annotations[k] = strings.ToValidUTF8(v, "\uFFFD")
		}
	}
}

// slimPod is what an informer keeps of a pod: the model's own record of it, which the registry then shares. Of a
// *corev1.Pod the struct alone, without anything in it, is larger.
type slimPod struct {
	name    model.Name
	version string
	pod     *model.Pod // nil: it has finished
}

// GetObjectMeta implements metav1.ObjectMetaAccessor, by which an informer knows the object and sees that it changed.
func (p *slimPod) GetObjectMeta() metav1.Object {
	return &metav1.ObjectMeta{Namespace: p.name.Namespace, Name: p.name.Name, ResourceVersion: p.version}
}

// poolSize is how much a pool holds at most; beyond it, it forgets everything, which costs memory and nothing else.
const poolSize = 1 << 17

// pool lets pods share what is equal in them: the labels of a Deployment's pods, names of nodes and accounts. One informer
// uses it.
type pool struct {
	texts  map[string]string
	labels map[string]map[string]string
	ports  map[string]map[string]uint32
}

func newPool() *pool {
	p := &pool{}
	p.forget()
	return p
}

func (p *pool) forget() {
	p.texts, p.labels, p.ports = map[string]string{}, map[string]map[string]string{}, map[string]map[string]uint32{}
}

// slim replaces a pod by what is kept of it; what was replaced before stays.
func (p *pool) slim(o any) (any, error) {
	v, ok := o.(*corev1.Pod)
	if !ok {
		return o, nil
	}
	if len(p.texts)+len(p.labels)+len(p.ports) > poolSize {
		p.forget()
	}
	cleanText(v.Annotations)
	out := &slimPod{name: model.Name{Namespace: p.text(v.Namespace), Name: v.Name}, version: v.ResourceVersion, pod: model.NewPod(v)}
	if m := out.pod; m != nil {
		m.Name = out.name
		m.Node, m.ServiceAccount = p.text(m.Node), p.text(m.ServiceAccount)
		m.OwnerKind, m.OwnerName = p.text(m.OwnerKind), p.text(m.OwnerName)
		m.Labels, m.Ports = p.sharedLabels(m.Labels), p.sharedPorts(m.Ports)
	}
	return out, nil
}

func (p *pool) text(s string) string {
	if have, ok := p.texts[s]; ok {
		return have
	}
	s = strings.Clone(s) // it may be a part of something larger
	p.texts[s] = s
	return s
}

func (p *pool) sharedLabels(m map[string]string) map[string]string {
	return shared(p.labels, m, func(k, v string) string { return k + "=" + v })
}

func (p *pool) sharedPorts(m map[string]uint32) map[string]uint32 {
	return shared(p.ports, m, func(k string, v uint32) string { return k + "=" + strconv.FormatUint(uint64(v), 10) })
}

// shared returns the first map that equals m. Neither labels nor names of ports have a line break in them.
func shared[V any](all map[string]map[string]V, m map[string]V, pair func(string, V) string) map[string]V {
	pairs := make([]string, 0, len(m))
	for k, v := range m {
		pairs = append(pairs, pair(k, v))
	}
	slices.Sort(pairs)
	key := strings.Join(pairs, "\n")
	if have, ok := all[key]; ok {
		return have
	}
	all[key] = maps.Clone(m)
	return all[key]
}
