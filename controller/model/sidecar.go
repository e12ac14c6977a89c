package model

import (
	"slices"
	"strings"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
)

// Sidecar says what the workloads that it is for may reach (SR-16).
type Sidecar struct {
	*networkingv1.Sidecar
	Labels map[string]string // none: the whole namespace, or the mesh for the root namespace
	// Egress is nil when the Sidecar says nothing of what may be reached.
	Egress []Egress
	// RegistryOnly means something only with OwnPolicy: otherwise the mesh decides about hosts in no registry.
	RegistryOnly, OwnPolicy bool
}

// Egress is what may be reached on one port.
type Egress struct {
	Port  uint32 // 0: every port that no other item names
	Hosts []string
}

func newSidecar(o *networkingv1.Sidecar) *Sidecar {
	out := &Sidecar{Sidecar: o, Labels: o.Spec.GetWorkloadSelector().GetLabels()}
	out.RegistryOnly, out.OwnPolicy = outboundMode(o.Spec.GetOutboundTrafficPolicy())
	for _, l := range o.Spec.GetEgress() {
		if strings.HasPrefix(l.GetBind(), "unix://") { // no TCP connection comes by it
			continue
		}
		hosts := slices.Clone(l.GetHosts())
		slices.Sort(hosts)
		out.Egress = append(out.Egress, Egress{Port: l.GetPort().GetNumber(), Hosts: slices.Compact(hosts)})
	}
	if len(out.Egress) == 0 && len(o.Spec.GetEgress()) > 0 {
		out.Egress = []Egress{{}}
	}
	return out
}

// dirtySidecar marks the pods that a Sidecar may be for.
func (r *Registry) dirtySidecar(s *Sidecar, d *Dirty) {
	if len(s.Labels) == 0 && s.Namespace == r.mesh.now.RootNamespace {
		r.dirtyWorkloads(d)
		return
	}
	r.dirtyLabelled(s.Namespace, s.Labels, d)
}

// SidecarOf returns the Sidecar that counts for a workload of the namespace with the labels, nil when there is none: one of
// its namespace that selects it, one of its namespace for all, one of the root namespace for all; the oldest of each. One that
// says nothing of what may be reached inherits that of the next.
func (r *Registry) SidecarOf(namespace string, labels map[string]string) *Sidecar {
	levels := r.sidecarsOf(namespace, labels)
	if len(levels) == 0 {
		return nil
	}
	first := levels[0]
	i := slices.IndexFunc(levels, func(s *Sidecar) bool { return s.Egress != nil })
	if i <= 0 {
		return first
	}
	heir := *first
	heir.Egress = levels[i].Egress
	return &heir
}

// sidecarsOf returns those of the levels that have one, the one that counts first.
func (r *Registry) sidecarsOf(namespace string, labels map[string]string) []*Sidecar {
	var selecting, whole, global *Sidecar
	for _, s := range r.traffic.sidecars[namespace] {
		switch {
		case len(s.Labels) == 0:
			whole = olderSidecar(whole, s)
		case Matches(s.Labels, labels):
			selecting = olderSidecar(selecting, s)
		}
	}
	for _, s := range r.traffic.sidecars[r.mesh.now.RootNamespace] {
		if namespace != r.mesh.now.RootNamespace && len(s.Labels) == 0 {
			global = olderSidecar(global, s)
		}
	}
	return slices.DeleteFunc([]*Sidecar{selecting, whole, global}, func(s *Sidecar) bool { return s == nil })
}

func olderSidecar(a, b *Sidecar) *Sidecar {
	if a == nil || byAge(b.CreationTimestamp.Time, a.CreationTimestamp.Time, b.Sidecar.Name, a.Sidecar.Name) < 0 {
		return b
	}
	return a
}
