// Package l7 holds what users see of HTTP, TCP and TLS rules on a real cluster: tables of rows, each with its resource, the calls that
// are made, and what must come back, written from the catalogue of capabilities and not from what our compiler makes of a resource.
//
// A row is observed four times: without its resource, with it, with it from outside the mesh, and gone again. The tests share one
// fixture and run one after the other on the cluster named by NAME, after those of test/e2e.
package l7
