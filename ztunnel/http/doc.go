// Package http is the L7 engine: it serves the HTTP connections of workloads, takes each request through its route and its filters
// to a host, and brings the answer back, with the results of Envoy as Istio configures it in a sidecar.
//
// One function (exchange.run) takes a request from its head to its log entry, whatever the protocols of both sides are: it
// speaks to a downstream and an upstream, which the codecs implement (HTTP/1.1 here with package h1, HTTP/2 with package h2). With
// HTTP/1.1 it runs on the goroutine of the connection, with HTTP/2 on one for each stream. A second goroutine is started only
// for a request body that did not come with its head, and after 100 ms of waiting, to see that the client is still there.
//
// What the engine does not decide is asked of the Flow's Upstreams: which virtual host, which cluster, how to connect. Hosts,
// pools, circuit breakers and outlier detection are package cluster's, matching and header changes package route's.
//
// Invariants:
//   - A request goes to a host only after its route was found for the source of its flow; nothing is shared between workloads:
//     not a connection, not a pool, not a counter of limits.
//   - It is sent again only when its body is still wholly at hand and no byte of an answer was passed on.
//   - Bytes are read from one side only when the other has taken those before (back-pressure), but for one buffer.
//   - X-Forwarded-Client-Cert is never taken from a client; the destination side sets it from what the mesh has proved.
//   - A panic ends one connection, is counted, and never the process.
//   - While a connection waits for a request it owns no buffer.
package http
