// Package cluster holds one upstream cluster as one source workload knows it: which host takes the next request or connection,
// which hosts are ejected for now, how many connections, requests and retries may be under way, and what all that was counted as.
// It serves HTTP (ztunnel/http) and TCP (ztunnel/proxy) alike and knows no protocol: it dials nothing and reads nothing.
//
// The rules are Envoy's, so that DestinationRules mean what their documents say and Envoy can be the oracle of tests: Spec is
// compiled from Envoy's cluster message, statistics carry Envoy's names. Where Envoy keeps a thing per worker thread, there is
// one here.
//
// What is immutable is shared: a Spec by all clusters of that configuration, Hosts (endpoints, sums of weights, hash rings and
// tables) by all source workloads that see the same endpoints. A Cluster itself keeps a pointer for each endpoint and the state
// of those hosts that were used.
//
// Invariants:
//   - An endpoint that is draining gets nothing new while there is another; what is under way at it goes on.
//   - A host keeps its identity (*Host), its ejection and its counts over Update as long as key and address stay.
//   - Not more than the allowed share of hosts is ejected at a time.
//   - The same hash leads to the same endpoint on every node that sees the same endpoints.
//   - Counting allocates nothing.
package cluster
