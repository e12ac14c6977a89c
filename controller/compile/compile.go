// Package compile turns the registry into the resources that nodes receive: workloads, services, authorisation policies
// and settings. Pure: objects in, resources out; compiling the same objects again gives the same resources, and a change
// compiles only what depends on it.
//
// Safety rules: a policy that cannot be enforced as written denies, and its status says why; what PeerAuthentication
// makes STRICT becomes a DENY policy that every workload names, so that a node that has not received it fails closed.
package compile

import (
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/validate"
)

// Resource is one resource of the stream. Message is never modified after it was returned.
type Resource struct {
	Type, Name string
	Aliases    []string // further names it may be asked by: "network/ip"
	Message    proto.Message
}

// Key names a resource.
type Key struct{ Type, Name string }

// Delta is what a batch of events changed.
type Delta struct {
	Generation uint64
	Upserts    []Resource             // sorted by type and name
	Removed    []Key                  // sorted
	Status     []validate.Status      // of the policies that were compiled again, sorted
	Entries    []model.EntryAddresses // of the ServiceEntries that were compiled again, sorted
	Keys       bool                   // Compiler.KeySources changed
}

// Empty reports whether no resource changed.
func (d Delta) Empty() bool { return len(d.Upserts) == 0 && len(d.Removed) == 0 }

// Config is fixed for the life of a Compiler.
type Config struct {
	Mesh             model.Mesh    // defaults; TrustDomain and RootNamespace default to those of package api
	InstallNamespace string        // default: the root namespace
	ClusterDomain    string        // default cluster.local
	ClusterID        string        // default Kubernetes
	Network          string        // default ""
	CertTTL          time.Duration // asked for workload certificates; default 24 h
	RequireMesh      bool          // the installation makes the mesh's ConfigMap: nothing is compiled without it
}

func (c Config) withDefaults() Config {
	for _, d := range []struct {
		field *string
		value string
	}{
		{&c.Mesh.TrustDomain, api.DefaultTrustDomain}, {&c.Mesh.RootNamespace, api.DefaultRootNamespace},
		{&c.InstallNamespace, c.Mesh.RootNamespace}, {&c.ClusterDomain, api.DefaultClusterDomain},
		{&c.ClusterID, api.DefaultClusterID},
	} {
		if *d.field == "" {
			*d.field = d.value
		}
	}
	if c.InstallNamespace == "" {
		c.InstallNamespace = c.Mesh.RootNamespace
	}
	if c.CertTTL == 0 {
		c.CertTTL = 24 * time.Hour
	}
	return c
}

// Compiler holds the registry and what was compiled from it. It has one user at a time.
type Compiler struct {
	cfg        Config
	reg        *model.Registry
	generation uint64
	owned      map[owner][]Key // what an object compiled to
	out        map[Key]held    // what nodes have, without the mesh's settings
	unknown    uint64          // digests given to what cannot be encoded
	findings   map[owner][]validate.Finding
	counts     map[validate.Severity]int

	declarations declarations
}

// owner is the object that resources come from.
type owner struct {
	kind model.Kind
	name model.Name
}

// New returns a Compiler of an empty registry.
func New(cfg Config) *Compiler {
	cfg = cfg.withDefaults()
	return &Compiler{
		cfg: cfg, reg: model.New(model.Config{Mesh: cfg.Mesh, InstallNamespace: cfg.InstallNamespace,
			RequireMesh: cfg.RequireMesh, ClusterDomain: cfg.ClusterDomain}),
		owned: map[owner][]Key{}, out: map[Key]held{}, findings: map[owner][]validate.Finding{},
		counts: map[validate.Severity]int{}, declarations: newDeclarations(),
	}
}

// Held reports that nothing is compiled, because the mesh's configuration is not known; MeshFindings says why. Resources
// made with another root namespace or trust domain would take policies away from nodes, which keep what they have instead.
func (c *Compiler) Held() bool { return c.generation == 0 && !c.reg.MeshKnown() }

// Mesh returns the configuration in force; it means nothing while Held.
func (c *Compiler) Mesh() model.Mesh { return c.reg.Mesh() }

// MeshFindings says what is wrong with the mesh's configuration.
func (c *Compiler) MeshFindings() []validate.Finding { return c.reg.MeshFindings() }

