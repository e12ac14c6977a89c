package explain

import (
	"encoding/json"
)

// Decision is what becomes of a request. Fields that do not apply are left out.
type Decision struct {
	Question    Question     `json:"request"`
	Generation  uint64       `json:"generation"` // of the snapshot
	Source      Source       `json:"source"`
	Connection  Connection   `json:"connection"`
	Scope       Scope        `json:"scope"`
	Target      *Target      `json:"target,omitempty"`      // HTTP only
	VirtualHost *VirtualHost `json:"virtualHost,omitempty"` // HTTP only
	Route       *Route       `json:"route,omitempty"`
	Clusters    []Cluster    `json:"clusters,omitempty"`
	Outcome     string       `json:"outcome"` // in one sentence
}

// Source is who calls.
type Source struct {
	Workload string            `json:"workload"` // namespace/name
	Identity string            `json:"identity"`
	Node     string            `json:"node,omitempty"`
	Address  string            `json:"address,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"` // those that rules ask for
}

// Connection is what the listener makes of the connection before it has seen a byte, and of its first ones.
type Connection struct {
	Address  string `json:"address,omitempty"` // that is dialled; "" unknown: the pod asks DNS outside the mesh
	Listener string `json:"listener"`
	Service  string `json:"service,omitempty"` // namespace/host at the address
	Protocol string `json:"protocol"`          // http, tls, tcp
	Why      string `json:"why"`               // what says so
}

// Scope is how much of the mesh the caller sees.
type Scope struct {
	Name   string   `json:"name,omitempty"` // "": everything that is exported to its namespace
	Egress []string `json:"egress,omitempty"`
	Rest   string   `json:"outboundPolicy"`
	// EgressProxy is the cluster that what no registry has is led to; "": none.
	EgressProxy string `json:"egressProxy,omitempty"`
}

// Target is what the authority means.
type Target struct {
	Kind   string   `json:"kind"` // service, virtual host, passthrough, black hole, egress proxy
	Host   string   `json:"host,omitempty"`
	Port   uint16   `json:"port"`
	Passed []Passed `json:"passedOver,omitempty"` // names that it could mean
}

// Passed is something that was not taken.
type Passed struct {
	What string `json:"what"`
	Why  string `json:"why"`
}

// VirtualHost is what the request is matched by.
type VirtualHost struct {
	Name    string   `json:"name"`
	Domains []string `json:"domains"`
	Routes  int      `json:"routes"`
}

// Route is the one that is taken.
type Route struct {
	Name   string          `json:"name,omitempty"`
	Object string          `json:"object,omitempty"` // namespace/name of the VirtualService
	Match  string          `json:"match,omitempty"`
	Does   []string        `json:"does,omitempty"`   // what it does beside leading to clusters
	Config json.RawMessage `json:"config,omitempty"` // envoy.config.route.v3.Route
	Passed []Passed        `json:"passedOver,omitempty"`
}

// Cluster is one that the request may go to.
type Cluster struct {
	Name      string     `json:"name"`
	Share     float64    `json:"share"` // of requests, in percent
	Balancing string     `json:"balancing,omitempty"`
	Hashed    bool       `json:"hashed,omitempty"` // the request itself says which endpoint
	Rules     []string   `json:"destinationRules,omitempty"`
	Missing   string     `json:"missing,omitempty"` // why there is no such cluster
	Total     int        `json:"total"`             // endpoints, of which the first are listed
	Endpoints []Endpoint `json:"endpoints,omitempty"`
}

// Endpoint is one endpoint of a cluster as the caller sees it.
type Endpoint struct {
	Address  string  `json:"address"` // or the name that DNS is asked for
	Workload string  `json:"workload,omitempty"`
	Locality string  `json:"locality,omitempty"`
	Priority uint32  `json:"priority,omitempty"`
	Health   string  `json:"health"` // healthy, unhealthy, draining, ejected
	Share    float64 `json:"share"`  // of the cluster's requests, in percent; 0: it is not picked
	Path     string  `json:"path,omitempty"`
	PathWhy  string  `json:"pathReason,omitempty"`
	Allowed  *bool   `json:"allowed,omitempty"` // nil: nothing of the mesh judges it
	Policy   string  `json:"policy,omitempty"`  // that decided
	Reason   string  `json:"reason,omitempty"`  // of a refusal
}
