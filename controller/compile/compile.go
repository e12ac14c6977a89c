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
	owned      map[owner][]Key  // what an object compiled to
	refs       map[Key]int      // how many objects want it
	out        map[Key]Resource // what nodes have, without the mesh's settings
	findings   map[owner][]validate.Finding
	counts     map[validate.Severity]int

	declarations declarations
	calling      *callDefaults
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
		owned: map[owner][]Key{}, refs: map[Key]int{}, out: map[Key]Resource{}, findings: map[owner][]validate.Finding{},
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
	ch := &change{c: c, touched: map[Key]bool{}, before: map[Key]Resource{}, owners: map[owner]bool{}}
	if !c.reg.MeshKnown() {
		ch.set(owner{kind: model.KindConfigMap}, c.reg.MeshFindings(), nil)
		return Delta{}
	}
	if c.generation == 0 || dirty.Mesh {
		ch.set(owner{kind: model.KindConfigMap}, c.reg.MeshFindings(), append(c.strictPolicies(), c.fixedClusters()...))
	}
	for n := range dirty.Services {
		res, found := c.service(n)
		ch.set(owner{model.KindService, n}, found, res)
	}
	for n := range dirty.Slices {
		res, found := c.slice(n)
		ch.set(owner{model.KindEndpointSlice, n}, found, res)
	}
	for n := range dirty.Entries {
		res, found := c.entry(n)
		ch.set(owner{model.KindServiceEntry, n}, found, res)
	}
	for n := range dirty.Workloads {
		res, found := c.workloadEntry(n)
		ch.set(owner{model.KindWorkloadEntry, n}, found, res)
	}
	for n := range dirty.Pods {
		ch.set(owner{model.KindPod, n}, nil, c.pod(n))
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
	for source := range dirty.Keys {
		ch.set(owner{kindKeys, model.Name{Name: source}}, nil, c.keys(source))
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

// Resources returns everything that nodes have, sorted by type and name.
func (c *Compiler) Resources() []Resource {
	all := slices.Collect(maps.Values(c.out))
	if c.generation > 0 {
		all = append(all, c.meshSettings())
	}
	slices.SortFunc(all, compareResources)
	return all
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

// change collects what one Apply does to the resources.
type change struct {
	c       *Compiler
	touched map[Key]bool
	before  map[Key]Resource // of what was touched and existed
	owners  map[owner]bool   // whose findings or resources were set
}

func (ch *change) touch(k Key) {
	if ch.touched[k] {
		return
	}
	ch.touched[k] = true
	if r, ok := ch.c.out[k]; ok {
		ch.before[k] = r
	}
}

// set replaces what the object compiles to. Several objects may want one resource; it goes with the last of them.
func (ch *change) set(o owner, findings []validate.Finding, resources []Resource) {
	c := ch.c
	ch.owners[o] = true
	for _, f := range c.findings[o] {
		c.counts[f.Severity]--
	}
	for _, f := range findings {
		c.counts[f.Severity]++
	}
	delete(c.findings, o)
	if len(findings) > 0 {
		c.findings[o] = findings
	}
	old := c.owned[o]
	delete(c.owned, o)
	for _, r := range resources {
		k := Key{r.Type, r.Name}
		ch.touch(k)
		c.refs[k]++
		c.out[k] = r
		c.owned[o] = append(c.owned[o], k)
	}
	for _, k := range old {
		ch.touch(k)
		if c.refs[k]--; c.refs[k] == 0 {
			delete(c.refs, k)
			delete(c.out, k)
		}
	}
}

func (ch *change) delta() Delta {
	var d Delta
	for k := range ch.touched {
		now, exists := ch.c.out[k]
		before, existed := ch.before[k]
		switch {
		case exists && existed && slices.Equal(now.Aliases, before.Aliases) && proto.Equal(now.Message, before.Message):
			ch.c.out[k] = before
		case exists:
			d.Upserts = append(d.Upserts, now)
		case existed:
			d.Removed = append(d.Removed, k)
		}
	}
	slices.SortFunc(d.Upserts, compareResources)
	slices.SortFunc(d.Removed, func(a, b Key) int { return strings.Compare(a.Type+" "+a.Name, b.Type+" "+b.Name) })
	return d
}

func compareResources(a, b Resource) int {
	return strings.Compare(a.Type+" "+a.Name, b.Type+" "+b.Name)
}
