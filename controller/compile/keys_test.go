package compile_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	securitybeta "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/jwks"
	"github.com/undermesh/undermesh/controller/model"
)

// publicKey is a set of one key of P-256.
const publicKey = `{"keys":[{"kty":"EC","kid":"a","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}`

func requestEvent(name string, rules ...*securitybeta.JWTRule) model.Event {
	r := &securityv1.RequestAuthentication{}
	r.Namespace, r.Name = "foo", name
	r.Spec.JwtRules = rules
	return model.Event{Kind: model.KindRequestAuthentication, Name: model.Name{Namespace: "foo", Name: name}, Object: r}
}

func keysEvent(namespace string, records ...jwks.Record) model.Event {
	cm := &corev1.ConfigMap{Data: map[string]string{}}
	for _, r := range records {
		key, value := jwks.Encode(r)
		cm.Data[key] = value
	}
	return model.Event{Kind: model.KindConfigMap, Name: model.Name{Namespace: namespace, Name: jwks.ConfigMap}, Object: cm}
}

// served returns the served key sets by source.
func served(c *compile.Compiler) map[string]*settings.JsonWebKeySet {
	out := map[string]*settings.JsonWebKeySet{}
	for _, r := range c.Resources() {
		if s, ok := r.Message.(*settings.JsonWebKeySet); ok && r.Type == api.JWKSType {
			if r.Name != jwks.Name(s.GetSource()) {
				panic("resource " + r.Name + " holds the keys of " + s.GetSource())
			}
			out[s.GetSource()] = s
		}
	}
	return out
}

// message is what the status of a RequestAuthentication says.
func message(d compile.Delta, name string) string {
	for _, s := range d.Status {
		if s.Kind == string(model.KindRequestAuthentication) && s.Name == name {
			return s.Message
		}
	}
	return ""
}

func TestJW09KeysAreServedAsStored(t *testing.T) {
	const a, b = "https://a.example/keys", "https://b.example"
	const bSource = b + jwks.Discovery
	fetched := time.Unix(1_800_000_000, 0).UTC()
	c := compile.New(compile.Config{})
	d := c.Apply([]model.Event{
		requestEvent("one", &securitybeta.JWTRule{Issuer: "x", JwksUri: a}, &securitybeta.JWTRule{Issuer: "y", Jwks: publicKey}),
		requestEvent("two", &securitybeta.JWTRule{Issuer: b}, &securitybeta.JWTRule{Issuer: "testing@secure.istio.io"}),
	})
	wanted, unwanted := c.KeySources()
	if len(wanted) != 2 || wanted[0].Source != a || wanted[1].Source != bSource || len(unwanted) != 0 || !d.Keys || len(served(c)) != 0 {
		t.Fatalf("wanted %v, unwanted %v, changed %t, served %v", wanted, unwanted, d.Keys, served(c))
	}
	if m := message(d, "one"); !strings.Contains(m, "the keys of "+a+" are not fetched yet") {
		t.Error(m)
	}
	if m := message(d, "two"); !strings.Contains(m, "spec.jwtRules[1]: there are no keys") || !strings.Contains(m, bSource) {
		t.Error(m)
	}
	d = c.Apply([]model.Event{keysEvent("istio-system", jwks.Record{Source: a, Keys: publicKey, Fetched: fetched}, jwks.Record{Source: bSource, Error: "answers with status 503"})})
	if s := served(c); len(s) != 1 || s[a].GetKeys() != publicKey || !s[a].GetFetched().AsTime().Equal(fetched) || !d.Keys {
		t.Fatalf("served %v", s)
	}
	if m := message(d, "two"); !strings.Contains(m, "the keys of "+bSource+" cannot be had: answers with status 503") {
		t.Error(m)
	}
	if m := message(d, "one"); m == "" || strings.Contains(m, "the keys of") {
		t.Errorf("status of what has its keys: %q", m)
	}
	// The source fails: what is known stays, and the status says so.
	d = c.Apply([]model.Event{keysEvent("istio-system", jwks.Record{Source: a, Keys: publicKey, Fetched: fetched, Error: "cannot connect"})})
	if m := message(d, "one"); !strings.Contains(m, "cannot be renewed, those of 2027-01-15T08:00:00Z count: cannot connect") || served(c)[a].GetKeys() != publicKey {
		t.Errorf("%q, served %v", m, served(c))
	}
	if d := c.Apply([]model.Event{keysEvent("foo", jwks.Record{Source: bSource, Keys: publicKey, Fetched: fetched})}); d.Keys || len(served(c)) != 1 {
		t.Error("keys of another namespace count")
	}
	c.Apply([]model.Event{{Kind: model.KindRequestAuthentication, Name: model.Name{Namespace: "foo", Name: "one"}}})
	if _, unwanted := c.KeySources(); len(served(c)) != 0 || len(unwanted) != 1 || unwanted[0].Source != a {
		t.Errorf("without its policy: served %v, unwanted %v", served(c), unwanted)
	}
}

