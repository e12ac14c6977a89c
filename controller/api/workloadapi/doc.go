// Package workloadapi is generated protobuf: the workload discovery resources. The wire contract between controller and nodes.
package workloadapi
