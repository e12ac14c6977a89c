package model

import (
	"maps"
	"slices"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/undermesh/undermesh/controller/jwks"
	"github.com/undermesh/undermesh/controller/validate"
)

// keyring is what is known of the keys by which tokens are judged.
type keyring struct {
	records map[string]jwks.Record   // source → what is stored
	wanted  map[string]map[Name]bool // source → RequestAuthentications that name it
	of      map[Name][]KeyRule       // RequestAuthentication → its rules
	bad     []validate.Finding       // of the ConfigMap
}

// KeyRule is where one rule of a RequestAuthentication has its keys from.
type KeyRule struct {
	Inline bool   // they stand in it
	Source string // a URL; "" when there is none
}

func newKeyring() keyring {
	return keyring{records: map[string]jwks.Record{}, wanted: map[string]map[Name]bool{}, of: map[Name][]KeyRule{}}
}

// KeysOf returns where the rules of a RequestAuthentication have their keys from.
func (r *Registry) KeysOf(request Name) []KeyRule { return r.keyring.of[request] }

// KeyRecord returns what is stored of a source; it is zero when that is nothing.
func (r *Registry) KeyRecord(source string) jwks.Record { return r.keyring.records[source] }

// KeysWanted reports whether a RequestAuthentication names the source.
func (r *Registry) KeysWanted(source string) bool { return len(r.keyring.wanted[source]) > 0 }

// KeySources returns what is stored of the sources that are wanted, and the stored ones that nobody wants, sorted.
func (r *Registry) KeySources() (wanted map[string]jwks.Record, unwanted []string) {
	wanted = map[string]jwks.Record{}
	for s := range r.keyring.wanted {
		wanted[s] = r.keyring.records[s]
	}
	for _, s := range slices.Sorted(maps.Keys(r.keyring.records)) {
		if !r.KeysWanted(s) {
			unwanted = append(unwanted, s)
		}
	}
	return wanted, unwanted
}

// KeyFindings says which stored records cannot be read: they do not count.
func (r *Registry) KeyFindings() []validate.Finding { return r.keyring.bad }

// applyIssuers notes where a RequestAuthentication has its keys from.
func (r *Registry) applyIssuers(e Event, d *Dirty) {
	k := &r.keyring
	for _, rule := range k.of[e.Name] {
		if rule.Source != "" {
			unlink(k.wanted, rule.Source, e.Name)
			d.Keys[rule.Source] = true
		}
	}
	delete(k.of, e.Name)
	if e.Object == nil {
		return
	}
	for _, rule := range e.Object.(*securityv1.RequestAuthentication).Spec.GetJwtRules() {
		from := KeyRule{Inline: rule.GetJwks() != ""}
		if !from.Inline {
			from.Source = jwks.Source(rule.GetJwksUri(), rule.GetIssuer())
		}
		k.of[e.Name] = append(k.of[e.Name], from)
		if from.Source != "" {
			link(k.wanted, from.Source, e.Name, true)
			d.Keys[from.Source] = true
		}
	}
}

// applyKeys takes in the ConfigMap of stored keys. A record that cannot be read counts as none: it is fetched anew.
func (r *Registry) applyKeys(e Event, d *Dirty) {
	if e.Name != (Name{r.cfg.InstallNamespace, jwks.ConfigMap}) {
		return
	}
	k := &r.keyring
	old := k.records
	k.records, k.bad = map[string]jwks.Record{}, nil
	if e.Object != nil {
		data := e.Object.(*corev1.ConfigMap).Data
		for _, key := range slices.Sorted(maps.Keys(data)) {
			record, err := jwks.Decode(key, data[key])
			if err != nil {
				k.bad = append(k.bad, validate.Finding{Severity: validate.Warning, Kind: string(KindConfigMap), Namespace: e.Name.Namespace,
					Name: e.Name.Name, Field: "data." + key, Message: err.Error()})
				continue
			}
			k.records[record.Source] = record
		}
	}
	for s := range old {
		if _, kept := k.records[s]; !kept {
			r.dirtyKeys(s, d)
		}
	}
	for s, record := range k.records {
		if old[s] != record {
			r.dirtyKeys(s, d)
		}
	}
}

// dirtyKeys marks the source, and the policies whose status speaks of it.
func (r *Registry) dirtyKeys(source string, d *Dirty) {
	d.Keys[source] = true
	for n := range r.keyring.wanted[source] {
		if stand := StandIn(n); r.policies[stand] != nil {
			d.Policies[stand] = true
		}
	}
}

func (r *Registry) markKeys(d *Dirty) {
	for s := range r.keyring.wanted {
		d.Keys[s] = true
	}
}