// TestStoredKeysKeepToTheirSource: what is stored under the key of another source, or is no key set, is not served.
func TestStoredKeysKeepToTheirSource(t *testing.T) {
	const a = "https://a.example/keys"
	c := compile.New(compile.Config{})
	c.Apply([]model.Event{requestEvent("one", &securitybeta.JWTRule{Issuer: "x", JwksUri: a})})
	_, other := jwks.Encode(jwks.Record{Source: "https://evil.example", Keys: publicKey, Fetched: time.Unix(1, 0).UTC()})
	for _, value := range []string{other, "{}", "", `{"source":"` + a + `","jwks":{"keys":[]},"fetched":"2027-01-15T08:00:00Z"}`} {
		e := keysEvent("istio-system")
		e.Object.(*corev1.ConfigMap).Data[jwks.Name(a)] = value
		c.Apply([]model.Event{e})
		if s := served(c); len(s) != 0 {
			t.Errorf("%.50q is served as %v", value, s)
		}
	}
}

// TestKeySourcesComeInTurn: a namespace that names many sources does not take the place of others'.
func TestKeySourcesComeInTurn(t *testing.T) {
	c := compile.New(compile.Config{})
	many := &securityv1.RequestAuthentication{ObjectMeta: metav1.ObjectMeta{Namespace: "aaa", Name: "many"}}
	for i := range 50 {
		many.Spec.JwtRules = append(many.Spec.JwtRules, &securitybeta.JWTRule{Issuer: "x", JwksUri: fmt.Sprintf("https://a.example/%02d", i)})
	}
	c.Apply([]model.Event{{Kind: model.KindRequestAuthentication, Name: model.Name{Namespace: "aaa", Name: "many"}, Object: many},
		requestEvent("one", &securitybeta.JWTRule{Issuer: "x", JwksUri: "https://z.example/keys"}),
		requestEvent("two", &securitybeta.JWTRule{Issuer: "x", JwksUri: "https://z.example/more"})})
	wanted, _ := c.KeySources()
	var first []string
	for _, r := range wanted[:4] {
		first = append(first, r.Source)
	}
	if wanted[0].Namespace != "aaa" || wanted[1].Namespace == "aaa" {
		t.Errorf("charged are %s and %s", wanted[0].Namespace, wanted[1].Namespace)
	}
	if got := strings.Join(first, " "); len(wanted) != 52 || got != "https://a.example/00 https://z.example/keys https://a.example/01 https://z.example/more" {
		t.Errorf("%d sources, first %s", len(wanted), got)
	}
}

// TestUnreadableKeysAreTold: a stored record that cannot be read is a finding until it can be, or is gone.
func TestUnreadableKeysAreTold(t *testing.T) {
	c := compile.New(compile.Config{})
	stored := keysEvent("istio-system")
	stored.Object.(*corev1.ConfigMap).Data["x"] = "no record"
	for _, step := range []struct {
		event model.Event
		want  int
	}{{stored, 1}, {keysEvent("istio-system"), 0}, {stored, 1}, {model.Event{Kind: model.KindConfigMap, Name: stored.Name}, 0}} {
		c.Apply([]model.Event{step.event})
		if got := c.Findings(); len(got) != step.want || step.want > 0 && got[0].Field != "data.x" {
			t.Errorf("findings %v, want %d", got, step.want)
		}
	}
}

// TestStatusNamesSourcesOverALimit: whoever names a source that is too long, or one too many, is told so, and when it is over.
func TestStatusNamesSourcesOverALimit(t *testing.T) {
	c := compile.New(compile.Config{})
	long := "https://nowhere.invalid/" + strings.Repeat("a", 1<<20)
	d := c.Apply([]model.Event{requestEvent("long", &securitybeta.JWTRule{Issuer: long})})
	if m := message(d, "long"); !strings.Contains(m, "issuer: is longer than 1024 bytes") || len(m) > 1000 {
		t.Errorf("an issuer of 1 MiB: %.200q", m)
	}
	if wanted, _ := c.KeySources(); len(wanted) > 0 {
		t.Errorf("%d are wanted", len(wanted))
	}
	var events []model.Event
	for i := range jwks.MaxSources {
		events = append(events, requestEvent(fmt.Sprintf("r%03d", i), &securitybeta.JWTRule{Issuer: "x", JwksUri: fmt.Sprintf("https://a.example/%03d", i)}))
	}
	if d = c.Apply(events); strings.Contains(message(d, "r299"), "more than") {
		t.Errorf("the last that there is room for: %q", message(d, "r299"))
	}
	d = c.Apply([]model.Event{requestEvent("before", &securitybeta.JWTRule{Issuer: "x", JwksUri: "https://z.example/"})})
	if m := message(d, "r299"); !strings.Contains(m, "https://a.example/299 are not fetched: the mesh names more than 300 sources") {
		t.Errorf("one too many: %q", m)
	}
	d = c.Apply([]model.Event{{Kind: model.KindRequestAuthentication, Name: model.Name{Namespace: "foo", Name: "before"}}})
	if m := message(d, "r299"); !strings.Contains(m, "are not fetched yet") {
		t.Errorf("room again: %q", m)
	}
}
