//go:build tools

// Package tools pins runc; the harness builds it by its import path with the seccomp tag.
package tools

import (
	_ "github.com/opencontainers/runc"
)
