// Package route compiles Envoy's route configuration (route.v3.VirtualHost, RouteConfiguration) into an immutable form that is
// matched without allocation and applied with Envoy's results, in Envoy's order.
//
// A VirtualHost finds the first Route that a request matches. A Route says what becomes of the request: it is forwarded
// (Forward), redirected (Redirect) or answered (Direct), and has the filters that stand before: Fault, then CORS, as Istio
// orders them. The methods that apply a Route change heads (package head) and nothing else: no I/O, no clock; random numbers
// are given.
//
// Invariants: what is compiled is never changed afterwards and is safe for concurrent use. What a message asks for and this
// package does not do makes Compile fail and name the route and the field; nothing is left out silently.
//
// The order of a request, for the engine:
//
//	r := host.Match(req, in)               // nil: 404, NR, route_not_found
//	r.Fault.Decide(req, target, …)         // delay (DI), then abort (FI)
//	r.CORS.Request(req, …)                 // may answer a preflight
//	r.Direct, r.Redirect                   // answered here; r.Response changes the answer's head
//	target := r.Pick(req, in)              // the cluster; "": NC
//	timeouts := r.Timeouts(req, false)
//	r.Request(req, target, in)             // header operations, host and path rewrite
//	retry, hash := r.Retry(req, in), r.Hash(req, in)
//	r.HostPicked(req, target, in)          // at each attempt
//	…                                      // for each response: retry.Head, or r.Response(resp, target, in)
package route
