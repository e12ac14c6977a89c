package telemetry

import (
	"strings"
	"unicode/utf8"
)

// Peer is one side of a connection as metrics name it. Empty strings are reported as "unknown".
type Peer struct {
	Workload          string // of the owner, as a Deployment's name
	Namespace         string
	Principal         string // SPIFFE ID; only what was proved, never what was looked up
	App               string
	Version           string
	CanonicalService  string
	CanonicalRevision string
	Cluster           string
	Region, Zone      string
}

// Service is the service that the client addressed; the zero value when it was a pod or an address outside.
type Service struct {
	Host, Name, Namespace string
}

// Reporter is the side of the connection that this node stands for.
type Reporter string

// The two reporters. A connection within one node is reported by both.
const (
	Source      Reporter = "source"
	Destination Reporter = "destination"
)

// Security is the value of connection_security_policy.
type Security string

// The values of connection_security_policy. SameNode is ours: identity attested by the kernel, no TLS.
const (
	MutualTLS Security = "mutual_tls"
	SameNode  Security = "same_node"
	NoTLS     Security = "none"
)

// Labels identify a series.
type Labels struct {
	Reporter            Reporter
	Source, Destination Peer
	Service             Service
	Security            Security
	Flags               string // response_flags; "" means "-"
}

var labelNames = []string{
	"reporter",
	"source_workload", "source_workload_namespace", "source_principal", "source_app", "source_version",
	"source_canonical_service", "source_canonical_revision", "source_cluster", "source_region", "source_zone",
	"destination_workload", "destination_workload_namespace", "destination_principal", "destination_app", "destination_version",
	"destination_canonical_service", "destination_canonical_revision", "destination_cluster", "destination_region", "destination_zone",
	"destination_service", "destination_service_name", "destination_service_namespace",
	"request_protocol", "response_flags", "connection_security_policy",
}

// known is what a metric shows for s. Scraping fails as a whole for text that is not UTF-8.
func known(s string) string {
	switch {
	case s == "":
		return "unknown"
	case !utf8.ValidString(s):
		return strings.ToValidUTF8(s, "\uFFFD")
	}
	return s
}

// fields are the texts of l that others choose.
func (l *Labels) fields() []*string {
	f := make([]*string, 0, len(labelNames))
	for _, p := range [2]*Peer{&l.Source, &l.Destination} {
		f = append(f, &p.Workload, &p.Namespace, &p.Principal, &p.App, &p.Version,
			&p.CanonicalService, &p.CanonicalRevision, &p.Cluster, &p.Region, &p.Zone)
	}
	return append(f, &l.Service.Host, &l.Service.Name, &l.Service.Namespace)
}

// canonical is equal for all labels that show the same: two series with the same values would fail every scrape, and a pod may
// well be labelled "app: unknown".
func (l Labels) canonical() Labels {
	for _, f := range l.fields() {
		*f = known(*f)
	}
	if l.Flags == "" {
		l.Flags = "-"
	}
	if l.Security == "" {
		l.Security = NoTLS
	}
	return l
}

// values of canonical labels are in the order of labelNames.
func (l Labels) values() []string {
	v := make([]string, 0, len(labelNames))
	v = append(v, string(l.Reporter))
	for _, f := range l.fields() {
		v = append(v, *f)
	}
	return append(v, "tcp", l.Flags, string(l.Security))
}

// overflow is the series of everything that no series of its own is left for.
func (l Labels) overflow() Labels {
	return Labels{Reporter: l.Reporter, Security: l.Security, Flags: l.Flags}.canonical()
}
