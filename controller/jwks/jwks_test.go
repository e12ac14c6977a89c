package jwks

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"strings"
	"testing"
	"time"
)

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// rsaKey is a private key as an issuer may publish it by mistake.
func rsaKey(t testing.TB, kid string, bits int) string {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return `{"kty":"RSA","kid":"` + kid + `","use":"sig","n":"` + b64(k.N.Bytes()) + `","e":"` + b64(big.NewInt(int64(k.E)).Bytes()) + `","d":"` + b64(k.D.Bytes()) + `","p":"AQ","x5u":"http://a"}`
}

func ecKey(t testing.TB, kid string) (string, *ecdsa.PrivateKey) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p, err := k.PublicKey.ECDH()
	if err != nil {
		t.Fatal(err)
	}
	raw := p.Bytes()
	return `{"kty":"EC","crv":"P-256","kid":"` + kid + `","x":"` + b64(raw[1:33]) + `","y":"` + b64(raw[33:]) + `"}`, k
}

func TestJW09ParseKeys(t *testing.T) {
	ec, _ := ecKey(t, "b")
	okp := `{"kty":"OKP","crv":"Ed25519","kid":"c","x":"` + b64(make([]byte, 32)) + `"}`
	in := `{"keys":[` + strings.Join([]string{ec, rsaKey(t, "a", 2048), okp,
		rsaKey(t, "short", 1024), // too short
		`{"kty":"oct","k":"c2VjcmV0","kid":"secret"}`,
		`{"kty":"EC","crv":"P-256","kid":"off","x":"` + b64(make([]byte, 32)) + `","y":"` + b64(make([]byte, 32)) + `"}`, // not on the curve
		strings.Replace(ec, `"kid"`, `"use":"enc","kid"`, 1), `{"kty":"new"}`, `7`}, ",") + `],"more":1}`
	got, err := ParseKeys([]byte(in))
	if err != nil {
		t.Fatal(err)
	}
	var set struct{ Keys []map[string]any }
	if err := json.Unmarshal([]byte(got), &set); err != nil || len(set.Keys) != 3 {
		t.Fatalf("got %s, %v", got, err)
	}
	for i, kid := range []string{"a", "b", "c"} {
		if set.Keys[i]["kid"] != kid {
			t.Errorf("key %d is %v", i, set.Keys[i]["kid"])
		}
		for _, private := range []string{"d", "p", "k", "x5u"} {
			if set.Keys[i][private] != nil {
				t.Errorf("key %s keeps %s", kid, private)
			}
		}
	}
	if again, err := ParseKeys([]byte(got)); err != nil || again != got {
		t.Errorf("read again: %s, %v", again, err)
	}
	for _, bad := range []string{"", "{}", "[]", `{"keys":null}`, `{"keys":[]}`, `{"keys":[{"kty":"oct","k":"AQ"}]}`, "<html>", `{"keys":[` + strings.Repeat(ec+",", 100) + ec + `]}`} {
		if got, err := ParseKeys([]byte(bad)); err == nil {
			t.Errorf("%.40q gives %s", bad, got)
		}
	}
}

func TestSource(t *testing.T) {
	for _, c := range []struct{ uri, issuer, want string }{
		{"https://a.example/keys", "x", "https://a.example/keys"},
		{"", "https://a.example/", "https://a.example/.well-known/openid-configuration"},
		{"", "https://a.example/realms/x", "https://a.example/realms/x/.well-known/openid-configuration"},
		{"", "testing@secure.istio.io", ""},
		{"file:///etc/passwd", "", ""},
		{"https://user:password@a.example/keys", "", ""},
		{"https://a.example/" + strings.Repeat("a", MaxURL), "", ""},
		{"", "https://a.example/" + strings.Repeat("a", MaxURL-len("https://a.example/")-len(Discovery)+1), ""}, // what is asked is longer
		{"https://a.example/?\u2028", "", ""},
		{"https://a.example/?\\", "", ""},
		{"https://a.example/?\xff", "", ""},
		{"ftp://a.example", "https://a.example", ""}, // what is written counts, not what could be guessed
		{"", "", ""},
	} {
		got, err := Source(c.uri, c.issuer)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%.60q %.60q: got %q, %v, want %q", c.uri, c.issuer, got, err, c.want)
		}
		if field := map[bool]string{true: "issuer: ", false: "jwksUri: "}[c.uri == ""]; err != nil && !strings.HasPrefix(err.Error(), field) {
			t.Errorf("%v does not begin with %s", err, field)
		}
	}
}

