// Package drain starts, restarts and ends the process that carries a node's connections.
//
// The container runs a Supervisor. It starts the same binary again as the worker, which does everything else, and starts
// another within milliseconds when that one crashes: kubelet's back-off never counts. The listening sockets are the node
// agent's, so connections that arrive meanwhile wait in the backlog.
//
// The worker orders its own end with a Group: on a signal it takes nothing new, lets what is open finish within a time limit,
// and only then ends what the connections still need (identities, metrics).
//
// Lifeline: the worker inherits the reading end of a pipe whose other end the supervisor holds. End of file means that
// the supervisor, the container's main process, is gone, so the pod is ending: the worker drains exactly as on SIGTERM. It never
// outlives its pod for longer than that time limit. A hand-over in which an old worker goes on after its pod is to be built
// on the same two things: a worker that is told through its pipe, and a supervisor that starts another.
//
// What exempts the worker's own sockets from capture is the cgroup it runs in, which the node agent looks up; so the container
// has a cgroup of its own and neither process leaves it.
package drain
