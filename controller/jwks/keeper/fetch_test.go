package keeper

import (
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/undermesh/undermesh/controller/jwks"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// keySet is a set of one key.
func keySet(t testing.TB) string {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p, err := k.PublicKey.ECDH()
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	keys, err := jwks.ParseKeys([]byte(`{"keys":[{"kty":"EC","crv":"P-256","x":"` + b64(p.Bytes()[1:33]) + `","y":"` + b64(p.Bytes()[33:]) + `"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func TestGuard(t *testing.T) {
	in, out := Guard{Private: true}, Guard{Allow: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, Deny: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}}
	for addr, want := range map[string][2]bool{ // with private addresses, without
		"127.0.0.1": {}, "127.8.8.8": {}, "::1": {}, "0.0.0.0": {}, "::": {}, "169.254.169.254": {}, "169.254.0.1": {}, "fe80::1": {}, "fe80::1%eth0": {},
		"224.0.0.1": {}, "255.255.255.255": {}, "240.0.0.1": {}, "ff02::1": {}, "::ffff:127.0.0.1": {}, "::ffff:169.254.169.254": {},
		"64:ff9b::a9fe:a9fe": {}, "2002:7f00:1::": {}, "::7f00:1": {}, "fd00:ec2::254": {}, "100.100.100.200": {}, "168.63.129.16": {}, "::ffff:0:7f00:1": {},
		"192.0.0.192": {}, "fec0::1": {}, "64:ff9b:1:a9fe:a9:fe00::": {}, "64:ff9b:1::808:808": {}, "2001:0:808:808::1": {},
		"198.18.0.1": {true, false}, "::ffff:198.18.0.1": {true, false},
		"10.0.0.1": {true, false}, "10.1.2.3": {true, true}, "172.16.0.1": {true, false}, "192.168.1.1": {true, false}, "100.64.0.1": {true, false},
		"fd12::1": {true, false}, "64:ff9b::a00:1": {true, false}, "2002:a00:1::": {true, false},
		"8.8.8.8": {true, true}, "2606:4700::1": {true, true}, "64:ff9b::808:808": {true, true}, "203.0.113.7": {true, false},
	} {
		a := netip.MustParseAddr(addr)
		if got := [2]bool{in.Check(a) == nil, out.Check(a) == nil}; got != want {
			t.Errorf("%s: allowed %v, want %v (%v, %v)", addr, got, want, in.Check(a), out.Check(a))
		}
	}
	if (Guard{}).Check(netip.Addr{}) == nil {
		t.Error("no address is allowed")
	}
}

// TestGuardOfItsOwnHost: an address of the control plane's own pod or node is refused like loopback, by whatever name and in
// whatever disguise, although private addresses are allowed.
func TestGuardOfItsOwnHost(t *testing.T) {
	g := Guard{Private: true, Allow: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, Own: func() ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("10.1.0.7"), netip.MustParseAddr("::ffff:192.168.1.1"), netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("fd00::7%eth0")}, nil
	}}
	for addr, want := range map[string]bool{
		"10.1.0.7": false, "::ffff:10.1.0.7": false, "64:ff9b::a01:7": false, "192.168.1.1": false, "203.0.113.9": false, "fd00::7": false, "fd00::7%eth0": false,
		"10.1.0.8": true, "192.168.1.2": true, "fd00::8": true,
	} {
		if err := g.Check(netip.MustParseAddr(addr)); (err == nil) != want || err != nil && !strings.Contains(err.Error(), "own host") {
			t.Errorf("%s: %v", addr, err)
		}
	}
	g.Own = func() ([]netip.Addr, error) { return nil, errors.New("no netlink") }
	if err := g.Check(netip.MustParseAddr("8.8.8.8")); err == nil {
		t.Error("without knowing its own addresses it connects")
	}
}

// issuer is a server and the network around it: every allowed address leads to it.
type issuer struct {
	*httptest.Server
	hosts  map[string][]string // what names resolve to; a name that is not in it does not exist
	lookup func(host string)
	dialed []string
	hits   atomic.Int32
}

func newIssuer(t *testing.T, secure bool, h http.HandlerFunc) *issuer {
	is := &issuer{hosts: map[string][]string{"issuer.example": {"10.0.0.5"}}}
	counted := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { is.hits.Add(1); h(w, r) })
	if secure {
		is.Server = httptest.NewTLSServer(counted)
	} else {
		is.Server = httptest.NewServer(counted)
	}
	t.Cleanup(is.Close)
	return is
}

func (is *issuer) fetcher(t *testing.T, roots *x509.CertPool) *Fetcher {
	t.Helper()
	f, err := NewFetcher(FetcherConfig{
		Clock: clock.System(), Guard: Guard{Private: true}, Roots: roots, Timeout: 2 * time.Second, MaxBytes: 4096,
		Resolve: func(_ context.Context, host string) (addrs []netip.Addr, err error) {
			if is.lookup != nil {
				is.lookup(host)
			}
			if is.hosts[host] == nil {
				return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
			}
			for _, a := range is.hosts[host] {
				addrs = append(addrs, netip.MustParseAddr(a))
			}
			return addrs, nil
		},
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			is.dialed = append(is.dialed, address)
			return (&net.Dialer{}).DialContext(ctx, network, is.Listener.Addr().String())
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestJW09Fetch(t *testing.T) {
	keys := keySet(t)
	is := newIssuer(t, false, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/keys":
			fmt.Fprint(w, keys)
		case "/realm/.well-known/openid-configuration":
			fmt.Fprint(w, `{"issuer":"x","jwks_uri":"http://issuer.example/keys"}`)
		case "/inside/.well-known/openid-configuration":
			fmt.Fprint(w, `{"jwks_uri":"http://169.254.169.254/latest"}`)
		case "/file/.well-known/openid-configuration":
			fmt.Fprint(w, `{"jwks_uri":"file:///etc/passwd"}`)
		case "/redirect":
			http.Redirect(w, r, "http://issuer.example/keys", http.StatusFound)
		case "/large":
			fmt.Fprint(w, keys+strings.Repeat(" ", 5000))
		case "/packed":
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			fmt.Fprint(z, keys)
			_ = z.Close()
		case "/secret":
			fmt.Fprint(w, "TOP SECRET of another service")
		case "/slow":
			<-r.Context().Done()
		case "/teapot":
			w.WriteHeader(http.StatusTeapot)
			fmt.Fprint(w, "TOP SECRET")
		}
	})
	is.hosts["local.example"] = []string{"127.0.0.1"}
	is.hosts["mixed.example"] = []string{"10.0.0.5", "169.254.169.254"}
	is.hosts["nowhere.example"] = []string{}
	f := is.fetcher(t, nil)
	for from, want := range map[string]string{
		"http://issuer.example/keys":                                    "",
		"http://issuer.example:8080/keys":                               "",
		"http://10.0.0.7/keys":                                          "",
		"http://issuer.example/realm/.well-known/openid-configuration":  "",
		"http://issuer.example/inside/.well-known/openid-configuration": "the issuer's jwks_uri: 169.254.169.254 belongs to the host",
		"http://issuer.example/file/.well-known/openid-configuration":   "the issuer's jwks_uri: is not a URL that begins with http",
		"http://issuer.example/redirect":                                "answers with a redirect (302), which is not followed",
		"http://issuer.example/large":                                   "answers with more than 4096 bytes",
		"http://issuer.example/secret":                                  "is not a JSON web key set",
		"http://issuer.example/teapot":                                  "answers with status 418",
		"http://issuer.example/slow":                                    "no answer within 2s",
		"http://127.0.0.1/keys":                                         "127.0.0.1 belongs to the host, the link or the cloud: the control plane does not connect",
		"http://[::1]/keys":                                             "::1 belongs to",
		"http://[::ffff:127.0.0.1]/keys":                                "127.0.0.1 belongs to",
		"http://2130706433/keys":                                        "the host is not found", // 127.0.0.1 as a number is a name
		"http://local.example/keys":                                     "127.0.0.1 belongs to",
		"http://mixed.example/keys":                                     "169.254.169.254 belongs to",
		"http://nowhere.example/keys":                                   "the connection failed",
		"http://missing.example/keys":                                   "the host is not found",
		"gopher://issuer.example/keys":                                  "is not a URL that begins with http",
		"http://a:b@issuer.example/keys":                                "holds a user name",
		"http://issuer.example/" + strings.Repeat("a", jwks.MaxURL):     "is longer than 1024 bytes",
		"http://issuer.example/packed":                                  "is not a JSON web key set", // nothing is unpacked
	} {
		got, err := f.Fetch(t.Context(), from)
		if (err == nil) != (want == "") || (err != nil && !strings.HasPrefix(err.Error(), want)) || (err == nil && got != keys) {
			t.Errorf("%s: got %q, %v, want %q", from, got, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "SECRET") {
			t.Errorf("%s: the error shows the answer: %v", from, err)
		}
	}
	for _, a := range is.dialed {
		if host, _, _ := net.SplitHostPort(a); host != "10.0.0.5" && host != "10.0.0.7" {
			t.Errorf("%s was dialled", a)
		}
	}
}

// TestRebinding: a name that is allowed when it is looked up and forbidden a moment later gains nothing.
func TestRebinding(t *testing.T) {
	keys := keySet(t)
	is := newIssuer(t, false, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, keys) })
	lookups := 0
	is.lookup = func(host string) {
		lookups++
		if lookups > 1 {
			is.hosts[host] = []string{"169.254.169.254"}
		}
	}
	f := is.fetcher(t, nil)
	if _, err := f.Fetch(t.Context(), "http://issuer.example/keys"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Fetch(t.Context(), "http://issuer.example/keys"); err == nil || !strings.Contains(err.Error(), "169.254.169.254") {
		t.Errorf("the second address was accepted: %v", err)
	}
	if len(is.dialed) != 1 || is.dialed[0] != "10.0.0.5:80" || lookups != 2 || is.hits.Load() != 1 {
		t.Errorf("dialled %v after %d lookups, %d requests", is.dialed, lookups, is.hits.Load())
	}
}

func TestFetchVerifiesTheServer(t *testing.T) {
	keys := keySet(t)
	is := newIssuer(t, true, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, keys) })
	is.hosts["example.com"], is.hosts["other.test"] = []string{"10.0.0.5"}, []string{"10.0.0.5"}
	if _, err := is.fetcher(t, x509.NewCertPool()).Fetch(t.Context(), "https://example.com/"); err == nil || err.Error() != "the server's certificate is not trusted" {
		t.Error("an unknown root is trusted:", err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(is.Certificate())
	if _, err := is.fetcher(t, roots).Fetch(t.Context(), "https://other.test/"); err == nil {
		t.Error("a certificate for another name is accepted")
	}
	if got, err := is.fetcher(t, roots).Fetch(t.Context(), "https://example.com/"); err != nil || got != keys {
		t.Error(got, err)
	}
}

func TestFetchEndsWithItsContext(t *testing.T) {
	is := newIssuer(t, false, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("the leader went"))
	if _, err := is.fetcher(t, nil).Fetch(ctx, "http://issuer.example/"); err == nil {
		t.Error("a fetch goes on without its context")
	}
}