// Apply takes in the events. The first call that is not Held publishes everything, the mesh's settings at the least.
func (c *Compiler) Apply(events []model.Event) Delta {
	dirty := c.reg.Apply(events)
	c.declarations.take(events)
	ch := &change{c: c, touched: map[Key]bool{}, before: map[Key]digest{}, now: map[Key]Resource{}, owners: map[owner]bool{}}
	if !c.reg.MeshKnown() {
		ch.set(owner{kind: model.KindConfigMap}, c.reg.MeshFindings(), nil)
		return Delta{}
	}
	if c.generation == 0 || dirty.Mesh {
		ch.compile(owner{kind: model.KindConfigMap})
	}
	for _, d := range []struct {
		kind  model.Kind
		names map[model.Name]bool
	}{
		{model.KindService, dirty.Services}, {model.KindEndpointSlice, dirty.Slices}, {model.KindServiceEntry, dirty.Entries},
		{model.KindWorkloadEntry, dirty.Workloads}, {model.KindPod, dirty.Pods}, {model.KindDestinationRule, dirty.Rules},
		{model.KindVirtualService, dirty.Virtual},
	} {
		for n := range d.names {
			ch.compile(owner{d.kind, n})
		}
	}
	var status []validate.Status
	for n := range dirty.Policies {
		res, st := c.policy(n)
		ch.set(owner{model.KindAuthorizationPolicy, n}, st.Findings, res)
		status = append(status, st)
	}
	for n := range dirty.Peers {
		st := c.peerStatus(n)
		ch.set(owner{model.KindPeerAuthentication, n}, st.Findings, nil)
		status = append(status, st)
	}
	if dirty.Keyring {
		ch.set(owner{kind: kindKeys}, c.reg.KeyFindings(), nil)
	}
	for source := range dirty.Keys {
		ch.compile(owner{kindKeys, model.Name{Name: source}})
	}
	delta := ch.delta()
	delta.Keys = len(dirty.Keys) > 0
	delta.Status = c.statuses(ch.owners, status)
	for n := range dirty.Entries {
		delta.Entries = append(delta.Entries, c.reg.EntryAddresses(n))
	}
	slices.SortFunc(delta.Entries, func(a, b model.EntryAddresses) int { return strings.Compare(a.Name.String(), b.Name.String()) })
	slices.SortFunc(delta.Status, func(a, b validate.Status) int { return strings.Compare(a.Key(), b.Key()) })
	if c.generation == 0 || dirty.Mesh || !delta.Empty() {
		c.generation++
		delta.Upserts = append(delta.Upserts, c.meshSettings())
	}
	delta.Generation = c.generation
	return delta
}

// Resources returns everything that nodes have, sorted by type and name. They are compiled anew: the compiler keeps only
// digests of them.
func (c *Compiler) Resources() []Resource {
	unique := map[Key]Resource{}
	for o := range c.owned {
		resources, _ := c.resources(o)
		for _, r := range resources {
			unique[Key{r.Type, r.Name}] = r
		}
	}
	all := slices.Collect(maps.Values(unique))
	if c.generation > 0 {
		all = append(all, c.meshSettings())
	}
	slices.SortFunc(all, compareResources)
	return all
}

// resources compiles one object.
func (c *Compiler) resources(o owner) ([]Resource, []validate.Finding) {
	switch o.kind {
	case model.KindConfigMap:
		return c.strictPolicies(), c.reg.MeshFindings()
	case model.KindService:
		return c.service(o.name)
	case model.KindEndpointSlice:
		return c.slice(o.name)
	case model.KindServiceEntry:
		return c.entry(o.name)
	case model.KindWorkloadEntry:
		return c.workloadEntry(o.name)
	case model.KindPod:
		return c.pod(o.name), nil
	case model.KindAuthorizationPolicy:
		res, st := c.policy(o.name)
		return res, st.Findings
	case model.KindDestinationRule:
		return c.callRule(o.name)
	case model.KindVirtualService:
		return c.routeRule(o.name)
	case kindKeys:
		return c.keys(o.name.Name), nil
	}
	return nil, nil
}

// Findings returns what is wrong with the objects, sorted.
func (c *Compiler) Findings() []validate.Finding {
	var all []validate.Finding
	for _, f := range c.findings {
		all = append(all, f...)
	}
	slices.SortFunc(all, func(a, b validate.Finding) int { return strings.Compare(a.Error(), b.Error()) })
	return all
}

// CountFindings returns how many findings of the severity there are.
func (c *Compiler) CountFindings(s validate.Severity) int { return c.counts[s] }
