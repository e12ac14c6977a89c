// Package nodes measures HTTP through whole nodes: the real binaries on two nodes that are network namespaces
// (test/netnstest/lab), with routes, policies, metrics and access log, beside Envoy in the places of sidecars and beside no
// mesh. It asserts no time: "make bench RUN=http" writes what it saw, "make bench RUN=soak" whether memory stays flat.
package nodes
