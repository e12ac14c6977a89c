package model

import "strings"

// ResolveHost returns the full name of a host as an object of the namespace writes it: a name without a dot is a service
// of that namespace. Host names have no case.
func ResolveHost(host, namespace, clusterDomain string) string {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if host == "" || strings.Contains(host, ".") || strings.HasPrefix(host, "*") {
		return host
	}
	return host + "." + namespace + ".svc." + clusterDomain
}

// HostMatches reports whether a pattern ("*", "*.example.com" or a name) covers the host, which may be a pattern itself:
// then all that it covers must be covered.
func HostMatches(pattern, host string) bool {
	if !strings.HasPrefix(pattern, "*") {
		return pattern == host
	}
	rest := pattern[1:]
	return strings.HasSuffix(host, rest) && (len(host) > len(rest) || rest == "")
}

// moreSpecific orders patterns that match the same host: names before patterns, longer patterns before shorter.
func moreSpecific(a, b string) int {
	wild := func(p string) int {
		if strings.HasPrefix(p, "*") {
			return 1
		}
		return 0
	}
	if d := wild(a) - wild(b); d != 0 {
		return d
	}
	return len(b) - len(a)
}
