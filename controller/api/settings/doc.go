// Package settings is generated protobuf: settings that the Istio resources cannot carry. The wire contract between controller and nodes.
package settings
