package server

import (
	"log/slog"

	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/xds"
)

// publisher hands what was compiled to the xDS store.
type publisher struct {
	store *xds.Store
	log   *slog.Logger
}

// apply never loses a change: a resource that cannot be encoded is named and left out, and the others go on.
func (p publisher) apply(d compile.Delta) {
	upserts := make([]xds.Resource, len(d.Upserts))
	for i, r := range d.Upserts {
		upserts[i] = xds.Resource{Type: r.Type, Name: r.Name, Aliases: r.Aliases, Message: r.Message}
	}
	removed := make([]xds.Key, len(d.Removed))
	for i, k := range d.Removed {
		removed[i] = xds.Key{Type: k.Type, Name: k.Name}
	}
	err := p.store.Apply(d.Generation, upserts, removed)
	if err == nil {
		return
	}
	p.log.Error("resource cannot be encoded", "err", err)
	for _, r := range upserts {
		if err := p.store.Apply(d.Generation, []xds.Resource{r}, nil); err != nil {
			p.log.Error("resource is not served", "type", r.Type, "resource", r.Name, "err", err)
			removed = append(removed, xds.Key{Type: r.Type, Name: r.Name}) // what is old is not the truth either
		}
	}
	if err := p.store.Apply(d.Generation, nil, removed); err != nil {
		p.log.Error("resource cannot be encoded", "err", err)
	}
}
