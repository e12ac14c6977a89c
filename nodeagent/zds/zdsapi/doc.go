// Package zdsapi is the generated protobuf of the messages between node agent and ztunnel.
package zdsapi
