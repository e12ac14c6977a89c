// Package dns resolves the names behind hosts that users declared by name (ServiceEntry with resolution DNS, ExternalName), in
// the cluster's view of DNS: it asks the servers that the node's ztunnel was given, never what a client says.
//
// Invariants: the number of names, of addresses of a name and of questions at a time is bounded; a name is asked for again when
// its time to live is over; a server that fails or answers nonsense takes away nothing that is known; an answer counts only when
// it is to the question that was asked, on the connection that it was asked on.
package dns
