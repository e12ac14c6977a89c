// Package sim is the mesh as a deterministic simulation: the real controller, N real ztunnels and applications run in one
// process on a network in memory (package memnet), under testing/synctest, without a kernel, a socket or real time. One seed
// is one history of pods that come and go, policies and endpoints that change and arrive in another order, processes that
// crash and links that are cut. Everything that the mesh does is the code that runs on a node; only the two things that the
// kernel does are played here, in datapath.go: handing a connection to the right listener, and knowing who made it.
//
// On every history is checked:
//   - forbidden: an application reads a byte only when the policies that were in force at its node at some moment of the last
//     Bound allow its sender. What is in force is told by an interpreter of its own (model.go) over the objects as they were
//     published, and by what the node's snapshot says that it has acknowledged.
//   - plaintext: the wire shows no byte of an application to a STRICT port that the application then reads; nor does a leg
//     on one node that starts when the port is STRICT.
//   - principal: the identity in a node's record of a connection is that of the pod that had the address.
//   - reason: what a client of the mesh sees broken is in the record of its node with a reason of the registry; no record
//     has a reason that means a defect.
//   - integrity: what is read is what was written, in order; an end without an error comes after the last byte.
//   - recovery: Recovery after the last fault every allowed pair talks and no other does, and no connection hangs.
//   - continuity: in a calm history, where pods are only enrolled and released, every connection completes.
//   - leak: when everything was told to end, no goroutine is left.
//
// In histories of HTTP (Options.Requests) VirtualServices and DestinationRules change too, and of each request is checked, by a
// reading of these objects that shares no code with the mesh's (routes.go), beside forbidden, plaintext, principal and leak:
//   - route: an application reads only what a rule leads to it that its client's node may have had since the request began, as
//     what the node has acknowledged then and what was published since tell; a pod that got another's address is none of these.
//   - twice: an application reads a request again only when a policy that may have been in force says so; who asks with POST and says
//     nothing of that is not served twice.
//   - mixed: an answer is that of the request, byte for byte, and not that of a copy.
//   - recovery, unserved, weights: after the last fault requests end as the rules say, then all of them do, and as many go to each
//     destination as the weights say.
//   - accounting: when all clients have their answers, nothing is held to be under way, and no client's connection is open.
//
// A history is a function of its seed as far as the script, the network's latencies and every jitter of ours are. Goroutines
// that are runnable at one instant of virtual time are ordered by Go's scheduler: a seed repeats its faults and their times, and
// nearly always its outcome.
package sim
