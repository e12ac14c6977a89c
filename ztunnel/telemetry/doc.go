// Package telemetry counts and records the connections of a node: the istio_tcp_* metrics with Istio's standard labels,
// counters of refusals by reason, and one structured log line for each connection.
//
// Invariants:
//   - A connection's bytes are visible on the next scrape, not only when it ends: the flow adds to its series directly.
//   - Nothing here blocks a connection: a full log buffer drops the line and counts it.
//   - The number of series is bounded. What does not fit is counted under one series without workload labels; a series
//     that had no connection for Config.ExpireAfter goes.
package telemetry
