// Package securityapi is generated protobuf: the L4 authorization resource. The wire contract between controller and nodes.
package securityapi
