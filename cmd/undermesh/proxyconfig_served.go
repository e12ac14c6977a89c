package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/securityapi"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/policy"
	"github.com/undermesh/undermesh/controller/server"
)

// maxServed bounds what is read of one replica or node, in bytes: 100,000 workloads have about 60 MB as text.
const maxServed = 512 << 20

// servedMesh is what one replica of the control plane serves, or one node holds, decoded.
type servedMesh struct {
	mesh      *settings.MeshSettings
	workloads []*workloadapi.Workload
	services  []servedService
	policies  []*securityapi.Authorization
	settings  map[string]*settings.WorkloadSettings // by name
	scopes    map[string]*settings.Scope            // by name
	calls     []client.Resource                     // CallRules and RouteRules
}

type servedService struct {
	*workloadapi.Service
	settings *settings.ServiceSettings
}

func newServedMesh() *servedMesh {
	return &servedMesh{mesh: &settings.MeshSettings{}, settings: map[string]*settings.WorkloadSettings{},
		scopes: map[string]*settings.Scope{}}
}

// controllerTypes are what a view of a workload is composed of.
var controllerTypes = []string{api.MeshSettingsType, api.AddressType, api.WorkloadSettingsType, api.ScopeType,
	api.AuthorizationType, api.CallRuleType, api.RouteRuleType}

// served asks the first replica of the control plane that answers.
func (c *cluster) served(ctx context.Context, namespace string) (*servedMesh, error) {
	pods, err := c.controllers(ctx, namespace)
	if err != nil {
		return nil, err
	}
	var failed []error
	for _, p := range pods {
		raw, err := c.ask(ctx, p.Namespace, p.Name, api.PortDebug, server.ServedPath+"?"+url.Values{"type": controllerTypes}.Encode(), maxServed)
		if err == nil {
			var m *servedMesh
			if m, err = readServed(raw); err == nil {
				return m, nil
			}
			err = fmt.Errorf("read answer of pod %s/%s: %w", p.Namespace, p.Name, err)
		}
		failed = append(failed, err)
	}
	return nil, errors.Join(failed...)
}

// readServed decodes the answer of a replica.
func readServed(raw []byte) (*servedMesh, error) {
	var in server.Served
	if err := json.Unmarshal(raw, &in); err != nil {
		return nil, err
	}
	m := newServedMesh()
	for _, r := range in.Resources {
		if r.Error != "" {
			return nil, fmt.Errorf("resource %s: %s", r.Name, r.Error)
		}
		if err := m.add(r.Type, r.Name, r.Resource); err != nil {
			return nil, fmt.Errorf("resource %s: %w", r.Name, err)
		}
	}
	return m, nil
}

func (m *servedMesh) add(typ, name string, text []byte) error {
	var into proto.Message
	switch typ {
	case api.MeshSettingsType:
		into = m.mesh
	case api.AddressType:
		into = &workloadapi.Address{}
	case api.WorkloadSettingsType:
		into = put(m.settings, name, &settings.WorkloadSettings{})
	case api.ScopeType:
		into = put(m.scopes, name, &settings.Scope{})
	case api.CallRuleType:
		into = &settings.CallRule{}
		m.calls = append(m.calls, client.Resource{Name: name, Message: into})
	case api.RouteRuleType:
		into = &settings.RouteRule{}
		m.calls = append(m.calls, client.Resource{Name: name, Message: into})
	case api.AuthorizationType:
		p := &securityapi.Authorization{}
		m.policies = append(m.policies, p)
		into = p
	default:
		return nil
	}
	if err := parseProto(text, into); err != nil {
		return err
	}
	if a, ok := into.(*workloadapi.Address); ok {
		if w := a.GetWorkload(); w != nil {
			m.workloads = append(m.workloads, w)
		}
		if s := a.GetService(); s != nil {
			return m.addService(s)
		}
	}
	return nil
}

func put[T any](into map[string]T, name string, v T) T {
	into[name] = v
	return v
}

// parseProto reads what may come from a newer build.
func parseProto(text []byte, into proto.Message) error {
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(text, into)
}

