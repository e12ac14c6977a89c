// Package proxy carries the TCP connections of a node's pods: outbound and inbound plain text, the tunnel's two ends, and
// kubelet's HTTP probes.
//
// A Proxy is what the pods of a node share; a Pod is one of them, with the listeners that live in its network namespace.
// The accepted socket's own address is the connection's original destination, its peer address the original client: nothing
// is looked up. The pod whose listener accepted a connection is the kernel's word for who the client is.
//
// Invariants:
//   - Whatever cannot be decided is refused: no snapshot, a workload that the control plane does not know, a policy that has
//     not arrived, no certificate. A connection waits for them up to Config.HoldTimeout. None of them turns into plain text.
//   - A connection to a pod of this node is judged by that pod's policies before its first byte is delivered, and again
//     when they change.
//   - Every refusal has a reason; it is counted and logged.
//   - A refused client was accepted and is reset after its first bytes or Config.RefuseDelay.
//   - An idle connection holds no buffer. A panic ends the connection that it happened in and nothing else.
//   - No goroutine outlives Pod.Run.
package proxy
