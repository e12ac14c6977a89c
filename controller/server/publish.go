package server

import (
	"errors"
	"log/slog"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/undermesh/undermesh/controller/api/securityapi"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/xds"
)

// publisher hands what was compiled to the xDS store.
type publisher struct {
	store interface {
		Apply(generation uint64, upserts []xds.Resource, removed []xds.Key) error
	}
	log *slog.Logger
}

// apply never loses a change: a resource that cannot be encoded is named and left out, and the others go on. A policy is
// not left out: without it nodes would allow what it denies.
func (p publisher) apply(d compile.Delta) {
	upserts := make([]xds.Resource, len(d.Upserts))
	for i, r := range d.Upserts {
		upserts[i] = xds.Resource{Type: r.Type, Name: r.Name, Aliases: r.Aliases, Groups: groups(r.Message), Message: served(r.Message)}
	}
	removed := make([]xds.Key, len(d.Removed))
	for i, k := range d.Removed {
		removed[i] = xds.Key{Type: k.Type, Name: k.Name}
	}
	err := p.store.Apply(d.Generation, upserts, removed)
	if err == nil {
		return
	}
	p.log.Error("resource cannot be encoded", "err", err)
	var good []xds.Resource // one change again: who sees a workload sees its policies
	for _, r := range upserts {
		err := encodable(r)
		policy, ok := r.Message.(*securityapi.Authorization)
		switch {
		case err == nil:
			good = append(good, r)
		case !ok:
			p.log.Error("resource is not served", "type", r.Type, "resource", r.Name, "err", err)
			removed = append(removed, xds.Key{Type: r.Type, Name: r.Name}) // what is old is not the truth either
		default:
			p.log.Error("policy cannot be encoded and denies every connection to its workloads", "policy", r.Name, "err", err)
			r.Message = denyAll(policy)
			if err := encodable(r); err != nil {
				p.log.Error("policy stays as it was", "policy", r.Name, "err", err)
				continue
			}
			good = append(good, r)
		}
	}
	if err := p.store.Apply(d.Generation, good, removed); err != nil {
		p.log.Error("change is not served", "generation", d.Generation, "err", err)
	}
}

// groups are the services of a workload: a client that asks for a service on demand needs its workloads.
func groups(m proto.Message) []string {
	a, ok := m.(*workloadapi.Address)
	if !ok || len(a.GetWorkload().GetServices()) == 0 {
		return nil
	}
	return slices.Collect(maps.Keys(a.GetWorkload().GetServices()))
}

// served is the message as nodes get it. Every response says its generation: settings of the mesh that say it too would be
// sent with every change of anything else.
func served(m proto.Message) proto.Message {
	mesh, ok := m.(*settings.MeshSettings)
	if !ok {
		return m
	}
	mesh = proto.CloneOf(mesh)
	mesh.Generation = 0
	return mesh
}

// denyAll is a policy for the same workloads that refuses every connection, with nothing in it that users wrote freely.
func denyAll(p *securityapi.Authorization) *securityapi.Authorization {
	return &securityapi.Authorization{Name: p.GetName(), Namespace: p.GetNamespace(), Scope: p.GetScope(),
		Action: securityapi.Action_DENY, DryRun: p.GetDryRun(), Groups: []*securityapi.Group{{}}}
}

// encodable returns why the resource cannot be put on the wire.
func encodable(r xds.Resource) error {
	if r.Type == "" || r.Name == "" || r.Message == nil {
		return errors.New("type, name or message is missing")
	}
	_, err := proto.Marshal(r.Message)
	return err
}
