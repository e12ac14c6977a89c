package http

import (
	"context"
	"errors"
)

var errNoHTTP2 = errors.New("HTTP/2 is not served yet")

// serveHTTP2 serves the rest of a connection that began with the preface of HTTP/2.
func (s *server) serveHTTP2(context.Context) error { return errNoHTTP2 }