// TestRecordsAreShort: nothing that a source chooses makes a record much longer than its answer, or longer than a bound.
func TestRecordsAreShort(t *testing.T) {
	key := func(more string) string {
		return `{"kty":"OKP","crv":"Ed25519","x":"` + b64(make([]byte, 32)) + `"` + more + `}`
	}
	set := func(keys ...string) string { return `{"keys":[` + strings.Join(keys, ",") + `]}` }
	for name, more := range map[string]string{
		"kid": `,"kid":"` + strings.Repeat("<", maxKid+1) + `"`, "alg": `,"alg":"` + strings.Repeat("a", maxName+1) + `"`,
		"key_ops": `,"key_ops":["` + strings.Repeat("a", maxName+1) + `"]`, "many key_ops": `,"key_ops":["` + strings.Repeat(`verify","`, maxOps) + `verify"]`,
	} {
		if got, err := ParseKeys([]byte(set(key(more)))); err == nil {
			t.Errorf("a long %s is kept: %.80s", name, got)
		}
		if got, err := ParseKeys([]byte(set(key(more), key(`,"kid":"good"`)))); err != nil || !strings.Contains(got, "good") {
			t.Errorf("a long %s spoils the keys beside it: %v", name, err)
		}
	}
	var many []string
	for i := range maxKeys {
		many = append(many, key(`,"kid":"`+strings.Repeat("<&>", maxKid/3)+`","alg":"`+string(rune('a'+i%26))+`"`))
	}
	answer := set(many...)
	keys, err := ParseKeys([]byte(answer))
	if err != nil {
		t.Fatal(err)
	}
	r := Record{Source: "https://a.example/?" + strings.Repeat("&", 900), Keys: keys, Fetched: time.Unix(1000, 0).UTC(), Error: "<&>"}
	name, value := Encode(r)
	if stored, size := len(name)+len(value), Size(r); stored > len(answer)+2000 || size < stored || size > stored+100 {
		t.Errorf("an answer of %d bytes is %d when stored, counted as %d", len(answer), stored, size)
	}
	if got, err := Decode(name, value); err != nil || got != r {
		t.Errorf("read again: %v", err)
	}
	large := rsaKey(t, "a", 2048)
	n := large[strings.Index(large, `"n":"`)+5:]
	n = n[:strings.Index(n, `"`)]
	many = nil
	for range maxKeys {
		many = append(many, strings.Replace(large, n, n+strings.Repeat(n, 4), 1)) // 10,240 bits
	}
	if _, err := ParseKeys([]byte(set(many...))); err == nil || !strings.Contains(err.Error(), "want at most") {
		t.Errorf("more than %d bytes: %v", MaxSet, err)
	}
}

// TestRecordKeepsToItsSource: keys of one source are never taken for those of another.
func TestRecordKeepsToItsSource(t *testing.T) {
	ec, _ := ecKey(t, "a")
	keys, err := ParseKeys([]byte(`{"keys":[` + ec + `]}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []Record{
		{Source: "https://a.example/keys", Keys: keys, Fetched: time.Unix(1000, 0).UTC()},
		{Source: "https://a.example/keys", Keys: keys, Fetched: time.Unix(1000, 0).UTC(), Error: "answers with status 503"},
		{Source: "https://b.example/keys", Error: "cannot connect"},
	} {
		key, value := Encode(r)
		if got, err := Decode(key, value); err != nil || got != r {
			t.Errorf("%+v became %+v, %v", r, got, err)
		}
		if got, err := Decode(Name("https://evil.example/keys"), value); err == nil {
			t.Errorf("under the key of another source it is read as %+v", got)
		}
	}
	key := Name("https://a.example/keys")
	for _, bad := range []string{"", "{", "[]", `{"source":"https://a.example/keys","jwks":{}}`, `{"source":"https://a.example/keys","jwks":` + keys + `}`,
		`{"source":"https://a.example/keys","fetched":"yesterday","jwks":` + keys + `}`} {
		if got, err := Decode(key, bad); err == nil {
			t.Errorf("%.60q was read as %+v", bad, got)
		}
	}
}

func FuzzParseKeys(f *testing.F) {
	ec, _ := ecKey(f, "a")
	f.Add([]byte(`{"keys":[` + ec + `]}`))
	f.Add([]byte(`{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		keys, err := ParseKeys(data)
		if err != nil {
			return
		}
		again, err := ParseKeys([]byte(keys))
		if err != nil || again != keys {
			t.Fatalf("%q is read again as %q, %v", keys, again, err)
		}
		for _, private := range []string{`"d":`, `"k":`, `"p":`, `"q":`} {
			if strings.Contains(keys, private) {
				t.Fatalf("%s is kept in %q", private, keys)
			}
		}
	})
}
