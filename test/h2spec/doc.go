// Package h2spec runs the conformance suite of others for HTTP/2, h2spec, against both roles of ztunnel/http/h2. It is a
// module of its own, so that what the suite needs is not needed by the mesh.
package h2spec
