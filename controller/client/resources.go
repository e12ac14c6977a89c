package client

import (
	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
)

// Resources calls yield with everything that the snapshot is made of, in no order: NewSnapshot of it is an equal one.
func (s *Snapshot) Resources(yield func(Resource) bool) {
	if !yield(Resource{Name: api.MeshSettingsName, Message: s.mesh}) {
		return
	}
	for uid, w := range s.workloads.all() {
		if !yield(Resource{Name: uid, Message: &workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: w.Workload}}}) {
			return
		}
	}
	for n, svc := range s.services.all() {
		if !yield(Resource{Name: n.namespace + "/" + n.name, Message: &workloadapi.Address{Type: &workloadapi.Address_Service{Service: svc.Service}}}) {
			return
		}
	}
	for n, m := range s.settings.all() {
		if !yield(Resource{Name: n, Message: m}) {
			return
		}
	}
	for n, m := range s.scopes.all() {
		if !yield(Resource{Name: n, Message: m}) {
			return
		}
	}
	for n, p := range s.policies.all() {
		if !yield(Resource{Name: n.namespace + "/" + n.name, Message: p}) {
			return
		}
	}
	for n, r := range s.rules.all() {
		if !yield(Resource{Name: n, Message: r.CallRule}) {
			return
		}
	}
	for n, r := range s.routes.all() {
		if !yield(Resource{Name: n, Message: r.RouteRule}) {
			return
		}
	}
}
