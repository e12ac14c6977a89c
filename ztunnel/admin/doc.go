// Package admin is what ztunnel shows of itself: configuration dump, log level, profiles and quit on localhost; what
// each pod's calls did (Envoy's statistics, clusters, draining) there too; metrics and readiness for the cluster.
//
// Invariants: a dump never holds a key; the localhost endpoints answer only requests whose Host is this machine, so that a web
// page in a browser of the node's user cannot read or change anything through a name of its own (DNS rebinding); what changes
// something takes POST.
package admin
