// Package identity holds the keys and certificates of the workloads of one node, and the TLS rules that prove them.
//
// Invariants:
//   - A private key is made here and never leaves the process: not in a request, a log, a listing or a dump.
//   - A certificate is served only for the identity that it names, and only while it is valid. When none is valid a
//     caller waits (Config.FirstWait) and then gets ErrNoIdentity: there is no way to a connection without one.
//   - A peer counts as who it is only after its whole chain was verified against the roots of the mesh, its leaf carries
//     exactly one URI name, and that name is one that the caller expects. Each cause of refusal has its own error.
//   - Every connection proves both identities again: there are no session tickets and no resumption.
//
// Trusted are the roots in the root file and the roots that came with the certificates held, so that both generations are
// trusted while a root is replaced. A root that was taken out of the file is not trusted any more, whoever still sends it.
package identity
