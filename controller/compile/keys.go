package compile

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/jwks"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/validate"
)

// kindKeys owns what a source of keys compiles to; no object is of this kind.
const kindKeys model.Kind = "JWKS"

// KeySources is model.Registry.KeySources. They change only when Delta.Keys is set.
func (c *Compiler) KeySources() (wanted []jwks.Wanted, unwanted []jwks.Record) {
	return c.reg.KeySources()
}

// keys serves the stored keys of a source that a policy names (JW-09). One that never gave any is not served: who waits for
// the resource fails closed.
func (c *Compiler) keys(source string) []Resource {
	record := c.reg.KeyRecord(source)
	if record.Keys == "" || !c.reg.KeysWanted(source) {
		return nil
	}
	return []Resource{{Type: api.JWKSType, Name: jwks.Name(source), Message: &settings.JsonWebKeySet{
		Source: source, Keys: record.Keys, Fetched: timestamppb.New(record.Fetched)}}}
}

// judgeKeys adds to the status of a RequestAuthentication what keeps its tokens from being judged.
func (c *Compiler) judgeKeys(request model.Name, st *validate.Status) {
	var texts []string
	for i, rule := range c.reg.KeysOf(request) {
		at := fmt.Sprintf("spec.jwtRules[%d]: the keys of %s ", i, rule.Source)
		switch r := c.reg.KeyRecord(rule.Source); {
		case rule.Inline:
		case rule.Source == "":
			texts = append(texts, fmt.Sprintf("spec.jwtRules[%d]: there are no keys in jwks, and %s", i, rule.Lack))
		case c.reg.KeysLeftOut(rule.Source):
			texts = append(texts, at+fmt.Sprintf("are not fetched: the mesh names more than %d sources, and the namespace's turn for more has not come", jwks.MaxSources))
		case r.Keys == "" && r.Error == "":
			texts = append(texts, at+"are not fetched yet")
		case r.Keys == "":
			texts = append(texts, at+"cannot be had: "+r.Error)
		case r.Error != "":
			texts = append(texts, at+"cannot be renewed, those of "+r.Fetched.Format("2006-01-02T15:04:05Z")+" count: "+r.Error)
		}
	}
	if len(texts) == 0 {
		return
	}
	if st.Message != "" {
		texts = append([]string{st.Message}, texts...)
	}
	st.Message = strings.Join(texts, "; ")
}
