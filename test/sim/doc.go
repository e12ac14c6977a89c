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
// A history is a function of its seed as far as the script, the network's latencies and every jitter of ours are. Goroutines
// that are runnable at one instant of virtual time are ordered by Go's scheduler: a seed repeats its faults and their times, and
// nearly always its outcome.
package sim
