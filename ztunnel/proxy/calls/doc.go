// Package calls keeps what the calls of one pod go by: compiled virtual hosts, and clusters with their endpoints, hosts' health and
// statistics.
//
// What is composed of a snapshot of the mesh (controller/policy) is compiled when it is first asked for, and stays while what it was
// made of stays, whatever else changes: pods that come and go change the endpoints of their services and nothing more. Equal
// configuration of several pods is one in memory.
//
// Invariants: nothing here decides who may call whom or how; a call that cannot be compiled is answered with an error and never by
// other rules; what nobody used for an hour is forgotten; the number of things that a pod's requests can name is bounded.
package calls
