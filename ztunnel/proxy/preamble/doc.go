// Package preamble writes what a connection to a server begins with before the client's bytes, where the caller's DestinationRule
// asks for it: the header of the PROXY protocol, and the request by which an HTTP proxy is asked for the target. It opens, closes
// and times nothing: who has the connection ends it when the other side is too slow.
package preamble
