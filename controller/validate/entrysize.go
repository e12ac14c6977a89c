package validate

import (
	"fmt"

	networking "istio.io/api/networking/v1alpha3"
)

// Each endpoint of a ServiceEntry is told to nodes with each host and each port, so a file of 122 KB can mean gigabytes for
// the control plane and every node.
const (
	maxEntryPorts  = 1 << 15 // hosts × ports × endpoints of one entry: up to 0.5 MiB, and the names of the hosts, for each node
	selectedEquals = 16      // a selector counts as so many endpoints: what it selects carries hosts × ports too
)

// EntrySize returns an error for a ServiceEntry that is too large to be compiled: none of it counts.
func EntrySize(spec *networking.ServiceEntry) error {
	endpoints, what := len(spec.GetEndpoints()), "endpoints"
	switch {
	case spec.GetResolution() == networking.ServiceEntry_NONE:
		endpoints = 0 // they have no meaning
	case len(spec.GetWorkloadSelector().GetLabels()) > 0:
		endpoints, what = selectedEquals, "for what is selected"
	}
	n := uint64(len(spec.GetHosts())) * uint64(max(1, len(spec.GetPorts()))) * uint64(max(1, endpoints))
	if n <= maxEntryPorts {
		return nil
	}
	return fmt.Errorf("is too large, so none of it counts: %d hosts × %d ports × %d %s are %d, want at most %d",
		len(spec.GetHosts()), len(spec.GetPorts()), max(1, endpoints), what, n, maxEntryPorts)
}
