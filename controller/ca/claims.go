package ca

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/undermesh/undermesh/controller/api"
)

const (
	maxToken  = 16 << 10    // bytes; a service account's has about 1 KiB
	claimSkew = time.Minute // the API server's clock may be behind
)

// audiences is the claim aud: one string or a list of them (RFC 7519 §4.1.3).
type audiences []string

// UnmarshalJSON implements json.Unmarshaler.
func (a *audiences) UnmarshalJSON(raw []byte) error {
	var one string
	if err := json.Unmarshal(raw, &one); err == nil {
		*a = audiences{one}
		return nil
	}
	return json.Unmarshal(raw, (*[]string)(a))
}

// checkClaims refuses what the API server would refuse as well, without asking it: what is no JWT, is for another audience
// or has expired. It returns when the token ends, and proves nothing; the signature is the API server's to check. Its errors quote
// nothing of the token.
func checkClaims(token string, now time.Time) (ends time.Time, err error) {
	if len(token) > maxToken {
		return ends, fmt.Errorf("%d bytes, want at most %d", len(token), maxToken)
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return ends, fmt.Errorf("%d parts, want the three of a JWT", len(parts))
	}
	var decoded [3][]byte
	for i, part := range parts {
		raw, err := base64.RawURLEncoding.DecodeString(part)
		if err != nil || len(raw) == 0 {
			return ends, fmt.Errorf("part %d is no base64url text", i+1)
		}
		decoded[i] = raw
	}
	var claims struct {
		Audience audiences `json:"aud"`
		Expires  float64   `json:"exp"` // seconds since 1970, maybe with a fraction
	}
	if err := json.Unmarshal(decoded[1], &claims); err != nil {
		return ends, errors.New("the claims are no JSON object with aud and exp")
	}
	switch {
	case !slices.Contains(claims.Audience, api.TokenAudience):
		return ends, fmt.Errorf("the audience is not %s", api.TokenAudience)
	case claims.Expires <= float64(now.Add(-claimSkew).Unix()):
		return ends, errors.New("expired")
	}
	return time.Unix(int64(min(claims.Expires, math.MaxInt32*100)), 0).UTC(), nil
}
