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
)

// Discovery is where an issuer says which keys it uses (OpenID Connect Discovery 1.0, section 4).
const Discovery = "/.well-known/openid-configuration"

// MaxURL bounds the URL of a source, in bytes: it is stored, logged, and told in statuses.
const MaxURL = 1 << 10

// Record is what is stored of one source.
type Record struct {
	Source  string    // a URL
	Keys    string    // RFC 7517, public keys only; "" before the first success
	Fetched time.Time // when the source last gave keys, to the second; zero before it did
	Error   string    // why the last attempt failed; "" when it did not
}

// Source is where the keys of a rule come from: its jwksUri, or the configuration of its issuer. It is "" when neither is
// the URL of one.
func Source(jwksURI, issuer string) string {
	for _, candidate := range []string{jwksURI, issuer} {
		if candidate == "" {
			continue
		}
		if _, err := ParseURL(candidate); err != nil {
			return ""
		}
		if jwksURI == "" {
			return strings.TrimSuffix(candidate, "/") + Discovery
		}
		return candidate
	}
	return ""
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
	case err != nil:
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
