// Package explain says what becomes of a request of a pod, and why, without sending it: where the connection goes by its
// destination, the virtual host, the route and why each earlier one is not taken, clusters, the endpoints that may be picked, how
// each is reached and which policies judge it there. It does so by the code that the node's proxy runs (controller/policy,
// ztunnel/http/route, ztunnel/cluster), of a snapshot of the mesh: at the node, in the CLI, and in tests that replay what was
// recorded.
//
// Invariants: pure, no I/O; equal snapshots, questions and ejected endpoints give equal decisions; a Record is written only when
// the excerpt of the snapshot that is in it decides as the whole did.
package explain
