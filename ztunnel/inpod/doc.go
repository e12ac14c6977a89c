// Package inpod keeps one proxy for each pod that the node agent hands over: it takes the pod's network namespace and its
// listeners (ZDS), makes sockets in that namespace, and gives the listeners back to an agent that was restarted.
//
// Invariants:
//   - A listener is served only if it lives in the namespace that came with it.
//   - A connection that waits in a listener's backlog is not lost when the agent replaces that listener.
//   - A pod that the agent no longer names gets no new connections. Those that it has go on until they end or the proxy's
//     grace is over, and keep the namespace open until then.
package inpod
