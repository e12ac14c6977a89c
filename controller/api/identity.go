package api

import (
	"fmt"
	"net/url"
	"strings"
)

// Identity is a workload identity: spiffe://TrustDomain/ns/Namespace/sa/ServiceAccount (MT-16).
// The zero value means that the peer proved none.
type Identity struct {
	TrustDomain    string
	Namespace      string
	ServiceAccount string
}

// IsZero reports whether there is no identity.
func (i Identity) IsZero() bool { return i == Identity{} }

// Principal is the form that policies match: the SPIFFE ID without its scheme; "" for the zero value.
func (i Identity) Principal() string {
	if i.IsZero() {
		return ""
	}
	return i.TrustDomain + "/ns/" + i.Namespace + "/sa/" + i.ServiceAccount
}

// String is the SPIFFE ID, "" for the zero value.
func (i Identity) String() string {
	if i.IsZero() {
		return ""
	}
	return "spiffe://" + i.Principal()
}

// URI is the SPIFFE ID for a certificate's SAN.
func (i Identity) URI() *url.URL {
	return &url.URL{Scheme: "spiffe", Host: i.TrustDomain, Path: "/ns/" + i.Namespace + "/sa/" + i.ServiceAccount}
}

// ParseIdentity reads a SPIFFE ID of the form that Kubernetes workloads have. It refuses anything else, with an error
// that quotes what it was given: empty parts, further path segments, queries, ports, user info, percent-encoding.
func ParseIdentity(s string) (Identity, error) {
	rest, ok := strings.CutPrefix(s, "spiffe://")
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return Identity{}, fmt.Errorf("parse identity %q: want spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT", s)
	}
	id := Identity{TrustDomain: parts[0], Namespace: parts[2], ServiceAccount: parts[4]}
	for _, p := range []string{id.TrustDomain, id.Namespace, id.ServiceAccount} {
		if p == "" || p == "." || p == ".." || strings.Trim(p, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") != "" {
			return Identity{}, fmt.Errorf("parse identity %q: %q is not a name", s, p)
		}
	}
	return id, nil
}
