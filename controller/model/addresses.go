package model

import "net/netip"

// EntryAddresses says which hosts of a ServiceEntry need an assigned address and which have one.
type EntryAddresses struct {
	Name  Name
	UID   string // of the object, "" when it is not known
	Gone  bool
	Since int64                   // when the entry was made, in seconds of Unix time
	Hosts map[string][]netip.Addr // that need addresses → those that count
	Clean bool                    // what is stored is what counts, and nothing else
}

// EntryAddresses returns what is known of the entry's addresses.
func (r *Registry) EntryAddresses(n Name) EntryAddresses {
	e := r.Entry(n)
	if e == nil {
		return EntryAddresses{Name: n, Gone: true}
	}
	out := EntryAddresses{Name: n, UID: string(e.UID), Since: e.CreationTimestamp.Unix(), Hosts: map[string][]netip.Addr{}}
	counted := 0
	for _, h := range e.WantsAddresses() {
		out.Hosts[h] = r.Assigned(e, h)
		counted += len(out.Hosts[h])
	}
	out.Clean = counted == len(e.Status.GetAddresses())
	return out
}
