package jwks

import (
	"cmp"
	"crypto/ecdh"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
)

const (
	maxKeys = 100 // of one source
	maxKid  = 256 // bytes; keys with longer ones are dropped
	maxOps  = 10  // and so are those for more operations
	maxName = 64  // bytes, of an operation or algorithm
)

// key has the public members of a JSON web key (RFC 7517, 7518, 8037), in the order in which they are stored.
type key struct {
	Kty    string   `json:"kty"`
	Kid    string   `json:"kid,omitempty"`
	Use    string   `json:"use,omitempty"`
	KeyOps []string `json:"key_ops,omitempty"`
	Alg    string   `json:"alg,omitempty"`
	N      string   `json:"n,omitempty"`
	E      string   `json:"e,omitempty"`
	Crv    string   `json:"crv,omitempty"`
	X      string   `json:"x,omitempty"`
	Y      string   `json:"y,omitempty"`
}

// ParseKeys takes the usable public keys out of a JSON web key set: RSA from 2,048 bits, the NIST curves, Ed25519, for
// signatures. All else in it is dropped, above all what is private. It returns an error when no key is left.
func ParseKeys(data []byte) (string, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &set); err != nil || set.Keys == nil {
		return "", errors.New("is not a JSON web key set")
	}
	if len(set.Keys) > maxKeys {
		return "", errors.New("holds too many keys")
	}
	var good []key
	for _, raw := range set.Keys {
		var k key
		if json.Unmarshal(raw, &k) == nil && (k.Use == "" || k.Use == "sig") && k.short() && k.usable() {
			good = append(good, k.public())
		}
	}
	if len(good) == 0 {
		return "", errors.New("holds no public key for signatures")
	}
	slices.SortFunc(good, func(a, b key) int {
		return cmp.Or(strings.Compare(a.Kid, b.Kid), strings.Compare(a.Kty, b.Kty), strings.Compare(a.N+a.X, b.N+b.X), strings.Compare(a.Alg, b.Alg))
	})
	out, err := marshal(map[string][]key{"keys": good})
	if len(out) > MaxSet {
		return "", fmt.Errorf("holds %d bytes of keys, want at most %d", len(out), MaxSet)
	}
	return out, err
}

// marshal leaves <, > and & as they are: written as JSON for web pages they are six times as long.
func marshal(v any) (string, error) {
	var out strings.Builder
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return strings.TrimSuffix(out.String(), "\n"), err
}

// short reports whether nothing in the key that anybody may choose takes much room.
func (k key) short() bool {
	return len(k.Kid) <= maxKid && len(k.Alg) <= maxName && len(k.KeyOps) <= maxOps &&
		!slices.ContainsFunc(k.KeyOps, func(op string) bool { return len(op) > maxName })
}

// public leaves out members of other types of keys.
func (k key) public() key {
	out := key{Kty: k.Kty, Kid: k.Kid, Use: k.Use, KeyOps: k.KeyOps, Alg: k.Alg}
	switch k.Kty {
	case "RSA":
		out.N, out.E = k.N, k.E
	case "EC":
		out.Crv, out.X, out.Y = k.Crv, k.X, k.Y
	case "OKP":
		out.Crv, out.X = k.Crv, k.X
	}
	return out
}

func (k key) usable() bool {
	switch k.Kty {
	case "RSA":
		n, e := number(k.N), number(k.E)
		return n.BitLen() >= 2048 && n.BitLen() <= 16384 && n.Bit(0) == 1 && e.BitLen() >= 2 && e.BitLen() <= 32 && e.Bit(0) == 1
	case "EC":
		curve, size := map[string]ecdh.Curve{"P-256": ecdh.P256(), "P-384": ecdh.P384(), "P-521": ecdh.P521()}[k.Crv], map[string]int{"P-256": 32, "P-384": 48, "P-521": 66}[k.Crv]
		x, y := decode(k.X), decode(k.Y)
		if curve == nil || len(x) != size || len(y) != size {
			return false
		}
		_, err := curve.NewPublicKey(slices.Concat([]byte{4}, x, y)) // a point that is not on the curve is an error
		return err == nil
	case "OKP":
		return k.Crv == "Ed25519" && len(decode(k.X)) == 32
	}
	return false
}

func number(text string) *big.Int { return new(big.Int).SetBytes(decode(text)) }

// decode returns nil for what is not base64url.
func decode(text string) []byte {
	if len(text) > 4096 {
		return nil
	}
	out, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(text, "="))
	if err != nil {
		return nil
	}
	return out
}
