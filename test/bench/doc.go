// Package bench compares the mesh with no mesh, and with TLS per connection, in one run: the real binaries on two nodes that
// are network namespaces, the same load tool, rounds in which every side has its turn in random order.
//
// It asserts no time. What could not be measured is shown as missing, with the reason; beside each figure stand the
// counters of the proxies that prove which way the bytes took. "make bench" runs it; results are in docs/bench.
package bench
