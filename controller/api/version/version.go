// Package version holds what the linker wrote into this binary.
package version

// Version is the release, also the default image tag; "dev" for a plain go build.
var Version = "dev"

// Commit is the source revision; "" when unknown.
var Commit = ""
