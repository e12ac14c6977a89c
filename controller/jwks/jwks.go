// Package jwks holds what is known of the keys by which JSON web tokens are judged (JW-09): where they come from, what is
// stored of them, and what may be taken out of an answer. Pure; package keeper fetches.
//
// Invariant: what is stored was parsed, and holds public keys of one source only.
package jwks

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"
)

// Discovery is where an issuer says which keys it uses (OpenID Connect Discovery 1.0, section 4).
const Discovery = "/.well-known/openid-configuration"

const (
	// MaxURL bounds the URL of a source, in bytes: it is stored, logged, and told in statuses.
	MaxURL = 1 << 10
	// MaxSources are looked after; others are left out, and what is stored of them is removed.
	MaxSources = 300
	// MaxSet bounds the keys of one source as they are stored, in bytes.
	MaxSet = 64 << 10
)

// Record is what is stored of one source.
type Record struct {
	Source  string    // a URL
	Keys    string    // RFC 7517, public keys only; "" before the first success
	Fetched time.Time // when the source last gave keys, to the second; zero before it did
	Error   string    // why the last attempt failed; "" when it did not
}

// Wanted is a source that somebody names, and what is stored of it.
type Wanted struct {
	Record
	Namespace string // who is charged with the room that it takes: of those that name it the one that names the fewest
}

// Source is where the keys of a rule come from: its jwksUri, or the configuration of its issuer. The error names the field that
// is not the URL of one.
func Source(jwksURI, issuer string) (string, error) {
	field, source := "jwksUri", jwksURI
	if jwksURI == "" {
		field, source = "issuer", strings.TrimSuffix(issuer, "/")+Discovery
		if _, err := ParseURL(issuer); err != nil {
			return "", fmt.Errorf("%s: %w", field, err)
		}
	}
	if _, err := ParseURL(source); err != nil {
		return "", fmt.Errorf("%s: %w", field, err)
	}
	return source, nil
}

// Name is the name of the resource that holds the keys of a source, and the key of its record.
func Name(source string) string {
	sum := sha256.Sum256([]byte(source))
	return hex.EncodeToString(sum[:10])
}

// ParseURL returns an error for what is not a plain web address.
func ParseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case len(text) > MaxURL:
		return nil, fmt.Errorf("is longer than %d bytes", MaxURL)
	case err != nil || !utf8.ValidString(text) || strings.ContainsAny(text, "\"\\\u2028\u2029"): // what JSON writes longer
		return nil, fmt.Errorf("is not a URL")
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("is not a URL that begins with http:// or https://")
	case u.Hostname() == "" || u.Opaque != "":
		return nil, fmt.Errorf("has no host")
	case u.User != nil:
		return nil, fmt.Errorf("holds a user name, which would be shown to everybody")
	}
	return u, nil
}