func (m *servedMesh) addService(s *workloadapi.Service) error {
	set := &settings.ServiceSettings{}
	if err := readExtension(s.GetExtensions(), api.ServiceSettingsExtension, set); err != nil {
		return err
	}
	m.services = append(m.services, servedService{s, set})
	return nil
}

func readExtension(all []*workloadapi.Extension, name string, into proto.Message) error {
	for _, e := range all {
		if e.GetName() == name {
			return e.GetConfig().UnmarshalTo(into)
		}
	}
	return nil
}

// heldOn asks the ztunnel of a node what it holds of workloads, services and policies.
func (c *cluster) heldOn(ctx context.Context, namespace, node string) (*servedMesh, error) {
	zts, err := c.ztunnels(ctx, namespace, node)
	if err != nil {
		return nil, err
	}
	path := "/config_dump?" + url.Values{"section": {"mesh", "workloads", "services", "policies"}}.Encode()
	var failed []error
	for _, zt := range zts { // during an update there are two
		raw, err := c.ask(ctx, zt.Namespace, zt.Name, api.PortAdmin, path, maxServed)
		if err == nil {
			var m *servedMesh
			if m, err = readHeld(raw); err == nil {
				return m, nil
			}
			err = fmt.Errorf("read answer of pod %s/%s: %w", zt.Namespace, zt.Name, err)
		}
		failed = append(failed, err)
	}
	return nil, errors.Join(failed...)
}

// readHeld decodes the dump of a ztunnel.
func readHeld(raw []byte) (*servedMesh, error) {
	var in struct{ Mesh, Workloads, Services, Policies []json.RawMessage }
	if err := json.Unmarshal(raw, &in); err != nil {
		return nil, err
	}
	m := newServedMesh()
	for _, text := range in.Mesh {
		if err := parseProto(text, m.mesh); err != nil {
			return nil, err
		}
	}
	for _, text := range in.Workloads {
		w := &workloadapi.Workload{}
		if err := parseProto(text, w); err != nil {
			return nil, err
		}
		m.workloads = append(m.workloads, w)
	}
	for _, text := range in.Services {
		s := &workloadapi.Service{}
		if err := parseProto(text, s); err != nil {
			return nil, err
		}
		if err := m.addService(s); err != nil {
			return nil, err
		}
	}
	for _, text := range in.Policies {
		p := &securityapi.Authorization{}
		if err := parseProto(text, p); err != nil {
			return nil, err
		}
		m.policies = append(m.policies, p)
	}
	return m, nil
}

// sight is how a pod sees the mesh, and by what it calls.
type sight struct{ policy.Caller }

// sightOf returns an error when no workload of this name is served, or not all that it refers to.
func (m *servedMesh) sightOf(namespace, pod string) (sight, error) {
	for _, w := range m.workloads {
		if w.GetNamespace() != namespace || w.GetName() != pod {
			continue
		}
		var ref settings.SettingsRef
		if err := readExtension(w.GetExtensions(), api.WorkloadSettingsExtension, &ref); err != nil {
			return sight{}, err
		}
		scope := m.settings[ref.GetName()].GetScope()
		if scope != "" && m.scopes[scope] == nil {
			return sight{}, fmt.Errorf("scope %s of pod %s/%s is not served", scope, namespace, pod)
		}
		held, err := m.snapshot()
		if err != nil {
			return sight{}, fmt.Errorf("read what pod %s/%s calls by: %w", namespace, pod, err)
		}
		caller, _ := policy.NewCaller(held, held.WorkloadByUID(w.GetUid())) // its scope is there
		return sight{caller}, nil
	}
	return sight{}, fmt.Errorf("pod %s/%s: the control plane serves no workload of this name", namespace, pod)
}

// snapshot is what a node makes of all that is served.
func (m *servedMesh) snapshot() (*client.Snapshot, error) {
	all := append([]client.Resource{{Message: m.mesh}}, m.calls...)
	for name, set := range m.settings {
		all = append(all, client.Resource{Name: name, Message: set})
	}
	for name, scope := range m.scopes {
		all = append(all, client.Resource{Name: name, Message: scope})
	}
	for _, s := range m.services {
		all = append(all, client.Resource{Message: s.Service})
	}
	for _, w := range m.workloads {
		all = append(all, client.Resource{Message: w})
	}
	return client.NewSnapshot(all...)
}
