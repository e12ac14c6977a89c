package model

import (
	"cmp"
	"maps"
	"slices"
	"strings"

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
	over    map[string]bool          // wanted sources beyond jwks.MaxSources
	bad     []validate.Finding       // of the ConfigMap
}

// KeyRule is where one rule of a RequestAuthentication has its keys from.
type KeyRule struct {
	Inline bool   // they stand in it
	Source string // a URL; "" when there is none
	Lack   string // why there is none, beginning with the field
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

// KeysLeftOut reports whether a source that is wanted is not looked after, since there are too many.
func (r *Registry) KeysLeftOut(source string) bool { return r.keyring.over[source] }

// KeySources returns what is stored of the sources that are wanted, which is nothing but the Source of some, and of those that
// nobody wants, sorted. Where not all can be looked after the first ones should be: they come in turn from each namespace that
// wants any, so that none takes the place of the others'.
func (r *Registry) KeySources() (wanted []jwks.Wanted, unwanted []jwks.Record) {
	for _, s := range slices.Sorted(maps.Keys(r.keyring.records)) {
		if !r.KeysWanted(s) {
			unwanted = append(unwanted, r.keyring.records[s])
		}
	}
	return r.inTurn(), unwanted
}

func (r *Registry) inTurn() (wanted []jwks.Wanted) {
	turn, named := map[string]int{}, map[string]int{} // of a source, and how many a namespace has named
	for _, n := range slices.SortedFunc(maps.Keys(r.keyring.of), compareNames) {
		for _, rule := range r.keyring.of[n] {
			if rule.Source == "" {
				continue
			}
			if at, ok := turn[rule.Source]; !ok || named[n.Namespace] < at {
				turn[rule.Source] = named[n.Namespace]
			}
			named[n.Namespace]++
		}
	}
	for s := range turn {
		record := r.keyring.records[s]
		record.Source = s
		by := slices.MinFunc(slices.Collect(maps.Keys(r.keyring.wanted[s])), func(a, b Name) int {
			return cmp.Or(named[a.Namespace]-named[b.Namespace], strings.Compare(a.Namespace, b.Namespace))
		})
		wanted = append(wanted, jwks.Wanted{Record: record, Namespace: by.Namespace})
	}
	slices.SortFunc(wanted, func(a, b jwks.Wanted) int {
		return cmp.Or(turn[a.Source]-turn[b.Source], strings.Compare(a.Source, b.Source))
	})
	return wanted
}

// settleKeys marks the policies whose sources are left out now, and those whose are no longer: their status says it.
func (r *Registry) settleKeys(d *Dirty) {
	if len(d.Keys) == 0 {
		return
	}
	over, was := map[string]bool{}, r.keyring.over
	if len(r.keyring.wanted) > jwks.MaxSources {
		for _, w := range r.inTurn()[jwks.MaxSources:] {
			over[w.Source] = true
		}
	}
	r.keyring.over = over
	for s := range over {
		if !was[s] {
			r.dirtyKeys(s, d)
		}
	}
	for s := range was {
		if !over[s] {
			r.dirtyKeys(s, d)
		}
	}
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
			var err error
			if from.Source, err = jwks.Source(rule.GetJwksUri(), rule.GetIssuer()); err != nil {
				from.Lack = err.Error()
			}
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
	d.Keyring = true
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
	d.Keyring = true
	for s := range r.keyring.wanted {
		d.Keys[s] = true
	}
}
