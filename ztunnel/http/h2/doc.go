// Package h2 is HTTP/2 over one net.Conn, in the role of the server or of the client (RFC 9113, 7541, 8441).
//
// One goroutine reads a connection and decodes what comes; heads come as the text form of package head, without an allocation
// for each. A stream is used by blocking calls of whoever handles it (Stream), and what it writes gathers with what others
// write in one system call: while a goroutine flushes, others add to the next write. A socket that is full is left to a
// goroutine of its own, so that a slow peer blocks neither the goroutine that reads nor handlers of other connections.
//
// Invariants: a peer gets window back only for bytes that were read here, so that a connection holds at most
// Config.ConnWindow bytes of bodies; what waits to be written is bounded by Config.MaxQueued and, for answers to the peer,
// Config.MaxControl. What costs us and brings nothing is bounded by Config.Burst and Config.Rate. A message that is malformed
// in the sense of RFC 9113 §8.1.1 reaches no handler: its stream is reset. Upgrade of HTTP/1.1 to h2c is not offered: Envoy
// and with it Istio ignore it, and RFC 9113 has removed it.
//
// Lock: Conn.mu protects a connection and its streams; no goroutine holds two of them, and no callback is called with one.
package h2
